//! Ollama: which models it has, which of them are loaded, and what they take.
//!
//! It loads a model when a request asks for it, and gives up others that nobody uses. It has no page that tells how
//! busy it is, and no counters; requests and counts are those of any OpenAI-compatible server.

use crate::{
    snapshot::{Loading, ServedModel},
    units::{Bytes, Tokens},
};
use serde_json::Value;

/// `{"version": "..."}`, while it lives.
pub const VERSION: &str = "/api/version";
/// Every model on disk, with the size of its files.
pub const TAGS: &str = "/api/tags";
/// Every model in memory.
pub const PS: &str = "/api/ps";
/// Says who it is.
pub const ROOT: &str = "/";

/// Whether its front page says that this is Ollama.
pub fn is_it(root: &[u8]) -> bool {
    root.trim_ascii_start().starts_with(b"Ollama is running")
}

/// One model on disk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OnDisk {
    name: String,
    size: Bytes,
}

/// One model in memory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Loaded {
    name: String,
    /// On GPUs.
    memory: Bytes,
    context_window: Option<Tokens>,
}

fn list(page: &[u8]) -> Option<Vec<Value>> {
    let page: Value = serde_json::from_slice(page).ok()?;
    match page.get("models")? {
        Value::Array(models) => Some(models.clone()),
        // As in its model list: null when there are none.
        Value::Null => Some(Vec::new()),
        _ => None,
    }
}

fn name(card: &Value) -> Option<String> {
    card.get("name").or_else(|| card.get("model"))?.as_str().map(str::to_owned)
}

/// Reads `/api/tags`. `None`: this is not such a page.
pub fn on_disk(page: &[u8]) -> Option<Vec<OnDisk>> {
    let read = |card: &Value| {
        Some(OnDisk { name: name(card)?, size: Bytes(card.get("size").and_then(Value::as_u64)?) })
    };
    Some(list(page)?.iter().filter_map(read).collect())
}

/// Reads `/api/ps`. `None`: this is not such a page.
pub fn loaded(page: &[u8]) -> Option<Vec<Loaded>> {
    let read = |card: &Value| {
        let window = card.get("context_length").and_then(Value::as_u64);
        Some(Loaded {
            name: name(card)?,
            memory: Bytes(card.get("size_vram").and_then(Value::as_u64)?),
            context_window: window.filter(|window| *window > 0).map(Tokens),
        })
    };
    Some(list(page)?.iter().filter_map(read).collect())
}

/// What a model will take that was never seen loaded: its files, and a fifth for its cache and buffers.
fn estimate(size: Bytes) -> Bytes {
    size.plus(Bytes(size.get() / 5))
}

/// Writes into a fresh list of models what is known of their loading. `before` is the list of the last round:
/// what a model took when it was loaded is worth more than an estimate. Pages that did not come leave it as it was.
pub fn tell_loading(
    models: &mut [ServedModel],
    before: &[ServedModel],
    on_disk: Option<&[OnDisk]>,
    loaded: Option<&[Loaded]>,
) {
    for model in models {
        let name = model.name.as_str();
        let known = before.iter().find(|known| known.name == model.name);
        model.context_window =
            model.context_window.or(known.and_then(|known| known.context_window));
        model.loading = known.and_then(|known| known.loading).or_else(|| {
            let file = on_disk?.iter().find(|file| file.name == name)?;
            Some(Loading { memory: estimate(file.size), loaded: false })
        });
        let Some(loaded) = loaded else { continue };
        match loaded.iter().find(|one| one.name == name) {
            Some(one) => {
                model.loading = Some(Loading { memory: one.memory, loaded: true });
                model.context_window = one.context_window.or(model.context_window);
            }
            None => {
                model.loading = model.loading.map(|before| Loading { loaded: false, ..before });
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TAGS_PAGE: &[u8] = br#"{"models":[{"name":"a:latest","model":"a:latest","size":5000},
        {"name":"b:7b","size":10000},{"size":1},{"name":"odd","size":"x"}]}"#;
    const PS_PAGE: &[u8] = br#"{"models":[{"name":"a:latest","size":8000,"size_vram":7000,
        "context_length":4096,"expires_at":"2026-11-22T10:00:00Z"}]}"#;

    fn listed() -> Vec<ServedModel> {
        ["a:latest", "b:7b", "c"].map(|name| ServedModel::ready(name.into(), None)).to_vec()
    }

    fn loading(memory: u64, loaded: bool) -> Option<Loading> {
        Some(Loading { memory: Bytes(memory), loaded })
    }

    #[test]
    fn loaded_models_tell_what_they_take_and_others_are_estimated() {
        let (disk, ps) = (on_disk(TAGS_PAGE).unwrap(), loaded(PS_PAGE).unwrap());
        let mut models = listed();
        tell_loading(&mut models, &[], Some(&disk), Some(&ps));
        let told: Vec<_> = models.iter().map(|model| model.loading).collect();
        assert_eq!(told, [loading(7000, true), loading(12_000, false), None]);
        assert_eq!(models[0].context_window, Some(Tokens(4096)));
        // Given up again: what it took is known by now, and so is its window.
        let mut next = listed();
        tell_loading(&mut next, &models, None, Some(&[]));
        assert_eq!(next[0].loading, loading(7000, false));
        assert_eq!(next[0].context_window, Some(Tokens(4096)));
        // A page that did not come changes nothing.
        let mut next = listed();
        tell_loading(&mut next, &models, None, None);
        assert_eq!(next, models);
    }

    #[test]
    fn other_pages_are_not_ollamas() {
        assert!(is_it(b"Ollama is running"));
        assert!(!is_it(b"<html>Ollama is running"));
        assert_eq!(on_disk(br#"{"models":null}"#), Some(Vec::new()));
        assert_eq!(on_disk(br#"{"data":[]}"#), None);
        assert_eq!(loaded(b"nope"), None);
    }
}
