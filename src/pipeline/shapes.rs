//! Counting requests of any shape with a model's own files: turned into what its servers make of them,
//! then counted as such.

use super::count::{self, Counted, Counter, Source};
use crate::{
    api::{
        Route,
        shapes::{self, InlineSystem, NoTrials, Plain, Shape, Trials, Unfit, Weight, weigh},
    },
    error::{Reason, Refusal},
    ids::ServerKind,
    servers::ModelServer,
    tokens::CountError,
    units::Tokens,
};
use bytes::Bytes;
use serde_json::{Map, Value};
use std::sync::Arc;

impl Trials for Counter {
    fn inline_system(&self) -> Option<InlineSystem> {
        self.files().inline_system()
    }

    fn with_effort(&self, effort: &str) -> Option<Option<String>> {
        self.files().with_effort(self.profile(), effort)
    }
}

/// A request of any shape, turned and counted as far as that goes on this host.
#[derive(Debug)]
pub struct Shaped {
    /// What the server makes of it; an error where that is not known.
    pub plain: Result<Plain, String>,
    /// The count by our own files. `None`: there are none.
    pub local: Option<Result<Tokens, CountError>>,
    /// That count is believed.
    pub believed: bool,
    /// Bytes for an estimate.
    pub weight: usize,
    /// The body for a server's counting endpoint, where that may be needed.
    pub outgoing: Option<(Route, Bytes)>,
}

/// A count with why it is no better than it is.
#[derive(Clone, Debug)]
pub struct Told {
    /// The count.
    pub counted: Counted,
    /// Why it is not exact.
    pub reason: Option<String>,
}

impl Shaped {
    /// Turns and counts a body. A counter comes with whether its count is believed. `kind` is that of the
    /// server that would be asked, for a model without files here, and `model` the name that it knows. All of
    /// it is CPU work.
    ///
    /// # Errors
    /// What the caller must mend.
    pub fn of(
        shape: Shape,
        kind: ServerKind,
        model: &str,
        counter: Option<(&Counter, bool)>,
        body: &Map<String, Value>,
    ) -> Result<Self, Refusal> {
        let believed = counter.is_none_or(|(_, believed)| believed);
        let counter = counter.map(|(counter, _)| counter);
        let turned = match counter {
            Some(counter) => shapes::plain(shape, counter.profile().other_apis(), body, counter),
            None => shapes::plain(shape, kind, body, &NoTrials),
        };
        let plain = match turned {
            Ok(plain) => Ok(plain),
            Err(Unfit::Wrong(refusal)) => return Err(*refusal),
            Err(Unfit::Unknown(told)) => Err(told),
        };
        let local = counter.map(|counter| match &plain {
            Ok(plain) => counter.count_plain(plain),
            Err(told) => Err(CountError::NotAvailable(told.clone())),
        });
        let weight = match (&plain, counter, &local) {
            (Ok(Plain::Request(Route::Chat, chat)), Some(counter), Some(Err(_))) => {
                counter.around_images(chat)
            }
            _ => None,
        }
        .unwrap_or_else(|| weight(&plain, body));
        Self { plain, local, believed, weight, outgoing: None }.with_outgoing(model)
    }

    /// Writes the body for the server, unless the count is here already. It is checked as any other that a
    /// server is sent: it may hold no link that the server would follow.
    ///
    /// # Errors
    /// What no server may be sent.
    pub fn with_outgoing(mut self, model: &str) -> Result<Self, Refusal> {
        let settled = self.believed && matches!(self.local, Some(Ok(_)));
        if let Ok(Plain::Request(route, body)) = &self.plain
            && !settled
        {
            self.outgoing = Some((*route, outgoing(*route, body, model)?));
        }
        Ok(self)
    }

    /// The count: ours, else the server's where it is asked with a body that it knows, else an estimate.
    ///
    /// # Errors
    /// The template refuses the conversation.
    pub async fn count(&self, server: Option<Arc<dyn ModelServer>>) -> Result<Told, Refusal> {
        let (server, route, outgoing) = match &self.outgoing {
            Some((route, body)) => (server, *route, body.clone()),
            None => (None, Route::Chat, Bytes::new()),
        };
        let local = self.local.as_ref().map(|local| (local, self.believed));
        let counted = count::count(local, server, route, self.weight, &outgoing).await?;
        let reason = (counted.source != Source::Exact).then(|| self.reason(counted.source));
        Ok(Told { counted, reason })
    }

    fn reason(&self, source: Source) -> String {
        let here = match (&self.plain, &self.local) {
            (Err(told), _) => told.clone(),
            (_, Some(Err(error))) => error.to_string(),
            (_, Some(Ok(_))) => "the count here and the server's do not agree".to_owned(),
            (_, None) => "the model's files are not on this host".to_owned(),
        };
        match source {
            Source::Estimate => format!("{here}; and no server of it could count"),
            Source::Server | Source::Exact => here,
        }
    }
}

fn outgoing(route: Route, body: &Map<String, Value>, model: &str) -> Result<Bytes, Refusal> {
    let mut body = body.clone();
    body.insert("model".to_owned(), model.into());
    // What a chat request without a stream may not have.
    for field in ["stream", "stream_options"] {
        body.remove(field);
    }
    let text = Value::Object(body).to_string();
    let limits = crate::api::FieldLimits { choices_max: u32::from(u8::MAX) };
    let request = crate::api::Request::parse(route, text.as_bytes(), limits)?;
    Ok(crate::api::outgoing::body(&request, model))
}

fn weight(plain: &Result<Plain, String>, body: &Map<String, Value>) -> usize {
    let of = |body: &Map<String, Value>, fields: &[&str]| {
        fields.iter().filter_map(|field| body.get(*field)).map(|value| weigh(value).bytes()).sum()
    };
    const CHAT: [&str; 3] = ["messages", "tools", "functions"];
    match plain {
        Ok(Plain::Request(Route::Chat, chat)) => of(chat, &CHAT),
        Ok(Plain::Request(Route::Completions, body)) => of(body, &["prompt"]),
        Ok(Plain::Request(Route::Embeddings, body)) => of(body, &["input"]),
        Ok(Plain::Pairs(pairs)) => pairs.iter().map(|(a, b)| a.len() + b.len()).sum(),
        Err(_) => of(
            body,
            &[
                "messages",
                "tools",
                "functions",
                "system",
                "instructions",
                "input",
                "prompt",
                "suffix",
                "query",
                "documents",
                "text_1",
                "text_2",
                "queries",
            ],
        ),
    }
}

impl Counter {
    /// Counts what a server makes of a request.
    ///
    /// # Errors
    /// As [`Counter::count`].
    pub fn count_plain(&self, plain: &Plain) -> Result<Tokens, CountError> {
        match plain {
            Plain::Request(route, body) => {
                let body = serde_json::to_vec(body)
                    .map_err(|error| CountError::NotAvailable(error.to_string()))?;
                self.count_body(*route, &body)
            }
            Plain::Pairs(pairs) => {
                let mut sum = Tokens::ZERO;
                for (first, second) in pairs {
                    sum = sum.plus(self.files().count_pair(first, second)?);
                }
                Ok(sum)
            }
        }
    }

    /// Bytes for the estimate of a conversation with images: the words around them are counted, so that only
    /// the images are guessed at. `None`: it has no images, or the rest cannot be counted either.
    pub fn around_images(&self, chat: &Map<String, Value>) -> Option<usize> {
        let mut chat = chat.clone();
        let mut images = 0;
        for message in chat.get_mut("messages")?.as_array_mut()? {
            let Some(Value::Array(parts)) = message.get_mut("content") else { continue };
            let before = parts.len();
            parts.retain(|part| {
                let kind = part.get("type").and_then(Value::as_str);
                !kind.is_some_and(|kind| kind.contains("image"))
            });
            images += before - parts.len();
        }
        if images == 0 {
            return None;
        }
        let words = self.files().count_chat(self.profile(), &chat).ok()?;
        let words = usize::try_from(words.get()).ok()?.saturating_mul(4);
        let images = Weight { text_bytes: 0, images: images as u64 };
        Some(words.saturating_add(images.bytes()))
    }

    /// The ids of what a server makes of a request with one prompt.
    ///
    /// # Errors
    /// As [`Counter::count`]; pairs and lists of prompts have no one list of ids.
    pub fn plain_ids(&self, plain: &Plain) -> Result<Vec<u32>, CountError> {
        match plain {
            Plain::Request(Route::Chat, body) => self.files().chat_ids(self.profile(), body),
            Plain::Request(route, body) => match body.get(field_of(*route)) {
                Some(Value::String(text)) => self.files().text_ids(text, true),
                _ => Err(CountError::NotAvailable("only one text has one list of ids".into())),
            },
            Plain::Pairs(_) => {
                Err(CountError::NotAvailable("pairs have no one list of ids".into()))
            }
        }
    }

    /// The text that is encoded for a request with one prompt.
    ///
    /// # Errors
    /// As [`Counter::plain_ids`].
    pub fn plain_text(&self, plain: &Plain) -> Result<String, CountError> {
        match plain {
            Plain::Request(Route::Chat, body) => self.files().chat_text(self.profile(), body),
            Plain::Request(route, body) => match body.get(field_of(*route)) {
                Some(Value::String(text)) => Ok(text.clone()),
                _ => Err(CountError::NotAvailable("only one text is one prompt".into())),
            },
            Plain::Pairs(_) => Err(CountError::NotAvailable("pairs are no one prompt".into())),
        }
    }
}

const fn field_of(route: Route) -> &'static str {
    match route {
        Route::Chat => "messages",
        Route::Completions => "prompt",
        Route::Embeddings => "input",
    }
}

/// What becomes of a count that failed, where nothing stands in its place.
pub fn refusal(error: &CountError) -> Refusal {
    match error {
        CountError::Template(told) => {
            let text = format!("The model's chat template refuses this conversation: {told}");
            Refusal::new(Reason::TemplateRefused, text).param("messages")
        }
        CountError::NoMessages | CountError::TooCostly(_) => {
            Refusal::new(Reason::TemplateRefused, error.to_string())
        }
        error => Refusal::new(Reason::NotCountable, format!("No token ids: {error}.")),
    }
}
