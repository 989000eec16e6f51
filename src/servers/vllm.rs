//! vLLM: what its metrics page says, and how it counts tokens.

use super::{
    Route,
    exposition::{self, Sample},
    openai::{self, Count},
};
use crate::{
    snapshot::{BLOCK_TOKENS_MAX, Capacity, Load},
    units::Tokens,
};
use serde_json::{Map, Value};

/// Answers 200 while the engine lives, 503 when it died.
pub const HEALTH: &str = "/health";
/// Always on.
pub const METRICS: &str = "/metrics";
/// `{"version": "..."}`.
pub const VERSION: &str = "/version";
/// Counts tokens, of a prompt or of a conversation. Open even when an API key guards `/v1`.
pub const TOKENIZE: &str = "/tokenize";
/// Takes a whole chat request and gives what the engine would get for it. Newer versions have it.
pub const RENDER: &str = "/v1/chat/completions/render";

/// Every metric of vLLM starts so.
pub const METRIC_PREFIX: &str = "vllm:";

/// What the engine counts at each of its steps. Requests that ended are not among them: one that its caller
/// gave up is counted by the front end, whether or not the engine lives.
const STEPS: [&str; 4] = [
    "vllm:prompt_tokens_total",
    "vllm:generation_tokens_total",
    "vllm:iteration_tokens_total_count",
    "vllm:iteration_tokens_total_sum",
];

/// How busy the engines are, together. The page is read once: it is long.
pub fn load(page: &str) -> Load {
    let mut load = Load::default();
    let mut shares = Mean::default();
    let mut old_shares = Mean::default();
    let mut steps = Vec::new();
    for sample in exposition::samples(page) {
        let add =
            |to: Option<u32>| Some(to.unwrap_or(0).saturating_add(openai::whole(sample.value)));
        match sample.name {
            "vllm:num_requests_running" => load.running = add(load.running),
            "vllm:num_requests_waiting" => load.waiting = add(load.waiting),
            "vllm:kv_cache_usage_perc" => shares.add(sample.value),
            // The name before the V1 engine dropped the other device.
            "vllm:gpu_cache_usage_perc" => old_shares.add(sample.value),
            name if STEPS.contains(&name) => steps.push(openai::counted_up(sample.value)),
            _ => {}
        }
    }
    load.kv_used_ratio = shares.get().or_else(|| old_shares.get()).map(openai::share);
    load.progress = openai::folded(steps);
    load
}

/// A mean: engines of one server have caches of the same size.
#[derive(Default)]
struct Mean(f64, u32);

impl Mean {
    fn add(&mut self, value: f64) {
        self.0 += value;
        self.1 += 1;
    }

    fn get(&self) -> Option<f64> {
        (self.1 > 0).then(|| self.0 / f64::from(self.1))
    }
}

/// What the engines' KV caches hold together. vLLM does not tell how many sequences it runs at most.
pub fn capacity(page: &str) -> Capacity {
    let kv_tokens = exposition::samples(page)
        .filter(|sample| sample.name == "vllm:cache_config_info")
        .filter_map(|sample| cache_size(&sample))
        .reduce(Tokens::plus);
    Capacity { kv_tokens, max_running: None, block_tokens: block_tokens(page) }
}

/// The size of a block, if all engines have the same.
fn block_tokens(page: &str) -> Option<u32> {
    let mut sizes = exposition::samples(page)
        .filter(|sample| sample.name == "vllm:cache_config_info")
        .map(|sample| sample.label_number("block_size"));
    let size = sizes.next().flatten()?;
    let fits = (1.0..=f64::from(BLOCK_TOKENS_MAX)).contains(&size) && size.fract() == 0.0;
    (fits && sizes.all(|other| other == Some(size))).then(|| openai::whole(size))
}

/// `kv_cache_size_tokens` is right for every model; blocks times their size only where all layers
/// share one kind of cache, but older versions tell nothing better.
fn cache_size(info: &Sample<'_>) -> Option<Tokens> {
    let blocks = || Some(info.label_number("num_gpu_blocks")? * info.label_number("block_size")?);
    let size = info.label_number("kv_cache_size_tokens").or_else(blocks)?;
    (size >= 1.0).then_some(Tokens(size as u64))
}

/// Whether the engine gave up its weights or its cache (`/sleep`). It still answers 200 to `/health`.
pub fn asleep(page: &str) -> bool {
    exposition::samples(page)
        .filter(|sample| sample.name == "vllm:engine_sleep_state" && sample.value > 0.0)
        .filter_map(|sample| sample.label("sleep_state"))
        .any(|state| state != "awake")
}

/// How to count the input of a call. `None`: it would not be exact.
///
/// The chat form runs the code of the chat route, but does not take `documents` and
/// `reasoning_effort`; both reach the template as variables, so they are handed over as such.
pub fn count(route: Route, body: &[u8]) -> Option<Count> {
    let mut call = openai::object(body)?;
    if call.contains_key("truncate_prompt_tokens") {
        return None;
    }
    match route {
        Route::Chat => Some(Count::Ask {
            path: TOKENIZE,
            bodies: vec![openai::posted(&Value::Object(chat_body(&mut call)?))],
        }),
        Route::Completions => count_text(&call, "prompt"),
        Route::Embeddings => count_text(&call, "input"),
    }
}

fn count_text(call: &Map<String, Value>, field: &str) -> Option<Count> {
    let ask = |text: &str| openai::tokenize_body(call, text);
    openai::count_prompt(call.get(field)?, TOKENIZE, ask)
}

fn chat_body(call: &mut Map<String, Value>) -> Option<Map<String, Value>> {
    const SAME: [&str; 8] = [
        "model",
        "messages",
        "tools",
        "add_generation_prompt",
        "continue_final_message",
        "add_special_tokens",
        "media_io_kwargs",
        "mm_processor_kwargs",
    ];
    let mut body = Map::new();
    openai::carry(call, &mut body, &SAME);
    body.get("messages")?.as_array()?;
    let mut variables = match call.remove("chat_template_kwargs") {
        None | Some(Value::Null) => Map::new(),
        Some(Value::Object(variables)) => variables,
        Some(_) => return None,
    };
    openai::carry(call, &mut variables, &["documents", "reasoning_effort"]);
    if let Some(effort) = variables.get("reasoning_effort") {
        let thinks = effort.as_str() != Some("none");
        variables.entry("enable_thinking").or_insert(Value::Bool(thinks));
    }
    if !variables.is_empty() {
        body.insert("chat_template_kwargs".to_owned(), Value::Object(variables));
    }
    Some(body)
}

/// The count in the answer.
pub fn counted(answer: &[u8]) -> Option<Tokens> {
    openai::counted(answer)
}

/// The count in what [`RENDER`] answers: the ids that the engine would get, in the request for it, or (some
/// versions) in a list of prompts beside the conversation.
pub fn rendered(answer: &[u8]) -> Option<Tokens> {
    const LEVELS_MAX: u32 = 3;
    fn ids(value: &Value, levels: u32) -> Option<u64> {
        match value {
            Value::Object(fields) => {
                let named = ["token_ids", "prompt_token_ids"];
                let list = named.iter().find_map(|name| fields.get(*name)?.as_array());
                list.map(|list| list.len() as u64)
            }
            Value::Array(items) if levels > 0 => {
                items.iter().find_map(|item| ids(item, levels.saturating_sub(1)))
            }
            _ => None,
        }
    }
    ids(&serde_json::from_slice(answer).ok()?, LEVELS_MAX).map(Tokens)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    const PAGE: &str = r#"
# TYPE vllm:num_requests_running gauge
vllm:num_requests_running{engine="0",model_name="m"} 3.0
vllm:num_requests_running{engine="1",model_name="m"} 5.0
vllm:num_requests_waiting{engine="0",model_name="m"} 0.0
vllm:num_requests_waiting{engine="1",model_name="m"} 2.0
vllm:num_requests_waiting_by_reason{engine="1",model_name="m",reason="capacity"} 2.0
vllm:kv_cache_usage_perc{engine="0",model_name="m"} 0.25
vllm:kv_cache_usage_perc{engine="1",model_name="m"} 0.75
vllm:engine_sleep_state{engine="0",model_name="m",sleep_state="awake"} 1.0
vllm:engine_sleep_state{engine="0",model_name="m",sleep_state="weights_offloaded"} 0.0
vllm:cache_config_info{block_size="16",engine="0",kv_cache_size_tokens="100000",num_gpu_blocks="9"} 1.0
vllm:cache_config_info{block_size="16",engine="1",kv_cache_size_tokens="None",num_gpu_blocks="1000"} 1.0
"#;

    #[test]
    fn engines_add_up() {
        let load = load(PAGE);
        assert_eq!((load.running, load.waiting), (Some(8), Some(2)));
        assert_eq!(load.kv_used_ratio, Some(0.5));
        assert_eq!(capacity(PAGE).kv_tokens, Some(Tokens(100_000 + 16_000)));
        assert_eq!(capacity(PAGE).block_tokens, Some(16));
        let mixed = PAGE.replacen("block_size=\"16\"", "block_size=\"32\"", 1);
        assert_eq!(capacity(&mixed).block_tokens, None, "engines differ");
        assert!(!asleep(PAGE));
    }

    #[test]
    fn a_rendered_request_tells_its_ids_wherever_they_stand() {
        let count = |page: Value| rendered(page.to_string().as_bytes());
        assert_eq!(count(json!({"token_ids": [1, 2, 3], "model": "m"})), Some(Tokens(3)));
        let listed = json!([[{"role": "user", "content": "a"}], [{"prompt_token_ids": [7, 8]}]]);
        assert_eq!(count(listed), Some(Tokens(2)));
        for odd in [json!({}), json!([]), json!([[[[[{"token_ids": [1]}]]]]]), json!("x")] {
            assert_eq!(count(odd), None);
        }
    }

    #[test]
    fn an_old_page_is_still_read() {
        let page = "vllm:gpu_cache_usage_perc{model_name=\"m\"} 0.4\n\
                    vllm:cache_config_info{block_size=\"16\",num_gpu_blocks=\"None\"} 1\n";
        assert_eq!(load(page).kv_used_ratio, Some(0.4));
        assert_eq!(load(page).running, None);
        let blocks = Capacity { block_tokens: Some(16), ..Capacity::default() };
        assert_eq!(capacity(page), blocks);
    }

    #[test]
    fn a_sleeping_engine_is_noticed() {
        let page = "vllm:engine_sleep_state{sleep_state=\"awake\"} 0\n\
                    vllm:engine_sleep_state{sleep_state=\"discard_all\"} 1\n";
        assert!(asleep(page));
    }

    fn asked(route: Route, body: Value) -> Value {
        match count(route, body.to_string().as_bytes()) {
            Some(Count::Ask { path, bodies }) => {
                assert_eq!((path, bodies.len()), (TOKENIZE, 1));
                serde_json::from_slice(&bodies[0]).unwrap()
            }
            other => panic!("not asked: {other:?}"),
        }
    }

    #[test]
    fn a_conversation_is_counted_by_its_own_fields_only() {
        let call = json!({"model": "m", "messages": [{"role": "user", "content": "hi"}],
            "tools": [{"type": "function"}], "tool_choice": "none", "stream": true,
            "max_tokens": 5, "continue_final_message": null, "chat_template_kwargs": {"a": 1},
            "reasoning_effort": "low"});
        let body = asked(Route::Chat, call);
        assert_eq!(
            body,
            json!({"model": "m", "messages": [{"role": "user", "content": "hi"}],
                "tools": [{"type": "function"}],
                "chat_template_kwargs": {"a": 1, "reasoning_effort": "low", "enable_thinking": true}})
        );
    }

    #[test]
    fn callers_thinking_switch_stays() {
        let call = json!({"messages": [], "reasoning_effort": "none",
            "chat_template_kwargs": {"enable_thinking": true}});
        assert_eq!(
            asked(Route::Chat, call)["chat_template_kwargs"]["enable_thinking"],
            json!(true)
        );
        let call = json!({"messages": [], "reasoning_effort": "none"});
        assert_eq!(
            asked(Route::Chat, call)["chat_template_kwargs"]["enable_thinking"],
            json!(false)
        );
    }

    #[test]
    fn a_prompt_is_counted_with_special_tokens_unless_told_otherwise() {
        let body = asked(Route::Completions, json!({"model": "m", "prompt": "hi", "n": 2}));
        assert_eq!(body, json!({"model": "m", "prompt": "hi", "add_special_tokens": true}));
        let call = json!({"prompt": "hi", "add_special_tokens": false});
        assert_eq!(asked(Route::Completions, call)["add_special_tokens"], json!(false));
        assert_eq!(asked(Route::Embeddings, json!({"input": "hi"}))["prompt"], json!("hi"));
    }

    #[test]
    fn what_would_not_be_exact_is_not_counted() {
        let cut = json!({"prompt": "hi", "truncate_prompt_tokens": 4}).to_string();
        assert_eq!(count(Route::Completions, cut.as_bytes()), None);
        assert_eq!(count(Route::Chat, br#"{"messages":"hi"}"#), None);
        assert_eq!(count(Route::Chat, b"not json"), None);
        assert_eq!(count(Route::Completions, b"{}"), None);
    }

    #[test]
    fn the_answer_holds_the_count() {
        let answer = br#"{"count":3,"max_model_len":8192,"tokens":[1,2,3],"token_strs":null}"#;
        assert_eq!(counted(answer), Some(Tokens(3)));
        assert_eq!(counted(br#"{"error":{"message":"no"}}"#), None);
    }
}
