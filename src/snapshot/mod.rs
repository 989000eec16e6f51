//! What the node looks like right now: plain, dated values.
//!
//! Edges publish them, rules and operators read them. Nothing here knows who does either.

mod gpu;
mod kv;
mod processes;

pub use crate::ids::ServerKind;
pub use gpu::{
    Answering, Clocks, DriverState, EccCounts, EventKind, GpuEvent, GpuPlane, GpuProcess, GpuState,
    MigPart, Modes, NvLink, Pcie, RecoveryAction, RemappedRows, RetiredPages, Throttle,
};
pub use kv::KvChange;
pub use processes::{LINE_MAX, Listener, Network, Process, ProcessTable, TICKS_PER_S};

use crate::{
    ids::{ModelName, ServerId},
    units::{Bytes, Tokens},
};
use serde::Serialize;
use tokio::time::Instant;

// === Model servers ===

/// Whether a server can take work, as its own probes see it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase", tag = "state", content = "why")]
pub enum Health {
    /// Not probed yet.
    Unknown,
    /// Answers, but is not ready (the model loads).
    Starting(String),
    /// Ready.
    Up,
    /// Does not answer, or says that it is broken.
    Down(String),
}

impl Health {
    /// The state's name in metrics and status.
    pub const fn as_str(&self) -> &'static str {
        match self {
            Self::Unknown => "unknown",
            Self::Starting(_) => "starting",
            Self::Up => "up",
            Self::Down(_) => "down",
        }
    }
}

/// A model that a server lists.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct ServedModel {
    /// The name the server knows it by.
    pub name: ModelName,
    /// Context window in tokens, input and output together, where the server tells it.
    pub context_window: Option<Tokens>,
    /// Of a server that loads models when they are asked for: what that takes.
    pub loading: Option<Loading>,
}

impl ServedModel {
    /// A model that is there whenever its server is.
    pub const fn ready(name: ModelName, context_window: Option<Tokens>) -> Self {
        Self { name, context_window, loading: None }
    }
}

/// What a model takes on a server that loads it when it is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Loading {
    /// Memory on GPUs: while it is loaded as the server tells it, before that an estimate.
    pub memory: Bytes,
    /// It is loaded now.
    pub loaded: bool,
}

/// What a server says it loaded.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reported {
    /// Of which of its models it speaks; `None` of all.
    pub model: Option<ModelName>,
    /// A path on the server's host, or a name in a hub such as `org/name`. The server's words, not checked.
    pub source: String,
}

/// How busy a server says it is. Fields that its kind does not report are `None`.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Load {
    /// Sequences in the running batch.
    pub running: Option<u32>,
    /// Sequences waiting inside the server.
    pub waiting: Option<u32>,
    /// Share of the KV cache in use, 0.0 to 1.0.
    pub kv_used_ratio: Option<f64>,
    /// A number that changes whenever its engine gets ahead, and only then: its counters of tokens and steps
    /// taken together. It means nothing else.
    #[serde(skip)]
    pub progress: Option<u64>,
}

/// How much a server can hold.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Capacity {
    /// KV cache room for all sequences together, in tokens.
    pub kv_tokens: Option<Tokens>,
    /// Sequences at once.
    pub max_running: Option<u32>,
    /// Tokens in one block of the KV cache, for matching prefixes; at most [`BLOCK_TOKENS_MAX`].
    pub block_tokens: Option<u32>,
}

/// The largest block of a KV cache that is believed, tokens.
pub const BLOCK_TOKENS_MAX: u32 = 1 << 16;

/// One round of probing a server.
#[derive(Clone, Debug)]
pub struct ServerState {
    /// Which server.
    pub id: ServerId,
    /// Which program it is.
    pub kind: ServerKind,
    /// Can it take work?
    pub health: Health,
    /// What it serves; kept from the last good round when a later one fails.
    pub models: Vec<ServedModel>,
    /// What it says it loaded; like the models, kept from the last good round.
    pub reported: Vec<Reported>,
    /// How busy it says it is.
    pub load: Load,
    /// How much it can hold.
    pub capacity: Capacity,
    /// Version text, where the server tells it.
    pub version: Option<String>,
    /// When the last round that the server answered ended.
    pub read_at: Option<Instant>,
}

impl ServerState {
    /// A server nobody has asked yet.
    pub fn unknown(id: ServerId, kind: ServerKind) -> Self {
        Self {
            id,
            kind,
            health: Health::Unknown,
            models: Vec::new(),
            reported: Vec::new(),
            load: Load::default(),
            capacity: Capacity::default(),
            version: None,
            read_at: None,
        }
    }

    /// What it says it loaded for a model: what it says of this one, else what it says of all. Of a server
    /// that lists one model only, its word holds under any name.
    pub fn reported(&self, model: &ModelName) -> Option<&str> {
        let of = |model: Option<&ModelName>| {
            self.reported.iter().find(|reported| reported.model.as_ref() == model)
        };
        let only = || match self.reported.as_slice() {
            [only] => Some(only),
            _ => None,
        };
        of(Some(model)).or_else(|| of(None)).or_else(only).map(|found| found.source.as_str())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_servers_word_on_one_model_goes_before_its_word_on_all() {
        let mut state = ServerState::unknown("s".into(), ServerKind::Vllm);
        let word = |model: Option<&str>, source: &str| Reported {
            model: model.map(ModelName::from),
            source: source.into(),
        };
        assert_eq!(state.reported(&"a".into()), None);
        state.reported = vec![word(Some("a"), "org/a")];
        assert_eq!(state.reported(&"any".into()), Some("org/a"));
        state.reported.push(word(Some("b"), "org/b"));
        assert_eq!(state.reported(&"b".into()), Some("org/b"));
        assert_eq!(state.reported(&"any".into()), None, "which of the two?");
        state.reported.push(word(None, "/m"));
        assert_eq!(state.reported(&"any".into()), Some("/m"));
        assert_eq!(state.reported(&"a".into()), Some("org/a"));
    }
}
