//! What the scripted server says: the words, and the bytes around them in vLLM's shapes.
//!
//! The text of an answer of `n` tokens is `word0 word1 ... word{n-1}`, so a reader can tell that it is
//! whole, and every event depends on nothing but its number. So the events can be rendered once.

use crate::units::Tokens;
use bytes::Bytes;
use std::{fmt::Write as _, sync::Arc};

/// Events rendered ahead; longer answers render the rest as they go.
const READY_EVENTS: u64 = 4096;

/// The end of every stream.
const DONE: &str = "data: [DONE]\n\n";

/// Which of the two generating routes is answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Style {
    Chat,
    Completion,
}

/// Why an answer ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Finish {
    Stop,
    Length,
}

/// The model's words.
#[derive(Clone, Copy, Debug)]
pub(super) struct Words {
    /// Each token's text is padded with dots to this many bytes.
    pub pad_bytes: usize,
}

/// How one answer is written.
#[derive(Clone, Debug)]
pub(super) struct Shape {
    style: Style,
    words: Words,
    /// `"id":...,"object":...,"created":...,"model":...`, for chunks.
    chunk_head: String,
    /// The same for an answer in one piece.
    whole_head: String,
    /// Every event up to [`READY_EVENTS`], when rendered ahead.
    ready: Option<Arc<[Bytes]>>,
}

// === impl Finish ===

impl Finish {
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Stop => "stop",
            Self::Length => "length",
        }
    }
}

// === impl Words ===

impl Words {
    /// Appends the text of the token numbered `index`. It needs no escaping in JSON.
    fn push(self, out: &mut String, index: u64) {
        let start = out.len();
        if index > 0 {
            out.push(' ');
        }
        // Writing to a String cannot fail.
        let _ = write!(out, "word{index}");
        let missing = self.pad_bytes.saturating_sub(out.len().saturating_sub(start));
        out.extend(std::iter::repeat_n('.', missing));
    }
}

// === impl Shape ===

impl Shape {
    /// `model` is a JSON text, quotes included; `id` comes without its prefix.
    pub fn new(style: Style, words: Words, id: &str, created_s: u64, model: &str) -> Self {
        let (prefix, chunk, whole) = match style {
            Style::Chat => ("chatcmpl-", "chat.completion.chunk", "chat.completion"),
            Style::Completion => ("cmpl-", "text_completion", "text_completion"),
        };
        let head = |object: &str| {
            format!(
                r#"{{"id":"{prefix}{id}","object":"{object}","created":{created_s},"model":{model}"#
            )
        };
        Self { style, words, chunk_head: head(chunk), whole_head: head(whole), ready: None }
    }

    /// The same, with its events rendered now.
    pub fn rendered(mut self) -> Self {
        self.ready = Some((0..READY_EVENTS).map(|index| self.token(index, None)).collect());
        self
    }

    /// What precedes the first token.
    pub fn opening(&self) -> Option<Bytes> {
        match self.style {
            Style::Completion => None,
            Style::Chat => Some(Bytes::from(format!(
                "data: {},\"choices\":[{{\"index\":0,\"delta\":{{\"role\":\"assistant\",\"content\":\"\"}},\
                 \"logprobs\":null,\"finish_reason\":null}}]}}\n\n",
                self.chunk_head
            ))),
        }
    }

    /// The event of one token; the last one tells why it is the last.
    pub fn token(&self, index: u64, finish: Option<Finish>) -> Bytes {
        let ready = self.ready.as_ref().filter(|_| finish.is_none());
        if let Some(event) = usize::try_from(index).ok().and_then(|i| ready?.get(i)) {
            return event.clone();
        }
        let mut out = String::with_capacity(self.chunk_head.len().saturating_add(160));
        out.push_str("data: ");
        out.push_str(&self.chunk_head);
        out.push_str(match self.style {
            Style::Chat => r#","choices":[{"index":0,"delta":{"content":""#,
            Style::Completion => r#","choices":[{"index":0,"text":""#,
        });
        self.words.push(&mut out, index);
        out.push_str(match self.style {
            Style::Chat => r#""},"logprobs":null,"finish_reason":"#,
            Style::Completion => r#"","logprobs":null,"finish_reason":"#,
        });
        match finish {
            None => out.push_str("null"),
            Some(finish) => {
                // Writing to a String cannot fail.
                let _ = write!(out, r#""{}","stop_reason":null"#, finish.as_str());
            }
        }
        out.push_str("}]}\n\n");
        Bytes::from(out)
    }

    /// What follows the last token: the usage chunk where it was asked for, and the end mark.
    pub fn closing(&self, usage: Option<(Tokens, Tokens)>) -> Bytes {
        match usage {
            None => Bytes::from_static(DONE.as_bytes()),
            Some((prompt, output)) => Bytes::from(format!(
                "data: {},\"choices\":[],\"usage\":{}}}\n\n{DONE}",
                self.chunk_head,
                usage_json(prompt, output)
            )),
        }
    }

    /// An answer in one piece.
    pub fn whole(&self, prompt: Tokens, output: Tokens, finish: Finish) -> Bytes {
        let mut out = String::with_capacity(512);
        out.push_str(&self.whole_head);
        out.push_str(match self.style {
            Style::Chat => r#","choices":[{"index":0,"message":{"role":"assistant","content":""#,
            Style::Completion => r#","choices":[{"index":0,"text":""#,
        });
        for index in 0..output.get() {
            self.words.push(&mut out, index);
        }
        out.push_str(match self.style {
            Style::Chat => r#"","tool_calls":[]}"#,
            Style::Completion => r#"""#,
        });
        // Writing to a String cannot fail.
        let _ = write!(
            out,
            r#","logprobs":null,"finish_reason":"{}","stop_reason":null}}],"usage":{}}}"#,
            finish.as_str(),
            usage_json(prompt, output)
        );
        Bytes::from(out)
    }
}

fn usage_json(prompt: Tokens, output: Tokens) -> String {
    format!(
        r#"{{"prompt_tokens":{prompt},"total_tokens":{},"completion_tokens":{output}}}"#,
        prompt.plus(output)
    )
}

/// vLLM's error body.
pub(super) fn error_json(message: &str, kind: &str, param: Option<&str>, code: u16) -> Bytes {
    let body = serde_json::json!({
        "error": { "message": message, "type": kind, "param": param, "code": code }
    });
    Bytes::from(body.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn json(event: &Bytes) -> serde_json::Value {
        let text = std::str::from_utf8(event).unwrap();
        serde_json::from_str(text.strip_prefix("data: ").unwrap().trim_end()).unwrap()
    }

    #[test]
    fn rendering_ahead_changes_no_byte() {
        let words = Words { pad_bytes: 0 };
        for style in [Style::Chat, Style::Completion] {
            let fresh = Shape::new(style, words, "7", 1, r#""m""#);
            let ready = fresh.clone().rendered();
            for index in [0, 1, READY_EVENTS - 1, READY_EVENTS] {
                assert_eq!(fresh.token(index, None), ready.token(index, None));
            }
            let last = ready.token(3, Some(Finish::Length));
            assert_eq!(json(&last)["choices"][0]["finish_reason"], "length");
        }
    }

    #[test]
    fn the_pieces_of_a_stream_make_the_text_of_the_whole() {
        let shape = Shape::new(Style::Chat, Words { pad_bytes: 9 }, "7", 1, r#""m""#);
        let pieces: String = (0..12)
            .map(|i| json(&shape.token(i, None))["choices"][0]["delta"]["content"].clone())
            .map(|piece| piece.as_str().unwrap().to_owned())
            .collect();
        let whole: serde_json::Value =
            serde_json::from_slice(&shape.whole(Tokens(1), Tokens(12), Finish::Stop)).unwrap();
        assert_eq!(whole["choices"][0]["message"]["content"], pieces.as_str());
        assert!(pieces.starts_with("word0.... word1..."));
    }
}
