//! Which servers work on which cards, and by which processes.

use crate::{
    holding::{Holdings, Owner},
    ids::{GpuId, ServerId},
};
use std::collections::{BTreeMap, BTreeSet};

/// Where servers and others are.
#[derive(Clone, Debug, Default)]
pub struct Places {
    servers: BTreeMap<GpuId, BTreeSet<ServerId>>,
    pids: BTreeMap<u32, ServerId>,
    foreign: BTreeSet<(GpuId, u32)>,
}

impl Places {
    /// By what was found out, and where nothing was, by the configuration.
    pub fn of<'a>(
        holdings: &Holdings,
        configured: impl Iterator<Item = (&'a ServerId, &'a [GpuId])>,
    ) -> Self {
        let mut places = Self::default();
        for (server, holding) in &holdings.servers {
            places.put(server, holding.gpus.keys());
            places.pids.extend(holding.pids.iter().map(|pid| (*pid, server.clone())));
        }
        for (server, gpus) in configured {
            if holdings.servers.get(server).is_none_or(|holding| holding.gpus.is_empty()) {
                places.put(server, gpus.iter());
            }
        }
        for gpu in &holdings.gpus {
            for holder in &gpu.holders {
                match &holder.owner {
                    Owner::Foreign { .. } => {
                        places.foreign.extend(holder.pids.iter().map(|pid| (gpu.gpu.clone(), *pid)))
                    }
                    Owner::Server { server } => {
                        places.pids.extend(holder.pids.iter().map(|pid| (*pid, server.clone())));
                    }
                    // Whose it is of several is not known; it is not foreign.
                    Owner::Shared { .. } | Owner::Driver => {}
                }
            }
        }
        places
    }

    fn put<'a>(&mut self, server: &ServerId, gpus: impl Iterator<Item = &'a GpuId>) {
        for gpu in gpus {
            self.servers.entry(gpu.clone()).or_default().insert(server.clone());
        }
    }

    /// The servers on a card or MIG device.
    pub fn on(&self, gpu: &GpuId) -> impl Iterator<Item = &ServerId> {
        self.servers.get(gpu).into_iter().flatten()
    }

    /// Whether a server is on any card.
    pub fn knows(&self, server: &ServerId) -> bool {
        self.servers.values().any(|servers| servers.contains(server))
    }

    /// The server that a process belongs to.
    pub fn server_of(&self, pid: u32) -> Option<&ServerId> {
        self.pids.get(&pid)
    }

    /// Whether a process on a card is known to be none of ours.
    pub fn is_foreign(&self, gpu: &GpuId, pid: u32) -> bool {
        self.foreign.contains(&(gpu.clone(), pid))
    }
}
