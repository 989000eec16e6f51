//! What one caller does must not shut a server off for the others, nor be charged for what no server had.

use crate::support::{
    house::{House, Plan, chat},
    scripted::{Behaviour, Scripted},
};

fn strict() -> Plan {
    Plan::new().breaker("failures = 2\ntrial_first_s = 30\ntrial_max_s = 30")
}

#[tokio::test]
async fn callers_in_a_hurry_open_no_breaker() {
    let server = Scripted::start(Behaviour::HangBeforeHead).await;
    let house = House::open(&strict().server("s", server.addr, "")).await;
    for number in 0..4 {
        let body = chat("scripted", &format!("hurry {number}"), true);
        let reply = house.ask_as("a", "X-Berthd-Deadline-Ms: 60\r\n", &body).await;
        assert_eq!(reply.status, 503, "{}", reply.head);
        assert_eq!(reply.json()["error"]["code"], "deadline_unreachable");
    }
    assert!(!house.server("s").breaker_open);
    assert!(house.server("s").usable);
    house.close().await;
}

#[tokio::test]
async fn asking_for_what_a_server_does_not_offer_opens_no_breaker() {
    for code in [404, 405, 501] {
        let server = Scripted::start(Behaviour::status(code)).await;
        let house = House::open(&strict().server("s", server.addr, "")).await;
        for number in 0..4 {
            let reply = house.ask(&chat("scripted", &format!("{number}"), false)).await;
            assert!(reply.status >= 400, "{}", reply.head);
            assert_ne!(reply.status, 404, "the server's 404 is not the caller's");
        }
        assert!(house.server("s").usable, "{code}");
        house.close().await;
    }
}

#[tokio::test]
async fn an_answer_beyond_measure_is_asked_for_once_and_is_nobodys_failure() {
    // An event of 10 MB as a whole answer, with room for 1 MiB.
    let (one, two) =
        (Scripted::start(Behaviour::HugeLine).await, Scripted::start(Behaviour::HugeLine).await);
    let plan = strict()
        .limits("answer_max_mib = 1\nevent_max_mib = 1")
        .server("one", one.addr, "")
        .server("two", two.addr, "");
    let house = House::open(&plan).await;
    let reply = house.ask(&chat("scripted", "large", false)).await;
    assert_eq!(reply.status, 400, "{}", reply.head);
    assert!(reply.json()["error"]["message"].as_str().unwrap().contains("answer_max_mib"));
    assert_eq!(one.hits.requests() + two.hits.requests(), 1);
    assert!(house.server("one").usable && house.server("two").usable);
    house.close().await;
}

#[tokio::test]
async fn what_no_server_had_costs_the_tenant_nothing() {
    let server = Scripted::start(Behaviour::status(503)).await;
    let plan = strict().tenant("counted", "tokens_per_minute = 290").server("s", server.addr, "");
    let house = House::open(&plan).await;
    for number in 0..6 {
        house.until("it is rested", |house| house.server("s").usable).await;
        let reply =
            house.ask_as("counted", "", &chat("scripted", &format!("{number}"), true)).await;
        assert_eq!(reply.status, 503, "{}", reply.head);
        assert_eq!(reply.json()["error"]["code"], "server_overloaded");
    }
    house.close().await;
}
