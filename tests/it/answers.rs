//! What berthd changes in an answer on its way, and that it changes nothing else.

use crate::support::{
    house::{CHAT, House, Plan, chat, request},
    raw::{self, Reply},
    scripted::{
        Behaviour::{self, AbsurdUsage, HangBeforeHead, NegativeUsage, NeverStops, NoUsage},
        Scripted, TOKENS, expected_text,
    },
};
use serde_json::{Value, json};
use std::time::Duration;
use tokio::time::{Instant, timeout};

const PROMPT: &str = "Tell me a story";
/// The demo model's files count for the scripted model, so that our counts are exact.
const EXACT: &str = "folder = \"models/demo-chat\"\naliases = [\"mine\"]";

async fn house(behaviour: Behaviour, relay: &str) -> (House, Scripted) {
    let server = Scripted::start(behaviour).await;
    let plan = Plan::new().relay(relay).model("scripted", EXACT).server("s", server.addr, "");
    (House::open(&plan).await, server)
}

fn with_usage(mut body: Value) -> Value {
    body["stream_options"] = json!({ "include_usage": true });
    body
}

fn input_tokens(reply: &Reply) -> u64 {
    assert_eq!(reply.header("x-berthd-token-count"), "exact");
    reply.header("x-berthd-input-tokens").parse().unwrap()
}

#[tokio::test]
async fn a_stream_passes_byte_for_byte() {
    let (house, server) = house(Behaviour::ok(), "").await;
    let plain = chat("scripted", PROMPT, true);
    for body in [plain.clone(), with_usage(plain)] {
        let direct = raw::post(server.addr, CHAT, &body).await;
        let relayed = house.ask(&body).await;
        assert_eq!(
            String::from_utf8_lossy(&relayed.body),
            String::from_utf8_lossy(&direct.body),
            "usage asked for: {}",
            body["stream_options"]
        );
        assert!(relayed.done());
    }
    // The server was asked for usage each time, and the one who had not asked was kept from it.
    let asked = server.hits.seen().into_iter().map(|seen| {
        let body: Value = serde_json::from_slice(&seen.body).unwrap();
        body["stream_options"]["include_usage"] == true
    });
    assert_eq!(asked.collect::<Vec<_>>(), [false, true, true, true]);
    house.close().await;
}

#[tokio::test]
async fn a_whole_answer_passes_byte_for_byte() {
    let (house, server) = house(Behaviour::ok(), "").await;
    let body = chat("scripted", PROMPT, false);
    let direct = raw::post(server.addr, CHAT, &body).await;
    // The server counts bytes where our count is exact, and 15 is near enough to be believed.
    let relayed = house.ask(&body).await;
    assert_eq!(String::from_utf8_lossy(&relayed.body), String::from_utf8_lossy(&direct.body));
    house.close().await;
}

#[tokio::test]
async fn bytes_of_unusual_spelling_pass_too() {
    let (house, server) = house(Behaviour::Utf8CutEveryByte, "").await;
    let body = chat("scripted", PROMPT, true);
    let direct = raw::post(server.addr, CHAT, &body).await;
    let relayed = house.ask(&body).await;
    assert_eq!(relayed.body, direct.body, "cut at every byte, put together again");
    house.close().await;
}

#[tokio::test]
async fn an_alias_is_shown_instead_of_the_servers_name_and_nothing_else_changes() {
    let (house, server) = house(Behaviour::ok(), "").await;
    for stream in [true, false] {
        let own = house.ask(&chat("scripted", PROMPT, stream)).await;
        let mine = house.ask(&chat("mine", PROMPT, stream)).await;
        let (own, mine) = (String::from_utf8(own.body).unwrap(), String::from_utf8(mine.body));
        let renamed = own.replace("\"model\":\"scripted\"", "\"model\":\"mine\"");
        assert_ne!(own, renamed);
        assert_eq!(mine.unwrap(), renamed);
    }
    for seen in server.hits.seen() {
        let body: Value = serde_json::from_slice(&seen.body).unwrap();
        assert_eq!(body["model"], "scripted", "servers know their own name only");
    }
    house.close().await;
}

#[tokio::test]
async fn usage_that_is_absent_or_absurd_becomes_our_count() {
    for behaviour in [NoUsage, NegativeUsage, AbsurdUsage] {
        let (house, _server) = house(behaviour.clone(), "").await;
        let reply = house.ask(&with_usage(chat("scripted", PROMPT, true))).await;
        let usage = reply.usage().unwrap_or_else(|| panic!("no usage: {behaviour:?}"));
        let input = input_tokens(&reply);
        assert_eq!(usage["prompt_tokens"], input, "{behaviour:?}");
        assert_eq!(usage["completion_tokens"], TOKENS, "{behaviour:?}: a token an event");
        assert_eq!(usage["total_tokens"], input + TOKENS as u64, "{behaviour:?}");
        assert!(reply.done());
        let events = reply.events();
        let place = events.iter().position(|event| event.contains("\"usage\":{")).unwrap();
        assert_eq!(place, events.len() - 2, "right before the end mark");
        // Who does not ask gets none, not even ours.
        let reply = house.ask(&chat("scripted", PROMPT, true)).await;
        assert!(reply.usage().is_none() && reply.done());

        let reply = house.ask(&chat("scripted", PROMPT, false)).await;
        let usage = &reply.json()["usage"];
        assert_eq!(usage["prompt_tokens"], input_tokens(&reply), "{behaviour:?}");
        let output = usage["completion_tokens"].as_u64().unwrap();
        let bytes = expected_text(PROMPT, TOKENS).len() as u64;
        assert!((TOKENS as u64..=bytes).contains(&output), "{behaviour:?}: {usage}");
        house.close().await;
    }
}

/// An event of our own looks like the server's.
#[tokio::test]
async fn usage_that_we_add_is_an_event_of_the_same_answer() {
    for (path, object) in [(CHAT, "chat.completion.chunk"), ("/v1/completions", "text_completion")]
    {
        let (house, _server) = house(NoUsage, "").await;
        let mut body = with_usage(chat("mine", PROMPT, true));
        body["prompt"] = PROMPT.into();
        let reply = house.send(&request("a", path, "", &body.to_string())).await;
        let chunks = reply.chunks();
        let (first, ours) = (&chunks[0], chunks.last().unwrap());
        assert_eq!((&ours["object"], &ours["model"]), (&json!(object), &json!("mine")));
        assert_eq!(ours["choices"], json!([]));
        for same in ["id", "object", "created", "model"] {
            assert_eq!(first[same], ours[same], "{path}");
        }
        assert!(ours["usage"]["completion_tokens"].is_u64() && reply.done());
        house.close().await;
    }
}

#[tokio::test]
async fn a_stream_without_an_end_mark_gets_one() {
    let (house, _server) = house(Behaviour::NoDone, "").await;
    let reply = house.ask(&chat("scripted", PROMPT, true)).await;
    assert!(reply.done() && reply.whole);
    assert_eq!(reply.text(), expected_text(PROMPT, TOKENS));
    assert_eq!(reply.events().iter().filter(|event| *event == "[DONE]").count(), 1);
    house.close().await;
}

#[tokio::test]
async fn a_stream_ends_at_max_tokens_and_so_does_the_server() {
    let (house, server) = house(NeverStops, "").await;
    let mut body = with_usage(chat("scripted", PROMPT, true));
    body["max_tokens"] = 5.into();
    let reply = house.ask(&body).await;
    assert_eq!(reply.text(), expected_text(PROMPT, 5));
    assert_eq!(reply.finish().as_deref(), Some("length"));
    assert_eq!(reply.usage().unwrap()["completion_tokens"], 5);
    assert!(reply.done());
    let stopped = server.hits.until(|hits| hits.open() == 0 && hits.aborted() == 1);
    timeout(raw::PATIENCE, stopped).await.expect("the server is not left generating");
    house.close().await;
}

#[tokio::test]
async fn a_whole_answer_that_never_ends_is_given_up() {
    let (house, server) = house(NeverStops, "answer_limit_s = 0.5").await;
    let mut body = chat("scripted", PROMPT, false);
    body["max_tokens"] = 5.into();
    let reply = house.ask(&body).await;
    assert_eq!((reply.status, &reply.json()["error"]["code"]), (504, &json!("server_timeout")));
    timeout(raw::PATIENCE, server.hits.until(|hits| hits.open() == 0)).await.expect("stopped");
    house.close().await;
}

#[tokio::test]
async fn a_whole_answer_is_cut_at_max_tokens() {
    let (house, _server) = house(Behaviour::TooLong(200), "").await;
    let mut body = chat("scripted", PROMPT, false);
    body["max_tokens"] = 50.into();
    let answer = house.ask(&body).await.json();
    let choice = &answer["choices"][0];
    let text = choice["message"]["content"].as_str().unwrap();
    assert!(!text.is_empty() && expected_text(PROMPT, 200).starts_with(text));
    assert_eq!(
        (&choice["finish_reason"], &answer["usage"]["completion_tokens"]),
        (&json!("length"), &json!(50))
    );
    house.close().await;
}

/// Without the model's tokenizer long words look like many tokens. A server that kept the limit and says
/// so must not be cut.
#[tokio::test]
async fn an_answer_within_the_limit_is_not_cut_for_its_long_words() {
    let server = Scripted::start(Behaviour::ok()).await;
    let house = House::open(&Plan::new().server("s", server.addr, "")).await;
    let mut body = chat("scripted", PROMPT, false);
    body["max_tokens"] = TOKENS.into();
    let answer = house.ask(&body).await.json();
    let text = &answer["choices"][0]["message"]["content"];
    assert_eq!(text, &json!(expected_text(PROMPT, TOKENS)));
    assert_eq!(answer["usage"]["completion_tokens"], TOKENS);
    house.close().await;
}

#[tokio::test]
async fn heartbeats_come_before_the_first_content() {
    let slow = Behaviour::SlowFirstToken(Duration::from_millis(700));
    let (house, server) = house(slow, "heartbeat_s = 0.1").await;
    let began = Instant::now();
    let body = chat("scripted", PROMPT, true);
    let mut stream = house.open_as("a", "", &body).await;
    let head = raw::read_until(&mut stream, "\n\n").await;
    assert!(began.elapsed() < Duration::from_millis(700), "the head does not wait for content");
    assert!(raw::contains(&head, "HTTP/1.1 200") && raw::contains(&head, "\n: "));
    let (rest, ended) = raw::read_all(&mut stream).await;
    let reply = Reply::parse(&[head, rest].concat(), ended);
    assert!(reply.comments() >= 2, "{} comments", reply.comments());
    assert_eq!(reply.text(), expected_text(PROMPT, TOKENS));
    assert!(reply.done() && reply.whole);
    server.behave(HangBeforeHead);
    drop(stream);
    house.close().await;
}

#[tokio::test]
async fn a_head_that_went_out_early_is_followed_by_the_error_as_an_event() {
    let (house, _server) = house(
        HangBeforeHead,
        "heartbeat_s = 0.1\nfirst_token_limit_s = 0.5\nconnect_limit_s = 0.5",
    )
    .await;
    let reply = house.ask(&chat("scripted", PROMPT, true)).await;
    assert_eq!((reply.status, reply.whole, reply.done()), (200, true, false));
    assert!(reply.comments() >= 2);
    let events = reply.events();
    assert_eq!(events.len(), 1, "nothing but the error: {events:?}");
    let error: Value = serde_json::from_str(&events[0]).unwrap();
    assert_eq!(error["error"]["code"], "server_timeout");
    assert_eq!(error["error"]["request_id"], reply.header("x-request-id"));
    house.close().await;
}

#[tokio::test]
async fn the_next_server_still_answers_after_an_early_head() {
    let faulty = Scripted::start(HangBeforeHead).await;
    let good = Scripted::start(Behaviour::ok()).await;
    let plan = Plan::new()
        .relay("heartbeat_s = 0.1\nfirst_token_limit_s = 0.5\nconnect_limit_s = 0.5")
        .server("faulty", faulty.addr, "")
        .server("good", good.addr, "");
    let house = House::open(&plan).await;
    let reply = house.ask(&chat("scripted", PROMPT, true)).await;
    assert_eq!((reply.status, reply.text()), (200, expected_text(PROMPT, TOKENS)));
    assert!(reply.comments() >= 2 && reply.done());
    assert_eq!((faulty.hits.requests(), good.hits.requests()), (1, 1));
    house.close().await;
}
