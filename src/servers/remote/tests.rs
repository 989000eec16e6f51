//! Servers of each kind, read over real connections from staged pages.

use super::*;
use crate::{
    servers::{sglang, staged::Staged, vllm},
    snapshot::{Health, Load, Loading, ServedModel},
    units::Bytes as Size,
};

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
    let fixed = Capacity { kv_tokens: Some(Tokens(9)), max_running: Some(3), block_tokens: None };
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
    let body = Bytes::from_static(br#"{"model":"m","messages":[{"role":"user","content":"a"}]}"#);
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
