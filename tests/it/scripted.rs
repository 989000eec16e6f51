//! The scripted model server does on the wire what its behaviours say. Other tests trust it, so it is
//! tested itself, by a client that sees every byte.

use crate::support::{
    raw::{self, Ended, PATIENCE, Reply},
    scripted::{
        Behaviour, HUGE_BYTES, SMUGGLED, Script, Scripted, TOKENS, expected_text, expected_utf8,
    },
};
use serde_json::{Value, json};
use std::time::Duration;
use tokio::{
    net::TcpStream,
    time::{Instant, timeout},
};

const CHAT: &str = "/v1/chat/completions";
const PROMPT: &str = "Tell me a story";

fn ask(stream: bool) -> Value {
    json!({
        "model": "scripted", "stream": stream, "stream_options": { "include_usage": true },
        "messages": [{ "role": "user", "content": PROMPT }],
    })
}

/// What one streamed request gets.
async fn streamed(behaviour: Behaviour) -> Reply {
    let server = Scripted::start(behaviour).await;
    raw::post(server.addr, CHAT, &ask(true)).await
}

/// What one request for an answer in one piece gets.
async fn whole(behaviour: Behaviour) -> Reply {
    let server = Scripted::start(behaviour).await;
    raw::post(server.addr, CHAT, &ask(false)).await
}

/// Asks, reads until `mark`, leaves, and waits until the server has noticed.
async fn leave_after(server: &Scripted, mark: Option<&str>) -> Vec<u8> {
    let before = Instant::now();
    let mut stream = raw::open_post(server.addr, CHAT, &ask(true)).await;
    let read = match mark {
        Some(mark) => raw::read_until(&mut stream, mark).await,
        None => Vec::new(),
    };
    timeout(PATIENCE, server.hits.until(|hits| hits.open() == 1)).await.expect("it has come");
    assert_eq!(server.hits.aborted(), 0, "nobody has left yet");
    let left = Instant::now();
    drop(stream);
    timeout(PATIENCE, server.hits.until(|hits| hits.open() == 0)).await.expect("noticed");
    assert_eq!((server.hits.aborted(), server.hits.finished()), (1, 0));
    let abort = server.hits.aborts()[0];
    assert!(abort.at >= left && abort.at - left < Duration::from_secs(5), "at once");
    assert!(abort.after <= abort.at - before);
    read
}

#[tokio::test]
async fn a_good_answer_is_whole_in_both_forms() {
    let reply = streamed(Behaviour::ok()).await;
    assert!(reply.whole && reply.done());
    assert_eq!(reply.text(), expected_text(PROMPT, TOKENS));
    assert_eq!(reply.finish().as_deref(), Some("stop"));
    assert_eq!(reply.usage().unwrap()["completion_tokens"], TOKENS);

    let reply = whole(Behaviour::ok()).await;
    let body = reply.json();
    assert_eq!(body["choices"][0]["message"]["content"], expected_text(PROMPT, TOKENS));

    let server = Scripted::start(Behaviour::ok()).await;
    let body = json!({ "prompt": PROMPT, "stream": true, "max_tokens": 3 });
    let reply = raw::post(server.addr, "/v1/completions", &body).await;
    assert_eq!(reply.text(), expected_text(PROMPT, 3));
    assert_eq!((reply.finish().as_deref(), reply.usage()), (Some("length"), None));
    assert_ne!(expected_text("a", 3), expected_text("b", 3));
}

#[tokio::test]
async fn connections_are_refused_where_nobody_listens() {
    let server = Scripted::start(Behaviour::RefuseConnection).await;
    let error = TcpStream::connect(server.addr).await.unwrap_err();
    assert_eq!(error.kind(), std::io::ErrorKind::ConnectionRefused);
}

#[tokio::test]
async fn statuses_come_with_their_header_and_body() {
    let busy = Behaviour::Status { code: 429, retry_after: Some(7), body: String::new() };
    let reply = streamed(busy).await;
    assert_eq!(reply.status, 429);
    assert!(reply.head.contains("Retry-After: 7"));
    assert_eq!(reply.json()["error"]["code"], 429);
    let own = Behaviour::Status { code: 400, retry_after: None, body: "no".to_owned() };
    assert_eq!(whole(own).await.body, b"no");
    assert_eq!(whole(Behaviour::status(503)).await.status, 503);
}

#[tokio::test]
async fn a_hang_before_the_head_says_nothing_and_sees_the_peer_leave() {
    let server = Scripted::start(Behaviour::HangBeforeHead).await;
    leave_after(&server, None).await;
    assert_eq!(raw::get(server.addr, "/health").await.status, 200, "health still lies");
}

#[tokio::test]
async fn a_hang_after_the_head_sends_the_head_alone() {
    let server = Scripted::start(Behaviour::HangAfterHead).await;
    let read = leave_after(&server, Some("\r\n\r\n")).await;
    assert!(read.ends_with(b"\r\n\r\n"), "nothing behind the head");
    assert!(raw::contains(&read, "text/event-stream"));
}

#[tokio::test]
async fn a_stall_keeps_the_connection_and_sees_the_peer_leave() {
    let server = Scripted::start(Behaviour::StallMidStream(2)).await;
    let second = expected_text(PROMPT, 2)[expected_text(PROMPT, 1).len()..].to_owned();
    let read = leave_after(&server, Some(&second)).await;
    assert!(!raw::contains(&read, "-2 "), "no third token");
}

#[tokio::test]
async fn the_first_token_can_be_late() {
    let late = Duration::from_millis(200);
    let start = Instant::now();
    let reply = streamed(Behaviour::SlowFirstToken(late)).await;
    assert!(start.elapsed() >= late);
    assert_eq!(reply.text(), expected_text(PROMPT, TOKENS));
}

#[tokio::test]
async fn cuts_come_after_n_tokens_with_fin_or_rst() {
    let fin = streamed(Behaviour::CutFin(3)).await;
    assert_eq!((fin.ended, fin.whole), (Ended::Closed, false));
    assert_eq!(fin.text(), expected_text(PROMPT, 3));
    assert_eq!(fin.finish(), None);

    let server = Scripted::start(Behaviour::CutRst(3)).await;
    let mut stream = raw::open_post(server.addr, CHAT, &ask(true)).await;
    let (_, ended) = raw::read_all(&mut stream).await;
    assert_eq!(ended, Ended::Reset);

    let piece = whole(Behaviour::CutFin(0)).await;
    assert!(!piece.whole && !piece.body.is_empty(), "half of the announced length");
}

#[tokio::test]
async fn ends_can_be_missing_one_by_one() {
    let unframed = streamed(Behaviour::MissingChunkEnd).await;
    assert_eq!((unframed.done(), unframed.whole), (true, false));

    let unfinished = streamed(Behaviour::CleanEndWithoutFinish).await;
    assert_eq!((unfinished.whole, unfinished.done(), unfinished.finish()), (true, false, None));
    assert_eq!(unfinished.text(), expected_text(PROMPT, TOKENS));

    let unmarked = streamed(Behaviour::NoDone).await;
    assert_eq!((unmarked.whole, unmarked.done()), (true, false));
    assert_eq!(unmarked.finish().as_deref(), Some("stop"));

    let empty = streamed(Behaviour::EndEmpty).await;
    assert_eq!((empty.status, empty.whole, empty.body.len()), (200, true, 0));
}

#[tokio::test]
async fn what_is_no_answer_comes_with_200() {
    let html = streamed(Behaviour::HtmlWith200).await;
    assert!(html.head.contains("text/html") && html.body.starts_with(b"<!DOCTYPE"));

    let error = streamed(Behaviour::ErrorObjectWith200).await;
    assert_eq!(error.status, 200);
    assert!(error.json()["error"].is_object());

    let broken = whole(Behaviour::BrokenJson200).await;
    assert!(broken.whole && serde_json::from_slice::<Value>(&broken.body).is_err());
}

#[tokio::test]
async fn errors_and_garbage_come_inside_streams() {
    let first = streamed(Behaviour::ErrorEventFirst).await;
    assert!(first.chunks()[0]["error"].is_object());
    assert!(first.done());

    let mid = streamed(Behaviour::ErrorEventMid(2)).await;
    assert_eq!(mid.text(), expected_text(PROMPT, 2));
    assert!(mid.chunks().last().unwrap()["error"].is_object());

    let garbage = streamed(Behaviour::GarbageEvent(4)).await;
    // The role and four tokens come before it.
    assert_eq!(garbage.events()[5], "{not json");
    assert_eq!(garbage.text(), expected_text(PROMPT, TOKENS), "the rest is good");
}

#[tokio::test]
async fn a_huge_line_is_one_event() {
    let reply = streamed(Behaviour::HugeLine).await;
    assert!(reply.events()[0].len() > HUGE_BYTES);
    assert_eq!(reply.text().len(), HUGE_BYTES);
}

#[tokio::test]
async fn characters_are_cut_at_every_byte_and_are_whole_together() {
    let server = Scripted::start(Behaviour::Utf8CutEveryByte).await;
    let mut stream = raw::open_post(server.addr, CHAT, &ask(true)).await;
    let (bytes, ended) = raw::read_all(&mut stream).await;
    let eacute = [b'1', b'\r', b'\n', 0xc3, b'\r', b'\n', b'1', b'\r', b'\n', 0xa9, b'\r', b'\n'];
    assert!(bytes.windows(eacute.len()).any(|w| w == eacute), "two bytes, two chunks");
    assert_eq!(Reply::parse(&bytes, ended).text(), expected_utf8(PROMPT));
}

#[tokio::test]
async fn usage_can_be_missing_negative_or_absurd() {
    assert_eq!(streamed(Behaviour::NoUsage).await.usage(), None);
    assert_eq!(whole(Behaviour::NoUsage).await.json()["usage"], Value::Null);
    let negative = streamed(Behaviour::NegativeUsage).await.usage().unwrap();
    assert_eq!(negative["completion_tokens"], -5);
    let absurd = whole(Behaviour::AbsurdUsage).await.json();
    assert_eq!(absurd["usage"]["completion_tokens"], i64::MAX);
}

#[tokio::test]
async fn one_that_never_stops_passes_its_limit_and_sees_the_peer_leave() {
    let server = Scripted::start(Behaviour::NeverStops).await;
    leave_after(&server, Some(&format!("-{} ", TOKENS * 5))).await;
}

#[tokio::test]
async fn a_second_answer_comes_right_behind_the_first() {
    for stream in [true, false] {
        let server = Scripted::start(Behaviour::SecondAnswer).await;
        let reply = raw::post(server.addr, CHAT, &ask(stream)).await;
        assert!(reply.whole);
        assert!(!raw::contains(&reply.body, SMUGGLED));
        assert!(reply.rest.starts_with(b"HTTP/1.1 200"));
        assert!(raw::contains(&reply.rest, SMUGGLED));
    }
}

#[tokio::test]
async fn a_trickled_head_never_ends() {
    let server = Scripted::start(Behaviour::TrickleHeaders).await;
    let read = leave_after(&server, Some("X-Padding: aaaa")).await;
    assert!(!raw::contains(&read, "\r\n\r\n"));
}

#[tokio::test]
async fn connections_are_kept_and_requests_are_remembered() {
    let server = Scripted::start(Behaviour::ok()).await;
    let mut stream = TcpStream::connect(server.addr).await.unwrap();
    for _ in 0..2 {
        raw::send_post(&mut stream, CHAT, &ask(true), "keep-alive").await;
        raw::read_until(&mut stream, "0\r\n\r\n").await;
    }
    server.behave(Behaviour::status(500));
    raw::send_post(&mut stream, CHAT, &ask(false), "close").await;
    let (bytes, ended) = raw::read_all(&mut stream).await;
    assert_eq!(Reply::parse(&bytes, ended).status, 500);
    assert_eq!((server.hits.requests(), server.hits.finished()), (3, 3));
    assert_eq!(server.hits.most_open(), 1);
    let last = server.hits.seen().pop().unwrap();
    assert!(last.head.starts_with("POST /v1/chat/completions"));
    assert_eq!(serde_json::from_slice::<Value>(&last.body).unwrap(), ask(false));
}

#[tokio::test]
async fn a_chunked_request_is_read_too() {
    use tokio::io::AsyncWriteExt;
    let server = Scripted::start(Behaviour::ok()).await;
    let mut stream = TcpStream::connect(server.addr).await.unwrap();
    let request = "POST /v1/completions HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\
                   Transfer-Encoding: chunked\r\n\r\n5\r\n{\"pro\r\n9\r\nmpt\":\"a\"}\r\n0\r\n\r\n";
    stream.write_all(request.as_bytes()).await.unwrap();
    let (bytes, ended) = raw::read_all(&mut stream).await;
    let reply = Reply::parse(&bytes, ended).json();
    assert_eq!(reply["choices"][0]["text"], expected_text("a", TOKENS));
}

#[tokio::test]
async fn the_small_pages_tell_what_the_script_says() {
    let (behaviour, model) = (Behaviour::HangBeforeHead, "tiny".to_owned());
    let server = Scripted::with(Script { behaviour, model, kv_tokens: Some(4096) }).await;
    assert_eq!(raw::get(server.addr, "/health").await.status, 200);
    assert_eq!(raw::get(server.addr, "/v1/models").await.json()["data"][0]["id"], "tiny");
    let page = raw::get(server.addr, "/metrics").await;
    assert!(raw::contains(&page.body, r#"kv_cache_size_tokens="4096""#));
    assert_eq!(server.hits.requests(), 0, "only generating requests count");
}
