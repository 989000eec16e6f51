//! The gauges that are set anew for each page: what servers and GPUs are like now.

use super::{Metrics, ServerLabel};
use crate::{
    pipeline::dispatch::ServerView,
    snapshot::{GpuPlane, Health},
};

impl Metrics {
    pub(super) fn set_servers(&self, servers: &[ServerView]) {
        let int = |value: u64| i64::try_from(value).unwrap_or(i64::MAX);
        // Servers that left must not stay on the page with their last values.
        for family in [&self.server_up, &self.server_usable, &self.server_breaker] {
            family.clear();
        }
        for family in [&self.server_placed, &self.server_placed_tokens, &self.server_capacity] {
            family.clear();
        }
        for family in [&self.server_running, &self.server_waiting] {
            family.clear();
        }
        self.server_kv.clear();
        self.server_age.clear();
        self.running.set(servers.iter().map(|view| i64::from(view.placed)).sum());
        for view in servers {
            let labels = ServerLabel { server: view.state.id.to_string() };
            let up = view.state.health == Health::Up;
            self.server_up.get_or_create(&labels).set(i64::from(up));
            self.server_usable.get_or_create(&labels).set(i64::from(view.usable));
            self.server_breaker.get_or_create(&labels).set(i64::from(view.breaker_open));
            self.server_placed.get_or_create(&labels).set(i64::from(view.placed));
            self.server_placed_tokens.get_or_create(&labels).set(int(view.placed_tokens.get()));
            if let Some(tokens) = view.state.capacity.kv_tokens {
                self.server_capacity.get_or_create(&labels).set(int(tokens.get()));
            }
            if let Some(running) = view.state.load.running {
                self.server_running.get_or_create(&labels).set(i64::from(running));
            }
            if let Some(waiting) = view.state.load.waiting {
                self.server_waiting.get_or_create(&labels).set(i64::from(waiting));
            }
            if let Some(ratio) = view.state.load.kv_used_ratio {
                self.server_kv.get_or_create(&labels).set(ratio);
            }
            if let Some(at) = view.state.read_at {
                self.server_age.get_or_create(&labels).set(at.elapsed().as_secs_f64());
            }
        }
    }

    pub(super) fn set_gpus(&self, plane: &GpuPlane) {
        self.gpu_age.0.set(match plane {
            GpuPlane::Driver(driver) => driver.read_at.elapsed().as_secs_f64(),
            GpuPlane::Off | GpuPlane::NoDriver(_) => f64::NAN,
        });
        self.cards.set(plane);
    }
}
