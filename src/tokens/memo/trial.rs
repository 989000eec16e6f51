//! A last look at load: conversations counted turn by turn must give the ids of the whole.
//!
//! That they do follows from how a template is taken apart. This is the check on that reasoning, with the
//! template and the vocabulary at hand.

use super::{Allowance, CountError, ModelFiles, Quick};
use crate::{snapshot::ServerKind, tokens::Profile};
use serde_json::{Map, Value, json};
use std::time::Duration;
use tokio::time::Instant;

/// Longest that the trial may take.
const TIME_MAX: Duration = Duration::from_secs(2);

/// What every conversation of the trial is a beginning of.
fn conversations() -> [Value; 4] {
    let call = json!({"id": "call00001", "type": "function",
        "function": {"name": "f", "arguments": {"a": 1}}});
    [
        json!([
            {"role": "user", "content": "Hello"}, {"role": "assistant", "content": " Hi.\n"},
            {"role": "user", "content": "\nMore?"}, {"role": "assistant", "content": "Yes"},
            {"role": "user", "content": "Hello"}, {"role": "assistant", "content": "<think>so</think>No"},
            {"role": "user", "content": ""},
        ]),
        json!([
            {"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hello"},
            {"role": "assistant", "content": "Hi", "reasoning_content": "A greeting."},
            {"role": "user", "content": "Hello"},
        ]),
        json!([
            {"role": "system", "content": ""}, {"role": "user", "content": "What is f?"},
            {"role": "assistant", "content": "", "tool_calls": [call]},
            {"role": "tool", "tool_call_id": "call00001", "name": "f", "content": "1"},
            {"role": "assistant", "content": "One."}, {"role": "user", "content": "And now?"},
            {"role": "assistant", "content": "", "tool_calls": [call]},
            {"role": "tool", "tool_call_id": "call00001", "name": "f", "content": "1"},
            {"role": "tool", "tool_call_id": "call00001", "name": "f", "content": "2"},
        ]),
        json!([
            {"role": "user", "content": [{"type": "text", "text": "Hello"}]},
            {"role": "assistant", "content": "Hi"}, {"role": "assistant", "content": "Hi"},
            {"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]},
        ]),
    ]
}

impl ModelFiles {
    /// Whether the quick way gives the ids of the whole on all trials.
    pub(in crate::tokens) fn is_proven(&self) -> bool {
        let tool = json!({"type": "function", "function": {"name": "f", "description": "Gives one.",
            "parameters": {"type": "object", "properties": {"a": {"type": "integer"}}}}});
        // A template that takes so long is no one's to remember either.
        let until = Instant::now() + TIME_MAX;
        let in_time = || Instant::now() < until;
        [Profile::reference(), Profile::of(ServerKind::Vllm)].iter().all(|profile| {
            conversations().iter().all(|all| {
                let all = all.as_array().map(Vec::as_slice).unwrap_or_default();
                (1..=all.len()).all(|length| {
                    let some = all.get(..length).unwrap_or_default();
                    let mut body = Map::new();
                    body.insert("messages".into(), some.into());
                    let plain = in_time() && self.agrees(profile, &body);
                    body.insert("tools".into(), json!([tool]));
                    plain && self.agrees(profile, &body)
                })
            })
        })
    }

    fn agrees(&self, profile: &Profile, body: &Map<String, Value>) -> bool {
        // One text, encoded at once: neither way of remembering has a part in it.
        let whole = self.chat_text(profile, body).and_then(|text| self.text_ids(&text, false));
        let mut rest = body.clone();
        let messages = rest.remove("messages").unwrap_or_default().to_string();
        let mut ids: Vec<u32> = Vec::new();
        match (self.quickly(profile, &messages, &rest, Allowance::Whole, &mut ids), whole) {
            (Ok(Quick::NotThisWay), _) => true,
            (Ok(Quick::Done), Ok(whole)) => ids == whole,
            (Err(CountError::Template(one)), Err(CountError::Template(other))) => one == other,
            (Err(_), Err(_)) => true,
            _ => false,
        }
    }
}
