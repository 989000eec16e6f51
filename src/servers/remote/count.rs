//! Counts by the server itself.

use super::{Remote, Route, Told};
use crate::{
    servers::{
        llamacpp,
        openai::{self, Count},
        sglang, vllm,
    },
    snapshot::ServerKind,
    units::Tokens,
};
use bytes::Bytes;
use std::sync::PoisonError;

/// Largest answer to a count: the servers send every token id along.
const COUNT_MAX: usize = 32 << 20;

impl Remote {
    pub(super) async fn ask_count(&self, route: Route, body: Bytes) -> Told {
        type Read = fn(&[u8]) -> Option<Tokens>;
        let (count, read): (_, Read) = match self.kind {
            ServerKind::Vllm => (vllm::count(route, &body), vllm::counted),
            ServerKind::Sglang => (sglang::count(route, &body), sglang::counted),
            ServerKind::LlamaCpp => (llamacpp::count(route, &body), llamacpp::counted),
            ServerKind::Ollama | ServerKind::OpenAi | ServerKind::Embedded => {
                (None, openai::counted)
            }
        };
        let (path, bodies) = match count {
            None => return Told::Absent,
            Some(Count::Known(tokens)) => return Told::Tokens(tokens),
            Some(Count::Ask { path, bodies }) => (path, bodies),
        };
        let mut total = Tokens::ZERO;
        for body in bodies {
            match self.post_count(path, body, read).await {
                Told::Tokens(tokens) => total = total.plus(tokens),
                other => return other,
            }
        }
        Told::Tokens(total)
    }

    /// By the page that runs the chat route's own code with the whole body, where there is one.
    pub(super) async fn ask_faithfully(&self, route: Route, body: Bytes) -> Told {
        if self.seen.lock().unwrap_or_else(PoisonError::into_inner).sleeping {
            // Asking would wake it.
            return Told::Failed("the model sleeps".to_owned());
        }
        if self.kind == ServerKind::Vllm && route == Route::Chat {
            let told = self.post_count(vllm::RENDER, body.clone(), vllm::rendered).await;
            if matches!(told, Told::Tokens(_)) {
                return told;
            }
        }
        self.ask_count(route, body).await
    }

    async fn post_count(&self, path: &str, body: Bytes, read: fn(&[u8]) -> Option<Tokens>) -> Told {
        let (status, page) = match self.client.post(path, body, self.limit, COUNT_MAX).await {
            Ok(answer) => answer,
            Err(error) => return Told::Failed(error.to_string()),
        };
        match status.as_u16() {
            200 => read(&page)
                .map_or_else(|| Told::Failed(format!("{path} gave no count")), Told::Tokens),
            404 | 405 | 501 => Told::Absent,
            // llama.cpp answers 500 where the template itself refuses.
            400 | 413 | 422 | 500 => Told::Refused,
            status => Told::Failed(format!("{path} answers {status}")),
        }
    }
}
