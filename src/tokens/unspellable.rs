//! Tokens of byte-level vocabularies that no text can spell.
//!
//! Such a vocabulary writes bytes as stand-ins. Some hold tokens beside that are written as they read (an
//! emoji, say): no merge leads to them, so no text holds them. The fast engine takes such a token for its
//! bytes and would find it, so it gets a name here that nobody writes.

use serde_json::{Map, Value};
use std::collections::HashSet;

/// A name for the token with this id, which no text holds.
pub(super) fn name(id: usize) -> String {
    format!("\u{10ffff}\u{0}{id}\u{0}\u{10ffff}")
}

/// Renames such tokens in a `tokenizer.json`. Other vocabularies stay as they are.
pub(super) fn hide(file: &mut Value) {
    let byte_level = [file.get("pre_tokenizer"), file.get("normalizer")]
        .into_iter()
        .flatten()
        .any(holds_byte_level);
    let is_bpe = file.pointer("/model/type").is_none_or(|kind| kind == "BPE");
    let vocabulary = file.pointer("/model/vocab").and_then(Value::as_object);
    let Some(vocabulary) = vocabulary.filter(|_| byte_level && is_bpe) else { return };
    let mut odd: HashSet<&str> = vocabulary
        .keys()
        .map(String::as_str)
        .filter(|token| !token.chars().all(is_stand_in))
        .collect();
    if odd.is_empty() {
        return;
    }
    // Added tokens are known by these names.
    for token in file.get("added_tokens").and_then(Value::as_array).into_iter().flatten() {
        odd.remove(token.get("content").and_then(Value::as_str).unwrap_or_default());
    }
    // The engines refuse merges of tokens that they do not know.
    let merges = file.pointer("/model/merges").and_then(Value::as_array);
    for merge in merges.into_iter().flatten() {
        let pair = match merge {
            Value::String(text) => text.split_once(' '),
            other => other.get(0).and_then(Value::as_str).zip(other.get(1).and_then(Value::as_str)),
        };
        if let Some((left, right)) = pair {
            odd.remove(left);
            odd.remove(right);
            odd.remove(format!("{left}{right}").as_str());
        }
    }
    let hidden: Map<String, Value> = vocabulary
        .iter()
        .map(|(token, id)| match odd.contains(token.as_str()) {
            true => (name(id.as_u64().unwrap_or_default() as usize), id.clone()),
            false => (token.clone(), id.clone()),
        })
        .collect();
    if let Some(vocabulary) = file.pointer_mut("/model/vocab") {
        *vocabulary = hidden.into();
    }
}

fn holds_byte_level(part: &Value) -> bool {
    part.get("type").and_then(Value::as_str) == Some("ByteLevel")
        || ["pretokenizers", "normalizers"]
            .into_iter()
            .filter_map(|list| part.get(list)?.as_array())
            .flatten()
            .any(holds_byte_level)
}

/// Whether a character stands for a byte in GPT-2's table.
fn is_stand_in(c: char) -> bool {
    matches!(c, '!'..='~' | '\u{a1}'..='\u{ac}' | '\u{ae}'..='\u{143}')
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn file(kind: &str) -> Value {
        json!({
            "pre_tokenizer": {"type": "Sequence", "pretokenizers": [{"type": kind}]},
            "added_tokens": [{"id": 2, "content": "\u{2764}\u{2764}"}],
            "model": {"type": "BPE", "merges": [],
                "vocab": {"a": 0, "\u{2764}": 1, "\u{2764}\u{2764}": 2, "\u{120}a": 3}},
        })
    }

    #[test]
    fn tokens_outside_the_table_are_renamed_unless_they_are_added() {
        let mut hidden = file("ByteLevel");
        hide(&mut hidden);
        let vocabulary = json!({"a": 0, name(1): 1, "\u{2764}\u{2764}": 2, "\u{120}a": 3});
        assert_eq!(hidden["model"]["vocab"], vocabulary);
        let mut merged = file("ByteLevel");
        merged["model"]["merges"] = json!([["\u{2764}", "\u{2764}"]]);
        let before = merged.clone();
        hide(&mut merged);
        assert_eq!(merged, before, "the engines refuse merges of tokens that they do not know");
        let mut other = file("Metaspace");
        hide(&mut other);
        assert_eq!(other, file("Metaspace"));
    }
}
