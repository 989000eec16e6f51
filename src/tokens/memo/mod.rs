//! Counting a conversation again for the price of its new turn.
//!
//! Two things are remembered. What a template's loop wrote for a message, under everything that the loop
//! reads beside it ([`jinja`] finds out what, [`turns`] remembers); and the ids of text between two special tokens, which
//! cut a prompt into parts that cannot touch each other ([`cuts`]). A template or a tokenizer
//! that does not fit, or fails a trial at load, is rendered and encoded as a whole.

mod cache;
mod conversation;
mod cuts;
mod keys;
mod piece;
mod tally;
#[cfg(test)]
mod tests;
mod trial;
mod turns;

pub use cache::CacheUse;
pub use keys::key_of_texts;
pub(super) use keys::{Key, KeyWriter, of as key_of};
pub(super) use piece::Piece;

use super::{
    CountError, ModelFiles, Profile,
    jinja::{self, Value as Rendered},
    messages,
    template::FUEL,
    variables,
    vocabulary::Vocabulary,
};
use crate::{api::json::Object, units::Tokens};
use cache::Cache;
use conversation::Outline;
use cuts::Cuts;
use piece::{Budget, Encoder};
use serde_json::{Map, Value};
use std::{
    sync::{Arc, OnceLock},
    time::Duration,
};
use tally::{Entangled, Tally};
use tokio::time::Instant;
use turns::Turns;

/// Bytes that one vocabulary's memory may take unless told otherwise: some thousand long conversations.
pub const CACHE_BYTES: u64 = 64 << 20;

/// Longest that one count may take.
const TIME_MAX: Duration = Duration::from_secs(2);

/// A vocabulary and what was counted with it before.
pub(super) struct Memo {
    pub(super) vocabulary: Arc<Vocabulary>,
    cuts: Option<Cuts>,
    cache: Cache,
}

/// How much work one count may be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Allowance {
    /// As much as the bounds on length and time allow.
    Whole,
    /// Only so much as an async thread may be kept waiting for; else [`CountError::Deferred`].
    Little,
}

/// Where ids go. A count that must begin anew clears it first.
pub(super) trait Sink {
    fn take(&mut self, ids: &[u32]);
    fn clear(&mut self);
}

/// Counts ids.
#[derive(Default)]
pub(super) struct Sum(pub(super) u64);

impl Sink for Sum {
    fn take(&mut self, ids: &[u32]) {
        self.0 += ids.len() as u64;
    }

    fn clear(&mut self) {
        self.0 = 0;
    }
}

impl Sink for Vec<u32> {
    fn take(&mut self, ids: &[u32]) {
        self.extend_from_slice(ids);
    }

    fn clear(&mut self) {
        Self::clear(self);
    }
}

impl Allowance {
    /// Text that an async thread may be kept waiting for, bytes. The worst inputs take the fast engine
    /// 0.2 us a byte and the classic one 0.6.
    const LITTLE_FAST: usize = 16 << 10;
    const LITTLE_CLASSIC: usize = 4 << 10;

    /// Messages that may be rendered as a whole on an async thread, bytes: a template may take time that
    /// grows with their square.
    const LITTLE_RENDERED: usize = 4 << 10;

    /// Steps that a template may take.
    const fn fuel(self) -> u64 {
        match self {
            Self::Whole => FUEL,
            // About two milliseconds.
            Self::Little => 30_000,
        }
    }

    const fn little(vocabulary: &Vocabulary) -> usize {
        if vocabulary.is_fast() { Self::LITTLE_FAST } else { Self::LITTLE_CLASSIC }
    }

    fn budget(self, vocabulary: &Vocabulary) -> Budget {
        match self {
            Self::Whole => Budget {
                bytes: vocabulary.text_bytes_max(),
                until: Some(Instant::now() + TIME_MAX),
                spent: || CountError::TooCostly("counting it takes too long".into()),
            },
            Self::Little => Budget {
                bytes: Self::little(vocabulary),
                until: None,
                spent: || CountError::Deferred,
            },
        }
    }
}

impl Memo {
    /// Tries out where this vocabulary's texts may be cut.
    pub(super) fn new(vocabulary: Vocabulary, cache_bytes: u64) -> Self {
        let cuts = Cuts::of(vocabulary.added_tokens(), &vocabulary);
        Self { vocabulary: Arc::new(vocabulary), cuts, cache: Cache::new(cache_bytes) }
    }

    pub(super) fn used(&self) -> CacheUse {
        self.cache.used()
    }

    /// The ids of a whole text, part by part where it may be cut.
    pub(super) fn text(
        &self,
        text: &str,
        allowance: Allowance,
        sink: &mut impl Sink,
    ) -> Result<(), CountError> {
        let mut budget = allowance.budget(&self.vocabulary);
        if text.len() > self.vocabulary.text_bytes_max() {
            return Err(CountError::TooCostly("the text is too long to count".into()));
        }
        let Some(cuts) = &self.cuts else {
            budget.take(text.len())?;
            return self.vocabulary.with_ids(text, false, |ids| sink.take(ids));
        };
        let mut encoder = Encoder {
            vocabulary: &self.vocabulary,
            cuts,
            cache: &self.cache,
            budget,
            hits: 0,
            misses: 0,
            last: None,
        };
        let mut tally = Tally::new(&mut encoder, |ids: &[u32]| sink.take(ids));
        // One text by itself has no seams.
        let _ = tally.text(text)?;
        tally.end()?;
        self.cache.book(encoder.hits, encoder.misses);
        Ok(())
    }
}

// === a chat request ===

/// What became of the quick way.
enum Quick {
    Done,
    /// This request or template must be rendered as a whole.
    NotThisWay,
}

impl ModelFiles {
    /// The number of ids of a chat request's prompt, from the fields of its body. Much of it is remembered
    /// from requests before.
    ///
    /// # Errors
    /// As [`CountError`]; [`CountError::Deferred`] only with [`Allowance::Little`].
    pub fn count_request(
        &self,
        profile: &Profile,
        fields: &Object<'_>,
        allowance: Allowance,
    ) -> Result<Tokens, CountError> {
        let mut sum = Sum::default();
        self.prompt(profile, fields, allowance, &mut sum)?;
        Ok(Tokens(sum.0))
    }

    /// The ids of a chat request's prompt, from the fields of its body.
    ///
    /// # Errors
    /// As [`ModelFiles::count_request`].
    pub fn request_ids(
        &self,
        profile: &Profile,
        fields: &Object<'_>,
        allowance: Allowance,
    ) -> Result<Vec<u32>, CountError> {
        let mut ids = Vec::new();
        self.prompt(profile, fields, allowance, &mut ids)?;
        Ok(ids)
    }

    /// How often counts were remembered, and what remembering takes.
    pub fn cache_use(&self) -> CacheUse {
        self.memo.used()
    }

    /// Hands the ids of a chat request's prompt to `sink`.
    pub(super) fn prompt(
        &self,
        profile: &Profile,
        fields: &Object<'_>,
        allowance: Allowance,
        sink: &mut impl Sink,
    ) -> Result<(), CountError> {
        let messages = fields.get("messages").map(|raw| raw.get()).ok_or(CountError::NoMessages)?;
        let mut body = Map::new();
        for (name, value) in fields.0.iter().filter(|(name, _)| name != "messages") {
            body.insert(name.to_string(), parsed(value.get())?);
        }
        if let Quick::Done = self.quickly(profile, messages, &body, allowance, sink)? {
            return Ok(());
        }
        sink.clear();
        if allowance == Allowance::Little && messages.len() > Allowance::LITTLE_RENDERED {
            return Err(CountError::Deferred);
        }
        body.insert("messages".into(), parsed(messages)?);
        let (text, apart) = self.render(profile, &body)?;
        self.take_prompt(profile, &text, allowance, sink)?;
        match apart {
            Some(apart) => self.memo.vocabulary.with_ids(&apart, false, |ids| sink.take(ids)),
            None => Ok(()),
        }
    }

    /// Bytes of text that may be counted anew on an async thread: [`Allowance::Little`].
    pub fn little_bytes(&self) -> usize {
        Allowance::little(&self.memo.vocabulary)
    }

    /// A rendered prompt's ids, with what llama.cpp puts around it.
    pub(super) fn take_prompt(
        &self,
        profile: &Profile,
        text: &str,
        allowance: Allowance,
        sink: &mut impl Sink,
    ) -> Result<(), CountError> {
        if !profile.rules.one_bos {
            return self.memo.text(text, allowance, sink);
        }
        // The template's own is cut first, lest it come twice.
        let (bos, eos) = (self.added.bos.as_ref(), self.added.eos.as_ref());
        let text = bos.and_then(|(bos, _)| text.strip_prefix(bos.as_str())).unwrap_or(text);
        let text = eos.and_then(|(eos, _)| text.strip_suffix(eos.as_str())).unwrap_or(text);
        bos.iter().for_each(|(_, id)| sink.take(&[*id]));
        self.memo.text(text, allowance, sink)?;
        eos.iter().for_each(|(_, id)| sink.take(&[*id]));
        Ok(())
    }

    fn quickly(
        &self,
        profile: &Profile,
        messages: &str,
        body: &Map<String, Value>,
        allowance: Allowance,
        sink: &mut impl Sink,
    ) -> Result<Quick, CountError> {
        let loaded = self.chat.pick(body.get("tools").is_some_and(Value::is_array))?;
        let Some(cuts) = self.memo.cuts.as_ref().filter(|_| loaded.template.remembers()) else {
            return Ok(Quick::NotThisWay);
        };
        let Some(outline) = Outline::of(messages) else { return Ok(Quick::NotThisWay) };
        if messages::join_or_end(profile, loaded.wants, &outline.roles, body) {
            return Ok(Quick::NotThisWay);
        }
        let unfit = Arc::new(OnceLock::new());
        let list = conversation::list(&outline, profile.rules, loaded.wants, &unfit);
        let surroundings = messages::surroundings(profile, body);
        let mut all = variables(&self.named_tokens, surroundings);
        all.push(("messages".into(), list));
        let encoder = Encoder {
            vocabulary: &self.memo.vocabulary,
            cuts,
            cache: &self.memo.cache,
            budget: allowance.budget(&self.memo.vocabulary),
            hits: 0,
            misses: 0,
            last: None,
        };
        let mut turns = Turns { encoder, unfit: &unfit, failed: None };
        let all = Rendered::from_pairs(all);
        let rendered =
            loaded.template.render_with(&all, profile.key(), &mut turns, allowance.fuel());
        let Turns { mut encoder, failed, .. } = turns;
        if let Some(failed) = failed.or_else(|| unfit.get().cloned()) {
            return Err(failed);
        }
        let rendered = rendered.map_err(|error| match error {
            CountError::TooCostly(_) if allowance == Allowance::Little => CountError::Deferred,
            error => error,
        })?;
        let joined = self.join(profile, &mut encoder, &rendered, sink);
        self.memo.cache.book(encoder.hits, encoder.misses);
        joined
    }

    /// Joins the text and the pieces in it.
    fn join(
        &self,
        profile: &Profile,
        encoder: &mut Encoder<'_>,
        rendered: &jinja::Rendered,
        sink: &mut impl Sink,
    ) -> Result<Quick, CountError> {
        let around = profile.rules.one_bos;
        let bos = self.added.bos.as_ref().filter(|_| around);
        let eos = self.added.eos.as_ref().filter(|_| around);
        let text = rendered.text.as_str();
        let first = rendered.pieces.first().map_or(text.len(), |(at, _)| *at);
        let last = rendered.pieces.last().map_or(0, |(at, _)| *at);
        let (mut from, mut to) = (0, text.len());
        if let Some((bos, id)) = bos {
            // Where a loop's first words come so soon, it cannot be told whether the prompt begins with it.
            if text.starts_with(bos.as_str()) && bos.len() <= first {
                from = bos.len();
            } else if first < bos.len() {
                return Ok(Quick::NotThisWay);
            }
            sink.take(&[*id]);
        }
        if let Some((eos, _)) = eos {
            let behind = text.len() - last;
            if text.ends_with(eos.as_str()) && eos.len() <= behind && to - eos.len() >= from {
                to -= eos.len();
            } else if behind < eos.len() {
                return Ok(Quick::NotThisWay);
            }
        }
        let mut tally = Tally::new(encoder, |ids: &[u32]| sink.take(ids));
        for (at, piece) in &rendered.pieces {
            let before = text.get(from..*at).unwrap_or_default();
            from = (*at).max(from);
            let joined = tally.text(before)?.and(Ok(()));
            if joined.is_err() || tally.piece(piece)?.is_err() {
                return Ok(Quick::NotThisWay);
            }
        }
        if let Err(Entangled) = tally.text(text.get(from..to).unwrap_or_default())? {
            return Ok(Quick::NotThisWay);
        }
        tally.end()?;
        eos.iter().for_each(|(_, id)| sink.take(&[*id]));
        Ok(Quick::Done)
    }
}

fn parsed(text: &str) -> Result<Value, CountError> {
    serde_json::from_str(text).map_err(|error| CountError::NotAvailable(error.to_string()))
}
