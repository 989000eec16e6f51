//! SentencePiece's `tokenizer.model`, the vocabulary of a model that brings no `tokenizer.json`.
//!
//! The file is a protocol buffer (`sentencepiece_model.proto`); the few fields that count are read here. It is
//! written as a `tokenizer.json` the way SentencePiece cuts: white space becomes a low bar, then BPE by score or
//! the likeliest cut. Forms that would not come out exactly are refused with the reason.

use super::unspellable;
use base64::{Engine as _, engine::general_purpose::STANDARD as BASE64};
use serde_json::{Map, Value, json};
use std::collections::HashSet;

/// What SentencePiece writes for a space.
const SPACE: char = '\u{2581}';

/// Most pieces; the largest vocabularies in circulation have 262,144.
const PIECES_MAX: usize = 1 << 20;

/// Longest piece, bytes.
const PIECE_BYTES_MAX: usize = 2048;

/// A piece's type, as the file numbers them.
mod kind {
    pub(super) const NORMAL: u64 = 1;
    pub(super) const UNKNOWN: u64 = 2;
    pub(super) const CONTROL: u64 = 3;
    pub(super) const ADDED: u64 = 4;
}

/// What the file says, with the defaults of the format.
struct Model {
    pieces: Vec<Piece>,
    /// 1: the likeliest cut; 2: BPE.
    model_type: u64,
    byte_fallback: bool,
    charsmap: Vec<u8>,
    add_dummy_prefix: bool,
    remove_extra_whitespaces: bool,
    escape_whitespaces: bool,
    space_behind: bool,
}

struct Piece {
    text: String,
    score: f32,
    kind: u64,
}

/// Classes of tokenizers that take the file's ids as they are. Others shift them.
const CLASSES: [&str; 9] =
    ["", "Llama", "CodeLlama", "Gemma", "T5", "InternLM", "InternLM2", "Baichuan", "PreTrained"];

/// The `tokenizer.json` of such a file. `config` is `tokenizer_config.json`, which says what is put around.
pub(super) fn tokenizer(bytes: &[u8], config: &Map<String, Value>) -> Result<Value, String> {
    let class = config.get("tokenizer_class").and_then(Value::as_str).unwrap_or_default();
    let family = class.trim_end_matches("Fast").trim_end_matches("Tokenizer");
    if !CLASSES.contains(&family) {
        return Err(format!("{class:?} may give other ids than the SentencePiece model has"));
    }
    let model = Model::read(bytes)?;
    if model.space_behind || !model.escape_whitespaces {
        return Err("SentencePiece models with spaces behind their words are not known here".into());
    }
    let unknown = model.pieces.iter().position(|piece| piece.kind == kind::UNKNOWN);
    let unknown = unknown.ok_or("the file has no unknown piece")?;
    let prefix = Prefix::of(&model, config);
    let part = match model.model_type {
        1 => model.unigram(unknown),
        2 => model.bpe(unknown),
        other => return Err(format!("SentencePiece models of type {other} are not known here")),
    };
    Ok(json!({
        "version": "1.0", "truncation": null, "padding": null, "added_tokens": model.added(),
        "normalizer": model.normalizer(prefix), "pre_tokenizer": prefix.pre_tokenizer(),
        "post_processor": model.post_processor(config), "decoder": null, "model": part,
    }))
}

/// Names the special tokens in `tokenizer_config.json`, where that does not.
pub(super) fn name_tokens(config: &mut Map<String, Value>, tokenizer: &Value) {
    let known = |text: &str| {
        let added = tokenizer.get("added_tokens").and_then(Value::as_array);
        added.is_some_and(|added| {
            added.iter().any(|token| token.get("content").is_some_and(|content| content == text))
        })
    };
    for (name, text) in [("bos_token", "<s>"), ("eos_token", "</s>"), ("unk_token", "<unk>")] {
        if known(text) {
            config.entry(name).or_insert_with(|| text.into());
        }
    }
}

/// Where a space is put in front.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Prefix {
    /// Nowhere.
    None,
    /// Before each text between special tokens.
    Each,
    /// Before the whole text only, as `"legacy": false` wants it.
    First,
}

impl Prefix {
    fn of(model: &Model, config: &Map<String, Value>) -> Self {
        let flag = |name: &str| config.get(name).and_then(Value::as_bool);
        match (flag("add_prefix_space").unwrap_or(model.add_dummy_prefix), flag("legacy")) {
            (false, _) => Self::None,
            (true, Some(false)) => Self::First,
            (true, _) => Self::Each,
        }
    }

    fn pre_tokenizer(self) -> Value {
        if self != Self::First {
            return Value::Null;
        }
        json!({"type": "Metaspace", "replacement": SPACE, "prepend_scheme": "first", "split": false})
    }
}

// === impl Model ===

impl Model {
    fn read(bytes: &[u8]) -> Result<Self, String> {
        let mut model = Self {
            pieces: Vec::new(),
            model_type: 1,
            byte_fallback: false,
            charsmap: Vec::new(),
            add_dummy_prefix: true,
            remove_extra_whitespaces: true,
            escape_whitespaces: true,
            space_behind: false,
        };
        let mut message = Message(bytes);
        while let Some((field, value)) = message.next()? {
            match (field, value) {
                (1, Field::Bytes(piece)) => model.pieces.push(Piece::read(piece)?),
                (2, Field::Bytes(trainer)) => model.read_trainer(trainer)?,
                (3, Field::Bytes(normalizer)) => model.read_normalizer(normalizer)?,
                _ => {}
            }
            if model.pieces.len() > PIECES_MAX {
                return Err("the file has more pieces than any real one".into());
            }
        }
        if model.pieces.is_empty() { Err("the file has no pieces".into()) } else { Ok(model) }
    }

    fn read_trainer(&mut self, bytes: &[u8]) -> Result<(), String> {
        let mut message = Message(bytes);
        while let Some((field, value)) = message.next()? {
            match (field, value) {
                (3, Field::Number(number)) => self.model_type = number,
                (24, Field::Number(number)) => self.space_behind = number != 0,
                (35, Field::Number(number)) => self.byte_fallback = number != 0,
                _ => {}
            }
        }
        Ok(())
    }

    fn read_normalizer(&mut self, bytes: &[u8]) -> Result<(), String> {
        let mut message = Message(bytes);
        while let Some((field, value)) = message.next()? {
            match (field, value) {
                (2, Field::Bytes(map)) => self.charsmap = map.to_vec(),
                (3, Field::Number(number)) => self.add_dummy_prefix = number != 0,
                (4, Field::Number(number)) => self.remove_extra_whitespaces = number != 0,
                (5, Field::Number(number)) => self.escape_whitespaces = number != 0,
                _ => {}
            }
        }
        Ok(())
    }

    /// The character map, then spaces.
    fn normalizer(&self, prefix: Prefix) -> Value {
        let replace = |pattern: Value, content: &str| json!({"type": "Replace", "pattern": pattern, "content": content});
        let mut all = Vec::new();
        if !self.charsmap.is_empty() {
            let map = BASE64.encode(&self.charsmap);
            all.push(json!({"type": "Precompiled", "precompiled_charsmap": map}));
        }
        if self.remove_extra_whitespaces {
            all.push(replace(json!({"Regex": "^ +| +$"}), ""));
            all.push(replace(json!({"Regex": " +"}), " "));
        }
        if prefix == Prefix::Each {
            all.push(json!({"type": "Prepend", "prepend": SPACE}));
        }
        if prefix != Prefix::First {
            all.push(replace(json!({"String": " "}), SPACE.encode_utf8(&mut [0; 4])));
        }
        json!({"type": "Sequence", "normalizers": all})
    }

    /// Pieces that are cut out of a text first. SentencePiece itself finds no control piece in a text; the
    /// library that renders templates does.
    fn added(&self) -> Vec<Value> {
        let cut_out =
            |piece: &Piece| matches!(piece.kind, kind::UNKNOWN | kind::CONTROL | kind::ADDED);
        let pieces = (0u64..).zip(&self.pieces).filter(|(_, piece)| cut_out(piece));
        pieces
            .map(|(id, piece)| {
                json!({
                    "id": id, "content": piece.text, "special": piece.kind != kind::ADDED,
                    "normalized": false, "single_word": false, "lstrip": false, "rstrip": false,
                })
            })
            .collect()
    }

    /// Beginning and end of text as `tokenizer_config.json` wants them; without a word, as Llama's and T5's
    /// libraries do.
    fn post_processor(&self, config: &Map<String, Value>) -> Value {
        let flag = |name: &str, otherwise: bool| {
            config.get(name).and_then(Value::as_bool).unwrap_or(otherwise)
        };
        let part = |text: &str, wanted: bool| {
            let id = self
                .pieces
                .iter()
                .position(|piece| piece.text == text && piece.kind == kind::CONTROL);
            id.filter(|_| wanted).map(|id| (id, text.to_owned()))
        };
        let begins = part("<s>", flag("add_bos_token", self.model_type == 2));
        let ends = part("</s>", flag("add_eos_token", self.model_type == 1));
        if begins.is_none() && ends.is_none() {
            return Value::Null;
        }
        let special =
            |(_, text): &(usize, String)| json!({"SpecialToken": {"id": text, "type_id": 0}});
        let sequence = |id: &str| json!({"Sequence": {"id": id, "type_id": 0}});
        let around = |middle: Vec<Value>| -> Vec<Value> {
            begins.iter().map(special).chain(middle).chain(ends.iter().map(special)).collect()
        };
        let named: Map<String, Value> = begins
            .iter()
            .chain(&ends)
            .map(|(id, text)| (text.clone(), json!({"id": text, "ids": [id], "tokens": [text]})))
            .collect();
        json!({
            "type": "TemplateProcessing", "single": around(vec![sequence("A")]),
            "pair": around(vec![sequence("A"), sequence("B")]), "special_tokens": named,
        })
    }

    fn unigram(&self, unknown: usize) -> Value {
        // What is no part of a text must not lower the score of the unknown.
        let entry = |(id, piece): (usize, &Piece)| match piece.kind {
            kind::NORMAL => json!([piece.text, piece.score]),
            kind::UNKNOWN | kind::CONTROL | kind::ADDED => json!([piece.text, 0.0]),
            _ if self.byte_fallback => json!([piece.text, 0.0]),
            _ => json!([unspellable::name(id), 0.0]),
        };
        let vocabulary: Vec<Value> = self.pieces.iter().enumerate().map(entry).collect();
        json!({"type": "Unigram", "unk_id": unknown, "byte_fallback": self.byte_fallback, "vocab": vocabulary})
    }

    fn bpe(&self, unknown: usize) -> Value {
        let mut vocabulary = Map::with_capacity(self.pieces.len());
        for (id, piece) in (0u64..).zip(&self.pieces) {
            vocabulary.entry(piece.text.as_str()).or_insert_with(|| id.into());
        }
        json!({
            "type": "BPE", "dropout": null, "unk_token": self.pieces.get(unknown).map(|piece| &piece.text),
            "continuing_subword_prefix": null, "end_of_word_suffix": null, "fuse_unk": true,
            "byte_fallback": self.byte_fallback, "ignore_merges": false, "vocab": vocabulary,
            "merges": self.merges(),
        })
    }

    /// Every cut of every piece in two, the best piece first: so whatever two neighbours make the piece of
    /// the highest score is joined.
    fn merges(&self) -> Vec<Value> {
        let mut best: Vec<&Piece> =
            self.pieces.iter().filter(|piece| piece.kind == kind::NORMAL).collect();
        let known: HashSet<&str> = best.iter().map(|piece| piece.text.as_str()).collect();
        best.sort_by(|a, b| b.score.total_cmp(&a.score));
        let cuts = |piece: &&Piece| -> Vec<Value> {
            let places = piece.text.char_indices().skip(1);
            let halves = places.filter_map(|(at, _)| piece.text.split_at_checked(at));
            halves
                .filter(|(left, right)| known.contains(left) && known.contains(right))
                .map(|(left, right)| json!([left, right]))
                .collect()
        };
        best.iter().flat_map(cuts).collect()
    }
}

impl Piece {
    fn read(bytes: &[u8]) -> Result<Self, String> {
        let mut piece = Self { text: String::new(), score: 0.0, kind: kind::NORMAL };
        let mut message = Message(bytes);
        while let Some((field, value)) = message.next()? {
            match (field, value) {
                (1, Field::Bytes(text)) if text.len() <= PIECE_BYTES_MAX => {
                    let text = std::str::from_utf8(text).map_err(|error| error.to_string())?;
                    piece.text = text.to_owned();
                }
                (1, Field::Bytes(text)) => return Err(format!("a piece has {} bytes", text.len())),
                (2, Field::Float(score)) => piece.score = score,
                (3, Field::Number(kind)) => piece.kind = kind,
                _ => {}
            }
        }
        if piece.text.is_empty() { Err("a piece is empty".into()) } else { Ok(piece) }
    }
}

// === protocol buffers ===

/// The fields of one message that are left to read.
struct Message<'a>(&'a [u8]);

enum Field<'a> {
    Number(u64),
    Float(f32),
    Bytes(&'a [u8]),
    Other,
}

impl<'a> Message<'a> {
    fn next(&mut self) -> Result<Option<(u64, Field<'a>)>, String> {
        if self.0.is_empty() {
            return Ok(None);
        }
        let key = self.number()?;
        let field = match key & 7 {
            0 => Field::Number(self.number()?),
            1 => self.take(8).map(|_| Field::Other)?,
            2 => {
                let length = self.number()?;
                Field::Bytes(self.take(usize::try_from(length).unwrap_or(usize::MAX))?)
            }
            5 => {
                let bytes = self.take(4)?;
                Field::Float(bytes.try_into().map_or(0.0, f32::from_le_bytes))
            }
            other => return Err(format!("not a SentencePiece model: a field of type {other}")),
        };
        Ok(Some((key >> 3, field)))
    }

    fn take(&mut self, length: usize) -> Result<&'a [u8], String> {
        let (taken, rest) =
            self.0.split_at_checked(length).ok_or("the file ends inside a field")?;
        self.0 = rest;
        Ok(taken)
    }

    /// Seven bits a byte, the lowest first.
    fn number(&mut self) -> Result<u64, String> {
        let mut number = 0u64;
        for shift in (0..64).step_by(7) {
            let byte = self.take(1)?.first().copied().unwrap_or_default();
            number |= u64::from(byte & 0x7f) << shift;
            if byte & 0x80 == 0 {
                return Ok(number);
            }
        }
        Err("not a SentencePiece model: a number without an end".into())
    }
}

#[cfg(test)]
#[path = "sentencepiece_tests.rs"]
mod tests;
