//! Responses as SGLang turns them into chat: runs of the assistant's items join in one message, developers
//! become labelled systems, and systems join at the front where the template wants them there.

use super::{
    super::{InlineSystem, Trials, Unfit, part, present, text, text_of, unknown},
    Input, Item, functions, message,
};
use serde_json::{Map, Value, json};

/// Before the text of a developer's message.
const DEVELOPER_LABEL: &str = "Developer instructions:\n";

pub(super) fn chat(
    input: &Input<'_>,
    instructions: Option<&str>,
    body: &Map<String, Value>,
    tools: &[&Map<String, Value>],
    trials: &dyn Trials,
) -> Result<Map<String, Value>, Unfit> {
    let mut messages = Vec::new();
    if let Some(told) = instructions.filter(|told| !told.is_empty()) {
        messages.push(message("system", "content", told.into()));
    }
    match input {
        Input::Text(text) => messages.push(message("user", "content", (*text).into())),
        Input::Items(items) => {
            for item in items {
                let turned = turned(item)?;
                messages.extend(turned);
            }
        }
    }
    let messages = in_front(joined(messages), trials)?;
    let mut chat = Map::new();
    chat.insert("messages".to_owned(), messages.into_iter().map(Value::Object).collect());
    let tools = functions(tools, |tool| {
        let mut function = Map::new();
        for name in ["name", "description", "parameters"] {
            function.insert(name.to_owned(), tool.get(name).cloned().unwrap_or_default());
        }
        super::super::carry(tool, &mut function, &["strict"]);
        function
    })?;
    if !tools.is_empty() {
        let choice = match present(body, "tool_choice") {
            Some(Value::Object(choice)) if text_of(choice, "type") == "function" => {
                json!({"type": "function", "function": {"name": choice.get("name")}})
            }
            Some(Value::Object(_)) => {
                return Err(unknown("a tool_choice of more than one function"));
            }
            Some(choice) => choice.clone(),
            None => "auto".into(),
        };
        chat.insert("tool_choice".to_owned(), choice);
        chat.insert("tools".to_owned(), tools.into());
    }
    Ok(chat)
}

/// One item as a message; none where nothing is in it.
fn turned(item: &Item<'_>) -> Result<Option<Map<String, Value>>, Unfit> {
    Ok(Some(match item {
        Item::Call { id, name, arguments } => {
            // What is no object goes on as an empty one.
            let object = serde_json::from_str::<Map<String, Value>>(arguments).is_ok();
            let arguments = if object { *arguments } else { "{}" };
            let call = part::call(id, name, arguments);
            message("assistant", "tool_calls", Value::Array(vec![call]))
        }
        Item::Output { id, output } => {
            let told = match output {
                Value::Array(parts) => parts.iter().map(|part| text(part, "text")).collect(),
                told => told.as_str().unwrap_or_default().to_owned(),
            };
            let mut turned = message("tool", "tool_call_id", (*id).into());
            turned.insert("content".to_owned(), told.into());
            turned
        }
        Item::Reasoning { sent } => {
            let texts = |field: &str| -> Vec<&str> {
                let list = present(sent, field).and_then(Value::as_array);
                let texts = list.into_iter().flatten().map(|entry| text(entry, "text"));
                texts.filter(|text| !text.is_empty()).collect()
            };
            let mut told = texts("summary");
            if told.is_empty() {
                told = texts("content");
            }
            if told.is_empty() {
                return Ok(None);
            }
            message("assistant", "reasoning_content", told.join("\n").into())
        }
        Item::Message { sent, .. } if present(sent, "phase").is_some() => {
            return Err(unknown("messages with a phase"));
        }
        Item::Message { role, sent } => {
            let mut content = match present(sent, "content") {
                Some(Value::Array(parts)) => parts.iter().map(part_of).collect::<Result<_, _>>()?,
                told => told.cloned().unwrap_or_default(),
            };
            let mut role = *role;
            if role == "developer" {
                role = "system";
                label(&mut content);
            }
            message(role, "content", content)
        }
    }))
}

/// Puts the label before the first text.
fn label(content: &mut Value) {
    match content {
        Value::String(told) => told.insert_str(0, DEVELOPER_LABEL),
        Value::Array(parts) => {
            let texts = parts.iter_mut().find_map(|part| part.get_mut("text"));
            if let Some(Value::String(told)) = texts {
                told.insert_str(0, DEVELOPER_LABEL);
            } else {
                parts.insert(0, part::text(DEVELOPER_LABEL.trim_end()));
            }
        }
        _ => {}
    }
}

fn part_of(sent: &Value) -> Result<Value, Unfit> {
    match text(sent, "type") {
        "input_text" | "output_text" | "text" => Ok(part::text(text(sent, "text"))),
        kind => {
            let kind: String = kind.chars().take(60).collect();
            Err(unknown(format!("a part of type {kind}")))
        }
    }
}

/// Joins messages of the assistant that follow one another.
fn joined(messages: Vec<Map<String, Value>>) -> Vec<Map<String, Value>> {
    let mut all: Vec<Map<String, Value>> = Vec::with_capacity(messages.len());
    for mut next in messages {
        match all.last_mut() {
            Some(last)
                if text_of(last, "role") == "assistant"
                    && text_of(&next, "role") == "assistant" =>
            {
                if let Some(content) = next.remove("content") {
                    join_content(last, content);
                }
                if let Some(Value::Array(mut calls)) = next.remove("tool_calls")
                    && let Value::Array(known) =
                        last.entry("tool_calls").or_insert_with(|| Value::Array(Vec::new()))
                {
                    known.append(&mut calls);
                }
                if let Some(told) = next.get("reasoning_content").and_then(Value::as_str) {
                    let before = text_of(last, "reasoning_content");
                    let told = if before.is_empty() {
                        told.to_owned()
                    } else {
                        format!("{before}\n{told}")
                    };
                    last.insert("reasoning_content".to_owned(), told.into());
                }
            }
            _ => all.push(next),
        }
    }
    all
}

fn join_content(last: &mut Map<String, Value>, next: Value) {
    let is_empty = |value: &Value| value.as_str() == Some("");
    if is_empty(&next) {
        return;
    }
    // Taken out of its place, not removed: the order of keys may reach the prompt.
    let joined = match (last.get_mut("content").map(Value::take), next) {
        (None | Some(Value::Null), next) => next,
        (Some(before), next) if is_empty(&before) => next,
        (Some(Value::String(before)), Value::String(next)) => format!("{before}\n\n{next}").into(),
        (Some(before), next) => {
            let mut parts = as_parts(before);
            parts.append(&mut as_parts(next));
            parts.into()
        }
    };
    last.insert("content".to_owned(), joined);
}

fn as_parts(content: Value) -> Vec<Value> {
    match content {
        Value::Array(parts) => parts,
        Value::String(told) => vec![part::text(&told)],
        _ => Vec::new(),
    }
}

/// Where the template does not print a system message in the middle, all of them join at the front.
fn in_front(
    messages: Vec<Map<String, Value>>,
    trials: &dyn Trials,
) -> Result<Vec<Map<String, Value>>, Unfit> {
    let is_system = |message: &Map<String, Value>| text_of(message, "role") == "system";
    let plain =
        |message: &Map<String, Value>| present(message, "content").is_some_and(Value::is_string);
    let systems = || messages.iter().filter(|message| is_system(message));
    // One plain system message at the front stays what it is either way.
    let settled = match messages.first() {
        Some(first) if is_system(first) && plain(first) => systems().count() == 1,
        _ => systems().count() == 0,
    };
    if settled {
        return Ok(messages);
    }
    match trials.inline_system() {
        Some(InlineSystem::Printed) => return Ok(messages),
        Some(_) => {}
        None => return Err(unknown("a system message among the others, without the template")),
    }
    let (systems, others): (Vec<_>, Vec<_>) = messages.into_iter().partition(is_system);
    let texts: Vec<String> = systems
        .into_iter()
        .filter_map(|mut system| system.remove("content"))
        .flat_map(|content| match content {
            Value::Array(parts) => {
                parts.iter().map(|part| text(part, "text").to_owned()).collect::<Vec<_>>()
            }
            told => told.as_str().map(str::to_owned).into_iter().collect(),
        })
        .collect();
    let mut all = vec![message("system", "content", texts.join("\n\n").into())];
    all.extend(others);
    Ok(all)
}
