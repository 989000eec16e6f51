//! Servers that were found.

use super::*;
use crate::{daemon::make, servers::ModelServer, snapshot::ServedModel, systemd::Notifier};
use config::Settings;
use std::{
    collections::{BTreeSet, HashMap},
    path::PathBuf,
};

fn settings(rows: &str) -> Settings {
    let text = format!(
        "[[tenants]]\nname = \"a\"\nkeys_sha256 = [\"50d858e0985ecc7f60418aaf0cc5ab587f42c2570a884095a9e8ccacd0f6545c\"]\n{rows}"
    );
    config::parse_text("berthd.toml", &text).unwrap().settings
}

/// A daemon's inside without a server; its next reload reads `after`.
async fn parts(before: Settings, after: Settings) -> Parts {
    let live = make::live(before, None).await.unwrap();
    Parts {
        broker: Broker::new(live),
        watched: HashMap::new(),
        notifier: Notifier::default(),
        reread: Box::new(move || Ok(after.clone())),
        own_ports: Vec::new(),
    }
}

fn seen(kind: ServerKind) -> Vec<discover::Found> {
    let host = "127.0.0.1".to_owned();
    // Nothing listens on port 1: whoever asks there finds the server down.
    vec![discover::Found { kind, host, port: 1, models: Vec::new(), version: None }]
}

fn names(parts: &Parts) -> Vec<String> {
    let views = parts.broker.dispatch.servers();
    assert_eq!(views.len(), parts.watched.len(), "watched and dispatched are the same servers");
    views.iter().map(|view| view.state.id.to_string()).collect()
}

fn server(name: &str, url: &str) -> String {
    format!("[[servers]]\nname = \"{name}\"\nkind = \"vllm\"\nurl = \"{url}\"\n")
}

#[test]
fn only_loopback_ports_are_where_discovery_looks() {
    let port = |host: &str| {
        local_port(&Place::Http { host: host.to_owned(), port: 8000, prefix: String::new() })
    };
    for host in ["127.0.0.1", "127.0.0.9", "localhost", "LocalHost", "[::1]", "0.0.0.0"] {
        assert_eq!(port(host), Some(8000), "{host}");
    }
    for host in ["10.0.0.5", "gpu-3", "[fd00::1]", "localhost.example"] {
        assert_eq!(port(host), None, "{host}");
    }
    assert_eq!(local_port(&Place::Folder(PathBuf::from("/m"))), None);
}

// Found once before its pages told the kind, and once after, one process had its room twice.
#[tokio::test(start_paused = true)]
async fn one_port_is_one_server_whatever_it_looks_like() {
    let mut parts = parts(settings(""), settings("")).await;
    parts.adopt(seen(ServerKind::OpenAi));
    assert_eq!(names(&parts), ["openai-1"]);
    parts.adopt(seen(ServerKind::Vllm));
    parts.adopt(seen(ServerKind::Vllm));
    assert_eq!(names(&parts), ["vllm-1"]);
    parts.adopt(seen(ServerKind::OpenAi));
    assert_eq!(names(&parts), ["vllm-1"], "a late page does not make it another");
    tokio::time::sleep(Duration::from_secs(60)).await;
    parts.adopt(seen(ServerKind::OpenAi));
    assert_eq!(names(&parts), ["openai-1"], "but one that stopped answering was replaced");
}

#[tokio::test(start_paused = true)]
async fn a_found_server_that_is_configured_later_leaves() {
    let after = settings(&server("mine", "http://localhost:1"));
    let mut parts = parts(settings(""), after).await;
    parts.adopt(seen(ServerKind::Vllm));
    parts.try_reload().await.unwrap();
    assert_eq!(names(&parts), ["mine"]);
    parts.adopt(seen(ServerKind::Vllm));
    assert_eq!(names(&parts), ["mine"]);
}

#[tokio::test(start_paused = true)]
async fn a_configured_server_elsewhere_hides_no_local_one() {
    let far = settings(&server("far", "http://10.0.0.5:1"));
    let mut parts = parts(far.clone(), far.clone()).await;
    for config in far.servers {
        parts.add(config).await.unwrap();
    }
    parts.adopt(seen(ServerKind::Vllm));
    assert_eq!(names(&parts), ["far", "vllm-1"]);
    parts.try_reload().await.unwrap();
    assert_eq!(names(&parts), ["far", "vllm-1"], "and a reload keeps both");
}

#[tokio::test(start_paused = true)]
async fn a_found_server_that_stays_down_is_forgotten() {
    let mut parts = parts(settings(""), settings("")).await;
    parts.adopt(seen(ServerKind::Vllm));
    tokio::time::sleep(GONE_AFTER.saturating_sub(Duration::from_secs(1))).await;
    parts.adopt(Vec::new());
    assert_eq!(names(&parts), ["vllm-1"]);
    tokio::time::sleep(Duration::from_secs(1)).await;
    parts.adopt(Vec::new());
    assert_eq!(names(&parts), [""; 0]);
}

#[tokio::test(start_paused = true)]
async fn a_reload_that_switches_discovery_off_lets_found_servers_go() {
    let mut parts = parts(settings(""), settings("[probe]\ndiscover = false\n")).await;
    parts.adopt(seen(ServerKind::Vllm));
    parts.try_reload().await.unwrap();
    assert_eq!(names(&parts), [""; 0]);
}

// Any process on the host may list any name; it got the prompts meant for the configured server.
#[tokio::test(start_paused = true)]
async fn a_found_server_offers_nothing_that_the_configuration_speaks_of() {
    let rows = format!(
        "{}models = [\"served\"]\n{}[[models]]\nname = \"known\"\naliases = [\"short\"]\n",
        server("named", "http://10.0.0.5:1"),
        server("lists", "http://10.0.0.6:1"),
    );
    let configured = settings(&rows);
    let mut parts = parts(configured.clone(), configured.clone()).await;
    for config in configured.servers {
        parts.add(config).await.unwrap();
    }
    let model = |name: &str| ServedModel::ready(name.into(), None);
    let mut lists = ServerState::unknown("lists".into(), ServerKind::Vllm);
    lists.models = vec![model("listed")];
    parts.broker.dispatch.observe(&lists);

    let mut stranger = ServerState::unknown("vllm-1".into(), ServerKind::Vllm);
    stranger.models = ["served", "known", "short", "listed", "own"].map(model).to_vec();
    let mut offer = Offer::new(&parts.broker);
    assert_eq!(offer.of(&stranger).models, [model("own")]);
    stranger.models = vec![model("listed")];
    assert_eq!(offer.of(&stranger).models, []);
}

#[tokio::test(start_paused = true)]
async fn servers_on_gpus_join_only_where_that_is_wanted() {
    let offered = |host: &str| Offered {
        kind: ServerKind::Vllm,
        host: host.to_owned(),
        port: 1,
        models: vec!["m".into()],
        version: None,
        gpus: BTreeSet::new(),
        pid: 41,
    };
    let offers = [offered("127.0.0.1"), offered("172.17.0.2"), offered("[fd00::2]")];
    let mut parts_of = parts(settings(""), settings("")).await;
    parts_of.adopt_offered(&offers);
    assert_eq!(names(&parts_of), [""; 0], "by default they are only told of");

    let adopts = "[gpu]\nfound_servers = \"adopt\"\n[probe]\ndiscover = false\n";
    let taken = server("mine", "http://172.17.0.2:1");
    let mut parts = parts(settings(adopts), settings(&format!("{adopts}{taken}"))).await;
    parts.adopt_offered(&offers);
    parts.adopt_offered(&offers);
    assert_eq!(names(&parts), ["vllm-1", "vllm-172.17.0.2-1", "vllm-fd00..2-1"]);
    parts.try_reload().await.unwrap();
    // The one that has an entry by now left; looking at ports or not is another matter.
    assert_eq!(names(&parts), ["mine", "vllm-1", "vllm-fd00..2-1"]);
    parts.adopt_offered(&offers);
    assert_eq!(names(&parts), ["mine", "vllm-1", "vllm-fd00..2-1"]);
    tokio::time::sleep(GONE_AFTER).await;
    parts.forget_gone();
    assert_eq!(names(&parts), ["mine"], "those that stay down are forgotten");
}

// They were listed for ever as servers without an entry: nothing new was found, so nobody looked.
#[tokio::test(start_paused = true)]
async fn a_reload_that_wants_servers_on_gpus_takes_those_that_were_told_of() {
    let told = Offered {
        kind: ServerKind::Vllm,
        host: "127.0.0.1".to_owned(),
        port: 1,
        models: vec!["m".into()],
        version: None,
        gpus: BTreeSet::new(),
        pid: 41,
    };
    let adopts = settings("[gpu]\nfound_servers = \"adopt\"\n[probe]\ndiscover = false\n");
    let mut parts = parts(settings(""), adopts).await;
    parts.broker.devices.offer(vec![told]);
    let outcome = parts.try_reload().await.unwrap();
    assert_eq!(names(&parts), ["vllm-1"]);
    assert!(!outcome.contains("restart"), "{outcome}");
}

#[tokio::test(start_paused = true)]
async fn a_reload_says_which_settings_of_gpus_it_could_not_take() {
    for (key, restart) in [
        ("drain = false", false),
        ("hung_after_s = 5", false),
        ("memory_floor_mib = 1", false),
        ("found_servers = \"off\"", false),
        ("period_s = 2", true),
        ("stale_after_s = 9", true),
        ("enabled = false", true),
    ] {
        let mut parts = parts(settings(""), settings(&format!("[gpu]\n{key}\n"))).await;
        let outcome = parts.try_reload().await.unwrap();
        assert_eq!(outcome.contains("Needs a restart: gpu"), restart, "{key}: {outcome}");
    }
}

// A change of a timeout loaded every embedded model a second time, beside the first.
#[tokio::test(start_paused = true)]
async fn a_change_of_rules_loads_no_embedded_model_again() {
    let http = settings(&server("inside", "http://127.0.0.1:1"));
    let http = http.servers.first().unwrap();
    // The folder does not exist: whoever tried to load it would fail.
    let place = Place::Folder(PathBuf::from("/nonexistent"));
    let folder = config::Server { kind: ServerKind::Embedded, place, ..http.clone() };
    let mut after = settings("[relay]\nidle_limit_s = 7\n[probe]\nperiod_s = 0.5\n");
    after.servers.push(folder.clone());
    let mut parts = parts(settings(""), after).await;
    let limits = client_limits(&parts.broker.live.load().settings);
    let loaded: Arc<dyn ModelServer> = Arc::new(Remote::new(http, DISCOVER_LIMIT, limits).unwrap());
    let rules = parts.broker.live.load().settings.probe.clone();
    parts.watch(loaded, &rules, folder, Origin::Configured);
    let told = parts.try_reload().await.unwrap();
    assert!(told.contains("1 servers kept, 0 new or changed, 0 removed"), "{told}");
    assert_eq!(names(&parts), ["inside"]);
}
