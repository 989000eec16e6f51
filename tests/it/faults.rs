//! Faulty servers: a caller gets a whole answer or a typed error, never silence, and nobody else notices.

use crate::support::{
    house::{House, Plan, chat},
    raw::Reply,
    scripted::{
        Behaviour::{self, *},
        SMUGGLED, Script, Scripted, TOKENS, expected_text, expected_utf8,
    },
};
use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::SeqCst},
    },
    time::Duration,
};
use tokio::{
    sync::Semaphore,
    task::JoinSet,
    time::{Instant, sleep},
};

/// Limits of these tests. Long enough for a machine that builds something else meanwhile.
const RELAY: &str = "first_token_limit_s = 3\nidle_limit_s = 3\nanswer_limit_s = 3\nheartbeat_s = 0.2\nconnect_limit_s = 1";
/// Cases under way together.
const TOGETHER: u32 = 24;
/// Between two requests of the bystander.
const BYSTANDER_PAUSE: Duration = Duration::from_millis(3);

/// What a caller must get.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Expect {
    /// The faulty server's own answer: what it does is no fault for this form of request.
    First,
    /// The good server's answer.
    Second,
    /// So many tokens of the faulty server's, then an error.
    Torn(usize),
    /// The faulty server's answer, ended by us at so many tokens.
    Cut(usize),
}
use Expect::{Cut, First, Second, Torn};

struct Case {
    name: &'static str,
    behaviour: Behaviour,
    streamed: Expect,
    whole: Expect,
}

fn case(name: &'static str, behaviour: Behaviour, streamed: Expect, whole: Expect) -> Case {
    Case { name, behaviour, streamed, whole }
}

/// Every way to fail, and what becomes of it.
fn cases() -> Vec<Case> {
    let busy = Status { code: 429, retry_after: Some(7), body: String::new() };
    vec![
        case("never up", RefuseConnection, Second, Second),
        case("dies once it is known", Behaviour::ok(), Second, Second),
        case("status 500", Behaviour::status(500), Second, Second),
        case("status 429, Retry-After", busy, Second, Second),
        case("status 503", Behaviour::status(503), Second, Second),
        case("status 401", Behaviour::status(401), Second, Second),
        case("status 404", Behaviour::status(404), Second, Second),
        case("hangs before the head", HangBeforeHead, Second, Second),
        case("hangs after the head", HangAfterHead, Second, Second),
        case("head never ends", TrickleHeaders, Second, Second),
        case("first token late", SlowFirstToken(Duration::from_millis(300)), First, First),
        case("first token too late", SlowFirstToken(Duration::from_secs(9)), Second, Second),
        case("stalls mid-stream", StallMidStream(3), Torn(3), Second),
        case("stalls before content", StallMidStream(0), Second, Second),
        case("FIN mid-stream", CutFin(3), Torn(3), Second),
        case("FIN before content", CutFin(0), Second, Second),
        case("RST mid-stream", CutRst(3), Torn(3), Second),
        case("last chunk missing", MissingChunkEnd, First, Second),
        case("clean end, no finish", CleanEndWithoutFinish, Torn(TOKENS), Second),
        case("empty answer", EndEmpty, Second, Second),
        case("web page, 200", HtmlWith200, Second, Second),
        case("error object, 200", ErrorObjectWith200, Second, Second),
        case("error event first", ErrorEventFirst, Second, Second),
        case("error event mid-stream", ErrorEventMid(3), Torn(3), Second),
        case("broken JSON, 200", BrokenJson200, Second, Second),
        case("garbage event first", GarbageEvent(0), Second, First),
        case("garbage event mid-stream", GarbageEvent(3), Torn(3), First),
        case("10 MB line", HugeLine, Second, Second),
        case("UTF-8 cut at every byte", Utf8CutEveryByte, First, First),
        case("no usage", NoUsage, First, First),
        case("negative usage", NegativeUsage, First, First),
        case("absurd usage", AbsurdUsage, First, First),
        case("never stops", NeverStops, Cut(LIMIT), Second),
        case("ignores max_tokens", TooLong(200), Cut(LIMIT), Cut(LIMIT)),
        case("second answer unasked", SecondAnswer, First, First),
        case("no [DONE]", NoDone, First, First),
    ]
}

/// `max_tokens` of the cases that do not keep it.
const LIMIT: usize = 20;

/// The two servers of one case.
struct Pair {
    case: Case,
    stream: bool,
    model: String,
    /// `None` once it has died.
    faulty: Option<Scripted>,
    good: Scripted,
}

async fn scripted(behaviour: Behaviour, model: &str) -> Scripted {
    Scripted::with(Script { behaviour, model: model.to_owned(), kv_tokens: None }).await
}

/// One house for all cases, each with its model; and a healthy model beside them.
async fn furnish() -> (House, Vec<Pair>, Scripted) {
    let mut plan = Plan::new().relay(RELAY).tenant("bystander", "").limits("event_max_mib = 1");
    let mut pairs = Vec::new();
    for stream in [true, false] {
        for case in cases() {
            let number = pairs.len();
            let model = format!("model-{number}");
            let faulty = scripted(case.behaviour.clone(), &model).await;
            let good = scripted(Behaviour::ok(), &model).await;
            // Equally loaded servers are taken in the order in which they are configured.
            plan = plan
                .server(&format!("faulty-{number}"), faulty.addr, &format!("models = [{model:?}]"))
                .server(&format!("good-{number}"), good.addr, "");
            pairs.push(Pair { case, stream, model, faulty: Some(faulty), good });
        }
    }
    let healthy = scripted(Behaviour::ok(), "healthy").await;
    let house = House::open(&plan.server("healthy", healthy.addr, "")).await;
    for pair in pairs.iter_mut().filter(|pair| pair.case.name.starts_with("dies")) {
        pair.faulty = None;
    }
    (house, pairs, healthy)
}

/// Runs one case and gives its line of the table.
async fn run(house: &House, pair: Pair) -> String {
    let Pair { case, stream, model, faulty, good } = pair;
    let prompt = format!("Prompt of {model}");
    let expect = if stream { case.streamed } else { case.whole };
    let mut body = chat(&model, &prompt, stream);
    if case.whole == Cut(LIMIT) || case.streamed == Cut(LIMIT) {
        body["max_tokens"] = LIMIT.into();
    }
    let began = Instant::now();
    let reply = house.ask(&body).await;
    let took = began.elapsed();
    let cause = house.causes(&model.replace("model", "faulty"));
    let told = format!("{} (stream: {stream}) {took:?} {cause}: {}", case.name, show(&reply));
    assert!(reply.whole, "the framing always ends: {told}");
    let reached = faulty.map_or(0, |faulty| faulty.hits.requests());
    let attempts = reached + good.hits.requests();
    assert!(attempts <= 3, "{attempts} attempts: {told}");
    assert_eq!(good.hits.requests(), u64::from(expect == Second), "{told}");
    let outcome = match expect {
        Torn(tokens) => {
            assert_torn(&reply, &expected_text(&prompt, tokens), &told);
            format!("typed error after {tokens} tokens")
        }
        First | Second | Cut(_) => {
            let utf8 = matches!(case.behaviour, Utf8CutEveryByte);
            let text = match expect {
                Cut(tokens) => expected_text(&prompt, tokens),
                _ if utf8 => expected_utf8(&prompt),
                _ => expected_text(&prompt, TOKENS),
            };
            assert_answered(&reply, stream, &text, matches!(expect, Cut(_)), &told);
            match expect {
                Second => "answered whole by the second".to_owned(),
                Cut(_) => "answered whole up to max_tokens".to_owned(),
                _ => "answered whole by the first".to_owned(),
            }
        }
    };
    let form = if stream { "stream" } else { "whole" };
    format!(
        "{:<26} {form:<7} {outcome:<32} {attempts:>8} {:>6}  {cause}",
        case.name,
        took.as_millis()
    )
}

fn show(reply: &Reply) -> String {
    let body = String::from_utf8_lossy(&reply.body);
    format!("{}\n{}", reply.head, body.chars().take(3000).collect::<String>())
}

/// The exact text, a finish reason, and no sign of any error.
fn assert_answered(reply: &Reply, stream: bool, text: &str, cut: bool, told: &str) {
    assert_eq!(reply.status, 200, "{told}");
    let (got, finish) = if stream {
        assert!(reply.chunks().iter().all(|chunk| chunk["error"].is_null()), "{told}");
        assert!(reply.done(), "{told}");
        (reply.text(), reply.finish().unwrap_or_default())
    } else {
        let body = reply.json();
        assert!(body["error"].is_null(), "{told}");
        let choice = &body["choices"][0];
        let text = choice["message"]["content"].as_str().unwrap_or_default();
        (text.to_owned(), choice["finish_reason"].as_str().unwrap_or_default().to_owned())
    };
    if cut && !stream {
        // Without the model's tokenizer a text is cut by its length, never longer than the limit.
        assert!(text.starts_with(&got) && !got.is_empty(), "{told}");
    } else {
        assert_eq!(got, text, "{told}");
    }
    if cut {
        assert_eq!(finish, "length", "{told}");
    }
    assert!(!finish.is_empty(), "{told}");
}

/// What had come, then an error as the last event, and no end mark that would make it look whole.
fn assert_torn(reply: &Reply, prefix: &str, told: &str) {
    assert_eq!((reply.status, reply.text().as_str()), (200, prefix), "{told}");
    let last = reply.chunks().pop().unwrap();
    assert_eq!(last["error"]["code"], "answer_interrupted", "{told}");
    assert_eq!(last["error"]["type"], "server_error", "{told}");
    assert!(!reply.done() && reply.finish().is_none_or(|finish| finish.is_empty()), "{told}");
    assert!(reply.events().last().unwrap().contains("\"error\""), "{told}");
}

/// Good requests to a healthy model, one after another; how many, all answered whole.
async fn bystand(house: &House, over: &AtomicBool) -> (u64, Duration) {
    let (mut count, mut worst) = (0, Duration::ZERO);
    while !over.load(SeqCst) {
        let (stream, prompt) = (count % 2 == 0, format!("bystander {count}"));
        let began = Instant::now();
        let reply = house.ask_as("bystander", "", &chat("healthy", &prompt, stream)).await;
        worst = worst.max(began.elapsed());
        assert_answered(&reply, stream, &expected_text(&prompt, TOKENS), false, &show(&reply));
        assert_eq!(reply.done(), stream);
        count += 1;
        sleep(BYSTANDER_PAUSE).await;
    }
    (count, worst)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_fault_is_answered_whole_or_with_a_typed_error() {
    let (house, pairs, healthy) = furnish().await;
    let house = Arc::new(house);
    let over = Arc::new(AtomicBool::new(false));
    let mut bystander = JoinSet::new();
    let (inside, until) = (Arc::clone(&house), Arc::clone(&over));
    bystander.spawn(async move { bystand(&inside, &until).await });
    let places = Arc::new(Semaphore::new(TOGETHER as usize));
    let mut running = JoinSet::new();
    for (number, pair) in pairs.into_iter().enumerate() {
        let (house, places) = (Arc::clone(&house), Arc::clone(&places));
        running.spawn(async move {
            // What takes a core for long in a build for tests has its limits to itself.
            let heavy = matches!(pair.case.behaviour, HugeLine | Utf8CutEveryByte);
            let _place = places.acquire_many_owned(if heavy { TOGETHER } else { 1 }).await;
            (number, run(&house, pair).await)
        });
    }
    let mut lines = Vec::new();
    while let Some(line) = running.join_next().await {
        lines.push(line.unwrap());
    }
    lines.sort_unstable();
    over.store(true, SeqCst);
    let (count, worst) = bystander.join_next().await.unwrap().unwrap();
    println!("{:<26} {:<7} {:<32} {:>8} {:>6}  cause", "case", "form", "outcome", "attempts", "ms");
    for (_, line) in lines {
        println!("{line}");
    }
    println!("bystander: {count} of {count} answered whole, slowest {} ms", worst.as_millis());
    assert!(count > 10, "the bystander was there all the while");
    assert_eq!(healthy.hits.requests(), count);
    Arc::into_inner(house).unwrap().close().await;
}

#[tokio::test]
async fn no_request_is_tried_more_than_three_times() {
    let mut plan = Plan::new().relay(RELAY);
    let mut servers = Vec::new();
    for number in 0..5 {
        let server = Scripted::start(Behaviour::status(500)).await;
        plan = plan.server(&format!("s{number}"), server.addr, "");
        servers.push(server);
    }
    let house = House::open(&plan).await;
    for stream in [true, false] {
        let before: u64 = servers.iter().map(|server| server.hits.requests()).sum();
        let reply = house.ask(&chat("scripted", "hi", stream)).await;
        let after: u64 = servers.iter().map(|server| server.hits.requests()).sum();
        assert_eq!((reply.status, after - before), (502, 3));
        assert_eq!(reply.header("x-berthd-attempts"), "3");
    }
    house.close().await;
}

/// A faulty server that is alone: its name, status, code, and a part of the message.
type Alone = (&'static str, Behaviour, u16, &'static str, &'static str);

fn alone() -> Vec<Alone> {
    let status = Behaviour::status;
    let busy = |code| Status { code, retry_after: Some(7), body: String::new() };
    let said = |text: &str| Status { code: 400, retry_after: None, body: text.to_owned() };
    vec![
        ("429", busy(429), 503, "server_overloaded", "overloaded"),
        ("503", busy(503), 503, "server_overloaded", "overloaded"),
        ("500", status(500), 502, "server_failed", "status 500"),
        ("401 is never the caller's", status(401), 502, "server_failed", "configuration"),
        ("403 is never the caller's", status(403), 502, "server_failed", "configuration"),
        ("402 is never the caller's", status(402), 502, "server_failed", "configuration"),
        ("404 is never the caller's", status(404), 502, "server_failed", "does not offer"),
        ("424 is the engine's failure", status(424), 502, "server_failed", "status 424"),
        ("400", status(400), 400, "rejected_by_server", "scripted 400"),
        ("422", status(422), 422, "rejected_by_server", "scripted 422"),
        ("400, flat", said(r#"{"message":"too hot"}"#), 400, "rejected_by_server", "too hot"),
        ("400, detail", said(r#"{"detail":"too hot"}"#), 400, "rejected_by_server", "too hot"),
        ("400, no JSON", said("<html>"), 400, "rejected_by_server", "400"),
        ("dies", Behaviour::ok(), 502, "server_failed", "cannot be reached"),
        ("hangs before the head", HangBeforeHead, 504, "server_timeout", "within 3 s"),
        ("hangs after the head", HangAfterHead, 504, "server_timeout", "within 3 s"),
        ("web page", HtmlWith200, 502, "server_failed", "text/html"),
        ("error object", ErrorObjectWith200, 502, "server_failed", ""),
        ("broken JSON", BrokenJson200, 502, "server_failed", ""),
        ("empty", EndEmpty, 502, "server_failed", ""),
        ("FIN before content", CutFin(0), 502, "server_failed", ""),
        ("RST before content", CutRst(0), 502, "server_failed", ""),
        ("error event first", ErrorEventFirst, 502, "server_failed", ""),
    ]
}

/// Asks the only server of a model, which fails, and gives a line of the table.
async fn ask_alone(house: &House, model: &str, stream: bool, expected: Alone) -> String {
    let (name, _, status, code, part) = expected;
    let reply = house.ask(&chat(model, "hi", stream)).await;
    let told = format!("{name} (stream: {stream}): {}", show(&reply));
    let error = &reply.json()["error"];
    assert_eq!((reply.status, &error["code"]), (status, &code.into()), "{told}");
    assert!(error["message"].as_str().unwrap().contains(part), "{told}");
    assert_eq!(error["request_id"], reply.header("x-request-id"), "{told}");
    assert_eq!(reply.header("content-type"), "application/json", "{told}");
    // A retry is promised to help when the server said so, or where it may.
    let retry = match status {
        503 => "7",
        502 | 504 => "1",
        _ => "",
    };
    assert_eq!(reply.header("retry-after"), retry, "{told}");
    format!("{name:<28} {:<7} {status} {code}", if stream { "stream" } else { "whole" })
}

#[tokio::test]
async fn a_faulty_server_alone_gives_the_right_status() {
    // No heartbeat in time, so that the status can still tell.
    let mut plan = Plan::new().relay(&RELAY.replace("heartbeat_s = 0.2", "heartbeat_s = 10"));
    let mut servers = Vec::new();
    for stream in [true, false] {
        for expected in alone() {
            let model = format!("m{}", servers.len());
            let server = scripted(expected.1.clone(), &model).await;
            plan = plan.server(&model, server.addr, "");
            servers.push((server, model, stream, expected));
        }
    }
    let house = Arc::new(House::open(&plan).await);
    let mut asking = JoinSet::new();
    for (server, model, stream, expected) in servers {
        let server = (expected.0 != "dies").then_some(server);
        let house = Arc::clone(&house);
        asking.spawn(async move {
            let _server = server;
            (model.len(), model.clone(), ask_alone(&house, &model, stream, expected).await)
        });
    }
    let mut lines = Vec::new();
    while let Some(line) = asking.join_next().await {
        lines.push(line.unwrap());
    }
    lines.sort_unstable();
    for (.., line) in lines {
        println!("{line}");
    }
    Arc::into_inner(house).unwrap().close().await;
}

#[tokio::test]
async fn an_unasked_second_answer_reaches_nobody() {
    let server = Scripted::start(SecondAnswer).await;
    let house = House::open(&Plan::new().relay(RELAY).server("s", server.addr, "")).await;
    for number in 0..40 {
        let (stream, prompt) = (number % 3 != 0, format!("caller {number}"));
        let reply = house.ask(&chat("scripted", &prompt, stream)).await;
        assert!(!String::from_utf8_lossy(&reply.body).contains(SMUGGLED));
        assert_answered(&reply, stream, &expected_text(&prompt, TOKENS), false, &show(&reply));
    }
    house.close().await;
}
