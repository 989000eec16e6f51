//! What a card's faults mean: a state for each GPU, with reasons and what the operator must do.

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

/// How one GPU is.
#[derive(Clone, Debug, PartialEq)]
pub struct GpuHealth {
    /// Which.
    pub gpu: GpuId,
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
