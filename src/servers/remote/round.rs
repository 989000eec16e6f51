//! What a server says of itself: its health, and the pages of its kind that are due.

use super::{MODELS, PAGE_MAX, Remote, Seen};
use crate::{
    servers::{llamacpp, ollama, openai, sglang, vllm},
    snapshot::{Capacity, Health, Load, Reported, ServedModel, ServerKind, ServerState},
};
use bytes::Bytes;
use http::StatusCode;
use std::{sync::PoisonError, time::Duration};
use tokio::time::Instant;

/// What seldom changes (capacity, version) is asked again after so many rounds.
const FIXED_ROUNDS: u32 = 60;

/// And after so many while it is not known: its page may have been late, or switched on.
const MISSING_ROUNDS: u32 = 5;

/// SGLang's `/health` runs a token and looks for it once a second.
const GENERATING_HEALTH: Duration = Duration::from_secs(5);

/// A page that was asked for.
enum Page {
    Here(Bytes),
    /// The server does not have it, now or ever.
    Absent,
    /// It would not have our key.
    Locked(StatusCode),
    /// It did not come this time.
    Missing,
}

/// What the model list says of each model; what another page said of all stays.
fn take_reported(state: &mut ServerState, told: Vec<Reported>) {
    state.reported.retain(|reported| reported.model.is_none());
    state.reported.extend(told);
}

/// What a page says of all models.
fn take_source(state: &mut ServerState, source: Option<String>) {
    state.reported.retain(|reported| reported.model.is_some());
    state.reported.extend(source.map(|source| Reported { model: None, source }));
}

impl Remote {
    pub(super) async fn round(&self, last: &ServerState) -> ServerState {
        let mut seen = *self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        // What a round cannot read stays as it was, but for the load: an old load is a wrong one.
        let mut state = ServerState { load: Load::default(), ..last.clone() };
        let (health, answered) = self.health(&mut seen, &mut state).await;
        state.health = health;
        if state.health == Health::Up {
            self.read(&mut seen, &mut state).await;
        }
        if answered {
            state.read_at = Some(Instant::now());
        }
        if state.health != Health::Up {
            seen = Seen::default();
        }
        *self.seen.lock().unwrap_or_else(PoisonError::into_inner) = seen;
        state.capacity = known(self.fixed.clone(), state.capacity);
        if state.models.is_empty() {
            // Callers learn "no server for it now" instead of "no such model".
            state.models = openai::named(&self.names, &[]);
        }
        state
    }

    // --- health ---

    /// Its health, and whether it answered at all.
    async fn health(&self, seen: &mut Seen, state: &mut ServerState) -> (Health, bool) {
        let ready = !seen.no_ready;
        let (path, limit) = match self.kind {
            ServerKind::Vllm => (vllm::HEALTH, self.limit),
            ServerKind::Sglang if ready => (sglang::READY, self.limit),
            ServerKind::Sglang => (sglang::HEALTH, self.limit.max(GENERATING_HEALTH)),
            ServerKind::LlamaCpp => (llamacpp::HEALTH, self.limit),
            ServerKind::Ollama => (ollama::VERSION, self.limit),
            ServerKind::OpenAi | ServerKind::Embedded => (MODELS, self.limit),
        };
        let (status, page) = match self.client.get(path, limit, PAGE_MAX).await {
            Ok(answer) => answer,
            Err(error) => return (Health::Down(error.to_string()), false),
        };
        if status == StatusCode::NOT_FOUND && self.kind == ServerKind::Sglang && ready {
            seen.no_ready = true;
            return Box::pin(self.health(seen, state)).await;
        }
        if path == MODELS && status == StatusCode::OK {
            return match openai::models(&page) {
                Some(listed) => {
                    take_reported(state, openai::reported(&page));
                    self.take_models(state, listed);
                    (Health::Up, true)
                }
                None => (Health::Down(format!("{MODELS} is no model list")), true),
            };
        }
        (told(self.kind, path, status, &page), true)
    }

    // --- the other pages ---

    async fn read(&self, seen: &mut Seen, state: &mut ServerState) {
        let until = Instant::now() + self.limit;
        let before = state.models.clone();
        if self.kind != ServerKind::OpenAi {
            match self.page(MODELS, until).await {
                Page::Here(page) => {
                    if let Some(listed) = openai::models(&page) {
                        take_reported(state, openai::reported(&page));
                        self.take_models(state, listed);
                    }
                }
                Page::Locked(status) => {
                    state.health = locked(status);
                    return;
                }
                Page::Absent | Page::Missing => {}
            }
        }
        let missing = state.capacity.kv_tokens.is_none() || state.version.is_none();
        let every = if missing { MISSING_ROUNDS } else { FIXED_ROUNDS };
        let due = seen.rounds.is_multiple_of(every);
        seen.rounds = seen.rounds.wrapping_add(1);
        match self.kind {
            ServerKind::Vllm => self.read_vllm(state, due, until).await,
            ServerKind::Sglang => self.read_sglang(seen, state, due, until).await,
            ServerKind::LlamaCpp => self.read_llamacpp(seen, state, due, until).await,
            ServerKind::Ollama => self.read_ollama(state, &before, due, until).await,
            ServerKind::OpenAi | ServerKind::Embedded => {}
        }
    }

    async fn read_vllm(&self, state: &mut ServerState, due: bool, until: Instant) {
        if let Page::Here(page) = self.page(vllm::METRICS, until).await {
            let page = String::from_utf8_lossy(&page);
            state.load = vllm::load(&page);
            if due {
                state.capacity = known(vllm::capacity(&page), state.capacity.clone());
            }
            if vllm::asleep(&page) {
                state.health = Health::Starting("asleep".to_owned());
            }
        }
        if due && let Page::Here(page) = self.page(vllm::VERSION, until).await {
            state.version = openai::text(&page, "/version").or(state.version.take());
        }
    }

    async fn read_sglang(
        &self,
        seen: &mut Seen,
        state: &mut ServerState,
        due: bool,
        until: Instant,
    ) {
        if !seen.no_loads {
            match self.page(sglang::LOADS, until).await {
                Page::Here(page) => {
                    if let Some((load, capacity)) = sglang::loads(&page) {
                        state.load = load;
                        state.capacity = known(capacity, state.capacity.clone());
                    }
                }
                // An admin key may guard it while requests need none.
                Page::Absent | Page::Locked(_) => seen.no_loads = true,
                Page::Missing => {}
            }
        }
        if seen.no_loads
            && let Page::Here(page) = self.page(sglang::METRICS, until).await
        {
            state.load = sglang::load(&String::from_utf8_lossy(&page));
        }
        for path in sglang::INFO {
            if !due {
                break;
            }
            if let Page::Here(page) = self.page(path, until).await
                && let Some(sglang::Info { version, capacity, source }) = sglang::info(&page)
            {
                take_source(state, source);
                state.version = version.or(state.version.take());
                // The loads page knows better, where there is one.
                state.capacity = if seen.no_loads {
                    known(capacity, state.capacity.clone())
                } else {
                    known(state.capacity.clone(), capacity)
                };
                break;
            }
        }
    }

    async fn read_llamacpp(
        &self,
        seen: &mut Seen,
        state: &mut ServerState,
        due: bool,
        until: Instant,
    ) {
        if due || seen.sleeping {
            match self.page(llamacpp::PROPS, until).await {
                Page::Here(page) => {
                    if let Some(props) = llamacpp::props(&page) {
                        seen.sleeping = props.sleeping;
                        take_source(state, props.model_path);
                        state.version = props.version.or(state.version.take());
                        state.capacity = known(props.capacity, state.capacity.clone());
                    }
                }
                // Its model list is open to all, so this is where a wrong key shows.
                Page::Locked(status) => {
                    state.health = locked(status);
                    return;
                }
                Page::Absent | Page::Missing => {}
            }
        }
        if seen.sleeping {
            // Asking for its slots would wake it.
            state.load = Load {
                running: Some(0),
                waiting: Some(0),
                kv_used_ratio: Some(0.0),
                progress: None,
            };
            return;
        }
        if !seen.no_slots {
            match self.page(llamacpp::SLOTS, until).await {
                Page::Here(page) => {
                    let room = self.fixed.kv_tokens.or(state.capacity.kv_tokens);
                    state.load =
                        llamacpp::slots(&page).map(|slots| slots.load(room)).unwrap_or_default();
                }
                Page::Absent => seen.no_slots = true,
                Page::Locked(_) | Page::Missing => {}
            }
        }
        if state.load.waiting.is_none() && !seen.no_metrics {
            match self.page(llamacpp::METRICS, until).await {
                Page::Here(page) => {
                    let told = llamacpp::load(&String::from_utf8_lossy(&page));
                    state.load.running = state.load.running.or(told.running);
                    state.load.waiting = told.waiting;
                    state.load.kv_used_ratio = state.load.kv_used_ratio.or(told.kv_used_ratio);
                    // One source for all rounds: the slots where they tell, whoever was asked now.
                    state.load.progress = state.load.progress.or(told.progress);
                }
                Page::Absent => seen.no_metrics = true,
                Page::Locked(_) | Page::Missing => {}
            }
        }
    }

    async fn read_ollama(
        &self,
        state: &mut ServerState,
        before: &[ServedModel],
        due: bool,
        until: Instant,
    ) {
        // A model that was pulled just now is asked for at once.
        let told = |model: &ServedModel| before.iter().any(|known| known.name == model.name);
        let mut disk = None;
        if (due || !state.models.iter().all(told))
            && let Page::Here(page) = self.page(ollama::TAGS, until).await
        {
            disk = ollama::on_disk(&page);
        }
        let loaded = match self.page(ollama::PS, until).await {
            Page::Here(page) => ollama::loaded(&page),
            Page::Absent | Page::Locked(_) | Page::Missing => None,
        };
        ollama::tell_loading(&mut state.models, before, disk.as_deref(), loaded.as_deref());
        if due && let Page::Here(page) = self.page(ollama::VERSION, until).await {
            state.version = openai::text(&page, "/version").or(state.version.take());
        }
    }

    async fn page(&self, path: &str, until: Instant) -> Page {
        let limit = until.saturating_duration_since(Instant::now());
        match self.client.get(path, limit, PAGE_MAX).await {
            Ok((StatusCode::OK, page)) => Page::Here(page),
            Ok((
                StatusCode::NOT_FOUND
                | StatusCode::METHOD_NOT_ALLOWED
                | StatusCode::NOT_IMPLEMENTED,
                _,
            )) => Page::Absent,
            Ok((status @ (StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN), _)) => {
                Page::Locked(status)
            }
            Ok(_) | Err(_) => Page::Missing,
        }
    }

    fn take_models(&self, state: &mut ServerState, listed: Vec<ServedModel>) {
        state.models =
            if self.names.is_empty() { listed } else { openai::named(&self.names, &listed) };
    }
}

/// The first word on each, else the second.
fn known(first: Capacity, second: Capacity) -> Capacity {
    Capacity {
        kv_tokens: first.kv_tokens.or(second.kv_tokens),
        max_running: first.max_running.or(second.max_running),
        block_tokens: first.block_tokens.or(second.block_tokens),
    }
}

/// What the status of a health page means.
fn told(kind: ServerKind, path: &str, status: StatusCode, page: &[u8]) -> Health {
    match (status, kind) {
        (StatusCode::OK, _) => Health::Up,
        (StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN, _) => locked(status),
        // It binds its port before its engine lives, and says 503 when that has died.
        (StatusCode::SERVICE_UNAVAILABLE, ServerKind::Vllm) => {
            Health::Down("the engine is dead (503)".to_owned())
        }
        // Starting, or its scheduler has been silent for 20 s: it may come back by itself.
        (StatusCode::SERVICE_UNAVAILABLE, ServerKind::Sglang) => {
            Health::Starting("not ready (503)".to_owned())
        }
        (StatusCode::SERVICE_UNAVAILABLE, ServerKind::LlamaCpp) if llamacpp::loading(page) => {
            Health::Starting("loading the model".to_owned())
        }
        _ => Health::Down(format!("{path} answers {}", status.as_u16())),
    }
}

fn locked(status: StatusCode) -> Health {
    Health::Down(format!("refuses our API key ({})", status.as_u16()))
}
