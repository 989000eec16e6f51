//! What was counted is what runs: servers that take token ids get those that were counted.

use crate::support::{
    house::{CHAT, House, Plan, chat, request},
    scripted::{Behaviour, Scripted},
};
use berthd::{
    snapshot::ServerKind,
    tokens::{ModelFiles, Profile},
};
use serde_json::{Value, json};
use std::path::Path;

const FOLDER: &str = "tests/fixtures/counts/header";
const TEXT: &str = "Tell me a story, caf\u{e9} 42";

fn files() -> ModelFiles {
    ModelFiles::load(&Path::new(env!("CARGO_MANIFEST_DIR")).join(FOLDER)).unwrap()
}

async fn house(server: &Scripted, kind: &str, rest: &str) -> House {
    let model = format!("folder = \"{FOLDER}\"\nspecial_tokens = \"neutralise\"");
    let rest = format!("models = [\"scripted\"]\n{rest}");
    let plan = Plan::new().model("scripted", &model).server_of(kind, "s", server.addr, &rest);
    let house = House::open(&plan).await;
    house.until("it is usable", |house| house.server("s").usable).await;
    house
}

/// What the server got for one request.
async fn got(kind: &str, rest: &str, path: &str, body: &Value) -> Value {
    let server = Scripted::start(Behaviour::ok()).await;
    let house = house(&server, kind, rest).await;
    let reply = house.send(&request("a", path, "", &body.to_string())).await;
    // The scripted server answers several prompts as one, which is no answer; what it got is what counts.
    assert!(server.hits.requests() > 0, "{}", reply.head);
    house.close().await;
    serde_json::from_slice(&server.hits.seen()[0].body).unwrap()
}

fn prompt(prompt: &Value) -> Value {
    json!({"model": "scripted", "prompt": prompt, "max_tokens": 4, "my": [1.50]})
}

#[tokio::test]
async fn a_prompt_goes_out_as_the_ids_that_were_counted() {
    let ids = files().text_ids(TEXT, true).unwrap();
    assert!(ids.len() > 5, "{ids:?}");
    for kind in ["vllm", "llama.cpp", "sglang"] {
        let path = "/v1/completions";
        let seen = got(kind, "send_token_ids = true", path, &prompt(&json!(TEXT))).await;
        assert_eq!(seen["prompt"], json!(ids), "{kind}");
        assert_eq!((&seen["max_tokens"], &seen["my"]), (&json!(4), &json!([1.5])));
    }
}

#[tokio::test]
async fn a_conversation_goes_out_with_its_ids_where_the_server_takes_them() {
    let body = chat("scripted", TEXT, false);
    let ids =
        files().chat_ids(&Profile::of(ServerKind::Sglang), body.as_object().unwrap()).unwrap();
    let seen = got("sglang", "send_token_ids = true", CHAT, &body).await;
    assert_eq!(seen["input_ids"], json!(ids));
    assert_eq!(seen["messages"], body["messages"]);
    for kind in ["vllm", "llama.cpp"] {
        let seen = got(kind, "send_token_ids = true", CHAT, &body).await;
        assert_eq!(seen.get("input_ids"), None, "{kind} has no field for them");
    }
}

#[tokio::test]
async fn text_goes_out_where_ids_are_not_wanted_or_would_not_be_the_same() {
    let path = "/v1/completions";
    let seen = got("vllm", "", path, &prompt(&json!(TEXT))).await;
    assert_eq!(seen["prompt"], TEXT);
    let mut echoed = prompt(&json!(TEXT));
    echoed["echo"] = true.into();
    for body in [echoed, prompt(&json!([TEXT, "and"])), prompt(&json!([1, 2]))] {
        let seen = got("vllm", "send_token_ids = true", path, &body).await;
        assert_eq!(seen["prompt"], body["prompt"]);
    }
    let mended = chat("scripted", "a<|eot|>b", false);
    let seen = got("sglang", "send_token_ids = true", CHAT, &mended).await;
    assert_eq!(seen.get("input_ids"), None);
    assert_eq!(seen["messages"][0]["content"], "a<\u{200b}|eot|>b");
}
