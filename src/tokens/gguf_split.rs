//! How byte-level vocabularies cut text into words before merging, by the tag that a GGUF file carries
//! (`tokenizer.ggml.pre`). The tags and their meaning are llama.cpp's.

use serde_json::{Value, json};

/// What a tag means.
pub(super) struct Split {
    /// Applied one after the other, each to the pieces of the one before.
    patterns: &'static [&'static str],
    /// A word that is a token of its own is not merged.
    pub(super) ignore_merges: bool,
    /// Whether text begins with the beginning-of-text token, where the file does not say.
    pub(super) add_bos: bool,
}

/// Digits one by one; written as the component of that name, which the fast engine runs.
const DIGITS: &str = r"\p{N}";

const GPT_2: &str = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+";

/// The pattern of Llama 3, with digits by threes, by ones or not cut.
macro_rules! cl100k {
    ($digits:literal) => {
        concat!(
            r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|",
            $digits,
            r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
        )
    };
}
const LLAMA_3: &str = cl100k!(r"\p{N}{1,3}");
const QWEN_2: &str = cl100k!(r"\p{N}");
const ANY_DIGITS: &str = cl100k!(r"\p{N}+");

/// As [`QWEN_2`], with marks as part of words.
const QWEN_3_5: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+|\p{N}| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";

/// As [`QWEN_2`], without English contractions.
const NO_CONTRACTIONS: &str =
    r"[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";

const SEED: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}\r\n]+|\s*[\r\n]+|\s+(?!\S)|\s+";

const BAILING: &str = r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]|\s+(?!\S)|\s+";

/// A word in capitals, then small letters. To llama.cpp every letter beyond `a` to `z` may stand for a
/// capital, and marks belong to no word; the models' own files differ in both.
macro_rules! by_case {
    ($contraction:literal, $digits:literal) => {
        concat!(
            r"[^\r\n\p{L}\p{N}]?[\p{L}&&[^a-z]]*[\p{L}&&[^A-Z]]+",
            $contraction,
            r"|[^\r\n\p{L}\p{N}]?[\p{L}&&[^a-z]]+[\p{L}&&[^A-Z]]*",
            $contraction,
            "|",
            $digits,
            r"| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
        )
    };
}
const TEKKEN: &str = by_case!("", r"\p{N}");
const GPT_4O: &str =
    by_case!(r"(?:'[sS]|'[tT]|'[rR][eE]|'[vV][eE]|'[mM]|'[lL][lL]|'[dD])?", r"\p{N}{1,3}");

/// The fourth pattern covers white space beyond ASCII in the model's own file, not in llama.cpp.
const DEEPSEEK_CODER: [&str; 5] = [
    r"[\r\n]",
    r"\s?\p{L}+",
    r"\s?\p{P}+",
    "[[\u{4e00}-\u{9fa5}\u{800}-\u{4e00}\u{ac00}-\u{d7ff}]&&\\S]+",
    DIGITS,
];

/// The last pattern stands as the model's own file writes it: so the fast engine knows it.
const DEEPSEEK_3: [&str; 3] = [
    r"\p{N}{1,3}",
    "[\u{4e00}-\u{9fa5}\u{3040}-\u{309f}\u{30a0}-\u{30ff}]+",
    r##"[!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+| ?[\p{P}\p{S}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"##,
];

const BLOOM: &str = " ?[^(\\s|.,!?\u{2026}\u{3002}\u{ff0c}\u{3001}\u{964}\u{6d4}\u{60c})]+";

const FALCON: [&str; 3] = [r"[\p{P}$+<=>^~|`]+", GPT_2, "[0-9][0-9][0-9]"];

/// Of files that name no tag.
const NAMELESS: [&str; 4] = [r"[\p{P}$+<=>^~|]+", GPT_2, r"\p{N}+", "[0-9][0-9][0-9]"];

// === impl Split ===

impl Split {
    /// What a tag means; `None` for one that is not known here.
    pub(super) fn of(tag: &str) -> Option<Self> {
        let split = |patterns| Self { patterns, ignore_merges: false, add_bos: false };
        Some(match tag {
            "" | "default" => split(&NAMELESS),
            "llama3" | "llama-v3" | "llama-bpe" | "falcon3" | "falcon-h1" | "pixtral"
            | "midm-2.0" | "lfm2" | "jina-v5-nano" => {
                Self { ignore_merges: true, add_bos: true, ..split(&[LLAMA_3]) }
            }
            "dbrx" | "smaug-bpe" | "glm4" | "chatglm-bpe" => split(&[LLAMA_3]),
            "gpt-2" | "phi-2" | "jina-es" | "jina-de" | "jina-v1-en" | "jina-v2-es"
            | "jina-v2-de" | "jina-v2-code" | "roberta-bpe" | "gigachat" | "a.x-4.0" | "mellum"
            | "modern-bert" | "mpt" | "olmo" | "jais" | "trillion" | "granite-docling"
            | "exaone4" => split(&[GPT_2]),
            "qwen2" | "deepseek-r1-qwen" | "kormo" | "f2llmv2" | "megrez" | "stablelm2"
            | "hunyuan" | "solar-open" | "grok-2" => split(&[QWEN_2]),
            "qwen35" => split(&[QWEN_3_5]),
            "starcoder" | "refact" | "command-r" | "smollm" | "codeshell" | "exaone"
            | "minerva-7b" | "mellum2" => split(&[DIGITS, GPT_2]),
            "deepseek-coder" => split(&DEEPSEEK_CODER),
            "deepseek-v3" | "hunyuan-dense" | "joyai-llm" | "hy_v4" => split(&DEEPSEEK_3),
            "tekken" => Self { ignore_merges: true, add_bos: true, ..split(&[TEKKEN]) },
            "gpt-4o" | "llama4" | "kanana2" | "talkie" | "minimax-m2" => split(&[GPT_4O]),
            "falcon" => split(&FALCON),
            "bloom" | "poro-chat" | "gpt3-finnish" => split(&[BLOOM]),
            "viking" => split(&[BLOOM, DIGITS]),
            "seed-coder" => split(&[SEED]),
            "bailingmoe" | "bailingmoe2" | "llada-moe" => split(&[BAILING]),
            "laguna" => split(&[r"[^\n]+|[\n]+", QWEN_2]),
            "ufakzeka" => split(&[NO_CONTRACTIONS]),
            "minicpm5" => Self { ignore_merges: true, ..split(&[r"\p{N}{1,3}", ANY_DIGITS]) },
            _ => return None,
        })
    }

    /// As the pre-tokenizer of a `tokenizer.json`.
    pub(super) fn pre_tokenizer(&self) -> Value {
        let mut parts: Vec<Value> = self.patterns.iter().copied().map(part).collect();
        parts.push(json!({
            "type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": false,
        }));
        json!({"type": "Sequence", "pretokenizers": parts})
    }
}

fn part(pattern: &str) -> Value {
    if pattern == DIGITS {
        return json!({"type": "Digits", "individual_digits": true});
    }
    json!({"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": false})
}
