//! SentencePiece models alone against the ids that sentencepiece gives for them.
//! `scripts/make_vocabulary_fixtures.py` makes the fixture.

use super::{
    super::{LoadError, ModelFiles},
    *,
};
use std::{fs, path::Path};

fn load(bytes: &[u8], config: Value) -> Result<ModelFiles, LoadError> {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("tokenizer.model"), bytes).unwrap();
    fs::write(folder.path().join("tokenizer_config.json"), config.to_string()).unwrap();
    ModelFiles::load(folder.path())
}

fn fixture() -> Value {
    let file = "tests/fixtures/vocabularies/sentencepiece.json";
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(file);
    serde_json::from_str(&fs::read_to_string(path).unwrap()).unwrap()
}

fn file(fixture: &Value, model: usize) -> Vec<u8> {
    BASE64.decode(fixture["models"][model]["file"].as_str().unwrap()).unwrap()
}

#[test]
fn a_model_alone_gives_the_ids_of_sentencepiece() {
    let fixture = fixture();
    let mut told = Vec::new();
    for (at, model) in fixture["models"].as_array().unwrap().iter().enumerate() {
        let files = load(&file(&fixture, at), json!({})).unwrap();
        let texts = fixture["texts"].as_array().unwrap();
        for (text, expected) in texts.iter().zip(model["ids"].as_array().unwrap()) {
            let text = text.as_str().unwrap();
            let expected: Vec<u32> = serde_json::from_value(expected.clone()).unwrap();
            let found = files.text_ids(text, false).unwrap();
            if found != expected {
                told.push(format!("{at} {text:?}\n  {expected:?}\n  {found:?}"));
            }
        }
        let user = model["user"].as_u64().unwrap() as u32;
        assert_eq!(files.text_ids("<|user|>", false).unwrap(), [user]);
        assert_eq!(files.eos_ids(), [2]);
    }
    assert!(told.is_empty(), "{} wrong\n{}", told.len(), told.join("\n"));
}

#[test]
fn the_configuration_says_what_is_put_around() {
    let fixture = fixture();
    let of = |config: Value| load(&file(&fixture, 0), config).unwrap();
    let ids = |files: &ModelFiles, text: &str| files.text_ids(text, true).unwrap();
    let plain = of(json!({}));
    let (bos, a) = (ids(&plain, "a")[0], ids(&plain, "a")[1..].to_vec());
    assert_eq!(bos, 1);
    let both = of(
        json!({"add_bos_token": false, "add_eos_token": true, "tokenizer_class": "LlamaTokenizer"}),
    );
    assert_eq!(ids(&both, "a"), [a.as_slice(), &[2]].concat());
    // The space in front comes behind each special token, or only at the very beginning.
    let behind = |files: &ModelFiles| files.text_ids("<|user|>a", false).unwrap()[1..].to_vec();
    assert_eq!(behind(&plain), a);
    let first = of(json!({"legacy": false}));
    assert_ne!(behind(&first), a);
    assert_eq!(ids(&first, "a")[1..], a);
    let none = of(json!({"add_prefix_space": false}));
    assert_eq!(ids(&none, "a")[1..], behind(&first));
}

#[test]
fn what_would_not_be_exact_is_refused_with_the_reason() {
    let fixture = fixture();
    let whole = file(&fixture, 0);
    let told = |bytes: &[u8], class: &str| {
        load(bytes, json!({"tokenizer_class": class})).unwrap_err().to_string()
    };
    assert!(told(&whole, "XLMRobertaTokenizer").contains("XLMRobertaTokenizer"));
    assert!(told(&whole[..whole.len() / 2], "").contains("ends inside a field"));
    assert!(told(b"", "").contains("no pieces"));
    assert!(told(b"\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff", "").contains("without an end"));
    assert!(told(b"hello there", "").contains("SentencePiece"));
    // A word model: trainer field 3 is 3.
    let word = [&whole[..], &[0x12, 2, 0x18, 3]].concat();
    assert!(told(&word, "").contains("type 3"));
}

#[test]
fn special_tokens_may_be_named_in_the_older_place() {
    let fixture = fixture();
    let folder = tempfile::tempdir().unwrap();
    let put = |name: &str, text: String| fs::write(folder.path().join(name), text).unwrap();
    fs::write(folder.path().join("tokenizer.model"), file(&fixture, 0)).unwrap();
    put("tokenizer_config.json", json!({"bos_token": "<s>"}).to_string());
    let map = json!({"bos_token": "<|user|>", "eos_token": {"content": "<|end|>"}});
    put("special_tokens_map.json", map.to_string());
    put("chat_template.jinja", "{{ bos_token }}{{ eos_token }}".into());
    let files = ModelFiles::load(folder.path()).unwrap();
    let body = json!({"messages": [{"role": "user", "content": "x"}]});
    let profile = crate::tokens::Profile::of(crate::snapshot::ServerKind::Vllm);
    assert_eq!(files.chat_text(&profile, body.as_object().unwrap()).unwrap(), "<s><|end|>");
}
