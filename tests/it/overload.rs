//! More callers than room: who waits, in which order, who is refused and how fast; and servers that go
//! and come back.

use crate::support::{
    house::{House, Plan, chat},
    raw::{self, PATIENCE, Reply},
    scripted::{Behaviour, Hits, Script, Scripted, TOKENS, expected_text},
};
use serde_json::Value;
use std::{sync::Arc, time::Duration};
use tokio::{
    net::TcpStream,
    sync::watch,
    task::JoinSet,
    time::{Instant, timeout},
};

/// A refusal that must not wait for anything.
const AT_ONCE: Duration = Duration::from_secs(1);

/// A server with room for one, which someone holds until the word is given.
struct Full {
    house: House,
    server: Scripted,
    go: watch::Sender<bool>,
    holder: TcpStream,
}

async fn full(plan: Plan) -> Full {
    let (go, wait) = watch::channel(false);
    let server = Scripted::start(Behaviour::Held { after: 0, go: wait }).await;
    let house = House::open(&plan.server("s", server.addr, "max_running = 1")).await;
    let holder = house.open_as("a", "", &chat("scripted", "holder", true)).await;
    timeout(PATIENCE, server.hits.until(|hits| hits.open() == 1)).await.expect("it runs");
    Full { house, server, go, holder }
}

impl Full {
    /// One more caller in the queue.
    async fn wait_as(&self, tenant: &str, headers: &str, prompt: &str) -> TcpStream {
        let waiting = self.house.waiting();
        let caller = self.house.open_as(tenant, headers, &chat("scripted", prompt, true)).await;
        self.house.until("it waits", |house| house.waiting() == waiting + 1).await;
        caller
    }

    /// Lets the holder finish, and after it all who wait.
    async fn finish(self, callers: Vec<TcpStream>) -> House {
        self.go.send(true).unwrap();
        for mut caller in callers.into_iter().chain([self.holder]) {
            let (bytes, ended) = raw::read_all(&mut caller).await;
            let reply = Reply::parse(&bytes, ended);
            assert!(reply.status == 200 && reply.done(), "{}", reply.head);
        }
        self.house
    }
}

fn assert_refused(reply: &Reply, status: u16, code: &str) {
    let error = &reply.json()["error"];
    assert_eq!((reply.status, error["code"].as_str()), (status, Some(code)), "{error}");
    let retry: u64 = reply.header("retry-after").parse().expect("it says when to come back");
    assert!((1..=60).contains(&retry), "{retry}");
}

/// Prompts of the requests a server has seen.
fn prompts(hits: &Hits) -> Vec<String> {
    let prompt = |body: &[u8]| {
        let body: Value = serde_json::from_slice(body).unwrap();
        body["messages"][0]["content"].as_str().unwrap().to_owned()
    };
    hits.seen().iter().map(|seen| prompt(&seen.body)).collect()
}

#[tokio::test]
async fn turns_come_by_tier_then_by_fair_share_and_then_by_arrival() {
    let plan = Plan::new().tenant("s", "tier = \"standard\"").queue("tenant_share_percent = 100");
    let full = full(plan).await;
    let mut callers = Vec::new();
    for (tenant, tier, prompt) in [
        ("a", "batch", "batch 1"),
        ("s", "", "standard 1"),
        ("a", "", "interactive 1"),
        // A tenant cannot be more urgent than its own tier.
        ("s", "interactive", "standard 2"),
        ("a", "batch", "batch 2"),
        ("a", "interactive", "interactive 2"),
        ("a", "standard", "standard 3"),
    ] {
        let header =
            if tier.is_empty() { String::new() } else { format!("X-Berthd-Tier: {tier}\r\n") };
        callers.push(full.wait_as(tenant, &header, prompt).await);
    }
    let hits = Arc::clone(&full.server.hits);
    let house = full.finish(callers).await;
    let expected = [
        "holder",
        "interactive 1",
        "interactive 2",
        "standard 1",
        // The other tenant got nothing in this tier yet.
        "standard 3",
        "standard 2",
        "batch 1",
        "batch 2",
    ];
    assert_eq!(prompts(&hits), expected);
    house.close().await;
}

#[tokio::test]
async fn a_full_queue_refuses_at_once_and_says_when_to_come_back() {
    let full = full(Plan::new().queue("length_max = 3\ntenant_share_percent = 100")).await;
    let mut callers = Vec::new();
    for number in 0..3 {
        callers.push(full.wait_as("a", "", &format!("caller {number}")).await);
    }
    let began = Instant::now();
    for stream in [true, false] {
        let reply = full.house.ask(&chat("scripted", "too many", stream)).await;
        assert_refused(&reply, 503, "queue_full");
    }
    assert!(began.elapsed() < AT_ONCE);
    // One leaves: there is a place again, at once.
    drop(callers.pop());
    full.house.until("it has left", |house| house.waiting() == 2).await;
    callers.push(full.wait_as("a", "", "in its place").await);
    assert!(!prompts(&full.server.hits).contains(&"too many".to_owned()));
    full.finish(callers).await.close().await;
}

#[tokio::test]
async fn one_tenant_cannot_fill_the_queue() {
    let plan = Plan::new().tenant("b", "").queue("length_max = 4\ntenant_share_percent = 50");
    let full = full(plan).await;
    let mut callers = Vec::new();
    for number in 0..2 {
        callers.push(full.wait_as("a", "", &format!("caller {number}")).await);
    }
    let reply = full.house.ask(&chat("scripted", "greedy", true)).await;
    assert_refused(&reply, 429, "tenant_queue_full");
    assert_eq!(reply.json()["error"]["type"], "rate_limit_error");
    callers.push(full.wait_as("b", "", "modest").await);
    full.finish(callers).await.close().await;
}

#[tokio::test]
async fn a_deadline_ends_the_wait() {
    let full = full(Plan::new()).await;
    let began = Instant::now();
    let header = "X-Berthd-Deadline-Ms: 150\r\n";
    let reply = full.house.ask_as("a", header, &chat("scripted", "hurried", true)).await;
    assert_refused(&reply, 503, "deadline_unreachable");
    let took = began.elapsed();
    assert!(took >= Duration::from_millis(150) && took < AT_ONCE, "{took:?}");
    assert_eq!(full.house.waiting(), 0);
    full.finish(Vec::new()).await.close().await;
}

#[tokio::test]
async fn a_deadline_that_cannot_be_met_is_refused_before_the_wait() {
    let full = full(Plan::new().queue("tenant_share_percent = 100")).await;
    // What came free while others waited tells how fast turns come: about one in 80 ms.
    full.server.behave(Behaviour::Ok { tokens: TOKENS, interval: Duration::from_millis(10) });
    let mut callers = Vec::new();
    for number in 0..5 {
        callers.push(full.wait_as("a", "", &format!("caller {number}")).await);
    }
    full.go.send(true).unwrap();
    for mut caller in callers {
        raw::read_all(&mut caller).await;
    }
    let (go, wait) = watch::channel(false);
    full.server.behave(Behaviour::Held { after: 0, go: wait });
    let holder = full.house.open_as("a", "", &chat("scripted", "holder", true)).await;
    full.house.until("it runs", |house| house.placed().0 == 1).await;
    let mut callers = vec![holder];
    for number in 0..5 {
        callers.push(full.wait_as("a", "", &format!("caller {number}")).await);
    }
    // Not the first of its tenant's, however little time it has: the others are more urgent.
    let header = "X-Berthd-Tier: batch\r\nX-Berthd-Deadline-Ms: 20\r\n";
    let reply = full.house.ask_as("a", header, &chat("scripted", "hurried", false)).await;
    assert_refused(&reply, 503, "deadline_unreachable");
    let error = reply.json()["error"]["message"].as_str().unwrap().to_owned();
    assert!(error.contains("The first token is expected in"), "without any wait: {error}");
    // More patience is enough.
    let header = "X-Berthd-Deadline-Ms: 60000\r\n";
    callers.push(full.wait_as("a", header, "patient").await);
    go.send(true).unwrap();
    full.finish(callers).await.close().await;
}

/// The deadline is the caller's, not each server's.
#[tokio::test]
async fn a_deadline_holds_over_all_attempts() {
    let mut plan = Plan::new();
    let mut servers = Vec::new();
    for name in ["one", "two", "three"] {
        let server = Scripted::start(Behaviour::HangBeforeHead).await;
        plan = plan.server(name, server.addr, "");
        servers.push(server);
    }
    let house = House::open(&plan).await;
    let header = "X-Berthd-Deadline-Ms: 300\r\n";
    let reply = house.ask_as("a", header, &chat("scripted", "hurried", true)).await;
    let code = &reply.json()["error"]["code"];
    assert_eq!((reply.status, code), (503, &"deadline_unreachable".into()));
    let asked: u64 = servers.iter().map(|server| server.hits.requests()).sum();
    assert_eq!(asked, 1, "there was no time left for a second");
    house.close().await;
}

#[tokio::test]
async fn a_drained_server_takes_nothing_new_and_finishes_what_it_has() {
    let (go, wait) = watch::channel(false);
    let held = Behaviour::Held { after: 2, go: wait };
    let (one, two) = (Scripted::start(held).await, Scripted::start(Behaviour::ok()).await);
    let plan = Plan::new().server("one", one.addr, "").server("two", two.addr, "");
    let house = House::open(&plan).await;
    let mut running = house.open_as("a", "", &chat("scripted", "first", true)).await;
    timeout(PATIENCE, one.hits.until(|hits| hits.open() == 1)).await.expect("it runs");
    assert!(house.broker.dispatch.set_drained(&"one".into(), true));
    for number in 0..20 {
        let reply = house.ask(&chat("scripted", &format!("{number}"), number % 2 == 0)).await;
        assert_eq!((reply.status, reply.header("x-berthd-server")), (200, "two"));
    }
    assert_eq!((one.hits.requests(), two.hits.requests()), (1, 20));
    go.send(true).unwrap();
    let (bytes, ended) = raw::read_all(&mut running).await;
    let reply = Reply::parse(&bytes, ended);
    assert_eq!(reply.text(), expected_text("first", TOKENS), "what ran there finishes");
    assert!(house.broker.dispatch.set_drained(&"one".into(), false));
    let reply = house.ask(&chat("scripted", "again", true)).await;
    assert_eq!(reply.header("x-berthd-server"), "one", "the one that did less");
    house.close().await;
}

#[tokio::test]
async fn without_any_server_up_the_wait_is_short() {
    let gone = Scripted::start(Behaviour::RefuseConnection).await;
    let plan = Plan::new().queue("no_server_wait_s = 0.3").server(
        "gone",
        gone.addr,
        "models = [\"scripted\"]",
    );
    let house = House::open(&plan).await;
    for stream in [true, false] {
        let began = Instant::now();
        let reply = house.ask(&chat("scripted", "hi", stream)).await;
        assert_refused(&reply, 503, "no_server_available");
        let took = began.elapsed();
        assert!(took >= Duration::from_millis(300) && took < AT_ONCE * 2, "{took:?}");
    }
    house.close().await;
}

#[tokio::test]
async fn a_breaker_opens_closes_by_its_own_trial_and_serves_who_waited() {
    let server = Scripted::start(Behaviour::status(500)).await;
    let plan = Plan::new()
        .breaker("failures = 3\ntrial_first_s = 0.05\ntrial_max_s = 0.2")
        .queue("no_server_wait_s = 15")
        .server("s", server.addr, "");
    let house = Arc::new(House::open(&plan).await);
    for number in 1..=3 {
        assert!(!house.server("s").breaker_open);
        let reply = house.ask(&chat("scripted", &format!("failing {number}"), true)).await;
        assert_eq!(reply.status, 502);
    }
    assert!(house.server("s").breaker_open && !house.server("s").usable);
    let mut waiting = JoinSet::new();
    for number in 0..10 {
        let house = Arc::clone(&house);
        waiting.spawn(async move {
            let prompt = format!("waiting {number}");
            let reply = house.ask(&chat("scripted", &prompt, number % 2 == 0)).await;
            assert_eq!(reply.status, 200);
            if number % 2 == 0 {
                assert_eq!(reply.text(), expected_text(&prompt, TOKENS));
            }
        });
    }
    house.until("all wait", |house| house.waiting() == 10).await;
    // Trials fail meanwhile, and no caller is spent on finding out.
    let trials = server.hits.until(|hits| hits.requests() >= 6);
    timeout(PATIENCE, trials).await.expect("trials go on");
    assert_eq!(
        prompts(&server.hits).iter().filter(|prompt| prompt.starts_with("waiting")).count(),
        0
    );
    assert_eq!(house.waiting(), 10);
    server.behave(Behaviour::ok());
    let back = Instant::now();
    while let Some(done) = waiting.join_next().await {
        done.unwrap();
    }
    println!("ten callers served {} ms after the server came back", back.elapsed().as_millis());
    assert!(!house.server("s").breaker_open);
    Arc::into_inner(house).unwrap().close().await;
}

#[tokio::test]
async fn a_breaker_closes_without_any_caller() {
    let server = Scripted::start(Behaviour::status(500)).await;
    let plan = Plan::new().breaker("failures = 1\ntrial_first_s = 0.05\ntrial_max_s = 0.1").server(
        "s",
        server.addr,
        "",
    );
    let house = House::open(&plan).await;
    assert_eq!(house.ask(&chat("scripted", "hi", false)).await.status, 502);
    assert!(house.server("s").breaker_open);
    server.behave(Behaviour::ok());
    house.until("it closes", |house| !house.server("s").breaker_open).await;
    assert_eq!(house.ask(&chat("scripted", "hi", false)).await.status, 200);
    house.close().await;
}

#[tokio::test]
async fn a_busy_server_gets_peace_and_the_other_gets_the_work() {
    let busy = Behaviour::Status { code: 429, retry_after: Some(1), body: String::new() };
    let (one, two) = (Scripted::start(busy).await, Scripted::start(Behaviour::ok()).await);
    let plan = Plan::new().server("one", one.addr, "").server("two", two.addr, "");
    let house = House::open(&plan).await;
    for number in 0..10 {
        let reply = house.ask(&chat("scripted", &format!("{number}"), true)).await;
        assert_eq!((reply.status, reply.header("x-berthd-server")), (200, "two"));
    }
    assert_eq!(one.hits.requests(), 1, "asked once, then left alone for its Retry-After");
    assert!(!house.server("one").breaker_open, "shedding load is no failure");
    house.until("it is used again", |house| house.server("one").usable).await;
    house.close().await;
}

/// Models share the queue's places, but nobody waits for another model's turn.
#[tokio::test]
async fn one_models_queue_does_not_hold_up_another() {
    let other = Script { behaviour: Behaviour::ok(), model: "other".to_owned(), kv_tokens: None };
    let other = Scripted::with(other).await;
    let full = full(Plan::new().server("other", other.addr, "")).await;
    let caller = full.wait_as("a", "", "waits").await;
    let reply = full.house.ask(&chat("other", "passes", true)).await;
    assert_eq!((reply.status, reply.text()), (200, expected_text("passes", TOKENS)));
    assert_eq!(full.house.waiting(), 1);
    full.finish(vec![caller]).await.close().await;
}
