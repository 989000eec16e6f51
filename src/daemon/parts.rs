//! What lives on while the daemon serves: the watched servers, and how they join, change and leave.

use super::make::{client_limits, live, make};
use super::{Reread, StartError};
use crate::{
    config::{self, Place, Settings},
    ids::ServerId,
    pipeline::Broker,
    servers::{ModelServer, discover, probe, remote::Remote},
    snapshot::{ServedModel, ServerState},
    systemd::Notifier,
};
use std::{
    collections::HashMap,
    future::Future,
    sync::{Arc, atomic::Ordering},
    time::Duration,
};
use tokio::{
    sync::{Notify, watch},
    task::JoinSet,
    time::Instant,
};

/// Time for one look at the default ports.
const DISCOVER_LIMIT: Duration = Duration::from_secs(2);

/// What lives on while the daemon serves.
pub(super) struct Parts {
    pub(super) broker: Arc<Broker>,
    pub(super) watched: HashMap<ServerId, Watched>,
    pub(super) notifier: Notifier,
    pub(super) reread: Reread,
    pub(super) own_ports: Vec<u16>,
}

/// One server's watcher; dropping it ends the watching.
pub(super) struct Watched {
    /// As configured; `None` for a discovered one.
    config: Option<config::Server>,
    /// Turns true after the first look.
    seen: watch::Receiver<bool>,
    _task: JoinSet<()>,
}

impl Parts {
    /// Whether servers on default ports are looked for.
    pub(super) fn discovers(&self) -> bool {
        self.broker.live.load().settings.probe.discover
    }

    /// Waits until every server was looked at once, whatever came of it, or until the time is over.
    pub(super) async fn first_look(&self, give_up: Instant) {
        let mut looks: Vec<watch::Receiver<bool>> =
            self.watched.values().map(|watched| watched.seen.clone()).collect();
        let all = async {
            for look in &mut looks {
                // A watcher that is gone will not look any more.
                let _ = look.wait_for(|seen| *seen).await.map(drop);
            }
        };
        if tokio::time::timeout_at(give_up, all).await.is_err() {
            tracing::warn!("a server does not answer; serving without having seen it");
        }
    }

    /// A configured server joins.
    pub(super) async fn add(&mut self, config: config::Server) -> Result<(), StartError> {
        let live = self.broker.live.load_full();
        let server = make(&config, &live.settings).await?;
        self.watch(server, &live.settings.probe, Some(config));
        Ok(())
    }

    pub(super) fn watch(
        &mut self,
        server: Arc<dyn ModelServer>,
        rules: &config::Probe,
        config: Option<config::Server>,
    ) {
        let id = server.id().clone();
        let nudge = Arc::new(Notify::new());
        let first = unseen(&*server, config.as_ref());
        let (publish, mut readings) = watch::channel(Arc::new(first.clone()));
        let (saw, seen) = watch::channel(false);
        self.broker.dispatch.join(Arc::clone(&server), Arc::clone(&nudge), first);
        let dispatch = Arc::clone(&self.broker.dispatch);
        let rules = rules.clone();
        let mut task = JoinSet::new();
        task.spawn(async move {
            let forward = async {
                while readings.changed().await.is_ok() {
                    let reading = Arc::clone(&readings.borrow_and_update());
                    dispatch.observe(&reading);
                    saw.send_replace(true);
                }
            };
            tokio::join!(probe::watch(server, rules, publish, nudge), forward);
        });
        self.watched.insert(id, Watched { config, seen, _task: task });
    }

    /// Discovered servers join, unless they are known by now.
    pub(super) fn adopt(&mut self, found: Vec<discover::Found>) {
        let live = self.broker.live.load_full();
        for server in found {
            let known = self.watched.values().filter_map(|watched| watched.config.as_ref());
            if known.into_iter().any(|config| place_is(&config.place, server.port)) {
                continue;
            }
            let config = config::Server {
                name: format!("{}-{}", server.kind.as_str(), server.port).into(),
                kind: server.kind,
                place: Place::Http {
                    host: server.host.clone(),
                    port: server.port,
                    prefix: String::new(),
                },
                api_key: None,
                models: Vec::new(),
                kv_tokens: None,
                max_running: None,
            };
            if self.watched.contains_key(&config.name) {
                continue;
            }
            let limits = client_limits(&live.settings);
            let Some(remote) = Remote::new(&config, live.settings.probe.limit, limits) else {
                continue;
            };
            tracing::info!(server = config.name.as_str(), "found a model server");
            self.watch(Arc::new(remote), &live.settings.probe, None);
        }
    }

    /// Reads the configuration again. All of it takes effect, or nothing.
    pub(super) async fn reload(&mut self) -> Result<String, String> {
        self.notifier.reloading();
        let result = self.try_reload().await;
        match &result {
            Ok(what) => tracing::info!(changes = what.as_str(), "configuration reloaded"),
            Err(problems) => {
                tracing::error!(problems = problems.as_str(), "configuration not reloaded");
            }
        }
        self.notifier.ready(&self.status_line());
        result
    }

    pub(super) async fn try_reload(&mut self) -> Result<String, String> {
        let settings = (self.reread)()?;
        let before = self.broker.live.load_full();
        let mut made = Vec::new();
        let mut kept = 0;
        for config in &settings.servers {
            let same = self.watched.get(&config.name).is_some_and(|watched| {
                watched.config.as_ref() == Some(config)
                    && settings.probe == before.settings.probe
                    && settings.relay == before.settings.relay
            });
            if same {
                kept += 1;
            } else {
                let server = make(config, &settings).await.map_err(|error| error.to_string())?;
                made.push((server, config.clone()));
            }
        }
        let next = live(settings, Some(&before)).await.map_err(|error| error.to_string())?;
        // From here on nothing fails.
        let needs_restart = restart_keys(&before.settings, &next.settings);
        let names: Vec<ServerId> =
            next.settings.servers.iter().map(|server| server.name.clone()).collect();
        let probe = next.settings.probe.clone();
        self.broker.dispatch.reconfigure(&next.settings);
        self.broker.live.store(Arc::new(next));
        let gone: Vec<ServerId> = self
            .watched
            .iter()
            .filter(|(id, watched)| watched.config.is_some() && !names.contains(id))
            .map(|(id, _)| id.clone())
            .collect();
        for id in &gone {
            self.watched.remove(id);
            self.broker.dispatch.leave(id);
        }
        let changed = made.len();
        for (server, config) in made {
            self.watch(server, &probe, Some(config));
        }
        let mut what = format!(
            "Reloaded: {kept} servers kept, {changed} new or changed, {} removed.",
            gone.len()
        );
        if !needs_restart.is_empty() {
            what.push_str(&format!(" Needs a restart: {}.", needs_restart.join(", ")));
        }
        Ok(what)
    }

    /// Refuses new work, lets running work finish up to the limit, then ends the rest.
    pub(super) async fn drain(&self, stopping: &watch::Sender<bool>, callers: &mut JoinSet<()>) {
        self.broker.stopping.store(true, Ordering::Relaxed);
        let limit = self.broker.live.load().settings.listen.drain_limit;
        self.notifier.stopping("draining: running requests finish, new ones are refused");
        tracing::info!(limit_s = limit.as_secs_f64(), "stopping: running requests may finish");
        // Nobody is listening only if all callers are gone already.
        let _ = stopping.send(true);
        let finished = async { while callers.join_next().await.is_some() {} };
        if tokio::time::timeout(limit, finished).await.is_err() {
            tracing::warn!("the drain limit is over; ending what still runs");
            callers.shutdown().await;
        }
        tracing::info!("stopped");
    }

    pub(super) fn status_line(&self) -> String {
        let servers = self.broker.dispatch.servers();
        let usable = servers.iter().filter(|server| server.usable).count();
        let running: u32 = servers.iter().map(|server| server.placed).sum();
        let waiting: usize = self.broker.dispatch.waiting().values().sum();
        format!(
            "serving: {usable} of {} servers usable, {running} requests running, {waiting} waiting",
            servers.len()
        )
    }
}

/// Looks for servers after a pause; never resolves when switched off.
pub(super) fn discoveries(
    parts: &Parts,
    pause: Duration,
) -> impl Future<Output = Vec<discover::Found>> + use<> {
    let live = parts.broker.live.load_full();
    let on = live.settings.probe.discover;
    let mut known = parts.own_ports.clone();
    for watched in parts.watched.values() {
        if let Some(config::Server { place: Place::Http { port, .. }, .. }) = &watched.config {
            known.push(*port);
        }
    }
    async move {
        if !on {
            return std::future::pending().await;
        }
        tokio::time::sleep(pause).await;
        discover::discover(DISCOVER_LIMIT, &known).await
    }
}

/// What is known of a server before it is looked at: the models that the configuration names.
fn unseen(server: &dyn ModelServer, config: Option<&config::Server>) -> ServerState {
    let mut state = ServerState::unknown(server.id().clone(), server.kind());
    let named = config.into_iter().flat_map(|config| {
        let own = config::embedded_model(config).filter(|_| config.models.is_empty());
        config.models.iter().cloned().chain(own)
    });
    state.models = named.map(|name| ServedModel { name, context_window: None }).collect();
    state
}

fn place_is(place: &Place, wanted: u16) -> bool {
    matches!(place, Place::Http { port, .. } if *port == wanted)
}

/// Settings that only take effect at start.
fn restart_keys(before: &Settings, after: &Settings) -> Vec<&'static str> {
    let mut keys = Vec::new();
    if before.listen != after.listen {
        keys.push("listen");
    }
    if before.gpu != after.gpu {
        keys.push("gpu");
    }
    if before.threads != after.threads {
        keys.push("threads");
    }
    if before.log != after.log {
        keys.push("log");
    }
    keys
}
