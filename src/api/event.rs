//! What an event of a server's stream says: content, a finish, usage, an error, or nonsense.

use bytes::{Bytes, BytesMut};
use serde::Deserialize;
use serde_json::value::RawValue;

/// The parts of a stream chunk or a whole answer that the relay acts on. Everything else passes unseen.
#[derive(Debug, Deserialize)]
pub struct Chunk<'a> {
    /// The model name as the server wrote it.
    #[serde(borrow, default)]
    pub model: Option<&'a RawValue>,
    /// One entry for each choice that this event carries.
    #[serde(borrow, default)]
    pub choices: Option<Vec<Choice<'a>>>,
    /// Token counts.
    #[serde(borrow, default)]
    pub usage: Option<&'a RawValue>,
    /// Embeddings.
    #[serde(borrow, default)]
    pub data: Option<&'a RawValue>,
    /// An error in place of an answer.
    #[serde(borrow, default)]
    pub error: Option<&'a RawValue>,
    /// Flat error bodies say `"object": "error"`.
    #[serde(borrow, default)]
    pub object: Option<&'a RawValue>,
    /// The text of flat error bodies.
    #[serde(borrow, default)]
    pub message: Option<&'a RawValue>,
}

/// One choice of a chunk (`delta`), a completion (`text`) or a whole chat answer (`message`).
#[derive(Debug, Deserialize)]
pub struct Choice<'a> {
    /// Which of `n` answers.
    #[serde(default)]
    pub index: u32,
    /// New parts of a chat answer.
    #[serde(borrow, default)]
    pub delta: Option<Delta<'a>>,
    /// A whole chat answer.
    #[serde(borrow, default)]
    pub message: Option<Delta<'a>>,
    /// Text of a completion.
    #[serde(borrow, default)]
    pub text: Option<&'a RawValue>,
    /// Why generation ended.
    #[serde(borrow, default)]
    pub finish_reason: Option<&'a RawValue>,
}

/// The parts of a chat message that count as content.
#[derive(Debug, Deserialize)]
pub struct Delta<'a> {
    /// Text.
    #[serde(borrow, default)]
    pub content: Option<&'a RawValue>,
    /// Thinking, by its newer name.
    #[serde(borrow, default)]
    pub reasoning: Option<&'a RawValue>,
    /// Thinking, by its older name.
    #[serde(borrow, default)]
    pub reasoning_content: Option<&'a RawValue>,
    /// A refusal by the model.
    #[serde(borrow, default)]
    pub refusal: Option<&'a RawValue>,
    /// Tool calls.
    #[serde(borrow, default)]
    pub tool_calls: Option<&'a RawValue>,
    /// A function call, the older form.
    #[serde(borrow, default)]
    pub function_call: Option<&'a RawValue>,
    /// Audio.
    #[serde(borrow, default)]
    pub audio: Option<&'a RawValue>,
}

impl<'a> Delta<'a> {
    /// Raw JSON of every part that is not empty. Thinking that is sent under both of its names is one
    /// part.
    pub fn parts(&self) -> impl Iterator<Item = &'a RawValue> + use<'a> {
        let newer = self.reasoning.map(RawValue::get);
        [
            self.content,
            self.reasoning,
            self.reasoning_content.filter(|older| newer != Some(older.get())),
            self.refusal,
            self.tool_calls,
            self.function_call,
            self.audio,
        ]
        .into_iter()
        .flatten()
        .filter(|part| !is_empty(part))
    }
}

impl<'a> Choice<'a> {
    /// Raw JSON of every part that holds content.
    pub fn parts(&self) -> impl Iterator<Item = &'a RawValue> + use<'a> {
        let delta = self.delta.as_ref().or(self.message.as_ref()).map(Delta::parts);
        delta.into_iter().flatten().chain(self.text.filter(|text| !is_empty(text)))
    }

    /// True when the choice says that it is finished.
    pub fn finished(&self) -> bool {
        self.finish_reason.is_some_and(|reason| !is_empty(reason))
    }
}

impl Chunk<'_> {
    /// The error that stands in place of an answer: an `error` key (object or text), or a flat body.
    pub fn fault(&self) -> Option<&RawValue> {
        let flat = self.object.is_some_and(|object| object.get() == "\"error\"");
        self.error.filter(|error| !is_empty(error)).or(if flat { self.message } else { None })
    }

    /// True when some choice carries content.
    pub fn has_content(&self) -> bool {
        self.choices.iter().flatten().any(|choice| choice.parts().next().is_some())
    }

    /// True for the event that only brings usage.
    pub fn is_usage_only(&self) -> bool {
        self.usage.is_some() && self.choices.as_ref().is_none_or(Vec::is_empty)
    }
}

fn is_empty(value: &RawValue) -> bool {
    matches!(value.get(), "null" | "\"\"" | "[]" | "{}")
}

/// What one event's data says.
#[derive(Debug)]
pub enum Said<'a> {
    /// `[DONE]`
    Done,
    /// A chunk.
    Chunk(Box<Chunk<'a>>),
    /// Nothing that concerns us: no data, or an object of another kind, as servers send beside their
    /// chunks.
    Other,
    /// Not what a model server says.
    Garbage,
}

/// Reads an event's data.
pub fn read(data: &[u8]) -> Said<'_> {
    if data.trim_ascii() == b"[DONE]" {
        return Said::Done;
    }
    if data.trim_ascii().is_empty() {
        return Said::Other;
    }
    let text = std::str::from_utf8(data).ok();
    match text.and_then(|text| serde_json::from_str::<Box<Chunk<'_>>>(text).ok()) {
        Some(chunk)
            if chunk.choices.is_some() || chunk.usage.is_some() || chunk.fault().is_some() =>
        {
            Said::Chunk(chunk)
        }
        // An object with none of the keys we know. (A list would also read as a chunk.)
        Some(_) if data.trim_ascii().starts_with(b"{") => Said::Other,
        _ => Said::Garbage,
    }
}

/// Where `part`, which was borrowed from `whole`, stands in it.
fn place(whole: &[u8], part: &RawValue) -> Option<std::ops::Range<usize>> {
    let start = (part.get().as_ptr() as usize).checked_sub(whole.as_ptr() as usize)?;
    let end = start.checked_add(part.get().len())?;
    (end <= whole.len()).then_some(start..end)
}

/// `whole` with some of the values inside it replaced. Everything else keeps its bytes.
pub fn splice(whole: &[u8], changes: &[(&RawValue, &str)]) -> Bytes {
    let mut ranges: Vec<_> =
        changes.iter().filter_map(|(old, new)| place(whole, old).map(|at| (at, *new))).collect();
    ranges.sort_by_key(|(at, _)| at.start);
    let mut out = BytesMut::with_capacity(whole.len() + 64);
    let mut from = 0;
    for (at, new) in ranges {
        if let Some(kept) = whole.get(from..at.start) {
            out.extend_from_slice(kept);
            out.extend_from_slice(new.as_bytes());
            from = at.end;
        }
    }
    out.extend_from_slice(whole.get(from..).unwrap_or_default());
    out.freeze()
}

/// An event with some of the values in its data replaced. `data` is the event's own, and the values are
/// borrowed from it. Data that came in several lines comes out in one: its values stand nowhere in the
/// event as it came.
pub fn splice_event(raw: &Bytes, data: &[u8], changes: &[(&RawValue, &str)]) -> Bytes {
    if changes.is_empty() {
        return raw.clone();
    }
    if raw.as_ptr_range().contains(&data.as_ptr()) {
        return splice(raw, changes);
    }
    let joined = splice(data, changes);
    let mut out = BytesMut::with_capacity(joined.len() + 8);
    out.extend_from_slice(b"data: ");
    // JSON has line feeds only between its values, where a space does as well.
    out.extend(joined.iter().map(|byte| if *byte == b'\n' { b' ' } else { *byte }));
    out.extend_from_slice(b"\n\n");
    out.freeze()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chunk(text: &str) -> Box<Chunk<'_>> {
        match read(text.as_bytes()) {
            Said::Chunk(chunk) => chunk,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn content_is_told_from_preamble() {
        assert!(
            !chunk(r#"{"choices":[{"index":0,"delta":{"role":"assistant","content":""}}]}"#)
                .has_content()
        );
        assert!(!chunk(r#"{"choices":[]}"#).has_content());
        for delta in [
            r#""content":"x""#,
            r#""reasoning":"x""#,
            r#""tool_calls":[{"index":0}]"#,
            r#""refusal":"no""#,
        ] {
            let text = format!(r#"{{"choices":[{{"index":0,"delta":{{{delta}}}}}]}}"#);
            assert!(chunk(&text).has_content(), "{delta}");
        }
        assert!(chunk(r#"{"choices":[{"index":0,"text":"x"}]}"#).has_content());
        assert!(
            chunk(r#"{"choices":[{"index":0,"delta":{},"finish_reason":"stop"}]}"#)
                .choices
                .unwrap()[0]
                .finished()
        );
    }

    /// vLLM sends thinking under its older name beside the newer one for older clients.
    #[test]
    fn thinking_under_two_names_counts_once() {
        let parts = |older: &str| {
            let delta = format!(r#"{{"reasoning":"x","reasoning_content":"{older}"}}"#);
            let text = format!(r#"{{"choices":[{{"index":0,"delta":{delta}}}]}}"#);
            chunk(&text).choices.unwrap()[0].parts().count()
        };
        assert_eq!((parts("x"), parts("y")), (1, 2));
    }

    #[test]
    fn errors_are_seen_in_every_dress() {
        assert!(chunk(r#"{"error":{"message":"x"}}"#).fault().is_some());
        assert!(chunk(r#"{"error":"x"}"#).fault().is_some());
        assert!(chunk(r#"{"object":"error","message":"x","type":"t"}"#).fault().is_some());
        assert!(chunk(r#"{"choices":[],"error":null}"#).fault().is_none());
        for other in ["", " ", "{}", "{\"type\":\"ping\"}"] {
            assert!(matches!(read(other.as_bytes()), Said::Other), "{other}");
        }
        for garbage in ["hello", "[1]", "[]", "1", "{\"a\":", "<html>"] {
            assert!(matches!(read(garbage.as_bytes()), Said::Garbage), "{garbage}");
        }
        assert!(matches!(read(b" [DONE] "), Said::Done));
    }

    #[test]
    fn splicing_changes_only_the_named_values() {
        let whole = Bytes::from_static(
            br#"data: {"id":1, "model" : "inner", "choices":[],"usage":{"a":1}}"#,
        );
        let data = whole.slice(6..);
        let text = std::str::from_utf8(&data).unwrap();
        let chunk = chunk(text);
        let changed =
            splice(&whole, &[(chunk.usage.unwrap(), "null"), (chunk.model.unwrap(), "\"alias\"")]);
        assert_eq!(
            &changed[..],
            br#"data: {"id":1, "model" : "alias", "choices":[],"usage":null}"#
        );
    }
}
