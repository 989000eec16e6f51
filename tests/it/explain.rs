//! What is told of decisions: to callers who ask, and to operators.

use crate::support::{
    house::{House, Plan, chat},
    scripted::{Behaviour, Scripted},
};
use serde_json::Value;

/// The decision in an answer's header.
fn told(reply: &crate::support::raw::Reply) -> Value {
    serde_json::from_str(reply.header("x-berthd-explain")).unwrap()
}

#[tokio::test]
async fn a_caller_who_asks_is_told_which_server_and_why() {
    let (one, two) =
        (Scripted::start(Behaviour::ok()).await, Scripted::start(Behaviour::ok()).await);
    let plan = Plan::new().server("one", one.addr, "max_running = 4").server("two", two.addr, "");
    let house = House::open(&plan).await;
    for stream in [true, false] {
        let asks = "X-Berthd-Explain: yes\r\nX-Berthd-Deadline-Ms: 5000\r\n";
        let reply = house.ask_as("a", asks, &chat("scripted", "why?", stream)).await;
        assert_eq!(reply.status, 200);
        let decision = told(&reply);
        assert_eq!(decision["verdict"]["what"], "placed");
        assert_eq!(decision["verdict"]["server"], reply.header("x-berthd-server"));
        assert_eq!(decision["request"], reply.header("x-request-id"));
        assert_eq!(decision["considered"].as_array().unwrap().len(), 2);
        assert_eq!((&decision["strict"], &decision["tier"]), (&true.into(), &"interactive".into()));
        // The same to operators, by its id.
        let known = house.broker.dispatch.explain(reply.header("x-request-id")).unwrap();
        assert_eq!(known.request.as_str(), reply.header("x-request-id"));
    }
    // Nobody who does not ask.
    let reply = house.ask(&chat("scripted", "hello", false)).await;
    assert_eq!(reply.header("x-berthd-explain"), "");
    let wrong =
        house.ask_as("a", "X-Berthd-Explain: maybe\r\n", &chat("scripted", "?", false)).await;
    assert_eq!(wrong.status, 400);
    house.close().await;
}

#[tokio::test]
async fn a_refusal_is_explained_and_retried_servers_are_counted() {
    let (broken, whole) = (
        Scripted::start(Behaviour::Status { code: 500, retry_after: None, body: String::new() })
            .await,
        Scripted::start(Behaviour::ok()).await,
    );
    let plan = Plan::new()
        .server("broken", broken.addr, "")
        .server("whole", whole.addr, "")
        .queue("no_server_wait_s = 0.1");
    let house = House::open(&plan).await;
    let asks = "X-Berthd-Explain: yes\r\n";
    let mut earlier = 0;
    for _ in 0..4 {
        let reply = house.ask_as("a", asks, &chat("scripted", "again", false)).await;
        assert_eq!((reply.status, reply.header("x-berthd-server")), (200, "whole"));
        let decision = told(&reply);
        assert_eq!(decision["verdict"]["server"], "whole");
        earlier += decision["verdict"]["earlier"].as_u64().unwrap();
    }
    assert!(earlier > 0, "some went to the broken one first");
    for server in ["broken", "whole"] {
        house.broker.dispatch.set_drained(&server.into(), true);
    }
    let reply = house.ask_as("a", asks, &chat("scripted", "nobody", false)).await;
    assert_eq!(reply.status, 503);
    assert_eq!(told(&reply)["verdict"]["what"], "refused");
    assert_eq!(told(&reply)["considered"][0]["bar"], "takes no requests now");
    house.close().await;
}
