//! What the devices mean for requests: readings come in, servers are taken out or given less.
//!
//! Each subject is a task of its own that reads snapshots and tells the dispatch; what it found out is
//! published here for the others and for operators.

pub mod faulting;
#[cfg(test)]
mod faulting_tests;

use crate::{fault::GpuHealth, holding::Holdings, ids::GpuId};
use arc_swap::ArcSwap;
use faulting::Clearing;
use std::sync::Arc;

/// What is known about the devices beyond their readings.
#[derive(Debug, Default)]
pub struct Devices {
    holdings: ArcSwap<Holdings>,
    health: ArcSwap<Vec<GpuHealth>>,
    clearing: Clearing,
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

    /// An operator says that a GPU is well. False if there is no such GPU, or nobody watches them.
    ///
    /// Dropping the future changes nothing; the GPU may have been cleared already.
    pub async fn clear(&self, gpu: GpuId) -> bool {
        self.clearing.ask(gpu).await
    }
}
