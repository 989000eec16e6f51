//! llama.cpp's `llama-server`: slots, and how it counts tokens.

use super::{
    Route, exposition,
    openai::{self, Count},
};
use crate::{
    snapshot::{Capacity, Load},
    units::Tokens,
};
use bytes::Bytes;
use serde::de::IgnoredAny;
use serde_json::{Value, json};

/// 200 when ready; 503 "Loading model" before.
pub const HEALTH: &str = "/health";
/// Context per slot, number of slots, version. Does not wake a sleeping model.
pub const PROPS: &str = "/props";
/// What each slot does. On by default; wakes a sleeping model, and keeps one that is watched from
/// falling asleep (so does the metrics page): `--sleep-idle-seconds` and a broker do not go together.
pub const SLOTS: &str = "/slots";
/// Only with `--metrics`. Each scrape restarts its averages, so another scraper is disturbed by ours:
/// it is asked only when `/slots` cannot tell.
pub const METRICS: &str = "/metrics";
/// Counts a conversation with the template and tokenizer of the chat route.
pub const COUNT_CHAT: &str = "/v1/chat/completions/input_tokens";
/// Turns text into tokens.
pub const TOKENIZE: &str = "/tokenize";

/// Every metric of llama.cpp starts so.
pub const METRIC_PREFIX: &str = "llamacpp:";

/// What `/props` tells.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Props {
    /// Room and slots.
    pub capacity: Capacity,
    /// Build number and commit.
    pub version: Option<String>,
    /// The file it loaded, as it was named to it.
    pub model_path: Option<String>,
    /// The model left its memory (`--sleep-idle-seconds`); the next request loads it again.
    pub sleeping: bool,
}

/// Reads `/props`. `None`: this is not such a page.
///
/// The room is taken as one slot's context. With `--kv-unified` (the default unless `--parallel` is
/// given) that *is* the whole pool; without it the pool is larger by the number of slots, but the
/// server does not say which holds. Too little room only makes requests wait here; too much makes
/// the server break off answers half way. An operator who gave `--parallel` sets the server's
/// `kv_tokens`.
pub fn props(page: &[u8]) -> Option<Props> {
    let page: Value = serde_json::from_slice(page).ok()?;
    let slots = page.get("total_slots").and_then(openai::positive)?;
    let context = page.pointer("/default_generation_settings/n_ctx").and_then(openai::positive);
    let version = page.get("build_info").and_then(Value::as_str);
    Some(Props {
        capacity: Capacity {
            kv_tokens: context.map(Tokens),
            max_running: Some(u32::try_from(slots).unwrap_or(u32::MAX)),
            block_tokens: None,
        },
        version: version.filter(|version| !version.is_empty()).map(str::to_owned),
        model_path: openai::text_at(&page, "/model_path"),
        sleeping: page.get("is_sleeping").and_then(Value::as_bool).unwrap_or(false),
    })
}

/// What `/slots` tells.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Slots {
    /// Slots with a request.
    pub busy: u32,
    /// All slots.
    pub total: u32,
    /// Tokens of the busy slots' prompts and answers. What idle slots still hold can be evicted.
    pub used: Tokens,
    /// What the slots have read and written, and for which tasks: changes with each step.
    pub steps: Option<u64>,
}

impl Slots {
    /// As a load, against the room of all slots.
    pub fn load(self, room: Option<Tokens>) -> Load {
        // A free slot means that nobody waits; otherwise only the metrics page knows.
        let waiting = (self.busy < self.total).then_some(0);
        let room = room.filter(|room| *room > Tokens::ZERO);
        let kv_used_ratio = room.map(|room| openai::share(self.used.share_of(room)));
        Load { running: Some(self.busy), waiting, kv_used_ratio, progress: self.steps }
    }
}

/// Reads `/slots`. `None`: this is not such a page.
pub fn slots(page: &[u8]) -> Option<Slots> {
    let page: Value = serde_json::from_slice(page).ok()?;
    let list = page.as_array().filter(|list| !list.is_empty())?;
    let mut slots = Slots { busy: 0, total: 0, used: Tokens::ZERO, steps: None };
    slots.steps = openai::folded(list.iter().flat_map(steps));
    for slot in list {
        let busy = slot.get("is_processing").and_then(Value::as_bool)?;
        slots.total = slots.total.saturating_add(1);
        if busy {
            slots.busy = slots.busy.saturating_add(1);
            slots.used = slots.used.plus(held(slot));
        }
    }
    Some(slots)
}

fn held(slot: &Value) -> Tokens {
    number(slot, "n_prompt_tokens").plus(decoded(slot))
}

fn number(object: &Value, name: &str) -> Tokens {
    Tokens(object.get(name).and_then(Value::as_u64).unwrap_or(0))
}

fn decoded(slot: &Value) -> Tokens {
    match slot.get("next_token") {
        Some(Value::Array(list)) => {
            list.iter().fold(Tokens::ZERO, |sum, next| sum.plus(number(next, "n_decoded")))
        }
        Some(next) => number(next, "n_decoded"),
        None => Tokens::ZERO,
    }
}

fn steps(slot: &Value) -> [u64; 3] {
    [number(slot, "id_task"), number(slot, "n_prompt_tokens_processed"), decoded(slot)]
        .map(Tokens::get)
}

/// Counters that rise with each step.
const STEPS: [&str; 3] =
    ["llamacpp:prompt_tokens_total", "llamacpp:tokens_predicted_total", "llamacpp:n_decode_total"];

/// Reads the metrics page.
pub fn load(page: &str) -> Load {
    Load {
        running: exposition::sum(page, "llamacpp:requests_processing").map(openai::whole),
        waiting: exposition::sum(page, "llamacpp:requests_deferred").map(openai::whole),
        // Gone in newer versions.
        kv_used_ratio: exposition::mean(page, "llamacpp:kv_cache_usage_ratio").map(openai::share),
        progress: openai::folded(
            exposition::samples(page)
                .filter(|sample| STEPS.contains(&sample.name))
                .map(|sample| openai::counted_up(sample.value)),
        ),
    }
}

/// Whether a 503 says that the model loads, rather than that something broke.
pub fn loading(page: &[u8]) -> bool {
    let message = openai::text(page, "/error/message");
    message.is_some_and(|message| message.to_ascii_lowercase().contains("loading"))
}

/// How to count the input of a call. `None`: it would not be exact.
///
/// Chat takes the very body. Plain prompts are tokenised as the completions route does: special
/// tokens added, and recognised in the text. Of several prompts in one call all are counted, since all
/// take room; the server's own `usage` speaks of one of them only.
pub fn count(route: Route, body: &Bytes) -> Option<Count> {
    let field = match route {
        Route::Chat => {
            let bodies = vec![body.clone()];
            return Some(Count::Ask { path: COUNT_CHAT, bodies });
        }
        Route::Completions => "prompt",
        Route::Embeddings => "input",
    };
    let call = openai::object(body)?;
    let ask = |text: &str| json!({ "content": text, "add_special": true, "parse_special": true });
    openai::count_prompt(call.get(field)?, TOKENIZE, ask)
}

/// The count in the answer, of either path.
pub fn counted(answer: &[u8]) -> Option<Tokens> {
    #[derive(serde::Deserialize)]
    #[serde(untagged)]
    enum Counted {
        Chat { input_tokens: u64 },
        Text { tokens: Vec<IgnoredAny> },
    }
    match serde_json::from_slice(answer).ok()? {
        Counted::Chat { input_tokens } => Some(Tokens(input_tokens)),
        Counted::Text { tokens } => Some(Tokens(tokens.len() as u64)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn props_tell_slots_and_the_room_of_one() {
        let page = br#"{"default_generation_settings":{"id":0,"n_ctx":8192,"params":{}},
            "total_slots":4,"model_path":"/m/a.gguf","chat_template":"{{ x }}",
            "build_info":"b9000-0c1e570","is_sleeping":true}"#;
        let props = props(page).unwrap();
        let room =
            Capacity { kv_tokens: Some(Tokens(8192)), max_running: Some(4), block_tokens: None };
        assert_eq!(props.capacity, room);
        assert_eq!(props.version.as_deref(), Some("b9000-0c1e570"));
        assert_eq!(props.model_path.as_deref(), Some("/m/a.gguf"));
        assert!(props.sleeping);
        assert_eq!(super::props(br#"{"version":"1"}"#), None);
    }

    const SLOTS_PAGE: &[u8] = br#"[
        {"id":0,"n_ctx":8192,"is_processing":true,"n_prompt_tokens":1000,"n_prompt_tokens_cache":10,
         "next_token":[{"has_next_token":true,"n_decoded":48}]},
        {"id":1,"n_ctx":8192,"is_processing":false,"n_prompt_tokens":5000,
         "next_token":[{"n_decoded":7}]},
        {"id":2,"n_ctx":8192,"is_processing":true,"n_prompt_tokens":1000,
         "next_token":{"n_decoded":0}}]"#;

    #[test]
    fn busy_slots_are_the_load() {
        let slots = slots(SLOTS_PAGE).unwrap();
        assert_eq!((slots.busy, slots.total, slots.used), (2, 3, Tokens(2048)));
        let load = slots.load(Some(Tokens(8192)));
        assert_eq!((load.running, load.waiting), (Some(2), Some(0)));
        assert_eq!(load.kv_used_ratio, Some(0.25));
        assert_eq!(slots.load(None).kv_used_ratio, None);
    }

    #[test]
    fn when_all_slots_are_busy_slots_cannot_tell_who_waits() {
        let full = Slots { busy: 3, total: 3, used: Tokens(9000), steps: None };
        assert_eq!(full.load(Some(Tokens(8192))).waiting, None);
        assert_eq!(full.load(Some(Tokens(8192))).kv_used_ratio, Some(1.0));
    }

    #[test]
    fn a_step_of_any_slot_is_progress() {
        let steps = |page: &str| slots(page.as_bytes()).unwrap().steps;
        let page = |processed: u64, decoded: u64| {
            format!(
                "[{{\"id_task\":1,\"is_processing\":true,\"n_prompt_tokens\":9,\
                 \"n_prompt_tokens_processed\":{processed},\"next_token\":[{{\"n_decoded\":{decoded}}}]}}]"
            )
        };
        assert_eq!(steps(&page(4, 0)), steps(&page(4, 0)));
        assert_ne!(steps(&page(4, 0)), steps(&page(6, 0)), "it reads its input");
        assert_ne!(steps(&page(9, 1)), steps(&page(9, 2)), "it writes");
        let metrics = |n: u64| load(&format!("llamacpp:n_decode_total {n}\n")).progress;
        assert_ne!(metrics(7), metrics(8));
        assert_eq!(load("llamacpp:requests_processing 3\n").progress, None);
    }

    #[test]
    fn other_pages_are_not_slots() {
        let refused =
            br#"{"error":{"code":501,"message":"no slots","type":"not_supported_error"}}"#;
        assert_eq!(slots(refused), None);
        assert_eq!(slots(b"[]"), None);
        assert_eq!(slots(b"[{}]"), None);
    }

    #[test]
    fn metrics_tell_who_waits() {
        let page = "llamacpp:requests_processing 3\nllamacpp:requests_deferred 2\n";
        assert_eq!((load(page).running, load(page).waiting), (Some(3), Some(2)));
    }

    #[test]
    fn loading_is_told_from_broken() {
        let page =
            br#"{"error":{"message":"Loading model","type":"unavailable_error","code":503}}"#;
        assert!(loading(page));
        assert!(!loading(br#"{"error":{"message":"no slot available"}}"#));
        assert!(!loading(b""));
    }

    #[test]
    fn counting_uses_the_routes_own_way() {
        let chat = Bytes::from_static(br#"{"messages":[],"temperature":1}"#);
        let bodies = vec![chat.clone()];
        assert_eq!(count(Route::Chat, &chat), Some(Count::Ask { path: COUNT_CHAT, bodies }));
        let text = Bytes::from_static(br#"{"prompt":"hi"}"#);
        let Some(Count::Ask { path: TOKENIZE, bodies }) = count(Route::Completions, &text) else {
            panic!("not asked");
        };
        let body: Value = serde_json::from_slice(&bodies[0]).unwrap();
        assert_eq!(body, json!({"content": "hi", "add_special": true, "parse_special": true}));
    }

    #[test]
    fn both_answers_are_read() {
        let chat = br#"{"object":"response.input_tokens","input_tokens":42}"#;
        assert_eq!(counted(chat), Some(Tokens(42)));
        assert_eq!(counted(br#"{"tokens":[1,{"id":2,"piece":"x"},3]}"#), Some(Tokens(3)));
        assert_eq!(counted(br#"{"error":{}}"#), None);
    }
}
