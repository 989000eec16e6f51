//! A model server for fault tests: real HTTP on loopback, which stalls, cuts or lies on cue.
//!
//! Raw bytes, no HTTP library, so that it can do what a library would not. It notices at once when its
//! peer leaves, also while it stalls, and records it.

mod answer;
mod connection;
pub mod hits;

pub use answer::{expected_text, expected_utf8};
pub use hits::Hits;

use std::{future::pending, net::SocketAddr, sync::Arc, time::Duration};
use tokio::{net::TcpSocket, sync::watch, task::JoinHandle};

/// Tokens of an answer whose behaviour names no number.
pub const TOKENS: usize = 8;
/// Bytes of the one event of [`Behaviour::HugeLine`].
pub const HUGE_BYTES: usize = 10 << 20;
/// What [`Behaviour::SecondAnswer`] smuggles in.
pub const SMUGGLED: &str = "smuggled-second-answer";

/// What it does with a generating request. `/health`, `/v1/models` and `/metrics` always answer, except
/// when connections are refused.
#[derive(Clone, Debug)]
pub enum Behaviour {
    /// A good answer.
    Ok { tokens: usize, interval: Duration },
    /// Nobody listens on the port.
    RefuseConnection,
    /// An error status; an empty body means vLLM's error object.
    Status { code: u16, retry_after: Option<u32>, body: String },
    /// Reads the request and says nothing.
    HangBeforeHead,
    /// Sends the head and then nothing.
    HangAfterHead,
    /// Good, but the first token comes late.
    SlowFirstToken(Duration),
    /// Stops after n tokens and keeps the connection.
    StallMidStream(usize),
    /// Closes with FIN after n tokens.
    CutFin(usize),
    /// Closes with RST after n tokens.
    CutRst(usize),
    /// A complete stream, closed without the last chunk.
    MissingChunkEnd,
    /// A cleanly framed body without a finish reason and without an end mark.
    CleanEndWithoutFinish,
    /// A stream without an event.
    EndEmpty,
    /// A web page with status 200.
    HtmlWith200,
    /// An error object with status 200, as JSON.
    ErrorObjectWith200,
    /// A stream whose first event is an error.
    ErrorEventFirst,
    /// A stream with an error after n tokens.
    ErrorEventMid(usize),
    /// JSON that breaks off inside a well-framed body.
    BrokenJson200,
    /// An event that is no JSON after n tokens; the stream then goes on.
    GarbageEvent(usize),
    /// One event of [`HUGE_BYTES`].
    HugeLine,
    /// Multi-byte characters, each byte in a chunk of its own.
    Utf8CutEveryByte,
    /// No usage, though asked.
    NoUsage,
    /// Usage below zero.
    NegativeUsage,
    /// Usage beyond reason.
    AbsurdUsage,
    /// Sends n tokens, then waits for the word to go on; an answer in one piece waits before its head.
    Held { after: usize, go: watch::Receiver<bool> },
    /// Sends n tokens, whatever the limit, and ends as if it had meant to.
    TooLong(usize),
    /// Ignores every limit.
    NeverStops,
    /// Says what the prompt says behind two numbers, `7|3|text`: pieces of so many letters, an event each; the stream
    /// comes in chunks of so many bytes, or an event a chunk for 0. Endless: again and again, until the caller leaves.
    Echo { endless: bool },
    /// A second, unasked response right behind the first.
    SecondAnswer,
    /// A finish reason, but no end mark.
    NoDone,
    /// A head that never ends, one byte at a time.
    TrickleHeaders,
}

/// How it looks from outside.
#[derive(Clone, Debug)]
pub struct Script {
    /// What it does.
    pub behaviour: Behaviour,
    /// The model in `/v1/models`.
    pub model: String,
    /// The KV cache in `/metrics`, in vLLM's form; no such page without it.
    pub kv_tokens: Option<u64>,
}

/// Counts the input of a request body; `None` refuses it.
pub type Teller = Arc<dyn Fn(&[u8]) -> Option<u64> + Send + Sync>;

/// What it says of itself beside its answers. Nothing of it is true unless the test makes it so.
#[derive(Clone, Default)]
pub struct Says {
    /// Input tokens in its usage; the bytes of the last message without it.
    pub usage: Option<Teller>,
    /// What `/tokenize` answers; without it there is no such page.
    pub endpoint: Option<Teller>,
    /// Where the model's files are.
    pub root: Option<String>,
    /// Its health page says that it is dead.
    pub down: bool,
    /// More pages, by path, before all others.
    pub pages: Vec<(&'static str, String)>,
}

/// A running server; it stops when dropped.
#[derive(Debug)]
pub struct Scripted {
    /// Where it listens.
    pub addr: SocketAddr,
    /// What it has seen.
    pub hits: Arc<Hits>,
    behaviour: watch::Sender<Behaviour>,
    says: watch::Sender<Says>,
    task: JoinHandle<()>,
    /// Keeps the port of one that refuses connections.
    _held: Option<TcpSocket>,
}

// === impl Behaviour ===

impl Behaviour {
    /// A good answer of [`TOKENS`] tokens at once.
    pub fn ok() -> Self {
        Self::Ok { tokens: TOKENS, interval: Duration::ZERO }
    }

    /// A status with vLLM's error object.
    pub fn status(code: u16) -> Self {
        Self::Status { code, retry_after: None, body: String::new() }
    }
}

// === impl Scripted ===

impl Scripted {
    /// Starts one with the model `scripted` and a KV cache of 100,000 tokens.
    pub async fn start(behaviour: Behaviour) -> Self {
        Self::with(Script { behaviour, model: "scripted".to_owned(), kv_tokens: Some(100_000) })
            .await
    }

    /// Starts one.
    #[expect(clippy::disallowed_methods, reason = "owned by Scripted, aborted when it is dropped")]
    pub async fn with(script: Script) -> Self {
        let hits = Arc::new(Hits::default());
        let refuses = matches!(script.behaviour, Behaviour::RefuseConnection);
        let (behaviour, behaves) = watch::channel(script.behaviour.clone());
        let (says, said) = watch::channel(Says::default());
        let socket = TcpSocket::new_v4().unwrap();
        socket.bind(SocketAddr::from(([127, 0, 0, 1], 0))).unwrap();
        let addr = socket.local_addr().unwrap();
        if refuses {
            // Bound but not listening: the kernel refuses, and nobody else can take the port.
            let task = tokio::spawn(pending());
            return Self { addr, hits, behaviour, says, task, _held: Some(socket) };
        }
        let listener = socket.listen(1024).unwrap();
        let task = tokio::spawn(connection::accept(
            listener,
            Arc::new(script),
            (behaves, said),
            Arc::clone(&hits),
        ));
        Self { addr, hits, behaviour, says, task, _held: None }
    }

    /// Changes what it does with the requests to come. It cannot begin to refuse connections.
    pub fn behave(&self, behaviour: Behaviour) {
        assert!(!matches!(behaviour, Behaviour::RefuseConnection), "only from the start");
        self.behaviour.send_replace(behaviour);
    }
}

impl Scripted {
    /// Changes what it says of itself.
    pub fn say(&self, says: Says) {
        self.says.send_replace(says);
    }
}

impl std::fmt::Debug for Says {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Says").field("down", &self.down).finish_non_exhaustive()
    }
}

impl Drop for Scripted {
    fn drop(&mut self) {
        self.task.abort();
    }
}
