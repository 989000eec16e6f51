//! Scripted servers that count as the shipped model does, or a little otherwise, and what a house makes of
//! them.

use super::{
    house::{House, Plan, chat},
    raw::Reply,
    scripted::{Behaviour, Says, Scripted, Teller},
};
use berthd::{
    api::Route,
    pipeline::count::Counter,
    snapshot::ServerKind,
    tokens::{ModelFiles, Profile},
};
use serde_json::Value;
use std::{
    path::{Path, PathBuf},
    sync::Arc,
};

/// Where an answer says how its input was counted.
pub const SOURCE: &str = "x-berthd-token-count";

pub fn demo() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("models/demo-chat")
}

/// Counts as the shipped model does on such a server, and `off` more; bare texts too.
pub fn teller(kind: ServerKind, off: i64) -> Teller {
    let files = Arc::new(ModelFiles::load(&demo()).unwrap());
    let counter = Counter::new(Arc::clone(&files), Profile::with_files(kind, &files));
    Arc::new(move |body| {
        let fields: Value = serde_json::from_slice(body).ok()?;
        let route = if fields["messages"].is_array() { Route::Chat } else { Route::Completions };
        counter.count_body(route, body).ok()?.get().checked_add_signed(off)
    })
}

/// A server that counts so in its usage and at its endpoint.
pub fn counts(kind: ServerKind, off: i64) -> Says {
    let teller = teller(kind, off);
    Says { usage: Some(Arc::clone(&teller)), endpoint: Some(teller), ..Says::default() }
}

/// One that has no endpoint.
pub fn bills(off: i64) -> Says {
    Says { usage: Some(teller(ServerKind::OpenAi, off)), ..Says::default() }
}

pub async fn scripted(says: Says) -> Scripted {
    let server = Scripted::start(Behaviour::ok()).await;
    server.say(says);
    server
}

pub fn plan() -> Plan {
    Plan::new().probe("period_s = 0.1\nfailures_down = 1")
}

pub fn with_folder(plan: Plan, folder: &Path) -> Plan {
    plan.model("scripted", &format!("folder = \"{}\"", folder.display()))
}

pub async fn ask(house: &House) -> Reply {
    let reply = house.ask(&chat("scripted", "Tell me a story", false)).await;
    assert_eq!(reply.status, 200, "{}", reply.head);
    reply
}

pub async fn source(house: &House) -> String {
    ask(house).await.header(SOURCE).to_owned()
}

/// How the status tells of the model on a server: its state and the reason.
pub fn told(house: &House, server: &str) -> (String, String) {
    let status = house.status();
    let models = status["models"].as_array().unwrap();
    let model = models.iter().find(|model| model["name"] == "scripted").unwrap();
    let list = model["counting"]["servers"].as_array().cloned().unwrap_or_default();
    let on = list.into_iter().find(|on| on["server"] == server).unwrap_or_default();
    let text = |key: &str| on[key].as_str().unwrap_or_default().to_owned();
    (text("state"), text("reason"))
}

pub async fn until(house: &House, server: &str, state: &str) {
    house.until(&format!("{server} is {state}"), |house| told(house, server).0 == state).await;
}

pub fn drifts(house: &House, server: &str) -> f64 {
    let server = format!("server=\"{server}\"");
    house.metric(&["berthd_token_count_drifts_total{", &server]).unwrap_or_default()
}
