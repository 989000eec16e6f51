//! Servers that nobody configured: looking for them, taking them in, letting them go, and what they
//! may offer.
//!
//! Anybody who may open a port on this host can be found. So a found server never offers what the
//! configuration already gives to another: a stranger would read tenants' prompts, or shrink a window.

use super::make::client_limits;
use super::parts::{Origin, Parts, Watched, named};
use crate::{
    config::{self, FoundOnGpu, Place},
    ids::{ModelName, ServerId},
    pipeline::{Broker, device::Offer as Offered},
    servers::{discover, remote::Remote},
    snapshot::{Health, ServerKind, ServerState},
};
use std::{collections::HashSet, future::Future, net::IpAddr, sync::Arc, time::Duration};
use tokio::time::Instant;

/// Time for one look at the default ports.
const DISCOVER_LIMIT: Duration = Duration::from_secs(2);

/// A found server that is down this long is gone: longer than a restart with a large model takes.
const GONE_AFTER: Duration = Duration::from_secs(600);

/// Names of models in one warning.
const TOLD_MAX: usize = 8;

/// What a found server may offer.
pub(super) struct Offer {
    broker: Arc<Broker>,
    warned: bool,
}

impl Parts {
    /// Discovered servers join, unless they are known by now; those long down leave.
    pub(super) fn adopt(&mut self, found: Vec<discover::Found>) {
        self.forget_gone();
        for server in found {
            self.adopt_one(&server, Origin::Port);
        }
    }

    /// Servers that were found by their process on a GPU join in the same way, if the operator wants it.
    pub(super) fn adopt_offered(&mut self, offers: &[Offered]) {
        if self.broker.live.load().settings.gpu.found != FoundOnGpu::Adopt {
            return;
        }
        for offer in offers {
            let found = discover::Found {
                kind: offer.kind,
                host: offer.host.clone(),
                port: offer.port,
                models: Vec::new(),
                version: offer.version.clone(),
            };
            self.adopt_one(&found, Origin::Gpu);
        }
    }

    /// Found servers that are down for long leave.
    pub(super) fn forget_gone(&mut self) {
        let now = Instant::now();
        let found = |watched: &Watched| watched.origin != Origin::Configured;
        let gone = |watched: &&Watched| found(watched) && long_down(watched, now);
        let gone: Vec<ServerId> =
            self.watched.values().filter(gone).map(|watched| watched.config.name.clone()).collect();
        for id in &gone {
            tracing::info!(server = id.as_str(), "a found server stayed down and is forgotten");
            self.leave(id);
        }
    }

    fn adopt_one(&mut self, server: &discover::Found, origin: Origin) {
        let config = configured(server);
        let same = |watched: &&Watched| is_same_place(&watched.config.place, &config.place);
        let there = self.watched.values().find(same);
        let before = match there {
            // Configured, or found before.
            Some(watched)
                if watched.origin == Origin::Configured || watched.config.kind == server.kind =>
            {
                return;
            }
            // A page that came late makes any server look like a plain one; one that answers as what it
            // was taken for stays that.
            Some(watched) if server.kind == ServerKind::OpenAi && !is_down(watched) => return,
            Some(watched) => Some(watched.config.name.clone()),
            None => None,
        };
        // One process is one server, else its room would count twice.
        if let Some(before) = before {
            self.leave(&before);
        }
        if self.watched.contains_key(&config.name) {
            return;
        }
        let live = self.broker.live.load_full();
        let limits = client_limits(&live.settings);
        let Some(remote) = Remote::new(&config, live.settings.probe.limit, limits) else { return };
        tracing::info!(server = config.name.as_str(), "found a model server");
        self.watch(Arc::new(remote), &live.settings.probe, config, origin);
    }
}

/// Looks for servers after a pause; never resolves when switched off.
pub(super) fn discoveries(
    parts: &Parts,
    pause: Duration,
) -> impl Future<Output = Vec<discover::Found>> + use<> {
    let on = parts.discovers();
    let mut known = parts.own_ports.clone();
    let configured = parts.watched.values().filter(|watched| watched.origin == Origin::Configured);
    known.extend(configured.filter_map(|watched| local_port(&watched.config.place)));
    async move {
        if !on {
            return std::future::pending().await;
        }
        tokio::time::sleep(pause).await;
        discover::discover(DISCOVER_LIMIT, &known).await
    }
}

/// The port of a server that listens on this host's loopback; only there is looked.
pub(super) fn local_port(place: &Place) -> Option<u16> {
    let Place::Http { host, port, .. } = place else { return None };
    let ip = host.trim_start_matches('[').trim_end_matches(']').parse::<IpAddr>();
    let local = match ip {
        // To connect to no address in particular leads to loopback, too.
        Ok(ip) => ip.to_canonical().is_loopback() || ip.is_unspecified(),
        Err(_) => host.trim_end_matches('.').eq_ignore_ascii_case("localhost"),
    };
    local.then_some(*port)
}

/// Do both addresses lead to the same listener? On this host's loopback the port tells.
pub(super) fn is_same_place(one: &Place, other: &Place) -> bool {
    match (local_port(one), local_port(other)) {
        (Some(one), Some(other)) => one == other,
        (None, None) => match (one, other) {
            (Place::Http { host, port, .. }, Place::Http { host: to, port: at, .. }) => {
                host.eq_ignore_ascii_case(to) && port == at
            }
            _ => false,
        },
        _ => false,
    }
}

/// A found server's name: its kind and port, and its host if that is not loopback.
fn name(server: &discover::Found, place: &Place) -> ServerId {
    let kind = server.kind.as_str();
    if local_port(place).is_some() {
        return format!("{kind}-{}", server.port).into();
    }
    let plain = |letter: char| if letter.is_ascii_alphanumeric() { letter } else { '.' };
    let bare = server.host.trim_matches(['[', ']']);
    let host: String = bare.chars().map(plain).collect();
    format!("{kind}-{host}-{}", server.port).into()
}

/// The entry that an operator would have written.
fn configured(server: &discover::Found) -> config::Server {
    let place = Place::Http { host: server.host.clone(), port: server.port, prefix: String::new() };
    config::Server {
        name: name(server, &place),
        kind: server.kind,
        place,
        api_key: None,
        models: Vec::new(),
        kv_tokens: None,
        max_running: None,
        send_token_ids: false,
        priority: false,
        paced: None,
        gpus: Vec::new(),
        memory_grows: None,
        memory_per_token: None,
        kv_events: None,
    }
}

fn is_down(watched: &Watched) -> bool {
    matches!(watched.readings.borrow().health, Health::Down(_))
}

fn long_down(watched: &Watched, now: Instant) -> bool {
    let answered = watched.readings.borrow().read_at.unwrap_or(watched.since);
    is_down(watched) && now.duration_since(answered) >= GONE_AFTER
}

// === impl Offer ===

impl Offer {
    pub(super) fn new(broker: &Arc<Broker>) -> Self {
        Self { broker: Arc::clone(broker), warned: false }
    }

    /// A reading without the models that are not this server's to offer.
    pub(super) fn of(&mut self, reading: &ServerState) -> ServerState {
        let taken = taken(&self.broker);
        let (kept, dropped): (Vec<_>, Vec<_>) =
            reading.models.iter().cloned().partition(|model| !taken.contains(&model.name));
        if !dropped.is_empty() && !self.warned {
            self.warned = true;
            let names: Vec<&str> =
                dropped.iter().take(TOLD_MAX).map(|model| model.name.as_str()).collect();
            tracing::warn!(
                server = reading.id.as_str(),
                models = ?names,
                "a found server lists models that the configuration gives to others; it gets no requests for them"
            );
        }
        ServerState { models: kept, ..reading.clone() }
    }
}

/// Every model name that the configuration speaks of, and every one that a configured server lists.
fn taken(broker: &Broker) -> HashSet<ModelName> {
    let live = broker.live.load();
    let settings = &live.settings;
    let mut taken: HashSet<ModelName> = settings.servers.iter().flat_map(named).collect();
    for model in &settings.models {
        taken.insert(model.name.clone());
        taken.extend(model.aliases.iter().cloned());
    }
    let ours: HashSet<&ServerId> = settings.servers.iter().map(|server| &server.name).collect();
    for view in broker.dispatch.servers() {
        if ours.contains(&view.state.id) {
            taken.extend(view.state.models.into_iter().map(|model| model.name));
        }
    }
    taken
}

#[cfg(test)]
#[path = "found_tests.rs"]
mod tests;
