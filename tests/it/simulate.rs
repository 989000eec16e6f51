//! `berthd simulate` from outside, and its clock by hand and by chance.

use crate::support::raw::{self, PATIENCE, Reply};
use berthd::{
    simulate::{
        ProfileName, SimulateOptions, Stats, bind,
        clock::{Clock, SequenceId},
    },
    units::Tokens,
};
use proptest::prelude::*;
use serde_json::{Value, json};
use std::{
    collections::{BTreeMap, BTreeSet},
    net::SocketAddr,
    sync::Arc,
};
use tokio::{task::JoinSet, time::timeout};

const CHAT: &str = "/v1/chat/completions";

struct Running {
    addr: SocketAddr,
    stats: Arc<Stats>,
    /// Aborts the server when dropped.
    _task: JoinSet<()>,
}

async fn start(options: SimulateOptions) -> Running {
    let simulator = bind(options).await.unwrap();
    let (addr, stats) = (simulator.local_addr(), simulator.stats());
    let mut task = JoinSet::new();
    task.spawn(simulator.run(std::future::pending()));
    Running { addr, stats, _task: task }
}

/// A real profile, fast enough for a test.
fn fast() -> SimulateOptions {
    SimulateOptions { profile: ProfileName::Small8bH100, speed: 1000.0, ..Default::default() }
}

fn ask(stream: bool, max_tokens: u64) -> Value {
    json!({
        "model": "simulated", "stream": stream, "stream_options": { "include_usage": true },
        "max_tokens": max_tokens,
        "messages": [
            { "role": "system", "content": "Answer briefly." },
            { "role": "user", "content": [{ "type": "text", "text": "Wie spät ist es?" }] },
        ],
    })
}

fn words(count: usize) -> String {
    (0..count).map(|index| format!("word{index}")).collect::<Vec<_>>().join(" ")
}

/// Waits until the counters say so; they change on the server's side of the connection.
async fn until(running: &Running, condition: impl Fn(&Stats) -> bool) {
    let wait = async {
        while !condition(&running.stats) {
            tokio::task::yield_now().await;
        }
    };
    timeout(PATIENCE, wait).await.expect("the counters get there");
}

fn metric(page: &Reply, start: &str) -> Option<f64> {
    let text = std::str::from_utf8(&page.body).unwrap();
    let line = text.lines().find(|line| line.starts_with(start))?;
    line.rsplit(' ').next()?.parse().ok()
}

#[tokio::test]
async fn a_stream_comes_whole_and_its_usage_is_what_tokenize_counts() {
    for options in [fast(), SimulateOptions::default()] {
        let server = start(options).await;
        let reply = raw::post(server.addr, CHAT, &ask(true, 20)).await;
        let counted = raw::post(server.addr, "/tokenize", &ask(true, 20)).await.json();

        assert!(reply.whole && reply.done());
        assert_eq!(reply.text(), words(20));
        assert_eq!(reply.finish().as_deref(), Some("length"));
        // The role, 20 tokens, the usage, the end mark.
        assert_eq!(reply.events().len(), 1 + 20 + 1 + 1);
        // 15 + 17 bytes of text, two messages.
        assert_eq!(counted["count"], 32 / 4 + 2 * 3);
        assert_eq!(counted["tokens"].as_array().unwrap().len(), 14);
        let usage = reply.usage().unwrap();
        assert_eq!(usage["prompt_tokens"], counted["count"]);
        assert_eq!((&usage["completion_tokens"], &usage["total_tokens"]), (&json!(20), &json!(34)));
        assert_eq!((server.stats.finished(), server.stats.aborted()), (1, 0));
    }
}

#[tokio::test]
async fn an_answer_in_one_piece_says_the_same_as_a_stream() {
    for options in [fast(), SimulateOptions::default()] {
        let server = start(options).await;
        let chat = raw::post(server.addr, CHAT, &ask(false, 5)).await.json();
        assert_eq!(chat["choices"][0]["message"]["content"], words(5));
        assert_eq!(chat["usage"]["completion_tokens"], 5);

        let body = json!({ "prompt": "12345678", "berthd_simulate": { "output_tokens": 3 } });
        let text = raw::post(server.addr, "/v1/completions", &body).await.json();
        assert_eq!(text["choices"][0]["text"], words(3));
        assert_eq!(text["choices"][0]["finish_reason"], "stop");
        assert_eq!(text["usage"]["prompt_tokens"], 2);
    }
}

#[tokio::test]
async fn the_limit_beats_the_wish_and_the_window_beats_both() {
    let server = start(SimulateOptions { context_window: 40, ..Default::default() }).await;
    let mut body = ask(false, 4);
    body["berthd_simulate"] = json!({ "output_tokens": 9 });
    let reply = raw::post(server.addr, CHAT, &body).await.json();
    assert_eq!(reply["choices"][0]["finish_reason"], "length");
    assert_eq!(reply["usage"]["completion_tokens"], 4);

    let clipped = raw::post(server.addr, CHAT, &ask(false, 40)).await.json();
    assert_eq!(clipped["usage"]["completion_tokens"], 40 - 14);

    let long = json!({ "messages": [{ "role": "user", "content": "x".repeat(400) }] });
    let refused = raw::post(server.addr, CHAT, &long).await;
    assert_eq!(refused.status, 400);
    let message = refused.json()["error"]["message"].as_str().unwrap().to_owned();
    assert!(message.starts_with("This model's maximum context length is 40 tokens"), "{message}");
}

#[tokio::test]
async fn what_it_cannot_do_is_an_error_and_no_abort() {
    let server = start(fast()).await;
    let status = async |body: Value| raw::post(server.addr, CHAT, &body).await.status;
    assert_eq!(status(json!({ "model": "other", "messages": [] })).await, 404);
    assert_eq!(status(json!({ "messages": [], "n": 2 })).await, 400);
    assert_eq!(status(json!({ "messages": [], "max_tokens": 0 })).await, 400);
    assert_eq!(status(json!({ "messages": [], "max_tokens": -1 })).await, 400);
    assert_eq!(status(json!({})).await, 400);
    assert_eq!(raw::post(server.addr, "/v1/nothing", &json!({})).await.status, 404);
    until(&server, |stats| stats.running() == 0).await;
    assert_eq!((server.stats.refused(), server.stats.aborted()), (5, 0));
}

#[tokio::test]
async fn a_caller_who_hangs_up_leaves_the_batch_at_once() {
    // So slow that no answer could end by itself: a step takes 7.5 s.
    let slow = SimulateOptions { speed: 0.001, ..fast() };
    for stream in [true, false] {
        let server = start(slow.clone()).await;
        let caller = raw::open_post(server.addr, CHAT, &ask(stream, 100)).await;
        until(&server, |stats| stats.running() == 1).await;
        drop(caller);
        until(&server, |stats| stats.aborted() == 1).await;
        let page = raw::get(server.addr, "/metrics").await;
        assert_eq!(metric(&page, "vllm:num_requests_running"), Some(0.0));
        assert_eq!(metric(&page, "vllm:num_requests_waiting"), Some(0.0));
        assert_eq!(metric(&page, "vllm:kv_cache_usage_perc"), Some(0.0));
    }
}

#[tokio::test]
async fn a_caller_of_the_instant_server_can_hang_up_too() {
    let paced = SimulateOptions { token_interval_us: 3_600_000_000, ..Default::default() };
    let server = start(paced).await;
    let mut caller = raw::open_post(server.addr, CHAT, &ask(true, 2)).await;
    raw::read_until(&mut caller, "word0").await;
    drop(caller);
    until(&server, |stats| stats.aborted() == 1 && stats.running() == 0).await;
}

#[tokio::test]
async fn the_metrics_page_shows_load_and_capacity_in_vllms_words() {
    let options = SimulateOptions { speed: 0.001, kv_tokens: Some(1000), ..fast() };
    let server = start(options).await;
    let _caller = raw::open_post(server.addr, CHAT, &ask(true, 100)).await;
    until(&server, |stats| stats.running() == 1).await;
    let read = async {
        loop {
            let page = raw::get(server.addr, "/metrics").await;
            if metric(&page, "vllm:num_requests_running") == Some(1.0) {
                return page;
            }
        }
    };
    let page = timeout(PATIENCE, read).await.expect("the sequence joins the batch");
    // 14 tokens are one page of 62 (1000 tokens, whole pages).
    let used = metric(&page, "vllm:kv_cache_usage_perc").unwrap();
    assert!((used - 1.0 / 62.0).abs() < 1e-9, "{used}");
    let text = String::from_utf8(page.body.clone()).unwrap();
    assert!(text.contains(r#"kv_cache_size_tokens="992""#), "{text}");
    assert!(text.contains(r#"block_size="16",num_gpu_blocks="62""#), "{text}");
}

#[tokio::test]
async fn finished_requests_are_counted_with_their_tokens() {
    let server = start(fast()).await;
    raw::post(server.addr, CHAT, &ask(true, 7)).await;
    let page = raw::get(server.addr, "/metrics").await;
    assert_eq!(metric(&page, "vllm:prompt_tokens_total"), Some(14.0));
    assert_eq!(metric(&page, "vllm:generation_tokens_total"), Some(7.0));
    let by_length =
        r#"vllm:request_success_total{engine="0",model_name="simulated",finished_reason="length"}"#;
    assert_eq!(metric(&page, by_length), Some(1.0));
}

#[tokio::test]
async fn the_small_pages_answer() {
    let server = start(SimulateOptions { context_window: 2048, ..fast() }).await;
    assert_eq!(raw::get(server.addr, "/health").await.status, 200);
    assert!(raw::get(server.addr, "/version").await.json()["version"].is_string());
    let models = raw::get(server.addr, "/v1/models").await.json();
    assert_eq!(models["data"][0]["id"], "simulated");
    assert_eq!(models["data"][0]["max_model_len"], 2048);
}

#[tokio::test]
async fn embeddings_depend_on_the_text_and_on_nothing_else() {
    let server = start(SimulateOptions::default()).await;
    let body = json!({ "model": "simulated", "input": ["one", "two", "one"] });
    let reply = raw::post(server.addr, "/v1/embeddings", &body).await.json();
    let vector = |index: usize| reply["data"][index]["embedding"].clone();
    assert_eq!(reply["data"].as_array().unwrap().len(), 3);
    assert_eq!(vector(0), vector(2));
    assert_ne!(vector(0), vector(1));
    assert_eq!(reply["usage"]["prompt_tokens"], 3);
}

#[tokio::test]
async fn a_request_id_becomes_the_answers_id() {
    use tokio::io::AsyncWriteExt;
    let server = start(fast()).await;
    let mut stream = tokio::net::TcpStream::connect(server.addr).await.unwrap();
    let head = "POST /v1/completions HTTP/1.1\r\nHost: x\r\nX-Request-Id: req-77\r\n\
                Connection: close\r\nContent-Length: 14\r\n\r\n{\"prompt\":\"a\"}";
    stream.write_all(head.as_bytes()).await.unwrap();
    let (bytes, ended) = raw::read_all(&mut stream).await;
    assert_eq!(Reply::parse(&bytes, ended).json()["id"], "cmpl-req-77");
}

#[tokio::test]
async fn it_stops_when_told_and_a_taken_port_is_an_error() {
    let simulator = bind(SimulateOptions::default()).await.unwrap();
    let taken = SimulateOptions { listen: simulator.local_addr(), ..Default::default() };
    assert!(bind(taken).await.is_err());
    let stop = std::future::ready(());
    timeout(PATIENCE, simulator.run(stop)).await.expect("it stops");
}

// === The clock ===

/// The published formula, computed by hand for one request on an H100.
#[test]
fn step_times_are_the_formulas() {
    let mut clock = Clock::new(ProfileName::Small8bH100.profile().unwrap());
    clock.submit(SequenceId(0), Tokens(1000), Tokens(2)).unwrap();
    let near = |s: Option<f64>, expected: f64| {
        assert!((s.unwrap() - expected).abs() < 1e-12, "{s:?} is not {expected}");
    };
    // Prefill: 1.5 ms + 1000 x 29.4 us (more than the weights' 6 ms) + 1000 x 49 ns + 1000 x 1000 x 1.3 ns
    near(clock.begin(), 0.0015 + 0.0294 + 0.000_049 + 0.0013);
    let mut tokens = Vec::new();
    clock.finish(&mut tokens);
    assert_eq!(tokens.len(), 1, "the step that ends the prompt brings the first token");
    // Decode: 1.5 ms + 6 ms + 1001 x 49 ns + 1 x 1001 x 1.3 ns
    near(clock.begin(), 0.007_550_350_3);
    clock.finish(&mut tokens);
    assert!(tokens[1].last);
    assert_eq!(clock.begin(), None);
}

#[derive(Clone, Debug)]
enum Event {
    Arrive { prompt: u64, output: u64 },
    Leave(u64),
    Step,
}

fn event() -> impl Strategy<Value = Event> {
    prop_oneof![
        3 => (1u64..150, 1u64..60).prop_map(|(prompt, output)| Event::Arrive { prompt, output }),
        1 => (0u64..40).prop_map(Event::Leave),
        6 => Just(Event::Step),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    /// Whatever comes and goes: the cache is never overfull, each sequence gets each of its tokens once
    /// and in order, everybody who stays is served to the end, and then nothing is held.
    #[test]
    fn the_cache_is_never_overfull_and_nobody_is_forgotten(
        events in prop::collection::vec(event(), 1..200),
    ) {
        let mut profile = ProfileName::Small8b4On24g.profile().unwrap();
        (profile.kv, profile.chunk, profile.max_running) = (Tokens(320), Tokens(64), 6);
        let mut clock = Clock::new(profile);
        let mut left: BTreeMap<u64, (u64, u64)> = BTreeMap::new();
        let mut arrived = 0;
        let drain = std::iter::repeat_n(Event::Step, 20_000);
        let mut tokens = Vec::new();
        for event in events.into_iter().chain(drain) {
            match event {
                Event::Arrive { prompt, output } => {
                    clock.submit(SequenceId(arrived), Tokens(prompt), Tokens(output)).unwrap();
                    left.insert(arrived, (0, output));
                    arrived += 1;
                }
                Event::Leave(id) => {
                    prop_assert_eq!(clock.abort(SequenceId(id)), left.remove(&id).is_some());
                }
                Event::Step => {
                    let step = clock.begin();
                    prop_assert_eq!(step.is_some(), !left.is_empty(), "work waits or is done");
                    prop_assert!(clock.used() <= clock.capacity());
                    prop_assert!(clock.running() <= 6);
                    prop_assert_eq!(clock.running() + clock.waiting(), left.len());
                    tokens.clear();
                    clock.finish(&mut tokens);
                    let ids: BTreeSet<_> = tokens.iter().map(|token| token.id).collect();
                    prop_assert_eq!(ids.len(), tokens.len(), "one token a step");
                    for token in &tokens {
                        let (got, output) = left.get_mut(&token.id.0).unwrap();
                        *got += 1;
                        prop_assert_eq!(token.generated, Tokens(*got));
                        prop_assert_eq!(token.last, got == output);
                        if token.last {
                            left.remove(&token.id.0);
                        }
                    }
                    if left.is_empty() {
                        prop_assert_eq!(clock.used(), Tokens::ZERO);
                    }
                }
            }
        }
        prop_assert!(left.is_empty(), "still here: {:?}", left);
    }
}
