//! Servers that count input otherwise than we do: caught at attach or at the first answer, told, counted by
//! their own word, and believed again when they agree.

use crate::support::{
    house::{House, Plan, chat},
    raw::Reply,
    scripted::{Behaviour, Says, Scripted, Teller},
};
use berthd::{
    api::Route,
    cli::table,
    pipeline::count::Counter,
    snapshot::ServerKind,
    tokens::{ModelFiles, Profile},
};
use serde_json::{Value, json};
use std::{
    fs,
    path::{Path, PathBuf},
    sync::Arc,
};
use tempfile::TempDir;

const SOURCE: &str = "x-berthd-token-count";

fn demo() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("models/demo-chat")
}

/// Counts as the shipped model does on such a server, and `off` more; bare texts too.
pub fn teller(kind: ServerKind, off: i64) -> Teller {
    let files = Arc::new(ModelFiles::load(&demo()).unwrap());
    let counter = Counter::new(Arc::clone(&files), Profile::with_files(kind, &files));
    Arc::new(move |body| {
        let fields: Value = serde_json::from_slice(body).ok()?;
        let route = if fields["messages"].is_array() { Route::Chat } else { Route::Completions };
        counter.count(route, body).ok()?.get().checked_add_signed(off)
    })
}

/// A server that counts so in its usage and at its endpoint.
fn counts(kind: ServerKind, off: i64) -> Says {
    let teller = teller(kind, off);
    Says { usage: Some(Arc::clone(&teller)), endpoint: Some(teller), ..Says::default() }
}

/// One that has no endpoint.
fn bills(off: i64) -> Says {
    Says { usage: Some(teller(ServerKind::OpenAi, off)), ..Says::default() }
}

async fn scripted(says: Says) -> Scripted {
    let server = Scripted::start(Behaviour::ok()).await;
    server.say(says);
    server
}

fn plan() -> Plan {
    Plan::new().probe("period_s = 0.1\nfailures_down = 1")
}

fn with_folder(plan: Plan, folder: &Path) -> Plan {
    plan.model("scripted", &format!("folder = \"{}\"", folder.display()))
}

async fn ask(house: &House) -> Reply {
    let reply = house.ask(&chat("scripted", "Tell me a story", false)).await;
    assert_eq!(reply.status, 200, "{}", reply.head);
    reply
}

async fn source(house: &House) -> String {
    ask(house).await.header(SOURCE).to_owned()
}

/// How the status tells of the model on a server: its state and the reason.
fn told(house: &House, server: &str) -> (String, String) {
    let status = house.status();
    let models = status["models"].as_array().unwrap();
    let model = models.iter().find(|model| model["name"] == "scripted").unwrap();
    let list = model["counting"]["servers"].as_array().cloned().unwrap_or_default();
    let on = list.into_iter().find(|on| on["server"] == server).unwrap_or_default();
    let text = |key: &str| on[key].as_str().unwrap_or_default().to_owned();
    (text("state"), text("reason"))
}

async fn until(house: &House, server: &str, state: &str) {
    house.until(&format!("{server} is {state}"), |house| told(house, server).0 == state).await;
}

fn drifts(house: &House, server: &str) -> f64 {
    let server = format!("server=\"{server}\"");
    house.metric(&["berthd_token_count_drifts_total{", &server]).unwrap_or_default()
}

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

#[tokio::test]
async fn a_server_that_counts_otherwise_from_the_start_is_never_called_exact() {
    let server = scripted(counts(ServerKind::Vllm, 5)).await;
    let plan = with_folder(plan(), &demo()).server_of("vllm", "s", server.addr, "");
    let house = House::open(&plan).await;
    until(&house, "s", "estimated").await;
    assert!(told(&house, "s").1.starts_with("probe \"one question\": "), "{:?}", told(&house, "s"));
    for _ in 0..4 {
        assert_eq!(source(&house).await, "server");
    }
    assert_eq!(drifts(&house, "s"), 0.0, "it had never been exact");
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

#[tokio::test]
async fn a_reload_with_other_files_is_compared_anew() {
    let folder = TempDir::new().unwrap();
    for entry in fs::read_dir(demo()).unwrap() {
        let entry = entry.unwrap();
        fs::copy(entry.path(), folder.path().join(entry.file_name())).unwrap();
    }
    let server = scripted(counts(ServerKind::Vllm, 0)).await;
    let plan = with_folder(plan(), folder.path()).server_of("vllm", "s", server.addr, "");
    let house = House::open(&plan).await;
    until(&house, "s", "exact").await;

    let template = folder.path().join("chat_template.jinja");
    let good = fs::read_to_string(&template).unwrap();
    fs::write(&template, format!("{good}and more")).unwrap();
    house.reload().await;
    until(&house, "s", "estimated").await;
    assert_eq!(source(&house).await, "server");

    fs::write(&template, good).unwrap();
    house.reload().await;
    until(&house, "s", "exact").await;
    assert_eq!(source(&house).await, "exact");

    house.reload().await;
    assert_eq!(source(&house).await, "exact");
    assert_eq!(told(&house, "s").0, "exact", "the same files keep what they have proven");
    house.close().await;
}

#[tokio::test]
async fn a_server_that_comes_back_with_another_template_is_caught_before_its_first_answer() {
    let server = scripted(counts(ServerKind::Vllm, 0)).await;
    let plan = with_folder(plan(), &demo()).server_of("vllm", "s", server.addr, "");
    let house = House::open(&plan).await;
    until(&house, "s", "exact").await;
    server.say(Says { down: true, ..counts(ServerKind::Vllm, 0) });
    house.until("it is down", |house| !house.server("s").usable).await;
    server.say(counts(ServerKind::Vllm, 4));
    until(&house, "s", "estimated").await;
    assert_eq!(server.hits.requests(), 0);
    assert_eq!(source(&house).await, "server");
    house.close().await;
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

/// Files that nobody configured count once they agreed with the server, and not before.
#[tokio::test]
async fn found_files_are_believed_after_they_agreed() {
    let root = || Some(demo().display().to_string());
    let server = scripted(Says { root: root(), ..counts(ServerKind::Vllm, 0) }).await;
    let house = House::open(&plan().server_of("vllm", "s", server.addr, "")).await;
    until(&house, "s", "exact").await;
    assert_eq!(source(&house).await, "exact");
    let model = &house.status()["models"][0]["counting"];
    assert_eq!(
        (model["origin"].as_str(), model["folder"].as_str()),
        (Some("found"), root().as_deref())
    );
    house.close().await;

    // The server runs other files than those.
    let server = scripted(Says { root: root(), ..counts(ServerKind::Vllm, 2) }).await;
    let house = House::open(&plan().server_of("vllm", "s", server.addr, "")).await;
    until(&house, "s", "estimated").await;
    assert_eq!(source(&house).await, "server");
    assert_eq!(drifts(&house, "s"), 0.0);
    house.close().await;

    // It cannot be asked: its answers speak.
    let says = Says { root: root(), usage: counts(ServerKind::Vllm, 0).usage, ..Says::default() };
    let server = scripted(says).await;
    let house = House::open(&plan().server_of("vllm", "s", server.addr, "")).await;
    until(&house, "s", "unproven").await;
    for _ in 0..3 {
        assert_eq!(source(&house).await, "estimate");
    }
    assert_eq!(source(&house).await, "exact");
    house.close().await;
}

#[tokio::test]
async fn a_search_that_is_switched_off_finds_nothing() {
    let root = Some(demo().display().to_string());
    let server = scripted(Says { root, ..counts(ServerKind::Vllm, 0) }).await;
    let plan = plan().server_of("vllm", "s", server.addr, "").tokens("search = false");
    let house = House::open(&plan).await;
    for _ in 0..3 {
        assert_eq!(source(&house).await, "server");
        // What the watcher of counts does at each look.
        house.broker.trust.wake();
        tokio::task::yield_now().await;
    }
    assert_eq!(house.status()["models"][0]["token_count"], "server or estimate");
    house.close().await;
}
