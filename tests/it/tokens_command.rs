//! `berthd tokens` as a process: every shape, many lines, and what is shown beside the count.

use crate::support::process::{berthd, run_with, told};
use berthd::{
    snapshot::ServerKind,
    tokens::{ModelFiles, Profile},
};
use serde_json::{Value, json};
use std::{
    io::{BufRead, BufReader, Write},
    path::Path,
    process::Stdio,
};

const DEMO: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/models/demo-chat");

async fn tokens(more: &[&str], input: &str) -> (i32, String, String) {
    let mut command = berthd();
    command.args(["tokens", "--model-dir", DEMO]).args(more);
    told(&run_with(command, input).await)
}

async fn lines(more: &[&str], requests: &[Value]) -> Vec<Value> {
    let input: String = requests.iter().map(|request| format!("{request}\n")).collect();
    let (_, out, err) = tokens(&[&["--jsonl"], more].concat(), &input).await;
    let answers: Vec<Value> = out.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(answers.len(), requests.len(), "{err}");
    answers
}

fn user(text: &str) -> Value {
    json!({"role": "user", "content": text})
}

#[tokio::test]
async fn every_shape_is_told_from_its_fields_and_counted() {
    let blocks = json!([{"type": "text", "text": "hi"}]);
    let requests = [
        json!({"messages": [user("hi")]}),
        json!({"messages": [{"role": "user", "content": blocks}], "system": "Be brief."}),
        json!({"input": [{"role": "user", "content": "hi"}], "instructions": "Be brief."}),
        json!({"messages": [{"role": "system", "content": "Be brief."}, user("hi")]}),
        json!({"prompt": ["hi", "hi"]}),
        json!({"input": "hi"}),
        json!({"query": "hi", "documents": ["hi"]}),
        json!({"prompt": "hi", "suffix": "ho"}),
    ];
    let answers = lines(&["--server-kind", "vllm"], &requests).await;
    let shapes: Vec<&str> =
        answers.iter().map(|answer| answer["shape"].as_str().unwrap()).collect();
    let wanted = [
        "chat",
        "messages",
        "responses",
        "chat",
        "completions",
        "embeddings",
        "rerank",
        "completions",
    ];
    assert_eq!(shapes, wanted);
    let counts: Vec<&Value> = answers.iter().map(|answer| &answer["input_tokens"]).collect();
    assert_eq!((counts[1], counts[2]), (counts[3], counts[3]), "one conversation, three shapes");
    assert_eq!(counts[4].as_u64().unwrap(), 2 * counts[5].as_u64().unwrap());
    for answer in &answers[..6] {
        assert_eq!((&answer["source"], &answer["reason"]), (&json!("exact"), &Value::Null));
        assert!(answer["took_us"].is_u64() && answer["fingerprint"].is_string());
    }
    for answer in &answers[6..] {
        assert_eq!(answer["source"], "estimate");
        assert!(
            answer["reason"].as_str().unwrap().contains("no server of it could count"),
            "{answer}"
        );
    }
    let forced = lines(&["--shape", "responses"], &[json!({"input": "hi"})]).await;
    assert_eq!((&forced[0]["shape"], &forced[0]["input_tokens"]), (&json!("responses"), counts[0]));
}

#[tokio::test]
async fn a_bad_line_costs_its_line_only() {
    let input = "{\"messages\":[{\"role\":\"user\",\"content\":\"hi\"}]}\nnot json\n{\"messages\":[]}\n\
                 {\"system\":5,\"messages\":[{\"role\":\"user\",\"content\":\"hi\"}]}\n\
                 {\"messages\":[{\"role\":\"user\",\"content\":\"ho\"}]}";
    let (code, out, err) = tokens(&["--jsonl"], input).await;
    let answers: Vec<Value> = out.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(code, 65);
    assert!(err.contains("3 of 5"), "{err}");
    let codes: Vec<&str> =
        answers.iter().map(|answer| answer["error"]["code"].as_str().unwrap_or("none")).collect();
    assert_eq!(codes, ["none", "malformed_json", "value_out_of_range", "invalid_type", "none"]);
    assert_eq!(answers[3]["error"]["param"], "system");
    let (code, out, _) = tokens(&["--jsonl"], "").await;
    assert_eq!((code, out.as_str()), (0, ""));
}

/// Who keeps the process as a counter asks, reads, and asks again.
#[test]
fn lines_are_answered_as_they_come() {
    let mut command = berthd();
    command.args(["tokens", "--model-dir", DEMO, "--jsonl"]);
    command.stdin(Stdio::piped()).stdout(Stdio::piped());
    let mut child = command.spawn().unwrap();
    let mut input = child.stdin.take().unwrap();
    let mut output = BufReader::new(child.stdout.take().unwrap());
    for text in ["one", "two, which is longer", "three"] {
        writeln!(input, "{}", json!({"messages": [user(text)]})).unwrap();
        let mut line = String::new();
        output.read_line(&mut line).unwrap();
        let body = json!({"messages": [user(text)]}).as_object().unwrap().clone();
        let files = ModelFiles::load(Path::new(DEMO)).unwrap();
        let count = files.count_chat(&Profile::of(ServerKind::OpenAi), &body).unwrap();
        let answer: Value = serde_json::from_str(&line).unwrap();
        assert_eq!(answer["input_tokens"], count.get());
    }
    drop(input);
    assert!(child.wait().unwrap().success());
}

#[tokio::test]
async fn shares_of_messages_add_up_to_the_count() {
    let call = json!({"id": "c", "type": "function", "function": {"name": "f", "arguments": "{}"}});
    let tool =
        json!({"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}});
    let requests = [
        json!({"messages": [user("hi")]}),
        json!({"messages": [user(""), {"role": "assistant", "content": "so"}]}),
        json!({"messages": [{"role": "system", "content": "s"}, user("a"),
            {"role": "assistant", "content": null, "tool_calls": [call]},
            {"role": "tool", "tool_call_id": "c", "content": "x"}, user("b")], "tools": [tool]}),
        json!({"system": "s", "messages": [user("a"), user("b")]}),
    ];
    for kind in ["vllm", "sglang", "llamacpp", "llama.cpp", "ollama", "openai", "embedded"] {
        let answers = lines(&["--server-kind", kind, "--messages"], &requests).await;
        for (request, answer) in requests.iter().zip(&answers) {
            let shares = answer["messages"].as_array().unwrap();
            let sum: i64 = shares.iter().filter_map(|share| share["input_tokens"].as_i64()).sum();
            let rest = answer["tools"].as_i64().unwrap() + answer["template"].as_i64().unwrap();
            assert_eq!(sum + rest, answer["input_tokens"].as_i64().unwrap(), "{kind} {request}");
            assert_eq!(answer["tools"].as_i64().unwrap() > 0, request.get("tools").is_some());
        }
        assert_eq!(answers[2]["messages"].as_array().unwrap().len(), 5);
        assert_eq!(answers[3]["messages"][0]["role"], "system", "as the server sees it");
    }
}

#[tokio::test]
async fn the_prompt_and_its_ids_are_shown_on_demand() {
    let request = json!({"messages": [user("hi")]}).to_string();
    let (code, out, _) = tokens(&["--json", "--render", "--ids"], &request).await;
    let answer: Value = serde_json::from_str(&out).unwrap();
    assert_eq!(code, 0);
    assert!(answer["prompt"].as_str().unwrap().contains("<|im_start|>user\nhi<|im_end|>"));
    assert_eq!(
        answer["ids"].as_array().unwrap().len() as u64,
        answer["input_tokens"].as_u64().unwrap()
    );
    let (_, plain, _) = tokens(&["--render", "--messages", "--ids"], &request).await;
    assert!(
        plain.starts_with(&format!("{} input tokens (exact", answer["input_tokens"])),
        "{plain}"
    );
    assert!(plain.contains("user") && plain.contains("template") && plain.contains("<|im_start|>"));
    let (_, bare, _) = tokens(&["--json"], &request).await;
    let bare: Value = serde_json::from_str(&bare).unwrap();
    assert!(
        bare.get("prompt").is_none() && bare.get("ids").is_none() && bare.get("messages").is_none()
    );
    let pairs = json!({"query": "a", "documents": ["b"]}).to_string();
    let (_, none, _) = tokens(&["--json", "--ids"], &pairs).await;
    let none: Value = serde_json::from_str(&none).unwrap();
    assert!(none["missing"][0].as_str().unwrap().starts_with("ids: "), "{none}");
    for (option, value) in [("--shape", "poem"), ("--server-kind", "abacus")] {
        let (code, _, err) = tokens(&[option, value], &request).await;
        assert!(code == 64 && err.contains("one of"), "{code} {err}");
    }
}

/// A tokenizer as cross-encoders have it: `[CLS]` first, `[SEP]` between and behind.
fn cross_encoder(folder: &Path) {
    let words = ["[CLS]", "[SEP]", "[UNK]", "rain", "in", "spain"];
    let vocab: Value =
        words.iter().enumerate().map(|(id, word)| ((*word).to_owned(), json!(id))).collect();
    let special = |id: usize| {
        json!({"id": id, "content": words[id], "special": true, "normalized": false,
            "single_word": false, "lstrip": false, "rstrip": false})
    };
    let piece = |id: usize| json!({"SpecialToken": {"id": words[id], "type_id": 0}});
    let sequence = |name: &str, kind: u8| json!({"Sequence": {"id": name, "type_id": kind}});
    let token = |id: usize| json!({"id": words[id], "ids": [id], "tokens": [words[id]]});
    let file = json!({
        "version": "1.0", "added_tokens": [special(0), special(1), special(2)],
        "normalizer": null, "decoder": null, "truncation": null, "padding": null,
        "pre_tokenizer": {"type": "Whitespace"},
        "post_processor": {"type": "TemplateProcessing",
            "single": [piece(0), sequence("A", 0), piece(1)],
            "pair": [piece(0), sequence("A", 0), piece(1), piece(1), sequence("B", 1), piece(1)],
            "special_tokens": {"[CLS]": token(0), "[SEP]": token(1)}},
        "model": {"type": "WordPiece", "unk_token": "[UNK]", "continuing_subword_prefix": "##",
            "max_input_chars_per_word": 100, "vocab": vocab},
    });
    std::fs::write(folder.join("tokenizer.json"), file.to_string()).unwrap();
}

#[tokio::test]
async fn pairs_cost_both_texts_and_the_tokens_around_them() {
    let folder = tempfile::TempDir::new().unwrap();
    cross_encoder(folder.path());
    let dir = folder.path().to_str().unwrap();
    let count = async |request: Value| {
        let mut command = berthd();
        command.args(["tokens", "--model-dir", dir, "--server-kind", "vllm", "--json"]);
        let (code, out, err) = told(&run_with(command, &request.to_string()).await);
        assert_eq!(code, 0, "{err}");
        let answer: Value = serde_json::from_str(&out).unwrap();
        assert_eq!((&answer["source"], &answer["shape"]), (&json!("exact"), &json!("rerank")));
        answer["input_tokens"].as_u64().unwrap()
    };
    // [CLS] rain [SEP] [SEP] in spain [SEP], then the same with one word.
    let rerank = json!({"query": "rain", "documents": ["in spain", {"text": "spain"}], "top_n": 1});
    assert_eq!(count(rerank).await, 7 + 6);
    assert_eq!(count(json!({"text_1": ["rain", "in"], "text_2": ["spain", ""]})).await, 6 + 5);
}
