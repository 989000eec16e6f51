//! Vocabularies in tiktoken's form: a line for each token, its bytes in base64 and its rank.
//!
//! The file holds neither the pattern of words nor the special tokens: those stand in the code beside it. The
//! patterns of known families are here; where the family is not known, the file is refused.

use super::ranked::{Ranked, Special};
use base64::{Engine as _, engine::general_purpose::STANDARD as BASE64};
use serde_json::{Map, Value, json};

/// What the code of a family says.
struct Family {
    pattern: &'static str,
    /// Whether a text is brought into composed form first.
    composes: bool,
    /// Special tokens behind the last rank, where the folder does not list them.
    specials: fn() -> Vec<String>,
    /// The token that begins every text.
    begins: Option<&'static str>,
}

/// GPT-4's pattern. White space at the end of a text stays together, lines and all.
const CL100K: &str = r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}++|\p{N}{1,3}+| ?[^\s\p{L}\p{N}]++[\r\n]*+|\s++$|\s*[\r\n]|\s+(?!\S)|\s";

/// The pattern of Llama 3 and GLM 4.
const LLAMA_3: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";

/// With digits one by one.
const QWEN: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";

/// GPT-4o's pattern.
const O200K: &str = r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+";

/// Kimi's pattern: runs of Han for themselves. Spelled other than in the model's code, where the fast engine
/// would know it and cut before the radicals from U+2E80, which are Han but no letters.
const KIMI: &str = r"\p{Han}+|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}&&[^\p{Han}]]*[\p{Ll}\p{Lm}\p{Lo}\p{M}&&[^\p{Han}]]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}&&[^\p{Han}]]+[\p{Ll}\p{Lm}\p{Lo}\p{M}&&[^\p{Han}]]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";

/// The `tokenizer.json` of such a file. `name` is the file's, the maps are `tokenizer_config.json` and
/// `config.json` beside it, which tell the family.
pub(super) fn tokenizer(
    text: &str,
    name: &str,
    config: &Map<String, Value>,
    model: &Map<String, Value>,
) -> Result<Value, String> {
    let tokens = ranks(text)?;
    let family = family(name, config, model, tokens.len())?;
    let specials = specials(&family, config, tokens.len());
    let begins = family
        .begins
        .and_then(|text| specials.iter().find(|token| token.text == text))
        .map(|token| token.id);
    let normalizer = if family.composes { json!({"type": "NFC"}) } else { Value::Null };
    let pattern = family.pattern;
    Ranked { tokens, first_id: 0, specials, pattern, normalizer, begins }.tokenizer()
}

/// Whether a text has this form: another vocabulary may have the same name.
pub(super) fn is_such(bytes: &[u8]) -> bool {
    let line = bytes.split(|byte| *byte == b'\n').find(|line| !line.is_empty());
    let line = line.and_then(|line| std::str::from_utf8(line.get(..line.len().min(256))?).ok());
    line.and_then(entry).is_some()
}

fn entry(line: &str) -> Option<(Vec<u8>, usize)> {
    let (token, rank) = line.trim_end().split_once(' ')?;
    Some((BASE64.decode(token).ok()?, rank.parse().ok()?))
}

/// Tokens, the lowest rank first.
fn ranks(text: &str) -> Result<Vec<Vec<u8>>, String> {
    let mut tokens = Vec::new();
    for (at, line) in text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty()) {
        let (token, rank) = entry(line)
            .ok_or_else(|| format!("line {} is not a token in base64 and its rank", at + 1))?;
        if rank != tokens.len() {
            return Err(format!("line {} has rank {rank}, not {}", at + 1, tokens.len()));
        }
        tokens.push(token);
    }
    Ok(tokens)
}

/// Told by the class of the tokenizer, the type of the model, the name of the file, or, for files that
/// come alone, by their size.
fn family(
    name: &str,
    config: &Map<String, Value>,
    model: &Map<String, Value>,
    ranks: usize,
) -> Result<Family, String> {
    let none: fn() -> Vec<String> = Vec::new;
    let plain = |pattern| Family { pattern, composes: false, specials: none, begins: None };
    let text = |map: &Map<String, Value>, key: &str| {
        map.get(key).and_then(Value::as_str).unwrap_or_default().to_ascii_lowercase()
    };
    let (class, kind) = (text(config, "tokenizer_class"), text(model, "model_type"));
    let name = name.to_ascii_lowercase();
    if class == "qwentokenizer" || kind == "qwen" || name == "qwen.tiktoken" {
        return Ok(Family { composes: true, specials: qwen_specials, ..plain(QWEN) });
    }
    if kind.starts_with("kimi") || (class == "tiktokentokenizer" && kind.starts_with("deepseek")) {
        return Ok(plain(KIMI));
    }
    if class == "chatglm4tokenizer" {
        return Ok(plain(LLAMA_3));
    }
    if name.starts_with("cl100k") {
        return Ok(plain(CL100K));
    }
    if name.starts_with("o200k") {
        return Ok(plain(O200K));
    }
    // Llama 3 as its makers hand it out, with no other file that tells.
    if name == "tokenizer.model" && class.is_empty() && ranks == LLAMA_3_RANKS {
        let begins = Some("<|begin_of_text|>");
        return Ok(Family { specials: llama_3_specials, begins, ..plain(LLAMA_3) });
    }
    Err(format!(
        "{name} does not say where words end, and the family is not known (tokenizer_class {class:?}, model_type {kind:?})"
    ))
}

const LLAMA_3_RANKS: usize = 128_000;

fn qwen_specials() -> Vec<String> {
    let named = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"].map(str::to_owned);
    named.into_iter().chain((0..205).map(|extra| format!("<|extra_{extra}|>"))).collect()
}

fn llama_3_specials() -> Vec<String> {
    let reserved = |number: usize| format!("<|reserved_special_token_{number}|>");
    let mut all = vec!["<|begin_of_text|>".to_owned(), "<|end_of_text|>".to_owned()];
    all.extend((0..4).map(reserved));
    all.extend(["<|start_header_id|>", "<|end_header_id|>"].map(str::to_owned));
    all.push(reserved(4));
    all.push("<|eot_id|>".to_owned());
    all.extend((5..251).map(reserved));
    all
}

/// Those that the folder lists, by their ids; else those of the family, behind the last rank.
fn specials(family: &Family, config: &Map<String, Value>, ranks: usize) -> Vec<Special> {
    let listed = config.get("added_tokens_decoder").and_then(Value::as_object);
    let mut listed: Vec<Special> = listed
        .into_iter()
        .flatten()
        .filter_map(|(id, token)| {
            let is_control = token.get("special").and_then(Value::as_bool).unwrap_or(false);
            let text = token.get("content")?.as_str()?.to_owned();
            Some(Special { id: id.parse().ok()?, text, is_control })
        })
        .collect();
    listed.sort_by_key(|token| token.id);
    if !listed.is_empty() {
        return listed;
    }
    let first = u32::try_from(ranks).unwrap_or(u32::MAX);
    let named = (family.specials)();
    (first..).zip(named).map(|(id, text)| Special { id, text, is_control: true }).collect()
}
