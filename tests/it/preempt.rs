//! Batch work that makes way, and servers that are told how urgent requests are.

use crate::support::{
    house::{House, Plan, chat},
    raw::{self, PATIENCE, Reply},
    scripted::{Behaviour, Scripted},
};
use serde_json::Value;
use tokio::time::timeout;

async fn house(server: &Scripted, preempts: bool) -> House {
    let plan = Plan::new()
        .tenant("night", "tier = \"batch\"")
        .gpu(&format!("enabled = false\n[schedule]\npreempt_batch = {preempts}"))
        .server("s", server.addr, "max_running = 1");
    House::open(&plan).await
}

#[tokio::test]
async fn a_batch_stream_that_has_shown_nothing_makes_way_and_is_answered_later() {
    let server = Scripted::start(Behaviour::HangAfterHead).await;
    let house = house(&server, true).await;
    let mut batch = house.open_as("night", "", &chat("scripted", "batch", true)).await;
    timeout(PATIENCE, server.hits.until(|hits| hits.open() == 1)).await.expect("it runs");
    server.behave(Behaviour::ok());
    let urgent = house.ask_as("a", "", &chat("scripted", "urgent", true)).await;
    assert!(urgent.status == 200 && urgent.done());
    let (bytes, ended) = raw::read_all(&mut batch).await;
    let batch = Reply::parse(&bytes, ended);
    assert!(batch.status == 200 && batch.done(), "{}", batch.text());
    assert_eq!(batch.header("x-berthd-attempts"), "1", "what was taken back is no attempt");
    assert_eq!((server.hits.requests(), server.hits.aborted()), (3, 1));
    assert_eq!(house.causes("s"), "", "and no fault of the server's");
    house.close().await;
}

#[tokio::test]
async fn it_stays_where_the_operator_does_not_want_that_or_something_was_shown() {
    for (preempts, behaviour) in
        [(false, Behaviour::HangAfterHead), (true, Behaviour::StallMidStream(1))]
    {
        let server = Scripted::start(behaviour).await;
        let house = house(&server, preempts).await;
        let mut batch = house.open_as("night", "", &chat("scripted", "batch", true)).await;
        timeout(PATIENCE, server.hits.until(|hits| hits.open() == 1)).await.expect("it runs");
        if preempts {
            raw::read_until(&mut batch, "\"content\":\"").await;
        }
        let body = chat("scripted", "late", true);
        let late = house.ask_as("a", "X-Berthd-Deadline-Ms: 300\r\n", &body);
        assert_eq!(late.await.status, 503);
        assert_eq!(server.hits.aborted(), 0);
        drop(batch);
        house.close().await;
    }
}

#[tokio::test]
async fn servers_that_honour_a_priority_get_the_tier_the_way_they_read_it() {
    let (vllm, sglang, none) = (
        Scripted::start(Behaviour::ok()).await,
        Scripted::start(Behaviour::ok()).await,
        Scripted::start(Behaviour::ok()).await,
    );
    for (kind, server, rest, batch, interactive) in [
        ("vllm", &vllm, "priority = true", Some(3), Some(1)),
        ("sglang", &sglang, "priority = true", Some(-3), Some(-1)),
        ("vllm", &none, "", None, None),
    ] {
        let plan = Plan::new().server_of(kind, "s", server.addr, rest);
        let house = House::open(&plan).await;
        for (tier, priority) in [("batch", batch), ("interactive", interactive)] {
            // A caller's own word is never taken.
            let mut body = chat("scripted", "hello", false);
            body["priority"] = 99.into();
            let header = format!("X-Berthd-Tier: {tier}\r\n");
            assert_eq!(house.ask_as("a", &header, &body).await.status, 200, "{kind}");
            let seen = server.hits.seen();
            let got: Value = serde_json::from_slice(&seen.last().unwrap().body).unwrap();
            assert_eq!(got.get("priority").and_then(Value::as_i64), priority, "{kind}, {tier}");
            assert_eq!(got["messages"][0]["content"], "hello");
        }
        house.close().await;
    }
}
