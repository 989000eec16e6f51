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

/// English contractions behind a word, in any case.
macro_rules! contraction {
    () => {
        r"(?:'[sS]|'[tT]|'[rR][eE]|'[vV][eE]|'[mM]|'[lL][lL]|'[dD])?"
    };
}

/// What most patterns of words end with: signs, lines, spaces.
macro_rules! rest {
    ($line_ends:literal) => {
        concat!(r"| ?[^\s\p{L}\p{N}]+[", $line_ends, r"]*|\s*[\r\n]+|\s+(?!\S)|\s+")
    };
}

/// A word in capitals, then small letters. To llama.cpp every letter beyond `a` to `z` may stand for a
/// capital, and marks belong to no word but where `$letters` says so; the models' own files differ in both.
macro_rules! by_case {
    ($letters:literal, $contraction:expr, $digits:literal) => {
        concat!(
            r"[^\r\n\p{L}\p{N}]?[",
            $letters,
            r"&&[^a-z]]*[",
            $letters,
            r"&&[^A-Z]]+",
            $contraction,
            r"|[^\r\n\p{L}\p{N}]?[",
            $letters,
            r"&&[^a-z]]+[",
            $letters,
            r"&&[^A-Z]]*",
            $contraction,
            "|",
            $digits,
            rest!(r"\r\n/")
        )
    };
}
const TEKKEN: &str = by_case!(r"\p{L}", "", r"\p{N}");
const GPT_4O: &str = by_case!(r"\p{L}", contraction!(), r"\p{N}{1,3}");
const GRANITE: &str = by_case!(r"[\p{L}\p{M}]", contraction!(), r"\p{N}{1,3}");

/// Words with marks, of letters in any case.
macro_rules! any_case {
    ($digits:literal) => {
        concat!(r"[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+", contraction!(), "|", $digits, rest!(r"\r\n/"))
    };
}

/// Digits by threes from the right; what stands before them stays with the first. A number of more than
/// 60 digits is cut by threes from the left until so many are left: else each digit would look at all that
/// follow.
const GROUPS: &str = r"\P{N}*(?:\p{N}{1,3}(?=(?>(?:\p{N}{3}){0,20})(?!\p{N}))|\p{N}{3})";

const TINY_AYA: [&str; 2] = [GROUPS, any_case!(r"\p{N}{1,3}")];

const YOUTU: [&str; 2] = [
    "[\u{ac00}-\u{d7a3}\u{3131}-\u{318e}]+|[\u{ff01}\u{2026}\u{201c}\u{201d}\u{2018}\u{2019}\u{2014}\u{ff1a}\u{ff1b}\u{ff0c}\u{3001}-\u{303f}\u{fe30}-\u{fe4f}]+|[\u{3105}-\u{312f}]+|[\u{4e00}-\u{9fa5}\u{3040}-\u{309f}\u{30a0}-\u{30ff}]+",
    any_case!(r"\p{N}"),
];

/// The scripts that are written without spaces, then the words of [`DEEPSEEK_3`].
const AFMOE: [&str; 3] = [
    GROUPS,
    "[\u{4e00}-\u{9fff}\u{3400}-\u{4dbf}\u{8c48}-\u{faff}\u{3040}-\u{309f}\u{30a0}-\u{30ff}\u{ff65}-\u{ff9f}\u{2f00}-\u{2fdf}\u{e40}-\u{e7f}\u{e80}-\u{eff}\u{1780}-\u{17ff}\u{1000}-\u{109f}\u{aa60}-\u{aa7f}\u{a9e0}-\u{a9ff}\u{ac00}-\u{d7af}\u{1100}-\u{11ff}]+",
    DEEPSEEK_WORDS,
];

/// ASCII digits by threes from the right, within runs of any digits; at most the last 60.
const SUPER: [&str; 2] = [r"\p{N}+", r"(?=(?>(?:[0-9]{3}){1,20})(?![0-9]))"];

macro_rules! han {
    () => {
        "\u{4e00}-\u{9fff}\u{3400}-\u{4dbf}\u{20000}-\u{2a6df}\u{2a700}-\u{2b73f}\u{2b740}-\u{2ebef}\u{f900}-\u{faff}\u{2f800}-\u{2fa1f}"
    };
}

/// Runs of Han, then words without it. Marks belong to no word; in the model's own file they do.
const KIMI: &str = concat!(
    "[",
    han!(),
    r"]+|[^\r\n\p{L}\p{N}]?[\p{L}&&[^",
    han!(),
    "]]+",
    contraction!(),
    r"|\p{N}{1,3}",
    rest!(r"\r\n")
);

const CHAMELEON: [&str; 6] = [
    "<sentinel:[0-9]+>",
    "IMGIMG[A-I]{1,4}Z",
    r"[\t\n]|    |  ",
    DIGITS,
    r"[\p{P}!-/:-@\[-`{-~]",
    GPT_2,
];

/// As [`LLAMA_3`], with runs of white space cut at powers of two.
const JAIS_2: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s{512}(?!\S)|\s{256}(?!\S)|\s{128}(?!\S)|\s{64}(?!\S)|\s{32}(?!\S)|\s{16}(?!\S)|\s{8}(?!\S)|\s{4}(?!\S)|\s{1,2}(?!\S)|\s{1}";

/// Words may be several, with a space between them.
const EXAONE_MOE: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?(?:\p{L}\p{M}*(?: \p{L}\p{M}*)*)+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]?|\s*[\r\n]|\s+(?!\S)|\s+";

/// Letters of scripts with two cases.
macro_rules! cased {
    () => {
        "A-Za-z\u{b5}\u{c0}-\u{d6}\u{d8}-\u{f6}\u{f8}-\u{1ba}\u{1bc}-\u{1bf}\u{1c4}-\u{293}\
    \u{295}-\u{2af}\u{370}-\u{373}\u{376}\u{377}\u{37b}-\u{37d}\u{37f}\u{386}\u{388}-\u{38a}\
    \u{38c}\u{38e}-\u{3a1}\u{3a3}-\u{3f5}\u{3f7}-\u{481}\u{48a}-\u{52f}\u{531}-\u{556}\
    \u{10a0}-\u{10c5}\u{13a0}-\u{13f5}\u{13f8}-\u{13fd}\u{1c90}-\u{1cba}\u{1cbd}-\u{1cbf}\
    \u{1d00}-\u{1d2b}\u{1d6b}-\u{1d77}\u{1d79}-\u{1d9a}\u{1e00}-\u{1f15}\u{1f18}-\u{1f1d}\
    \u{1f20}-\u{1f45}\u{1f48}-\u{1f4d}\u{1f50}-\u{1f57}\u{1f59}\u{1f5b}\u{1f5d}\
    \u{1f5f}-\u{1f7d}\u{1f80}-\u{1fb4}\u{1fb6}-\u{1fbc}\u{1fbe}\u{1fc2}-\u{1fc4}\
    \u{1fc6}-\u{1fcc}\u{1fd0}-\u{1fd3}\u{1fd6}-\u{1fdb}\u{1fe0}-\u{1fec}\u{1ff2}-\u{1ff4}\
    \u{1ff6}-\u{1ffc}\u{2102}\u{2107}\u{210a}-\u{2113}\u{2115}\u{2119}-\u{211d}\u{2124}\
    \u{2126}\u{2128}\u{212a}-\u{212d}\u{212f}-\u{2134}\u{2139}\u{213c}-\u{213f}\
    \u{2145}-\u{2149}\u{214e}\u{2183}\u{2184}\u{2c00}-\u{2c7b}\u{2c7e}-\u{2ce4}\
    \u{2ceb}-\u{2cee}\u{2cf2}\u{2cf3}\u{a640}-\u{a66d}\u{a680}-\u{a69b}\u{a722}-\u{a76f}\
    \u{a771}-\u{a787}\u{a78b}-\u{a78e}\u{ab70}-\u{abbf}\u{fb00}-\u{fb06}\u{fb13}-\u{fb17}\
    \u{ff21}-\u{ff3a}\u{ff41}-\u{ff5a}\u{10400}-\u{1044f}\u{104b0}-\u{104d3}\
    \u{104d8}-\u{104fb}\u{10c80}-\u{10cb2}\u{10cc0}-\u{10cf2}\u{118a0}-\u{118df}\
    \u{1e900}-\u{1e943}"
    };
}

const DEEPSEEK_LLM: [&str; 6] = [
    r"[\r\n]",
    concat!(r"\s?[", cased!(), "]+"),
    // Without the ideographic space, which is white space to llama.cpp first of all.
    "\\s?[!-/:-~\u{ff01}-\u{ff0f}\u{ff1a}-\u{ff5e}\u{2018}-\u{201f}\u{3001}\u{3002}]+",
    r"\s+$",
    CJK,
    r"\p{N}+",
];

/// Covers white space beyond ASCII in the models' own files, not in llama.cpp.
const CJK: &str = "[[\u{4e00}-\u{9fa5}\u{800}-\u{4e00}\u{ac00}-\u{d7ff}]&&\\S]+";

const DEEPSEEK_CODER: [&str; 5] = [r"[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", CJK, DIGITS];
const BY_THREES: &str = r"\p{N}{1,3}";
const HAN_AND_KANA: &str = "[\u{4e00}-\u{9fa5}\u{3040}-\u{309f}\u{30a0}-\u{30ff}]+";

/// As the models' own files write it: so the fast engine knows it.
const DEEPSEEK_WORDS: &str = r##"[!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+| ?[\p{P}\p{S}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"##;

const DEEPSEEK_3: [&str; 3] = [BY_THREES, HAN_AND_KANA, DEEPSEEK_WORDS];

const SPARK: [&str; 4] = [
    BY_THREES,
    HAN_AND_KANA,
    r##"[!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+| ?[\p{P}\p{S}]+|[\r\n]|\s+(?!\S)|\s+"##,
    DIGITS,
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
            "deepseek-llm" => split(&DEEPSEEK_LLM),
            "deepseek-coder" => split(&DEEPSEEK_CODER),
            "spark2_5" => split(&SPARK),
            "youtu" => Self { ignore_merges: true, ..split(&YOUTU) },
            "jais-2" => split(&[JAIS_2]),
            "chameleon" => Self { add_bos: true, ..split(&CHAMELEON) },
            "tiny_aya" | "cohere2moe" => split(&TINY_AYA),
            "superbpe" => split(&SUPER),
            "kimi-k2" => split(&[KIMI]),
            "afmoe" => split(&AFMOE),
            "exaone-moe" => split(&[EXAONE_MOE]),
            "granite-embed-multi-97m" => Self { ignore_merges: true, ..split(&[GRANITE]) },
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

/// Whether a tag speaks of vocabularies that spell words as they are, not byte by byte.
pub(super) fn is_spelled_raw(tag: &str) -> bool {
    matches!(tag, "gemma4" | "granite-embed-multi-311m" | "sarvam-moe")
}

/// Lines, for vocabularies whose words may hold spaces.
pub(super) fn lines() -> Value {
    part("[^\\n]+|[\\n]+")
}

fn part(pattern: &str) -> Value {
    if pattern == DIGITS {
        return json!({"type": "Digits", "individual_digits": true});
    }
    json!({"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": false})
}
