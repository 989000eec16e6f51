//! Vocabularies by rank against the ids that tiktoken and mistral_common give for them.
//! `scripts/make_vocabulary_fixtures.py` makes the fixture.

use super::{LoadError, ModelFiles};
use serde_json::{Value, json};
use std::{fs, path::Path};
use tempfile::TempDir;

fn fixture() -> Value {
    let file = "tests/fixtures/vocabularies/ranked.json";
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(file);
    serde_json::from_str(&fs::read_to_string(path).unwrap()).unwrap()
}

fn list(value: &Value) -> Vec<&str> {
    value.as_array().unwrap().iter().map(|text| text.as_str().unwrap()).collect()
}

fn folder(files: &[(&str, String)]) -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    for (name, text) in files {
        fs::write(folder.path().join(name), text).unwrap();
    }
    folder
}

fn load(files: &[(&str, String)]) -> Result<ModelFiles, LoadError> {
    ModelFiles::load(folder(files).path())
}

fn told(files: &[(&str, String)]) -> String {
    load(files).unwrap_err().to_string()
}

fn assert_ids(files: &ModelFiles, texts: &[&str], ids: &Value, about: &str) {
    assert_eq!(texts.len(), ids.as_array().unwrap().len());
    for (text, expected) in texts.iter().zip(ids.as_array().unwrap()) {
        let expected: Vec<u32> = serde_json::from_value(expected.clone()).unwrap();
        assert_eq!(files.text_ids(text, false).unwrap(), expected, "{about}: {text:?}");
    }
}

/// The lines of a tiktoken file.
fn lines(tokens: &[&str]) -> String {
    tokens.iter().enumerate().map(|(rank, token)| format!("{token} {rank}\n")).collect()
}

fn tekken(tokens: &[&str], config: &Value, special_tokens: &Value) -> String {
    let vocab: Vec<Value> = tokens
        .iter()
        .enumerate()
        .map(|(rank, token)| json!({"rank": rank, "token_bytes": token, "token_str": null}))
        .collect();
    json!({"config": config, "vocab": vocab, "special_tokens": special_tokens}).to_string()
}

#[test]
fn tiktoken_files_give_the_ids_of_tiktoken() {
    let fixture = fixture();
    let tokens = list(&fixture["tokens"]);
    for family in fixture["families"].as_array().unwrap() {
        let name = family["file"].as_str().unwrap();
        let listed: Value = family["listed"]
            .as_object()
            .unwrap()
            .iter()
            .map(|(id, text)| (id.clone(), json!({"content": text, "special": true})))
            .collect::<serde_json::Map<_, _>>()
            .into();
        let config = json!({"tokenizer_class": family["class"], "added_tokens_decoder": listed});
        let model = json!({"model_type": family["model_type"]});
        let files = load(&[
            (name, lines(&tokens)),
            ("tokenizer_config.json", config.to_string()),
            ("config.json", model.to_string()),
        ]);
        let texts: Vec<&str> =
            list(&fixture["texts"]).into_iter().chain(list(&family["texts"])).collect();
        assert_ids(&files.unwrap(), &texts, &family["ids"], name);
    }
}

#[test]
fn tekken_files_give_the_ids_of_mistral_common() {
    let fixture = fixture();
    let tokens = list(&fixture["tokens"]);
    for made in fixture["tekkens"].as_array().unwrap() {
        let file = tekken(&tokens, &made["config"], &made["special_tokens"]);
        let template = "{{ bos_token }}[INST]{{ messages[0].content }}[/INST]".to_owned();
        let files = load(&[("tekken.json", file), ("chat_template.jinja", template)]).unwrap();
        // mistral_common reads no special token in a text; a template writes them there.
        let (texts, ids): (Vec<&str>, Vec<Value>) = list(&fixture["texts"])
            .into_iter()
            .zip(made["ids"].as_array().unwrap().clone())
            .filter(|(text, _)| !text.contains("<s>"))
            .unzip();
        assert!(texts.len() > 90);
        assert_ids(&files, &texts, &Value::from(ids), "tekken");
        let begins: Vec<u32> = serde_json::from_value(made["begins"].clone()).unwrap();
        assert_eq!(files.text_ids("a", true).unwrap(), begins);
        let inst = made["inst"].as_u64().unwrap() as u32;
        assert_eq!(files.text_ids("[INST]", false).unwrap(), [inst]);
        assert_eq!(files.bytes_of(inst), None, "no part of an answer's text");
        assert_eq!(files.eos_ids(), [2]);
        assert!(files.has_template());
    }
}

#[test]
fn a_tiktoken_file_of_an_unknown_family_is_refused() {
    let fixture = fixture();
    let tokens = list(&fixture["tokens"]);
    let config = json!({"tokenizer_class": "NobodysTokenizer"}).to_string();
    let told = told(&[("tiktoken.model", lines(&tokens)), ("tokenizer_config.json", config)]);
    assert!(told.contains("nobodystokenizer"), "{told}");
}

#[test]
fn broken_vocabularies_are_refused_with_the_place() {
    let fixture = fixture();
    let tokens = list(&fixture["tokens"]);
    let qwen = |text: String| told(&[("qwen.tiktoken", text)]);
    assert!(qwen(lines(&tokens[1..])).contains("no token for the byte 0x00"));
    let mut twice = tokens.clone();
    twice.push(tokens[300]);
    assert!(qwen(lines(&twice)).contains("there twice"));
    assert!(qwen(lines(&tokens).replacen(" 7\n", " 8\n", 1)).contains("line 8 has rank 8"));
    assert!(qwen(format!("{}what is this\n", lines(&tokens))).contains("is not a token"));
    // A file of another form is not taken for one.
    assert!(qwen("hello\n".into()).contains("tokenizer.json does not exist"));

    let config =
        json!({"pattern": "x", "default_vocab_size": 9999, "default_num_special_tokens": 9});
    let few = told(&[("tekken.json", tekken(&tokens, &config, &Value::Null))]);
    assert!(few.contains("9990 tokens are promised"), "{few}");
    let config =
        json!({"pattern": "x", "default_vocab_size": 300, "default_num_special_tokens": 9});
    let many = told(&[("tekken.json", tekken(&tokens, &config, &Value::Null))]);
    assert!(many.contains("one too many"), "{many}");
}
