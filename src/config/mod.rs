//! `Settings`: what the operator said, valid and complete.
//!
//! Three stages: files as written (`source`), merged into one tree, read into `Settings` (`load`).
//! The daemon sees only the last; nothing here is optional that has a default.

use crate::{
    ids::{GpuId, ModelName, ServerId, ServerKind, TenantId, Tier},
    units::{Bytes, Tokens},
};
use std::{collections::BTreeMap, fmt, net::SocketAddr, path::PathBuf, time::Duration};

pub mod defaults;
mod gpu;
mod keys;
mod load;
mod problem;
mod read;
mod rows;
mod screen;
mod sections;
mod servers;
mod source;
#[cfg(test)]
mod tests;

pub use gpu::{Energy, FoundOnGpu, Gpu};
pub use load::{Loaded, load, parse_text};
pub use problem::{Problem, Problems, Severity, Spot};
pub use screen::{
    Action, InputPolicy, OnFailure, OutputPolicy, Screen, ScreenModel, ScreenPolicy, ScreenRuntime,
    SecondStage, Sensitivity, Task, Watch,
};

/// Everything the daemon can be told. Immutable; a reload makes a new one.
#[derive(Clone, Debug, PartialEq)]
pub struct Settings {
    /// Addresses and connection limits.
    pub listen: Listen,
    /// Limits on what callers may send.
    pub limits: Limits,
    /// How requests wait.
    pub queue: Queue,
    /// How turns are given.
    pub schedule: Schedule,
    /// How answers are carried.
    pub relay: Relay,
    /// The breaker before each server.
    pub breaker: Breaker,
    /// How servers are watched and found.
    pub probe: Probe,
    /// How input is counted.
    pub tokens: TokenCounts,
    /// The GPU plane.
    pub gpu: Gpu,
    /// Prices of energy and GPU time, and how they are split.
    pub energy: Energy,
    /// How texts are screened and scored.
    pub screen: Screen,
    /// Threads.
    pub threads: Threads,
    /// Logs.
    pub log: Log,
    /// Who may call, with what.
    pub tenants: Vec<Tenant>,
    /// What is known about models beyond what servers tell.
    pub models: Vec<Model>,
    /// The model servers.
    pub servers: Vec<Server>,
}

/// `[listen]`
#[derive(Clone, Debug, PartialEq)]
pub struct Listen {
    /// Where callers connect.
    pub data: SocketAddr,
    /// Where metrics and health are read.
    pub admin: SocketAddr,
    /// The Unix socket for `berthd status` and the other operator commands.
    pub socket: PathBuf,
    /// Callers' connections at once; more wait in the kernel's backlog.
    pub connections_max: usize,
    /// A request head must be complete this long after its first byte.
    pub head_limit: Duration,
    /// A request body must be complete this long after its head.
    pub body_limit: Duration,
    /// A connection without a request is closed after this, and one whose caller takes nothing of its
    /// answer.
    pub idle_limit: Duration,
    /// After SIGTERM, streams may finish for this long.
    pub drain_limit: Duration,
}

/// `[limits]`
#[derive(Clone, Debug, PartialEq)]
pub struct Limits {
    /// Largest request body.
    pub body_max: Bytes,
    /// Largest `n`.
    pub choices_max: u32,
    /// Largest whole (not streamed) answer taken from a server.
    pub answer_max: Bytes,
    /// Largest single event taken from a server's stream.
    pub event_max: Bytes,
}

/// `[queue]`
#[derive(Clone, Debug, PartialEq)]
pub struct Queue {
    /// Requests waiting at once, all models together.
    pub length_max: usize,
    /// Share of the queue one tenant may fill, percent.
    pub tenant_share_percent: u8,
    /// Longest wait for a turn when the caller gives no deadline.
    pub wait_max: Duration,
    /// The same for the batch tier, in which nobody waits.
    pub batch_wait_max: Duration,
    /// Longest wait while no server of the model is up.
    pub no_server_wait: Duration,
}

impl Queue {
    /// Longest wait for a turn of a request of this tier whose caller gives no deadline.
    pub const fn wait_max_of(&self, tier: Tier) -> Duration {
        match tier {
            Tier::Batch => self.batch_wait_max,
            Tier::System | Tier::Interactive | Tier::Standard => self.wait_max,
        }
    }
}

/// `[schedule]`
#[derive(Clone, Debug, PartialEq)]
pub struct Schedule {
    /// Time per output token that callers are to see; where it is longer, prefill slows down.
    pub token_gap: Duration,
    /// Prefill that a server may owe when it is given more.
    pub prefill_debt: Duration,
    /// Prompt tokens that a server computes in one step.
    pub chunk: Tokens,
    /// Share of a server's KV cache that is given away, percent.
    pub kv_share_percent: u8,
    /// Share of that which the batch tier leaves to others, percent.
    pub batch_leaves_percent: u8,
    /// After this wait a request of the standard tier goes with the interactive ones.
    pub standard_ages: Duration,
    /// After this wait a request of the batch tier goes with the standard ones.
    pub batch_ages: Duration,
    /// Batch requests that have shown nothing yet give their room to others.
    pub preempt_batch: bool,
    /// Prompts are hashed block by block, to find servers that have their beginnings.
    pub prefix: bool,
}

/// `[relay]`
#[derive(Clone, Debug, PartialEq)]
pub struct Relay {
    /// A server that accepted a stream must send its first content within this.
    pub first_token_limit: Duration,
    /// A stream must not stay silent longer than this after its first content.
    pub idle_limit: Duration,
    /// A whole (not streamed) answer must be complete within this.
    pub answer_limit: Duration,
    /// A comment goes to a streaming caller after this much silence.
    pub heartbeat: Duration,
    /// Servers tried for one request.
    pub attempts_max: u32,
    /// A connection to a server must be made within this.
    pub connect_limit: Duration,
    /// Idle connections kept to each server.
    pub idle_connections_max: usize,
}

/// `[breaker]`
#[derive(Clone, Debug, PartialEq)]
pub struct Breaker {
    /// Failures in a row that open it.
    pub failures: u32,
    /// First pause before an open breaker sends its own trial request.
    pub trial_first: Duration,
    /// Longest pause between trials.
    pub trial_max: Duration,
}

/// `[probe]`
#[derive(Clone, Debug, PartialEq)]
pub struct Probe {
    /// Time between rounds.
    pub period: Duration,
    /// A probe must be answered within this.
    pub limit: Duration,
    /// Readings older than this count as unknown.
    pub stale_after: Duration,
    /// Failed rounds in a row that mark a server down.
    pub failures_down: u32,
    /// Look for servers on the default loopback ports.
    pub discover: bool,
}

/// `[tokens]`
#[derive(Clone, Debug, PartialEq)]
pub struct TokenCounts {
    /// Look on this host for the files of models that are configured without a folder.
    pub search: bool,
    /// Hash each prompt's blocks while it is counted.
    pub prefix_blocks: bool,
    /// Memory for parts of prompts that were counted before, MiB, for each set of model files.
    pub cache_max_mib: u64,
}

/// `[threads]`
#[derive(Clone, Debug, PartialEq)]
pub struct Threads {
    /// Threads that carry requests.
    pub carry: usize,
    /// Threads for long tokenisation and other CPU work.
    pub compute: usize,
}

/// How log lines look.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogFormat {
    /// Text for people; with syslog levels in front when the journal reads it.
    Text,
    /// One JSON object a line.
    Json,
}

/// How much is logged.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum LogLevel {
    /// Only what needs a person.
    Error,
    /// And what may soon.
    Warn,
    /// And one line for each request.
    Info,
    /// And each decision.
    Debug,
}

/// `[log]`
#[derive(Clone, Debug, PartialEq)]
pub struct Log {
    /// Text or JSON.
    pub format: LogFormat,
    /// Least urgent level that is written.
    pub level: LogLevel,
}

/// SHA-256 of an API key.
pub type KeyDigest = [u8; 32];

/// `[[tenants]]`
#[derive(Clone, Debug, PartialEq)]
pub struct Tenant {
    /// Its name in metrics, logs and status.
    pub name: TenantId,
    /// Digests of its API keys.
    pub keys: Vec<KeyDigest>,
    /// The tier of its requests, and the most urgent tier it may ask for.
    pub tier: Tier,
    /// Models it may use; empty means all.
    pub models: Vec<ModelName>,
    /// Requests a minute, 0 for no limit.
    pub requests_per_minute: u64,
    /// Input and output tokens a minute, 0 for no limit.
    pub tokens_per_minute: Tokens,
    /// Its share of a tier, relative to the others' there; 1 to 1,000.
    pub weight: u32,
    /// It may ask for weaker screening of a request than its policy says.
    pub screen_override: bool,
}

#[cfg(test)]
impl Tenant {
    /// A tenant without keys and limits.
    pub(crate) fn example(name: &str) -> Self {
        Self {
            name: name.into(),
            keys: Vec::new(),
            tier: Tier::Standard,
            models: Vec::new(),
            requests_per_minute: 0,
            tokens_per_minute: Tokens::ZERO,
            weight: 1,
            screen_override: false,
        }
    }
}

/// What becomes of a chat request whose texts spell control tokens of the model.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum SpecialTokens {
    /// It is refused.
    #[default]
    Refuse,
    /// The texts are changed so that they spell none.
    Neutralise,
    /// It goes out as it is, and is counted as servers read it.
    Pass,
}

/// `[[models]]`
#[derive(Clone, Debug, PartialEq)]
pub struct Model {
    /// The name servers know it by.
    pub name: ModelName,
    /// Other names callers may use.
    pub aliases: Vec<ModelName>,
    /// Folder with `tokenizer.json` and the chat template, or a GGUF file, for exact counting.
    pub folder: Option<PathBuf>,
    /// Context window; `None` takes what the servers or the folder tell.
    pub context_window: Option<Tokens>,
    /// Output tokens expected of a request that gives no maximum, until answers teach better.
    pub expected_output: Tokens,
    /// Variables passed to the chat template, as the server's own flags give them.
    pub template_variables: BTreeMap<String, serde_json::Value>,
    /// What becomes of chat requests that spell its control tokens.
    pub special_tokens: SpecialTokens,
}

/// Where a model server is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Place {
    /// An HTTP server: host and port (never TLS: model servers listen on loopback).
    Http {
        /// Host name or address as written.
        host: String,
        /// Port.
        port: u16,
        /// Path in front of `/v1`, without a trailing slash; usually empty.
        prefix: String,
    },
    /// Inside this process, from a model folder.
    Folder(PathBuf),
}

/// Where a server publishes the events of its KV cache, over ZeroMQ.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KvEndpoint {
    /// Host name or address; IPv6 without brackets.
    pub host: String,
    /// Port, 1 to 65535.
    pub port: u16,
}

impl fmt::Display for KvEndpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.host.contains(':') {
            true => write!(f, "tcp://[{}]:{}", self.host, self.port),
            false => write!(f, "tcp://{}:{}", self.host, self.port),
        }
    }
}

/// `[[servers]]`
#[derive(Clone, PartialEq)]
pub struct Server {
    /// Its name in metrics, logs, status and the answer header.
    pub name: ServerId,
    /// Which program it is.
    pub kind: ServerKind,
    /// Where it is.
    pub place: Place,
    /// API key it wants from us.
    pub api_key: Option<String>,
    /// Models it serves; empty takes what it lists.
    pub models: Vec<ModelName>,
    /// KV cache room, overriding what it reports.
    pub kv_tokens: Option<Tokens>,
    /// Sequences at once, overriding what it reports.
    pub max_running: Option<u32>,
    /// It gets token ids instead of text, where its kind takes them and they were counted here.
    pub send_token_ids: bool,
    /// It computes one prompt after another; `None`: as its kind does.
    pub paced: Option<bool>,
    /// It gets the tier as a priority for its own scheduler.
    pub priority: bool,
    /// The GPUs it runs on, by UUID; empty finds them by its process.
    pub gpus: Vec<GpuId>,
    /// Its memory grows with its work; `None` goes by its kind.
    pub memory_grows: Option<bool>,
    /// How much memory a token of work takes, where its memory grows; `None` is learned.
    pub memory_per_token: Option<Bytes>,
    /// Where it publishes what changes in its KV cache; `None` follows nothing.
    pub kv_events: Option<KvEndpoint>,
}

impl fmt::Debug for Server {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Written by hand so that no log line ever shows the key.
        f.debug_struct("Server")
            .field("name", &self.name)
            .field("kind", &self.kind)
            .field("place", &self.place)
            .field("api_key", &self.api_key.as_ref().map(|_| "(kept secret)"))
            .field("models", &self.models)
            .field("kv_tokens", &self.kv_tokens)
            .field("max_running", &self.max_running)
            .field("send_token_ids", &self.send_token_ids)
            .field("priority", &self.priority)
            .field("paced", &self.paced)
            .field("gpus", &self.gpus)
            .field("memory_grows", &self.memory_grows)
            .field("memory_per_token", &self.memory_per_token)
            .field("kv_events", &self.kv_events)
            .finish()
    }
}

/// The name under which an embedded server offers its model: the one configured, else its folder's.
pub fn embedded_model(server: &Server) -> Option<ModelName> {
    let Place::Folder(folder) = &server.place else { return None };
    let of_folder = || folder.file_name()?.to_str().map(ModelName::from);
    server.models.first().cloned().or_else(of_folder)
}
