//! The texts of a request, each with where it comes from and where it stands.

use super::Origin;
use crate::api::{Request, Route, fields, json::Object};
use serde_json::{Value, value::RawValue};
use std::borrow::Cow;

/// One text of a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Passage {
    /// Who speaks.
    pub origin: Origin,
    /// What is said.
    pub text: String,
    /// Where it stands in the body.
    pub place: Place,
}

/// Where a text stands in a request's body.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Place {
    /// A message's content, or one part of it.
    Content(usize, Option<usize>),
    /// A completion's prompt, or one of several.
    Prompt(Option<usize>),
    /// The arguments of one of a message's tool calls.
    Arguments(usize, usize),
    /// Somewhere that is read but never written: a tool's description, a schema.
    Fixed,
}

/// Texts of one request that are looked at. A request with more is cut in odd pieces on purpose.
const PASSAGES_MAX: usize = 4096;

/// The texts of a request, in order. Texts of embeddings are not: no model acts on them.
pub fn passages(request: &Request<'_>) -> Vec<Passage> {
    let mut found = Vec::new();
    match request.route {
        Route::Chat => {
            let messages = fields::objects(&request.fields, "messages").ok().flatten();
            for (index, message) in messages.iter().flatten().enumerate() {
                of_message(index, message, &mut found);
            }
            described(&request.fields, &mut found);
            documents(&request.fields, &mut found);
        }
        Route::Completions => prompts(&request.fields, &mut found),
        Route::Embeddings => {}
    }
    found.truncate(PASSAGES_MAX);
    found
}

fn add(found: &mut Vec<Passage>, origin: Origin, text: Option<String>, place: Place) {
    if let Some(text) = text.filter(|text| !text.trim().is_empty())
        && found.len() < PASSAGES_MAX
    {
        found.push(Passage { origin, text, place });
    }
}

fn text(value: &RawValue) -> Option<String> {
    serde_json::from_str(value.get()).ok()
}

fn of_message(index: usize, message: &Object<'_>, found: &mut Vec<Passage>) {
    let role = fields::text(message, "role").ok().flatten().unwrap_or_default();
    let origin = match role.as_str() {
        "system" | "developer" => Origin::System,
        "assistant" | "model" => Origin::Assistant,
        "tool" | "function" | "ipython" | "observation" => Origin::Tool,
        // Whoever invents a role is no better than a user.
        _ => Origin::User,
    };
    if let Some(content) = message.get("content") {
        match fields::objects(message, "content") {
            Ok(Some(parts)) => {
                for (part, object) in parts.iter().enumerate() {
                    let inner = object.get("text").or_else(|| object.get("refusal"));
                    let place = Place::Content(index, Some(part));
                    add(found, origin, inner.and_then(text), place);
                }
            }
            _ => add(found, origin, text(content), Place::Content(index, None)),
        }
    }
    for field in ["reasoning", "reasoning_content"] {
        add(found, origin, message.get(field).and_then(text), Place::Fixed);
    }
    let calls = fields::objects(message, "tool_calls").ok().flatten();
    for (call, object) in calls.iter().flatten().enumerate() {
        let function = fields::object(object, "function").ok().flatten();
        let arguments = function.and_then(|function| function.get("arguments").and_then(text));
        add(found, Origin::Assistant, arguments, Place::Arguments(index, call));
    }
    // Templates write names into the prompt.
    let name = message.get("name").and_then(text).filter(|name| name.len() > NAME_MAX_BYTES);
    add(found, origin, name, Place::Fixed);
}

/// A name longer than this is no name.
const NAME_MAX_BYTES: usize = 24;

/// Descriptions in tools and schemas: they come from whoever wrote the tool, and models read them.
fn described(fields_of: &Object<'_>, found: &mut Vec<Passage>) {
    for field in ["tools", "functions", "response_format"] {
        let Some(value) = fields_of.get(field) else { continue };
        if let Ok(value) = serde_json::from_str::<Value>(value.get()) {
            descriptions(&value, found);
        }
    }
}

fn descriptions(value: &Value, found: &mut Vec<Passage>) {
    match value {
        Value::Array(list) => list.iter().for_each(|inner| descriptions(inner, found)),
        Value::Object(fields) => {
            for (name, inner) in fields {
                match inner {
                    Value::String(text) if name == "description" || name == "title" => {
                        add(found, Origin::Tool, Some(text.clone()), Place::Fixed);
                    }
                    inner => descriptions(inner, found),
                }
            }
        }
        _ => {}
    }
}

/// Documents that some servers put into the prompt.
fn documents(fields_of: &Object<'_>, found: &mut Vec<Passage>) {
    let Some(documents) = fields_of.get("documents") else { return };
    let documents: Vec<Value> = serde_json::from_str(documents.get()).unwrap_or_default();
    for document in documents.iter().take(PASSAGES_MAX) {
        let texts: Vec<&str> = match document {
            Value::String(text) => vec![text],
            Value::Object(fields) => fields.values().filter_map(Value::as_str).collect(),
            _ => Vec::new(),
        };
        for text in texts {
            add(found, Origin::Tool, Some(text.to_owned()), Place::Fixed);
        }
    }
}

fn prompts(fields_of: &Object<'_>, found: &mut Vec<Passage>) {
    let Some(prompt) = fields_of.get("prompt") else { return };
    match serde_json::from_str::<Vec<&RawValue>>(prompt.get()) {
        Ok(list) => {
            for (index, one) in list.into_iter().enumerate().take(PASSAGES_MAX) {
                add(found, Origin::User, text(one), Place::Prompt(Some(index)));
            }
        }
        Err(_) => add(found, Origin::User, text(prompt), Place::Prompt(None)),
    }
    let suffix = fields_of.get("suffix").and_then(text);
    add(found, Origin::User, suffix, Place::Fixed);
}

/// A request's body with other texts in some places. `None`: the body is not what it was taken for.
pub fn rewritten(body: &[u8], changes: &[(Place, Cow<'_, str>)]) -> Option<Vec<u8>> {
    let mut value: Value = serde_json::from_slice(body).ok()?;
    for (place, text) in changes {
        let spot = match place {
            Place::Content(index, None) => {
                value.get_mut("messages")?.get_mut(*index)?.get_mut("content")?
            }
            Place::Content(index, Some(part)) => {
                let content = value.get_mut("messages")?.get_mut(*index)?.get_mut("content")?;
                let part = content.get_mut(*part)?;
                match part.get("text").is_some() {
                    true => part.get_mut("text")?,
                    false => part.get_mut("refusal")?,
                }
            }
            Place::Prompt(None) => value.get_mut("prompt")?,
            Place::Prompt(Some(index)) => value.get_mut("prompt")?.get_mut(*index)?,
            Place::Arguments(index, call) => {
                let call = value
                    .get_mut("messages")?
                    .get_mut(*index)?
                    .get_mut("tool_calls")?
                    .get_mut(*call)?;
                call.get_mut("function")?.get_mut("arguments")?
            }
            Place::Fixed => return None,
        };
        *spot = Value::String(text.clone().into_owned());
    }
    serde_json::to_vec(&value).ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::FieldLimits;

    fn of(route: Route, body: &str) -> Vec<(Origin, String, Place)> {
        let request =
            Request::parse(route, body.as_bytes(), FieldLimits { choices_max: 4 }).unwrap();
        passages(&request).into_iter().map(|one| (one.origin, one.text, one.place)).collect()
    }

    #[test]
    fn every_text_of_a_chat_is_found_with_its_origin() {
        let body = r#"{"model":"m","messages":[
            {"role":"developer","content":"Be brief."},
            {"role":"user","content":[{"type":"text","text":"What is\u0020this?"},{"type":"text","text":" "}]},
            {"role":"assistant","content":null,"tool_calls":[{"id":"1","type":"function",
                "function":{"name":"read","arguments":"{\"path\":\"a\"}"}}]},
            {"role":"tool","tool_call_id":"1","content":"a page"},
            {"role":"guru","content":"I am new here"}],
            "tools":[{"type":"function","function":{"name":"read","description":"Reads a page."}}]}"#;
        let found = of(Route::Chat, body);
        let wanted = [
            (Origin::System, "Be brief.", Place::Content(0, None)),
            (Origin::User, "What is this?", Place::Content(1, Some(0))),
            (Origin::Assistant, "{\"path\":\"a\"}", Place::Arguments(2, 0)),
            (Origin::Tool, "a page", Place::Content(3, None)),
            (Origin::User, "I am new here", Place::Content(4, None)),
            (Origin::Tool, "Reads a page.", Place::Fixed),
        ];
        let found: Vec<_> = found.iter().map(|(o, t, p)| (*o, t.as_str(), p.clone())).collect();
        assert_eq!(found, wanted);
    }

    #[test]
    fn prompts_are_found_and_token_ids_are_not_read() {
        let found = of(Route::Completions, r#"{"model":"m","prompt":["one","two"]}"#);
        assert_eq!(found[1], (Origin::User, "two".to_owned(), Place::Prompt(Some(1))));
        assert_eq!(of(Route::Completions, r#"{"model":"m","prompt":[1,2,3]}"#), []);
    }

    #[test]
    fn texts_are_written_back_where_they_stood() {
        let body = br#"{"model":"m","messages":[{"role":"user","content":[{"type":"text","text":"a"}]},{"role":"tool","content":"b"}],"top_p":0.10}"#;
        let changes = [
            (Place::Content(0, Some(0)), Cow::Borrowed("x")),
            (Place::Content(1, None), Cow::Borrowed("y")),
        ];
        let new = String::from_utf8(rewritten(body, &changes).unwrap()).unwrap();
        let wanted = r#"{"model":"m","messages":[{"role":"user","content":[{"type":"text","text":"x"}]},{"role":"tool","content":"y"}],"top_p":0.1}"#;
        assert_eq!(new, wanted);
        assert_eq!(rewritten(body, &[(Place::Prompt(None), Cow::Borrowed("x"))]), None);
    }
}
