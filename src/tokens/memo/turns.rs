//! The memory of a template's loops.

use super::{
    CountError,
    cache::Entry,
    keys::Key,
    piece::{Encoder, Piece},
};
use crate::tokens::jinja::{Memory, Stop, Value};
use std::sync::{Arc, OnceLock};

/// One rendering's way to what is remembered.
pub(super) struct Turns<'a> {
    pub(super) encoder: Encoder<'a>,
    /// Set when a message cannot be prepared: what was rendered without it is worth nothing.
    pub(super) unfit: &'a OnceLock<CountError>,
    pub(super) failed: Option<CountError>,
}

/// Rendering a turn costs more than its text, so it is booked as so many bytes of some.
const TURN_BYTES: usize = 256;

impl Memory for Turns<'_> {
    fn recall(&mut self, key: Key) -> Option<Arc<Piece>> {
        let Some(Entry::Piece(piece)) = self.encoder.cache.get(key) else { return None };
        self.encoder.hits += 1;
        Some(piece)
    }

    fn keep(
        &mut self,
        key: Option<Key>,
        text: &str,
        written: Vec<Value>,
    ) -> Result<Arc<Piece>, Stop> {
        let stop = || Stop::Failed("the turn could not be counted".into());
        if self.unfit.get().is_some() {
            return Err(stop());
        }
        self.encoder.misses += 1;
        let booked = self.encoder.budget.take(TURN_BYTES);
        let piece = booked.and_then(|()| self.encoder.piece(text, written.into_boxed_slice()));
        let piece = Arc::new(piece.map_err(|error| {
            self.failed = Some(error);
            stop()
        })?);
        if let Some(key) = key {
            self.encoder.cache.put(key, Entry::Piece(Arc::clone(&piece)));
        }
        Ok(piece)
    }
}
