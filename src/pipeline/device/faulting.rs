//! Sick cards take their servers out: events and readings go to the rule, and what follows to the dispatch.
//!
//! An event is heard at once, whatever the readings do meanwhile. What is found out is published, logged and
//! counted here; what it means is decided in [`crate::fault`].

use crate::{
    config::Server,
    fault::{Change, Condition, Faults, Heard, xid::Xid},
    ids::{GpuId, ServerId},
    pipeline::{Broker, dispatch::Footing},
    snapshot::{EventKind, GpuEvent, GpuPlane},
};
use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};
use tokio::{
    sync::{mpsc, oneshot, watch},
    time::{Instant, MissedTickBehavior},
};

/// How often time alone is looked at: readings that grow old, faults that pass, servers that joined.
const TICK: Duration = Duration::from_millis(250);

/// A server whose GPUs are not known any more keeps the last known ones for this long: a process that was
/// just restarted is not on a GPU yet.
const REMEMBER: Duration = Duration::from_secs(60);

/// Events of one GPU are logged at most once in this time; a storm would fill the log.
const LOG_EVERY: Duration = Duration::from_secs(1);

/// Operators' wishes that wait.
const WISHES_MAX: usize = 4;

/// Operators' wishes on their way to the task.
#[derive(Debug)]
pub(super) struct Clearing {
    ask: mpsc::Sender<Wish>,
    /// Guards the receiving end until the task takes it, once.
    take: Mutex<Option<mpsc::Receiver<Wish>>>,
}

/// A GPU that an operator calls well, and the place for the answer: whether there is such a GPU.
type Wish = (GpuId, oneshot::Sender<bool>);

impl Default for Clearing {
    fn default() -> Self {
        let (ask, take) = mpsc::channel(WISHES_MAX);
        Self { ask, take: Mutex::new(Some(take)) }
    }
}

impl Clearing {
    pub(super) async fn ask(&self, gpu: GpuId) -> bool {
        let (give, take) = oneshot::channel();
        self.ask.send((gpu, give)).await.is_ok() && take.await.unwrap_or(false)
    }

    fn take(&self) -> Option<mpsc::Receiver<Wish>> {
        self.take.lock().unwrap_or_else(PoisonError::into_inner).take()
    }
}

/// Watches the GPUs' condition and sets each server's footing by it. Never returns; dropping the future leaves
/// every footing as it is.
pub async fn watch(
    broker: Arc<Broker>,
    mut gpus: watch::Receiver<Arc<GpuPlane>>,
    events: Option<mpsc::Receiver<GpuEvent>>,
) {
    let stale_after = broker.live.load().settings.gpu.stale_after;
    let mut wishes = broker.devices.clearing.take();
    let mut watch = Watch::new(broker, stale_after);
    let (mut events, mut planes_end) = (events, false);
    let mut tick = tokio::time::interval(TICK);
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        // What was published before is read first, so that no event is heard of a card yet unknown.
        tokio::select! {
            biased;
            changed = gpus.changed(), if !planes_end => {
                planes_end = changed.is_err();
                let plane = Arc::clone(&gpus.borrow_and_update());
                watch.faults.read(&plane, Instant::now());
            }
            event = next(&mut events) => watch.hear(&event),
            (gpu, answer) = next(&mut wishes) => {
                let known = watch.clear(&gpu);
                watch.settle();
                // Whoever asked may have left.
                let _ = answer.send(known);
                continue;
            }
            _ = tick.tick() => watch.look_at_servers(),
        }
        watch.settle();
    }
}

/// The next message; for ever if there will be none.
async fn next<T>(channel: &mut Option<mpsc::Receiver<T>>) -> T {
    if let Some(open) = channel {
        if let Some(message) = open.recv().await {
            return message;
        }
        *channel = None;
    }
    std::future::pending().await
}

/// What the task keeps.
struct Watch {
    broker: Arc<Broker>,
    faults: Faults,
    /// The servers whose GPUs are known, or were.
    servers: BTreeMap<ServerId, OnGpus>,
    /// When an event of each GPU was logged last.
    logged: BTreeMap<Option<GpuId>, Instant>,
}

/// One server and its GPUs.
struct OnGpus {
    /// None while they are not known any more.
    gpus: Vec<GpuId>,
    /// When they were known last.
    known_at: Instant,
    /// Times that it came up, and its processes on GPUs where they are known: what tells one process of it
    /// from the next.
    comings: u64,
    pids: Vec<u32>,
    /// When this process was first seen; `None` for the one that was here before us.
    came_at: Option<Instant>,
    /// Nothing new goes there.
    stopped: bool,
}

impl Watch {
    fn new(broker: Arc<Broker>, stale_after: Duration) -> Self {
        Self {
            broker,
            faults: Faults::new(stale_after),
            servers: BTreeMap::new(),
            logged: BTreeMap::new(),
        }
    }

    fn hear(&mut self, event: &GpuEvent) {
        // A server that joined since the last look must not be missed.
        self.look_at_servers();
        let together: Vec<Vec<GpuId>> =
            self.servers.values().map(|server| server.gpus.clone()).collect();
        let groups = together.iter().map(Vec::as_slice);
        let heard = self.faults.hear(event, groups, Instant::now());
        self.note(event, &heard);
        for (id, server) in &self.servers {
            if server.gpus.iter().any(|gpu| heard.probe.contains(gpu)) {
                self.broker.dispatch.suspect(id);
            }
        }
    }

    fn clear(&mut self, gpu: &GpuId) -> bool {
        let known = self.faults.clear(gpu);
        if known {
            tracing::info!(gpu = gpu.as_str(), "an operator calls the GPU well");
        }
        known
    }

    /// Draws the consequences of what came in.
    fn settle(&mut self) {
        for change in self.faults.settle(Instant::now()) {
            log(&change);
            let now = &change.now;
            if now.condition.stops() && !change.from.stops() {
                self.broker.books.metrics.gpu_drained(&now.gpu);
            }
        }
        let health = self.faults.health();
        if *self.broker.devices.health() != health {
            self.broker.books.metrics.gpus_judged(&health);
            self.broker.devices.judge(health);
        }
        self.stand();
    }

    /// Sets the footing of each server whose GPUs are known.
    fn stand(&mut self) {
        let drain = self.broker.live.load().settings.gpu.drain;
        for (id, server) in &mut self.servers {
            let ground = self.faults.ground(&server.gpus);
            // Of GPUs that are not known nothing follows, but that what was said of them is over.
            if ground.is_none() && !server.stopped {
                continue;
            }
            let ground = ground.filter(|_| drain);
            let lost = ground.as_ref().is_some_and(|ground| ground.lost);
            let footing = match ground {
                Some(ground) => Footing { stop: ground.stop, weight: ground.weight },
                None => Footing::default(),
            };
            let (why, weight) = (footing.stop.clone(), footing.weight);
            if !self.broker.dispatch.set_footing(id, footing) {
                continue;
            }
            if lost {
                self.broker.dispatch.recall(id);
            }
            let before = std::mem::replace(&mut server.stopped, why.is_some());
            let server = id.as_str();
            match why {
                Some(why) if !before => {
                    tracing::warn!(server, why, "nothing new goes to this server");
                }
                None if before => tracing::info!(server, "the server's GPUs are well again"),
                _ => tracing::debug!(server, weight, "the server's GPUs changed"),
            }
        }
    }

    /// Who runs where, and whose process was replaced.
    fn look_at_servers(&mut self) {
        let now = Instant::now();
        let live = self.broker.live.load_full();
        let holdings = self.broker.devices.holdings();
        let here = self.broker.dispatch.comings();
        for (id, comings) in &here {
            let held = holdings.servers.get(id);
            let gpus = configured(&live.settings.servers, id)
                .or_else(|| Some(held?.gpus.keys().cloned().collect()))
                .filter(|gpus| !gpus.is_empty());
            let pids = held.map_or(&[][..], |held| &held.pids);
            self.know(id, gpus, *comings, pids, now);
        }
        let (dispatch, is_read) = (&self.broker.dispatch, self.faults.is_read(now));
        self.servers.retain(|id, server| {
            if !is_read {
                // Without the driver nobody is found on a GPU, which says nothing.
                server.known_at = now;
            }
            let here = here.iter().any(|(other, _)| other == id);
            let known = now.saturating_duration_since(server.known_at) < REMEMBER;
            if here && !known && !server.gpus.is_empty() {
                // It computes elsewhere by now, for all that is known. Its processes stay known: what comes
                // back after a long start is told from what was there before.
                server.gpus.clear();
                server.stopped = false;
                dispatch.set_footing(id, Footing::default());
            }
            here
        });
        self.end_by_restart();
    }

    fn know(
        &mut self,
        id: &ServerId,
        gpus: Option<Vec<GpuId>>,
        comings: u64,
        pids: &[u32],
        now: Instant,
    ) {
        if let Some(server) = self.servers.get_mut(id) {
            // Where processes are known, a server that was only silent for a moment is the same one.
            let other = match (server.pids.as_slice(), pids) {
                ([], _) | (_, []) => server.comings != comings,
                (before, now) => !now.iter().any(|pid| before.contains(pid)),
            };
            server.comings = comings;
            if !pids.is_empty() {
                server.pids = pids.to_vec();
            }
            if other {
                server.came_at = Some(now);
            }
            if let Some(gpus) = gpus {
                (server.gpus, server.known_at) = (gpus, now);
            }
        } else if let Some(gpus) = gpus {
            let server = OnGpus {
                gpus,
                known_at: now,
                comings,
                pids: pids.to_vec(),
                came_at: None,
                stopped: false,
            };
            self.servers.insert(id.clone(), server);
        }
    }

    /// Faults of programs end with the programs: once every server of such a GPU runs in a process that began
    /// after the fault.
    fn end_by_restart(&mut self) {
        for (gpu, since) in self.faults.await_restart() {
            let parts = self.faults.parts(&gpu);
            let is_on = |server: &&OnGpus| server.gpus.iter().any(|gpu| parts.contains(gpu));
            let mut on_it = self.servers.values().filter(is_on);
            let first = on_it.next().map(|server| came_after(server, since));
            if first == Some(true) && on_it.all(|server| came_after(server, since)) {
                tracing::info!(gpu = gpu.as_str(), "the servers on the GPU were started anew");
                self.faults.restarted(&gpu);
            }
        }
    }

    /// Counts an event and, unless many come, logs it.
    fn note(&mut self, event: &GpuEvent, heard: &Heard) {
        if let EventKind::Xid(number) = event.kind {
            self.broker.books.metrics.gpu_xid(heard.card.as_ref(), Xid::of(number));
        }
        let what = match event.kind {
            EventKind::Xid(number) => Xid::of(number).to_string(),
            // It is counted by the card itself, comes often, and must not take the place of what is told.
            EventKind::EccSingleBit => return,
            kind => format!("{kind:?}"),
        };
        // As many entries as cards are known, which the rule bounds.
        let last = self.logged.get(&heard.card);
        if last.is_some_and(|at| event.at.saturating_duration_since(*at) < LOG_EVERY) {
            return;
        }
        self.logged.insert(heard.card.clone(), event.at);
        let gpu = heard.card.as_ref().map(GpuId::as_str);
        tracing::info!(gpu, what, "the driver told of an event");
    }
}

fn came_after(server: &OnGpus, since: Instant) -> bool {
    server.came_at.is_some_and(|came| came > since)
}

/// The GPUs that the configuration gives to a server.
fn configured(servers: &[Server], id: &ServerId) -> Option<Vec<GpuId>> {
    let server = servers.iter().find(|server| server.name == *id)?;
    (!server.gpus.is_empty()).then(|| server.gpus.clone())
}

fn log(change: &Change) {
    let now = &change.now;
    let (gpu, index) = (now.gpu.as_str(), change.index);
    let (from, to) = (change.from.as_str(), now.condition.as_str());
    let needs = now.needs.map(|needs| needs.order());
    let why = match (now.condition, now.reasons.as_slice()) {
        (Condition::Unknown, []) => "the driver does not answer".to_owned(),
        (_, reasons) => reasons.join("; "),
    };
    if change.is_worse() {
        tracing::warn!(gpu, index, from, to, why, needs, "the GPU is worse");
    } else {
        tracing::info!(gpu, index, from, to, why, needs, "the GPU is better");
    }
}
