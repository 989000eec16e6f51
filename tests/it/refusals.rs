//! What callers get wrong is refused here, with a reason, and no server ever sees it.

use crate::support::{
    house::{CHAT, House, Plan, chat, key, request},
    raw::{self, PATIENCE, Reply},
    scripted::{Behaviour, Scripted, TOKENS, expected_text},
};
use serde_json::{Value, json};
use std::time::Duration;
use tokio::{
    io::AsyncWriteExt,
    net::TcpStream,
    time::{Instant, interval},
};

const MESSAGES: &str = r#""messages":[{"role":"user","content":"hi"}]"#;
const LISTEN: &str = "head_limit_s = 0.4\nbody_limit_s = 0.4";

async fn house() -> (House, Scripted) {
    let server = Scripted::start(Behaviour::ok()).await;
    let plan = Plan::new()
        .listen(LISTEN)
        .limits("body_max_mib = 1\nevent_max_mib = 1")
        .tenant("elsewhere", "models = [\"other\"]")
        .tenant("slow", "requests_per_minute = 1")
        .tenant("small", "tokens_per_minute = 10")
        .server("s", server.addr, "");
    (House::open(&plan).await, server)
}

/// A chat request with more in its body.
fn more(rest: &str) -> Vec<u8> {
    body(&format!(r#"{{"model":"scripted",{MESSAGES}{rest}}}"#))
}

fn body(text: &str) -> Vec<u8> {
    request("a", CHAT, "", text)
}

fn good() -> String {
    chat("scripted", "hi", false).to_string()
}

fn bytes(text: String) -> Vec<u8> {
    text.into_bytes()
}

/// A whole request with these lines for headers; a key and a length only where they say so.
fn with(lines: &str, body: &str) -> Vec<u8> {
    bytes(format!("POST {CHAT} HTTP/1.1\r\nHost: berthd\r\n{lines}\r\n{body}"))
}

fn keyed(lines: &str, body: &str) -> Vec<u8> {
    with(&format!("Authorization: Bearer {}\r\n{lines}", key("a")), body)
}

type Case = (&'static str, Vec<u8>, u16, &'static str);

fn bodies() -> Vec<Case> {
    let mut text = body("{\"model\":\"scripted\",\"x\":\"??\"}");
    let end = text.len();
    text[end - 4..end - 2].copy_from_slice(&[0xc3, 0x28]);
    let deep = format!("{}{}", "[".repeat(5000), "]".repeat(5000));
    let roles = r#"{"model":"scripted","messages":[{"content":"hi"}]}"#;
    let link = r#"{"model":"scripted","messages":[{"role":"user","content":[{"type":"image_url","image_url":{"url":"http://169.254.169.254/"}}]}]}"#;
    vec![
        ("empty body", body(""), 400, "malformed_json"),
        ("half a body", body("{\"model\":"), 400, "malformed_json"),
        ("two bodies", body("{}{}"), 400, "malformed_json"),
        ("not an object", body("[]"), 400, "invalid_type"),
        ("too deep", more(&format!(",\"x\":{deep}")), 400, "malformed_json"),
        ("no UTF-8", text, 400, "invalid_utf8"),
        ("key twice", more(r#","model":"other""#), 400, "duplicate_key"),
        ("key twice, escaped", more(r#","mod\u0065l":"other""#), 400, "duplicate_key"),
        ("key twice, inside", more(r#","metadata":{"a":1,"a":2}"#), 400, "duplicate_key"),
        ("key in capitals", more(r#","Max_Tokens":5"#), 400, "duplicate_key"),
        ("steering in capitals", more(r#","Priority":5"#), 400, "duplicate_key"),
        ("no model", body(&format!("{{{MESSAGES}}}")), 400, "missing_field"),
        ("no messages", body(r#"{"model":"scripted"}"#), 400, "missing_field"),
        ("no role", body(roles), 400, "missing_field"),
        ("messages a text", body(r#"{"model":"scripted","messages":"hi"}"#), 400, "invalid_type"),
        ("no message", body(r#"{"model":"scripted","messages":[]}"#), 400, "value_out_of_range"),
        ("stream a text", more(r#","stream":"yes""#), 400, "invalid_type"),
        ("temperature a text", more(r#","temperature":"hot""#), 400, "invalid_type"),
        ("temperature 3", more(r#","temperature":3"#), 400, "value_out_of_range"),
        ("top_p 1.5", more(r#","top_p":1.5"#), 400, "value_out_of_range"),
        ("max_tokens 0", more(r#","max_tokens":0"#), 400, "value_out_of_range"),
        ("max_tokens -1", more(r#","max_tokens":-1"#), 400, "value_out_of_range"),
        ("max_tokens 1.5", more(r#","max_tokens":1.5"#), 400, "invalid_type"),
        ("max_tokens 1e30", more(r#","max_tokens":1e30"#), 400, "invalid_type"),
        ("n 9", more(r#","n":9"#), 400, "value_out_of_range"),
        ("options, no stream", more(r#","stream_options":{}"#), 400, "value_out_of_range"),
        ("a link to fetch", body(link), 400, "value_out_of_range"),
        ("too long", more(r#","max_tokens":32768"#), 400, "context_length_exceeded"),
        ("unknown model", body(&good().replace("scripted", "elsewhere")), 404, "model_not_found"),
    ]
}

fn heads() -> Vec<Case> {
    let good = good();
    let length = format!("Content-Length: {}\r\n", good.len());
    let plain = |path: &str, method: &str| {
        let key = key("a");
        bytes(format!(
            "{method} {path} HTTP/1.1\r\nHost: berthd\r\nAuthorization: Bearer {key}\r\nConnection: close\r\n\r\n"
        ))
    };
    let close = format!("{length}Connection: close\r\n");
    let auth = |line: &str| with(&format!("Authorization: {line}\r\n{close}"), &good);
    let two =
        format!("Authorization: Bearer {0}\r\nAuthorization: Bearer {0}\r\n{close}", key("a"));
    vec![
        ("no key", with(&close, &good), 401, "missing_api_key"),
        ("wrong key", auth("Bearer guessed"), 401, "invalid_api_key"),
        ("other scheme", auth(&format!("Basic {}", key("a"))), 401, "missing_api_key"),
        ("two keys", with(&two, &good), 401, "missing_api_key"),
        ("key of another", request("elsewhere", CHAT, "", &good), 403, "model_not_allowed"),
        (
            "wrong media type",
            keyed(&format!("Content-Type: text/plain\r\n{close}"), &good),
            415,
            "unsupported_media_type",
        ),
        (
            "compressed",
            keyed(&format!("Content-Encoding: gzip\r\n{close}"), &good),
            415,
            "unsupported_media_type",
        ),
        ("unknown path", request("a", "/v1/chat", "", &good), 404, "unknown_path"),
        ("path that climbs", request("a", "/v1/../metrics", "", &good), 404, "unknown_path"),
        ("the server's own path", request("a", "/detokenize", "", &good), 404, "unknown_path"),
        ("unknown model by path", plain("/v1/models/nothing", "GET"), 404, "model_not_found"),
        ("GET a chat", plain(CHAT, "GET"), 405, "method_not_allowed"),
        ("DELETE the models", plain("/v1/models", "DELETE"), 405, "method_not_allowed"),
        (
            "unknown tier",
            request("a", CHAT, "X-Berthd-Tier: now\r\n", &good),
            400,
            "value_out_of_range",
        ),
        (
            "deadline 0",
            request("a", CHAT, "X-Berthd-Deadline-Ms: 0\r\n", &good),
            400,
            "value_out_of_range",
        ),
        (
            "token rate",
            request("small", CHAT, "", &good.replace("hi", &"word ".repeat(50))),
            200,
            "",
        ),
        ("token rate again", request("small", CHAT, "", &good), 429, "token_rate_exceeded"),
    ]
}

fn framings() -> Vec<Case> {
    let good = good();
    let n = good.len();
    let chunked = format!("{n:x}\r\n{good}\r\n0\r\n\r\n");
    let length = format!("Content-Length: {n}\r\n");
    let absolute =
        format!("POST http://other{CHAT} HTTP/1.1\r\nHost: berthd\r\n{length}\r\n{good}");
    let no_host = format!("POST {CHAT} HTTP/1.1\r\n{length}\r\n{good}");
    let bare = format!("POST {CHAT} HTTP/1.1\nHost: berthd\n{}\n{good}", length.replace('\r', ""));
    let case = |name, bytes| (name, bytes, 400, "ambiguous_framing");
    vec![
        case(
            "length and chunked",
            keyed(&format!("{length}Transfer-Encoding: chunked\r\n"), &chunked),
        ),
        case(
            "chunked and length",
            keyed(&format!("Transfer-Encoding: chunked\r\n{length}"), &chunked),
        ),
        case("length twice", keyed(&format!("{length}{length}"), &good)),
        case("two lengths", keyed(&format!("{length}Content-Length: 0\r\n"), &good)),
        case("lengths in a list", keyed(&format!("Content-Length: {n}, {n}\r\n"), &good)),
        case("length +n", keyed(&format!("Content-Length: +{n}\r\n"), &good)),
        case("length beyond u64", keyed("Content-Length: 99999999999999999999\r\n", &good)),
        case("other coding", keyed("Transfer-Encoding: gzip, chunked\r\n", &chunked)),
        case(
            "chunked twice",
            keyed("Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n", &chunked),
        ),
        case("chunked, odd spelling", keyed("Transfer-Encoding: chunked, identity\r\n", &chunked)),
        case("folded line", keyed(&format!("X-A: b\r\n c\r\n{length}"), &good)),
        case("space before colon", keyed(&format!("Content-Length : {n}\r\n"), &good)),
        case("no colon", keyed(&format!("X-A\r\n{length}"), &good)),
        case("bare LF", bytes(bare)),
        case("bare CR", keyed(&format!("X-A: b\rX-B: c\r\n{length}"), &good)),
        case("NUL", keyed(&format!("X-A: \0\r\n{length}"), &good)),
        case("two hosts", keyed(&format!("Host: other\r\n{length}"), &good)),
        case("no host", bytes(no_host)),
        case("absolute target", bytes(absolute)),
        case("a tunnel", bytes("CONNECT other:80 HTTP/1.1\r\nHost: other\r\n\r\n".to_owned())),
        case("another protocol", bytes("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_owned())),
        case("head of 70 KiB", keyed(&format!("X-A: {}\r\n{length}", "a".repeat(70 << 10)), &good)),
    ]
}

fn check(reply: &Reply, name: &str, status: u16, code: &str) {
    let told = format!("{name}: {}\n{}", reply.head, String::from_utf8_lossy(&reply.body));
    assert_eq!(reply.status, status, "{told}");
    assert!(reply.whole && reply.rest.is_empty(), "{told}");
    if status == 200 {
        return;
    }
    let error = &reply.json()["error"];
    assert_eq!(error["code"], code, "{told}");
    assert!(error["message"].as_str().unwrap().len() > 10, "{told}");
    assert_eq!(error["request_id"], reply.header("x-request-id"), "{told}");
    assert!(!told.contains(&key("a")), "no key is repeated: {told}");
    let header = match status {
        401 => reply.header("www-authenticate") == "Bearer",
        405 => ["GET", "POST"].contains(&reply.header("allow")),
        429 => reply.header("retry-after").parse::<u64>().is_ok(),
        _ => true,
    };
    assert!(header, "{told}");
}

#[tokio::test]
async fn every_mistake_has_its_answer_and_no_server_sees_any() {
    let (house, server) = house().await;
    for (name, bytes, status, code) in bodies().into_iter().chain(heads()).chain(framings()) {
        let reply = house.send(&bytes).await;
        check(&reply, name, status, code);
        println!("{name:<24} {status} {code}");
    }
    assert_eq!(server.hits.requests(), 1, "only the one that was no mistake");
    house.close().await;
}

#[tokio::test]
async fn a_misspelt_model_is_recognised() {
    let (house, server) = house().await;
    let message = |reply: Reply| reply.json()["error"]["message"].as_str().unwrap().to_owned();
    let near = message(house.ask(&chat("Scriptd", "hi", false)).await);
    assert!(near.contains("Did you mean 'scripted'?"), "{near}");
    let far = message(house.ask(&chat("gpt-4o", "hi", false)).await);
    assert!(far.contains("/v1/models") && !far.contains("scripted"), "{far}");
    // A name that the key may not use is not given away.
    let hidden = message(house.ask_as("elsewhere", "", &chat("scriptd", "hi", false)).await);
    assert!(!hidden.contains("scripted"), "{hidden}");
    assert_eq!(server.hits.requests(), 0);
    house.close().await;
}

#[tokio::test]
async fn rates_are_kept() {
    let (house, server) = house().await;
    assert_eq!(house.ask_as("slow", "", &chat("scripted", "one", false)).await.status, 200);
    let reply = house.ask_as("slow", "", &chat("scripted", "two", true)).await;
    check(&reply, "request rate", 429, "request_rate_exceeded");
    let retry: u64 = reply.header("retry-after").parse().unwrap();
    assert!((30..=60).contains(&retry), "one a minute: {retry}");
    assert_eq!(server.hits.requests(), 1);
    house.close().await;
}

#[tokio::test]
async fn a_body_that_is_too_large_is_refused_however_it_is_framed() {
    let (house, server) = house().await;
    let big = good().replace("hi", &"x".repeat(2 << 20));
    let reply = house.send(&request("a", CHAT, "", &big)).await;
    check(&reply, "length", 413, "request_too_large");
    let piece = format!("{:x}\r\n{}\r\n", 1 << 16, "x".repeat(1 << 16));
    let chunked =
        keyed("Transfer-Encoding: chunked\r\n", &format!("{}0\r\n\r\n", piece.repeat(32)));
    check(&house.send(&chunked).await, "chunked", 413, "request_too_large");
    assert_eq!(server.hits.requests(), 0);
    house.close().await;
}

#[tokio::test]
async fn a_chunked_body_is_read_like_any_other() {
    let (house, server) = house().await;
    let good = good();
    let (one, two) = good.split_at(10);
    let chunked =
        format!("{:x};a=b\r\n{one}\r\n{:X}\r\n{two}\r\n0\r\nX-T: 1\r\n\r\n", one.len(), two.len());
    let reply =
        house.send(&keyed("Connection: close\r\nTransfer-Encoding: chunked\r\n", &chunked)).await;
    check(&reply, "chunked", 200, "");
    assert_eq!(server.hits.requests(), 1);
    // Broken inside: it never becomes a request.
    for broken in
        ["zz\r\n", "5\r\nabcdefgh", "-1\r\n\r\n", "5\nabcde\r\n0\r\n\r\n", "ffffffffffffffffff\r\n"]
    {
        let mut caller = TcpStream::connect(house.data).await.unwrap();
        let head = keyed("Connection: close\r\nTransfer-Encoding: chunked\r\n", broken);
        caller.write_all(&head).await.unwrap();
        let (answer, _) = raw::read_all(&mut caller).await;
        assert!(answer.is_empty() || answer.starts_with(b"HTTP/1.1 400"), "{broken:?}");
    }
    assert_eq!(server.hits.requests(), 1);
    house.close().await;
}

#[tokio::test]
async fn slow_heads_and_slow_bodies_are_given_up() {
    let (house, server) = house().await;
    let whole = request("a", CHAT, "", &good());
    let split = whole.windows(4).position(|four| four == b"\r\n\r\n").unwrap() + 4;
    for (name, sent) in
        [("head", 40), ("head without its end", split - 2), ("body", split), ("body", split + 5)]
    {
        let began = Instant::now();
        let reply = house.send(&whole[..sent]).await;
        check(&reply, name, 408, "request_timeout");
        let took = began.elapsed();
        assert!(
            took >= Duration::from_millis(350) && took < Duration::from_secs(3),
            "{name}: {took:?}"
        );
    }
    // One byte at a time is as slow.
    let (mut read, mut write) = TcpStream::connect(house.data).await.unwrap().into_split();
    let drip = async {
        let mut beat = interval(Duration::from_millis(10));
        for byte in whole.iter().cycle().filter(|byte| !b"\r\n".contains(*byte)) {
            beat.tick().await;
            if write.write_all(&[*byte]).await.is_err() {
                break;
            }
        }
    };
    let mut answer = Vec::new();
    tokio::select! {
        () = drip => {}
        _ = tokio::io::AsyncReadExt::read_to_end(&mut read, &mut answer) => {}
        () = tokio::time::sleep(PATIENCE) => panic!("dripping is not given up"),
    }
    assert!(answer.starts_with(b"HTTP/1.1 408"), "{}", String::from_utf8_lossy(&answer));
    assert_eq!(server.hits.requests(), 0);
    house.close().await;
}

/// What stands behind a good request on its connection is refused by itself.
#[tokio::test]
async fn a_request_smuggled_behind_another_is_refused() {
    let (house, server) = house().await;
    let good = good();
    let first = keyed(&format!("Content-Length: {}\r\n", good.len()), &good);
    let second = keyed(
        &format!("Content-Length: {}\r\nTransfer-Encoding: chunked\r\n", good.len()),
        &format!("0\r\n\r\n{good}"),
    );
    let mut caller = TcpStream::connect(house.data).await.unwrap();
    caller.write_all(&first).await.unwrap();
    let answer = raw::read_until(&mut caller, "\"usage\"").await;
    assert!(answer.starts_with(b"HTTP/1.1 200"));
    caller.write_all(&second).await.unwrap();
    let (rest, _) = raw::read_all(&mut caller).await;
    assert!(raw::contains(&rest, "HTTP/1.1 400"), "{}", String::from_utf8_lossy(&rest));
    assert_eq!(server.hits.requests(), 1);
    // Both in one packet: neither is read.
    let reply = house.send(&[first, second].concat()).await;
    check(&reply, "both at once", 400, "ambiguous_framing");
    assert_eq!(server.hits.requests(), 1);
    house.close().await;
}

/// Fields that steer a server, with a value that would show.
const STEERING: [&str; 14] = [
    "priority",
    "cache_salt",
    "chat_template",
    "kv_transfer_params",
    "session_id",
    "request_id",
    "lora_path",
    "data_parallel_rank",
    "bootstrap_host",
    "custom_logit_processor",
    "extra_body",
    "id_slot",
    "prompt_embeds",
    "vllm_xargs",
];

#[tokio::test]
async fn what_steers_a_server_never_reaches_it() {
    let folder = tempfile::TempDir::new().unwrap();
    let file = folder.path().join("key");
    std::fs::write(&file, "key-of-the-server\n").unwrap();
    let server = Scripted::start(Behaviour::ok()).await;
    let rest = format!("api_key_file = \"{}\"", file.display());
    let house = House::open(&Plan::new().server("s", server.addr, &rest)).await;
    let headers = "X-Conversation-Id: steer-me\r\nCookie: steer-me\r\nX-Request-Id: steer-me\r\n\
                   X-Forwarded-For: steer-me\r\nX-Session-Id: steer-me\r\nX-Data-Parallel-Rank: 3\r\n\
                   Traceparent: steer-me\r\nX-Api-Key: steer-me\r\nForwarded: steer-me\r\n";
    let mut body = chat("scripted", "hi", false);
    for field in STEERING {
        body[field] = json!({ "steer-me": field });
    }
    body["user"] = json!("kept");
    body["unknown_field"] = json!({ "kept": [1, 2.50, "x"] });
    body["temperature"] = json!(0.5);
    let reply = house.ask_as("a", headers, &body).await;
    assert_eq!(reply.status, 200);
    assert_eq!(reply.json()["choices"][0]["message"]["content"], expected_text("hi", TOKENS));
    assert_ne!(reply.header("x-request-id"), "steer-me");

    let seen = server.hits.seen().remove(0);
    let head = seen.head.to_lowercase();
    let names: Vec<&str> = head
        .lines()
        .skip(1)
        .filter_map(|line| line.split_once(':'))
        .map(|(name, _)| name)
        .collect();
    let allowed = [
        "host",
        "user-agent",
        "authorization",
        "content-type",
        "accept",
        "x-request-id",
        "content-length",
    ];
    assert!(names.iter().all(|name| allowed.contains(name)), "{head}");
    assert!(!head.contains("steer-me") && !head.contains(&key("a")), "{head}");
    assert!(head.contains("authorization: bearer key-of-the-server"), "{head}");
    assert!(head.contains(&format!("x-request-id: {}", reply.header("x-request-id"))), "{head}");
    let got: Value = serde_json::from_slice(&seen.body).unwrap();
    let mut fields: Vec<&String> = got.as_object().unwrap().keys().collect();
    fields.sort();
    assert_eq!(fields, ["messages", "model", "temperature", "unknown_field", "user"]);
    for kept in ["messages", "temperature", "unknown_field", "user"] {
        assert_eq!(got[kept], body[kept]);
    }
    house.close().await;
}
