//! Responses as llama.cpp turns them into chat.

use super::{
    super::{Unfit, part, present, text_of, unknown, wrong_type},
    Input, Item, first_text, functions, message, push_call,
};
use serde_json::{Map, Value};

pub(super) fn chat(
    input: &Input<'_>,
    body: &Map<String, Value>,
    tools: &[&Map<String, Value>],
) -> Result<Map<String, Value>, Unfit> {
    let mut messages = Vec::new();
    // Empty ones, and a null, make a system message too.
    if let Some(told) = body.get("instructions") {
        messages.push(message("system", "content", told.as_str().unwrap_or_default().into()));
    }
    match input {
        Input::Text(text) => messages.push(message("user", "content", (*text).into())),
        Input::Items(items) => {
            for item in items {
                push(item, &mut messages)?;
            }
        }
    }
    let mut chat = Map::new();
    chat.insert("messages".to_owned(), messages.into_iter().map(Value::Object).collect());
    // Of a definition it keeps these three, and writes out what is missing.
    let tools = functions(tools, |tool| {
        let text = |name: &str| present(tool, name).and_then(Value::as_str).unwrap_or_default();
        let mut function = Map::new();
        function.insert("name".to_owned(), text("name").into());
        function.insert("description".to_owned(), text("description").into());
        let parameters = present(tool, "parameters").cloned();
        let parameters = parameters.unwrap_or_else(|| Value::Object(Map::new()));
        function.insert("parameters".to_owned(), parameters);
        function
    })?;
    if !tools.is_empty() {
        chat.insert("tools".to_owned(), tools.into());
    }
    Ok(chat)
}

fn push(item: &Item<'_>, messages: &mut Vec<Map<String, Value>>) -> Result<(), Unfit> {
    let by_assistant = |messages: &[Map<String, Value>]| {
        messages.last().is_some_and(|last| text_of(last, "role") == "assistant")
    };
    match item {
        Item::Call { id, name, arguments } => {
            push_call(messages, part::call(id, name, arguments));
        }
        Item::Output { id, output } => {
            let content = match output {
                Value::Array(parts) => parts.iter().map(part_of).collect::<Result<_, _>>()?,
                text => (*text).clone(),
            };
            let mut turned = message("tool", "content", content);
            turned.insert("tool_call_id".to_owned(), (*id).into());
            messages.push(turned);
        }
        Item::Reasoning { sent } => {
            let told = first_text(sent, "content")
                .filter(|_| present(sent, "summary").is_some_and(Value::is_array));
            let told =
                told.ok_or_else(|| unknown("reasoning without content, which llama.cpp refuses"))?;
            match messages.last_mut() {
                Some(last) if text_of(last, "role") == "assistant" => {
                    last.insert("reasoning_content".to_owned(), told.into());
                }
                _ => {
                    let mut turned = message("assistant", "content", Value::Array(Vec::new()));
                    turned.insert("reasoning_content".to_owned(), told.into());
                    messages.push(turned);
                }
            }
        }
        // It joins two in a row, in a way of its library's making.
        Item::Message { role: "assistant", .. } if by_assistant(messages) => {
            return Err(unknown("two messages of the assistant in a row"));
        }
        Item::Message { role: "assistant", sent } if present(sent, "type").is_none() => {
            return Err(unknown(
                "an assistant's message without its type, which llama.cpp refuses",
            ));
        }
        Item::Message { sent, .. } => {
            let mut turned: Map<String, Value> = (*sent).clone();
            turned.retain(|key, _| key != "type" && key != "status");
            let content = match present(sent, "content") {
                Some(Value::Array(parts)) => parts.iter().map(part_of).collect::<Result<_, _>>()?,
                text => {
                    Value::Array(vec![part::text(text.and_then(Value::as_str).unwrap_or_default())])
                }
            };
            turned.insert("content".to_owned(), content);
            messages.push(turned);
        }
    }
    Ok(())
}

fn part_of(sent: &Value) -> Result<Value, Unfit> {
    match super::super::text(sent, "type") {
        "input_text" | "output_text" => match sent.get("text") {
            Some(Value::String(text)) => Ok(part::text(text)),
            _ => Err(wrong_type("text", "a string in each part of text")),
        },
        "refusal" => Ok(sent.clone()),
        kind => {
            let kind: String = kind.chars().take(60).collect();
            Err(unknown(format!("a part of type {kind}")))
        }
    }
}
