//! Input that cannot fit its model's window is refused before any server sees it, with both numbers.

use crate::support::{
    counted::teller,
    house::{CHAT, House, Plan, request},
    raw::Reply,
    scripted::{Behaviour, Says, Scripted, Teller},
};
use berthd::snapshot::ServerKind;
use serde_json::{Value, json};
use std::sync::Arc;

const WINDOW: u64 = 60;

/// A house whose model has a window of 60 tokens and is counted here, or by its server.
async fn house(here: bool) -> (House, Scripted) {
    let server = Scripted::start(Behaviour::ok()).await;
    // A token for each letter of what is said.
    let count: Teller = Arc::new(|body| {
        let body: Value = serde_json::from_slice(body).ok()?;
        let content = &body["messages"][0]["content"];
        content.as_str().or(body["prompt"].as_str()).map(|text| text.len() as u64)
    });
    let truth = if here { teller(ServerKind::OpenAi, 0) } else { count };
    let endpoint = (!here).then(|| Arc::clone(&truth));
    server.say(Says { usage: Some(truth), endpoint, ..Says::default() });
    let folder = if here { "folder = \"models/demo-chat\"\n" } else { "" };
    let model = format!("{folder}context_window_tokens = {WINDOW}\nexpected_output_tokens = 8");
    let kind = if here { "openai" } else { "vllm" };
    let plan = Plan::new().model("scripted", &model).server_of(kind, "s", server.addr, "");
    (House::open(&plan).await, server)
}

async fn ask(house: &House, path: &str, text: &str, more: &Value) -> Reply {
    let mut body = match path {
        CHAT => json!({ "messages": [{ "role": "user", "content": text }] }),
        _ => json!({ "prompt": text }),
    };
    let fields = body.as_object_mut().unwrap();
    fields.insert("model".into(), json!("scripted"));
    fields.extend(more.as_object().unwrap().clone());
    house.send(&request("a", path, "", &body.to_string())).await
}

/// A text that the house counts as exactly so many tokens: one more letter is never fewer, and seldom two.
async fn text_of(house: &House, path: &str, tokens: u64) -> String {
    for length in 1..400 {
        let text = "a ".repeat(length);
        let reply = ask(house, path, text.trim_end(), &json!({ "max_tokens": 1 })).await;
        assert_eq!(reply.status, 200, "{tokens} tokens are never met: {}", reply.head);
        if reply.header("x-berthd-input-tokens") == tokens.to_string() {
            return text.trim_end().to_owned();
        }
    }
    panic!("no text has {tokens} tokens")
}

fn refused(reply: &Reply, numbers: &[u64]) {
    assert_eq!(reply.status, 400, "{}", reply.head);
    let error = &reply.json()["error"];
    assert_eq!(error["code"], "context_length_exceeded");
    let message = error["message"].as_str().unwrap();
    for number in numbers {
        let stands = message.split(|c: char| !c.is_ascii_digit()).any(|n| n == number.to_string());
        assert!(stands, "{number} is missing: {message}");
    }
}

#[tokio::test]
async fn what_cannot_fit_is_refused_with_both_numbers_and_reaches_no_server() {
    for here in [true, false] {
        for path in [CHAT, "/v1/completions"] {
            let (house, server) = house(here).await;
            let fits = text_of(&house, path, WINDOW - 11).await;
            let served = server.hits.requests();

            // Prompt and limit together, by one token.
            for stream in [false, true] {
                let more = json!({ "max_tokens": 12, "stream": stream });
                let reply = ask(&house, path, &fits, &more).await;
                refused(&reply, &[WINDOW, WINDOW - 11, 12, WINDOW + 1]);
            }
            // The prompt alone, with and without a limit.
            let long = "a ".repeat(500);
            for more in [json!({}), json!({ "max_tokens": 1 }), json!({ "stream": true })] {
                let reply = ask(&house, path, long.trim_end(), &more).await;
                let counted: Vec<u64> = reply.json()["error"]["message"]
                    .as_str()
                    .unwrap()
                    .split(|c: char| !c.is_ascii_digit())
                    .filter_map(|number| number.parse().ok())
                    .collect();
                assert!(counted.iter().any(|number| *number > 400), "{counted:?}");
                refused(&reply, &[WINDOW]);
            }
            assert_eq!(server.hits.requests(), served, "no refused request reached the server");

            // What just fits does.
            let reply = ask(&house, path, &fits, &json!({ "max_tokens": 11 })).await;
            assert_eq!(reply.status, 200, "{}", reply.head);
            let source = if here { "exact" } else { "server" };
            assert_eq!(reply.header("x-berthd-token-count"), source);
            assert_eq!(server.hits.requests(), served + 1);
            house.close().await;
        }
    }
}

/// An input that fills the window leaves no room for a single token of output.
#[tokio::test]
async fn without_a_limit_one_token_of_output_must_fit() {
    for here in [true, false] {
        let (house, server) = house(here).await;
        let almost = text_of(&house, "/v1/completions", WINDOW - 1).await;
        let served = server.hits.requests();
        let reply = ask(&house, "/v1/completions", &almost, &json!({})).await;
        assert_eq!(reply.status, 200, "{}", reply.head);
        let mut full = format!("{almost} a");
        if !here {
            full.pop();
        }
        let reply = ask(&house, "/v1/completions", &full, &json!({})).await;
        refused(&reply, &[WINDOW]);
        assert_eq!(server.hits.requests(), served + 1);
        house.close().await;
    }
}
