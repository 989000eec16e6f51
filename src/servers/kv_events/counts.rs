//! What was heard of one server's KV events, in numbers.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

/// Running totals, shared with whoever shows them. Each only grows.
#[derive(Debug, Default)]
pub struct Counts {
    pub(super) connections: Total,
    pub(super) batches: Total,
    pub(super) stored: Total,
    pub(super) removed: Total,
    pub(super) orphans: Total,
    pub(super) apart: Total,
    pub(super) unknown: Total,
    pub(super) unreadable: Total,
    pub(super) lost: Total,
    pub(super) dropped: Total,
}

/// [`Counts`] at one moment.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tally {
    /// Connections on which the server began to publish to us.
    pub connections: u64,
    /// Batches of events that came.
    pub batches: u64,
    /// Blocks that were told of as stored and are followed.
    pub stored: u64,
    /// Blocks that were followed and are gone.
    pub removed: u64,
    /// Events about blocks whose beginning is not known, which cannot be followed.
    pub orphans: u64,
    /// Events or ends of events about what prompts of ours do not meet: another medium, an adapter, a salt, an
    /// image.
    pub apart: u64,
    /// Events of a type that is not known.
    pub unknown: u64,
    /// Events or batches that could not be read.
    pub unreadable: u64,
    /// Times that the view was lost while connected: a gap in the numbers of batches, what could not be read, or
    /// more blocks than are followed.
    pub lost: u64,
    /// Changes that nobody took in time.
    pub dropped: u64,
}

impl Counts {
    /// The totals now.
    pub fn read(&self) -> Tally {
        Tally {
            connections: self.connections.get(),
            batches: self.batches.get(),
            stored: self.stored.get(),
            removed: self.removed.get(),
            orphans: self.orphans.get(),
            apart: self.apart.get(),
            unknown: self.unknown.get(),
            unreadable: self.unreadable.get(),
            lost: self.lost.get(),
            dropped: self.dropped.get(),
        }
    }
}

/// One number.
#[derive(Debug, Default)]
pub(super) struct Total(AtomicU64);

impl Total {
    pub(super) fn add(&self, more: u64) {
        self.0.fetch_add(more, Relaxed);
    }

    fn get(&self) -> u64 {
        self.0.load(Relaxed)
    }
}
