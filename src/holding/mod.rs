//! Who holds what: every byte of a GPU's memory belongs to a model server, to another process that is
//! named, or to the driver.

mod bytes;
mod claims;
mod homes;
mod join;
mod offers;

pub use join::{Book, Joined, Scene};
pub use offers::Candidate;

use crate::{
    ids::{GpuId, ServerId},
    units::Bytes,
};
use serde::Serialize;
use std::{collections::BTreeMap, net::IpAddr};
use tokio::time::Instant;

/// Who holds what on all GPUs.
#[derive(Clone, Debug, Default)]
pub struct Holdings {
    /// Each GPU and MIG device that the driver lists.
    pub gpus: Vec<GpuHolding>,
    /// The servers whose GPUs are known.
    pub servers: BTreeMap<ServerId, ServerHolding>,
    /// When it was found out; `None` before the first time.
    pub at: Option<Instant>,
}

/// Who holds the memory of one GPU.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct GpuHolding {
    /// Which.
    pub gpu: GpuId,
    /// Its holders, the largest first.
    pub holders: Vec<Holder>,
    /// Memory of the holders without a figure, all of them together; `None` where each has one. With it,
    /// the holders' memory adds up to what is used and what is reserved.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub untold: Option<Bytes>,
}

/// One holder of memory on one GPU.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Holder {
    /// Who.
    #[serde(flatten)]
    pub owner: Owner,
    /// How much; `None` when the driver does not tell it by process.
    pub memory: Option<Bytes>,
    /// The processes.
    pub pids: Vec<u32>,
}

/// Whom memory belongs to.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case", tag = "owner")]
pub enum Owner {
    /// A model server of ours.
    Server {
        /// Which.
        server: ServerId,
    },
    /// One of several servers of ours, in one container or unit, and nothing tells which.
    Shared {
        /// Which, by name.
        servers: Vec<ServerId>,
    },
    /// Somebody else.
    Foreign {
        /// The program.
        name: String,
        /// The systemd unit that it runs in.
        #[serde(skip_serializing_if = "Option::is_none")]
        unit: Option<String>,
        /// The container that it runs in.
        #[serde(skip_serializing_if = "Option::is_none")]
        container: Option<String>,
    },
    /// The driver and the firmware, and what is in use without a process.
    Driver,
}

/// A server as this rule sees it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Resident {
    /// Which.
    pub id: ServerId,
    /// Where it is.
    pub seat: Seat,
    /// The GPUs that the configuration gives it; empty where it says nothing.
    pub gpus: Vec<GpuId>,
}

/// Where a server is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Seat {
    /// In the daemon's own process.
    Inside,
    /// Behind an address.
    At {
        /// What its host's name stands for, or the address itself.
        addresses: Vec<IpAddr>,
        /// Its port.
        port: u16,
    },
}

/// Where one server runs.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct ServerHolding {
    /// Its GPUs and what it holds there, where that is known. Empty: it is known to use none.
    pub gpus: BTreeMap<GpuId, Option<Bytes>>,
    /// Its processes on GPUs.
    pub pids: Vec<u32>,
    /// How that is known.
    pub how: How,
}

/// How the GPUs of a server are known.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum How {
    /// By the configuration.
    Configured,
    /// By the process behind its socket: that one, and its descendants.
    #[default]
    Socket,
    /// By the unit or container of the process behind its socket.
    Group,
    /// The host has one GPU only, and the server is on this host.
    OnlyGpu,
}

impl Owner {
    /// Who, in a word or two, for people.
    pub fn label(&self) -> String {
        match self {
            Self::Server { server } => server.to_string(),
            Self::Shared { servers } => {
                servers.iter().map(ServerId::as_str).collect::<Vec<_>>().join(" or ")
            }
            Self::Foreign { name, unit, container } => {
                let short = |id: &str| id.chars().take(12).collect::<String>();
                let place = container
                    .as_deref()
                    .map(|id| format!("container {}", short(id)))
                    .or_else(|| unit.clone());
                match place {
                    Some(place) => format!("{name} ({place})"),
                    None => name.clone(),
                }
            }
            Self::Driver => "driver".to_owned(),
        }
    }
}

impl How {
    /// The way's name in logs and status.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Configured => "configured",
            Self::Socket => "socket",
            Self::Group => "group",
            Self::OnlyGpu => "only_gpu",
        }
    }
}
