//! Counting a conversation again for the price of its new turn.
//!
//! Two things are remembered. What a template's loop wrote for a message, under everything that the loop
//! reads beside it ([`reads`], [`plan`], [`turns`]); and the ids of text between two special tokens, which
//! cut a prompt into parts that cannot touch each other ([`cuts`]). Both are exact: a template or a
//! tokenizer for which they are not proven at load is rendered and encoded as a whole.

mod cache;
mod conversation;
mod cuts;
mod keys;
mod piece;
mod plan;
mod reads;
mod tally;
#[cfg(test)]
mod tests;
mod trial;
mod turns;

pub use cache::CacheUse;
pub(super) use keys::{Key, of as key_of};
pub(super) use plan::{Plan, TURNS, of as plan_of};

use super::{CountError, ModelFiles, Profile, messages, variables, vocabulary::Vocabulary};
use crate::{api::json::Object, units::Tokens};
use cache::Cache;
use conversation::{Conversation, Outline};
use cuts::Cuts;
use minijinja::Value as Rendered;
use piece::{Budget, Encoder};
use serde_json::{Map, Value};
use std::{sync::Arc, time::Duration};
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

    const fn little(vocabulary: &Vocabulary) -> usize {
        if vocabulary.is_fast() { Self::LITTLE_FAST } else { Self::LITTLE_CLASSIC }
    }

    fn budget(self, vocabulary: &Vocabulary) -> Budget {
        match self {
            Self::Whole => Budget {
                bytes: vocabulary.text_bytes_max(),
                until: Some(Instant::now() + TIME_MAX),
                spent: || CountError::TooCostly("the text is too long to count".into()),
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
        if allowance == Allowance::Little && messages.len() > self.little_bytes() {
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
        let (Some(plan), Some(cuts)) = (loaded.template.plan(), &self.memo.cuts) else {
            return Ok(Quick::NotThisWay);
        };
        let Some(outline) = Outline::of(messages) else { return Ok(Quick::NotThisWay) };
        if messages::join_or_end(profile, loaded.wants, &outline.roles, body) {
            return Ok(Quick::NotThisWay);
        }
        let conversation = Conversation::new(&outline, profile.rules, loaded.wants);
        let conversation = Arc::new(conversation);
        let turns = Arc::new(Turns::new(
            Arc::clone(plan),
            Arc::clone(&self.memo),
            loaded.template.key() ^ profile.key(),
            Arc::clone(&conversation),
            allowance.budget(&self.memo.vocabulary),
        ));
        let surroundings = messages::surroundings(profile, body);
        let mut all = variables(&self.named_tokens, surroundings);
        all.push(("messages".into(), Rendered::from_dyn_object(Arc::clone(&conversation))));
        all.push((TURNS.into(), Rendered::from_dyn_object(Arc::clone(&turns))));
        let frame = loaded.template.render_frame(Rendered::from_pairs(all));
        let mut rendering = turns.state();
        if let Some(failed) = rendering.failed.take().or_else(|| conversation.failed().cloned()) {
            return Err(failed);
        }
        let frame = frame?;
        let mut encoder = Encoder {
            vocabulary: &self.memo.vocabulary,
            cuts,
            cache: &self.memo.cache,
            budget: rendering.budget,
            hits: rendering.hits,
            misses: rendering.misses,
        };
        let joined = self.join(profile, &mut encoder, &frame, (plan, &rendering.loops), sink);
        self.memo.cache.book(encoder.hits, encoder.misses);
        joined
    }

    /// Joins the frame's text and the loops' pieces.
    fn join(
        &self,
        profile: &Profile,
        encoder: &mut Encoder<'_>,
        frame: &str,
        (plan, loops): (&Plan, &[Vec<Arc<piece::Piece>>]),
        sink: &mut impl Sink,
    ) -> Result<Quick, CountError> {
        let around = profile.rules.one_bos;
        let bos = self.added.bos.as_ref().filter(|_| around);
        let eos = self.added.eos.as_ref().filter(|_| around);
        let mut parts = frame.split(plan.nonce.as_str());
        let mut before = parts.next().unwrap_or_default();
        if let Some((bos, id)) = bos {
            // With the loop's first words missing it cannot be told whether the prompt begins with it.
            match before.strip_prefix(bos.as_str()) {
                Some(rest) => before = rest,
                None if before.len() < bos.len() => return Ok(Quick::NotThisWay),
                None => {}
            }
            sink.take(&[*id]);
        }
        let mut texts = vec![(before, None)];
        for part in parts {
            let Some((number, text)) = part.split_once('\n') else { return Ok(Quick::NotThisWay) };
            let pieces = number.parse::<usize>().ok().and_then(|number| loops.get(number));
            let Some(pieces) = pieces else { return Ok(Quick::NotThisWay) };
            texts.push((text, Some(pieces)));
        }
        if let Some((eos, _)) = eos
            && let Some((last, _)) = texts.last_mut()
        {
            match last.strip_suffix(eos.as_str()) {
                Some(rest) => *last = rest,
                None if last.len() < eos.len() => return Ok(Quick::NotThisWay),
                None => {}
            }
        }
        let mut tally = Tally::new(encoder, |ids: &[u32]| sink.take(ids));
        for (text, pieces) in texts {
            for piece in pieces.into_iter().flatten() {
                if let Err(Entangled) = tally.piece(piece)? {
                    return Ok(Quick::NotThisWay);
                }
            }
            if let Err(Entangled) = tally.text(text)? {
                return Ok(Quick::NotThisWay);
            }
        }
        tally.end()?;
        eos.iter().for_each(|(_, id)| sink.take(&[*id]));
        Ok(Quick::Done)
    }
}

fn parsed(text: &str) -> Result<Value, CountError> {
    serde_json::from_str(text).map_err(|error| CountError::NotAvailable(error.to_string()))
}
