//! Who holds what: every byte of a GPU's memory belongs to a model server, to another process that is
//! named, or to the driver.

use crate::{
    ids::{GpuId, ServerId},
    units::Bytes,
};
use serde::Serialize;
use std::collections::BTreeMap;
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

/// Where one server runs.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct ServerHolding {
    /// Its GPUs and what it holds there, where that is known.
    pub gpus: BTreeMap<GpuId, Option<Bytes>>,
    /// Its processes on GPUs.
    pub pids: Vec<u32>,
    /// How that is known.
    pub how: How,
}

/// How the GPUs of a server are known.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum How {
    /// By the configuration.
    Configured,
    /// By the process behind its socket, and that process's tree.
    #[default]
    Socket,
    /// By the unit or container of the process behind its socket.
    Group,
    /// The host has one GPU only, and the server is on this host.
    OnlyGpu,
}
