//! Who could be asked whether it is a model server: listeners that belong to processes on GPUs and to no
//! server that is known.

use super::claims::are_one_service;
use crate::{
    ids::GpuId,
    snapshot::{Listener, Process, ProcessTable},
};
use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, Ipv4Addr, SocketAddr},
};

/// Most that are offered at once. A job that opens ports without end is no model server.
const CANDIDATES_MAX: usize = 64;

/// A listener that could be a model server's.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Candidate {
    /// Where it can be reached from this host.
    pub at: SocketAddr,
    /// The socket and its holder's start: another server at the same address is another candidate.
    pub identity: (u64, u64),
    /// The process that listens, or else the one on the GPU.
    pub pid: u32,
    /// The GPUs that its processes hold memory on.
    pub gpus: BTreeSet<GpuId>,
}

/// Finds candidates, by address. `strangers` are the processes on GPUs that are no server's.
pub(super) fn candidates(
    table: &ProcessTable,
    strangers: &[(GpuId, u32)],
    taken: &BTreeSet<u64>,
    own_pid: u32,
) -> Vec<Candidate> {
    let mut found: BTreeMap<SocketAddr, Candidate> = BTreeMap::new();
    for (gpu, pid) in strangers {
        let Some(process) = table.processes.get(pid) else { continue };
        for listener in &table.listeners {
            if taken.contains(&listener.inode) || listener.holders.contains(&own_pid) {
                continue;
            }
            let Some(holder) = holder(process, listener, table) else { continue };
            let Some(address) = reachable(listener, table) else { continue };
            let at = SocketAddr::new(address, listener.port);
            if found.len() >= CANDIDATES_MAX && !found.contains_key(&at) {
                continue;
            }
            let fresh = || Candidate {
                at,
                identity: (listener.inode, holder.started),
                pid: holder.pid,
                gpus: BTreeSet::new(),
            };
            found.entry(at).or_insert_with(fresh).gpus.insert(gpu.clone());
        }
    }
    found.into_values().collect()
}

/// The process by which a listener belongs to a process on a GPU: itself, an ancestor beside it, or
/// another process of its container or service. Where no holder can be seen, a container's listeners are
/// its processes'.
fn holder<'a>(
    process: &'a Process,
    listener: &Listener,
    table: &'a ProcessTable,
) -> Option<&'a Process> {
    if listener.holders.is_empty() {
        let its_own = listener.network.is_some() && listener.network == process.network;
        return its_own.then_some(process);
    }
    let in_line = table
        .line(process.pid)
        .take_while(|one| one.pid == process.pid || one.is_beside(process))
        .find(|one| listener.holders.contains(&one.pid));
    let beside = || {
        let holders = listener.holders.iter().filter_map(|pid| table.processes.get(pid));
        holders.into_iter().find(|holder| are_one_service(process, holder))
    };
    in_line.or_else(beside)
}

/// The address under which a listener is reached from the daemon's own namespace.
fn reachable(listener: &Listener, table: &ProcessTable) -> Option<IpAddr> {
    if listener.network.is_none() {
        let any = listener.address.is_unspecified();
        return Some(if any { IpAddr::V4(Ipv4Addr::LOCALHOST) } else { listener.address });
    }
    let network = table.networks.iter().find(|one| one.id == listener.network)?;
    // A link-local address means nothing without its interface.
    let usable = |address: &&IpAddr| match address {
        IpAddr::V4(_) => true,
        IpAddr::V6(six) => !six.is_unicast_link_local() && listener.address.is_ipv6(),
    };
    let mut usable = network.addresses.iter().filter(usable);
    let any = listener.address.is_unspecified();
    usable.find(|address| any || **address == listener.address).copied()
}
