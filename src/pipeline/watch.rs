//! The watcher of one stream: reads every event on its way to the caller, changes almost none.
//!
//! It knows when the answer begins (the commit point: the first event with content), counts output,
//! keeps `max_tokens`, takes out the usage event that only we asked for, and says whether the stream
//! ended as an answer or just ended.

use super::count::Counter;
use crate::{
    api::{
        answer::{Expected, Usage, believable},
        event::{self, Choice, Chunk, Said, splice_event},
        stream::Event,
    },
    units::Tokens,
};
use bytes::Bytes;
use serde::Deserialize;
use serde_json::value::RawValue;
use std::{borrow::Cow, sync::Arc};

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
/// Raw JSON text up to this length counts as one token without asking a tokenizer: servers send one
/// token an event, and few tokens are longer.
const ONE_TOKEN_BYTES: usize = 18;
/// Text above this is not given to a tokenizer: that is milliseconds of work, and every stream on the
/// thread would wait.
pub(super) const COUNTED_MAX_BYTES: usize = 64 * 1024;

/// The end mark.
const DONE: Bytes = Bytes::from_static(b"data: [DONE]\n\n");

/// The watcher.
#[derive(Debug)]
pub struct Watcher {
    wishes: Wishes,
    choices: Vec<Progress>,
    usage: Option<Usage>,
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

/// Adds a part to what its choice has said, up to what a tokenizer is given.
fn keep_text(text: &mut String, choice: &Choice<'_>) {
    for part in choice.parts() {
        if let Ok(piece) = serde_json::from_str::<Cow<'_, str>>(part.get())
            && text.len() + piece.len() <= COUNTED_MAX_BYTES
        {
            text.push_str(&piece);
        }
    }
}

/// Output tokens in one choice's part of an event, and its bytes. A short part is one token. A longer
/// one is counted by the tokenizer; without one it has [`fewest`].
fn output_of(choice: &Choice<'_>, counter: Option<&Counter>) -> (Tokens, u64) {
    let bytes: usize = choice.parts().map(|part| part.get().len()).sum();
    if bytes == 0 {
        return (Tokens::ZERO, 0);
    }
    if bytes <= ONE_TOKEN_BYTES {
        return (Tokens(1), bytes as u64);
    }
    let tokens = choice.parts().fold(Tokens::ZERO, |sum, part| sum.plus(tokens_of(part, counter)));
    (tokens.max(Tokens(1)), bytes as u64)
}

/// Tokens of one part of an answer: by the model's tokenizer where it is here and the text is not too
/// long for these threads, else the [`fewest`] that it can have. Tool calls stay JSON, six bytes a token.
pub(super) fn tokens_of(part: &RawValue, counter: Option<&Counter>) -> Tokens {
    let Ok(text) = serde_json::from_str::<Cow<'_, str>>(part.get()) else {
        return Tokens((part.get().len() as u64).div_ceil(6));
    };
    count_text(&text, counter)
}

/// Tokens of a text of an answer, as [`tokens_of`].
pub(super) fn count_text(text: &str, counter: Option<&Counter>) -> Tokens {
    counter
        .filter(|_| text.len() <= COUNTED_MAX_BYTES)
        .and_then(|counter| counter.output(text))
        .unwrap_or_else(|| Tokens(fewest(text)))
}

/// The fewest tokens that a text is likely to have: one for every six bytes, and a run of white space,
/// of which tokenizers make one token, as one byte. A server that keeps the limit must not be cut, so
/// this errs on the low side; JSON's escapes are undone before, since they can be six bytes a letter.
fn fewest(text: &str) -> u64 {
    let mut bytes = 0;
    let mut blank = false;
    for letter in text.chars() {
        bytes += match (blank, letter.is_whitespace()) {
            (true, true) => 0,
            (false, true) => 1,
            (_, false) => letter.len_utf8(),
        };
        blank = letter.is_whitespace();
    }
    if bytes <= ONE_TOKEN_BYTES { 1 } else { (bytes as u64).div_ceil(6) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        snapshot::ServerKind,
        tokens::{ModelFiles, Profile},
    };

    fn wishes() -> Wishes {
        Wishes {
            alias: None,
            include_usage: false,
            max_tokens: None,
            ceiling: None,
            choices: 1,
            wanted: 1,
            prompt: Tokens(10),
            exact: true,
            counter: None,
        }
    }

    fn event(text: &str) -> Event {
        Event { raw: Bytes::from(format!("data: {text}\n\n")) }
    }

    fn token(text: &str) -> Event {
        event(&format!(
            r#"{{"id":"x","created":7,"model":"inner","choices":[{{"index":0,"delta":{{"content":"{text}"}}}}]}}"#
        ))
    }

    const FINISH: &str =
        r#"{"id":"x","model":"inner","choices":[{"index":0,"delta":{},"finish_reason":"stop"}]}"#;
    const USAGE: &str = r#"{"id":"x","model":"inner","choices":[],"usage":{"prompt_tokens":10,"completion_tokens":2}}"#;
    const ROLE: &str = r#"{"choices":[{"index":0,"delta":{"role":"assistant","content":""}}]}"#;

    #[test]
    fn the_first_content_commits_not_the_role() {
        let mut watcher = Watcher::new(wishes());
        assert!(matches!(watcher.read(&event(ROLE)), Step::Pass(_)));
        assert!(!watcher.committed);
        let piece = token("hi");
        assert_eq!(watcher.read(&piece), Step::Pass(piece.raw.clone()));
        assert!(watcher.committed && watcher.content);
        assert_eq!(watcher.output(), Tokens(1));
    }

    #[test]
    fn only_a_finished_answer_is_done() {
        let mut watcher = Watcher::new(wishes());
        assert_eq!(watcher.read(&event("[DONE]")), Step::Broken(faults::EMPTY));
        watcher.read(&token("hi"));
        assert_eq!(watcher.read(&event("[DONE]")), Step::Broken(faults::UNFINISHED));
        assert_eq!(watcher.end(), Err(faults::UNFINISHED));
        watcher.read(&event(FINISH));
        assert_eq!(watcher.end(), Ok(vec![DONE]));
        assert!(matches!(watcher.read(&event("[DONE]")), Step::Done(last) if last.len() == 1));
    }

    #[test]
    fn an_answer_of_nothing_but_a_finish_is_an_answer() {
        let mut watcher = Watcher::new(wishes());
        watcher.read(&event(FINISH));
        assert!(watcher.committed);
        assert!(watcher.end().is_ok());
    }

    #[test]
    fn usage_is_kept_from_callers_who_did_not_ask() {
        let mut watcher = Watcher::new(wishes());
        watcher.read(&token("a"));
        watcher.read(&event(FINISH));
        assert_eq!(watcher.read(&event(USAGE)), Step::Keep);
        let usage = Usage { prompt: Tokens(10), completion: Tokens(2), cached: Tokens::ZERO };
        assert_eq!(watcher.usage(), (usage, true));
    }

    #[test]
    fn absurd_and_absent_usage_become_our_count() {
        let ask = Wishes { include_usage: true, ..wishes() };
        let mut watcher = Watcher::new(ask.clone());
        watcher.read(&token("a"));
        watcher.read(&event(FINISH));
        let absurd = r#"{"choices":[],"usage":{"prompt_tokens":-3,"completion_tokens":900000}}"#;
        let Step::Pass(raw) = watcher.read(&event(absurd)) else { panic!("kept") };
        let text = std::str::from_utf8(&raw).unwrap();
        assert!(
            text.contains(r#""prompt_tokens":10,"completion_tokens":1,"total_tokens":11"#),
            "{text}"
        );

        let mut watcher = Watcher::new(ask);
        watcher.read(&token("a"));
        watcher.read(&event(FINISH));
        let Step::Done(last) = watcher.read(&event("[DONE]")) else { panic!("not done") };
        assert_eq!(last.len(), 2);
        let text = std::str::from_utf8(&last[0]).unwrap();
        assert!(
            text.contains(r#""completion_tokens":1"#) && text.contains(r#""choices":[]"#),
            "{text}"
        );
    }

    #[test]
    fn max_tokens_holds_when_the_server_ignores_it() {
        let ask = Wishes {
            max_tokens: Some(Tokens(3)),
            alias: Some("mine".into()),
            include_usage: true,
            ..wishes()
        };
        let mut watcher = Watcher::new(ask);
        for _ in 0..3 {
            assert!(matches!(watcher.read(&token("a")), Step::Pass(_)));
        }
        let Step::Cut(last) = watcher.read(&token("b")) else { panic!("not cut") };
        let text: String = last.iter().map(|raw| String::from_utf8_lossy(raw)).collect();
        assert!(text.contains(r#""finish_reason":"length""#), "{text}");
        assert!(text.contains(r#""id":"x""#) && text.contains(r#""model":"mine""#), "{text}");
        assert!(!text.contains("inner") && !text.contains(r#""b""#), "{text}");
        assert!(text.contains(r#""completion_tokens":3"#), "{text}");
        assert!(text.ends_with("data: [DONE]\n\n"), "{text}");
        assert_eq!(watcher.output(), Tokens(3));
    }

    /// Deep indentation is one token of many bytes; so is a word that is written in JSON escapes.
    #[test]
    fn long_pieces_of_one_token_do_not_use_up_the_limit() {
        for piece in [" ".repeat(64), "\\u6f22\\u5b57\\u6587".to_owned(), "\\n".repeat(20)] {
            let mut watcher = Watcher::new(Wishes { max_tokens: Some(Tokens(20)), ..wishes() });
            for _ in 0..20 {
                assert!(matches!(watcher.read(&token(&piece)), Step::Pass(_)), "{piece}");
            }
            assert_eq!(watcher.output(), Tokens(20), "{piece}");
        }
        assert_eq!(fewest("several ordinary words of a text"), 6);
    }

    /// A server can put megabytes into one event; the stream's thread must not tokenize them.
    #[test]
    fn only_text_of_a_usual_size_is_given_to_the_tokenizer() {
        let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/counts/chatml");
        let files = ModelFiles::load(std::path::Path::new(folder)).unwrap();
        let counter = Counter::new(Arc::new(files), Profile::of(ServerKind::Vllm));
        let count = |text: &str| count_text(text, Some(&counter)).get();
        let usual = "a b c ".repeat(1000);
        assert_eq!(Some(Tokens(count(&usual))), counter.output(&usual));
        assert_ne!(count(&usual), fewest(&usual));
        let long = "a b c ".repeat(COUNTED_MAX_BYTES / 6 + 1);
        assert_eq!(count(&long), fewest(&long));
    }

    #[test]
    fn less_than_a_token_an_event_is_no_reason_to_cut() {
        let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("models/demo-chat");
        let files = Arc::new(crate::tokens::ModelFiles::load(&folder).unwrap());
        let profile = crate::tokens::Profile::of(crate::ids::ServerKind::Vllm);
        let counter = Arc::new(Counter::new(files, profile));
        let words = "The daemon counts tokens. ".repeat(4);
        let tokens = counter.output(&words).unwrap();
        let limit = Some(tokens);
        let ask = Wishes { max_tokens: limit, counter: Some(Arc::clone(&counter)), ..wishes() };
        let mut watcher = Watcher::new(ask.clone());
        for letter in words.chars() {
            assert!(matches!(watcher.read(&token(&letter.to_string())), Step::Pass(_)));
        }
        // But a server that ignores the limit is cut at it, however it cuts its pieces.
        let mut passed = String::new();
        let mut watcher = Watcher::new(ask);
        for letter in words.repeat(3).chars() {
            match watcher.read(&token(&letter.to_string())) {
                Step::Pass(_) => passed.push(letter),
                Step::Cut(_) => break,
                other => panic!("{other:?}"),
            }
        }
        let got = counter.output(&passed).unwrap();
        assert!(got >= tokens && got.get() <= tokens.get() + 2, "{got} of {tokens}");
    }

    #[test]
    fn fewer_choices_than_asked_are_no_whole_answer() {
        let mut watcher = Watcher::new(Wishes { choices: 2, wanted: 2, ..wishes() });
        watcher.read(&token("a"));
        watcher.read(&event(FINISH));
        assert_eq!(watcher.read(&event("[DONE]")), Step::Broken(faults::UNFINISHED));
    }

    #[test]
    fn a_server_that_stops_exactly_at_the_limit_is_left_alone() {
        let mut watcher = Watcher::new(Wishes { max_tokens: Some(Tokens(2)), ..wishes() });
        let done = r#"{"choices":[{"index":0,"delta":{"content":"b"},"finish_reason":"length"}]}"#;
        assert!(matches!(watcher.read(&token("a")), Step::Pass(_)));
        assert!(matches!(watcher.read(&event(done)), Step::Pass(_)));
        assert!(matches!(watcher.read(&event("[DONE]")), Step::Done(_)));
    }

    /// "Never stop" without `max_tokens` ends where the model's window does.
    #[test]
    fn the_window_is_the_limit_of_callers_who_set_none() {
        let mut watcher = Watcher::new(Wishes { ceiling: Some(Tokens(3)), ..wishes() });
        for _ in 0..3 {
            assert!(matches!(watcher.read(&token("a")), Step::Pass(_)));
        }
        let Step::Cut(last) = watcher.read(&token("b")) else { panic!("not cut") };
        assert!(String::from_utf8_lossy(&last[0]).contains(r#""finish_reason":"length""#));

        let both = Wishes { max_tokens: Some(Tokens(9)), ceiling: Some(Tokens(3)), ..wishes() };
        assert_eq!(both.limit(), Some(Tokens(9)));
    }

    fn two() -> Watcher {
        Watcher::new(Wishes { choices: 2, max_tokens: Some(Tokens(1)), ..wishes() })
    }

    fn part(index: u32, text: &str, finish: &str) -> String {
        format!(r#"{{"index":{index},"delta":{{"content":"{text}"}},"finish_reason":{finish}}}"#)
    }

    fn parts(parts: &[String]) -> Event {
        event(&format!(r#"{{"choices":[{}]}}"#, parts.join(",")))
    }

    /// Choice 1 begins when choice 0 is over; what choice 0 says after its end is dropped.
    #[test]
    fn choices_that_come_one_after_another_are_all_heard() {
        let mut watcher = two();
        watcher.read(&parts(&[part(0, "a", "null")]));
        let Step::Pass(end) = watcher.read(&parts(&[part(0, "b", "null")])) else { panic!("?") };
        assert!(String::from_utf8_lossy(&end).contains("length"));
        assert_eq!(watcher.read(&parts(&[part(0, "c", "null")])), Step::Keep);
        assert_eq!(watcher.read(&parts(&[part(0, "", "\"stop\"")])), Step::Keep);
        let last = parts(&[part(1, "d", "\"stop\"")]);
        assert_eq!(watcher.read(&last), Step::Pass(last.raw.clone()));
        assert!(matches!(watcher.read(&event("[DONE]")), Step::Done(_)));
        assert_eq!(watcher.output(), Tokens(2));
    }

    #[test]
    fn a_cut_choice_takes_nothing_of_its_neighbour_along() {
        let mut watcher = two();
        watcher.read(&parts(&[part(0, "a", "null")]));
        let both = parts(&[part(0, "b", "null"), part(1, "c", "null")]);
        let Step::Pass(raw) = watcher.read(&both) else { panic!("not passed") };
        let data = Event { raw }.data().unwrap().into_owned();
        let value: serde_json::Value = serde_json::from_slice(&data).unwrap();
        assert_eq!(value["choices"][0]["finish_reason"], "length");
        assert_eq!(value["choices"][1]["delta"]["content"], "c");
        let again = parts(&[part(0, "b", "null"), part(1, "", "\"stop\"")]);
        let Step::Cut(last) = watcher.read(&again) else { panic!("not over") };
        let text: String = last.iter().map(|raw| String::from_utf8_lossy(raw)).collect();
        assert!(text.contains("stop") && !text.contains(r#""index":0"#), "{text}");
    }

    /// With `best_of` above `n` some choices never come.
    #[test]
    fn a_choice_without_end_is_not_listened_to_for_ever() {
        let mut watcher = two();
        let endless = (0..10_000).map(|_| watcher.read(&parts(&[part(0, "a", "null")])));
        assert!(endless.into_iter().any(|step| matches!(step, Step::Cut(_))));
    }

    /// A server that went on after the cut counts what nobody got.
    #[test]
    fn what_came_after_a_cut_is_not_charged() {
        let mut watcher = two();
        watcher.read(&parts(&[part(1, "d", "\"stop\"")]));
        let dropped = (0..20).map(|_| watcher.read(&parts(&[part(0, "a", "null")]))).count();
        assert_eq!(dropped, 20);
        let usage = r#"{"choices":[],"usage":{"prompt_tokens":12,"completion_tokens":21}}"#;
        watcher.read(&event(usage));
        let (usage, from_server) = watcher.usage();
        assert_eq!((usage.prompt, usage.completion), (Tokens(12), Tokens(2)));
        assert!(!from_server);
    }

    #[test]
    fn events_of_several_lines_are_corrected_too() {
        let ask = Wishes { alias: Some("mine".into()), include_usage: true, ..wishes() };
        let mut watcher = Watcher::new(ask);
        watcher.read(&token("a"));
        let raw = Bytes::from_static(
            b"data: {\"model\":\"inner\",\ndata: \"choices\":[],\ndata: \"usage\":{\"prompt_tokens\":-1}}\n\n",
        );
        let Step::Pass(raw) = watcher.read(&Event { raw }) else { panic!("kept") };
        let text = std::str::from_utf8(&raw).unwrap();
        assert!(
            text.starts_with("data: {\"model\":\"mine\", \"choices\":[], \"usage\":"),
            "{text}"
        );
        assert!(text.contains("\"prompt_tokens\":10") && text.ends_with("}\n\n"), "{text}");
        assert_eq!(text.lines().count(), 2);
    }

    #[test]
    fn several_choices_end_one_by_one() {
        let mut watcher =
            Watcher::new(Wishes { choices: 2, max_tokens: Some(Tokens(1)), ..wishes() });
        let piece = |index: u32, rest: &str| {
            event(&format!(
                r#"{{"choices":[{{"index":{index},"delta":{{"content":"a"}}{rest}}}]}}"#
            ))
        };
        watcher.read(&piece(0, ""));
        watcher.read(&piece(1, ""));
        assert!(matches!(watcher.read(&piece(0, "")), Step::Pass(_)));
        assert!(matches!(watcher.read(&piece(1, "")), Step::Cut(_)));
        assert_eq!(watcher.read(&piece(2, "")), Step::Broken(faults::GARBAGE));
    }

    #[test]
    fn aliases_replace_the_servers_name_and_nothing_else() {
        let mut watcher = Watcher::new(Wishes { alias: Some("mine".into()), ..wishes() });
        let Step::Pass(raw) = watcher.read(&token("the inner life")) else { panic!("kept") };
        let text = std::str::from_utf8(&raw).unwrap();
        assert_eq!(
            text.replace("\"mine\"", "\"inner\"").as_bytes(),
            &token("the inner life").raw[..]
        );
        assert!(text.contains("the inner life"));
    }
}
