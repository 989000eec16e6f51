//! What the kernel says about processes: who is whose child, in which unit or container, and who listens.

use std::{
    collections::HashMap,
    net::{IpAddr, SocketAddr},
};
use tokio::time::Instant;

/// One reading of `/proc`, of the processes that matter.
#[derive(Clone, Debug, Default)]
pub struct ProcessTable {
    /// By process id: those that were asked for, those that listen, and the ancestors of both.
    pub processes: HashMap<u32, Process>,
    /// Who listens on TCP.
    pub listeners: Vec<Listener>,
    /// The network namespaces that were looked into, the daemon's own first.
    pub networks: Vec<Network>,
    /// The kernel's clock when this was read, in ticks since boot, as [`Process::started`].
    pub clock: u64,
    /// Some processes may not be looked into, and one of them may hold a socket of which nothing else is known.
    pub denied: bool,
    /// There was more than may be looked at.
    pub cut: bool,
    /// When it was read; `None` before the first reading.
    pub read_at: Option<Instant>,
}

/// Ticks in a second of the clock that processes' starts are told by. The same on every architecture that
/// CUDA runs on (`USER_HZ`, see proc(5)).
pub const TICKS_PER_S: u64 = 100;

/// One process.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Process {
    /// Its id in the daemon's PID namespace.
    pub pid: u32,
    /// Its parent's.
    pub parent: u32,
    /// When it started, in clock ticks since boot: with the id it names a process for ever.
    pub started: u64,
    /// The program's name; never its arguments, which can hold keys.
    pub name: String,
    /// The user that it runs as.
    pub user: Option<u32>,
    /// Path of its control group, below the root of the hierarchy.
    pub cgroup: Option<String>,
    /// The systemd unit that it runs in.
    pub unit: Option<String>,
    /// The container that it runs in, by id as its runtime gives it.
    pub container: Option<String>,
    /// Its network namespace, as [`Network::id`]; `None` for the daemon's own.
    pub network: Option<u64>,
    /// Its control group of version 2, as [`Listener::group`], where a listener's is known and it may
    /// be asked.
    pub group: Option<u64>,
}

/// A socket that takes connections.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Listener {
    /// The address it is bound to; unspecified for all of its namespace.
    pub address: IpAddr,
    /// Its port.
    pub port: u16,
    /// The inode of the socket.
    pub inode: u64,
    /// The user that opened it.
    pub user: u32,
    /// The network namespace that it is in; `None` for the daemon's own.
    pub network: Option<u64>,
    /// Processes that hold it open, as far as they may be looked into.
    pub holders: Vec<u32>,
    /// The control group that it was opened in, by the inode of the group's folder; told where no holder
    /// can be seen.
    pub group: Option<u64>,
    /// Where its holder carries connections on to, if that is a container runtime's forwarder.
    pub forward: Option<SocketAddr>,
}

/// A network namespace.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Network {
    /// The inode of its list of TCP sockets, which needs no privilege to see; `None` for the daemon's own.
    pub id: Option<u64>,
    /// The addresses of its interfaces.
    pub addresses: Vec<IpAddr>,
}

impl ProcessTable {
    /// A process and its ancestors, the nearest first. Ends at a parent that is not in the table.
    pub fn line(&self, pid: u32) -> impl Iterator<Item = &Process> {
        let first = self.processes.get(&pid);
        // A table read while processes come and go could hold a circle.
        std::iter::successors(first, |one| self.processes.get(&one.parent)).take(LINE_MAX)
    }
}

/// Generations of processes that are followed.
pub const LINE_MAX: usize = 64;

impl Process {
    /// Do both run in the same container or, outside of containers, in the same systemd unit? Where
    /// neither has any, in the same control group?
    pub fn is_beside(&self, other: &Self) -> bool {
        // Two users' own managers both have an `ollama.service`, and may name groups as they like.
        let same = |of: fn(&Self) -> Option<&str>| {
            of(self) == of(other) && self.place(of(self)) == other.place(of(other))
        };
        if self.container.is_some() || other.container.is_some() {
            return same(|process| process.container.as_deref());
        }
        if self.unit.is_some() || other.unit.is_some() {
            return same(|process| process.unit.as_deref());
        }
        self.cgroup == other.cgroup
    }

    /// The path down to the control group that bears this name, where the path has it.
    fn place(&self, name: Option<&str>) -> Option<&str> {
        let (path, name) = (self.cgroup.as_deref()?, name?);
        let end = path.rfind(name)?.saturating_add(name.len());
        path.get(..end)
    }

    /// Did it start after this moment of the kernel's clock?
    pub const fn started_after(&self, ticks: u64) -> bool {
        self.started > ticks
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_alone_makes_no_two_processes_one_service() {
        let process = |cgroup: &str, unit: Option<&str>, container: Option<&str>| Process {
            cgroup: Some(cgroup.to_owned()),
            unit: unit.map(str::to_owned),
            container: container.map(str::to_owned),
            ..Process::default()
        };
        let unit = |cgroup| process(cgroup, Some("ollama.service"), None);
        let system = unit("/system.slice/ollama.service");
        assert!(system.is_beside(&unit("/system.slice/ollama.service/worker")));
        let of = |user| format!("/user.slice/user-{user}.slice/user@{user}.service/ollama.service");
        let (one, other) = (of(1000), of(1001));
        assert!(!system.is_beside(&unit(&one)), "a user's own manager has one of that name");
        assert!(!unit(&other).is_beside(&unit(&one)), "and another user's");
        let container = |cgroup| process(cgroup, None, Some("4f1c"));
        let real = container("/system.slice/docker-4f1c.scope");
        assert!(real.is_beside(&container("/system.slice/docker-4f1c.scope/init")));
        assert!(!real.is_beside(&container("/user.slice/user@1000.service/4f1c")));
    }
}
