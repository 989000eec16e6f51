//! Memory of GPUs that servers may still be given.

use super::{IntGauge, ServerLabel};
use crate::{pipeline::dispatch::ServerView, units::Bytes};
use prometheus_client::{
    metrics::family::Family,
    registry::{Registry, Unit},
};

/// The families.
#[derive(Debug)]
pub(super) struct Memory {
    left: Family<ServerLabel, IntGauge>,
    growth: Family<ServerLabel, IntGauge>,
    per_token: Family<ServerLabel, IntGauge>,
    squeezed: Family<ServerLabel, IntGauge>,
}

impl Memory {
    pub(super) fn new(r: &mut Registry) -> Self {
        Self {
            left: family!(
                r,
                "server_memory_left",
                "GPU memory that one more request may need, where it is guarded",
                Unit::Bytes
            ),
            growth: family!(
                r,
                "server_memory_growth",
                "GPU memory above what the server holds without work",
                Unit::Bytes
            ),
            per_token: family!(
                r,
                "server_memory_per_token",
                "GPU memory that a token of work is taken to need",
                Unit::Bytes
            ),
            squeezed: family!(
                r,
                "server_memory_squeezed",
                "1 when a foreign process took memory on the server's GPUs since it was first seen"
            ),
        }
    }

    pub(super) fn set(&self, servers: &[ServerView]) {
        for family in [&self.left, &self.growth, &self.per_token, &self.squeezed] {
            family.clear();
        }
        let int = |bytes: Bytes| i64::try_from(bytes.get()).unwrap_or(i64::MAX);
        for view in servers {
            let Some(memory) = view.memory else { continue };
            let labels = ServerLabel { server: view.state.id.to_string() };
            self.left.get_or_create(&labels).set(int(memory.left_bytes));
            self.growth.get_or_create(&labels).set(int(memory.growth_bytes));
            self.per_token.get_or_create(&labels).set(int(memory.per_token_bytes));
            self.squeezed.get_or_create(&labels).set(i64::from(memory.squeezed));
        }
    }
}
