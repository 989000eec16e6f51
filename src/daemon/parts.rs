//! What lives on while the daemon serves: the watched servers, and how they join, change and leave.

use super::found::{self, Offer};
use super::make::{live, make};
use super::{Reread, StartError};
use crate::{
    config::{self, FoundOnGpu, Place, Settings},
    ids::{ModelName, ServerId},
    pipeline::Broker,
    servers::{ModelServer, kv_events, probe},
    snapshot::{ServedModel, ServerState},
    systemd::Notifier,
};
use std::{
    collections::HashMap,
    sync::{Arc, atomic::Ordering},
};
use tokio::{
    sync::{Notify, mpsc, watch},
    task::JoinSet,
    time::Instant,
};

/// What lives on while the daemon serves.
pub(super) struct Parts {
    pub(super) broker: Arc<Broker>,
    pub(super) watched: HashMap<ServerId, Watched>,
    pub(super) notifier: Notifier,
    pub(super) reread: Reread,
    pub(super) own_ports: Vec<u16>,
}

/// How a server came to be known.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Origin {
    /// The configuration has an entry for it.
    Configured,
    /// It was found on a default port.
    Port,
    /// It was found by its process on a GPU.
    Gpu,
}

/// Changes of a server's cache that wait to be taken in. Each is a batch of the server's: a few steps' worth.
const CACHE_CHANGES_MAX: usize = 256;

/// Follows what a server's cache holds, where it says so. Never ends.
async fn follow_cache(broker: Arc<Broker>, id: ServerId, endpoint: config::KvEndpoint) {
    let (tell, mut told) = mpsc::channel(CACHE_CHANGES_MAX);
    let take = async {
        while let Some((server, change)) = told.recv().await {
            broker.dispatch.kv_changed(&server, &change);
        }
    };
    tokio::join!(kv_events::follow(id, endpoint, tell, Arc::default()), take);
}

/// One server's watcher; dropping it ends the watching.
pub(super) struct Watched {
    /// As configured, or as discovery made it up.
    pub(super) config: config::Server,
    /// Who named it.
    pub(super) origin: Origin,
    /// When it was first watched; stands in for the last answer of one that never gave any.
    pub(super) since: Instant,
    /// What it said last, whole.
    pub(super) readings: watch::Receiver<Arc<ServerState>>,
    server: Arc<dyn ModelServer>,
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
        self.watch(server, &live.settings.probe, config, Origin::Configured);
        Ok(())
    }

    pub(super) fn watch(
        &mut self,
        server: Arc<dyn ModelServer>,
        rules: &config::Probe,
        config: config::Server,
        origin: Origin,
    ) {
        let id = server.id().clone();
        let nudge = Arc::new(Notify::new());
        let first = unseen(&*server, &config);
        let (publish, mut readings) = watch::channel(Arc::new(first.clone()));
        let (saw, seen) = watch::channel(false);
        self.broker.dispatch.join(Arc::clone(&server), Arc::clone(&nudge), first);
        let dispatch = Arc::clone(&self.broker.dispatch);
        let mut offer = (origin != Origin::Configured).then(|| Offer::new(&self.broker));
        let rules = rules.clone();
        let (kept, since) = (readings.clone(), Instant::now());
        let mut task = JoinSet::new();
        let asked = Arc::clone(&server);
        task.spawn(async move {
            let forward = async {
                while readings.changed().await.is_ok() {
                    let reading = Arc::clone(&readings.borrow_and_update());
                    match &mut offer {
                        Some(offer) => dispatch.observe(&offer.of(&reading)),
                        None => dispatch.observe(&reading),
                    }
                    saw.send_replace(true);
                }
            };
            tokio::join!(probe::watch(asked, rules, publish, nudge), forward);
        });
        if let Some(endpoint) = config.kv_events.clone() {
            task.spawn(follow_cache(Arc::clone(&self.broker), id.clone(), endpoint));
        }
        let watched = Watched { config, origin, since, readings: kept, server, seen, _task: task };
        self.watched.insert(id, watched);
    }

    /// A server leaves: nothing new goes there, what runs may finish.
    pub(super) fn leave(&mut self, id: &ServerId) {
        self.watched.remove(id);
        self.broker.dispatch.leave(id);
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
        let rules_same =
            settings.probe == before.settings.probe && settings.relay == before.settings.relay;
        let mut made = Vec::new();
        let (mut kept, mut changed) = (0, 0);
        for config in &settings.servers {
            let known = self.watched.get(&config.name);
            let configured = |watched: &&Watched| watched.origin == Origin::Configured;
            let known = known.filter(|watched| configured(watched) && watched.config == *config);
            match known {
                Some(_) if rules_same => kept += 1,
                // A model in this process has no connection: it is watched by the new rules, and not
                // loaded a second time beside itself.
                Some(watched) if matches!(config.place, Place::Folder(_)) => {
                    kept += 1;
                    made.push((Arc::clone(&watched.server), config.clone()));
                }
                _ => {
                    changed += 1;
                    let server =
                        make(config, &settings).await.map_err(|error| error.to_string())?;
                    made.push((server, config.clone()));
                }
            }
        }
        let next = live(settings, Some(&before)).await.map_err(|error| error.to_string())?;
        // From here on nothing fails.
        let needs_restart = restart_keys(&before.settings, &next.settings);
        let (probe, servers) = (next.settings.probe.clone(), next.settings.servers.clone());
        self.broker.dispatch.reconfigure(&next.settings);
        self.broker.live.store(Arc::new(next));
        let gone = self.gone(&servers, probe.discover);
        for id in &gone {
            self.leave(id);
        }
        for (server, config) in made {
            self.watch(server, &probe, config, Origin::Configured);
        }
        // Those that were only told of so far; nothing new need be found for them.
        let offers = Arc::clone(&self.broker.devices.watch_offers().borrow());
        self.adopt_offered(&offers);
        self.broker.trust.wake();
        let mut what = format!(
            "Reloaded: {kept} servers kept, {changed} new or changed, {} removed.",
            gone.len()
        );
        if !needs_restart.is_empty() {
            what.push_str(&format!(" Needs a restart: {}.", needs_restart.join(", ")));
        }
        Ok(what)
    }

    /// The servers for which there is no place any more: those no longer configured, and found ones that
    /// are configured by now, or that nobody looks for any more.
    fn gone(&self, servers: &[config::Server], discover: bool) -> Vec<ServerId> {
        let adopts = self.broker.live.load().settings.gpu.found == FoundOnGpu::Adopt;
        let stays = |id: &ServerId, watched: &Watched| {
            if servers.iter().any(|server| server.name == *id) {
                return true;
            }
            let configured = || {
                servers.iter().any(|one| found::is_same_place(&one.place, &watched.config.place))
            };
            let looked_for = match watched.origin {
                Origin::Configured => false,
                Origin::Port => discover,
                Origin::Gpu => adopts,
            };
            looked_for && !configured()
        };
        let gone = self.watched.iter().filter(|(id, watched)| !stays(id, watched));
        gone.map(|(id, _)| id.clone()).collect()
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

/// What is known of a server before it is looked at: the models that the configuration names.
fn unseen(server: &dyn ModelServer, config: &config::Server) -> ServerState {
    let mut state = ServerState::unknown(server.id().clone(), server.kind());
    state.models = named(config).map(|name| ServedModel::ready(name, None)).collect();
    state
}

/// The models that the configuration of a server names.
pub(super) fn named(config: &config::Server) -> impl Iterator<Item = ModelName> {
    let own = config::embedded_model(config).filter(|_| config.models.is_empty());
    config.models.iter().cloned().chain(own)
}

/// Of `[gpu]` only what the GPU thread was started with; the rest is read anew for each decision.
fn gpu_restart_keys(before: &config::Gpu, after: &config::Gpu) -> Vec<&'static str> {
    let changed = [
        ("gpu.enabled", before.enabled != after.enabled),
        ("gpu.nvml_library", before.nvml_library != after.nvml_library),
        ("gpu.period_s", before.period != after.period),
        ("gpu.fast_period_s", before.fast_period != after.fast_period),
        ("gpu.stale_after_s", before.stale_after != after.stale_after),
    ];
    changed.into_iter().filter(|(_, changed)| *changed).map(|(key, _)| key).collect()
}

/// Settings that only take effect at start.
fn restart_keys(before: &Settings, after: &Settings) -> Vec<&'static str> {
    let mut keys = Vec::new();
    if before.listen != after.listen {
        keys.push("listen");
    }
    keys.extend(gpu_restart_keys(&before.gpu, &after.gpu));
    if before.threads != after.threads {
        keys.push("threads");
    }
    if before.log != after.log {
        keys.push("log");
    }
    keys
}
