//! Mistral's `tekken.json`, the vocabulary of a model that brings no `tokenizer.json`.
//!
//! The form is mistral_common's: byte strings by rank, special tokens in front of them, and the pattern of
//! words. Only as many ranks count as `default_vocab_size` leaves behind the special tokens.

use super::ranked::{Ranked, Special};
use base64::{Engine as _, engine::general_purpose::STANDARD as BASE64};
use serde::Deserialize;
use serde_json::{Map, Value};

/// Special tokens of files that list none (up to version 7 of the format).
const SPECIALS: [&str; 20] = [
    "<unk>",
    "<s>",
    "</s>",
    "[INST]",
    "[/INST]",
    "[AVAILABLE_TOOLS]",
    "[/AVAILABLE_TOOLS]",
    "[TOOL_RESULTS]",
    "[/TOOL_RESULTS]",
    "[TOOL_CALLS]",
    "[IMG]",
    "<pad>",
    "[IMG_BREAK]",
    "[IMG_END]",
    "[PREFIX]",
    "[MIDDLE]",
    "[SUFFIX]",
    "[SYSTEM_PROMPT]",
    "[/SYSTEM_PROMPT]",
    "[TOOL_CONTENT]",
];

/// Most special tokens; files in circulation have 1,000.
const SPECIALS_MAX: u32 = 1 << 16;

#[derive(Deserialize)]
struct File {
    config: Config,
    vocab: Vec<Token>,
    #[serde(default)]
    special_tokens: Option<Vec<Named>>,
}

#[derive(Deserialize)]
struct Config {
    pattern: String,
    default_vocab_size: u32,
    default_num_special_tokens: u32,
}

#[derive(Deserialize)]
struct Token {
    rank: u32,
    token_bytes: String,
}

#[derive(Deserialize)]
struct Named {
    rank: u32,
    token_str: String,
    #[serde(default)]
    is_control: bool,
}

/// The `tokenizer.json` of such a file.
pub(super) fn tokenizer(text: &str) -> Result<Value, String> {
    let file: File = serde_json::from_str(text).map_err(|error| error.to_string())?;
    let count = file.config.default_num_special_tokens;
    if count > SPECIALS_MAX {
        return Err(format!("{count} special tokens are beyond every limit"));
    }
    let plain = file.config.default_vocab_size.checked_sub(count);
    let plain = plain.ok_or("the vocabulary is smaller than its special tokens")? as usize;
    if file.vocab.len() < plain {
        return Err(format!("{plain} tokens are promised, {} are there", file.vocab.len()));
    }
    let mut tokens = Vec::with_capacity(plain);
    for (place, token) in file.vocab.iter().take(plain).enumerate() {
        if token.rank as usize != place {
            return Err(format!("the token of rank {} stands in place {place}", token.rank));
        }
        tokens.push(BASE64.decode(&token.token_bytes).map_err(|error| error.to_string())?);
    }
    let specials = specials(file.special_tokens, count)?;
    let begins = specials.iter().find(|token| token.text == "<s>").map(|token| token.id);
    let pattern = &file.config.pattern;
    Ranked { tokens, first_id: count, specials, pattern, normalizer: Value::Null, begins }
        .tokenizer()
}

/// Names them in `tokenizer_config.json`, where that does not.
pub(super) fn name_tokens(config: &mut Map<String, Value>) {
    for (name, text) in [("bos_token", "<s>"), ("eos_token", "</s>"), ("unk_token", "<unk>")] {
        config.entry(name).or_insert_with(|| text.into());
    }
}

/// Those of the file, else the old list; and a filler for each place that is left.
fn specials(named: Option<Vec<Named>>, count: u32) -> Result<Vec<Special>, String> {
    let mut specials: Vec<Special> = match named {
        Some(named) => named
            .into_iter()
            .map(|token| Special {
                id: token.rank,
                text: token.token_str,
                is_control: token.is_control,
            })
            .collect(),
        None => (0..)
            .zip(SPECIALS)
            .map(|(id, text)| Special { id, text: text.into(), is_control: true })
            .collect(),
    };
    if let Some(token) = specials.iter().find(|token| token.id >= count) {
        return Err(format!("the special token {:?} is one too many", token.text));
    }
    let known = u32::try_from(specials.len()).unwrap_or(u32::MAX);
    specials.extend((known..count).map(|id| Special {
        id,
        text: format!("<SPECIAL_{id}>"),
        is_control: true,
    }));
    Ok(specials)
}
