//! Responses as vLLM turns them into chat: reasoning, words and calls of one turn join in one message, and
//! of an assistant's parts only the first counts.

use super::{
    super::{Unfit, present, unknown},
    Input, Item, fill_last, first_text, functions, message, push_call,
};
use serde_json::{Map, Value, json};

pub(super) fn chat(
    input: &Input<'_>,
    instructions: Option<&str>,
    tools: &[&Map<String, Value>],
) -> Result<Map<String, Value>, Unfit> {
    let mut messages = Vec::new();
    if let Some(text) = instructions.filter(|text| !text.is_empty()) {
        messages.push(message("system", "content", text.into()));
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
    if input.continues() {
        chat.insert("continue_final_message".to_owned(), true.into());
        chat.insert("add_generation_prompt".to_owned(), false.into());
    }
    let tools = functions(tools, |tool| {
        let mut function = Map::new();
        for name in ["name", "description", "parameters"] {
            function.insert(name.to_owned(), tool.get(name).cloned().unwrap_or_default());
        }
        super::super::carry(tool, &mut function, &["strict"]);
        function
    })?;
    if !tools.is_empty() {
        chat.insert("tools".to_owned(), tools.into());
    }
    Ok(chat)
}

fn push(item: &Item<'_>, messages: &mut Vec<Map<String, Value>>) -> Result<(), Unfit> {
    match item {
        Item::Call { id, name, arguments } => {
            let function = json!({"name": name, "arguments": arguments});
            push_call(messages, json!({"id": id, "function": function, "type": "function"}));
        }
        Item::Output { id, output } => {
            let mut turned = message("tool", "content", (*output).clone());
            turned.insert("tool_call_id".to_owned(), (*id).into());
            messages.push(turned);
        }
        Item::Reasoning { sent } => {
            let told = first_text(sent, "content").or_else(|| first_text(sent, "summary"));
            let told = Value::from(told.unwrap_or_default());
            if !fill_last(messages, "reasoning", &told) {
                messages.push(message("assistant", "reasoning", told));
            }
        }
        Item::Message { role: "assistant", sent } => {
            let text = match present(sent, "content") {
                Some(Value::String(text)) => Some(text.as_str()),
                _ => first_text(sent, "content"),
            };
            let text = text.ok_or_else(|| unknown("an assistant's message without text first"))?;
            let text = Value::from(text);
            if !fill_last(messages, "content", &text) {
                messages.push(message("assistant", "content", text));
            }
        }
        Item::Message { sent, .. } => messages.push((*sent).clone()),
    }
    Ok(())
}
