//! Pieces that several shapes share: image parts, calls of tools, definitions of tools.

use serde_json::{Map, Value, json};

/// An image of a Messages request as a chat part. `media_type` is what the server takes where none is
/// given. `None` where the source holds nothing.
pub(super) fn image(source: Option<&Value>, media_type: &str) -> Option<Value> {
    let source = source?;
    let field = |name: &str| source.get(name).and_then(Value::as_str);
    let url = match (field("type"), field("url"), field("data")) {
        (Some("url"), Some(url), _) => url.to_owned(),
        (_, _, Some(data)) => {
            format!("data:{};base64,{data}", field("media_type").unwrap_or(media_type))
        }
        (_, Some(url), None) => url.to_owned(),
        _ => return None,
    };
    Some(json!({"type": "image_url", "image_url": {"url": url}}))
}

/// A text part.
pub(super) fn text(text: &str) -> Value {
    json!({"type": "text", "text": text})
}

/// A call of a tool. Its arguments are JSON text, as chat requests write them.
pub(super) fn call(id: &str, name: &str, arguments: &str) -> Value {
    json!({"id": id, "type": "function", "function": {"name": name, "arguments": arguments}})
}

/// A tool's definition.
pub(super) fn tool(function: Map<String, Value>) -> Value {
    json!({"type": "function", "function": function})
}

/// One text part becomes a plain text, anything else stays a list, nothing is nothing.
pub(super) fn content(mut parts: Vec<Value>) -> Option<Value> {
    let alone = parts.len() == 1 && parts.first().is_some_and(is_text);
    match parts.pop() {
        Some(mut only) if alone => only.get_mut("text").map(Value::take),
        Some(last) => {
            parts.push(last);
            Some(Value::Array(parts))
        }
        None => None,
    }
}

fn is_text(part: &Value) -> bool {
    part.get("type").and_then(Value::as_str) == Some("text")
}
