//! Joins what the driver lists with what the kernel says about processes and with the servers.

use super::{
    Candidate, GpuHolding, Holdings, How, Owner, Resident, ServerHolding,
    bytes::{self, Part},
    claims::{Claim, claim},
    homes::{Home, home},
    offers,
};
use crate::{
    ids::{GpuId, ServerId},
    snapshot::{GpuProcess, GpuState, Process, ProcessTable, TICKS_PER_S},
    units::Bytes,
};
use std::collections::{BTreeMap, BTreeSet};
use tokio::time::Instant;

/// What there is to join.
#[derive(Clone, Copy, Debug)]
pub struct Scene<'a> {
    /// The GPUs; empty while the driver does not answer.
    pub gpus: &'a [GpuState],
    /// When they were read.
    pub gpus_read_at: Instant,
    /// The processes, read after the GPUs.
    pub table: &'a ProcessTable,
    /// The servers.
    pub residents: &'a [Resident],
    /// The daemon's own process.
    pub own_pid: u32,
}

/// What came of it.
#[derive(Clone, Debug, Default)]
pub struct Joined {
    /// Who holds what.
    pub holdings: Holdings,
    /// Servers that hold memory on other GPUs than the configuration gives them, with those.
    pub differ: Vec<(ServerId, Vec<GpuId>)>,
    /// Listeners of processes on GPUs that are no known server's.
    pub candidates: Vec<Candidate>,
}

/// What must be remembered between two joins: which processes showed that a server uses a GPU. While a
/// card lists no processes, the last word on it stands as long as one of them lives.
#[derive(Clone, Debug, Default)]
pub struct Book {
    seen: BTreeMap<ServerId, BTreeMap<GpuId, Evidence>>,
}

/// By what a server was found on a GPU.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Evidence {
    how: How,
    /// Processes by id and start.
    processes: BTreeSet<(u32, u64)>,
}

/// The processes of a table as they were when the GPUs were read.
struct Present<'a> {
    table: &'a ProcessTable,
    /// The last tick of the kernel's clock in which a process on a GPU can have started.
    latest: u64,
}

/// What was found on the GPUs about one server.
#[derive(Default)]
struct Found {
    gpus: BTreeMap<GpuId, Option<Bytes>>,
    pids: BTreeSet<u32>,
    how: How,
}

impl Book {
    /// Processes that must be looked at even if no GPU lists them any more.
    pub fn pids(&self) -> BTreeSet<u32> {
        let evidence = self.seen.values().flat_map(BTreeMap::values);
        evidence.flat_map(|one| one.processes.iter().map(|(pid, _)| *pid)).collect()
    }

    /// Joins once.
    pub fn join(&mut self, scene: &Scene<'_>) -> Joined {
        let present = Present::new(scene);
        let residents = scene.residents.iter();
        let homes: Vec<(ServerId, Home)> =
            residents.map(|one| (one.id.clone(), home(one, scene.table, scene.own_pid))).collect();
        let on_gpus: BTreeSet<u32> = lists(scene.gpus).map(|(_, process)| process.pid).collect();
        let whole = |gpu: &GpuState| {
            !scene.gpus.iter().any(|one| one.mig.as_ref().is_some_and(|mig| mig.parent == gpu.id))
        };

        let mut found: BTreeMap<ServerId, Found> = BTreeMap::new();
        let mut gpus: Vec<GpuHolding> = Vec::new();
        let mut strangers: Vec<(GpuId, u32)> = Vec::new();
        let mut fresh: BTreeMap<ServerId, BTreeMap<GpuId, Evidence>> = BTreeMap::new();
        for gpu in scene.gpus {
            let mut parts = Vec::new();
            let mut claims = Vec::new();
            for process in processes(gpu, scene.gpus) {
                let known = present.process(process.pid);
                let claim = known
                    .map_or(Claim::Nobody, |known| claim(known, scene.table, &homes, &on_gpus));
                let owner = owner(&claim, process, known);
                parts.push(Part { owner, pid: process.pid, memory: process.memory });
                claims.push((claim, known));
            }
            bytes::fit(&mut parts, gpu.memory_used);
            gpus.push(bytes::holding(gpu, &parts));
            // A card that is cut up is used through its parts.
            if !whole(gpu) {
                continue;
            }
            for (part, (claim, known)) in parts.iter().zip(claims) {
                let (servers, how, memory) = match claim {
                    Claim::One(server, how) => (vec![server], how, part.memory),
                    Claim::Several(servers) => (servers, How::Group, None),
                    Claim::Nobody => {
                        strangers.push((gpu.id.clone(), part.pid));
                        continue;
                    }
                };
                for server in servers {
                    found.entry(server.clone()).or_default().add(&gpu.id, part.pid, memory, how);
                    let evidence = fresh.entry(server.clone()).or_default();
                    let evidence = evidence
                        .entry(gpu.id.clone())
                        .or_insert_with(|| Evidence { how, processes: BTreeSet::new() });
                    evidence.processes.extend(known.map(|known| (known.pid, known.started)));
                }
            }
        }
        self.remember(scene, &present, &homes, fresh, &mut found);

        let mut joined = Joined::default();
        let units = scene.gpus.iter().filter(|gpu| whole(gpu)).count();
        let only = scene.gpus.iter().find(|gpu| whole(gpu)).filter(|_| units == 1);
        let all_known = scene.gpus.iter().all(|gpu| gpu.processes.is_some())
            && on_gpus.iter().all(|pid| present.process(*pid).is_some());
        for (resident, (_, home)) in scene.residents.iter().zip(&homes) {
            let found = found.remove(&resident.id);
            let was_found = found.is_some();
            let found = found.unwrap_or_default();
            let pids: Vec<u32> = found.pids.iter().copied().collect();
            let holding = if !resident.gpus.is_empty() {
                let differ: Vec<GpuId> = found.gpus.keys().cloned().collect();
                let configured: BTreeSet<&GpuId> = resident.gpus.iter().collect();
                if !differ.is_empty() && !differ.iter().all(|gpu| configured.contains(gpu)) {
                    joined.differ.push((resident.id.clone(), differ));
                }
                let of = |gpu: &GpuId| (gpu.clone(), found.gpus.get(gpu).copied().flatten());
                let gpus = resident.gpus.iter().map(of).collect();
                ServerHolding { gpus, pids, how: How::Configured }
            } else if was_found {
                ServerHolding { gpus: found.gpus, pids, how: found.how }
            } else if home.is_seen() {
                // Nothing was found of it, and there was nothing that could hide it.
                if !all_known || scene.gpus.is_empty() {
                    continue;
                }
                ServerHolding { gpus: BTreeMap::new(), pids, how: How::Socket }
            } else if let (true, Some(only)) = (home.local, only) {
                let gpus = BTreeMap::from([(only.id.clone(), None)]);
                ServerHolding { gpus, pids, how: How::OnlyGpu }
            } else {
                continue;
            };
            joined.holdings.servers.insert(resident.id.clone(), holding);
        }
        let taken: BTreeSet<u64> =
            homes.iter().flat_map(|(_, home)| home.sockets.iter().copied()).collect();
        joined.candidates = offers::candidates(scene.table, &strangers, &taken, scene.own_pid);
        joined.holdings.gpus = gpus;
        joined.holdings.at = Some(scene.gpus_read_at);
        joined
    }

    /// Keeps what was seen now. Where a GPU told nothing, what was seen before stands while one of its
    /// processes lives.
    fn remember(
        &mut self,
        scene: &Scene<'_>,
        present: &Present<'_>,
        homes: &[(ServerId, Home)],
        mut fresh: BTreeMap<ServerId, BTreeMap<GpuId, Evidence>>,
        found: &mut BTreeMap<ServerId, Found>,
    ) {
        for (server, home) in homes {
            // The listener itself counts as a witness, too.
            if let Some(evidence) = fresh.get_mut(server) {
                let holders = home.holders.iter().filter_map(|pid| present.process(*pid));
                let holders: Vec<(u32, u64)> = holders.map(|one| (one.pid, one.started)).collect();
                for one in evidence.values_mut() {
                    one.processes.extend(&holders);
                }
            }
            for (gpu, before) in self.seen.remove(server).unwrap_or_default() {
                let told = scene.gpus.iter().any(|one| one.id == gpu && one.processes.is_some());
                let lives = |&(pid, started): &(u32, u64)| {
                    scene.table.processes.get(&pid).is_some_and(|one| one.started == started)
                };
                if told || !before.processes.iter().any(lives) {
                    continue;
                }
                found.entry(server.clone()).or_default().keep(&gpu, before.how);
                fresh.entry(server.clone()).or_default().entry(gpu).or_insert(before);
            }
        }
        self.seen = fresh;
    }
}

impl<'a> Present<'a> {
    fn new(scene: &Scene<'a>) -> Self {
        let table = scene.table;
        let ago = table.read_at.map(|at| at.saturating_duration_since(scene.gpus_read_at));
        let ticks = ago.unwrap_or_default().as_millis() * u128::from(TICKS_PER_S) / 1000;
        let ticks = u64::try_from(ticks).unwrap_or(u64::MAX);
        // One more: both clocks are read a moment apart.
        Self { table, latest: table.clock.saturating_sub(ticks).saturating_add(1) }
    }

    /// The process of this id that was there when the GPUs were read. One that started later only has
    /// the id.
    fn process(&self, pid: u32) -> Option<&'a Process> {
        let process = self.table.processes.get(&pid)?;
        (!process.started_after(self.latest)).then_some(process)
    }
}

impl Found {
    fn add(&mut self, gpu: &GpuId, pid: u32, memory: Option<Bytes>, how: How) {
        let sum = self.gpus.entry(gpu.clone()).or_insert(Some(Bytes::ZERO));
        *sum = sum.zip(memory).map(|(sum, one)| sum.plus(one));
        self.note(how);
        self.pids.insert(pid);
    }

    fn keep(&mut self, gpu: &GpuId, how: How) {
        self.note(how);
        self.gpus.entry(gpu.clone()).or_insert(None);
    }

    /// The weakest way counts.
    fn note(&mut self, how: How) {
        self.how = self.how.max(how);
    }
}

fn lists(gpus: &[GpuState]) -> impl Iterator<Item = (&GpuState, &GpuProcess)> {
    gpus.iter().flat_map(|gpu| gpu.processes.iter().flatten().map(move |process| (gpu, process)))
}

/// The processes on a GPU. On a card that is cut up, those on its parts as well, if it does not list
/// them itself.
fn processes<'a>(gpu: &'a GpuState, all: &'a [GpuState]) -> Vec<&'a GpuProcess> {
    let own = gpu.processes.iter().flatten();
    let mut listed: Vec<&GpuProcess> = own.collect();
    let known: BTreeSet<u32> = listed.iter().map(|process| process.pid).collect();
    let parts = all.iter().filter(|one| one.mig.as_ref().is_some_and(|mig| mig.parent == gpu.id));
    let of_parts = parts.flat_map(|part| part.processes.iter().flatten());
    listed.extend(of_parts.filter(|process| !known.contains(&process.pid)));
    listed
}

fn owner(claim: &Claim, process: &GpuProcess, known: Option<&Process>) -> Owner {
    match claim {
        Claim::One(server, _) => Owner::Server { server: server.clone() },
        Claim::Several(servers) => Owner::Shared { servers: servers.clone() },
        Claim::Nobody => {
            let name = known.map(|known| known.name.clone()).filter(|name| !name.is_empty());
            let name = name.or_else(|| process.name.clone());
            Owner::Foreign {
                name: name.unwrap_or_else(|| format!("process {}", process.pid)),
                unit: known.and_then(|known| known.unit.clone()),
                container: known.and_then(|known| known.container.clone()),
            }
        }
    }
}

#[cfg(test)]
#[path = "tests/mod.rs"]
mod tests;
