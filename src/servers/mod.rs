//! Model servers: one trait, one adapter per kind, a registry, and the loop that watches them.
//!
//! An adapter carries requests and reports what a server is like. It never decides who may use it.

pub mod body;
pub mod discover;
#[cfg(feature = "candle")]
pub mod embedded;
pub mod exchange;
pub mod exposition;
pub mod http;
pub mod kv_events;
pub mod llamacpp;
pub mod ollama;
pub mod openai;
pub mod probe;
pub mod remote;
pub mod sglang;
#[cfg(test)]
mod staged;
pub mod vllm;

pub use crate::api::Route;
pub use body::AnswerBody;

use crate::{
    ids::{RequestId, ServerId, Tier},
    snapshot::{ServerKind, ServerState},
    units::Tokens,
};
use ::http::{HeaderMap, StatusCode};
use bytes::Bytes;
use std::{future::Future, pin::Pin};

/// A boxed future, for the object-safe trait below.
pub type Later<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// One call to a server.
#[derive(Clone, Debug)]
pub struct Call {
    /// Where it goes.
    pub route: Route,
    /// The JSON body, complete.
    pub body: Bytes,
    /// Our id, sent as `X-Request-Id`.
    pub request_id: RequestId,
}

/// The head of a server's answer, and its body as it comes.
#[derive(Debug)]
pub struct Answer {
    /// HTTP status.
    pub status: StatusCode,
    /// Response headers.
    pub headers: HeaderMap,
    /// The body. Dropping it aborts the call: the connection is closed, the sequence is stopped.
    pub body: AnswerBody,
}

/// What can go wrong between us and a server.
#[derive(Debug, thiserror::Error)]
pub enum CallError {
    /// No connection could be made. The server has seen nothing; any retry is safe.
    #[error("cannot connect: {0}")]
    Connect(String),
    /// The connection broke. The server may have seen the request.
    #[error("connection broke: {0}")]
    Broken(String),
    /// The server refused before starting (an embedded server whose places are taken).
    #[error("refused: {0}")]
    Refused(String),
}

/// What a server said when it was asked to count.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Told {
    /// Its count.
    Tokens(Tokens),
    /// It read the request and would not have it, as it would not if it were to answer it.
    Refused,
    /// It has no way to count this.
    Absent,
    /// It did not answer as it should; the text says how. Another time it may.
    Failed(String),
}

impl Told {
    /// The count, if there is one.
    pub const fn tokens(&self) -> Option<Tokens> {
        match self {
            Self::Tokens(tokens) => Some(*tokens),
            Self::Refused | Self::Absent | Self::Failed(_) => None,
        }
    }
}

/// A model server, whatever its kind.
pub trait ModelServer: Send + Sync + 'static {
    /// Its name.
    fn id(&self) -> &ServerId;

    /// Which program it is.
    fn kind(&self) -> ServerKind;

    /// Host and port that it listens on; `None` for one inside this process.
    fn address(&self) -> Option<(&str, u16)> {
        None
    }

    /// Whether a call of this route should bring token ids instead of text.
    fn takes_ids(&self, _route: Route) -> bool {
        false
    }

    /// The priority that its own scheduler should go by for a tier; `None` where it has none, or is not to be
    /// told.
    fn priority(&self, _tier: Tier) -> Option<i64> {
        None
    }

    /// Whether it computes one prompt after another, so that prompts are better handed to it one after another, too.
    /// Not so where an address stands for several engines, or where each answer has a thread of its own.
    fn is_paced(&self) -> bool {
        matches!(self.kind(), ServerKind::Vllm | ServerKind::Sglang | ServerKind::LlamaCpp)
    }

    /// Sends one call and waits for the head of the answer.
    ///
    /// Dropping the future aborts the call at once.
    fn send(&self, call: Call) -> Later<'_, Result<Answer, CallError>>;

    /// Asks the server how it is. `last` is the previous state, for what need not be asked again.
    /// Never fails: a server that does not answer is `Health::Down`.
    fn observe<'a>(&'a self, last: &'a ServerState) -> Later<'a, ServerState>;

    /// Asks the server to count the input tokens of a call, where its kind can. `None`: it cannot.
    fn count(&self, route: Route, body: Bytes) -> Later<'_, Option<Tokens>>;

    /// As [`ModelServer::count`], and says why there is no number. By the server's most faithful way, which
    /// may take longer than its quickest.
    fn count_told(&self, route: Route, body: Bytes) -> Later<'_, Told> {
        Box::pin(async move { self.count(route, body).await.map_or(Told::Absent, Told::Tokens) })
    }
}
