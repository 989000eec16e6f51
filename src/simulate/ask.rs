//! Requests as the scripted server reads them: how long the prompt is, and how much is asked for.
//!
//! A prompt's length in tokens is an estimate anyone can repeat by hand: the bytes of all text, divided by
//! four and rounded up, plus three for each message; at least one. Token ids count one each. A caller may say it
//! instead. It is the same in `usage` and in `/tokenize`. Nothing here allocates for the text itself.

use crate::units::Tokens;
use serde::{
    Deserialize, Deserializer,
    de::{IgnoredAny, MapAccess, SeqAccess, Visitor},
};
use std::{borrow::Cow, fmt};

const BYTES_PER_TOKEN: u64 = 4;
const TOKENS_PER_MESSAGE: u64 = 3;

/// The fields we look at; all others are ignored, as vLLM does.
#[derive(Debug, Default, Deserialize)]
pub(super) struct Ask<'a> {
    #[serde(borrow, default)]
    pub model: Option<Cow<'a, str>>,
    #[serde(default)]
    pub stream: Option<bool>,
    #[serde(default)]
    stream_options: Option<StreamOptions>,
    #[serde(default)]
    max_tokens: Option<u64>,
    #[serde(default)]
    max_completion_tokens: Option<u64>,
    #[serde(default)]
    pub n: Option<u64>,
    #[serde(default)]
    messages: Option<Vec<Message>>,
    #[serde(default)]
    prompt: Option<Text>,
    #[serde(default)]
    pub input: Option<Text>,
    #[serde(default)]
    berthd_simulate: Option<Extra>,
}

#[derive(Debug, Default, Deserialize)]
struct StreamOptions {
    #[serde(default)]
    include_usage: Option<bool>,
}

#[derive(Debug, Deserialize)]
struct Message {
    #[serde(default)]
    content: Option<Text>,
}

/// What only this server understands.
#[derive(Debug, Deserialize)]
struct Extra {
    /// The prompt's length, instead of the estimate: for callers who count, and want to be agreed with.
    #[serde(default)]
    input_tokens: Option<u64>,
    #[serde(default)]
    output_tokens: Option<u64>,
}

/// Text in any of the shapes the API allows, reduced to its size.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Text {
    bytes: u64,
    ids: u64,
    /// Texts (or lists of ids) in a list; one when it is no list.
    pub items: u64,
}

// === impl Ask ===

impl Ask<'_> {
    /// The prompt's length, `None` when there is no prompt at all.
    pub fn prompt(&self) -> Option<Tokens> {
        if let Some(told) = self.berthd_simulate.as_ref().and_then(|extra| extra.input_tokens) {
            return Some(Tokens(told.max(1)));
        }
        if let Some(messages) = &self.messages {
            let bytes = messages.iter().filter_map(|m| m.content.as_ref()).map(|c| c.bytes).sum();
            let count = messages.len() as u64;
            return Some(estimate(bytes, count.saturating_mul(TOKENS_PER_MESSAGE)));
        }
        self.prompt.as_ref().or(self.input.as_ref()).map(|text| estimate(text.bytes, text.ids))
    }

    /// More than one prompt in a list.
    pub fn has_many_prompts(&self) -> bool {
        self.prompt.as_ref().is_some_and(|prompt| prompt.items > 1)
    }

    /// The caller's limit; the newer name wins.
    pub fn limit(&self) -> Option<Tokens> {
        self.max_completion_tokens.or(self.max_tokens).map(Tokens)
    }

    /// Where the model would stop by itself, when the caller says so.
    pub fn wish(&self) -> Option<Tokens> {
        self.berthd_simulate.as_ref().and_then(|extra| extra.output_tokens).map(Tokens)
    }

    pub fn wants_usage(&self) -> bool {
        self.stream_options.as_ref().and_then(|o| o.include_usage).unwrap_or(false)
    }
}

fn estimate(bytes: u64, more: u64) -> Tokens {
    Tokens(bytes.div_ceil(BYTES_PER_TOKEN).saturating_add(more).max(1))
}

// === impl Text ===

impl<'de> Deserialize<'de> for Text {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(TextVisitor)
    }
}

struct TextVisitor;

impl<'de> Visitor<'de> for TextVisitor {
    type Value = Text;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a text, content parts or token ids")
    }

    fn visit_str<E>(self, text: &str) -> Result<Text, E> {
        Ok(Text { bytes: text.len() as u64, ids: 0, items: 1 })
    }

    fn visit_u64<E>(self, _: u64) -> Result<Text, E> {
        Ok(Text { bytes: 0, ids: 1, items: 0 })
    }

    fn visit_unit<E>(self) -> Result<Text, E> {
        Ok(Text::default())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Text, A::Error> {
        let mut sum = Text::default();
        while let Some(item) = list.next_element::<Text>()? {
            sum.bytes = sum.bytes.saturating_add(item.bytes);
            sum.ids = sum.ids.saturating_add(item.ids);
            sum.items = sum.items.saturating_add(item.items);
        }
        // A list of bare ids is one prompt.
        sum.items = sum.items.max(u64::from(sum.ids > 0));
        Ok(sum)
    }

    /// A content part; what is not text (an image) weighs nothing.
    fn visit_map<A: MapAccess<'de>>(self, mut part: A) -> Result<Text, A::Error> {
        let mut sum = Text::default();
        while let Some(key) = part.next_key::<Cow<'de, str>>()? {
            if key == "text" {
                sum = part.next_value()?;
            } else {
                part.next_value::<IgnoredAny>()?;
            }
        }
        Ok(sum)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn prompt(json: &str) -> Option<u64> {
        serde_json::from_str::<Ask<'_>>(json).unwrap().prompt().map(Tokens::get)
    }

    #[test]
    fn a_prompt_weighs_a_quarter_of_its_bytes_and_three_a_message() {
        let parts = r#"{"messages":[{"content":[{"type":"text","text":"12345"},{"type":"image_url","image_url":{"url":"x"}}]},{"content":null}]}"#;
        assert_eq!(prompt(r#"{"messages":[{"role":"user","content":"12345"}]}"#), Some(2 + 3));
        assert_eq!(prompt(parts), Some(2 + 6));
        assert_eq!(prompt(r#"{"messages":[{"content":"\u00e9\n"}]}"#), Some(1 + 3));
        assert_eq!(prompt(r#"{"prompt":""}"#), Some(1));
        assert_eq!(prompt(r#"{"prompt":[5,6,7]}"#), Some(3));
        assert_eq!(prompt("{}"), None);
        let told = r#"{"prompt":"","berthd_simulate":{"input_tokens":7}}"#;
        assert_eq!(prompt(told), Some(7), "unless the caller says it");
    }

    #[test]
    fn lists_are_told_from_token_ids() {
        let items = |json| serde_json::from_str::<Text>(json).unwrap().items;
        assert_eq!(items(r#""a""#), 1);
        assert_eq!(items(r#"["a","b"]"#), 2);
        assert_eq!(items("[1,2,3]"), 1);
        assert_eq!(items("[[1,2],[3]]"), 2);
    }
}
