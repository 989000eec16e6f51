//! Requests in the shapes of other APIs, turned into what a model server makes of them: Anthropic
//! Messages, OpenAI Responses, pairs of rerank and score requests.
//!
//! Each kind of server turns such a request into a chat request of its own, in its own way, and that chat
//! request is what its template renders. The functions here do the same, so that the count is of what the
//! server will see. They know no tokenizer; what they must know of a model's template they ask [`Trials`].

pub mod anthropic;
mod detect;
mod estimate;
mod part;
pub mod rerank;
pub mod responses;

pub use detect::detect;
pub use estimate::{IMAGE_TOKENS, Weight, weigh};

use super::{Route, fields::clip, outgoing};
use crate::{
    error::{Reason, Refusal},
    ids::ServerKind,
};
use serde_json::{Map, Value};

/// What API a request is written for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shape {
    /// OpenAI chat completions: `messages`.
    Chat,
    /// OpenAI completions: `prompt`.
    Completions,
    /// OpenAI embeddings: `input`.
    Embeddings,
    /// Anthropic Messages: `messages` with blocks, `system`.
    Messages,
    /// OpenAI Responses: `input` with items, `instructions`.
    Responses,
    /// `query` and `documents`, or `text_1` and `text_2`.
    Rerank,
}

impl Shape {
    /// Every shape.
    pub const ALL: [Self; 6] = [
        Self::Chat,
        Self::Completions,
        Self::Embeddings,
        Self::Messages,
        Self::Responses,
        Self::Rerank,
    ];

    /// The shape's name on the command line.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Chat => "chat",
            Self::Completions => "completions",
            Self::Embeddings => "embeddings",
            Self::Messages => "messages",
            Self::Responses => "responses",
            Self::Rerank => "rerank",
        }
    }

    /// The shape of a name.
    pub fn parse(text: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|shape| shape.as_str() == text)
    }
}

/// What a server makes of a request.
#[derive(Clone, Debug, PartialEq)]
pub enum Plain {
    /// A request of one of the routes that are counted as they are.
    Request(Route, Map<String, Value>),
    /// Pairs of texts, each encoded together as a cross-encoder sees them.
    Pairs(Vec<(String, String)>),
}

/// Why a request could not be turned.
#[derive(Clone, Debug, PartialEq)]
pub enum Unfit {
    /// The request is wrong: the caller's to mend.
    Wrong(Box<Refusal>),
    /// The request may be right, but what the server makes of it is not known here. Ask it, or estimate.
    Unknown(String),
}

/// What a template does with a system message behind the first user message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum InlineSystem {
    /// It refuses the conversation.
    Refused,
    /// It renders, without the message.
    Dropped,
    /// It prints it.
    Printed,
}

/// Trial renders of the model's template, which servers make to learn what it can do.
pub trait Trials {
    /// A conversation of system, user, system, user. `None`: there is no template here.
    fn inline_system(&self) -> Option<InlineSystem>;

    /// The prompt of one short user message with this `reasoning_effort`; `Some(None)` where the template
    /// refuses it, `None` where there is no template here.
    fn with_effort(&self, effort: &str) -> Option<Option<String>>;
}

/// No template to try.
#[derive(Clone, Copy, Debug)]
pub struct NoTrials;

impl Trials for NoTrials {
    fn inline_system(&self) -> Option<InlineSystem> {
        None
    }

    fn with_effort(&self, _: &str) -> Option<Option<String>> {
        None
    }
}

/// Turns a request into what a server of this kind makes of it.
///
/// # Errors
/// [`Unfit`]: the request is wrong, or cannot be turned here.
pub fn plain(
    shape: Shape,
    kind: ServerKind,
    body: &Map<String, Value>,
    trials: &dyn Trials,
) -> Result<Plain, Unfit> {
    let own = |route: Route| Ok(Plain::Request(route, body.clone()));
    match shape {
        Shape::Chat => own(Route::Chat),
        Shape::Completions => match present(body, "suffix").and_then(Value::as_str) {
            Some(suffix) if !suffix.is_empty() => {
                Err(unknown("'suffix' asks for filling in, whose prompt each server builds itself"))
            }
            _ => own(Route::Completions),
        },
        Shape::Embeddings if present(body, "messages").is_some() => {
            Err(unknown("embeddings of a conversation are prepared by the server alone"))
        }
        Shape::Embeddings => own(Route::Embeddings),
        Shape::Messages => {
            anthropic::to_chat(kind, body, trials).map(|chat| Plain::Request(Route::Chat, chat))
        }
        Shape::Responses => {
            responses::to_chat(kind, body, trials).map(|chat| Plain::Request(Route::Chat, chat))
        }
        Shape::Rerank => rerank::pairs(kind, body).map(Plain::Pairs),
    }
}

/// Opens a body of any shape: strict JSON, no known key in another letter case, no template variable that
/// would steer the rendering.
///
/// # Errors
/// What is wrong with the body.
pub fn open(body: &[u8]) -> Result<Map<String, Value>, Refusal> {
    let fields = super::json::open(body)?;
    super::refuse_misspelt(&fields)?;
    outgoing::check_template_variables(&fields)?;
    serde_json::from_slice(body)
        .map_err(|error| Refusal::new(Reason::MalformedJson, clip(&error.to_string())))
}

// === reading values ===

/// A field that is there and not null.
fn present<'a>(from: &'a Map<String, Value>, field: &str) -> Option<&'a Value> {
    from.get(field).filter(|value| !value.is_null())
}

/// A text field, empty where it is not a text.
fn text<'a>(from: &'a Value, field: &str) -> &'a str {
    from.get(field).and_then(Value::as_str).unwrap_or_default()
}

/// The same of an opened object.
fn text_of<'a>(from: &'a Map<String, Value>, field: &str) -> &'a str {
    from.get(field).and_then(Value::as_str).unwrap_or_default()
}

fn unknown(why: impl Into<String>) -> Unfit {
    Unfit::Unknown(why.into())
}

fn wrong(reason: Reason, at: impl Into<String>, message: impl Into<String>) -> Unfit {
    Unfit::Wrong(Box::new(Refusal::new(reason, message.into()).param(at.into())))
}

fn wrong_type(at: &str, want: &str) -> Unfit {
    wrong(Reason::InvalidType, at, format!("'{at}' must be {want}."))
}

fn missing(at: &str, remedy: &str) -> Unfit {
    wrong(Reason::MissingField, at, format!("'{at}' is missing. {remedy}"))
}

/// A list that must be there and hold something.
fn filled<'a>(from: &'a Map<String, Value>, field: &str, of: &str) -> Result<&'a [Value], Unfit> {
    let value = present(from, field).ok_or_else(|| missing(field, &format!("Send {of}.")))?;
    let list = value.as_array().ok_or_else(|| wrong_type(field, of))?;
    if list.is_empty() {
        return Err(wrong(Reason::OutOfRange, field, format!("'{field}' is empty. Send {of}.")));
    }
    Ok(list)
}

/// The tools of a request, each an object.
fn tools(body: &Map<String, Value>) -> Result<Option<Vec<&Map<String, Value>>>, Unfit> {
    let Some(tools) = present(body, "tools") else { return Ok(None) };
    let wrong = || wrong_type("tools", "a list of objects");
    let tools = tools.as_array().ok_or_else(wrong)?;
    tools.iter().map(|tool| tool.as_object().ok_or_else(wrong)).collect::<Result<_, _>>().map(Some)
}

/// Takes over the fields that are there and not null.
fn carry(from: &Map<String, Value>, to: &mut Map<String, Value>, names: &[&str]) {
    for name in names {
        if let Some(value) = present(from, name) {
            to.insert((*name).to_owned(), value.clone());
        }
    }
}
