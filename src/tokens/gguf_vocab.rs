//! Writes the vocabulary of a GGUF file as the `tokenizer.json` it was once made from, so that the same
//! engines run both.
//!
//! What llama.cpp does with a vocabulary is the measure: its defaults, its corrections of token types, and
//! its way of merging.

use super::{
    LoadError,
    files::{self, Folder},
    gguf::Header,
    gguf_split::{self, Split},
    gguf_tokens::{self, Ids, Kind, Strips, Token},
    unspellable,
};
use base64::{Engine as _, engine::general_purpose::STANDARD as BASE64};
use serde_json::{Map, Value, json};
use std::{
    collections::{BTreeMap, HashSet},
    path::Path,
};

/// Longest word of a WordPiece vocabulary, characters; beyond it is the unknown token. llama.cpp has no
/// such limit, but matching takes the square of it.
const WORD_CHARS_MAX: usize = 1000;

/// What SentencePiece writes for a space.
const SPACE: char = '\u{2581}';

/// llama.cpp's template for files without one.
const CHATML: &str = "{% for message in messages %}{{ '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>\\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}";

/// Reads a file, as if it were the folder that it was made from.
pub(super) fn folder(path: &Path) -> Result<Folder, LoadError> {
    let header = Header::read(path)
        .map_err(|error| LoadError::Unreadable(path.to_owned(), error.to_string()))?;
    of(&header).map_err(LoadError::Tokenizer)
}

fn of(header: &Header) -> Result<Folder, String> {
    let model = header.text("tokenizer.ggml.model").ok_or("the file holds no tokenizer")?;
    let mut tokens = gguf_tokens::tokens(header);
    if tokens.is_empty() {
        return Err("the file holds no tokens".into());
    }
    let ids = Ids::of(header, model, &mut tokens);
    let tokenizer = match model {
        "gpt2" => match header.text("tokenizer.ggml.pre") {
            Some(pre) if gguf_split::is_spelled_raw(pre) => raw_pieces(header, &tokens, &ids)?,
            pre => byte_level(header, pre.unwrap_or_default(), &tokens, &ids)?,
        },
        "gemma4" => raw_pieces(header, &tokens, &ids)?,
        "llama" => sentence_piece(header, &tokens, &ids),
        "bert" => word_piece(header, &tokens, &ids)?,
        "t5" => unigram(header, &tokens, &ids)?,
        other => return Err(format!("the tokenizer model {other:?} is not known here")),
    };
    let templates = templates(header, model);
    let tokenizer_config = ids.tokenizer_config(&tokens);
    let fingerprint = files::fingerprint(&tokenizer.to_string(), &tokenizer_config, &templates);
    let mut config = Map::new();
    let architecture = header.text("general.architecture").unwrap_or_default();
    if let Some(window) = header.number(&format!("{architecture}.context_length")) {
        config.insert("max_position_embeddings".into(), window.into());
    }
    let mut generation_config = Map::new();
    generation_config.insert("eos_token_id".into(), ids.ends(header, &tokens).into());
    Ok(Folder {
        tokenizer,
        tokenizer_config,
        config,
        generation_config,
        templates,
        fingerprint,
        is_gguf: true,
    })
}

fn templates(header: &Header, model: &str) -> BTreeMap<String, String> {
    let mut templates: BTreeMap<String, String> = header
        .texts_below("tokenizer.chat_template.")
        .map(|(name, text)| (name.to_owned(), text.to_owned()))
        .collect();
    let default = header.text("tokenizer.chat_template").filter(|text| !text.is_empty());
    let default = default.or_else(|| templates.get("tool_use").map(String::as_str));
    let default = default.or((model != "bert").then_some(CHATML)).map(str::to_owned);
    templates.extend(default.map(|text| ("default".to_owned(), text)));
    templates
}

// === the three kinds of vocabulary ===

/// Byte-level BPE: GPT-2 and most models since.
fn byte_level(header: &Header, tag: &str, tokens: &[Token], ids: &Ids) -> Result<Value, String> {
    let split =
        Split::of(tag).ok_or_else(|| format!("the pre-tokenizer tag {tag:?} is not known here"))?;
    let model = bpe(
        tokens,
        merges(header, tokens)?,
        Bpe { unk: None, byte_fallback: false, ignore_merges: split.ignore_merges },
    );
    let mut file = file(header, tokens, ids, [Value::Null, split.pre_tokenizer(), model]);
    unspellable::hide(&mut file);
    Ok(file)
}

/// BPE over lines as they are spelled, a low bar for a space: Gemma 4.
fn raw_pieces(header: &Header, tokens: &[Token], ids: &Ids) -> Result<Value, String> {
    let normalizer = json!({"type": "Replace", "pattern": {"String": " "}, "content": SPACE});
    let model = bpe(
        tokens,
        merges(header, tokens)?,
        Bpe { unk: None, byte_fallback: true, ignore_merges: false },
    );
    Ok(file(header, tokens, ids, [normalizer, gguf_split::lines(), model]))
}

/// The merges that the engines can use: they refuse merges of unknown tokens; of equal ones the first
/// counts.
fn merges(header: &Header, tokens: &[Token]) -> Result<Vec<Value>, String> {
    let known: HashSet<&str> = tokens.iter().map(|token| token.text.as_str()).collect();
    let mut seen = HashSet::new();
    let mut joined = String::new();
    let merges: Vec<Value> = header
        .texts("tokenizer.ggml.merges")
        .iter()
        .filter(|merge| {
            let Some((left, right)) = merge.split_once(' ') else { return false };
            joined.clear();
            joined.push_str(left);
            joined.push_str(right);
            let usable = [left, right, &joined].iter().all(|part| known.contains(*part));
            usable && !right.contains(' ') && seen.insert(merge.as_str())
        })
        .map(|merge| Value::from(merge.as_str()))
        .collect();
    if merges.is_empty() { Err("the file holds no merges".into()) } else { Ok(merges) }
}

/// SentencePiece BPE: Llama 2, Mistral, Gemma, Phi 3.
fn sentence_piece(header: &Header, tokens: &[Token], ids: &Ids) -> Value {
    let mut normalizers = Vec::new();
    if header.flag("tokenizer.ggml.add_space_prefix").unwrap_or(true) {
        normalizers.push(json!({"type": "Prepend", "prepend": SPACE}));
    }
    normalizers.push(json!({"type": "Replace", "pattern": {"String": " "}, "content": SPACE}));
    let normalizer = json!({"type": "Sequence", "normalizers": normalizers});
    let unk = ids.unk.and_then(|id| tokens.get(id)).map(|token| token.text.as_str());
    let model = bpe(
        tokens,
        merges_by_score(tokens),
        Bpe { unk, byte_fallback: true, ignore_merges: false },
    );
    file(header, tokens, ids, [normalizer, Value::Null, model])
}

/// SentencePiece joins whatever two neighbours make the token of the highest score. A list of merges says
/// the same when it holds every way to cut every token in two, the best token first.
fn merges_by_score(tokens: &[Token]) -> Vec<Value> {
    // Special and added tokens are cut out of a text before it is merged.
    let mergeable = |token: &&Token| matches!(token.kind, Kind::Plain);
    let known: HashSet<&str> =
        tokens.iter().filter(mergeable).map(|token| token.text.as_str()).collect();
    let mut best: Vec<&Token> = tokens.iter().filter(mergeable).collect();
    best.sort_by(|a, b| b.score.total_cmp(&a.score));
    let mut merges = Vec::new();
    for token in best {
        for (at, _) in token.text.char_indices().skip(1) {
            let (left, right) = token.text.split_at(at);
            let usable = known.contains(left) && known.contains(right);
            // A space cannot be in a text that is merged, and would end the left side too early.
            if usable && !token.text.contains(' ') {
                merges.push(Value::from(format!("{left} {right}")));
            }
        }
    }
    merges
}

/// SentencePiece's other model, the likeliest cut: T5, XLM-R and the embedding models made from it.
fn unigram(header: &Header, tokens: &[Token], ids: &Ids) -> Result<Value, String> {
    let unk = ids.unk.ok_or("the file names no unknown token")?;
    let charsmap: Vec<u8> = header
        .integers("tokenizer.ggml.precompiled_charsmap")
        .iter()
        // Signed in some files; the low byte is the byte.
        .map(|byte| (byte & 0xff) as u8)
        .collect();
    let flag = |name: &str| header.flag(&format!("tokenizer.ggml.{name}")).unwrap_or(false);
    let one_space = flag("remove_extra_whitespaces");
    let replace = |pattern: Value, content: &str| json!({"type": "Replace", "pattern": pattern, "content": content});
    let mut normalizers = Vec::new();
    if !charsmap.is_empty() {
        let map = BASE64.encode(charsmap);
        normalizers.push(json!({"type": "Precompiled", "precompiled_charsmap": map}));
    }
    if one_space {
        normalizers.push(replace(json!({"Regex": "^ +| +$"}), ""));
        normalizers.push(replace(json!({"Regex": " +"}), " "));
    }
    if one_space || flag("add_space_prefix") {
        normalizers.push(json!({"type": "Prepend", "prepend": " "}));
        // Nothing is put in front of nothing but spaces.
        normalizers.push(replace(json!({"Regex": "^ (?= +$)"}), ""));
    }
    normalizers.push(replace(json!({"String": " "}), SPACE.encode_utf8(&mut [0; 4])));
    // Of the others, those that are cut out of a text first keep their names; the rest is in no text.
    // Their scores are not likelihoods.
    let vocabulary: Vec<Value> = tokens
        .iter()
        .enumerate()
        .map(|(id, token)| match token.normal {
            true => json!([token.text, token.score]),
            false if matches!(token.kind, Kind::Special | Kind::Added) => json!([token.text, 0.0]),
            false => json!([unspellable::name(id), 0.0]),
        })
        .collect();
    let normalizer = json!({"type": "Sequence", "normalizers": normalizers});
    let model =
        json!({"type": "Unigram", "unk_id": unk, "byte_fallback": false, "vocab": vocabulary});
    Ok(file(header, tokens, ids, [normalizer, Value::Null, model]))
}

/// WordPiece: BERT and most embedding models.
fn word_piece(header: &Header, tokens: &[Token], ids: &Ids) -> Result<Value, String> {
    let unk = ids.unk.and_then(|id| tokens.get(id)).ok_or("the file names no unknown token")?;
    let flag = |name: &str| header.flag(&format!("tokenizer.ggml.normalizer.{name}"));
    let lowercase = flag("lowercase").unwrap_or(true);
    // White space to llama.cpp, a control character to the normalizer.
    let next_line = json!({"type": "Replace", "pattern": {"String": "\u{85}"}, "content": " "});
    let mut normalizers = vec![
        next_line,
        json!({
            "type": "BertNormalizer", "clean_text": true, "handle_chinese_chars": true,
            "strip_accents": false, "lowercase": false,
        }),
    ];
    if flag("strip_accents").unwrap_or(lowercase) {
        // llama.cpp keeps the first part of whatever can be taken apart (a Korean syllable too), and
        // drops every mark.
        let parts = json!({"Regex": r"[\p{M}\x{1160}-\x{11ff}]+"});
        normalizers.push(json!({"type": "NFD"}));
        normalizers.push(json!({"type": "Replace", "pattern": parts, "content": ""}));
    }
    if lowercase {
        normalizers.push(json!({"type": "Lowercase"}));
    }
    let normalizer = json!({"type": "Sequence", "normalizers": normalizers});
    // The file marks the beginnings of words, `tokenizer.json` their continuations.
    let vocabulary = in_order(tokens, |token| {
        let whole = token.text.starts_with('[') && token.text.ends_with(']');
        match token.text.strip_prefix(SPACE) {
            Some(start) => start.to_owned(),
            None if whole || token.kind != Kind::Plain => token.text.clone(),
            None => format!("##{}", token.text),
        }
    });
    let model = json!({
        "type": "WordPiece", "unk_token": unk.text, "continuing_subword_prefix": "##",
        "max_input_chars_per_word": WORD_CHARS_MAX, "vocab": vocabulary,
    });
    let words = json!({"type": "BertPreTokenizer"});
    Ok(file(header, tokens, ids, [normalizer, words, model]))
}

// === parts of a tokenizer.json ===

struct Bpe<'a> {
    unk: Option<&'a str>,
    byte_fallback: bool,
    ignore_merges: bool,
}

fn bpe(tokens: &[Token], merges: Vec<Value>, options: Bpe<'_>) -> Value {
    let mut model = json!({
        "type": "BPE", "dropout": null, "unk_token": options.unk, "continuing_subword_prefix": null,
        "end_of_word_suffix": null, "fuse_unk": false, "byte_fallback": options.byte_fallback,
        "ignore_merges": options.ignore_merges,
    });
    if let Some(model) = model.as_object_mut() {
        model.insert("vocab".into(), in_order(tokens, |token| token.text.clone()).into());
        model.insert("merges".into(), merges.into());
    }
    model
}

/// Tokens with their ids; of equal ones the first.
fn in_order(tokens: &[Token], write: impl Fn(&Token) -> String) -> Map<String, Value> {
    let mut vocabulary = Map::new();
    for (id, token) in (0u64..).zip(tokens) {
        vocabulary.entry(write(token)).or_insert_with(|| id.into());
    }
    vocabulary
}

fn file(header: &Header, tokens: &[Token], ids: &Ids, parts: [Value; 3]) -> Value {
    let [normalizer, pre_tokenizer, model] = parts;
    let strips = Strips::of(header);
    let added: Vec<Value> = (0u64..)
        .zip(tokens)
        .filter(|(_, token)| matches!(token.kind, Kind::Special | Kind::Added))
        .map(|(id, token)| {
            json!({
                "id": id, "content": token.text, "special": token.kind == Kind::Special,
                "normalized": false, "single_word": false, "lstrip": strips.left(&token.text),
                "rstrip": strips.right(&token.text),
            })
        })
        .collect();
    json!({
        "version": "1.0", "truncation": null, "padding": null, "added_tokens": added,
        "normalizer": normalizer, "pre_tokenizer": pre_tokenizer,
        "post_processor": ids.post_processor(tokens), "decoder": null, "model": model,
    })
}
