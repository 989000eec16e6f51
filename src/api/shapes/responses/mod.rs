//! OpenAI Responses requests, turned into chat by one file for each kind of server.
//!
//! What only the server that answered before knows (`previous_response_id`, `prompt`, encrypted reasoning)
//! cannot be counted here. Sources: vLLM 0.33 `entrypoints/openai/responses/utils.py`, SGLang 0.5.23
//! `srt/entrypoints/openai/serving_responses.py`, llama.cpp (October 2026) `tools/server/server-chat.cpp`.

mod llama;
mod sglang;
mod vllm;

use super::{Trials, Unfit, missing, part, present, unknown, wrong, wrong_type};
use crate::{error::Reason, ids::ServerKind};
use serde_json::{Map, Value};

/// Turns a Responses request into the chat request that a server of this kind makes of it. The model's name
/// and template variables are taken over.
///
/// # Errors
/// [`Unfit`]: the request is wrong, or holds what only the server knows.
pub fn to_chat(
    kind: ServerKind,
    body: &Map<String, Value>,
    trials: &dyn Trials,
) -> Result<Map<String, Value>, Unfit> {
    for field in ["previous_response_id", "conversation", "prompt"] {
        if present(body, field).is_some() {
            return Err(unknown(format!("what '{field}' stands for, only the server knows")));
        }
    }
    let input = Input::read(body)?;
    let instructions = match present(body, "instructions") {
        None => None,
        Some(Value::String(text)) => Some(text.as_str()),
        Some(_) => return Err(wrong_type("instructions", "a string")),
    };
    let tools = super::tools(body)?.unwrap_or_default();
    let mut chat = match kind {
        ServerKind::LlamaCpp => llama::chat(&input, body, &tools),
        ServerKind::Sglang => sglang::chat(&input, instructions, body, &tools, trials),
        ServerKind::Vllm | ServerKind::Ollama | ServerKind::OpenAi | ServerKind::Embedded => {
            vllm::chat(&input, instructions, &tools)
        }
    }?;
    super::carry(body, &mut chat, &["model", "chat_template_kwargs"]);
    if let Some(effort) = body.get("reasoning").and_then(|reasoning| reasoning.get("effort"))
        && !effort.is_null()
    {
        chat.insert("reasoning_effort".to_owned(), effort.clone());
    }
    Ok(chat)
}

/// What `input` holds.
enum Input<'a> {
    Text(&'a str),
    Items(Vec<Item<'a>>),
}

/// One item, with its kind told.
enum Item<'a> {
    /// Words of somebody.
    Message {
        role: &'a str,
        sent: &'a Map<String, Value>,
    },
    Call {
        id: &'a str,
        name: &'a str,
        arguments: &'a str,
    },
    Output {
        id: &'a str,
        output: &'a Value,
    },
    Reasoning {
        sent: &'a Map<String, Value>,
    },
}

// === impl Input ===

impl<'a> Input<'a> {
    fn read(body: &'a Map<String, Value>) -> Result<Self, Unfit> {
        let of = "a string or a list of items";
        match present(body, "input") {
            None => Err(missing("input", "Send a string or a list of items.")),
            Some(Value::String(text)) => Ok(Self::Text(text)),
            Some(Value::Array(items)) if items.is_empty() => {
                Err(wrong(Reason::OutOfRange, "input", "'input' is empty. Send at least one item."))
            }
            Some(Value::Array(items)) => {
                let items = items.iter().enumerate().map(|(at, item)| Item::read(at, item));
                items.collect::<Result<_, _>>().map(Self::Items)
            }
            Some(_) => Err(wrong_type("input", of)),
        }
    }

    /// The last item is an answer that broke off: `status` says so.
    fn continues(&self) -> bool {
        let Self::Items(items) = self else { return false };
        let sent = match items.last() {
            Some(Item::Message { sent, .. } | Item::Reasoning { sent }) => sent,
            _ => return false,
        };
        let status = present(sent, "status").and_then(Value::as_str);
        matches!(status, Some("in_progress" | "incomplete"))
    }
}

// === impl Item ===

impl<'a> Item<'a> {
    fn read(at: usize, item: &'a Value) -> Result<Self, Unfit> {
        let sent = item.as_object().ok_or_else(|| wrong_type("input", "a list of objects"))?;
        let field = |name: &str| format!("input[{at}].{name}");
        let text = |name: &str| {
            let value = present(sent, name).and_then(Value::as_str);
            value.ok_or_else(|| wrong_type(&field(name), "a string"))
        };
        let kind = present(sent, "type").and_then(Value::as_str);
        match kind {
            None | Some("message") => {
                let role = text("role")?;
                if !matches!(role, "user" | "assistant" | "system" | "developer") {
                    let told = format!(
                        "'{}' must be user, assistant, system or developer.",
                        field("role")
                    );
                    return Err(wrong(Reason::OutOfRange, field("role"), told));
                }
                match present(sent, "content") {
                    Some(Value::String(_) | Value::Array(_)) => Ok(Self::Message { role, sent }),
                    _ => Err(wrong_type(&field("content"), "a string or a list of parts")),
                }
            }
            Some("function_call") if present(sent, "namespace").is_some() => {
                Err(unknown("calls of tools in namespaces are not known here"))
            }
            Some("function_call") => {
                let (id, name) = (text("call_id")?, text("name")?);
                Ok(Self::Call { id, name, arguments: text("arguments")? })
            }
            Some("function_call_output") => match present(sent, "output") {
                Some(output @ (Value::String(_) | Value::Array(_))) => {
                    Ok(Self::Output { id: text("call_id")?, output })
                }
                _ => Err(wrong_type(&field("output"), "a string or a list of parts")),
            },
            Some("reasoning") if present(sent, "encrypted_content").is_some() => {
                Err(unknown("encrypted reasoning, only the server can read"))
            }
            Some("reasoning") => Ok(Self::Reasoning { sent }),
            Some(other) => {
                let other: String = other.chars().take(60).collect();
                Err(unknown(format!("items of type {other} are not known here")))
            }
        }
    }
}

/// The text of the first entry of a list, as in `content` and `summary` of reasoning.
fn first_text<'a>(sent: &'a Map<String, Value>, field: &str) -> Option<&'a str> {
    present(sent, field)?.as_array()?.first()?.get("text")?.as_str()
}

/// Gives the last message a field if it is the assistant's and has none yet.
fn fill_last(messages: &mut [Map<String, Value>], field: &str, value: &Value) -> bool {
    match messages.last_mut() {
        Some(last)
            if super::text_of(last, "role") == "assistant" && present(last, field).is_none() =>
        {
            last.insert(field.to_owned(), value.clone());
            true
        }
        _ => false,
    }
}

/// Adds a call to the last message if it is the assistant's, else in one of its own.
fn push_call(messages: &mut Vec<Map<String, Value>>, call: Value) {
    match messages.last_mut() {
        Some(last) if super::text_of(last, "role") == "assistant" => {
            let calls = last.entry("tool_calls").or_insert_with(|| Value::Array(Vec::new()));
            if let Value::Array(calls) = calls {
                calls.push(call);
            }
        }
        _ => messages.push(message("assistant", "tool_calls", Value::Array(vec![call]))),
    }
}

fn message(role: &str, field: &str, value: Value) -> Map<String, Value> {
    let mut message = Map::new();
    message.insert("role".to_owned(), role.into());
    message.insert(field.to_owned(), value);
    message
}

/// Flat function tools as chat writes them, with these keys, in this order. Kinds of tool that are no
/// functions do not reach the prompt; `custom` and `namespace` reach it in ways of each server's own.
fn functions(
    tools: &[&Map<String, Value>],
    write: impl Fn(&Map<String, Value>) -> Map<String, Value>,
) -> Result<Vec<Value>, Unfit> {
    let mut turned = Vec::new();
    for (at, tool) in tools.iter().enumerate() {
        match present(tool, "type").and_then(Value::as_str) {
            Some("function") => {}
            Some(kind @ ("custom" | "namespace")) => {
                return Err(unknown(format!("tools of type {kind} are not known here")));
            }
            Some(_) => continue,
            None => return Err(missing(&format!("tools[{at}].type"), "Give each tool its type.")),
        }
        if present(tool, "name").and_then(Value::as_str).is_none() {
            return Err(missing(&format!("tools[{at}].name"), "Give each tool its name."));
        }
        if present(tool, "defer_loading").is_some() {
            return Err(unknown("tools with defer_loading are not known here"));
        }
        turned.push(part::tool(write(tool)));
    }
    Ok(turned)
}

#[cfg(test)]
mod tests;
