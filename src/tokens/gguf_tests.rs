//! GGUF files of our own making: whole, cut and hostile.

use super::{
    LoadError, ModelFiles, Profile,
    gguf::{Header, HeaderError},
};
use crate::{snapshot::ServerKind, units::Tokens};
use proptest::prelude::*;
use serde_json::{Value, json};
use std::path::PathBuf;
use tempfile::TempDir;

// === a writer ===

const NORMAL: i32 = 1;
const UNKNOWN: i32 = 2;
const CONTROL: i32 = 3;
const ADDED: i32 = 4;
const BYTE: i32 = 6;

#[derive(Clone, Default)]
pub(super) struct Writer {
    entries: u64,
    bytes: Vec<u8>,
}

impl Writer {
    /// Bytes as they are.
    pub(super) fn bytes(self, key: &str, bytes: &[u8]) -> Self {
        let mut new = self.list(key, 0, bytes.len() as u64);
        new.bytes.extend(bytes);
        new
    }

    fn raw_text(&mut self, text: &str) {
        self.bytes.extend((text.len() as u64).to_le_bytes());
        self.bytes.extend(text.as_bytes());
    }

    fn entry(mut self, key: &str, kind: u32, value: &[u8]) -> Self {
        self.entries += 1;
        self.raw_text(key);
        self.bytes.extend(kind.to_le_bytes());
        self.bytes.extend(value);
        self
    }

    pub(super) fn text(self, key: &str, text: &str) -> Self {
        let mut new = self.entry(key, 8, &[]);
        new.raw_text(text);
        new
    }

    pub(super) fn number(self, key: &str, number: u32) -> Self {
        self.entry(key, 4, &number.to_le_bytes())
    }

    pub(super) fn flag(self, key: &str, flag: bool) -> Self {
        self.entry(key, 7, &[u8::from(flag)])
    }

    pub(super) fn list(self, key: &str, kind: u32, count: u64) -> Self {
        let head: Vec<u8> = kind.to_le_bytes().into_iter().chain(count.to_le_bytes()).collect();
        self.entry(key, 9, &head)
    }

    pub(super) fn texts(self, key: &str, texts: &[impl AsRef<str>]) -> Self {
        let mut new = self.list(key, 8, texts.len() as u64);
        texts.iter().for_each(|text| new.raw_text(text.as_ref()));
        new
    }

    pub(super) fn tokens(self, tokens: &[(&str, i32, f32)]) -> Self {
        let count = tokens.len() as u64;
        let texts: Vec<&str> = tokens.iter().map(|(text, ..)| *text).collect();
        let mut new = self.texts("tokenizer.ggml.tokens", &texts);
        new = new.list("tokenizer.ggml.token_type", 5, count);
        new.bytes.extend(tokens.iter().flat_map(|(_, kind, _)| kind.to_le_bytes()));
        new = new.list("tokenizer.ggml.scores", 6, count);
        new.bytes.extend(tokens.iter().flat_map(|(.., score)| score.to_le_bytes()));
        new
    }

    pub(super) fn file(&self) -> Vec<u8> {
        let mut file = b"GGUF".to_vec();
        file.extend(3u32.to_le_bytes());
        file.extend(0u64.to_le_bytes());
        file.extend(self.entries.to_le_bytes());
        file.extend(&self.bytes);
        file
    }
}

/// A folder with one file; the folder lives as long as the first half.
fn saved(bytes: &[u8]) -> (TempDir, PathBuf) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.gguf");
    std::fs::write(&path, bytes).unwrap();
    (folder, path)
}

pub(super) fn load(writer: &Writer) -> Result<ModelFiles, LoadError> {
    ModelFiles::load(&saved(&writer.file()).1)
}

/// Byte-level BPE over a few letters. `ab` and `abc` come from merges, `cab` stands whole.
fn byte_level(tag: &str) -> Writer {
    let normal = ["a", "b", "c", "\u{120}", "\u{10a}", "ab", "abc", "\u{120}ab", "1", "11", "cab"];
    let mut tokens: Vec<(&str, i32, f32)> = normal.map(|text| (text, NORMAL, 0.0)).into();
    tokens.extend([("<|bos|>", CONTROL, 0.0), ("<|im_end|>", NORMAL, 0.0), ("<tool>", ADDED, 0.0)]);
    Writer::default()
        .text("general.architecture", "llama")
        .number("llama.context_length", 4096)
        .number("llama.block_count", 2)
        .text("tokenizer.ggml.model", "gpt2")
        .text("tokenizer.ggml.pre", tag)
        .tokens(&tokens)
        .texts("tokenizer.ggml.merges", &["a b", "ab c", "\u{120} ab", "1 1", "x y"])
        .number("tokenizer.ggml.bos_token_id", 11)
        .number("tokenizer.ggml.eos_token_id", 12)
}

/// SentencePiece: three special tokens, all bytes, then pieces with scores.
fn sentence_piece() -> Writer {
    let bytes: Vec<String> = (0..=255).map(|byte| format!("<0x{byte:02X}>")).collect();
    let mut tokens = vec![("<unk>", UNKNOWN, 0.0), ("<s>", CONTROL, 0.0), ("</s>", CONTROL, 0.0)];
    tokens.extend(bytes.iter().map(|byte| (byte.as_str(), BYTE, 0.0)));
    // `bc` is better than `ab`, so "abc" is cut as a, bc. Ids from 259.
    tokens.extend([
        ("\u{2581}", NORMAL, -1000.0),
        ("a", NORMAL, -1001.0),
        ("b", NORMAL, -1002.0),
        ("c", NORMAL, -1003.0),
        ("bc", NORMAL, -1.0),
        ("ab", NORMAL, -2.0),
        ("\u{2581}a", NORMAL, -3.0),
        ("<|user|>", CONTROL, 0.0),
    ]);
    Writer::default()
        .text("general.architecture", "llama")
        .text("tokenizer.ggml.model", "llama")
        .tokens(&tokens)
}

fn ids(files: &ModelFiles, text: &str) -> Vec<u32> {
    files.text_ids(text, false).unwrap()
}

fn chat_ids(files: &ModelFiles, content: &str) -> Vec<u32> {
    let body = json!({"messages": [{"role": "user", "content": content}]});
    files.chat_ids(&Profile::of(ServerKind::LlamaCpp), body.as_object().unwrap()).unwrap()
}

// === vocabularies ===

#[test]
fn byte_level_text_is_cut_by_its_tag_then_merged() {
    let gpt_2 = load(&byte_level("gpt-2")).unwrap();
    assert_eq!(ids(&gpt_2, "abc ab\ncab"), [6, 7, 4, 2, 5], "cab is merged as c, ab");
    assert_eq!(ids(&gpt_2, "a<tool>b<|im_end|>"), [0, 13, 1, 12], "found before merging");
    assert_eq!(ids(&gpt_2, "1111"), [9, 9]);
    assert_eq!(gpt_2.text_ids("a", true).unwrap(), [0], "this tag adds nothing in front");
    assert_eq!(gpt_2.context_window(), Some(Tokens(4096)));
    assert_eq!(gpt_2.bytes_of(7).unwrap(), b" ab");
    assert_eq!(gpt_2.bytes_of(12), None, "special by its name, whatever its type");
    assert_eq!(gpt_2.eos_ids(), [12]);
    assert!(gpt_2.is_gguf());

    let llama = load(&byte_level("llama-bpe")).unwrap();
    assert_eq!(ids(&llama, "cab"), [10], "a word that is a token is not merged");
    assert_eq!(llama.text_ids("a", true).unwrap(), [11, 0], "this tag adds the first token");
    assert_eq!(ids(&load(&byte_level("qwen2")).unwrap(), "111"), [8, 8, 8], "digits one by one");
}

#[test]
fn sentence_piece_text_is_merged_by_score() {
    let files = load(&sentence_piece()).unwrap();
    let byte = |byte: u32| byte + 3;
    assert_eq!(ids(&files, "abc"), [265, 263], "a space is put in front, and bc goes before ab");
    assert_eq!(ids(&files, "é"), [259, byte(0xc3), byte(0xa9)], "unknown letters as bytes");
    assert_eq!(ids(&files, "\n"), [259, byte(0x0a)]);
    assert_eq!(ids(&files, "a<|user|>a"), [265, 266, 265], "and again behind a special token");
    assert_eq!(files.text_ids("a", true).unwrap(), [1, 265], "llama.cpp's default");

    let without = load(&sentence_piece().flag("tokenizer.ggml.add_space_prefix", false)).unwrap();
    assert_eq!(ids(&without, "abc"), [260, 263]);
}

#[test]
fn the_prompt_begins_with_one_bos_whether_the_template_writes_it_or_not() {
    for (template, adds, first) in [
        ("{{ bos_token }}{{ messages[0].content }}", true, vec![11, 0]),
        ("{{ messages[0].content }}", true, vec![11, 0]),
        ("{{ bos_token }}{{ messages[0].content }}", false, vec![11, 0]),
        ("{{ messages[0].content }}", false, vec![0]),
    ] {
        let writer = byte_level("gpt-2")
            .text("tokenizer.chat_template", template)
            .flag("tokenizer.ggml.add_bos_token", adds);
        assert_eq!(chat_ids(&load(&writer).unwrap(), "a"), first, "{template} {adds}");
    }
}

#[test]
fn templates_come_by_name_and_one_is_made_up_where_there_is_none() {
    let two = byte_level("gpt-2")
        .text("tokenizer.chat_template", "a")
        .text("tokenizer.chat_template.tool_use", "abc");
    let files = load(&two).unwrap();
    let body = json!({"messages": [{"role": "user", "content": "x"}], "tools": []});
    let profile = Profile::of(ServerKind::LlamaCpp);
    assert_eq!(files.chat_text(&profile, body.as_object().unwrap()).unwrap(), "abc");
    assert_eq!(chat_ids(&files, "x"), [0]);

    let none = load(&byte_level("gpt-2")).unwrap();
    let body = json!({"messages": [{"role": "user", "content": "a"}]});
    let text = none.chat_text(&profile, body.as_object().unwrap()).unwrap();
    assert_eq!(text, "<|im_start|>user\na<|im_end|>\n<|im_start|>assistant\n");
    assert_ne!(none.fingerprint(), files.fingerprint());
}

#[test]
fn a_system_message_that_the_template_ignores_or_refuses_joins_the_next() {
    let ignores =
        "{% for m in messages %}{% if m.role == 'user' %}{{ m.content }}{% endif %}{% endfor %}";
    let refuses = "{% if messages[0].role == 'system' %}{{ raise_exception('no system') }}{% endif %}{{ messages[0].content }}";
    for template in [ignores, refuses] {
        let files = load(&byte_level("gpt-2").text("tokenizer.chat_template", template)).unwrap();
        let text = |kind: ServerKind, messages: Value| {
            let body = json!({"messages": messages});
            files.chat_text(&Profile::of(kind), body.as_object().unwrap())
        };
        let both = json!([{"role": "system", "content": "s"}, {"role": "user", "content": "u"}]);
        assert_eq!(text(ServerKind::LlamaCpp, both.clone()).unwrap(), "s\nu", "{template}");
        // vLLM hands it to the template.
        assert_ne!(text(ServerKind::Vllm, both), Ok("s\nu".into()));
    }
}

#[test]
fn a_server_of_unknown_make_with_a_gguf_file_is_counted_as_llama_cpp() {
    let files = load(&byte_level("gpt-2")).unwrap();
    let llama = Profile::of(ServerKind::LlamaCpp);
    assert_eq!(Profile::with_files(ServerKind::OpenAi, &files), llama);
    assert_ne!(Profile::with_files(ServerKind::Vllm, &files), llama);
}

#[test]
fn the_file_of_a_folder_is_found_unless_there_are_several() {
    let (folder, path) = saved(&byte_level("gpt-2").file());
    let put = |name: &str| std::fs::copy(&path, folder.path().join(name)).unwrap();
    put("mmproj-f16.gguf");
    assert!(ModelFiles::load(folder.path()).is_ok());
    put("other.gguf");
    let told = ModelFiles::load(folder.path()).unwrap_err().to_string();
    assert!(told.contains("several GGUF files"), "{told}");

    let (parts, first) = saved(&byte_level("gpt-2").file());
    std::fs::rename(first, parts.path().join("m-00001-of-00002.gguf")).unwrap();
    std::fs::write(parts.path().join("m-00002-of-00002.gguf"), "tensors only").unwrap();
    assert!(ModelFiles::load(parts.path()).is_ok());
}

#[test]
fn what_is_not_known_is_refused_by_name() {
    let told = |writer: &Writer| load(writer).unwrap_err().to_string();
    assert!(told(&byte_level("kimi-k9")).contains("kimi-k9"));
    assert!(told(&Writer::default().text("tokenizer.ggml.model", "rwkv")).contains("no tokens"));
    let rwkv = Writer::default().text("tokenizer.ggml.model", "rwkv").tokens(&[("a", 1, 0.0)]);
    assert!(told(&rwkv).contains("rwkv"));
    assert!(told(&Writer::default()).contains("no tokenizer"));
}

// === cut and hostile files ===

fn header(bytes: &[u8]) -> Result<Header, HeaderError> {
    Header::of(bytes)
}

#[test]
fn lengths_that_no_file_has_are_refused_before_anything_is_reserved() {
    let huge = u64::MAX.to_le_bytes();
    let forged = |writer: Writer| header(&writer.file());
    let text = Writer::default().entry("tokenizer.chat_template", 8, &huge);
    assert!(matches!(forged(text), Err(HeaderError::TooLarge(_))));
    for kind in [0, 5, 8, 12] {
        let kept = Writer::default().list("tokenizer.ggml.tokens", kind, u64::MAX);
        assert!(matches!(forged(kept), Err(HeaderError::TooLarge(_))), "{kind}");
    }
    // An array that is left out, of texts, ends with the file; of numbers, by its size.
    let skipped = Writer::default().list("other", 8, u64::MAX);
    assert!(matches!(forged(skipped), Err(HeaderError::Cut)));
    let skipped = Writer::default().list("other", 12, u64::MAX);
    assert!(matches!(forged(skipped), Err(HeaderError::TooLarge(_))));
    // Within limits, yet more than the file holds: nothing is reserved by the count.
    let kept = Writer::default().list("tokenizer.ggml.tokens", 8, 4_000_000);
    assert!(matches!(forged(kept), Err(HeaderError::Cut)));
    let many = Writer { entries: u64::MAX, bytes: Vec::new() };
    assert!(matches!(forged(many), Err(HeaderError::TooLarge(_))));
}

#[test]
fn other_files_are_told_apart() {
    let told = |bytes: &[u8]| header(bytes).unwrap_err().to_string();
    assert_eq!(told(b"PK\x03\x04 and so on"), "not a GGUF file");
    assert_eq!(told(b"GG"), "the file ends inside its header");
    assert!(told(b"GGUF\x01\0\0\0").contains("version 1"));
    assert!(told(b"GGUF\0\0\0\x03").contains("big-endian"));
    assert!(told(b"GGUF\x63\0\0\0").contains("99"));
    let nested = Writer::default().list("tokenizer.x", 9, 1);
    assert!(told(&nested.file()).contains("unknown type 9"));
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 256, failure_persistence: None, ..ProptestConfig::default() })]

    /// A cut file is refused; a damaged one may also be read as another. Neither ends in a panic, and a
    /// file of some kilobytes never asks for more than that.
    #[test]
    fn cut_and_damaged_files_are_refused_or_read(
        spm: bool,
        cut in any::<prop::sample::Index>(),
        flips in prop::collection::vec((any::<prop::sample::Index>(), 1u8..), 0..6),
    ) {
        let whole = if spm { sentence_piece() } else { byte_level("gpt-2") }.file();
        let short = &whole[..cut.index(whole.len())];
        prop_assert!(header(short).is_err());
        let mut damaged = whole;
        for (at, flip) in flips {
            let at = at.index(damaged.len());
            damaged[at] ^= flip;
        }
        if let Ok(header) = header(&damaged) {
            prop_assert!(header.bytes_kept() <= 32 * damaged.len());
            let (_folder, path) = saved(&damaged);
            if let Ok(files) = ModelFiles::load(&path) {
                let _ = files.text_ids("abc <|user|>\n é", true);
                let body: Value = json!({"messages": [{"role": "user", "content": "abc"}]});
                let _ = files.count_chat(&Profile::of(ServerKind::LlamaCpp), body.as_object().unwrap());
            }
        }
    }
}
