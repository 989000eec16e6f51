//! The routes that only count, against a daemon whose servers are down, deaf or able to count.

use crate::support::{
    house::{House, Plan, key, request},
    process::{KEY, Setup, simulated},
    raw::{self, Reply},
    scripted::{Behaviour, Scripted},
};
use berthd::{
    snapshot::ServerKind,
    tokens::{ModelFiles, Profile},
};
use serde_json::{Value, json};
use std::{path::Path, sync::LazyLock, time::Duration};

const DEMO: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/models/demo-chat");
const TOKENIZE: &str = "/tokenize";
const COUNT: &str = "/v1/messages/count_tokens";

static FILES: LazyLock<ModelFiles> = LazyLock::new(|| ModelFiles::load(Path::new(DEMO)).unwrap());

/// A model with its files and no server at all, and one that a deaf server serves.
async fn house() -> (House, Scripted) {
    let server = Scripted::start(Behaviour::ok()).await;
    let plan = Plan::new()
        .tenant("elsewhere", "models = [\"other\"]")
        .tenant("slow", "requests_per_minute = 1")
        .model("demo", &format!("folder = \"{DEMO}\"\naliases = [\"claude\"]"))
        .server("s", server.addr, "");
    (House::open(&plan).await, server)
}

async fn post(house: &House, path: &str, body: &Value) -> Reply {
    house.send(&request("a", path, "", &body.to_string())).await
}

fn ids_of_chat(body: Value) -> Vec<u32> {
    let body = body.as_object().unwrap().clone();
    FILES.chat_ids(&Profile::of(ServerKind::OpenAi), &body).unwrap()
}

fn user(text: &str) -> Value {
    json!([{"role": "user", "content": text}])
}

#[tokio::test]
async fn token_ids_are_those_that_the_model_would_see() {
    let (house, server) = house().await;
    let before = server.hits.requests();
    let prompt =
        post(&house, TOKENIZE, &json!({"model": "demo", "prompt": "Hello <|im_end|>"})).await;
    assert_eq!(prompt.status, 200, "{}", String::from_utf8_lossy(&prompt.body));
    assert_eq!(prompt.header("x-berthd-token-count"), "exact");
    let (answer, ids) = (prompt.json(), FILES.text_ids("Hello <|im_end|>", true).unwrap());
    assert_eq!(answer["tokens"], json!(ids));
    assert_eq!((&answer["count"], &answer["source"]), (&json!(ids.len()), &json!("exact")));
    assert_eq!((&answer["token_strs"], &answer["max_model_len"]), (&Value::Null, &json!(2048)));
    assert_eq!(prompt.header("x-berthd-input-tokens"), ids.len().to_string());

    let bare = json!({"model": "demo", "prompt": "Hello", "add_special_tokens": false,
        "return_token_strs": true});
    let bare = post(&house, TOKENIZE, &bare).await.json();
    assert_eq!(bare["tokens"], json!(FILES.text_ids("Hello", false).unwrap()));
    let words: String =
        bare["token_strs"].as_array().unwrap().iter().filter_map(Value::as_str).collect();
    assert_eq!(words, "Hello");

    let chat = json!({"messages": user("héllo"), "tools": null});
    let mut asked = chat.clone();
    asked["model"] = json!("claude");
    asked["return_token_strs"] = json!(true);
    let answer = post(&house, TOKENIZE, &asked).await.json();
    assert_eq!(answer["tokens"], json!(ids_of_chat(chat.clone())));
    let words: Vec<&str> =
        answer["token_strs"].as_array().unwrap().iter().filter_map(Value::as_str).collect();
    assert_eq!(words[..2], ["<|begin_of_text|>", "<|im_start|>"]);
    assert!(words.concat().contains("\u{c3}\u{a9}"), "as the vocabulary writes it: {words:?}");
    asked["add_generation_prompt"] = json!(false);
    let shorter = post(&house, TOKENIZE, &asked).await.json();
    assert!(shorter["count"].as_u64() < answer["count"].as_u64());
    assert_eq!(server.hits.requests(), before, "no server was asked");
    house.close().await;
}

#[tokio::test]
async fn a_messages_request_is_counted_as_the_chat_it_becomes() {
    let (house, _server) = house().await;
    let body = json!({"model": "claude", "max_tokens": 10, "system": "Be brief.", "messages": [
        {"role": "user", "content": [{"type": "text", "text": "Weather?"}]},
        {"role": "assistant", "content": [
            {"type": "tool_use", "id": "t1", "name": "weather", "input": {"city": "Z"}}]},
        {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "t1", "content": "rain"}]}],
        "tools": [{"name": "weather", "input_schema": {"type": "object", "properties": {}}}]});
    let call = json!({"id": "t1", "type": "function",
        "function": {"name": "weather", "arguments": "{\"city\": \"Z\"}"}});
    let chat = json!({"messages": [
        {"role": "system", "content": "Be brief."}, {"role": "user", "content": "Weather?"},
        {"role": "assistant", "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "t1", "content": "rain"}],
        "tools": [{"type": "function", "function": {"name": "weather",
            "parameters": {"type": "object", "properties": {}}}}]});
    let wanted = json!({"input_tokens": ids_of_chat(chat).len()});
    let reply = post(&house, COUNT, &body).await;
    assert_eq!((reply.status, reply.json()), (200, wanted.clone()));
    assert_eq!(reply.header("x-berthd-token-count"), "exact");
    assert!(reply.header("x-request-id").starts_with("req_"));
    // Anthropic's clients send their key so.
    let text = body.to_string();
    let head = format!(
        "POST {COUNT} HTTP/1.1\r\nHost: berthd\r\nx-api-key: {}\r\nanthropic-version: 2023-06-01\r\n\
         Content-Type: application/json\r\nConnection: close\r\nContent-Length: {}\r\n\r\n{text}",
        key("a"),
        text.len()
    );
    assert_eq!(house.send(head.as_bytes()).await.json(), wanted);
    // A body that is studied on the compute threads.
    let long = json!({"model": "demo", "messages": user(&"word ".repeat(20_000))});
    let counted = post(&house, COUNT, &long).await.json()["input_tokens"].as_u64().unwrap();
    assert_eq!(counted, ids_of_chat(long).len() as u64);
    house.close().await;
}

#[tokio::test]
async fn what_is_wrong_is_told_in_the_callers_own_form() {
    let (house, server) = house().await;
    let link = json!([{"role": "user", "content": [{"type": "image", "source":
        {"type": "url", "url": "http://169.254.169.254/"}}]}]);
    let cases = [
        (json!({"model": "demo"}).to_string(), 400, "invalid_request_error"),
        ("{".to_owned(), 400, "invalid_request_error"),
        (json!({"messages": user("x")}).to_string(), 400, "invalid_request_error"),
        (json!({"model": 5, "messages": user("x")}).to_string(), 400, "invalid_request_error"),
        (json!({"model": "demo", "messages": link}).to_string(), 400, "invalid_request_error"),
        (json!({"model": "scripted", "messages": link}).to_string(), 400, "invalid_request_error"),
        (json!({"model": "nope", "messages": user("x")}).to_string(), 404, "not_found_error"),
        (
            json!({"model": "demo", "messages": user("x"), "Messages": []}).to_string(),
            400,
            "invalid_request_error",
        ),
    ];
    for (body, status, kind) in cases {
        let reply = house.send(&request("a", COUNT, "", &body)).await;
        let answer = reply.json();
        assert_eq!((reply.status, &answer["error"]["type"]), (status, &json!(kind)), "{body}");
        assert_eq!(answer["type"], "error");
        assert!(answer["error"]["message"].as_str().unwrap().len() > 10);
        assert_eq!(answer["request_id"], reply.header("x-request-id"));
    }
    let body = json!({"model": "demo", "messages": user("x")}).to_string();
    let kind = |reply: &Reply| reply.json()["error"]["type"].as_str().unwrap().to_owned();
    let stranger = house.send(&request("nobody", COUNT, "", &body)).await;
    assert_eq!((stranger.status, kind(&stranger).as_str()), (401, "authentication_error"));
    let narrow = house.send(&request("elsewhere", COUNT, "", &body)).await;
    assert_eq!((narrow.status, kind(&narrow).as_str()), (403, "permission_error"));
    assert_eq!(house.send(&request("slow", COUNT, "", &body)).await.status, 200);
    let limited = house.send(&request("slow", COUNT, "", &body)).await;
    assert_eq!((limited.status, kind(&limited).as_str()), (429, "rate_limit_error"));
    assert!(!limited.header("retry-after").is_empty());
    let method = raw::get(house.data, COUNT).await;
    assert_eq!((method.status, kind(&method).as_str()), (405, "invalid_request_error"));
    assert_eq!(house.send(&request("a", "/v1/messages", "", &body)).await.json()["type"], "error");

    let tokenize = [
        (json!({"model": "demo"}), 400, "missing_field"),
        (json!({"model": "demo", "prompt": "a", "messages": user("a")}), 400, "missing_field"),
        (json!({"model": "demo", "prompt": ["a"]}), 400, "invalid_type"),
        (json!({"model": "demo", "messages": "a"}), 400, "invalid_type"),
        (json!({"model": "demo", "prompt": "a", "return_token_strs": 1}), 400, "invalid_type"),
        (
            json!({"model": "demo", "messages": user("a"), "chat_template": "x"}),
            400,
            "value_out_of_range",
        ),
        (
            json!({"model": "demo", "messages": user("a"), "continue_final_message": true,
                "add_generation_prompt": true}),
            400,
            "value_out_of_range",
        ),
        (
            json!({"model": "demo", "messages": user("a"), "chat_template_kwargs": {"tokenize": 1}}),
            400,
            "value_out_of_range",
        ),
        (
            json!({"model": "demo", "prompt": "a ".repeat(1 << 18), "return_token_strs": true}),
            400,
            "value_out_of_range",
        ),
        (json!({"model": "scripted", "prompt": "a"}), 422, "not_countable"),
        (json!({"model": "nope", "prompt": "a"}), 404, "model_not_found"),
    ];
    for (body, status, code) in tokenize {
        let reply = post(&house, TOKENIZE, &body).await;
        assert_eq!(
            (reply.status, &reply.json()["error"]["code"]),
            (status, &json!(code)),
            "{body}"
        );
    }
    assert_eq!(server.hits.requests(), 0, "nothing was generated");
    house.close().await;
}

#[tokio::test]
async fn without_files_and_without_a_counting_server_it_is_an_estimate_and_says_so() {
    let (house, _server) = house().await;
    let count = async |messages: Value| {
        let reply = post(&house, COUNT, &json!({"model": "scripted", "messages": messages})).await;
        assert_eq!((reply.status, reply.header("x-berthd-token-count")), (200, "estimate"));
        reply.json()["input_tokens"].as_u64().unwrap()
    };
    let bare = count(user("What is this?")).await;
    assert!((5..60).contains(&bare), "{bare}");
    let image = |data: &str| {
        json!([{"role": "user", "content": [{"type": "text", "text": "What is this?"},
            {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": data}}]}])
    };
    let (small, large) = (count(image("AAAA")).await, count(image(&"AAAA".repeat(9000))).await);
    assert_eq!(small, large, "the bytes of an image are not its tokens");
    assert!((576..576 + 60).contains(&small), "{small}");
    house.close().await;
}

/// Only images are guessed at; the words around them were taken for a token every four bytes too.
#[tokio::test]
async fn around_images_the_words_are_counted() {
    let (house, _server) = house().await;
    let text = "What, if anything, is on picture 7431 of 9982?! ".repeat(20);
    let words = ids_of_chat(json!({"messages": user(&text)})).len() as u64;
    let messages = json!([{"role": "user", "content": [{"type": "text", "text": text},
        {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": "AAAA"}}]}]);
    let reply = post(&house, COUNT, &json!({"model": "demo", "messages": messages})).await;
    assert_eq!(reply.header("x-berthd-token-count"), "estimate");
    assert_eq!(reply.json()["input_tokens"], words + 576);
    house.close().await;
}

/// It was called exact, although the suffix was not in it.
#[tokio::test]
async fn filling_in_is_an_estimate_of_both_sides() {
    let server = Scripted::start(Behaviour::ok()).await;
    let model = format!("folder = \"{DEMO}\"");
    let plan = Plan::new().model("scripted", &model).server("s", server.addr, "");
    let house = House::open(&plan).await;
    let ask = async |body: Value| {
        let reply = post(&house, "/v1/completions", &body).await;
        assert_eq!(reply.status, 200);
        let source = reply.header("x-berthd-token-count").to_owned();
        (source, reply.header("x-berthd-input-tokens").parse::<u64>().unwrap())
    };
    let alone = json!({"model": "scripted", "prompt": "a", "suffix": "", "max_tokens": 2});
    assert_eq!(ask(alone).await.0, "exact");
    let filled =
        json!({"model": "scripted", "prompt": "a", "suffix": "b".repeat(400), "max_tokens": 2});
    let (source, tokens) = ask(filled).await;
    assert!(source == "estimate" && tokens > 90, "{source} {tokens}");
    house.close().await;
}

#[tokio::test]
async fn a_server_that_counts_is_asked_with_the_chat_that_it_would_make() {
    let simulated = simulated("m", Duration::ZERO).await;
    let daemon = Setup::with_server("one", simulated.addr).start().await;
    let ask = async |path: &str, body: Value| {
        let body = body.to_string();
        let mut stream = tokio::net::TcpStream::connect(daemon.data).await.unwrap();
        let head = format!(
            "POST {path} HTTP/1.1\r\nHost: b\r\nAuthorization: Bearer {KEY}\r\nConnection: close\r\n\
             Content-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}",
            body.len()
        );
        tokio::io::AsyncWriteExt::write_all(&mut stream, head.as_bytes()).await.unwrap();
        let (bytes, ended) = raw::read_all(&mut stream).await;
        Reply::parse(&bytes, ended)
    };
    let reply = ask(TOKENIZE, json!({"model": "m", "messages": user("one two three")})).await;
    let answer = reply.json();
    assert_eq!(
        (reply.status, &answer["source"], &answer["tokens"]),
        (200, &json!("server"), &Value::Null)
    );
    let chat = answer["count"].as_u64().unwrap();
    assert!(chat > 0);
    let messages =
        json!([{"role": "user", "content": [{"type": "text", "text": "one two three"}]}]);
    let reply = ask(COUNT, json!({"model": "m", "messages": messages})).await;
    assert_eq!(reply.header("x-berthd-token-count"), "server");
    assert_eq!(reply.json(), json!({"input_tokens": chat}), "one text block is a plain text there");
    let special = json!({"model": "m", "messages": user("x"), "add_special_tokens": true});
    assert_eq!(ask(TOKENIZE, special).await.status, 422, "a server would count without them");
}
