//! The routes that only count: `POST /tokenize` as vLLM has it, and Anthropic's
//! `POST /v1/messages/count_tokens`. They generate nothing and take no place in the queue; where the model's
//! files are here they need no server.

use super::{
    BODIES_MAX_KIB, Broker, Live, answer,
    answer::Reply,
    count::{Counted, Counter, Source},
    id_header,
    record::Record,
    shapes::{Shaped, refusal},
};
use crate::{
    api::{
        Route,
        answer::Usage,
        fields, json,
        refuse::Form,
        shapes::{self as api, Plain, Shape},
    },
    config::Tenant,
    error::{Reason, Refusal},
    ids::{ModelName, RequestId, ServerKind},
    schedule::catalog::Entry,
    tokens::CountError,
    units::Tokens,
};
use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Response, header::CONTENT_TYPE};
use serde::Serialize;
use serde_json::{
    Map, Value,
    value::{RawValue, to_raw_value},
};
use std::sync::Arc;

/// Bodies up to this size are studied in place: it takes less than handing them over would.
const INLINE_MAX: usize = 8 * 1024;

/// A route that only counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Counting {
    /// `POST /tokenize`
    Tokenize,
    /// `POST /v1/messages/count_tokens`
    Messages,
}

/// A request to count, understood and counted as far as that goes here.
struct Studied {
    entry: Entry,
    counter: Option<Arc<Counter>>,
    shaped: Shaped,
    ids: Option<Ids>,
}

/// Token ids for an answer, and their words where those were asked for: written out already, since they
/// may be megabytes.
struct Ids {
    ids: Box<RawValue>,
    texts: Option<Box<RawValue>>,
}

/// Ids in one answer: more than any context window.
const IDS_MAX: usize = 1 << 20;
/// Words in one answer; each takes several times the memory of an id.
const WORDS_MAX: usize = 1 << 18;

/// vLLM's answer, and where the count came from. Without the model's files there are no ids: `tokens` is
/// null then.
#[derive(Serialize)]
struct Tokenized<'a> {
    count: u64,
    max_model_len: Option<u64>,
    tokens: Option<&'a RawValue>,
    token_strs: Option<&'a RawValue>,
    source: &'static str,
}

#[derive(Serialize)]
struct Counts {
    input_tokens: u64,
}

// === impl Counting ===

impl Counting {
    /// The route's name in logs.
    const fn as_str(self) -> &'static str {
        match self {
            Self::Tokenize => "tokenize",
            Self::Messages => "count_tokens",
        }
    }

    /// How errors look on the route.
    pub(super) const fn form(self) -> Form {
        match self {
            Self::Tokenize => Form::OpenAi,
            Self::Messages => Form::Anthropic,
        }
    }
}

impl Broker {
    /// Answers a request that only counts. Dropping the future ends it; it holds nothing but its body.
    pub(super) async fn only_count<B>(
        self: &Arc<Self>,
        what: Counting,
        id: &RequestId,
        headers: &HeaderMap,
        body: &mut B,
    ) -> Response<Reply>
    where
        B: http_body::Body<Data = Bytes> + Unpin,
    {
        let mut record = Record::begin(Arc::clone(&self.books), id.clone(), what.as_str());
        match self.count_only(what, headers, body, &mut record).await {
            Ok((text, counted)) => {
                let mut response = Response::new(Reply::Whole(Some(text.into())));
                let headers = response.headers_mut();
                headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
                headers.insert("x-berthd-input-tokens", HeaderValue::from(counted.tokens.get()));
                let source = HeaderValue::from_static(counted.source.as_str());
                headers.insert("x-berthd-token-count", source);
                id_header(headers, id);
                record.answered(Usage::default());
                response
            }
            Err(refusal) => {
                record.refused(&refusal);
                answer::discard(body).await;
                answer::refused_in(what.form(), &refusal, id)
            }
        }
    }

    async fn count_only<B>(
        self: &Arc<Self>,
        what: Counting,
        headers: &HeaderMap,
        body: &mut B,
        record: &mut Record,
    ) -> Result<(String, Counted), Refusal>
    where
        B: http_body::Body<Data = Bytes> + Unpin,
    {
        let live = self.live.load_full();
        let found = match what {
            Counting::Tokenize => live.keys.find(headers),
            Counting::Messages => live.keys.find_either(headers),
        };
        let tenant = self.admit(&live, found, record)?;
        answer::check_media(headers)?;
        let (limits, limit) = (&live.settings.limits, live.settings.listen.body_limit);
        let room = answer::body_room(&self.bodies, BODIES_MAX_KIB, headers, limits, limit).await?;
        let body = answer::read_body(body, headers, limits, limit).await?;
        let studied = if body.len() <= INLINE_MAX {
            let studied = self.study_count(&live, &tenant, what, &body)?;
            drop(room);
            studied
        } else {
            self.in_turn(room, || {
                let (broker, live, tenant) =
                    (Arc::clone(self), Arc::clone(&live), Arc::clone(&tenant));
                move || {
                    // Moved in, so that it is gone before its room is given back.
                    let body = body;
                    broker.study_count(&live, &tenant, what, &body)
                }
            })
            .await?
        };
        record.model = Some(studied.entry.model.clone());
        let model = &studied.entry.model;
        let server = self.trust.who_counts(model, self.dispatch.usable_of(model));
        let told = studied.shaped.count(server).await?;
        record.counted = Some(told.counted);
        if let Some(reason) = told.reason {
            tracing::debug!(reason, "counted without the model's files");
        }
        Ok((studied.answer(what, told.counted)?, told.counted))
    }

    /// The CPU work: parse, authorise, turn, count.
    fn study_count(
        &self,
        live: &Live,
        tenant: &Tenant,
        what: Counting,
        body: &[u8],
    ) -> Result<Studied, Refusal> {
        let body = api::open(body)?;
        let model = match body.get("model") {
            Some(Value::String(name)) if !name.is_empty() => ModelName::from(name.as_str()),
            None | Some(Value::Null | Value::String(_)) => {
                let remedy = "Name one of the models that GET /v1/models lists.";
                return Err(fields::missing("model", remedy));
            }
            Some(_) => {
                let text = "'model' must be a string.";
                return Err(Refusal::new(Reason::InvalidType, text).param("model"));
            }
        };
        let entry = self.authorise(tenant, &model)?;
        let counter = self.counter_of(live, &entry.model);
        let believed = |counter: &Counter| self.trust.believes(&entry.model, counter);
        let judged = counter.as_deref().map(|counter| (counter, believed(counter)));
        // How a Messages request is turned depends on the server, also where only it can count.
        let kind = || {
            let servers = self.dispatch.usable_of(&entry.model);
            self.trust.who_counts(&entry.model, servers).map(|server| server.kind())
        };
        let (shaped, ids) = match what {
            Counting::Messages => {
                let kind = kind().unwrap_or(ServerKind::OpenAi);
                let name = entry.model.as_str();
                (Shaped::of(Shape::Messages, kind, name, judged, &body)?, None)
            }
            Counting::Tokenize => Tokenize::read(body)?.study(entry.model.as_str(), judged)?,
        };
        Ok(Studied { entry, counter, shaped, ids })
    }
}

// === impl Studied ===

impl Studied {
    fn answer(&self, what: Counting, counted: Counted) -> Result<String, Refusal> {
        let text = match what {
            Counting::Messages => {
                serde_json::to_string(&Counts { input_tokens: counted.tokens.get() })
            }
            Counting::Tokenize => {
                if counted.source == Source::Estimate {
                    return Err(refusal(&self.why_not()));
                }
                let of_files =
                    || self.counter.as_ref().and_then(|counter| counter.files().context_window());
                serde_json::to_string(&Tokenized {
                    count: counted.tokens.get(),
                    max_model_len: self.entry.context_window.or_else(of_files).map(Tokens::get),
                    tokens: self.ids.as_ref().map(|ids| &*ids.ids),
                    token_strs: self.ids.as_ref().and_then(|ids| ids.texts.as_deref()),
                    source: counted.source.as_str(),
                })
            }
        };
        text.map_err(|error| Refusal::new(Reason::Internal, error.to_string()))
    }

    fn why_not(&self) -> CountError {
        let told = match &self.shaped.local {
            Some(Err(error)) => format!("{error}, and no server of the model could count"),
            _ => {
                "the model's files are not on this host, and no server of it could count".to_owned()
            }
        };
        CountError::NotAvailable(told)
    }
}

// === impl Tokenize ===

/// vLLM's request: a prompt, or a conversation.
struct Tokenize {
    plain: Plain,
    add_special: bool,
    words: bool,
}

impl Tokenize {
    fn read(mut body: Map<String, Value>) -> Result<Self, Refusal> {
        let has = |field: &str| body.get(field).is_some_and(|value| !value.is_null());
        let (chat, prompt) = (has("messages"), has("prompt"));
        if chat == prompt {
            let text = "Send either 'prompt', a text, or 'messages', a conversation.";
            return Err(Refusal::new(Reason::MissingField, text).param("prompt"));
        }
        let flag = |field: &'static str| match body.get(field) {
            None | Some(Value::Null) => Ok(None),
            Some(Value::Bool(flag)) => Ok(Some(*flag)),
            Some(_) => {
                let text = format!("'{field}' must be true or false.");
                Err(Refusal::new(Reason::InvalidType, text).param(field))
            }
        };
        let words = flag("return_token_strs")?.unwrap_or(false);
        let add_special = flag("add_special_tokens")?.unwrap_or(prompt);
        let generation = flag("add_generation_prompt")?;
        let continued = flag("continue_final_message")?.unwrap_or(false);
        if continued && generation == Some(true) {
            let text = "'continue_final_message' and 'add_generation_prompt' cannot both be true.";
            return Err(Refusal::new(Reason::OutOfRange, text).param("continue_final_message"));
        }
        if has("chat_template") {
            let text = "Only the operator may set a chat template. Leave 'chat_template' out.";
            return Err(Refusal::new(Reason::OutOfRange, text).param("chat_template"));
        }
        if prompt && !body.get("prompt").is_some_and(Value::is_string) {
            let text = "'prompt' must be a string.";
            return Err(Refusal::new(Reason::InvalidType, text).param("prompt"));
        }
        let route = if chat { Route::Chat } else { Route::Completions };
        let kept: &[&str] = if chat {
            &[
                "messages",
                "tools",
                "add_generation_prompt",
                "continue_final_message",
                "chat_template_kwargs",
            ]
        } else {
            &["prompt"]
        };
        body.retain(|field, value| kept.contains(&field.as_str()) && !value.is_null());
        if route == Route::Chat {
            check_messages(&body)?;
        }
        Ok(Self { plain: Plain::Request(route, body), add_special, words })
    }

    /// Counts by making the ids, which the answer holds.
    fn study(
        self,
        model: &str,
        counter: Option<(&Counter, bool)>,
    ) -> Result<(Shaped, Option<Ids>), Refusal> {
        let believed = counter.is_none_or(|(_, believed)| believed);
        let counter = counter.map(|(counter, _)| counter);
        let Plain::Request(route, body) = &self.plain else {
            return Err(Refusal::new(Reason::Internal, "a request was expected"));
        };
        let usual = self.add_special == (*route == Route::Completions);
        let made = counter.map(|counter| {
            if usual {
                counter.plain_ids(&self.plain)
            } else {
                let text = counter.plain_text(&self.plain)?;
                counter.files().text_ids(&text, self.add_special)
            }
        });
        let local = made.as_ref().map(|made| match made {
            Ok(ids) => Ok(Tokens(ids.len() as u64)),
            Err(error) => Err(error.clone()),
        });
        let ids = match (made, counter) {
            // Ids that the server may not see are worse than none.
            (Some(Ok(ids)), Some(counter)) if believed => Some(self.written(&ids, counter)?),
            _ => None,
        };
        let weight = body.values().map(|value| api::weigh(value).bytes()).sum();
        // A server would count with its own idea of special tokens.
        let told = "add_special_tokens is not the usual, and only the model's files can follow it";
        let plain = if usual { Ok(self.plain) } else { Err(told.to_owned()) };
        let shaped = Shaped { plain, local, believed, weight, outgoing: None };
        Ok((shaped.with_outgoing(model)?, ids))
    }

    fn written(&self, ids: &[u32], counter: &Counter) -> Result<Ids, Refusal> {
        let most = if self.words { WORDS_MAX } else { IDS_MAX };
        if ids.len() > most {
            let text =
                format!("These are {} tokens; one answer holds {most}. Send less.", ids.len());
            return Err(Refusal::new(Reason::OutOfRange, text).param("prompt"));
        }
        let raw = |written: serde_json::Result<Box<RawValue>>| {
            written.map_err(|error| Refusal::new(Reason::Internal, error.to_string()))
        };
        let words = self.words.then(|| counter.files().token_texts(ids));
        let texts = words.map(|words| raw(to_raw_value(&words))).transpose()?;
        Ok(Ids { ids: raw(to_raw_value(ids))?, texts })
    }
}

/// The checks of the chat route, on the conversation alone.
fn check_messages(body: &Map<String, Value>) -> Result<(), Refusal> {
    let text = Value::Object(body.clone()).to_string();
    crate::api::check_messages(&json::open(text.as_bytes())?)
}
