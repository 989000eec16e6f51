//! What the devices mean for requests: readings come in, servers are taken out or given less.
//!
//! Each subject is a task of its own that reads snapshots and tells the dispatch; what it found out is
//! published here for the others and for operators.

pub mod faulting;
#[cfg(test)]
mod faulting_tests;
pub mod hanging;
pub mod holding;
pub mod memory;
pub mod metering;
mod offers;
pub mod working;

pub use offers::Offer;

use crate::{energy::CardView, fault::GpuHealth, holding::Holdings, ids::GpuId};
use arc_swap::ArcSwap;
use faulting::Clearing;
use std::sync::Arc;
use tokio::sync::watch;

/// What is known about the devices beyond their readings.
#[derive(Debug, Default)]
pub struct Devices {
    holdings: ArcSwap<Holdings>,
    health: ArcSwap<Vec<GpuHealth>>,
    metered: ArcSwap<Vec<CardView>>,
    offers: watch::Sender<Arc<Vec<Offer>>>,
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

    /// How each GPU's energy was split.
    pub fn metered(&self) -> Arc<Vec<CardView>> {
        self.metered.load_full()
    }

    /// Publishes who holds what.
    pub fn hold(&self, holdings: Holdings) {
        self.holdings.store(Arc::new(holdings));
    }

    /// Publishes how each GPU is.
    pub fn judge(&self, health: Vec<GpuHealth>) {
        self.health.store(Arc::new(health));
    }

    /// Publishes how each GPU's energy was split.
    pub fn meter(&self, cards: Vec<CardView>) {
        self.metered.store(Arc::new(cards));
    }

    /// Model servers on GPUs that nobody configured.
    pub fn offers(&self) -> Arc<Vec<Offer>> {
        Arc::clone(&self.offers.borrow())
    }

    /// The same, for whoever waits for changes.
    pub fn watch_offers(&self) -> watch::Receiver<Arc<Vec<Offer>>> {
        self.offers.subscribe()
    }

    /// Publishes model servers on GPUs that nobody configured, if they are others than before.
    pub fn offer(&self, offers: Vec<Offer>) {
        self.offers.send_if_modified(|before| {
            let changed = **before != offers;
            if changed {
                *before = Arc::new(offers);
            }
            changed
        });
    }

    /// An operator says that a GPU is well. False if there is no such GPU, or nobody watches them.
    ///
    /// Dropping the future changes nothing; the GPU may have been cleared already.
    pub async fn clear(&self, gpu: GpuId) -> bool {
        self.clearing.ask(gpu).await
    }
}
