//! What the kernel says about processes: who is whose child, in which unit or container, and who listens.

use std::{collections::HashMap, net::IpAddr};
use tokio::time::Instant;

/// One reading of `/proc`, of the processes that matter.
#[derive(Clone, Debug, Default)]
pub struct ProcessTable {
    /// By process id.
    pub processes: HashMap<u32, Process>,
    /// Who listens on TCP.
    pub listeners: Vec<Listener>,
    /// When it was read; `None` before the first reading.
    pub read_at: Option<Instant>,
}

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
    /// Path of its control group, below the root of the hierarchy.
    pub cgroup: Option<String>,
    /// The systemd unit that it runs in.
    pub unit: Option<String>,
    /// The container that it runs in, by id as its runtime gives it.
    pub container: Option<String>,
    /// The inode of its network namespace, where it may be read.
    pub network: Option<u64>,
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
    /// The inode of the network namespace that it is in; `None` for the daemon's own.
    pub network: Option<u64>,
    /// Processes that hold it open, as far as they may be looked into.
    pub holders: Vec<u32>,
}
