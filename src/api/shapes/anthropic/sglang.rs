//! Messages as SGLang turns them into chat: in order, with what stands before a tool's result as a message
//! of its own.

use super::{
    super::{InlineSystem, Trials, Unfit, part, present, text},
    Block, Content, Message, Output, Request, System, defers, not_known, runs_elsewhere, schema,
};
use crate::ids::ServerKind;
use serde_json::{Map, Value, json};

const KIND: ServerKind = ServerKind::Sglang;

pub(super) fn chat(
    request: &Request<'_>,
    trials: &dyn Trials,
) -> Result<Map<String, Value>, Unfit> {
    if request.thinking().is_some() {
        // Its reasoning parser decides, which is one of its flags.
        return Err(not_known(KIND, "'thinking' without its flags"));
    }
    let merge = request.inline_system() && merges_system(trials)?;
    let mut messages = Vec::with_capacity(request.messages.len() + 1);
    let system = system(request, merge);
    if !system.is_empty() {
        messages.push(json!({"role": "system", "content": system.join("\n")}));
    }
    for message in &request.messages {
        if !(merge && message.role == "system") {
            push(message, &mut messages)?;
        }
    }
    let mut chat = Map::new();
    chat.insert("messages".to_owned(), messages.into());
    if let Some(effort) = request.effort() {
        let effort = if effort == "xhigh" { "max" } else { effort };
        chat.insert("reasoning_effort".to_owned(), effort.into());
    }
    let tools = tools(request)?;
    choose(request, !tools.is_empty(), &mut chat)?;
    if !tools.is_empty() {
        chat.insert("tools".to_owned(), tools.into());
    }
    Ok(chat)
}

/// Unlike vLLM it wants to see the message printed.
fn merges_system(trials: &dyn Trials) -> Result<bool, Unfit> {
    match trials.inline_system() {
        Some(inline) => Ok(inline != InlineSystem::Printed),
        None => Err(not_known(KIND, "a system message among the others")),
    }
}

fn system(request: &Request<'_>, merge: bool) -> Vec<String> {
    let mut parts: Vec<String> = match &request.system {
        System::Text(text) if !text.trim().is_empty() => vec![(*text).to_owned()],
        System::None | System::Text(_) => Vec::new(),
        System::Blocks(texts) => {
            texts.iter().filter(|text| !text.is_empty()).map(|text| (*text).to_owned()).collect()
        }
    };
    if merge {
        for message in request.messages.iter().filter(|message| message.role == "system") {
            let texts: Vec<&str> = match &message.content {
                Content::Text(text) => vec![text.trim()],
                Content::Blocks(blocks) => blocks
                    .iter()
                    .filter_map(|block| match block {
                        Block::Text(text) => Some(text.trim()),
                        _ => None,
                    })
                    .collect(),
            };
            let texts: Vec<&str> = texts.into_iter().filter(|text| !text.is_empty()).collect();
            if !texts.is_empty() {
                parts.push(texts.join("\n"));
            }
        }
    }
    parts
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
    let (mut parts, mut calls) = (Vec::new(), Vec::new());
    for block in blocks {
        match block {
            Block::Text(text) => parts.push(part::text(text)),
            Block::Image(source) => parts.extend(part::image(Some(source), "image/png")),
            Block::ToolUse { id, name, input } => calls.push(part::call(id, name, input)),
            Block::ToolResult { id, content } => {
                let results = result(content)?;
                if role == "user" {
                    if let Some(content) = part::content(std::mem::take(&mut parts)) {
                        messages.push(json!({"role": "user", "content": content}));
                    }
                    let content = part::content(results).unwrap_or_else(|| "".into());
                    messages.push(json!({"role": "tool", "tool_call_id": id, "content": content}));
                } else {
                    let texts: Vec<&str> = results
                        .iter()
                        .filter(|part| text(part, "type") == "text")
                        .map(|part| text(part, "text"))
                        .collect();
                    parts.push(part::text(&format!("Tool result: {}", texts.join("\n"))));
                }
            }
            Block::Thinking(_) | Block::RedactedThinking if role != "assistant" => {}
            // How earlier thinking is written out, its reasoning parser decides.
            Block::Thinking(_) => {
                return Err(not_known(KIND, "earlier thinking without its flags"));
            }
            Block::RedactedThinking => return Err(not_known(KIND, "redacted thinking")),
            Block::Other(kind) => return Err(not_known(KIND, &format!("a block of type {kind}"))),
        }
    }
    let mut turned = Map::new();
    turned.insert("role".to_owned(), role.into());
    let has_calls = !calls.is_empty();
    if has_calls {
        turned.insert("tool_calls".to_owned(), calls.into());
    }
    match part::content(parts) {
        Some(content) => drop(turned.insert("content".to_owned(), content)),
        None if has_calls => {}
        None if role == "user" => return Ok(()),
        None => drop(turned.insert("content".to_owned(), "".into())),
    }
    messages.push(turned.into());
    Ok(())
}

/// The parts of what a tool said.
fn result(content: &Output<'_>) -> Result<Vec<Value>, Unfit> {
    let blocks = match content {
        Output::Nothing | Output::Text("") => return Ok(Vec::new()),
        Output::Text(text) => return Ok(vec![part::text(text)]),
        Output::Blocks(blocks) => blocks,
    };
    let mut parts = Vec::new();
    for block in blocks {
        match block {
            Block::Text("") => {}
            Block::Text(text) => parts.push(part::text(text)),
            Block::Image(source) => parts.extend(part::image(Some(source), "image/png")),
            Block::Other(kind) => {
                return Err(not_known(KIND, &format!("a block of type {kind} in a tool_result")));
            }
            _ => {}
        }
    }
    Ok(parts)
}

/// The tools that it forwards; what the API's own servers would run is left out.
fn tools(request: &Request<'_>) -> Result<Vec<Value>, Unfit> {
    let custom = request.tools.iter().flatten().filter(|tool| !runs_elsewhere(tool));
    let turned = custom.map(|tool| {
        if defers(tool) {
            return Err(not_known(KIND, "a tool with defer_loading"));
        }
        let mut function = Map::new();
        function.insert("name".to_owned(), tool.get("name").cloned().unwrap_or_default());
        let told = present(tool, "description").and_then(Value::as_str).unwrap_or_default();
        function.insert("description".to_owned(), told.into());
        function.insert("parameters".to_owned(), schema(tool));
        let strict = present(tool, "strict").and_then(Value::as_bool).unwrap_or(false);
        function.insert("strict".to_owned(), strict.into());
        Ok(part::tool(function))
    });
    turned.collect()
}

fn choose(
    request: &Request<'_>,
    has_tools: bool,
    chat: &mut Map<String, Value>,
) -> Result<(), Unfit> {
    let choice = request.inner("tool_choice", "type").and_then(Value::as_str);
    let name = request.inner("tool_choice", "name").cloned();
    let turned = match choice {
        Some("none") => json!("none"),
        Some("any") if has_tools => json!("required"),
        Some("tool") if has_tools => json!({"type": "function", "function": {"name": name}}),
        Some("any" | "tool") => return Err(not_known(KIND, "a tool_choice without tools")),
        _ if has_tools => json!("auto"),
        _ => return Ok(()),
    };
    chat.insert("tool_choice".to_owned(), turned);
    Ok(())
}
