//! Processes: what `/proc` says about those on GPUs and about those that listen. It reports, and decides
//! nothing.
//!
//! Nothing is read that waits for a process: `stat`, `cgroup` and the lists of sockets are answered by
//! the kernel alone. (Arguments take the memory map's lock, which a process stuck in a driver may hold;
//! only those of Docker's forwarders are read.) A process that ends while it is read is left out.

mod diag;
mod holders;
mod sockets;
mod stat;

use crate::snapshot::{LINE_MAX, Listener, Network, Process, ProcessTable, TICKS_PER_S};
use holders::{Holders, alive};
use rustix::time::{ClockId, clock_gettime};
use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    fs::{self, File},
    io::{BufReader, Read},
    os::unix::fs::MetadataExt,
    path::PathBuf,
    time::Duration,
};
use tokio::time::Instant;

/// Where the kernel tells it.
pub const ROOT: &str = "/proc";

/// Where control groups are mounted.
const GROUPS: &str = "/sys/fs/cgroup";

/// Most processes on GPUs, and most that listen, that are followed.
const FOLLOWED_MAX: usize = 4096;

/// Most listening sockets of one list.
const LISTENERS_MAX: usize = 4096;

/// Most network namespaces beside the daemon's own.
const NETWORKS_MAX: usize = 256;

/// How long a namespace's addresses are taken to stay.
const ADDRESSES_FOR: Duration = Duration::from_secs(10);

/// How long the lists of sockets are taken to stay while nothing else changes.
const LISTS_FOR: Duration = Duration::from_secs(5);

/// Largest file that is read whole: the addresses of a host with many routes.
const FILE_MAX: u64 = 4 << 20;

/// What to look for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Wanted {
    /// Processes on GPUs.
    pub pids: BTreeSet<u32>,
    /// Ports that servers are said to listen on: whoever holds one of them is looked for among all
    /// processes.
    pub ports: BTreeSet<u16>,
}

/// The lists of sockets of one reading, and who held them.
#[derive(Debug)]
struct Lists {
    at: Instant,
    wanted: Wanted,
    listeners: Vec<Listener>,
    networks: Vec<Network>,
    /// By id, with the start.
    holders: BTreeMap<u32, u64>,
}

/// Reads `/proc` again and again, and remembers who held which socket.
#[derive(Debug)]
pub struct Reader {
    root: PathBuf,
    groups: PathBuf,
    clock: fn() -> u64,
    holders: Holders,
    addresses: HashMap<Option<u64>, (Instant, Network)>,
    lists: Option<Lists>,
}

impl Default for Reader {
    fn default() -> Self {
        Self::new(PathBuf::from(ROOT), ticks_since_boot)
    }
}

/// The clock that processes' starts are told by.
fn ticks_since_boot() -> u64 {
    let now = clock_gettime(ClockId::Boottime);
    let seconds = u64::try_from(now.tv_sec).unwrap_or(0);
    let part = u64::try_from(now.tv_nsec).unwrap_or(0) / (1_000_000_000 / TICKS_PER_S);
    seconds.saturating_mul(TICKS_PER_S).saturating_add(part)
}

impl Reader {
    /// Reads another tree than [`ROOT`], by another clock.
    pub fn new(root: PathBuf, clock: fn() -> u64) -> Self {
        Self {
            root,
            groups: PathBuf::from(GROUPS),
            clock,
            holders: Holders::default(),
            addresses: HashMap::new(),
            lists: None,
        }
    }

    /// One reading. Blocks for as long as the kernel takes: a millisecond or two, some hundred when a
    /// new socket's holder is looked for among thousands of processes.
    pub fn read(&mut self, wanted: &Wanted) -> ProcessTable {
        let (now, clock) = (Instant::now(), (self.clock)());
        let own = self.network_of("self");
        let mut table =
            ProcessTable { cut: wanted.pids.len() > FOLLOWED_MAX, ..Default::default() };
        for &pid in wanted.pids.iter().take(FOLLOWED_MAX) {
            self.follow(pid, own, &mut table);
        }
        if !self.reuse_lists(wanted, now, &mut table) {
            self.read_networks(wanted, own, now, &mut table);
            let (listeners, networks) = (table.listeners.clone(), table.networks.clone());
            let holders = BTreeMap::new();
            self.lists =
                Some(Lists { at: now, wanted: wanted.clone(), listeners, networks, holders });
        }
        let mut holders = std::mem::take(&mut self.holders);
        holders.find(&self.root, wanted, &mut table, now);
        self.holders = holders;
        let held: BTreeSet<u32> =
            table.listeners.iter().flat_map(|listener| listener.holders.iter().copied()).collect();
        table.cut |= held.len() > FOLLOWED_MAX;
        for pid in held.into_iter().take(FOLLOWED_MAX) {
            self.follow(pid, own, &mut table);
        }
        self.holders.keep(&table);
        for listener in &mut table.listeners {
            listener.holders.retain(|pid| table.processes.contains_key(pid));
        }
        let held = table.listeners.iter().flat_map(|listener| &listener.holders);
        let held = held.filter_map(|pid| Some((*pid, table.processes.get(pid)?.started)));
        if let Some(lists) = &mut self.lists {
            lists.holders = held.collect();
        }
        self.read_groups(wanted, &mut table);
        table.clock = clock;
        table.read_at = Some(now);
        table
    }

    /// Takes the lists of sockets from the reading before, if it is young, looked for the same, and all
    /// who held a socket then still live. On a large host the kernel takes milliseconds for a list, since
    /// it goes on to look for connections.
    fn reuse_lists(&self, wanted: &Wanted, now: Instant, table: &mut ProcessTable) -> bool {
        let young =
            |lists: &&Lists| now.duration_since(lists.at) < LISTS_FOR && lists.wanted == *wanted;
        let Some(lists) = self.lists.as_ref().filter(young) else { return false };
        if !lists.holders.iter().all(|(pid, started)| alive(&self.root, *pid, Some(*started))) {
            return false;
        }
        table.listeners = lists.listeners.clone();
        table.networks = lists.networks.clone();
        true
    }

    /// Takes a process and its ancestors into the table, as many as are ever looked at.
    fn follow(&self, pid: u32, own: Option<u64>, table: &mut ProcessTable) {
        let mut next = pid;
        for _ in 0..LINE_MAX {
            if next == 0 || table.processes.contains_key(&next) {
                return;
            }
            let Some(process) = self.process(next, own) else { return };
            next = process.parent;
            table.processes.insert(process.pid, process);
        }
    }

    fn process(&self, pid: u32, own: Option<u64>) -> Option<Process> {
        let folder = self.root.join(pid.to_string());
        let line = fs::read(folder.join("stat")).ok()?;
        let read = stat::stat(&String::from_utf8_lossy(&line))?;
        let group = fs::read_to_string(folder.join("cgroup")).unwrap_or_default();
        let group = stat::group(&group);
        let network = self.network_of(&pid.to_string()).filter(|id| Some(*id) != own);
        let user = fs::metadata(&folder).ok().map(|folder| folder.uid());
        Some(Process {
            pid,
            parent: read.parent,
            started: read.started,
            name: read.name,
            user,
            cgroup: group.path,
            unit: group.unit,
            container: group.container,
            network,
            group: None,
        })
    }

    /// The control groups of processes on GPUs, where a listener's group is all that is known of it.
    fn read_groups(&self, wanted: &Wanted, table: &mut ProcessTable) {
        if table.listeners.iter().all(|listener| listener.group.is_none()) {
            return;
        }
        for pid in &wanted.pids {
            let Some(process) = table.processes.get_mut(pid) else { continue };
            let text = fs::read_to_string(self.root.join(pid.to_string()).join("cgroup"));
            let Some(path) = stat::group(&text.unwrap_or_default()).unified else { continue };
            // Beside older hierarchies that of version 2 lies in a folder of its own.
            let folders = ["unified", ""].map(|below| self.groups.join(below));
            let folders = folders.iter().map(|root| root.join(path.trim_start_matches('/')));
            process.group =
                folders.filter_map(|one| fs::metadata(one).ok()).map(|one| one.ino()).next();
        }
    }

    /// Which network namespace a process is in. Each namespace has its own list of sockets, and the
    /// list's inode may be seen by everybody, unlike `/proc/PID/ns/net`.
    fn network_of(&self, process: &str) -> Option<u64> {
        let list = self.root.join(process).join("net/tcp");
        fs::metadata(list).ok().map(|list| list.ino())
    }

    /// The sockets and addresses of the daemon's own namespace, and of those that GPU processes are in.
    fn read_networks(
        &mut self,
        wanted: &Wanted,
        own: Option<u64>,
        now: Instant,
        table: &mut ProcessTable,
    ) {
        let mut others: Vec<(u64, u32)> = Vec::new();
        for &pid in &wanted.pids {
            let network = table.processes.get(&pid).and_then(|process| process.network);
            if let Some(network) = network
                && !others.iter().any(|(known, _)| *known == network)
            {
                others.push((network, pid));
            }
        }
        table.cut |= others.len() > NETWORKS_MAX;
        self.addresses.retain(|_, (read, _)| now.duration_since(*read) < ADDRESSES_FOR);
        let own_place = own.map(|_| (None, "self".to_owned()));
        let others = others.into_iter().take(NETWORKS_MAX);
        let others = others.map(|(network, pid)| (Some(network), pid.to_string()));
        for (network, process) in own_place.into_iter().chain(others) {
            for list in ["net/tcp", "net/tcp6"] {
                let Ok(file) = File::open(self.root.join(&process).join(list)) else { continue };
                let sockets = sockets::listening(BufReader::new(file), LISTENERS_MAX);
                table.cut |= sockets.len() >= LISTENERS_MAX;
                table.listeners.extend(sockets.into_iter().map(|socket| Listener {
                    address: socket.address,
                    port: socket.port,
                    inode: socket.inode,
                    user: socket.user,
                    network,
                    holders: Vec::new(),
                    group: None,
                    forward: None,
                }));
            }
            let known = self.addresses.get(&network).map(|(_, known)| known.clone());
            table.networks.push(known.unwrap_or_else(|| self.addresses_of(network, &process, now)));
        }
    }

    fn addresses_of(&mut self, id: Option<u64>, process: &str, now: Instant) -> Network {
        let text = |name: &str| {
            let mut text = String::new();
            let file = File::open(self.root.join(process).join(name)).ok();
            // What is longer, or no text, is left off.
            let _ = file.map(|file| file.take(FILE_MAX).read_to_string(&mut text));
            text
        };
        let addresses = sockets::addresses(&text("net/fib_trie"), &text("net/if_inet6"));
        let network = Network { id, addresses };
        self.addresses.insert(id, (now, network.clone()));
        network
    }
}

#[cfg(test)]
mod tests;
