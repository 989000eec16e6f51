//! What the devices mean for requests: readings come in, servers are taken out or given less.
//!
//! Each subject is a task of its own that reads snapshots and tells the dispatch; what it found out is
//! published here for the others and for operators.

pub mod hanging;
pub mod memory;

use crate::{fault::GpuHealth, holding::Holdings};
use arc_swap::ArcSwap;
use std::sync::Arc;

/// What is known about the devices beyond their readings.
#[derive(Debug, Default)]
pub struct Devices {
    holdings: ArcSwap<Holdings>,
    health: ArcSwap<Vec<GpuHealth>>,
}

impl Devices {
    /// Who holds what.
    pub fn holdings(&self) -> Arc<Holdings> {
        self.holdings.load_full()
    }

    /// How each GPU is.
    pub fn health(&self) -> Arc<Vec<GpuHealth>> {
        self.health.load_full()
    }

    /// Publishes who holds what.
    pub fn hold(&self, holdings: Holdings) {
        self.holdings.store(Arc::new(holdings));
    }

    /// Publishes how each GPU is.
    pub fn judge(&self, health: Vec<GpuHealth>) {
        self.health.store(Arc::new(health));
    }
}
