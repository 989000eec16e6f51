//! Which API a request was written for, told from its fields.

use super::{Shape, present};
use serde_json::{Map, Value};

/// Fields that only a Messages request has.
const MESSAGES_ONLY: [&str; 3] = ["system", "stop_sequences", "thinking"];
/// Fields that only a Responses request has.
const RESPONSES_ONLY: [&str; 5] =
    ["instructions", "max_output_tokens", "previous_response_id", "reasoning", "include"];
/// Kinds of content block that only a Messages request has.
const BLOCKS: [&str; 8] = [
    "tool_use",
    "tool_result",
    "tool_reference",
    "thinking",
    "redacted_thinking",
    "image",
    "document",
    "search_result",
];

/// Tells the shape of a request. Where the fields leave it open, `messages` is chat and `input` is
/// embeddings: a text alone reads the same in both APIs, and costs what the text costs in the latter.
pub fn detect(body: &Map<String, Value>) -> Shape {
    let has = |field: &str| present(body, field).is_some();
    if ["query", "queries", "text_1", "text_2", "data_1", "documents"]
        .iter()
        .any(|field| has(field))
        && !has("messages")
    {
        return Shape::Rerank;
    }
    if let Some(messages) = present(body, "messages") {
        let blocks = || messages.as_array().into_iter().flatten().any(has_blocks);
        return if MESSAGES_ONLY.iter().any(|field| has(field)) || has_schemas(body) || blocks() {
            Shape::Messages
        } else {
            Shape::Chat
        };
    }
    if has("prompt") && !has("input") {
        return Shape::Completions;
    }
    match present(body, "input") {
        Some(input) if RESPONSES_ONLY.iter().any(|field| has(field)) || has_items(input) => {
            Shape::Responses
        }
        Some(_) => Shape::Embeddings,
        None => Shape::Chat,
    }
}

fn has_items(input: &Value) -> bool {
    input.as_array().is_some_and(|items| items.iter().any(Value::is_object))
}

fn has_blocks(message: &Value) -> bool {
    let blocks = message.get("content").and_then(Value::as_array);
    let kind = |block: &Value| block.get("type").and_then(Value::as_str).map(str::to_owned);
    blocks.into_iter().flatten().filter_map(kind).any(|kind| BLOCKS.contains(&kind.as_str()))
}

/// Tools as the Messages API writes them.
fn has_schemas(body: &Map<String, Value>) -> bool {
    let tools = body.get("tools").and_then(Value::as_array);
    tools.into_iter().flatten().any(|tool| tool.get("input_schema").is_some())
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn the_fields_tell_the_shape() {
        let user = json!([{"role": "user", "content": "hi"}]);
        let block = json!([{"role": "user", "content": [{"type": "tool_result", "content": "x"}]}]);
        let cases = [
            (json!({"messages": user}), Shape::Chat),
            (json!({"messages": user, "documents": []}), Shape::Chat),
            (json!({"messages": user, "system": "s"}), Shape::Messages),
            (json!({"messages": user, "system": null}), Shape::Chat),
            (json!({"messages": block}), Shape::Messages),
            (json!({"messages": user, "tools": [{"input_schema": {}}]}), Shape::Messages),
            (json!({"messages": user, "tools": [{"type": "function"}]}), Shape::Chat),
            (json!({"prompt": "a"}), Shape::Completions),
            (json!({"input": "a"}), Shape::Embeddings),
            (json!({"input": ["a", "b"]}), Shape::Embeddings),
            (json!({"input": "a", "instructions": "b"}), Shape::Responses),
            (json!({"input": [{"role": "user", "content": "a"}]}), Shape::Responses),
            (json!({"query": "a", "documents": ["b"]}), Shape::Rerank),
            (json!({"text_1": "a", "text_2": "b"}), Shape::Rerank),
            (json!({}), Shape::Chat),
        ];
        for (body, shape) in cases {
            assert_eq!(detect(body.as_object().unwrap()), shape, "{body}");
        }
    }
}
