//! Text whose middle has been encoded: its ends stay text until it is known what they meet.

use super::{
    CountError,
    cache::{Cache, Entry},
    cuts::Cuts,
    keys::{self, Key},
};
use crate::tokens::{jinja::Value, vocabulary::Vocabulary};
use std::sync::Arc;

/// What one turn of a template's loop wrote.
pub(in crate::tokens) struct Piece {
    /// Text in front of the first cut, or all of it if there is none.
    pub(super) left: Box<str>,
    /// Ids from the first cut to the last; `None` without a cut.
    pub(super) middle: Option<Box<[u32]>>,
    /// Text behind the last cut.
    pub(super) right: Box<str>,
    /// A special token could begin at the end of the text and go on behind it.
    pub(super) may_go_on: bool,
    /// Values that the turn gave to attributes of namespaces, in the order in which the loop names them.
    pub(in crate::tokens) written: Box<[Value]>,
    /// Bytes of text, for the bound on what is rendered.
    pub(in crate::tokens) length: usize,
}

impl Piece {
    /// Bytes it holds.
    pub(super) fn bytes(&self) -> u64 {
        let ids = self.middle.as_ref().map_or(0, |ids| size_of_val::<[u32]>(ids));
        let values: usize = self.written.iter().map(Value::bytes).sum();
        (size_of::<Self>() + self.left.len() + self.right.len() + ids + values) as u64
    }
}

/// Encodes texts without cuts, and remembers what it encoded.
pub(super) struct Encoder<'a> {
    pub(super) vocabulary: &'a Vocabulary,
    pub(super) cuts: &'a Cuts,
    pub(super) cache: &'a Cache,
    pub(super) budget: Budget,
    pub(super) hits: u64,
    pub(super) misses: u64,
    /// The segment asked for last: between turns it is the same line end again and again.
    pub(super) last: Option<(String, Arc<[u32]>)>,
}

/// How much new text may be encoded.
#[derive(Clone, Copy, Debug)]
pub(super) struct Budget {
    /// Bytes that are left.
    pub(super) bytes: usize,
    /// Until when.
    pub(super) until: Option<tokio::time::Instant>,
    /// What to say when it is spent.
    pub(super) spent: fn() -> CountError,
}

impl Budget {
    /// Takes `bytes` of it.
    pub(super) fn take(&mut self, bytes: usize) -> Result<(), CountError> {
        let late = self.until.is_some_and(|until| tokio::time::Instant::now() > until);
        match self.bytes.checked_sub(bytes) {
            Some(left) if !late => {
                self.bytes = left;
                Ok(())
            }
            _ => Err((self.spent)()),
        }
    }
}

impl Encoder<'_> {
    /// The ids of text without a cut.
    pub(super) fn segment(&mut self, text: &str, first: bool) -> Result<Arc<[u32]>, CountError> {
        if !first
            && let Some((last, ids)) = &self.last
            && last == text
        {
            return Ok(Arc::clone(ids));
        }
        let ids = self.looked_up(text, first)?;
        const KEPT_BYTES: usize = 64;
        if !first && text.len() <= KEPT_BYTES {
            self.last = Some((text.to_owned(), Arc::clone(&ids)));
        }
        Ok(ids)
    }

    fn looked_up(&mut self, text: &str, first: bool) -> Result<Arc<[u32]>, CountError> {
        let mut key: Key = keys::of(text.as_bytes());
        if first && !self.cuts.is_alone() {
            // The same text has other ids at the very beginning.
            key ^= 1;
        }
        if let Some(Entry::Segment(ids)) = self.cache.get(key) {
            self.hits += 1;
            return Ok(ids);
        }
        self.misses += 1;
        self.budget.take(text.len())?;
        let ids: Arc<[u32]> =
            self.cuts.encode(self.vocabulary, text, first, |ids: &[u32]| Arc::from(ids))?;
        self.cache.put(key, Entry::Segment(Arc::clone(&ids)));
        Ok(ids)
    }

    /// Encodes the middle of what a turn wrote.
    pub(super) fn piece(&mut self, text: &str, written: Box<[Value]>) -> Result<Piece, CountError> {
        let mut left: Option<&str> = None;
        let mut middle: Vec<u32> = Vec::new();
        let mut from = 0;
        for cut in self.cuts.find(text) {
            let part = text.get(from..cut.start).unwrap_or_default();
            if left.is_none() {
                left = Some(part);
            } else if !part.is_empty() {
                // Its own count is remembered with the piece; a turn's parts rarely come alone.
                self.misses += 1;
                self.budget.take(part.len())?;
                self.cuts.encode(self.vocabulary, part, false, |ids| {
                    middle.extend_from_slice(ids);
                })?;
            }
            middle.push(cut.id);
            from = cut.end;
        }
        let rest = text.get(from..).unwrap_or_default();
        let (left, middle, right) = match left {
            Some(left) => (left, Some(middle.into_boxed_slice()), rest),
            None => (rest, None, ""),
        };
        Ok(Piece {
            left: left.into(),
            middle,
            right: right.into(),
            may_go_on: self.cuts.may_go_on(text),
            written,
            length: text.len(),
        })
    }
}
