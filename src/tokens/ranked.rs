//! Vocabularies that are a list of byte strings by rank, as tiktoken has them, written as a `tokenizer.json`
//! so that the same engines run them.
//!
//! tiktoken joins whatever two neighbours make the token of the lowest rank. A list of merges says the same
//! when it holds every way to cut every token in two, the lowest rank first.

use serde_json::{Map, Value, json};
use std::collections::HashMap;

/// Longest token, bytes; the longest in circulation have some hundred.
const TOKEN_BYTES_MAX: usize = 2048;

/// Most tokens; the largest vocabularies in circulation have 262,144.
const TOKENS_MAX: usize = 1 << 20;

/// A token that is cut out of a text before anything else.
pub(super) struct Special {
    pub(super) id: u32,
    pub(super) text: String,
    /// Whether it is left out of an answer's text.
    pub(super) is_control: bool,
}

/// What is needed to cut and merge a text.
pub(super) struct Ranked<'a> {
    /// Tokens, the lowest rank first.
    pub(super) tokens: Vec<Vec<u8>>,
    /// The id of the first of them; the others follow.
    pub(super) first_id: u32,
    pub(super) specials: Vec<Special>,
    /// The pattern of words.
    pub(super) pattern: &'a str,
    /// What is done to a text first.
    pub(super) normalizer: Value,
    /// The special token that begins a text, where there is one.
    pub(super) begins: Option<u32>,
}

impl Ranked<'_> {
    /// Writes it. Refuses what is no such vocabulary, with the reason.
    pub(super) fn tokenizer(&self) -> Result<Value, String> {
        if self.tokens.len() > TOKENS_MAX {
            return Err("the vocabulary has more tokens than any real one".into());
        }
        let mut ranks: HashMap<&[u8], usize> = HashMap::with_capacity(self.tokens.len());
        for (rank, token) in self.tokens.iter().enumerate() {
            if token.is_empty() || token.len() > TOKEN_BYTES_MAX {
                return Err(format!("the token of rank {rank} has {} bytes", token.len()));
            }
            if ranks.insert(token, rank).is_some() {
                return Err(format!("the token of rank {rank} is there twice"));
            }
        }
        if let Some(byte) = (0..=u8::MAX).find(|byte| !ranks.contains_key([*byte].as_slice())) {
            return Err(format!("there is no token for the byte {byte:#04x}"));
        }
        let stand_ins = stand_ins();
        let mut vocabulary = Map::with_capacity(self.tokens.len() + self.specials.len());
        for (id, token) in (u64::from(self.first_id)..).zip(&self.tokens) {
            vocabulary.insert(spell(token, &stand_ins), id.into());
        }
        let mut added = Vec::with_capacity(self.specials.len());
        for special in &self.specials {
            // The engines give new ids to added tokens that the vocabulary does not name. One that is
            // spelled like a plain token would take its place.
            if vocabulary.insert(special.text.clone(), special.id.into()).is_some() {
                return Err(format!("the token {:?} is there twice", special.text));
            }
            added.push(json!({
                "id": special.id, "content": special.text, "special": special.is_control,
                "normalized": false, "single_word": false, "lstrip": false, "rstrip": false,
            }));
        }
        let split = json!({
            "type": "Split", "pattern": {"Regex": self.pattern}, "behavior": "Isolated", "invert": false,
        });
        let bytes = json!({
            "type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": false,
        });
        let mut model = json!({
            "type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": null,
            "end_of_word_suffix": null, "fuse_unk": false, "byte_fallback": false,
            // A word that is a token is looked up before anything is merged.
            "ignore_merges": true,
        });
        if let Some(model) = model.as_object_mut() {
            model.insert("vocab".into(), vocabulary.into());
            model.insert("merges".into(), self.merges(&ranks, &stand_ins).into());
        }
        Ok(json!({
            "version": "1.0", "truncation": null, "padding": null, "added_tokens": added,
            "normalizer": self.normalizer,
            "pre_tokenizer": {"type": "Sequence", "pretokenizers": [split, bytes]},
            "post_processor": self.post_processor(), "decoder": null, "model": model,
        }))
    }

    fn merges(&self, ranks: &HashMap<&[u8], usize>, stand_ins: &[char]) -> Vec<Value> {
        let mut merges = Vec::new();
        for token in &self.tokens {
            let mut cuts: Vec<(usize, usize, &[u8], &[u8])> = (1..token.len())
                .filter_map(|at| {
                    let (left, right) = token.split_at_checked(at)?;
                    Some((*ranks.get(left)?, *ranks.get(right)?, left, right))
                })
                .collect();
            cuts.sort_unstable();
            merges.extend(cuts.into_iter().map(|(_, _, left, right)| {
                Value::from(format!("{} {}", spell(left, stand_ins), spell(right, stand_ins)))
            }));
        }
        merges
    }

    fn post_processor(&self) -> Value {
        let begins = self.begins.and_then(|id| self.specials.iter().find(|token| token.id == id));
        let Some(special) = begins else { return Value::Null };
        let name = special.text.as_str();
        let sequence = |id: &str| json!({"Sequence": {"id": id, "type_id": 0}});
        let token = json!({"SpecialToken": {"id": name, "type_id": 0}});
        json!({
            "type": "TemplateProcessing", "single": [token, sequence("A")],
            "pair": [token, sequence("A"), sequence("B")],
            "special_tokens": {name: {"id": name, "ids": [special.id], "tokens": [name]}},
        })
    }
}

/// GPT-2's printable stand-ins for bytes, by byte.
fn stand_ins() -> Vec<char> {
    let mut next = 0x100u32;
    (0..=u8::MAX)
        .map(|byte| {
            if matches!(byte, b'!'..=b'~' | 0xa1..=0xac | 0xae..=0xff) {
                return char::from(byte);
            }
            next += 1;
            char::from_u32(next - 1).unwrap_or_default()
        })
        .collect()
}

fn spell(bytes: &[u8], stand_ins: &[char]) -> String {
    bytes.iter().filter_map(|byte| stand_ins.get(usize::from(*byte))).collect()
}
