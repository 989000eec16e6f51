//! The tokenizer of one model: text to ids, ids to bytes.

use super::{CountError, engine::Engine, other_apis::stand_in};
use serde_json::{Map, Value, json};
use std::collections::BTreeMap;

/// Longest text that the classic engine counts. It is linear too, at worst about 0.6 s a megabyte.
const CLASSIC_BYTES_MAX: usize = 4 << 20;

/// A loaded tokenizer.
pub(super) struct Vocabulary {
    engine: Engine,
    pieces: Pieces,
    ids: BTreeMap<String, u32>,
    added_tokens: Vec<Value>,
}

impl Vocabulary {
    /// Reads a `tokenizer.json`, with what `tokenizer_config.json` adds to it.
    pub(super) fn load(mut file: Value, config: &Map<String, Value>) -> Result<Self, String> {
        add_missing_tokens(&mut file, config);
        // `add_bos_token` and `add_eos_token` are not looked at: next to a `tokenizer.json` the library
        // drops them, and the file's own post-processor counts.
        let pieces = Pieces::of(&file);
        let ids = added_tokens(&file)
            .filter_map(|token| Some((token.get("content")?.as_str()?.to_owned(), id_of(token)?)))
            .collect();
        let added_tokens = added_tokens(&file).cloned().collect();
        let engine = Engine::load(file)?;
        Ok(Self { engine, pieces, ids, added_tokens })
    }

    /// Encodes and hands the ids to `read`, which must not encode itself. Allocates nothing, unless the
    /// tokenizer has special tokens of its own to put around the text.
    pub(super) fn with_ids<T>(
        &self,
        text: &str,
        add_special: bool,
        read: impl FnOnce(&[u32]) -> T,
    ) -> Result<T, CountError> {
        if text.len() > self.text_bytes_max() {
            return Err(CountError::TooCostly("the text is too long to count".into()));
        }
        self.engine.with_ids(text, add_special, read)
    }

    /// Longest text that is counted. Counting is linear, with the fast engine at worst 0.17 s a megabyte.
    pub(super) const fn text_bytes_max(&self) -> usize {
        if self.is_fast() { super::template::TEXT_BYTES_MAX } else { CLASSIC_BYTES_MAX }
    }

    /// Whether the fast engine runs it.
    pub(super) const fn is_fast(&self) -> bool {
        matches!(self.engine, Engine::Fast(_))
    }

    /// The added tokens, special or not, as `tokenizer.json` lists them.
    pub(super) fn added_tokens(&self) -> &[Value] {
        &self.added_tokens
    }

    /// The bytes a token stands for; `None` for special tokens and ids out of range.
    pub(super) fn bytes_of(&self, id: u32) -> Option<Vec<u8>> {
        self.pieces.get(id).map(<[u8]>::to_vec)
    }

    /// Special tokens around two texts that are encoded as a pair. `None`: nothing stands between them.
    pub(super) fn around_pairs(&self) -> Option<usize> {
        self.engine.around_pairs()
    }

    /// Tokens as the vocabulary writes them; empty where it has no such id.
    pub(super) fn token_texts(&self, ids: &[u32]) -> Vec<String> {
        let added: BTreeMap<u32, &str> =
            self.ids.iter().map(|(content, id)| (*id, content.as_str())).collect();
        let bytes = |id: u32| {
            let bytes = self.pieces.get(id)?;
            Some(bytes.iter().map(|byte| stand_in(*byte)).collect())
        };
        let text = |id: &u32| match added.get(id) {
            Some(content) => (*content).to_owned(),
            None => self.engine.token(*id).or_else(|| bytes(*id)).unwrap_or_default(),
        };
        ids.iter().map(text).collect()
    }

    /// The id of an added token, special or not.
    pub(super) fn added_id(&self, content: &str) -> Option<u32> {
        self.ids.get(content).copied()
    }
}

// === what transformers does to a tokenizer at load ===

fn added_tokens(file: &Value) -> impl Iterator<Item = &Value> {
    file.get("added_tokens").and_then(Value::as_array).into_iter().flatten()
}

fn id_of(token: &Value) -> Option<u32> {
    token.get("id")?.as_u64()?.try_into().ok()
}

/// The vocabulary's own tokens with their ids, whatever kind of model it is.
fn vocabulary(file: &Value) -> Box<dyn Iterator<Item = (&str, u32)> + '_> {
    match file.pointer("/model/vocab") {
        Some(Value::Object(map)) => Box::new(
            map.iter()
                .filter_map(|(token, id)| Some((token.as_str(), id.as_u64()?.try_into().ok()?))),
        ),
        Some(Value::Array(list)) => Box::new(list.iter().zip(0u32..).filter_map(|(entry, id)| {
            // Unigram: pairs of a token and its score.
            Some((entry.get(0)?.as_str()?, id))
        })),
        _ => Box::new(std::iter::empty()),
    }
}

/// Adds the tokens that only `tokenizer_config.json` lists: `added_tokens_decoder`, then the named ones
/// (`bos_token` and so on).
fn add_missing_tokens(file: &mut Value, config: &Map<String, Value>) {
    let mut known: Vec<String> = added_tokens(file)
        .filter_map(|token| Some(token.get("content")?.as_str()?.to_owned()))
        .collect();
    let model: BTreeMap<&str, u32> = vocabulary(file).collect();
    let last = model.values().copied().chain(added_tokens(file).filter_map(id_of)).max();
    let mut next = last.map_or(0, |id| id.saturating_add(1));
    let mut missing = Vec::new();

    let listed = config.get("added_tokens_decoder").and_then(Value::as_object);
    let mut listed: Vec<(u32, &Value)> = listed
        .into_iter()
        .flatten()
        .filter_map(|(id, token)| Some((id.parse().ok()?, token)))
        .collect();
    listed.sort_by_key(|(id, _)| *id);
    for (id, token) in listed {
        let Some(content) = token.get("content").and_then(Value::as_str) else { continue };
        if known.iter().any(|token| token == content) {
            continue;
        }
        known.push(content.to_owned());
        let flag = |name: &str, otherwise: bool| {
            token.get(name).and_then(Value::as_bool).unwrap_or(otherwise)
        };
        let special = flag("special", false);
        missing.push(json!({
            "id": id, "content": content, "special": special,
            "normalized": flag("normalized", !special), "single_word": flag("single_word", false),
            "lstrip": flag("lstrip", false), "rstrip": flag("rstrip", false),
        }));
        next = next.max(id.saturating_add(1));
    }
    for (_, content) in named_tokens(config) {
        if known.iter().any(|token| token == content) {
            continue;
        }
        known.push(content.to_owned());
        let id = model.get(content).copied().unwrap_or_else(|| {
            let id = next;
            next = next.saturating_add(1);
            id
        });
        missing.push(json!({
            "id": id, "content": content, "special": true, "normalized": false,
            "single_word": false, "lstrip": false, "rstrip": false,
        }));
    }
    drop(model);
    if missing.is_empty() {
        return;
    }
    match file.get_mut("added_tokens").and_then(Value::as_array_mut) {
        Some(tokens) => {
            tokens.extend(missing);
            tokens.sort_by_key(id_of);
        }
        None => {
            if let Some(root) = file.as_object_mut() {
                root.insert("added_tokens".into(), Value::Array(missing));
            }
        }
    }
}

/// The named special tokens of a configuration: `bos_token`, `eos_token` and so on, with their text.
pub(super) fn named_tokens(config: &Map<String, Value>) -> impl Iterator<Item = (&str, &str)> {
    config.iter().filter_map(|(name, token)| {
        let named = name.ends_with("_token") && !name.starts_with("add_");
        let content = token.as_str().or_else(|| token.get("content")?.as_str());
        content.filter(|_| named).map(|content| (name.as_str(), content))
    })
}

// === ids to bytes ===

/// The bytes of every token, end to end in one piece of memory.
struct Pieces {
    bytes: Vec<u8>,
    /// Where each id's bytes begin and end; `None` for specials and gaps.
    places: Vec<Option<(u32, u32)>>,
}

impl Pieces {
    fn of(file: &Value) -> Self {
        let byte_level = [file.get("pre_tokenizer"), file.get("normalizer"), file.get("decoder")]
            .into_iter()
            .flatten()
            .any(mentions_byte_level);
        let mut pieces = Self { bytes: Vec::new(), places: Vec::new() };
        for (token, id) in vocabulary(file) {
            let bytes =
                if byte_level { byte_level_bytes(token) } else { sentence_piece_bytes(token) };
            pieces.put(id, Some(&bytes));
        }
        for token in added_tokens(file) {
            let special = token.get("special").and_then(Value::as_bool).unwrap_or(false);
            let content = token.get("content").and_then(Value::as_str).unwrap_or_default();
            if let Some(id) = id_of(token) {
                pieces.put(id, (!special).then_some(content.as_bytes()));
            }
        }
        pieces
    }

    fn put(&mut self, id: u32, bytes: Option<&[u8]>) {
        // A broken file must not make us reserve gigabytes.
        const ID_MAX: u32 = 1 << 22;
        if id > ID_MAX {
            return;
        }
        let place = bytes.and_then(|bytes| {
            let start = u32::try_from(self.bytes.len()).ok()?;
            self.bytes.extend_from_slice(bytes);
            Some((start, u32::try_from(self.bytes.len()).ok()?))
        });
        let at = id as usize;
        if self.places.len() <= at {
            self.places.resize(at + 1, None);
        }
        if let Some(entry) = self.places.get_mut(at) {
            *entry = place;
        }
    }

    fn get(&self, id: u32) -> Option<&[u8]> {
        let (start, end) = (*self.places.get(id as usize)?)?;
        self.bytes.get(start as usize..end as usize)
    }
}

fn mentions_byte_level(part: &Value) -> bool {
    match part {
        Value::Object(map) => {
            map.get("type").and_then(Value::as_str) == Some("ByteLevel")
                || map.values().any(mentions_byte_level)
        }
        Value::Array(list) => list.iter().any(mentions_byte_level),
        _ => false,
    }
}

/// Undoes GPT-2's table of printable stand-ins for bytes: printable Latin-1 stands for itself, the rest
/// follows in order from U+0100.
fn byte_level_bytes(token: &str) -> Vec<u8> {
    fn stands_for_itself(byte: u8) -> bool {
        matches!(byte, b'!'..=b'~' | 0xa1..=0xac | 0xae..=0xff)
    }
    let mut bytes = Vec::with_capacity(token.len());
    for c in token.chars() {
        let code = u32::from(c);
        let byte = match u8::try_from(code) {
            Ok(byte) => Some(byte),
            Err(_) => (0..=u8::MAX)
                .filter(|byte| !stands_for_itself(*byte))
                .nth(code.saturating_sub(0x100) as usize),
        };
        match byte {
            Some(byte) => bytes.push(byte),
            // Not a stand-in: a token that was added to the vocabulary as it reads.
            None => return token.as_bytes().to_vec(),
        }
    }
    bytes
}

/// A SentencePiece token: `<0x0A>` is one byte, a low bar is a space.
fn sentence_piece_bytes(token: &str) -> Vec<u8> {
    let byte = token.strip_prefix("<0x").and_then(|rest| rest.strip_suffix('>'));
    match byte.and_then(|hex| u8::from_str_radix(hex, 16).ok()) {
        Some(byte) => vec![byte],
        None => token.replace('\u{2581}', " ").into_bytes(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn byte_stand_ins_are_undone() {
        assert_eq!(byte_level_bytes("\u{120}a\u{10a}"), b" a\n");
        assert_eq!(byte_level_bytes("\u{c3}\u{a9}"), "é".as_bytes());
        assert_eq!(byte_level_bytes("\u{143}"), [0xad]);
    }

    #[test]
    fn byte_tokens_and_low_bars_are_undone() {
        assert_eq!(sentence_piece_bytes("<0x0A>"), b"\n");
        assert_eq!(sentence_piece_bytes("\u{2581}the"), b" the");
    }
}
