//! What all OpenAI-compatible servers share: the model list, and the fields that counting needs.
//!
//! A server of the generic kind tells no more than this; its load and capacity stay unknown.

use crate::{
    ids::ModelName,
    snapshot::{Load, Loading, Reported, ServedModel},
    units::{Bytes, Tokens},
};
use serde_json::{Map, Value, json};

/// Models taken from one server's list. A list longer than this is cut: it is not a host's.
pub const MODELS_MAX: usize = 1024;

/// Prompts of one request that are counted by asking; more would cost the server too much.
const PROMPTS_MAX: usize = 16;

// === the model list ===

/// Reads `GET /v1/models`. `None`: this is not a model list.
///
/// Context windows stand in different places: `max_model_len` (vLLM, SGLang), `meta.n_ctx`
/// (llama.cpp, per slot). An adapter's card has none and takes that of its base model.
pub fn models(page: &[u8]) -> Option<Vec<ServedModel>> {
    let page: Value = serde_json::from_slice(page).ok()?;
    let cards = match page.get("data")? {
        Value::Array(cards) => cards.as_slice(),
        // Ollama writes null when it has no models.
        Value::Null => &[],
        _ => return None,
    };
    let mut models: Vec<ServedModel> = Vec::new();
    for card in cards.iter().take(MODELS_MAX) {
        let context_window = window(card).or_else(|| inherited(card, cards));
        let id = card.get("id").and_then(Value::as_str);
        let aliases = card.get("aliases").and_then(Value::as_array);
        let aliases = aliases.into_iter().flatten().filter_map(Value::as_str);
        for name in id.into_iter().chain(aliases) {
            let known = models.iter().any(|model| model.name.as_str() == name);
            if is_name(name) && !known && models.len() < MODELS_MAX {
                let name = ModelName::from(name);
                models.push(ServedModel { name, context_window, loading: loading(card) });
            }
        }
    }
    Some(models)
}

/// Names go to callers, to terminals and into metrics: what cannot be one is left out.
fn is_name(name: &str) -> bool {
    const NAME_BYTES_MAX: usize = 256;
    !name.is_empty() && name.len() <= NAME_BYTES_MAX && !name.chars().any(char::is_control)
}

fn window(card: &Value) -> Option<Tokens> {
    let places = ["/max_model_len", "/meta/n_ctx", "/context_length", "/context_window"];
    places.iter().find_map(|place| positive(card.pointer(place)?)).map(Tokens)
}

/// Of a server that loads models when they are asked for (llama.cpp as a router): its state, and the size of
/// its files where that is told. Without a size nothing can be said of what loading takes.
fn loading(card: &Value) -> Option<Loading> {
    let status = card.pointer("/status/value")?.as_str()?;
    let size = ["/meta/size", "/size"].iter().find_map(|place| positive(card.pointer(place)?))?;
    Some(Loading { memory: Bytes(size), loaded: status == "loaded" })
}

fn inherited(card: &Value, cards: &[Value]) -> Option<Tokens> {
    let parent = card.get("parent")?.as_str()?;
    let named = |key: &str| {
        cards.iter().find(|other| other.get(key).and_then(Value::as_str) == Some(parent))
    };
    // The parent is a served name; some servers give the base model's path instead.
    named("id").and_then(window).or_else(|| named("root").and_then(window))
}

/// What a model list says was loaded: `root` (vLLM), where it says more than the name. An adapter has the
/// vocabulary of its base model.
pub fn reported(page: &[u8]) -> Vec<Reported> {
    let page: Value = serde_json::from_slice(page).unwrap_or_default();
    let cards = page.get("data").and_then(Value::as_array).map_or(&[][..], Vec::as_slice);
    let text = |card: &Value, key: &str| card.get(key)?.as_str().map(str::to_owned);
    let is_parent = |card: &Value, parent: &str| {
        ["id", "root"].iter().any(|key| card.get(key).and_then(Value::as_str) == Some(parent))
    };
    let told = |card: &Value| {
        let name = text(card, "id").filter(|name| is_name(name))?;
        let source = match text(card, "parent") {
            Some(parent) => {
                let base = cards.iter().find(|card| is_parent(card, &parent));
                base.and_then(|base| text(base, "root")).unwrap_or(parent)
            }
            None => text(card, "root")?,
        };
        let model = Some(ModelName::from(name.as_str()));
        (source != name).then_some(Reported { model, source: self::source(source)? })
    };
    cards.iter().take(MODELS_MAX).filter_map(told).collect()
}

/// A path or a name that a server reports, if it can be one.
pub(super) fn source(text: String) -> Option<String> {
    const SOURCE_BYTES_MAX: usize = 4096;
    let plain = !text.chars().any(char::is_control);
    (!text.is_empty() && text.len() <= SOURCE_BYTES_MAX && plain).then_some(text)
}

/// What is served when the operator names the models: those names, with the windows the server tells.
/// A name the server does not list takes the window that all listed models share.
pub fn named(names: &[ModelName], listed: &[ServedModel]) -> Vec<ServedModel> {
    let mut windows = listed.iter().map(|model| model.context_window);
    let first = windows.next().flatten();
    let shared = if windows.all(|window| window == first) { first } else { None };
    let find = |name: &ModelName| listed.iter().find(|model| model.name == *name);
    names
        .iter()
        .map(|name| match find(name) {
            Some(model) => model.clone(),
            None => ServedModel::ready(name.clone(), shared),
        })
        .collect()
}

// === small readings ===

/// A whole number above zero. Servers write 0, -1 or null for "not known".
pub(super) fn positive(value: &Value) -> Option<u64> {
    value.as_u64().filter(|&number| number > 0)
}

/// A gauge that counts things: never negative, never more than fits.
pub(super) fn whole(value: f64) -> u32 {
    // A float cast saturates, which is what is wanted here.
    value.round() as u32
}

/// A share, held between 0 and 1.
pub(super) fn share(value: f64) -> f64 {
    value.clamp(0.0, 1.0)
}

/// Several counters as one number that changes with each of them. `None` when there is none of them.
pub(super) fn folded(counters: impl IntoIterator<Item = u64>) -> Option<u64> {
    // Each counts its place: what one gains and another loses must not cancel out.
    counters.into_iter().fold(None, |sum: Option<u64>, counter| {
        Some(sum.unwrap_or(0).wrapping_mul(0x0100_0000_01b3).wrapping_add(counter).wrapping_add(1))
    })
}

/// A counter of a metrics page, for [`folded`]. A small step of a large sum must not be lost.
pub(super) fn counted_up(value: f64) -> u64 {
    value.to_bits()
}

/// A load that says nothing.
pub(super) fn told_nothing(load: &Load) -> bool {
    load.running.is_none() && load.waiting.is_none() && load.kv_used_ratio.is_none()
}

/// A text at `place`, such as a version.
pub(super) fn text(page: &[u8], place: &str) -> Option<String> {
    let page: Value = serde_json::from_slice(page).ok()?;
    page.pointer(place)?.as_str().filter(|text| !text.is_empty()).map(str::to_owned)
}

/// A path or a name at `place` that a server reports.
pub(super) fn text_at(page: &Value, place: &str) -> Option<String> {
    source(page.pointer(place)?.as_str()?.to_owned())
}

// === counting ===

/// How the input tokens of a call can be learned.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Count {
    /// The caller sent token ids: nothing to ask.
    Known(Tokens),
    /// Post each body to the path; the counts add up.
    Ask {
        /// Path on the server.
        path: &'static str,
        /// The bodies to post, at least one.
        bodies: Vec<bytes::Bytes>,
    },
}

/// A request body as an object. `None`: not one.
pub(super) fn object(body: &[u8]) -> Option<Map<String, Value>> {
    serde_json::from_slice(body).ok()
}

/// Counts a `prompt` (or `input`) in any of its forms; `ask` makes the body for one text.
pub(super) fn count_prompt(
    prompt: &Value,
    path: &'static str,
    ask: impl Fn(&str) -> Value,
) -> Option<Count> {
    let texts: Vec<&str> = match prompt {
        Value::String(text) => vec![text],
        Value::Array(parts) if parts.is_empty() => return None,
        Value::Array(parts) if parts.iter().all(Value::is_number) => {
            return Some(Count::Known(Tokens(parts.len() as u64)));
        }
        Value::Array(parts) if parts.iter().all(Value::is_array) => {
            let ids = parts.iter().filter_map(Value::as_array).flatten();
            let all_ids = ids.clone().all(Value::is_number);
            return all_ids.then(|| Count::Known(Tokens(ids.count() as u64)));
        }
        Value::Array(parts) => parts.iter().map(Value::as_str).collect::<Option<_>>()?,
        _ => return None,
    };
    if texts.len() > PROMPTS_MAX {
        return None;
    }
    let bodies = texts.into_iter().map(|text| posted(&ask(text))).collect();
    Some(Count::Ask { path, bodies })
}

/// JSON as a body to post.
pub(super) fn posted(value: &Value) -> bytes::Bytes {
    bytes::Bytes::from(value.to_string())
}

/// Moves the fields that are there and not null from one object to another.
pub(super) fn carry(from: &mut Map<String, Value>, to: &mut Map<String, Value>, names: &[&str]) {
    for name in names {
        if let Some(value) = from.remove(*name).filter(|value| !value.is_null()) {
            to.insert((*name).to_owned(), value);
        }
    }
}

/// The count in the answer of vLLM's and SGLang's `/tokenize`.
pub(super) fn counted(answer: &[u8]) -> Option<Tokens> {
    #[derive(serde::Deserialize)]
    struct Counted {
        // The token ids beside it may be megabytes: they are skipped, not built.
        count: u64,
    }
    serde_json::from_slice(answer).ok().map(|Counted { count }| Tokens(count))
}

/// The body of a `/tokenize` that takes `model`, `prompt` and `add_special_tokens`.
pub(super) fn tokenize_body(call: &Map<String, Value>, text: &str) -> Value {
    let special = call.get("add_special_tokens").and_then(Value::as_bool).unwrap_or(true);
    let mut body = json!({ "prompt": text, "add_special_tokens": special });
    if let (Some(body), Some(model)) = (body.as_object_mut(), call.get("model")) {
        body.insert("model".to_owned(), model.clone());
    }
    body
}

#[cfg(test)]
mod tests {
    use super::*;

    fn windows(page: &str) -> Vec<(String, Option<u64>)> {
        let models = models(page.as_bytes()).unwrap();
        models
            .into_iter()
            .map(|model| (model.name.as_str().to_owned(), model.context_window.map(Tokens::get)))
            .collect()
    }

    #[test]
    fn an_adapter_has_the_window_of_its_base_model() {
        let page = r#"{"object":"list","data":[
            {"id":"base","object":"model","root":"/models/base","parent":null,"max_model_len":8192},
            {"id":"by-name","root":"/adapters/1","parent":"base"},
            {"id":"by-path","root":"/adapters/2","parent":"/models/base","max_model_len":null},
            {"id":"orphan","parent":"gone"}]}"#;
        assert_eq!(
            windows(page),
            [
                ("base".into(), Some(8192)),
                ("by-name".into(), Some(8192)),
                ("by-path".into(), Some(8192)),
                ("orphan".into(), None),
            ]
        );
    }

    #[test]
    fn llama_cpp_tells_its_window_and_aliases() {
        let page = r#"{"models":[{"name":"x"}],"object":"list","data":[{"id":"/m/a.gguf",
            "aliases":["a","a",""],"owned_by":"llamacpp","meta":{"n_ctx":4096,"n_ctx_train":32768}}]}"#;
        assert_eq!(windows(page), [("/m/a.gguf".into(), Some(4096)), ("a".into(), Some(4096))]);
    }

    #[test]
    fn a_router_tells_what_is_loaded() {
        let page = br#"{"data":[{"id":"a","status":{"value":"loaded"},"meta":{"size":70}},
            {"id":"b","status":{"value":"unloaded"},"meta":{"size":50}},
            {"id":"c","status":{"value":"unloaded"}},{"id":"d","meta":{"size":9}}]}"#;
        let told: Vec<_> = models(page).unwrap().iter().map(|model| model.loading).collect();
        let of = |memory, loaded| Some(Loading { memory: Bytes(memory), loaded });
        assert_eq!(told, [of(70, true), of(50, false), None, None]);
    }

    #[test]
    fn a_list_tells_what_was_loaded() {
        let page = json!({"data": [
            {"id": "chat", "root": "/models/chat-7b", "parent": null},
            {"id": "adapter", "root": "/adapters/x", "parent": "chat"},
            {"id": "by-path", "root": "/adapters/y", "parent": "/models/chat-7b"},
            {"id": "org/name", "root": "org/name"}, {"id": "silent"}, {"id": "odd", "root": "a\u{7}"},
            {"id": "long", "root": "x".repeat(5000)},
        ]});
        let told: Vec<(String, String)> = reported(page.to_string().as_bytes())
            .into_iter()
            .map(|told| (told.model.unwrap().to_string(), told.source))
            .collect();
        let chat = |name: &str| (name.to_owned(), "/models/chat-7b".to_owned());
        assert_eq!(told, [chat("chat"), chat("adapter"), chat("by-path")]);
        assert_eq!(reported(b"nope"), []);
    }

    #[test]
    fn odd_lists_are_taken_as_far_as_they_go() {
        assert_eq!(windows(r#"{"data":null}"#), []);
        let page = r#"{"data":[{"id":7},"x",{"id":"ok","max_model_len":-1}]}"#;
        assert_eq!(windows(page), [("ok".into(), None)]);
        assert_eq!(models(b"<html>"), None);
        assert_eq!(models(br#"{"error":"no"}"#), None);
        assert_eq!(models(br#"{"data":{"id":"x"}}"#), None);
    }

    #[test]
    fn operators_names_win_and_keep_told_windows() {
        let model =
            |name: &str, window: Option<u64>| ServedModel::ready(name.into(), window.map(Tokens));
        let one = [model("file.gguf", Some(4096))];
        assert_eq!(named(&["mine".into()], &one), [model("mine", Some(4096))]);
        let two = [model("a", Some(1)), model("b", Some(2))];
        let names = ["b".into(), "mine".into()];
        assert_eq!(named(&names, &two), [model("b", Some(2)), model("mine", None)]);
        assert_eq!(named(&["mine".into()], &[]), [model("mine", None)]);
    }

    #[test]
    fn prompts_are_counted_in_every_form() {
        let count = |prompt: Value| count_prompt(&prompt, "/t", |text| json!({ "p": text }));
        assert_eq!(count(json!([1, 2, 3])), Some(Count::Known(Tokens(3))));
        assert_eq!(count(json!([[1, 2], [3]])), Some(Count::Known(Tokens(3))));
        let bodies = [r#"{"p":"a"}"#, r#"{"p":"b"}"#].map(bytes::Bytes::from).to_vec();
        assert_eq!(count(json!(["a", "b"])), Some(Count::Ask { path: "/t", bodies }));
        for odd in [json!([]), json!(null), json!(["a", 1]), json!([[1], ["a"]]), json!({})] {
            assert_eq!(count(odd), None);
        }
        assert_eq!(count(json!(vec!["a"; PROMPTS_MAX + 1])), None);
    }

    #[test]
    fn gauges_become_whole_numbers_within_bounds() {
        assert_eq!((whole(-1.0), whole(2.6), whole(1e12)), (0, 3, u32::MAX));
        assert_eq!((share(-0.1), share(0.5), share(1.7)), (0.0, 0.5, 1.0));
    }
}
