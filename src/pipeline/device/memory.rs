//! Memory truth in admission: who holds what on the cards becomes what servers may still be given.
//!
//! The rules are `schedule::memory` (what fits) and `schedule::memory::growth` (what a token takes). This task
//! hands them each new reading of the driver. While none comes the last one counts; without a driver there is no guard.

use crate::{
    config::Settings,
    holding::{Holdings, ServerHolding},
    ids::{GpuId, ServerId},
    pipeline::{Broker, dispatch::Placed},
    schedule::memory::{
        Card, Held,
        growth::{Growth, Reading, grows_by_default, per_token_default},
    },
    snapshot::{Answering, GpuPlane, GpuProcess, GpuState},
    units::Bytes,
};
use std::{
    collections::{BTreeMap, HashMap, HashSet},
    sync::Arc,
};
use tokio::{sync::watch::Receiver, time::Instant};

/// Hands on each reading. Never returns; dropping the future ends it, and the last reading goes on to count.
pub async fn watch(broker: Arc<Broker>, mut gpus: Receiver<Arc<GpuPlane>>) {
    let mut guard = Guard::default();
    loop {
        let plane = Arc::clone(&gpus.borrow_and_update());
        guard.take(&broker, &plane);
        if gpus.changed().await.is_err() {
            // The GPU thread ended: the daemon will, too.
            return std::future::pending().await;
        }
    }
}

/// What is remembered between two readings.
#[derive(Debug, Default)]
struct Guard {
    servers: HashMap<ServerId, Growth>,
    /// Cards that told their memory once, as they told it last.
    cards: BTreeMap<GpuId, Card>,
    /// When the cards were read that were taken last.
    read_at: Option<Instant>,
    /// What was found out last about each server.
    held: HashMap<ServerId, Seen>,
}

/// One server as it was seen last.
#[derive(Debug)]
struct Seen {
    gpus: Vec<GpuId>,
    load_gpus: Vec<GpuId>,
    held: Held,
}

/// One reading of all cards, with the owners of their memory.
struct Owners<'a> {
    gpus: &'a [GpuState],
    holdings: &'a Holdings,
    /// Processes of model servers.
    ours: HashSet<u32>,
}

impl Guard {
    fn take(&mut self, broker: &Broker, plane: &GpuPlane) {
        let GpuPlane::Driver(driver) = plane else {
            if self.read_at.is_some() {
                *self = Self::default();
                broker.dispatch.guard(Vec::new(), HashMap::new());
            }
            return;
        };
        // What is read between two rounds tells nothing new of memory, and must not pass for another reading.
        if self.read_at.replace(driver.read_at) == Some(driver.read_at) {
            return;
        }
        let holdings = broker.devices.holdings();
        let ours = holdings.servers.values().flat_map(|server| &server.pids).copied().collect();
        let owners = Owners { gpus: &driver.gpus, holdings: &holdings, ours };
        let live = broker.live.load();
        // Cards that left the driver's list take their guard with them.
        self.cards.retain(|id, _| driver.gpus.iter().any(|gpu| gpu.id == *id));
        for gpu in &driver.gpus {
            if let Some(card) = owners.card(gpu, live.settings.gpu.memory_floor) {
                self.cards.insert(gpu.id.clone(), card);
            }
        }
        let placed = broker.dispatch.placed();
        let here: HashSet<&ServerId> = placed.iter().map(|placed| &placed.server).collect();
        self.servers.retain(|id, _| here.contains(id));
        self.held.retain(|id, _| here.contains(id));
        for placed in &placed {
            self.look(placed, &owners, &live.settings);
        }
        self.hand_over(broker);
    }

    /// Takes what is to be seen of one server. Where nothing is, the last look counts.
    fn look(&mut self, placed: &Placed, owners: &Owners<'_>, settings: &Settings) {
        let config = settings.servers.iter().find(|server| server.name == placed.server);
        let grows = config.and_then(|server| server.memory_grows);
        if !grows.unwrap_or_else(|| grows_by_default(placed.kind)) {
            self.servers.remove(&placed.server);
            self.held.remove(&placed.server);
            return;
        }
        let nowhere = ServerHolding::default();
        let known = owners.holdings.servers.get(&placed.server);
        // Whose processes are not known, what it holds is not known either. One that has loaded nothing has none.
        let holding = match known.filter(|known| !known.pids.is_empty()) {
            Some(known) => known,
            None if placed.on_demand => &nowhere,
            None => return,
        };
        let load_gpus = match config.filter(|server| !server.gpus.is_empty()) {
            Some(config) => config.gpus.clone(),
            None if placed.on_demand && placed.local => owners.whole_cards(),
            None => holding.gpus.keys().cloned().collect(),
        };
        let Some(memory) = owners.memory_of(holding) else { return };
        let Some(foreign) = owners.foreign_on(holding) else { return };
        let growth = self.servers.entry(placed.server.clone()).or_default();
        let reading = Reading {
            pids: &holding.pids,
            memory,
            loaded: placed.loaded,
            loading: placed.loading,
            placed: placed.tokens,
            foreign: &foreign,
        };
        let grown = growth.take(reading, per_token_default(placed.kind));
        let configured = config.and_then(|server| server.memory_per_token);
        let held = Held {
            per_token: configured.unwrap_or(grown.per_token),
            cards: Vec::new(),
            load_cards: Vec::new(),
            growth: grown.growth,
            undisturbed: grown.undisturbed,
        };
        let gpus = holding.gpus.keys().cloned().collect();
        self.held.insert(placed.server.clone(), Seen { gpus, load_gpus, held });
    }

    fn hand_over(&self, broker: &Broker) {
        let place: HashMap<&GpuId, usize> =
            self.cards.keys().enumerate().map(|(index, id)| (id, index)).collect();
        let mut all = HashMap::new();
        for (server, Seen { gpus, load_gpus, held }) in &self.held {
            let cards: Option<Vec<usize>> = gpus.iter().map(|id| place.get(id).copied()).collect();
            let load_cards: Vec<usize> =
                load_gpus.iter().filter_map(|id| place.get(id).copied()).collect();
            // A card that never told its memory guards nothing.
            if let Some(cards) = cards.filter(|cards| !(cards.is_empty() && load_cards.is_empty()))
            {
                all.insert(server.clone(), Held { cards, load_cards, ..held.clone() });
            }
        }
        broker.dispatch.guard(self.cards.values().cloned().collect(), all);
    }
}

impl Owners<'_> {
    fn gpu(&self, id: &GpuId) -> Option<&GpuState> {
        self.gpus.iter().find(|gpu| gpu.id == *id && gpu.answering == Answering::Yes)
    }

    fn card(&self, gpu: &GpuState, floor: Bytes) -> Option<Card> {
        let free = gpu.memory_free.filter(|_| gpu.answering == Answering::Yes)?;
        let foreign = |process: &&GpuProcess| !self.ours.contains(&process.pid);
        let largest = gpu.processes.iter().flatten().filter(foreign);
        let largest = largest.filter_map(|process| Some((process.memory?, process))).max_by_key(
            // Of equals always the same one.
            |(memory, process)| (*memory, std::cmp::Reverse(process.pid)),
        );
        let foreign = largest.map(|(memory, process)| {
            let path = process.name.as_deref().unwrap_or("unnamed");
            let name = path.rsplit('/').next().unwrap_or(path);
            format!("pid {} ({name}) holds {}", process.pid, memory.human())
        });
        Some(Card { gpu: gpu.id.clone(), index: gpu.index, free, floor, foreign })
    }

    /// What one server holds on one card, by this very reading where its processes are known. `None`: the
    /// driver does not tell it.
    fn on(&self, gpu: &GpuState, holding: &ServerHolding) -> Option<Bytes> {
        let processes = gpu.processes.as_ref()?;
        let mut own = processes.iter().filter(|process| holding.pids.contains(&process.pid));
        own.try_fold(Bytes::ZERO, |sum, process| Some(sum.plus(process.memory?)))
    }

    /// What a server holds on all its cards.
    fn memory_of(&self, holding: &ServerHolding) -> Option<Bytes> {
        holding
            .gpus
            .keys()
            .try_fold(Bytes::ZERO, |sum, id| Some(sum.plus(self.on(self.gpu(id)?, holding)?)))
    }

    /// What is in use on the cards of a server and belongs to no server of ours.
    fn foreign_on(&self, holding: &ServerHolding) -> Option<BTreeMap<GpuId, Bytes>> {
        let on = |id: &GpuId| {
            let gpu = self.gpu(id)?;
            let used =
                gpu.memory_used.or_else(|| Some(gpu.memory_total?.less(gpu.memory_free?)))?;
            let servers = self.holdings.servers.values();
            let servers = servers.filter(|server| server.gpus.contains_key(id));
            let ours = servers.filter_map(|server| self.on(gpu, server));
            Some((id.clone(), used.less(ours.fold(Bytes::ZERO, Bytes::plus))))
        };
        holding.gpus.keys().map(on).collect()
    }

    /// Every card that is not cut into parts.
    fn whole_cards(&self) -> Vec<GpuId> {
        let whole = self.gpus.iter().filter(|gpu| gpu.modes.mig != Some(true) && gpu.mig.is_none());
        whole.map(|gpu| gpu.id.clone()).collect()
    }
}
