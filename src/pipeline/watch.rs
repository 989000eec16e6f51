//! The watcher of one stream: reads every event on its way to the caller, changes almost none.
//!
//! It knows when the answer begins (the commit point: the first event with content), counts output,
//! keeps `max_tokens`, takes out the usage event that only we asked for, and says whether the stream
//! ended as an answer or just ended.

use super::count::Counter;
use crate::{
    api::{
        answer::{Expected, Usage, believable},
        event::{self, Choice, Chunk, Said, splice},
        stream::Event,
    },
    units::Tokens,
};
use bytes::Bytes;
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
    /// Choices that may occur.
    pub choices: usize,
    /// Our input count.
    pub prompt: Tokens,
    /// That count is exact.
    pub exact: bool,
    /// Counts long pieces of output, where the model's files are here.
    pub counter: Option<Arc<Counter>>,
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

/// A tool call's name and arguments may come in more events than tokens; only what is far beyond the
/// limit is taken for a server that ignores it.
const TOOL_SLACK: u64 = 64;
/// Raw JSON text up to this length counts as one token without asking a tokenizer: servers send one
/// token an event, and few tokens are longer.
const ONE_TOKEN_BYTES: usize = 18;

/// The end mark.
const DONE: Bytes = Bytes::from_static(b"data: [DONE]\n\n");

/// The watcher.
#[derive(Debug)]
pub struct Watcher {
    wishes: Wishes,
    choices: Vec<Progress>,
    usage: Option<Usage>,
    usage_seen: bool,
    /// Bytes of content, as JSON text.
    bytes: u64,
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
        Self {
            wishes,
            choices,
            usage: None,
            usage_seen: false,
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

    /// The server's usage if it can be believed, else our own count.
    pub fn usage(&self) -> (Usage, bool) {
        match self.usage {
            Some(usage) => (usage, true),
            None => (
                Usage {
                    prompt: self.wishes.prompt,
                    completion: self.output(),
                    cached: Tokens::ZERO,
                },
                false,
            ),
        }
    }

    /// True when every choice that began has finished, and one has.
    fn whole(&self) -> bool {
        self.choices.iter().any(|choice| choice.finished)
            && self.choices.iter().all(|choice| choice.finished || !choice.begun)
    }

    /// Reads one event.
    pub fn read(&mut self, event: &Event) -> Step {
        self.content = false;
        let Some(data) = event.data() else { return Step::Pass(event.raw.clone()) };
        match event::read(&data) {
            Said::Garbage => Step::Broken(faults::GARBAGE),
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
        if chunk.choices.as_ref().is_some_and(|choices| !choices.is_empty()) {
            self.like = Some(event.clone());
        }
        let mut over = false;
        for choice in chunk.choices.iter().flatten() {
            match self.progress(choice) {
                None => return Step::Broken(faults::GARBAGE),
                Some(now_over) => over |= now_over,
            }
        }
        if over {
            return self.cut(data, chunk);
        }
        if chunk.usage.is_some() {
            return self.usage_event(event, chunk);
        }
        Step::Pass(self.renamed(event, chunk, None))
    }

    /// Books one choice's part of an event. `None`: an index nobody asked for. `Some(true)`: it went
    /// over `max_tokens`.
    fn progress(&mut self, choice: &Choice<'_>) -> Option<bool> {
        let index = usize::try_from(choice.index).ok()?;
        let (new, bytes) = output_of(choice, self.wishes.counter.as_deref());
        self.bytes = self.bytes.saturating_add(bytes);
        let in_tools = choice.delta.as_ref().is_some_and(|delta| delta.tool_calls.is_some());
        let progress = self.choices.get_mut(index)?;
        progress.begun = true;
        let limit = self.wishes.max_tokens.map_or(u64::MAX, Tokens::get);
        let limit =
            if in_tools { limit.saturating_mul(2).saturating_add(TOOL_SLACK) } else { limit };
        let would = progress.tokens.plus(new);
        // A single event with several tokens may pass the limit by a little when pieces are counted
        // apart; an event that starts at or beyond it may not.
        let at_limit =
            progress.tokens.get() >= limit || would.get() > limit.saturating_add(limit / 8 + 4);
        if new > Tokens::ZERO && (progress.cut || at_limit) {
            progress.cut = true;
            progress.finished = true;
            return Some(true);
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
        Some(false)
    }

    /// The server ignores `max_tokens`: the choice ends here, for the reason the server should have
    /// given.
    fn cut(&mut self, data: &[u8], chunk: &Chunk<'_>) -> Step {
        #[derive(Deserialize)]
        struct Only<'a> {
            #[serde(borrow)]
            choices: &'a RawValue,
        }
        self.committed = true;
        let chat = chunk.choices.iter().flatten().any(|choice| choice.delta.is_some());
        let ended: Vec<String> = chunk
            .choices
            .iter()
            .flatten()
            .filter(|choice| self.is_cut(choice.index))
            .map(|choice| {
                let empty = if chat { "\"delta\":{}" } else { "\"text\":\"\"" };
                format!(
                    "{{\"index\":{},{empty},\"logprobs\":null,\"finish_reason\":\"length\"}}",
                    choice.index
                )
            })
            .collect();
        let mut last = Vec::new();
        if let Ok(text) = std::str::from_utf8(data)
            && let Ok(only) = serde_json::from_str::<Only<'_>>(text)
        {
            let data = Bytes::copy_from_slice(data);
            // The copy keeps its own offsets: look the value up in it again.
            let offset = only.choices.get().as_ptr() as usize - text.as_ptr() as usize;
            let end = offset + only.choices.get().len();
            let mut event = Vec::with_capacity(data.len() + 64);
            event.extend_from_slice(b"data: ");
            event.extend_from_slice(data.get(..offset).unwrap_or_default());
            event.extend_from_slice(format!("[{}]", ended.join(",")).as_bytes());
            event.extend_from_slice(data.get(end..).unwrap_or_default());
            event.extend_from_slice(b"\n\n");
            last.push(self.alias_in(Bytes::from(event)));
        }
        if !self.whole() {
            // Other choices go on; the events of this one are dropped from here.
            return last.pop().map_or(Step::Keep, Step::Pass);
        }
        last.extend(self.closing_usage());
        last.push(DONE);
        Step::Cut(last)
    }

    fn is_cut(&self, index: u32) -> bool {
        usize::try_from(index).ok().and_then(|i| self.choices.get(i)).is_some_and(|c| c.cut)
    }

    /// An event that carries usage: noted, corrected where it cannot be true, and kept from a caller
    /// who did not ask for it.
    fn usage_event(&mut self, event: &Event, chunk: &Chunk<'_>) -> Step {
        let expected = Expected {
            prompt: self.wishes.prompt,
            completion: self.output(),
            bytes: self.bytes,
            exact: self.wishes.exact,
            answers: self.choices.len() as u64,
        };
        let text = chunk.usage.map(RawValue::get);
        let believed = believable(text, expected);
        // With usage on every event the last one counts.
        self.usage = believed.or(self.usage);
        if chunk.is_usage_only() {
            if !self.wishes.include_usage {
                return Step::Keep;
            }
            self.usage_seen = true;
        }
        let ours = if believed.is_none() && text != Some("null") {
            Some(self.usage().0.json())
        } else {
            None
        };
        Step::Pass(self.renamed(event, chunk, ours.as_deref()))
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

    fn renamed(&self, event: &Event, chunk: &Chunk<'_>, usage: Option<&str>) -> Bytes {
        let alias = self.wishes.alias.as_ref().and_then(|alias| serde_json::to_string(alias).ok());
        let mut changes: Vec<(&RawValue, &str)> = Vec::new();
        if let (Some(old), Some(new)) = (chunk.model, &alias) {
            changes.push((old, new));
        }
        if let (Some(old), Some(new)) = (chunk.usage, usage) {
            changes.push((old, new));
        }
        if changes.is_empty() { event.raw.clone() } else { splice(&event.raw, &changes) }
    }

    fn alias_in(&self, raw: Bytes) -> Bytes {
        if self.wishes.alias.is_none() {
            return raw;
        }
        let event = Event { raw };
        let renamed = event.data().and_then(|data| match event::read(&data) {
            Said::Chunk(chunk) => Some(self.renamed(&event, &chunk, None)),
            _ => None,
        });
        renamed.unwrap_or(event.raw)
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
    let mut tokens = Tokens::ZERO;
    for part in choice.parts() {
        let counted = match serde_json::from_str::<String>(part.get()) {
            Ok(text) => counter
                .and_then(|counter| counter.output(&text))
                .unwrap_or_else(|| Tokens(fewest(&text))),
            Err(_) => Tokens((part.get().len() as u64).div_ceil(6)),
        };
        tokens = tokens.plus(counted);
    }
    (tokens.max(Tokens(1)), bytes as u64)
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

    fn wishes() -> Wishes {
        Wishes {
            alias: None,
            include_usage: false,
            max_tokens: None,
            choices: 1,
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

    #[test]
    fn a_server_that_stops_exactly_at_the_limit_is_left_alone() {
        let mut watcher = Watcher::new(Wishes { max_tokens: Some(Tokens(2)), ..wishes() });
        let done = r#"{"choices":[{"index":0,"delta":{"content":"b"},"finish_reason":"length"}]}"#;
        assert!(matches!(watcher.read(&token("a")), Step::Pass(_)));
        assert!(matches!(watcher.read(&event(done)), Step::Pass(_)));
        assert!(matches!(watcher.read(&event("[DONE]")), Step::Done(_)));
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
