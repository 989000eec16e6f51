//! Messages as vLLM turns them into chat: results of tools go before the message that they stand in.

use super::{
    super::{InlineSystem, Trials, Unfit, carry, part, present},
    BILLING_HEADER, Block, Content, Message, Output, Request, System, defers, not_known,
    runs_elsewhere, schema,
};
use crate::ids::ServerKind;
use serde_json::{Map, Value, json};

const KIND: ServerKind = ServerKind::Vllm;
/// What its API calls efforts, and its disabled thinking is compared with.
const EFFORTS: [&str; 5] = ["low", "medium", "high", "xhigh", "max"];

pub(super) fn chat(
    request: &Request<'_>,
    trials: &dyn Trials,
) -> Result<Map<String, Value>, Unfit> {
    let merge = request.inline_system() && merges_system(trials)?;
    let mut messages = Vec::with_capacity(request.messages.len() + 1);
    let system = system(request, merge);
    if !system.is_empty() {
        messages.push(json!({"role": "system", "content": system.concat()}));
    }
    for message in &request.messages {
        if message.role == "system" {
            let text = system_text(&message.content);
            if let (false, Some(text)) = (merge, text.filter(|text| !text.is_empty())) {
                messages.push(json!({"role": "system", "content": text}));
            }
        } else {
            push(message, &mut messages)?;
        }
    }
    let mut chat = Map::new();
    chat.insert("messages".to_owned(), messages.into());
    carry(request.body, &mut chat, &["chat_template_kwargs"]);
    if let Some(effort) = effort(request, trials)? {
        chat.insert("reasoning_effort".to_owned(), effort.into());
    }
    if let Some(tools) = tools(request)? {
        chat.insert("tools".to_owned(), tools);
    }
    Ok(chat)
}

/// It renders a trial once: a template that refuses a system message in the middle gets all of them at the
/// front.
fn merges_system(trials: &dyn Trials) -> Result<bool, Unfit> {
    match trials.inline_system() {
        Some(inline) => Ok(inline == InlineSystem::Refused),
        None => Err(not_known(KIND, "a system message among the others")),
    }
}

fn system<'a>(request: &Request<'a>, merge: bool) -> Vec<std::borrow::Cow<'a, str>> {
    let mut parts: Vec<std::borrow::Cow<'a, str>> = match &request.system {
        System::None => Vec::new(),
        System::Text(text) => {
            Some(*text).filter(|text| !text.is_empty()).map(Into::into).into_iter().collect()
        }
        System::Blocks(texts) => {
            texts.iter().copied().filter(|text| counts(text)).map(Into::into).collect()
        }
    };
    if merge {
        let inline = request.messages.iter().filter(|message| message.role == "system");
        let texts = inline.filter_map(|message| system_text(&message.content));
        parts.extend(texts.filter(|text| !text.is_empty()).map(Into::into));
    }
    parts
}

fn counts(text: &str) -> bool {
    !text.is_empty() && !text.starts_with(BILLING_HEADER)
}

/// The text of a system message; none if nothing of it is left.
fn system_text(content: &Content<'_>) -> Option<String> {
    match content {
        Content::Text(text) => (!text.starts_with(BILLING_HEADER)).then(|| (*text).to_owned()),
        Content::Blocks(blocks) => {
            let texts: Vec<&str> = blocks
                .iter()
                .filter_map(|block| match block {
                    Block::Text(text) if counts(text) => Some(*text),
                    _ => None,
                })
                .collect();
            (!texts.is_empty()).then(|| texts.concat())
        }
    }
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
    let (mut parts, mut calls, mut reasoning) = (Vec::new(), Vec::new(), Vec::new());
    for block in blocks {
        match block {
            Block::Text("") | Block::RedactedThinking => {}
            Block::Text(text) => parts.push(part::text(text)),
            Block::Image(source) => parts.extend(part::image(Some(source), "image/jpeg")),
            Block::Thinking(text) => reasoning.push(*text),
            Block::ToolUse { id, name, input } => calls.push(part::call(id, name, input)),
            Block::ToolResult { id, content } if role == "user" => {
                push_result(id, content, messages)?;
            }
            Block::ToolResult { content: Output::Blocks(_), .. } => {
                return Err(not_known(KIND, "a list as an assistant's tool_result"));
            }
            Block::ToolResult { content, .. } => {
                let text = if let Output::Text(text) = content { text } else { "" };
                parts.push(part::text(&format!("Tool result: {text}")));
            }
            Block::Other(kind) => return Err(not_known(KIND, &format!("a block of type {kind}"))),
        }
    }
    let mut turned = Map::new();
    turned.insert("role".to_owned(), role.into());
    if !reasoning.is_empty() {
        turned.insert("reasoning".to_owned(), reasoning.concat().into());
    }
    if !calls.is_empty() {
        turned.insert("tool_calls".to_owned(), calls.into());
    }
    if let Some(content) = part::content(parts) {
        turned.insert("content".to_owned(), content);
    } else if role == "user" {
        // Results of tools alone: they are messages of their own already.
        return Ok(());
    }
    messages.push(turned.into());
    Ok(())
}

fn push_result(id: &str, content: &Output<'_>, messages: &mut Vec<Value>) -> Result<(), Unfit> {
    let (mut texts, mut images) = (Vec::new(), Vec::new());
    match content {
        Output::Nothing => {}
        Output::Text(text) => texts.push(*text),
        Output::Blocks(blocks) => {
            for block in blocks {
                match block {
                    Block::Text(text) => texts.push(*text),
                    Block::Image(source) => images.extend(part::image(Some(source), "image/jpeg")),
                    Block::Other("tool_reference") => {
                        return Err(not_known(KIND, "a tool_reference in a tool_result"));
                    }
                    // The rest it passes over.
                    _ => {}
                }
            }
        }
    }
    messages.push(json!({"role": "tool", "tool_call_id": id, "content": texts.join("\n")}));
    if !images.is_empty() {
        messages.push(json!({"role": "user", "content": images}));
    }
    Ok(())
}

/// Disabled thinking goes out as the effort `none`, or as `low` where the template knows no `none`, which
/// it learns by rendering.
fn effort(request: &Request<'_>, trials: &dyn Trials) -> Result<Option<String>, Unfit> {
    let asked = request.effort().map(str::to_owned);
    if request.thinking() != Some("disabled") {
        return Ok(asked);
    }
    let none = trials.with_effort("none");
    let none = none.ok_or_else(|| not_known(KIND, "disabled thinking"))?;
    let Some(none) = none else { return Ok(Some("low".to_owned())) };
    let ignored = EFFORTS
        .iter()
        .any(|effort| trials.with_effort(effort).flatten().is_some_and(|prompt| prompt == none));
    Ok(Some(if ignored { "low" } else { "none" }.to_owned()))
}

fn tools(request: &Request<'_>) -> Result<Option<Value>, Unfit> {
    let Some(tools) = &request.tools else { return Ok(None) };
    let turned = tools.iter().map(|tool| {
        if runs_elsewhere(tool) {
            return Err(not_known(KIND, "a tool without input_schema"));
        }
        if defers(tool) {
            return Err(not_known(KIND, "a tool with defer_loading"));
        }
        let mut function = Map::new();
        for name in ["name", "description"] {
            function.insert(name.to_owned(), tool.get(name).cloned().unwrap_or_default());
        }
        function.insert("parameters".to_owned(), schema(tool));
        if let Some(strict) = present(tool, "strict") {
            function.insert("strict".to_owned(), strict.clone());
        }
        Ok(part::tool(function))
    });
    turned.collect::<Result<Vec<_>, _>>().map(|tools| Some(tools.into()))
}
