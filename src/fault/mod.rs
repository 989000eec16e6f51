//! What a card's faults mean: a state for each GPU, with reasons and what the operator must do.
//!
//! [`Faults`] holds a machine for each card and MIG device. Events and readings become findings, each with
//! a cause, the state that it asks for, and its own end; the gravest finding is the card's state. It gets
//! worse at once and better only after a calm, so that nothing flaps. Nothing here asks the clock, the driver
//! or a server.

mod finding;
mod machine;
mod node;
mod reading;
mod sign;
mod told;
pub mod xid;

#[cfg(test)]
mod machine_tests;
#[cfg(test)]
mod property_tests;
#[cfg(test)]
mod reading_tests;

pub use node::{Change, Faults, Ground, Heard};

use crate::ids::GpuId;
use serde::Serialize;
use tokio::time::Instant;

/// How a GPU is, from well to gone. Later is worse.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Condition {
    /// Nothing is known against it.
    #[default]
    Ok,
    /// It works, but slower or less surely than it should. Its servers weigh less.
    Degraded,
    /// It may have harmed what ran on it. Its servers are probed, and go on.
    Suspect,
    /// Nothing new goes to its servers; what runs may finish.
    Draining,
    /// It does not answer any more. Nothing new goes to its servers.
    Lost,
    /// Its readings are too old to say. Nothing is decided by that.
    Unknown,
}

impl Condition {
    /// All of them, from well to gone.
    pub const ALL: [Self; 6] =
        [Self::Ok, Self::Degraded, Self::Suspect, Self::Draining, Self::Lost, Self::Unknown];

    /// The state's name in metrics, status and logs.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Degraded => "degraded",
            Self::Suspect => "suspect",
            Self::Draining => "draining",
            Self::Lost => "lost",
            Self::Unknown => "unknown",
        }
    }

    /// Nothing new goes to the servers of a card like this.
    pub const fn stops(self) -> bool {
        matches!(self, Self::Draining | Self::Lost)
    }
}

/// What the operator must do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Needs {
    /// Restart the model servers on it.
    RestartServer,
    /// Reset the card.
    ResetGpu,
    /// Reboot the host.
    RebootHost,
    /// Have it looked at, or replaced.
    Service,
}

impl Needs {
    /// All of them.
    pub const ALL: [Self; 4] =
        [Self::RestartServer, Self::ResetGpu, Self::RebootHost, Self::Service];

    /// The name in metrics and status.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::RestartServer => "restart_server",
            Self::ResetGpu => "reset_gpu",
            Self::RebootHost => "reboot_host",
            Self::Service => "service",
        }
    }

    /// The same as an order.
    pub const fn order(self) -> &'static str {
        match self {
            Self::RestartServer => "restart the server",
            Self::ResetGpu => "reset the GPU",
            Self::RebootHost => "reboot the host",
            Self::Service => "have the GPU serviced",
        }
    }
}

/// How one GPU is.
#[derive(Clone, Debug, PartialEq)]
pub struct GpuHealth {
    /// Which.
    pub gpu: GpuId,
    /// Position in the driver's list, or the last one it had there.
    pub index: Option<u32>,
    /// Its state.
    pub condition: Condition,
    /// Why, in words, the gravest first.
    pub reasons: Vec<String>,
    /// What the operator must do.
    pub needs: Option<Needs>,
    /// Since when it is so.
    pub since: Instant,
    /// Share of its full work that it is good for, above 0.0 up to 1.0.
    pub weight: f64,
}
