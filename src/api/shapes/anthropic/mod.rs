//! Anthropic Messages requests: read and checked here, turned into chat by one file for each kind of server.
//!
//! Sources: vLLM 0.33 `entrypoints/anthropic/serving.py`, SGLang 0.5.23
//! `srt/entrypoints/anthropic/serving.py`, llama.cpp (October 2026) `tools/server/server-chat.cpp`.

mod llama;
mod sglang;
mod vllm;

use super::{Trials, Unfit, filled, missing, present, unknown, wrong, wrong_type};
use crate::{error::Reason, ids::ServerKind};
use serde_json::{Map, Value};

/// Turns a Messages request into the chat request that a server of this kind makes of it. The model's name
/// is taken over; what does not reach the prompt is left out.
///
/// # Errors
/// [`Unfit`]: the request is wrong, or holds what this kind refuses or treats by settings of its own.
pub fn to_chat(
    kind: ServerKind,
    body: &Map<String, Value>,
    trials: &dyn Trials,
) -> Result<Map<String, Value>, Unfit> {
    let request = Request::read(body)?;
    let mut chat = match kind {
        ServerKind::LlamaCpp => llama::chat(&request),
        ServerKind::Sglang => sglang::chat(&request, trials),
        ServerKind::Vllm | ServerKind::Ollama | ServerKind::OpenAi | ServerKind::Embedded => {
            vllm::chat(&request, trials)
        }
    }?;
    super::carry(body, &mut chat, &["model"]);
    Ok(chat)
}

/// A request, checked as far as all kinds of server agree.
struct Request<'a> {
    body: &'a Map<String, Value>,
    system: System<'a>,
    messages: Vec<Message<'a>>,
    tools: Option<Vec<&'a Map<String, Value>>>,
}

enum System<'a> {
    None,
    Text(&'a str),
    /// The texts of its blocks.
    Blocks(Vec<&'a str>),
}

struct Message<'a> {
    role: &'a str,
    content: Content<'a>,
}

enum Content<'a> {
    Text(&'a str),
    Blocks(Vec<Block<'a>>),
}

/// A block, with what stands in it already looked at.
enum Block<'a> {
    Text(&'a str),
    Thinking(&'a str),
    RedactedThinking,
    Image(&'a Value),
    /// `input` is JSON text.
    ToolUse {
        id: &'a str,
        name: &'a str,
        input: String,
    },
    ToolResult {
        id: &'a str,
        content: Output<'a>,
    },
    /// Any other kind, by its name.
    Other(&'a str),
}

/// What a tool said.
enum Output<'a> {
    Nothing,
    Text(&'a str),
    Blocks(Vec<Block<'a>>),
}

/// How deep blocks may hold blocks: a result of a tool holds some, and those hold none.
const DEPTH: u32 = 2;

// === impl Request ===

impl<'a> Request<'a> {
    fn read(body: &'a Map<String, Value>) -> Result<Self, Unfit> {
        let of = "a list of {\"role\": ..., \"content\": ...}";
        let messages = filled(body, "messages", of)?;
        let messages = messages.iter().enumerate().map(|(at, message)| Message::read(at, message));
        Ok(Self {
            body,
            system: System::read(body)?,
            messages: messages.collect::<Result<_, _>>()?,
            tools: tools(body)?,
        })
    }

    /// A field of an object field of the request.
    fn inner(&self, object: &str, field: &str) -> Option<&'a Value> {
        present(self.body, object)?.get(field).filter(|value| !value.is_null())
    }

    /// `thinking.type`.
    fn thinking(&self) -> Option<&'a str> {
        self.inner("thinking", "type").and_then(Value::as_str)
    }

    /// `output_config.effort`.
    fn effort(&self) -> Option<&'a str> {
        self.inner("output_config", "effort").and_then(Value::as_str)
    }

    /// The system messages that stand among the others.
    fn inline_system(&self) -> bool {
        self.messages.iter().any(|message| message.role == "system")
    }
}

/// The tools, each with a name.
fn tools(body: &Map<String, Value>) -> Result<Option<Vec<&Map<String, Value>>>, Unfit> {
    let tools = super::tools(body)?;
    for (at, tool) in tools.iter().flatten().enumerate() {
        if present(tool, "name").and_then(Value::as_str).is_none() {
            return Err(missing(&format!("tools[{at}].name"), "Give each tool its name."));
        }
        if present(tool, "input_schema").is_some_and(|schema| !schema.is_object()) {
            return Err(wrong_type(&format!("tools[{at}].input_schema"), "an object"));
        }
    }
    Ok(tools)
}

/// A tool that the API's own servers run: it brings a kind and no schema.
fn runs_elsewhere(tool: &Map<String, Value>) -> bool {
    let kind = present(tool, "type").and_then(Value::as_str);
    kind.is_some_and(|kind| kind != "custom") || present(tool, "input_schema").is_none()
}

/// A tool's schema, with the type that every schema must have.
fn schema(tool: &Map<String, Value>) -> Value {
    let mut schema =
        tool.get("input_schema").and_then(Value::as_object).cloned().unwrap_or_default();
    schema.entry("type").or_insert_with(|| "object".into());
    Value::Object(schema)
}

fn defers(tool: &Map<String, Value>) -> bool {
    present(tool, "defer_loading").is_some()
}

// === impl System ===

impl<'a> System<'a> {
    fn read(body: &'a Map<String, Value>) -> Result<Self, Unfit> {
        match present(body, "system") {
            None => Ok(Self::None),
            Some(Value::String(text)) => Ok(Self::Text(text)),
            Some(Value::Array(blocks)) => {
                let mut texts = Vec::with_capacity(blocks.len());
                for (at, block) in blocks.iter().enumerate() {
                    if let Block::Text(text) = Block::read(&format!("system[{at}]"), block, DEPTH)?
                    {
                        texts.push(text);
                    }
                }
                Ok(Self::Blocks(texts))
            }
            Some(_) => Err(wrong_type("system", "a string or a list of text blocks")),
        }
    }
}

// === impl Message ===

impl<'a> Message<'a> {
    fn read(at: usize, message: &'a Value) -> Result<Self, Unfit> {
        let message =
            message.as_object().ok_or_else(|| wrong_type("messages", "a list of objects"))?;
        let field = |part: &str| format!("messages[{at}].{part}");
        let role = present(message, "role").and_then(Value::as_str);
        let role = role.ok_or_else(|| missing(&field("role"), "Give each message its role."))?;
        if !matches!(role, "user" | "assistant" | "system") {
            let text = format!("'{}' must be user or assistant.", field("role"));
            return Err(wrong(Reason::OutOfRange, field("role"), text));
        }
        let at = field("content");
        let content = match present(message, "content") {
            Some(Value::String(text)) => Content::Text(text),
            Some(Value::Array(blocks)) => Content::Blocks(Block::read_all(&at, blocks, DEPTH)?),
            Some(_) => return Err(wrong_type(&at, "a string or a list of blocks")),
            None => return Err(missing(&at, "Send a string or a list of blocks.")),
        };
        Ok(Self { role, content })
    }
}

// === impl Block ===

impl<'a> Block<'a> {
    fn read_all(at: &str, blocks: &'a [Value], depth: u32) -> Result<Vec<Self>, Unfit> {
        let blocks = blocks.iter().enumerate();
        blocks.map(|(index, block)| Self::read(&format!("{at}[{index}]"), block, depth)).collect()
    }

    fn read(at: &str, value: &'a Value, depth: u32) -> Result<Self, Unfit> {
        let block = value.as_object().ok_or_else(|| wrong_type(at, "an object with a type"))?;
        let field = |name: &str| present(block, name);
        let kind = field("type").and_then(Value::as_str);
        let kind =
            kind.ok_or_else(|| missing(&format!("{at}.type"), "Give each block its type."))?;
        let text = |name: &str| {
            let value = field(name).and_then(Value::as_str);
            value.ok_or_else(|| wrong_type(&format!("{at}.{name}"), "a string"))
        };
        let id = |name: &str| field(name).and_then(Value::as_str).unwrap_or_default();
        Ok(match kind {
            "text" => Self::Text(text("text")?),
            "thinking" => Self::Thinking(text("thinking")?),
            "redacted_thinking" => Self::RedactedThinking,
            "image" => {
                let source = field("source").filter(|source| source.is_object());
                Self::Image(source.ok_or_else(|| wrong_type(&format!("{at}.source"), "an object"))?)
            }
            "tool_use" => {
                let input = match field("input") {
                    None => "{}".to_owned(),
                    Some(input @ Value::Object(_)) => input.to_string(),
                    Some(_) => return Err(wrong_type(&format!("{at}.input"), "an object")),
                };
                Self::ToolUse { id: id("id"), name: text("name")?, input }
            }
            "tool_result" if depth > 1 => {
                let inside = format!("{at}.content");
                let content = match field("content") {
                    None => Output::Nothing,
                    Some(Value::String(text)) => Output::Text(text),
                    Some(Value::Array(blocks)) => {
                        Output::Blocks(Self::read_all(&inside, blocks, depth - 1)?)
                    }
                    Some(_) => return Err(wrong_type(&inside, "a string or a list of blocks")),
                };
                Self::ToolResult { id: id("tool_use_id"), content }
            }
            other => Self::Other(other),
        })
    }
}

/// Says that a kind of server has no known way with something.
fn not_known(kind: ServerKind, what: &str) -> Unfit {
    let what: String = what.chars().take(60).collect();
    unknown(format!("what {} makes of {what} is not known here", kind.as_str()))
}

/// What one coding client puts before its system prompt; servers take it out or blank a part of it, since
/// it changes with every request.
const BILLING_HEADER: &str = "x-anthropic-billing-header";

#[cfg(test)]
mod tests;
