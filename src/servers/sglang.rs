//! SGLang: load and capacity from its own endpoints, and how it counts tokens.

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

/// 200 or 503 at once, without generating.
pub const READY: &str = "/ready";
/// For versions without `/ready`. May run one token, and takes a second or more.
pub const HEALTH: &str = "/health";
/// Load and capacity of each data-parallel rank; needs no switch.
pub const LOADS: &str = "/v1/loads?include=core";
/// Only with `--enable-metrics`.
pub const METRICS: &str = "/metrics";
/// Version, capacity and the model's place; the second is the spelling of older versions. It also holds
/// secrets, so nothing of it is ever logged or kept but these.
pub const INFO: [&str; 2] = ["/server_info", "/get_server_info"];
/// Counts tokens.
pub const TOKENIZE: &str = "/tokenize";

/// Every metric of SGLang starts so.
pub const METRIC_PREFIX: &str = "sglang:";

/// What changes with each step of the scheduler, which alone gives tokens their room.
const STEPS: [&str; 3] = ["num_used_tokens", "num_total_tokens", "num_active_tokens"];

/// Counters of tokens on the metrics page.
const COUNTERS: [&str; 3] =
    ["sglang:prompt_tokens_total", "sglang:generation_tokens_total", "sglang:num_used_tokens"];

/// Reads `/v1/loads`: all ranks together. `None`: this is not such a page.
pub fn loads(page: &[u8]) -> Option<(Load, Capacity)> {
    let page: Value = serde_json::from_slice(page).ok()?;
    let ranks = page.get("loads").unwrap_or(&page).as_array()?;
    let sum = |name: &str| {
        let found = ranks.iter().filter_map(|rank| rank.get(name)?.as_u64());
        found.reduce(u64::saturating_add)
    };
    let fits = |count: u64| u32::try_from(count).unwrap_or(u32::MAX);
    let load = Load {
        running: sum("num_running_reqs").map(fits),
        waiting: sum("num_waiting_reqs").map(fits),
        kv_used_ratio: used_share(ranks),
        progress: openai::folded(ranks.iter().flat_map(|rank| {
            STEPS.iter().filter_map(|name| rank.get(*name)?.as_f64()).map(openai::counted_up)
        })),
    };
    let capacity = Capacity {
        kv_tokens: sum("max_total_num_tokens").filter(|&room| room > 0).map(Tokens),
        max_running: sum("max_running_requests").filter(|&most| most > 0).map(fits),
        block_tokens: None,
    };
    let told = !openai::told_nothing(&load) || capacity != Capacity::default();
    told.then_some((load, capacity))
}

/// The share in use of all ranks' caches. `token_usage` leaves out what could be evicted at once,
/// so it is preferred to the number of used tokens.
fn used_share(ranks: &[Value]) -> Option<f64> {
    let (mut used, mut whole) = (0.0, 0.0);
    for rank in ranks {
        let room = rank.get("max_total_num_tokens").and_then(Value::as_f64);
        let tokens = rank.get("num_used_tokens").and_then(Value::as_f64);
        let told = rank.get("token_usage").and_then(Value::as_f64);
        let weight = room.filter(|&room| room > 0.0).unwrap_or(1.0);
        let from_tokens = || tokens.zip(room).map(|(used, room)| used / room);
        let share = told.or_else(from_tokens).filter(|share| share.is_finite())?;
        used += share * weight;
        whole += weight;
    }
    (whole > 0.0).then(|| openai::share(used / whole))
}

/// Reads the metrics page, for versions without `/v1/loads`.
pub fn load(page: &str) -> Load {
    // Tensor- and pipeline-parallel ranks tell of the same requests: only the first may count.
    let leads = |sample: &Sample<'_>| {
        ["tp_rank", "pp_rank"].iter().all(|rank| sample.label(rank).is_none_or(|rank| rank == "0"))
    };
    let named = |name: &'static str| {
        exposition::samples(page).filter(move |sample| sample.name == name && leads(sample))
    };
    let sum = |name| named(name).map(|sample| sample.value).reduce(|a, b| a + b);
    let shares = named("sglang:token_usage").map(|sample| sample.value);
    let count = shares.clone().count();
    let kv_used_ratio = (count > 0).then(|| openai::share(shares.sum::<f64>() / count as f64));
    Load {
        running: sum("sglang:num_running_reqs").map(openai::whole),
        waiting: sum("sglang:num_queue_reqs").map(openai::whole),
        kv_used_ratio,
        progress: openai::folded(
            COUNTERS.into_iter().flat_map(named).map(|sample| openai::counted_up(sample.value)),
        ),
    }
}

/// What `/server_info` tells.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Info {
    /// Version text.
    pub version: Option<String>,
    /// What it can hold.
    pub capacity: Capacity,
    /// Where its tokenizer comes from: a path or a name in a hub.
    pub source: Option<String>,
}

/// Reads `/server_info`. `None`: this is not such a page.
pub fn info(page: &[u8]) -> Option<Info> {
    let page: Value = serde_json::from_slice(page).ok()?;
    let room = page.get("max_total_num_tokens").and_then(openai::positive);
    let states = page.get("internal_states").and_then(Value::as_array);
    if room.is_none() && states.is_none() {
        return None;
    }
    // The page speaks of one rank; requests spread over all.
    let ranks = page.get("dp_size").and_then(openai::positive).unwrap_or(1);
    let per_rank = page.pointer("/internal_states/0/effective_max_running_requests_per_dp");
    let most = per_rank.and_then(openai::positive).map(|most| most.saturating_mul(ranks));
    let capacity = Capacity {
        kv_tokens: room.map(|room| Tokens(room.saturating_mul(ranks))),
        max_running: most.map(|most| u32::try_from(most).unwrap_or(u32::MAX)),
        block_tokens: page
            .get("page_size")
            .and_then(openai::positive)
            .and_then(|size| u32::try_from(size).ok())
            .filter(|size| *size <= BLOCK_TOKENS_MAX),
    };
    let version = page.get("version").and_then(Value::as_str).map(str::to_owned);
    let source = ["/tokenizer_path", "/model_path"];
    let source = source.iter().find_map(|place| openai::text_at(&page, place));
    Some(Info { version, capacity, source })
}

/// How to count the input of a call. `None`: it would not be exact.
///
/// Versions whose `/tokenize` takes no conversation answer with an error, which reads as "cannot".
pub fn count(route: Route, body: &[u8]) -> Option<Count> {
    let mut call = openai::object(body)?;
    let field = match route {
        Route::Chat => {
            let body = openai::posted(&Value::Object(chat_body(&mut call)?));
            return Some(Count::Ask { path: TOKENIZE, bodies: vec![body] });
        }
        Route::Completions => "prompt",
        Route::Embeddings => "input",
    };
    let ask = |text: &str| openai::tokenize_body(&call, text);
    openai::count_prompt(call.get(field)?, TOKENIZE, ask)
}

fn chat_body(call: &mut Map<String, Value>) -> Option<Map<String, Value>> {
    const SAME: [&str; 5] =
        ["model", "messages", "continue_final_message", "chat_template_kwargs", "reasoning_effort"];
    let mut body = Map::new();
    openai::carry(call, &mut body, &SAME);
    body.get("messages")?.as_array()?;
    let tools = call.remove("tools");
    if let Some(tools) = tools.and_then(|tools| rendered(tools, call.get("tool_choice"))) {
        body.insert("tools".to_owned(), tools);
    }
    Some(body)
}

/// The tools that reach the template: none when the choice is `none`, one when it names one.
fn rendered(tools: Value, choice: Option<&Value>) -> Option<Value> {
    if tools.is_null() || choice.and_then(Value::as_str) == Some("none") {
        return None;
    }
    match (tools, choice.and_then(|choice| choice.pointer("/function/name"))) {
        (Value::Array(mut tools), Some(name)) => {
            tools.retain(|tool| tool.pointer("/function/name") == Some(name));
            Some(Value::Array(tools))
        }
        (tools, _) => Some(tools),
    }
}

/// The count in the answer.
pub fn counted(answer: &[u8]) -> Option<Tokens> {
    openai::counted(answer)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn ranks_add_up_and_weigh_by_their_room() {
        let page = br#"{"timestamp":"2026-11-01T00:00:00+00:00","version":"0.5.23","loads":[
            {"dp_rank":0,"num_running_reqs":2,"num_waiting_reqs":1,"num_used_tokens":900,
             "max_total_num_tokens":1000,"max_running_requests":32,"token_usage":0.5},
            {"dp_rank":1,"num_running_reqs":4,"num_waiting_reqs":0,"num_used_tokens":0,
             "max_total_num_tokens":3000,"max_running_requests":32,"token_usage":0.1}]}"#;
        let (load, capacity) = loads(page).unwrap();
        assert_eq!((load.running, load.waiting), (Some(6), Some(1)));
        assert!((load.kv_used_ratio.unwrap() - 0.2).abs() < 1e-9);
        let whole =
            Capacity { kv_tokens: Some(Tokens(4000)), max_running: Some(64), block_tokens: None };
        assert_eq!(capacity, whole);
    }

    #[test]
    fn a_page_of_another_kind_is_not_a_load() {
        for page in [&b"{}"[..], b"[]", b"{\"loads\":[]}", b"{\"loads\":[{\"x\":1}]}", b"nope"] {
            assert_eq!(loads(page), None);
        }
        let bare = br#"[{"num_running_reqs":1,"num_used_tokens":5,"max_total_num_tokens":10}]"#;
        assert_eq!(loads(bare).unwrap().0.kv_used_ratio, Some(0.5));
    }

    #[test]
    fn parallel_ranks_are_not_counted_twice() {
        let page = r#"
sglang:num_running_reqs{engine_type="unified",model_name="m",tp_rank="0",dp_rank="0"} 3
sglang:num_running_reqs{engine_type="unified",model_name="m",tp_rank="1",dp_rank="0"} 3
sglang:num_running_reqs{engine_type="unified",model_name="m",tp_rank="0",dp_rank="1"} 4
sglang:num_queue_reqs{model_name="m",tp_rank="0"} 1
sglang:token_usage{model_name="m",tp_rank="0",dp_rank="0"} 0.2
sglang:token_usage{model_name="m",tp_rank="0",dp_rank="1"} 0.4
"#;
        let load = load(page);
        assert_eq!((load.running, load.waiting), (Some(7), Some(1)));
        assert!((load.kv_used_ratio.unwrap() - 0.3).abs() < 1e-9);
    }

    #[test]
    fn info_speaks_for_one_rank() {
        let page =
            br#"{"version":"0.5.23","model_path":"m","dp_size":2,"api_key":"secret","page_size":64,
            "max_total_num_tokens":5000,
            "internal_states":[{"effective_max_running_requests_per_dp":16}]}"#;
        let info = info(page).unwrap();
        assert_eq!(info.version.as_deref(), Some("0.5.23"));
        let whole = Capacity {
            kv_tokens: Some(Tokens(10_000)),
            max_running: Some(32),
            block_tokens: Some(64),
        };
        assert_eq!(info.capacity, whole);
        assert_eq!(info.source.as_deref(), Some("m"));
        let apart = br#"{"max_total_num_tokens":1,"model_path":"m","tokenizer_path":"/t"}"#;
        assert_eq!(super::info(apart).unwrap().source.as_deref(), Some("/t"));
        assert_eq!(super::info(br#"{"vllm_config":"x"}"#), None);
    }

    fn asked(call: Value) -> Value {
        match count(Route::Chat, call.to_string().as_bytes()) {
            Some(Count::Ask { path: TOKENIZE, bodies }) => {
                serde_json::from_slice(&bodies[0]).unwrap()
            }
            other => panic!("not asked: {other:?}"),
        }
    }

    #[test]
    fn only_the_tools_that_are_rendered_are_counted() {
        let tool = |name: &str| json!({"type": "function", "function": {"name": name}});
        let call = |choice: Value| {
            asked(json!({"messages": [], "tools": [tool("a"), tool("b")], "tool_choice": choice,
                "temperature": 0}))
        };
        assert_eq!(call(json!("none")), json!({"messages": []}));
        assert_eq!(call(json!("auto"))["tools"], json!([tool("a"), tool("b")]));
        assert_eq!(call(tool("b"))["tools"], json!([tool("b")]));
    }

    #[test]
    fn prompts_and_ids_are_counted() {
        let ids = br#"{"prompt":[5,6]}"#;
        assert_eq!(count(Route::Completions, ids), Some(Count::Known(Tokens(2))));
        let text = br#"{"model":"m","prompt":"hi"}"#;
        assert!(matches!(count(Route::Completions, text), Some(Count::Ask { .. })));
        assert_eq!(counted(br#"{"tokens":[1],"count":1,"max_model_len":4}"#), Some(Tokens(1)));
        assert_eq!(counted(br#"{"tokens":[[1]],"count":[1]}"#), None);
    }
}
