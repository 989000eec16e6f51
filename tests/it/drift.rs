//! Servers that count input otherwise than we do: caught at attach or at the first answer, told, counted by
//! their own word, and believed again when they agree.

use crate::support::{
    counted::{
        SOURCE, ask, bills, counts, demo, drifts, plan, scripted, source, teller, told, until,
        with_folder,
    },
    house::{House, chat},
    process::{self, Setup, told as said},
    scripted::{Behaviour, Says, Scripted, Teller},
};
use berthd::{cli::table, snapshot::ServerKind};
use serde_json::{Value, json};
use std::sync::Arc;

fn gauge(house: &House, server: &str, state: &str) -> Option<f64> {
    let (server, state) = (format!("server=\"{server}\""), format!("state=\"{state}\""));
    house.metric(&["berthd_token_count_state{", "model=\"scripted\"", &server, &state])
}

#[tokio::test]
async fn a_server_that_miscounts_is_caught_at_its_first_answer_and_believed_when_it_mends() {
    for stream in [false, true] {
        let server = scripted(counts(ServerKind::Vllm, 0)).await;
        let plan = with_folder(plan(), &demo()).server_of("vllm", "s", server.addr, "");
        let house = House::open(&plan).await;
        until(&house, "s", "exact").await;
        assert_eq!(told(&house, "s").1, "all 14 probes agree");
        assert_eq!(
            (gauge(&house, "s", "exact"), gauge(&house, "s", "drifted")),
            (Some(1.0), Some(0.0))
        );
        let body = chat("scripted", "Tell me a story", stream);
        let before = house.ask(&body).await;
        assert_eq!(before.header(SOURCE), "exact");
        let ours: u64 = before.header("x-berthd-input-tokens").parse().unwrap();

        server.say(counts(ServerKind::Vllm, 3));
        let first = house.ask(&body).await;
        assert_eq!(first.header(SOURCE), "exact", "it was counted before the answer came");
        // By then it is known: no answer ends before it was compared.
        assert_eq!(drifts(&house, "s"), 1.0);
        assert_eq!(gauge(&house, "s", "drifted"), Some(1.0));
        let (state, reason) = told(&house, "s");
        assert_eq!(state, "drifted");
        let both = [ours.to_string(), (ours + 3).to_string()];
        let probe = "probe \"one question\"";
        assert!(both.iter().all(|number| reason.contains(number)) || reason.contains(probe));
        let table = table::status(&house.status());
        let line = table.lines().find(|line| line.starts_with("!! model scripted on s:"));
        assert!(line.is_some_and(|line| line.contains("drifted")), "{table}");

        let second = house.ask(&body).await;
        assert_eq!(second.header(SOURCE), "server");
        assert_eq!(second.header("x-berthd-input-tokens"), (ours + 3).to_string());

        server.say(counts(ServerKind::Vllm, 0));
        until(&house, "s", "exact").await;
        assert_eq!(source(&house).await, "exact");
        assert_eq!(drifts(&house, "s"), 1.0, "one drift is one drift");
        house.close().await;
    }
}

#[tokio::test]
async fn without_an_endpoint_answers_prove_the_count_and_restore_it() {
    let server = scripted(bills(0)).await;
    let plan = with_folder(plan(), &demo()).server("s", server.addr, "");
    let house = House::open(&plan).await;
    until(&house, "s", "unproven").await;
    for _ in 0..3 {
        assert_eq!(source(&house).await, "exact", "ours is used, and not called proven");
    }
    assert_eq!(told(&house, "s"), ("exact".to_owned(), "3 answers in a row agree".to_owned()));

    server.say(bills(-2));
    assert_eq!(source(&house).await, "exact");
    assert_eq!((told(&house, "s").0.as_str(), drifts(&house, "s")), ("drifted", 1.0));
    let estimated = ask(&house).await;
    assert_eq!(estimated.header(SOURCE), "estimate");
    server.say(bills(0));
    for _ in 0..3 {
        assert_eq!(source(&house).await, "estimate", "until three in a row agree");
    }
    assert_eq!(source(&house).await, "exact");
    house.close().await;
}

/// Its bills and its counting endpoint tell two truths.
#[tokio::test]
async fn an_endpoint_that_contradicts_the_bills_does_not_make_them_exact() {
    let honest = counts(ServerKind::Vllm, 0);
    let server = scripted(honest.clone()).await;
    let plan = with_folder(plan(), &demo()).server_of("vllm", "s", server.addr, "");
    let house = House::open(&plan).await;
    until(&house, "s", "exact").await;
    server.say(Says { usage: Some(teller(ServerKind::Vllm, 3)), ..honest.clone() });
    assert_eq!(source(&house).await, "exact");
    assert_eq!(drifts(&house, "s"), 1.0);
    until(&house, "s", "exact").await;
    assert_eq!(source(&house).await, "exact", "the endpoint was believed, once");
    assert_eq!(drifts(&house, "s"), 2.0);
    house.until("it was asked again", |house| told(house, "s").1.contains("agrees with us")).await;
    for _ in 0..3 {
        assert_eq!(source(&house).await, "server");
    }
    assert_eq!((told(&house, "s").0.as_str(), drifts(&house, "s")), ("drifted", 2.0));
    server.say(honest);
    for _ in 0..3 {
        assert_eq!(source(&house).await, "server");
    }
    assert_eq!(source(&house).await, "exact");
    house.close().await;
}

/// Its usage is so far off that it is not billed, and passed unseen for that.
#[tokio::test]
async fn a_count_that_is_off_beyond_belief_is_a_drift_too() {
    let server = scripted(bills(400)).await;
    let plan = with_folder(plan(), &demo()).server("s", server.addr, "");
    let house = House::open(&plan).await;
    until(&house, "s", "unproven").await;
    ask(&house).await;
    assert_eq!((told(&house, "s").0.as_str(), drifts(&house, "s")), ("drifted", 1.0));
    house.close().await;
}

/// Usage that cannot be true says nothing of the count.
#[tokio::test]
async fn absurd_usage_is_no_drift() {
    for behaviour in [Behaviour::NegativeUsage, Behaviour::AbsurdUsage, Behaviour::NoUsage] {
        let server = Scripted::start(behaviour).await;
        let plan = with_folder(plan(), &demo()).server("s", server.addr, "");
        let house = House::open(&plan).await;
        until(&house, "s", "unproven").await;
        for _ in 0..4 {
            assert_eq!(source(&house).await, "exact");
        }
        assert_eq!((told(&house, "s").0.as_str(), drifts(&house, "s")), ("unproven", 0.0));
        house.close().await;
    }
}

/// Several prompts, several answers and token ids are billed in ways of their own.
#[tokio::test]
async fn requests_that_servers_sum_up_in_their_own_way_are_not_compared() {
    let server = scripted(bills(7)).await;
    let plan = with_folder(plan(), &demo()).server("s", server.addr, "");
    let house = House::open(&plan).await;
    until(&house, "s", "unproven").await;
    let completion = |fields: Value| {
        let mut body = json!({ "model": "scripted", "prompt": "a" });
        body.as_object_mut().unwrap().extend(fields.as_object().unwrap().clone());
        crate::support::house::request("a", "/v1/completions", "", &body.to_string())
    };
    for fields in [json!({"prompt": ["a", "b"]}), json!({"prompt": [1, 2, 3]}), json!({"n": 2})] {
        house.send(&completion(fields)).await;
    }
    assert_eq!((told(&house, "s").0.as_str(), drifts(&house, "s")), ("unproven", 0.0));
    house.send(&completion(json!({}))).await;
    assert_eq!(told(&house, "s").0, "drifted", "one plain prompt is");
    house.close().await;
}

#[tokio::test]
async fn one_odd_server_does_not_speak_for_the_other() {
    let honest = scripted(counts(ServerKind::Vllm, 0)).await;
    let odd = scripted(counts(ServerKind::Vllm, 0)).await;
    let plan = with_folder(plan(), &demo())
        .server_of("vllm", "honest", honest.addr, "models = [\"scripted\"]")
        .server_of("vllm", "odd", odd.addr, "models = [\"scripted\"]");
    let house = House::open(&plan).await;
    until(&house, "honest", "exact").await;
    until(&house, "odd", "exact").await;

    odd.say(counts(ServerKind::Vllm, 9));
    assert!(house.broker.dispatch.set_drained(&"honest".into(), true));
    let ours: u64 = ask(&house).await.header("x-berthd-input-tokens").parse().unwrap();
    assert!(house.broker.dispatch.set_drained(&"honest".into(), false));
    assert_eq!(told(&house, "odd").0, "drifted");
    assert_eq!(told(&house, "honest").0, "exact");
    assert_eq!((drifts(&house, "odd"), drifts(&house, "honest")), (1.0, 0.0));
    // Nobody knows yet which server will have it: the one that we cannot count for is asked.
    let reply = ask(&house).await;
    assert_eq!(reply.header(SOURCE), "server");
    assert_eq!(reply.header("x-berthd-input-tokens"), (ours + 9).to_string());

    // Out of use, it has no say.
    assert!(house.broker.dispatch.set_drained(&"odd".into(), true));
    house.until("the model is counted here", used).await;
    assert_eq!(source(&house).await, "exact");
    assert_eq!(told(&house, "odd").0, "drifted", "which is not forgotten");
    assert!(house.broker.dispatch.set_drained(&"odd".into(), false));
    house.until("it is asked again", |house| !used(house)).await;
    assert_eq!(source(&house).await, "server");
    house.close().await;
}

/// Whether the model is counted by the files that are here.
fn used(house: &House) -> bool {
    house.status()["models"][0]["counting"]["used"] == true
}

/// A conversation that our template refuses is refused only while our template is the server's.
#[tokio::test]
async fn files_in_doubt_refuse_nobody() {
    let odd = json!({
        "model": "scripted", "messages": [{ "role": "narrator", "content": "Once upon a time" }],
    });
    let server = scripted(counts(ServerKind::Vllm, 0)).await;
    let plan = with_folder(plan(), &demo()).server_of("vllm", "s", server.addr, "");
    let house = House::open(&plan).await;
    until(&house, "s", "exact").await;
    let refused = house.ask(&odd).await;
    assert_eq!(
        (refused.status, refused.json()["error"]["code"].clone()),
        (400, json!("template_refused"))
    );

    let other: Teller = Arc::new(|_| Some(77));
    server.say(Says { usage: Some(Arc::clone(&other)), endpoint: Some(other), ..Says::default() });
    ask(&house).await;
    let taken = house.ask(&odd).await;
    assert_eq!((taken.status, taken.header(SOURCE)), (200, "server"), "{}", taken.head);
    house.close().await;
}

/// The drill as an operator sees it: the program's log, its metrics page, `berthd status`.
#[tokio::test]
async fn operators_see_a_drift_with_both_numbers_and_its_end() {
    const DRIFT: &str =
        "the server counts input differently by now; its own count is used until they agree again";
    let server = scripted(bills(0)).await;
    let rest = format!(
        "[[models]]\nname = \"scripted\"\nfolder = \"{}\"\n\
         [[servers]]\nname = \"s\"\nkind = \"openai\"\nurl = \"http://{}\"\n",
        demo().display(),
        server.addr
    );
    let daemon = Setup { rest, ..Setup::default() }.start().await;
    let state = |status: &Value| status["models"][0]["token_count"].as_str().map(str::to_owned);
    daemon.until("compared", |status| state(status).filter(|state| state == "unproven")).await;
    let body = process::ask("scripted", false, 4);
    for _ in 0..3 {
        assert_eq!(daemon.chat(&body).await.header(SOURCE), "exact");
    }
    assert_eq!(state(&daemon.status().await).as_deref(), Some("exact"));

    server.say(bills(3));
    let reply = daemon.chat(&body).await;
    let ours: u64 = reply.header("x-berthd-input-tokens").parse().unwrap();
    daemon.chat(&body).await;
    let lines = daemon.logged(DRIFT);
    assert_eq!(lines.len(), 1, "one line, however many answers: {}", daemon.log());
    let line = &lines[0];
    assert_eq!((line["ours"].as_u64(), line["theirs"].as_u64()), (Some(ours), Some(ours + 3)));
    assert_eq!((line["level"].as_str(), line["server"].as_str()), (Some("WARN"), Some("s")));
    let fingerprint = line["fingerprint"].as_str().unwrap();
    let report = daemon.status().await;
    assert_eq!(report["models"][0]["counting"]["fingerprint"], fingerprint);
    let on = &report["models"][0]["counting"]["servers"][0];
    assert_eq!((on["state"].as_str(), on["ours"].as_u64()), (Some("drifted"), Some(ours)));
    assert_eq!(on["theirs"].as_u64(), Some(ours + 3));
    let (code, table, _) = said(&daemon.command(&["status"]).await);
    let top = format!(
        "!! model scripted on s: input count drifted: an answer of chat was counted as {ours} here and {} by the server (files {fingerprint})",
        ours + 3
    );
    assert!(code == 0 && table.lines().any(|line| line == top), "{table}");
    let page = String::from_utf8(process::get(daemon.admin, "/metrics").await.body).unwrap();
    for line in [
        "berthd_token_count_drifts_total{model=\"scripted\",server=\"s\"} 1",
        "berthd_token_count_state{model=\"scripted\",server=\"s\",state=\"drifted\"} 1",
        "berthd_token_count_state{model=\"scripted\",server=\"s\",state=\"exact\"} 0",
        "berthd_token_count_seconds_count{source=\"exact\"} 4",
        "berthd_token_count_seconds_count{source=\"estimate\"} 1",
    ] {
        assert!(page.lines().any(|found| found == line), "{line} is missing:\n{page}");
    }

    server.say(bills(0));
    for _ in 0..3 {
        assert_eq!(daemon.chat(&body).await.header(SOURCE), "estimate");
    }
    assert_eq!(daemon.chat(&body).await.header(SOURCE), "exact");
    assert_eq!(daemon.logged("input is counted exactly").len(), 2);
    let (_, table, _) = said(&daemon.command(&["status"]).await);
    assert!(!table.contains("!! model"), "{table}");
}
