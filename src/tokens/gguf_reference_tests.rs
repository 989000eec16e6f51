//! Small vocabularies in GGUF form against the ids that llama.cpp gives for them.
//! `scripts/make_vocabulary_fixtures.py` makes the fixtures.

use super::{
    ModelFiles,
    gguf_tests::{Writer, load},
};
use base64::{Engine as _, engine::general_purpose::STANDARD as BASE64};
use serde_json::Value;
use std::path::Path;

fn fixture(name: &str) -> Value {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/vocabularies");
    serde_json::from_str(&std::fs::read_to_string(folder.join(name)).unwrap()).unwrap()
}

fn texts(list: &Value) -> Vec<&str> {
    list.as_array().unwrap().iter().map(|text| text.as_str().unwrap()).collect()
}

/// Texts that come out with other ids, each with a line about it.
fn wrong(files: &ModelFiles, texts: &Value, ids: &Value) -> Vec<String> {
    let expected = ids.as_array().unwrap();
    assert_eq!(self::texts(texts).len(), expected.len());
    let compare = |(text, expected): (&str, &Value)| {
        let expected: Vec<u32> = serde_json::from_value(expected.clone()).unwrap();
        let found = files.text_ids(text, false).unwrap();
        (found != expected)
            .then(|| format!("{text:?}\n  expected {expected:?}\n  found    {found:?}"))
    };
    self::texts(texts).into_iter().zip(expected).filter_map(compare).collect()
}

#[test]
fn every_pre_tokenizer_tag_cuts_as_llama_cpp_does() {
    let fixture = fixture("splits.json");
    let names = texts(&fixture["tokens"]);
    let bos = names.len() as u32;
    let mut tokens: Vec<(&str, i32, f32)> = names.into_iter().map(|text| (text, 1, 0.0)).collect();
    tokens.extend([("<|bos|>", 3, 0.0), ("<|eos|>", 3, 0.0)]);
    let mut told = Vec::new();
    let mut seen = 0;
    for cut in fixture["cuts"].as_array().unwrap() {
        for tag in texts(&cut["tags"]) {
            let writer = Writer::default()
                .text("tokenizer.ggml.model", "gpt2")
                .text("tokenizer.ggml.pre", tag)
                .tokens(&tokens)
                .texts("tokenizer.ggml.merges", &texts(&fixture["merges"]))
                .number("tokenizer.ggml.bos_token_id", bos)
                .number("tokenizer.ggml.eos_token_id", bos + 1);
            let files = match load(&writer) {
                Ok(files) => files,
                Err(error) => {
                    told.push(format!("{tag}: {error}"));
                    continue;
                }
            };
            seen += 1;
            let adds = files.text_ids("", true).unwrap() == [bos];
            assert_eq!(adds, cut["add_bos"].as_bool().unwrap(), "{tag}");
            let wrong = wrong(&files, &fixture["texts"], &cut["ids"]);
            told.extend(wrong.into_iter().map(|line| format!("{tag}: {line}")));
        }
    }
    assert!(told.is_empty(), "{} wrong\n{}", told.len(), told.join("\n"));
    assert!(seen > 70, "only {seen} tags");
}

/// A text with another id, and why: what these models have no exact words for here.
fn is_named_difference(model: &str, text: &str) -> bool {
    let low_bar = text.contains('\u{2581}');
    let loose_jamo = text.chars().any(|c| matches!(c, '\u{1100}'..='\u{11ff}'));
    model == "bert" && (low_bar || loose_jamo)
}

#[test]
fn every_tokenizer_model_gives_the_ids_of_llama_cpp() {
    let fixture = fixture("models.json");
    let kinds = ["", "normal", "unknown", "control", "added", "unused", "byte"];
    let mut told = Vec::new();
    for made in fixture["models"].as_array().unwrap() {
        let model = made["model"].as_str().unwrap();
        let tokens: Vec<(String, String, f32)> =
            serde_json::from_value(made["tokens"].clone()).unwrap();
        let kind = |name: &str| kinds.iter().position(|kind| *kind == name).unwrap() as i32;
        let tokens: Vec<(&str, i32, f32)> =
            tokens.iter().map(|(text, name, score)| (text.as_str(), kind(name), *score)).collect();
        let mut writer = Writer::default().text("tokenizer.ggml.model", model).tokens(&tokens);
        if made["merges"].is_array() {
            writer = writer.texts("tokenizer.ggml.merges", &texts(&made["merges"]));
        }
        for (name, value) in made["entries"].as_object().unwrap() {
            let key = format!("tokenizer.ggml.{name}");
            writer = match value {
                Value::Bool(flag) => writer.flag(&key, *flag),
                Value::Number(number) => writer.number(&key, number.as_u64().unwrap() as u32),
                Value::String(map) if name == "precompiled_charsmap" => {
                    writer.bytes(&key, &BASE64.decode(map).unwrap())
                }
                other => writer.text(&key, other.as_str().unwrap()),
            };
        }
        let files = load(&writer).unwrap();
        let around: Vec<u32> = serde_json::from_value(made["around"].clone()).unwrap();
        let first = fixture["texts"][0].as_str().unwrap();
        assert_eq!(files.text_ids(first, true).unwrap(), around, "{model}");
        let all = texts(&fixture["texts"]);
        let expected = made["ids"].as_array().unwrap();
        for (text, ids) in all.iter().zip(expected) {
            let wrong = wrong(&files, &serde_json::json!([text]), &serde_json::json!([ids]));
            if !is_named_difference(model, text) {
                told.extend(wrong.into_iter().map(|line| format!("{model}: {line}")));
            }
        }
    }
    assert!(told.is_empty(), "{} wrong\n{}", told.len(), told.join("\n"));
}
