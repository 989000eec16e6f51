//! What was counted before, bounded in bytes.

use super::{keys::Key, piece::Piece};
use quick_cache::{OptionsBuilder, Weighter, sync};
use std::{
    hash::{BuildHasherDefault, Hasher},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

/// One remembered thing.
#[derive(Clone)]
pub(super) enum Entry {
    /// Token ids of text between two special tokens.
    Segment(Arc<[u32]>),
    /// What one turn of a template's loop made of one message.
    Piece(Arc<Piece>),
}

/// Bytes that an entry takes beside its own: key, counters, allocation.
const ENTRY_BYTES: u64 = 96;

#[derive(Clone)]
struct Bytes;

impl Weighter<Key, Entry> for Bytes {
    fn weight(&self, _: &Key, entry: &Entry) -> u64 {
        ENTRY_BYTES
            + match entry {
                Entry::Segment(ids) => size_of_val::<[u32]>(ids) as u64,
                Entry::Piece(piece) => piece.bytes(),
            }
    }
}

/// Keys are hashes already; hashing them again would only cost.
#[derive(Default)]
struct Low(u64);

impl Hasher for Low {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        for chunk in bytes.chunks(8) {
            self.0 ^= chunk.iter().rev().fold(0, |sum, byte| (sum << 8) | u64::from(*byte));
        }
    }

    fn write_u128(&mut self, key: u128) {
        // The low half; the rest decides equality.
        self.0 = key as u64;
    }
}

/// How often a cache could help.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CacheUse {
    /// Lookups that found something.
    pub hits: u64,
    /// Lookups that did not.
    pub misses: u64,
    /// Bytes held, by our own reckoning.
    pub bytes: u64,
}

/// The cache of one vocabulary. Any number of threads may use it at once.
pub(super) struct Cache {
    entries: sync::Cache<Key, Entry, Bytes, BuildHasherDefault<Low>>,
    hits: AtomicU64,
    misses: AtomicU64,
}

impl Cache {
    /// A cache that holds at most about `bytes_max`.
    pub(super) fn new(bytes_max: u64) -> Self {
        // A turn of a conversation takes about a kilobyte.
        let items = usize::try_from(bytes_max / 1024).unwrap_or(usize::MAX).clamp(16, 1 << 20);
        let options = OptionsBuilder::new()
            .estimated_items_capacity(items)
            .weight_capacity(bytes_max)
            .build();
        let hasher = BuildHasherDefault::default();
        let entries = match options {
            Ok(options) => {
                sync::Cache::with_options(options, Bytes, hasher, sync::DefaultLifecycle::default())
            }
            Err(_) => sync::Cache::with(items, bytes_max, Bytes, hasher, Default::default()),
        };
        Self { entries, hits: AtomicU64::new(0), misses: AtomicU64::new(0) }
    }

    pub(super) fn get(&self, key: Key) -> Option<Entry> {
        self.entries.get(&key)
    }

    pub(super) fn put(&self, key: Key, entry: Entry) {
        self.entries.insert(key, entry);
    }

    /// Books what one count found and did not find.
    pub(super) fn book(&self, hits: u64, misses: u64) {
        self.hits.fetch_add(hits, Ordering::Relaxed);
        self.misses.fetch_add(misses, Ordering::Relaxed);
    }

    pub(super) fn used(&self) -> CacheUse {
        CacheUse {
            hits: self.hits.load(Ordering::Relaxed),
            misses: self.misses.load(Ordering::Relaxed),
            bytes: self.entries.weight(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cache_stays_within_its_bytes() {
        let cache = Cache::new(64 << 10);
        for number in 0..10_000u32 {
            let ids: Arc<[u32]> = vec![number; 100].into();
            cache.put(super::super::keys::of(&number.to_le_bytes()), Entry::Segment(ids));
        }
        let held = cache.used().bytes;
        assert!((16 << 10..=64 << 10).contains(&held), "{held}");
    }
}
