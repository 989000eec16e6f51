//! A model server behind HTTP, of any kind: carries requests, counts, and reports what it says.
//!
//! What each kind's pages mean is in the file of that kind; this one decides which pages to read.

use super::{
    Answer, Call, CallError, Later, ModelServer, Route, Told,
    http::{Client, ClientLimits},
    llamacpp, ollama,
    openai::{self, Count},
    sglang, vllm,
};
use crate::{
    config::{Place, Server},
    ids::{ModelName, ServerId, Tier},
    snapshot::{Capacity, Health, Load, Reported, ServedModel, ServerKind, ServerState},
    units::Tokens,
};
use bytes::Bytes;
use http::StatusCode;
use std::{
    sync::{Mutex, PoisonError},
    time::Duration,
};
use tokio::time::Instant;

/// The model list of every kind.
pub(super) const MODELS: &str = "/v1/models";

/// Largest page taken from a server. A metrics page with many adapters has a few hundred KiB.
pub(super) const PAGE_MAX: usize = 8 << 20;

/// Largest answer to a count: the servers send every token id along.
const COUNT_MAX: usize = 32 << 20;

/// What seldom changes (capacity, version) is asked again after so many rounds.
const FIXED_ROUNDS: u32 = 60;

/// And after so many while it is not known: its page may have been late, or switched on.
const MISSING_ROUNDS: u32 = 5;

/// SGLang's `/health` runs a token and looks for it once a second.
const GENERATING_HEALTH: Duration = Duration::from_secs(5);

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

    async fn round(&self, last: &ServerState) -> ServerState {
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

    // --- counting ---

    async fn ask_count(&self, route: Route, body: Bytes) -> Told {
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
    async fn ask_faithfully(&self, route: Route, body: Bytes) -> Told {
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{servers::staged::Staged, snapshot::Loading, units::Bytes as Size};

    const LIMIT: Duration = Duration::from_secs(5);
    const LIST: &str = r#"{"data":[{"id":"m","max_model_len":4096}]}"#;
    const VLLM_PAGE: &str = "vllm:num_requests_running{engine=\"0\"} 2\n\
        vllm:num_requests_waiting{engine=\"0\"} 1\n\
        vllm:kv_cache_usage_perc{engine=\"0\"} 0.5\n\
        vllm:cache_config_info{kv_cache_size_tokens=\"70000\"} 1\n";

    fn server(kind: ServerKind, port: u16) -> Server {
        Server {
            name: "s".into(),
            kind,
            place: Place::Http { host: "127.0.0.1".into(), port, prefix: String::new() },
            api_key: None,
            models: Vec::new(),
            kv_tokens: None,
            max_running: None,
            send_token_ids: false,
            priority: false,
            paced: None,
            gpus: Vec::new(),
            memory_grows: None,
            memory_per_token: None,
            kv_events: None,
        }
    }

    fn remote(server: &Server) -> Remote {
        let limits = ClientLimits { connect: LIMIT, idle_max: 2, keep_after_stream: false };
        Remote::new(server, LIMIT, limits).unwrap()
    }

    fn unknown(kind: ServerKind) -> ServerState {
        ServerState::unknown("s".into(), kind)
    }

    fn model(name: &str, window: Option<u64>) -> ServedModel {
        ServedModel::ready(name.into(), window.map(Tokens))
    }

    async fn vllm() -> Staged {
        Staged::start(&[
            ("/health", 200, ""),
            ("/v1/models", 200, LIST),
            ("/metrics", 200, VLLM_PAGE),
            ("/version", 200, r#"{"version":"0.33.0"}"#),
        ])
        .await
    }

    #[tokio::test]
    async fn a_vllm_round_reads_everything_and_later_rounds_less() {
        let staged = vllm().await;
        let remote = remote(&server(ServerKind::Vllm, staged.port));
        let state = remote.observe(&unknown(ServerKind::Vllm)).await;
        assert_eq!(state.health, Health::Up);
        assert_eq!(state.models, [model("m", Some(4096))]);
        let load =
            Load { running: Some(2), waiting: Some(1), kv_used_ratio: Some(0.5), progress: None };
        assert_eq!(state.load, load);
        assert_eq!(state.capacity.kv_tokens, Some(Tokens(70_000)));
        assert_eq!(state.version.as_deref(), Some("0.33.0"));
        assert!(state.read_at.is_some());

        staged.asked();
        let again = remote.observe(&state).await;
        assert_eq!(again.version, state.version);
        assert_eq!(staged.asked(), ["GET /health", "GET /v1/models", "GET /metrics"]);
    }

    #[tokio::test]
    async fn what_a_server_loaded_is_kept_and_renewed() {
        let list = |root: &str| format!(r#"{{"data":[{{"id":"m","root":"{root}"}}]}}"#);
        let staged = vllm().await;
        staged.page("/v1/models", 200, &list("org/a"));
        let vllm = remote(&server(ServerKind::Vllm, staged.port));
        let first = vllm.observe(&unknown(ServerKind::Vllm)).await;
        assert_eq!(first.reported(&"m".into()), Some("org/a"));
        staged.page("/v1/models", 500, "oops");
        let kept = vllm.observe(&first).await;
        assert_eq!(kept.reported(&"m".into()), Some("org/a"));
        staged.page("/v1/models", 200, &list("org/b"));
        let renewed = vllm.observe(&kept).await;
        assert_eq!(renewed.reported(&"m".into()), Some("org/b"));
        assert_eq!(renewed.reported.len(), 1);

        let props = r#"{"total_slots":1,"model_path":"/m/a.gguf"}"#;
        let pages = [("/health", 200, "{}"), ("/v1/models", 200, LIST), ("/props", 200, props)];
        let staged = Staged::start(&pages).await;
        let llama = remote(&server(ServerKind::LlamaCpp, staged.port));
        let state = llama.observe(&unknown(ServerKind::LlamaCpp)).await;
        assert_eq!(state.reported(&"m".into()), Some("/m/a.gguf"));
        let again = llama.observe(&state).await;
        assert_eq!(again.reported, state.reported);
    }

    #[tokio::test]
    async fn a_missing_page_takes_only_the_load_with_it() {
        let staged = vllm().await;
        let remote = remote(&server(ServerKind::Vllm, staged.port));
        let good = remote.observe(&unknown(ServerKind::Vllm)).await;
        staged.no_page("/metrics");
        staged.page("/v1/models", 500, "oops");
        let state = remote.observe(&good).await;
        assert_eq!(state.health, Health::Up);
        assert_eq!(state.models, good.models);
        assert_eq!(state.capacity, good.capacity);
        assert_eq!(state.load, Load::default());
    }

    #[tokio::test]
    async fn a_dead_server_keeps_its_models_and_its_date() {
        let staged = vllm().await;
        let remote = remote(&server(ServerKind::Vllm, staged.port));
        let good = remote.observe(&unknown(ServerKind::Vllm)).await;
        staged.page("/health", 503, "");
        let dead = remote.observe(&good).await;
        assert_eq!(dead.health, Health::Down("the engine is dead (503)".into()));
        assert_eq!(dead.models, good.models);
        drop(staged);
        let gone = remote.observe(&dead).await;
        assert_eq!(gone.health.as_str(), "down");
        assert_eq!(gone.read_at, dead.read_at, "nobody answered, so the date stays");
        assert_eq!(gone.capacity, good.capacity);
    }

    #[tokio::test]
    async fn facts_are_read_again_after_a_restart() {
        let staged = vllm().await;
        let remote = remote(&server(ServerKind::Vllm, staged.port));
        let good = remote.observe(&unknown(ServerKind::Vllm)).await;
        staged.page("/health", 503, "");
        let dead = remote.observe(&good).await;
        staged.page("/health", 200, "");
        staged.page("/version", 200, r#"{"version":"0.34.0"}"#);
        let back = remote.observe(&dead).await;
        assert_eq!((back.health, back.version.as_deref()), (Health::Up, Some("0.34.0")));
    }

    #[tokio::test]
    async fn the_operators_word_wins() {
        let staged = vllm().await;
        let mut told = server(ServerKind::Vllm, staged.port);
        told.models = vec!["mine".into()];
        told.kv_tokens = Some(Tokens(9));
        told.max_running = Some(3);
        let state = remote(&told).observe(&unknown(ServerKind::Vllm)).await;
        assert_eq!(state.models, [model("mine", Some(4096))]);
        let fixed =
            Capacity { kv_tokens: Some(Tokens(9)), max_running: Some(3), block_tokens: None };
        assert_eq!(state.capacity, fixed);
        staged.page("/health", 503, "");
        let state = remote(&told).observe(&unknown(ServerKind::Vllm)).await;
        assert_eq!(state.models, [model("mine", None)], "named models are known before it is up");
    }

    #[tokio::test]
    async fn a_refused_key_is_not_up() {
        let staged = vllm().await;
        staged.page("/v1/models", 401, r#"{"error":"Unauthorized"}"#);
        let remote = remote(&server(ServerKind::Vllm, staged.port));
        let state = remote.observe(&unknown(ServerKind::Vllm)).await;
        assert_eq!(state.health, Health::Down("refuses our API key (401)".into()));
    }

    #[tokio::test]
    async fn sglang_is_asked_for_ready_and_loads() {
        let loads = r#"{"loads":[{"num_running_reqs":1,"num_waiting_reqs":0,"token_usage":0.1,
            "max_total_num_tokens":500,"max_running_requests":8}]}"#;
        let info = r#"{"version":"0.5.23","max_total_num_tokens":1}"#;
        let staged = Staged::start(&[
            ("/ready", 503, ""),
            ("/v1/models", 200, LIST),
            (sglang::LOADS, 200, loads),
            ("/server_info", 200, info),
        ])
        .await;
        let remote = remote(&server(ServerKind::Sglang, staged.port));
        let starting = remote.observe(&unknown(ServerKind::Sglang)).await;
        assert_eq!(starting.health, Health::Starting("not ready (503)".into()));
        staged.page("/ready", 200, "");
        let state = remote.observe(&starting).await;
        assert_eq!((state.health, state.load.running), (Health::Up, Some(1)));
        let capacity =
            Capacity { kv_tokens: Some(Tokens(500)), max_running: Some(8), block_tokens: None };
        assert_eq!(state.capacity, capacity);
        assert_eq!(state.version.as_deref(), Some("0.5.23"));
    }

    #[tokio::test]
    async fn an_old_sglang_is_read_by_its_old_pages() {
        let staged = Staged::start(&[
            ("/health", 200, ""),
            ("/v1/models", 200, LIST),
            ("/metrics", 200, "sglang:num_running_reqs{tp_rank=\"0\"} 4\n"),
            ("/get_server_info", 200, r#"{"version":"0.4.0","max_total_num_tokens":700}"#),
        ])
        .await;
        let remote = remote(&server(ServerKind::Sglang, staged.port));
        let state = remote.observe(&unknown(ServerKind::Sglang)).await;
        assert_eq!((&state.health, state.load.running), (&Health::Up, Some(4)));
        assert_eq!(state.capacity.kv_tokens, Some(Tokens(700)));
        staged.asked();
        remote.observe(&state).await;
        assert_eq!(staged.asked(), ["GET /health", "GET /v1/models", "GET /metrics"]);
    }

    #[tokio::test]
    async fn servers_tell_where_the_files_are() {
        let list = r#"{"data":[{"id":"m","root":"/models/m","max_model_len":4096}]}"#;
        let staged = Staged::start(&[("/health", 200, ""), ("/v1/models", 200, list)]).await;
        let mut told = server(ServerKind::Vllm, staged.port);
        let state = remote(&told).observe(&unknown(ServerKind::Vllm)).await;
        assert_eq!(state.reported(&"m".into()), Some("/models/m"));
        told.models = vec!["mine".into()];
        let state = remote(&told).observe(&unknown(ServerKind::Vllm)).await;
        assert_eq!(state.reported(&"mine".into()), Some("/models/m"));

        let props = r#"{"default_generation_settings":{"n_ctx":1000},"total_slots":2,
            "model_path":"/models/a.gguf"}"#;
        let pages = [("/health", 200, "{}"), ("/v1/models", 200, LIST), ("/props", 200, props)];
        let staged = Staged::start(&pages).await;
        let remote = remote(&server(ServerKind::LlamaCpp, staged.port));
        let mut state = unknown(ServerKind::LlamaCpp);
        for _ in 0..3 {
            // The page is not read in every round; what it told stays.
            state = remote.observe(&state).await;
            assert_eq!(state.reported(&"m".into()), Some("/models/a.gguf"));
        }
    }

    const PROPS: &str = r#"{"default_generation_settings":{"n_ctx":1000},"total_slots":2,
        "build_info":"b1","is_sleeping":false}"#;

    #[tokio::test]
    async fn llama_cpp_metrics_are_scraped_only_when_all_slots_are_busy() {
        let slot = |busy| format!(r#"{{"is_processing":{busy},"n_prompt_tokens":250}}"#);
        let one = format!("[{},{}]", slot(true), slot(false));
        let two = format!("[{},{}]", slot(true), slot(true));
        let staged = Staged::start(&[
            ("/health", 200, r#"{"status":"ok"}"#),
            ("/v1/models", 200, LIST),
            ("/props", 200, PROPS),
            ("/slots", 200, &one),
            ("/metrics", 200, "llamacpp:requests_processing 2\nllamacpp:requests_deferred 7\n"),
        ])
        .await;
        let remote = remote(&server(ServerKind::LlamaCpp, staged.port));
        let state = remote.observe(&unknown(ServerKind::LlamaCpp)).await;
        let progress = state.load.progress;
        let load = Load { running: Some(1), waiting: Some(0), kv_used_ratio: Some(0.25), progress };
        assert_eq!(state.load, load);
        assert_eq!(state.capacity.max_running, Some(2));
        assert!(!staged.asked().contains(&"GET /metrics".to_owned()));
        staged.page("/slots", 200, &two);
        let load = Load { running: Some(2), waiting: Some(7), kv_used_ratio: Some(0.5), progress };
        assert_eq!(remote.observe(&state).await.load, load);
    }

    #[tokio::test]
    async fn ollama_tells_what_is_loaded_and_what_loading_takes() {
        let staged = Staged::start(&[
            ("/api/version", 200, r#"{"version":"0.33.0"}"#),
            ("/v1/models", 200, r#"{"object":"list","data":[{"id":"a"},{"id":"b"}]}"#),
            ("/api/tags", 200, r#"{"models":[{"name":"a","size":10},{"name":"b","size":100}]}"#),
            ("/api/ps", 200, r#"{"models":[{"name":"a","size_vram":14,"context_length":4096}]}"#),
        ])
        .await;
        let remote = remote(&server(ServerKind::Ollama, staged.port));
        let state = remote.observe(&unknown(ServerKind::Ollama)).await;
        assert_eq!((&state.health, state.version.as_deref()), (&Health::Up, Some("0.33.0")));
        let of = |name: &str, window, memory, loaded| ServedModel {
            loading: Some(Loading { memory: Size(memory), loaded }),
            ..model(name, window)
        };
        assert_eq!(state.models, [of("a", Some(4096), 14, true), of("b", None, 120, false)]);
        assert_eq!(state.load, Load::default());
        staged.asked();
        staged.page("/api/ps", 200, r#"{"models":null}"#);
        let next = remote.observe(&state).await;
        assert_eq!(next.models, [of("a", Some(4096), 14, false), of("b", None, 120, false)]);
        assert_eq!(staged.asked(), ["GET /api/version", "GET /v1/models", "GET /api/ps"]);
        staged.no_page("/api/version");
        assert_eq!(remote.observe(&next).await.health.as_str(), "down");
    }

    #[tokio::test]
    async fn a_sleeping_llama_cpp_is_not_woken() {
        let asleep = PROPS.replace("false", "true");
        let staged = Staged::start(&[
            ("/health", 200, "{}"),
            ("/v1/models", 200, LIST),
            ("/props", 200, &asleep),
            ("/slots", 200, r#"[{"is_processing":true}]"#),
        ])
        .await;
        let remote = remote(&server(ServerKind::LlamaCpp, staged.port));
        let mut state = unknown(ServerKind::LlamaCpp);
        for _ in 0..2 {
            state = remote.observe(&state).await;
            assert_eq!((&state.health, state.load.running), (&Health::Up, Some(0)));
        }
        assert!(!staged.asked().contains(&"GET /slots".to_owned()));
        let told = remote.count_told(Route::Chat, Bytes::from_static(b"{}")).await;
        assert_eq!(told, Told::Failed("the model sleeps".into()));
        assert!(!staged.asked().iter().any(|asked| asked.starts_with("POST")));
        staged.page("/props", 200, PROPS);
        assert_eq!(remote.observe(&state).await.load.running, Some(1));
    }

    #[tokio::test]
    async fn a_wrong_key_shows_behind_llama_cpps_open_list() {
        let refused = r#"{"error":{"code":401,"type":"authentication_error"}}"#;
        let pages = [("/health", 200, "{}"), ("/v1/models", 200, LIST), ("/props", 401, refused)];
        let staged = Staged::start(&pages).await;
        let remote = remote(&server(ServerKind::LlamaCpp, staged.port));
        let state = remote.observe(&unknown(ServerKind::LlamaCpp)).await;
        assert_eq!(state.health, Health::Down("refuses our API key (401)".into()));
    }

    #[tokio::test]
    async fn a_loading_llama_cpp_is_starting() {
        let page = r#"{"error":{"message":"Loading model","type":"unavailable_error","code":503}}"#;
        let staged = Staged::start(&[("/health", 503, page)]).await;
        let remote = remote(&server(ServerKind::LlamaCpp, staged.port));
        let state = remote.observe(&unknown(ServerKind::LlamaCpp)).await;
        assert_eq!(state.health, Health::Starting("loading the model".into()));
        staged.page("/health", 503, "{}");
        assert_eq!(remote.observe(&state).await.health.as_str(), "down");
    }

    #[tokio::test]
    async fn a_generic_server_is_up_when_it_lists_models() {
        let staged = Staged::start(&[("/v1/models", 200, r#"{"data":[{"id":"m"}]}"#)]).await;
        let remote = remote(&server(ServerKind::OpenAi, staged.port));
        let state = remote.observe(&unknown(ServerKind::OpenAi)).await;
        assert_eq!((&state.health, &state.load), (&Health::Up, &Load::default()));
        assert_eq!(state.models, [model("m", None)]);
        assert_eq!(staged.asked(), ["GET /v1/models"]);
        staged.page("/v1/models", 200, "<html>");
        assert_eq!(remote.observe(&state).await.health.as_str(), "down");
    }

    #[tokio::test]
    async fn counts_of_several_prompts_add_up() {
        let staged = Staged::start(&[("/tokenize", 200, r#"{"count":3,"tokens":[1,2,3]}"#)]).await;
        let vllm = remote(&server(ServerKind::Vllm, staged.port));
        let body = Bytes::from_static(br#"{"model":"m","prompt":["a","b"]}"#);
        assert_eq!(vllm.count(Route::Completions, body.clone()).await, Some(Tokens(6)));
        assert_eq!(
            staged.asked(),
            [
                r#"POST /tokenize {"prompt":"a","add_special_tokens":true,"model":"m"}"#,
                r#"POST /tokenize {"prompt":"b","add_special_tokens":true,"model":"m"}"#,
            ]
        );
        staged.page("/tokenize", 400, r#"{"error":{"message":"no"}}"#);
        assert_eq!(vllm.count(Route::Completions, body.clone()).await, None);
        let generic = remote(&server(ServerKind::OpenAi, staged.port));
        assert_eq!(generic.count(Route::Completions, body).await, None);
    }

    #[tokio::test]
    async fn why_there_is_no_count_is_told() {
        let staged = Staged::start(&[]).await;
        let vllm = remote(&server(ServerKind::Vllm, staged.port));
        let body =
            Bytes::from_static(br#"{"model":"m","messages":[{"role":"user","content":"a"}]}"#);
        assert_eq!(vllm.count_told(Route::Chat, body.clone()).await, Told::Absent);
        for (status, page, told) in [
            (200, r#"{"count":3}"#, Told::Tokens(Tokens(3))),
            (200, "{}", Told::Failed("/tokenize gave no count".into())),
            (400, "{}", Told::Refused),
            (500, "{}", Told::Refused),
            (503, "{}", Told::Failed("/tokenize answers 503".into())),
            (401, "{}", Told::Failed("/tokenize answers 401".into())),
        ] {
            staged.page("/tokenize", status, page);
            assert_eq!(vllm.count_told(Route::Chat, body.clone()).await, told, "{status}");
        }
        let generic = remote(&server(ServerKind::OpenAi, staged.port));
        assert_eq!(generic.count_told(Route::Chat, body.clone()).await, Told::Absent);
        drop(staged);
        let gone = vllm.count_told(Route::Chat, body).await;
        assert!(matches!(gone, Told::Failed(_)), "{gone:?}");
    }

    /// `/tokenize` leaves out what the chat route does with some fields; the page that renders does not.
    #[tokio::test]
    async fn a_vllm_that_renders_is_asked_for_that() {
        let page = r#"{"request_id":"r","token_ids":[1,2,3,4],"sampling_params":{}}"#;
        let staged =
            Staged::start(&[(vllm::RENDER, 200, page), ("/tokenize", 200, r#"{"count":3}"#)]).await;
        let vllm = remote(&server(ServerKind::Vllm, staged.port));
        let body = Bytes::from_static(br#"{"model":"m","messages":[]}"#);
        assert_eq!(vllm.count_told(Route::Chat, body.clone()).await, Told::Tokens(Tokens(4)));
        assert_eq!(vllm.count(Route::Chat, body.clone()).await, Some(Tokens(3)), "the quick way");
        staged.page(vllm::RENDER, 503, "");
        assert_eq!(vllm.count_told(Route::Chat, body).await, Told::Tokens(Tokens(3)));
    }

    #[tokio::test]
    async fn only_a_server_behind_http_has_an_adapter() {
        let mut inside = server(ServerKind::Embedded, 1);
        inside.place = Place::Folder("/models/x".into());
        let limits = ClientLimits { connect: LIMIT, idle_max: 1, keep_after_stream: false };
        assert!(Remote::new(&inside, LIMIT, limits).is_none());
    }
}
