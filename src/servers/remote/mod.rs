//! A model server behind HTTP, of any kind: carries requests, counts, and reports what it says.
//!
//! What each kind's pages mean is in the file of that kind; the files here decide which pages to read.

mod count;
mod round;
#[cfg(test)]
mod tests;

use super::{
    Answer, Call, CallError, Later, ModelServer, Route, Told,
    http::{Client, ClientLimits},
};
use crate::{
    config::{Place, Server},
    ids::{ModelName, ServerId, Tier},
    snapshot::{Capacity, ServerKind, ServerState},
    units::Tokens,
};
use bytes::Bytes;
use std::{sync::Mutex, time::Duration};

/// The model list of every kind.
pub(super) const MODELS: &str = "/v1/models";

/// Largest page taken from a server. A metrics page with many adapters has a few hundred KiB.
pub(super) const PAGE_MAX: usize = 8 << 20;

/// A server on the other end of HTTP connections.
#[derive(Debug)]
pub struct Remote {
    id: ServerId,
    kind: ServerKind,
    client: Client,
    /// The operator's word on models; empty takes the server's.
    names: Vec<ModelName>,
    /// The operator wants it to get token ids.
    send_ids: bool,
    /// The operator wants it to be told how urgent requests are.
    priority: bool,
    /// Whether the operator says that it computes one prompt after another.
    paced: Option<bool>,
    /// The operator's word on capacity; `None` takes the server's.
    fixed: Capacity,
    /// Time for the health page, and again for all other pages of a round.
    limit: Duration,
    /// Guards what earlier rounds learned; copied out and in, never held across an await.
    seen: Mutex<Seen>,
}

/// What earlier rounds learned about this server. Forgotten when it is not up: what comes back may be
/// another version.
#[derive(Clone, Copy, Debug, Default)]
struct Seen {
    rounds: u32,
    no_ready: bool,
    no_loads: bool,
    no_slots: bool,
    no_metrics: bool,
    sleeping: bool,
}

impl Remote {
    /// An adapter for a configured server. `limit` is the probe limit. `None`: the server is not
    /// behind HTTP. Whether connections are kept after streams follows from the kind.
    pub fn new(server: &Server, limit: Duration, limits: ClientLimits) -> Option<Self> {
        let Place::Http { host, port, prefix } = &server.place else { return None };
        let key = server.api_key.clone();
        let keep_after_stream = matches!(server.kind, ServerKind::Vllm | ServerKind::Sglang);
        let limits = ClientLimits { keep_after_stream, ..limits };
        Some(Self {
            id: server.name.clone(),
            kind: server.kind,
            client: Client::new(host.clone(), *port, prefix.clone(), key, limits),
            names: server.models.clone(),
            send_ids: server.send_token_ids,
            priority: server.priority,
            paced: server.paced,
            fixed: Capacity {
                kv_tokens: server.kv_tokens,
                max_running: server.max_running,
                block_tokens: None,
            },
            limit,
            seen: Mutex::new(Seen::default()),
        })
    }
}

impl ModelServer for Remote {
    fn id(&self) -> &ServerId {
        &self.id
    }

    fn kind(&self) -> ServerKind {
        self.kind
    }

    fn address(&self) -> Option<(&str, u16)> {
        Some(self.client.address())
    }

    fn is_paced(&self) -> bool {
        let usual =
            matches!(self.kind, ServerKind::Vllm | ServerKind::Sglang | ServerKind::LlamaCpp);
        self.paced.unwrap_or(usual)
    }

    fn priority(&self, tier: Tier) -> Option<i64> {
        // More urgent tiers have the smaller number here.
        let rank = tier as i64;
        match self.kind {
            _ if !self.priority => None,
            ServerKind::Vllm => Some(rank),
            ServerKind::Sglang => Some(-rank),
            _ => None,
        }
    }

    fn takes_ids(&self, route: Route) -> bool {
        // vLLM and llama.cpp have no field for them on the chat route.
        let takes = match self.kind {
            ServerKind::Sglang => route != Route::Embeddings,
            ServerKind::Vllm | ServerKind::LlamaCpp => route == Route::Completions,
            ServerKind::Ollama | ServerKind::OpenAi | ServerKind::Embedded => false,
        };
        self.send_ids && takes
    }

    fn send(&self, call: Call) -> Later<'_, Result<Answer, CallError>> {
        Box::pin(self.client.send(call))
    }

    fn observe<'a>(&'a self, last: &'a ServerState) -> Later<'a, ServerState> {
        Box::pin(self.round(last))
    }

    fn count(&self, route: Route, body: Bytes) -> Later<'_, Option<Tokens>> {
        Box::pin(async move { self.ask_count(route, body).await.tokens() })
    }

    fn count_told(&self, route: Route, body: Bytes) -> Later<'_, Told> {
        Box::pin(self.ask_faithfully(route, body))
    }
}
