//! The watcher of one stream: reads every event on its way to the caller, changes almost none.
//!
//! It knows when the answer begins (the commit point: the first event with content), counts output,
//! keeps `max_tokens`, takes out the usage event that only we asked for, and says whether the stream
//! ended as an answer or just ended.

mod measure;
#[cfg(test)]
mod tests;

pub(super) use measure::{COUNTED_MAX_BYTES, count_text, tokens_of};

use super::count::Counter;
use crate::{
    api::{
        answer::{Expected, ToldInput, Usage, believable},
        event::{self, Choice, Chunk, Said, splice_event},
        stream::Event,
    },
    units::Tokens,
};
use bytes::Bytes;
use measure::{keep_text, output_of};
use serde::Deserialize;
use serde_json::value::RawValue;
use std::sync::Arc;

/// What the watcher must know of a request.
#[derive(Clone, Debug)]
pub struct Wishes {
    /// The name to show instead of the server's, where an alias was asked for.
    pub alias: Option<String>,
    /// The caller wants the usage event.
    pub include_usage: bool,
    /// Most output tokens per choice.
    pub max_tokens: Option<Tokens>,
    /// What the model's window leaves for each choice where the caller set no limit.
    pub ceiling: Option<Tokens>,
    /// Choices that may occur.
    pub choices: usize,
    /// Choices that an answer must have to be whole.
    pub wanted: usize,
    /// Our input count.
    pub prompt: Tokens,
    /// That count is exact.
    pub exact: bool,
    /// Counts long pieces of output, where the model's files are here.
    pub counter: Option<Arc<Counter>>,
}

impl Wishes {
    /// Most output tokens that a choice may have.
    pub(super) fn limit(&self) -> Option<Tokens> {
        self.max_tokens.or(self.ceiling)
    }
}

/// What to do with an event.
#[derive(Debug, PartialEq, Eq)]
pub enum Step {
    /// Hand it on.
    Pass(Bytes),
    /// Hand nothing on.
    Keep,
    /// The answer is whole; hand these on, then stop listening to the server.
    Cut(Vec<Bytes>),
    /// The stream said `[DONE]`, and the answer is whole: hand these on and end.
    Done(Vec<Bytes>),
    /// This is no answer.
    Broken(&'static str),
}

/// Why a stream is not an answer; also the label of the failure's metric.
pub mod faults {
    /// An error event.
    pub const ERROR: &str = "error_event";
    /// An event that is no chunk.
    pub const GARBAGE: &str = "garbage_event";
    /// It ended, cleanly or with `[DONE]`, but no choice said that it was finished.
    pub const UNFINISHED: &str = "no_finish_reason";
    /// It ended before anything came.
    pub const EMPTY: &str = "empty_stream";
}

#[derive(Clone, Copy, Debug, Default)]
struct Progress {
    tokens: Tokens,
    begun: bool,
    finished: bool,
    cut: bool,
}

/// What becomes of one choice's part of an event.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fate {
    /// It goes on.
    Stays,
    /// It went over the limit: an end for `length` stands in its place.
    Ends,
    /// Its choice was ended before.
    Drops,
}

/// Output dropped after a cut, in tokens, until we stop waiting for choices that have not begun. A
/// server may stream choices one after another, or keep back those that are not the best.
const DROPPED_MAX: Tokens = Tokens(4096);
/// A tool call's name and arguments may come in more events than tokens; only what is far beyond the
/// limit is taken for a server that ignores it.
const TOOL_SLACK: u64 = 64;

/// The end mark.
const DONE: Bytes = Bytes::from_static(b"data: [DONE]\n\n");

/// The watcher.
#[derive(Debug)]
pub struct Watcher {
    wishes: Wishes,
    choices: Vec<Progress>,
    usage: Option<Usage>,
    /// What the server said last of the input.
    told: Option<ToldInput>,
    usage_seen: bool,
    /// Output that came after its choice was cut.
    dropped: Tokens,
    /// Bytes of content, as JSON text.
    bytes: u64,
    /// What each choice said, kept where a limit holds and a tokenizer can settle whether it is reached:
    /// some servers send less than a token an event.
    texts: Vec<String>,
    /// The last event with choices; an event of our own takes its id and names from it.
    like: Option<Event>,
    /// Some event carried content or a finish.
    pub committed: bool,
    /// The event just read carried content.
    pub content: bool,
}

impl Watcher {
    /// A watcher at the beginning of a stream.
    pub fn new(wishes: Wishes) -> Self {
        let choices = vec![Progress::default(); wishes.choices.max(1)];
        let settles = wishes.max_tokens.is_some() && wishes.counter.is_some();
        let texts = vec![String::new(); if settles { choices.len() } else { 0 }];
        Self {
            texts,
            wishes,
            choices,
            usage: None,
            told: None,
            usage_seen: false,
            dropped: Tokens::ZERO,
            bytes: 0,
            like: None,
            committed: false,
            content: false,
        }
    }

    /// Output tokens so far, by our count.
    pub fn output(&self) -> Tokens {
        self.choices.iter().fold(Tokens::ZERO, |sum, choice| sum.plus(choice.tokens))
    }

    /// The server's usage if it can be believed, else our own count. Where a choice was cut, the
    /// server may have gone on: its word counts for the input alone.
    pub fn usage(&self) -> (Usage, bool) {
        let completion = self.output();
        match self.usage {
            Some(usage) if self.any_cut() => (Usage { completion, ..usage }, false),
            Some(usage) => (usage, true),
            None => (Usage { prompt: self.wishes.prompt, completion, cached: Tokens::ZERO }, false),
        }
    }

    /// What the server said of the input, whether or not it can be true.
    pub const fn told(&self) -> Option<ToldInput> {
        self.told
    }

    fn any_cut(&self) -> bool {
        self.choices.iter().any(|choice| choice.cut)
    }

    /// True when every choice that began has finished, and there are as many as were asked for.
    fn whole(&self) -> bool {
        self.choices.iter().filter(|choice| choice.finished).count() >= self.wishes.wanted.max(1)
            && self.choices.iter().all(|choice| choice.finished || !choice.begun)
    }

    /// True when nothing is left to wait for, whatever the server still sends.
    fn over(&self) -> bool {
        self.choices.iter().all(|choice| choice.finished)
            || (self.dropped > DROPPED_MAX && self.whole())
    }

    /// Reads one event.
    pub fn read(&mut self, event: &Event) -> Step {
        self.content = false;
        let Some(data) = event.data() else { return Step::Pass(event.raw.clone()) };
        match event::read(&data) {
            Said::Garbage => Step::Broken(faults::GARBAGE),
            Said::Other => Step::Pass(event.raw.clone()),
            Said::Done if self.whole() => {
                let mut last = self.closing_usage();
                last.push(event.raw.clone());
                Step::Done(last)
            }
            Said::Done => {
                Step::Broken(if self.committed { faults::UNFINISHED } else { faults::EMPTY })
            }
            Said::Chunk(chunk) if chunk.fault().is_some() => Step::Broken(faults::ERROR),
            Said::Chunk(chunk) => self.chunk(event, &data, &chunk),
        }
    }

    /// The stream ended without `[DONE]`. Some servers never send it; what counts is that the answer
    /// said it was finished. Gives what must still be handed on, the end mark included: callers tell a
    /// whole answer from a torn one by it.
    pub fn end(&mut self) -> Result<Vec<Bytes>, &'static str> {
        if self.whole() {
            let mut last = self.closing_usage();
            last.push(DONE);
            return Ok(last);
        }
        Err(if self.committed { faults::UNFINISHED } else { faults::EMPTY })
    }

    fn chunk(&mut self, event: &Event, data: &[u8], chunk: &Chunk<'_>) -> Step {
        let choices = chunk.choices.as_deref().unwrap_or_default();
        if !choices.is_empty() {
            self.like = Some(event.clone());
        }
        let mut fates = Vec::with_capacity(choices.len());
        for choice in choices {
            match self.progress(choice) {
                None => return Step::Broken(faults::GARBAGE),
                Some(fate) => fates.push(fate),
            }
        }
        let usage = self.note_usage(chunk);
        if fates.iter().all(|fate| *fate == Fate::Stays) {
            if chunk.is_usage_only() {
                if !self.wishes.include_usage {
                    return Step::Keep;
                }
                self.usage_seen = true;
            }
            return Step::Pass(self.renamed(event, data, chunk, usage.as_deref(), None));
        }
        self.committed = true;
        let left = trimmed(data, choices, &fates).map(|(old, new)| {
            self.renamed(event, data, chunk, usage.as_deref(), Some((old, &new)))
        });
        if !self.over() {
            // Other choices go on.
            return left.map_or(Step::Keep, Step::Pass);
        }
        let mut last = Vec::from_iter(left);
        last.extend(self.closing_usage());
        last.push(DONE);
        Step::Cut(last)
    }

    /// Books one choice's part of an event. `None`: an index nobody asked for.
    fn progress(&mut self, choice: &Choice<'_>) -> Option<Fate> {
        let index = usize::try_from(choice.index).ok()?;
        let progress = self.choices.get_mut(index)?;
        let (new, bytes) = output_of(choice, self.wishes.counter.as_deref());
        if progress.cut {
            self.dropped = self.dropped.plus(new);
            return Some(Fate::Drops);
        }
        self.bytes = self.bytes.saturating_add(bytes);
        let in_tools = choice
            .delta
            .as_ref()
            .is_some_and(|delta| delta.tool_calls.is_some() || delta.function_call.is_some());
        progress.begun = true;
        let limit = self.wishes.limit().map_or(u64::MAX, Tokens::get);
        let limit = if in_tools { with_tools(limit) } else { limit };
        if let Some(text) = self.texts.get_mut(index) {
            keep_text(text, choice);
            let reached = progress.tokens.get() >= limit;
            if let (true, Some(counter)) = (reached && !text.is_empty(), &self.wishes.counter) {
                // So many events, but how many tokens are they? Fewer events than tokens that are left
                // come before the next look, so long texts are not counted over and over.
                let counted = count_text(text, Some(counter)).less(new);
                progress.tokens = progress.tokens.min(counted);
            }
        }
        let would = progress.tokens.plus(new);
        // A single event with several tokens may pass the limit by a little when pieces are counted
        // apart; an event that starts at or beyond it may not.
        if new > Tokens::ZERO && (progress.tokens.get() >= limit || is_over(would, limit)) {
            progress.cut = true;
            progress.finished = true;
            return Some(Fate::Ends);
        }
        progress.tokens = would;
        if new > Tokens::ZERO {
            self.content = true;
            self.committed = true;
        }
        if choice.finished() {
            progress.finished = true;
            self.committed = true;
        }
        Some(Fate::Stays)
    }

    /// Notes an event's usage. Gives what must stand in its place where it cannot be true.
    fn note_usage(&mut self, chunk: &Chunk<'_>) -> Option<String> {
        let text = chunk.usage.map(RawValue::get)?;
        let expected = Expected {
            prompt: self.wishes.prompt,
            completion: self.output().plus(self.dropped),
            bytes: self.bytes,
            exact: self.wishes.exact,
            answers: self.choices.len() as u64,
        };
        let believed = believable(Some(text), expected);
        // With usage on every event the last one counts.
        self.usage = believed.or(self.usage);
        self.told = ToldInput::read(Some(text)).or(self.told);
        ((believed.is_none() || self.any_cut()) && text != "null").then(|| self.usage().0.json())
    }

    /// The usage event that the caller asked for and the server never sent.
    fn closing_usage(&mut self) -> Vec<Bytes> {
        if !self.wishes.include_usage || std::mem::replace(&mut self.usage_seen, true) {
            return Vec::new();
        }
        #[derive(Deserialize, Default)]
        struct Head<'a> {
            #[serde(borrow, default)]
            id: Option<&'a RawValue>,
            #[serde(borrow, default)]
            object: Option<&'a RawValue>,
            #[serde(borrow, default)]
            created: Option<&'a RawValue>,
            #[serde(borrow, default)]
            model: Option<&'a RawValue>,
        }
        let data = self.like.as_ref().and_then(Event::data);
        let head: Head<'_> =
            data.as_deref().and_then(|data| serde_json::from_slice(data).ok()).unwrap_or_default();
        let raw = |value: Option<&RawValue>, other: &str| {
            value.map_or_else(|| other.to_owned(), |value| value.get().to_owned())
        };
        let event = format!(
            "data: {{\"id\":{},\"object\":{},\"created\":{},\"model\":{},\"choices\":[],\"usage\":{}}}\n\n",
            raw(head.id, "\"\""),
            raw(head.object, "\"chat.completion.chunk\""),
            raw(head.created, "0"),
            raw(head.model, "\"\""),
            self.usage().0.json()
        );
        vec![self.alias_in(Bytes::from(event))]
    }

    /// The event with our name for the model, and with other usage and choices where they are given.
    fn renamed(
        &self,
        event: &Event,
        data: &[u8],
        chunk: &Chunk<'_>,
        usage: Option<&str>,
        choices: Option<(&RawValue, &str)>,
    ) -> Bytes {
        let alias = self.wishes.alias.as_ref().and_then(|alias| serde_json::to_string(alias).ok());
        let mut changes: Vec<(&RawValue, &str)> = Vec::from_iter(choices);
        changes.extend(chunk.model.zip(alias.as_deref()));
        changes.extend(chunk.usage.zip(usage));
        splice_event(&event.raw, data, &changes)
    }

    fn alias_in(&self, raw: Bytes) -> Bytes {
        if self.wishes.alias.is_none() {
            return raw;
        }
        let event = Event { raw };
        let renamed = event.data().and_then(|data| match event::read(&data) {
            Said::Chunk(chunk) => Some(self.renamed(&event, &data, &chunk, None, None)),
            _ => None,
        });
        renamed.unwrap_or(event.raw)
    }
}

/// The choices of an event as the server wrote them, and what is left of them: those that end here end
/// for the reason the server should have given. `None` when nothing is left.
fn trimmed<'a>(
    data: &'a [u8],
    choices: &[Choice<'_>],
    fates: &[Fate],
) -> Option<(&'a RawValue, String)> {
    #[derive(Deserialize)]
    struct Only<'a> {
        #[serde(borrow)]
        choices: &'a RawValue,
    }
    let only: Only<'a> = serde_json::from_slice(data).ok()?;
    let raws: Vec<&RawValue> = serde_json::from_str(only.choices.get()).ok()?;
    let left: Vec<String> = choices
        .iter()
        .zip(raws)
        .zip(fates)
        .filter_map(|((choice, raw), fate)| match fate {
            Fate::Stays => Some(raw.get().to_owned()),
            Fate::Ends => Some(ended(choice)),
            Fate::Drops => None,
        })
        .collect();
    (!left.is_empty()).then(|| (only.choices, format!("[{}]", left.join(","))))
}

/// The end of a choice whose server ignores the limit.
fn ended(choice: &Choice<'_>) -> String {
    let empty = if choice.delta.is_some() { "\"delta\":{}" } else { "\"text\":\"\"" };
    format!("{{\"index\":{},{empty},\"logprobs\":null,\"finish_reason\":\"length\"}}", choice.index)
}

/// The limit for an answer with tool calls.
pub(super) const fn with_tools(limit: u64) -> u64 {
    limit.saturating_mul(2).saturating_add(TOOL_SLACK)
}

/// True for a count that is beyond the limit by more than counting text anew can add.
pub(super) const fn is_over(tokens: Tokens, limit: u64) -> bool {
    tokens.get() > limit.saturating_add(limit / 8).saturating_add(4)
}
