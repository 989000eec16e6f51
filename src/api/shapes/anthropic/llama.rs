//! Messages as llama.cpp turns them into chat: results of tools go behind the message that they stand in,
//! and blocks that it does not know are passed over.

use super::{
    super::{Unfit, carry, part, present},
    BILLING_HEADER, Block, Content, Message, Output, Request, System, not_known,
};
use crate::ids::ServerKind;
use serde_json::{Map, Value, json};

const KIND: ServerKind = ServerKind::LlamaCpp;

pub(super) fn chat(request: &Request<'_>) -> Result<Map<String, Value>, Unfit> {
    let mut messages = Vec::with_capacity(request.messages.len() + 1);
    let system = match &request.system {
        System::None => None,
        System::Text(text) => Some(without_stamp(text)),
        System::Blocks(texts) => Some(texts.iter().map(|text| without_stamp(text)).collect()),
    };
    if let Some(system) = system {
        messages.push(json!({"role": "system", "content": system}));
    }
    for message in &request.messages {
        push(message, &mut messages)?;
    }
    let mut chat = Map::new();
    chat.insert("messages".to_owned(), messages.into());
    carry(request.body, &mut chat, &["chat_template_kwargs"]);
    if let Some(tools) = &request.tools {
        let tools: Vec<Value> = tools.iter().map(|tool| turned(tool)).collect();
        chat.insert("tools".to_owned(), tools.into());
    }
    Ok(chat)
}

/// The stamp inside the header changes with every request: its five letters become `fffff`.
fn without_stamp(text: &str) -> String {
    const STAMP: &str = "cch=";
    const LETTERS: usize = 5;
    let stamped = || {
        let rest = text.strip_prefix(BILLING_HEADER)?.strip_prefix(':')?;
        let (before, behind) = rest.split_once(STAMP)?;
        let (_, tail) = behind.split_at_checked(LETTERS)?;
        tail.starts_with(';')
            .then(|| format!("{BILLING_HEADER}:{before}{STAMP}{}{tail}", "f".repeat(LETTERS)))
    };
    stamped().unwrap_or_else(|| text.to_owned())
}

fn push(message: &Message<'_>, messages: &mut Vec<Value>) -> Result<(), Unfit> {
    let role = message.role;
    let blocks = match &message.content {
        Content::Text(text) => {
            messages.push(json!({"role": role, "content": text}));
            return Ok(());
        }
        Content::Blocks(blocks) => blocks,
    };
    let (mut parts, mut calls, mut results) = (Vec::new(), Vec::new(), Vec::new());
    let mut reasoning = String::new();
    for block in blocks {
        match block {
            Block::Text(text) => parts.push(part::text(text)),
            Block::Thinking(text) => reasoning.push_str(text),
            Block::Image(source) => parts.extend(part::image(Some(source), "image/jpeg")),
            Block::ToolUse { id, name, input } => calls.push(part::call(id, name, input)),
            Block::ToolResult { id, content } => {
                let content = result(content);
                results.push(json!({"role": "tool", "tool_call_id": id, "content": content}));
            }
            Block::RedactedThinking | Block::Other("document") => {}
            Block::Other(kind) => return Err(not_known(KIND, &format!("a block of type {kind}"))),
        }
    }
    if !(parts.is_empty() && calls.is_empty() && reasoning.is_empty()) {
        let mut turned = Map::new();
        turned.insert("role".to_owned(), role.into());
        let content = if parts.is_empty() { Value::from("") } else { parts.into() };
        turned.insert("content".to_owned(), content);
        if !calls.is_empty() {
            turned.insert("tool_calls".to_owned(), calls.into());
        }
        if !reasoning.is_empty() {
            turned.insert("reasoning_content".to_owned(), reasoning.into());
        }
        messages.push(turned.into());
    }
    messages.append(&mut results);
    Ok(())
}

/// What a tool said: one text, unless there are images in it.
fn result(content: &Output<'_>) -> Value {
    let blocks = match content {
        Output::Nothing => return "".into(),
        Output::Text(text) => return (*text).into(),
        Output::Blocks(blocks) => blocks,
    };
    let (mut all, mut parts, mut images) = (String::new(), Vec::new(), false);
    for block in blocks {
        match block {
            Block::Text(text) => {
                all.push_str(text);
                parts.push(part::text(text));
            }
            Block::Image(source) => {
                images = true;
                parts.extend(part::image(Some(source), "image/jpeg"));
            }
            _ => {}
        }
    }
    if images { parts.into() } else { all.into() }
}

fn turned(tool: &Map<String, Value>) -> Value {
    let text = |name: &str| present(tool, name).and_then(Value::as_str).unwrap_or_default();
    let mut function = Map::new();
    function.insert("name".to_owned(), text("name").into());
    function.insert("description".to_owned(), text("description").into());
    let schema = tool.get("input_schema").cloned().unwrap_or_else(|| json!({}));
    function.insert("parameters".to_owned(), schema);
    part::tool(function)
}
