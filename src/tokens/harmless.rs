//! The same conversation with nothing in it that a caller could have meant: its control tokens are those
//! that the template writes, and no others.

use super::seams::{Seams, is_word};
use serde_json::{Map, Value};

/// Roles that templates know. They stay what they are in a harmless conversation.
const ROLES: [&str; 7] =
    ["system", "developer", "user", "assistant", "tool", "function", "ipython"];

/// Keys that give a value its form. Others are a caller's own words.
const KEYS: [&str; 32] = [
    "additionalProperties",
    "allOf",
    "anyOf",
    "arguments",
    "content",
    "default",
    "description",
    "enum",
    "format",
    "function",
    "id",
    "items",
    "maximum",
    "minimum",
    "name",
    "nullable",
    "oneOf",
    "parameters",
    "properties",
    "reasoning",
    "reasoning_content",
    "required",
    "response",
    "return",
    "role",
    "strict",
    "text",
    "thinking",
    "title",
    "tool_call_id",
    "tool_calls",
    "type",
];

/// Letters of a plain word.
const WORD_MAX: usize = 16;

impl Seams {
    /// A chat request's body with each text of the caller made plain words. What gives the conversation its
    /// form stays: roles, types, empty texts, white space at the ends, tags that the template looks for.
    pub(super) fn harmless(
        &self,
        body: &Map<String, Value>,
        fields: &[&str],
    ) -> Map<String, Value> {
        let harmless = |(name, value): (&String, &Value)| {
            let value = if fields.contains(&name.as_str()) {
                // Template variables keep their names.
                self.value(value, name, name == "chat_template_kwargs")
            } else {
                value.clone()
            };
            (name.clone(), value)
        };
        body.iter().map(harmless).collect()
    }

    fn value(&self, value: &Value, key: &str, keep_keys: bool) -> Value {
        match value {
            Value::String(text) => self.text(text, key).into(),
            Value::Array(items) => {
                items.iter().map(|item| self.value(item, key, keep_keys)).collect()
            }
            Value::Object(map) => {
                let entry = |(number, (key, value)): (usize, (&String, &Value))| {
                    let known = keep_keys || KEYS.contains(&key.as_str()) || self.knows_name(key);
                    let new = if known { key.clone() } else { format!("k{number}") };
                    (new, self.value(value, key, false))
                };
                Value::Object(map.iter().enumerate().map(entry).collect())
            }
            other => other.clone(),
        }
    }

    fn text(&self, text: &str, key: &str) -> String {
        let kept = match key {
            "role" => ROLES.contains(&text),
            "type" => is_word(text),
            _ => false,
        };
        if kept || (is_word(text) && self.knows_word(text)) {
            return text.to_owned();
        }
        if key == "arguments"
            && let Ok(parsed @ (Value::Object(_) | Value::Array(_))) = serde_json::from_str(text)
        {
            return self.value(&parsed, key, false).to_string();
        }
        let mut out = String::new();
        let mut from = 0;
        for (at, marker) in self.markers_in(text) {
            push_word(&mut out, text.get(from..at).unwrap_or_default());
            out.push_str(marker);
            from = at + marker.len();
        }
        push_word(&mut out, text.get(from..).unwrap_or_default());
        out
    }
}

/// Writes a word in a text's place, with the white space around it.
fn push_word(out: &mut String, text: &str) {
    let trimmed = text.trim();
    let Some((before, behind)) = text.split_once(trimmed).filter(|_| !trimmed.is_empty()) else {
        out.push_str(text);
        return;
    };
    out.push_str(before);
    // Templates look at the length of ids.
    out.extend(trimmed.chars().take(WORD_MAX).map(|_| 'a'));
    out.push_str(behind);
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_harmless_conversation_keeps_its_form() {
        let seams = Seams::of(
            ["{% if m.role == 'critic' and v == 'high' %}{{ m.plan.split('</think>') }}{% endif %}"]
                .into_iter(),
        );
        let body = json!({
            "model": "left alone",
            "messages": [
                {"role": "critic", "content": " <|im_ \n", "plan": "x</think><|im"},
                {"role": "end", "content": "", "tool_calls": [{"id": "call-0001", "type": "function",
                    "function": {"name": "f<", "arguments": "{\"end|>\": \"<\", \"n\": 1}"}}]},
            ],
            "tools": [{"properties": {"|im_end|": {"type": "string", "enum": ["high", "<|"]}}}],
            "chat_template_kwargs": {"level": "high", "other": "<|"},
        });
        let fields = ["messages", "tools", "chat_template_kwargs"];
        let harmless = seams.harmless(body.as_object().unwrap(), &fields);
        let expected = json!({
            "model": "left alone",
            "messages": [
                {"role": "critic", "content": " aaaaa \n", "plan": "a</think>aaaa"},
                {"role": "aaa", "content": "", "tool_calls": [{"id": "aaaaaaaaa", "type": "function",
                    "function": {"name": "aa", "arguments": "{\"k0\":\"a\",\"k1\":1}"}}]},
            ],
            "tools": [{"properties": {"k0": {"type": "string", "enum": ["high", "aa"]}}}],
            "chat_template_kwargs": {"level": "high", "other": "aa"},
        });
        assert_eq!(Value::Object(harmless), expected);
    }
}
