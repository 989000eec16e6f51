//! Servers that hang.

use super::{IntGauge, Metrics, ServerLabel};
use crate::{ids::ServerId, pipeline::dispatch::ServerView};
use prometheus_client::{
    metrics::{counter::Counter, family::Family},
    registry::Registry,
};

/// The families.
#[derive(Debug)]
pub(super) struct Hangs {
    times: Family<ServerLabel, Counter>,
    now: Family<ServerLabel, IntGauge>,
}

impl Hangs {
    pub(super) fn new(r: &mut Registry) -> Self {
        Self {
            times: family!(r, "server_hung", "Times that the server was taken out because it hung"),
            now: family!(r, "server_hung_now", "1 while the server is out because it hung"),
        }
    }

    pub(super) fn set(&self, servers: &[ServerView]) {
        self.now.clear();
        for view in servers {
            let labels = ServerLabel { server: view.state.id.to_string() };
            self.now.get_or_create(&labels).set(i64::from(view.hung.is_some()));
        }
    }
}

impl Metrics {
    /// A server was taken out because it hung.
    pub fn server_hung(&self, server: &ServerId) {
        let labels = ServerLabel { server: server.to_string() };
        self.hangs.times.get_or_create(&labels).inc();
    }
}
