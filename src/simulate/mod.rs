//! `berthd simulate`: a scripted model server, for tests, benches and capacity planning.
//!
//! It speaks vLLM's HTTP surface and exports vLLM's metric names, generates words instead of meaning, and
//! spends the time a real server would spend, by the clock of a continuously batching server. Nothing else
//! in `src/` may use it, and it knows nothing of the broker.

mod answer;
mod ask;
mod batch;
pub mod clock;
pub mod gpu;
mod pages;
mod profiles;
mod routes;
mod wire;

pub use profiles::ProfileName;

use crate::units::Tokens;
use batch::Batch;
use clap::Args;
use hyper::{server::conn::http1, service::service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use std::{
    convert::Infallible,
    future::Future,
    io,
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::{Duration, SystemTime, UNIX_EPOCH},
};
use tokio::{
    net::{TcpListener, TcpStream},
    task::JoinSet,
};
use wire::{Shape, Style, Words};

/// Connections at a time; more wait in the kernel's line.
const CONNECTIONS_MAX: usize = 32_768;

/// Wait after a failed accept, so that a lack of descriptors does not become a busy loop.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// KV cache of the `instant` profile where none is given. It is shown, never filled.
const INSTANT_KV: Tokens = Tokens(1_000_000);

/// A simulated model server, for tests, benches and capacity planning
#[derive(Args, Clone, Debug)]
pub struct SimulateOptions {
    /// Address to serve on; port 0 takes a free one
    #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1:8001")]
    pub listen: SocketAddr,
    /// Name of the model it serves
    #[arg(long, value_name = "NAME", default_value = "simulated")]
    pub model: String,
    /// Which server it plays
    #[arg(long, value_enum, default_value = "8b-h100")]
    pub profile: ProfileName,
    /// KV cache, in tokens [default: the profile's]
    #[arg(long, value_name = "TOKENS")]
    pub kv_tokens: Option<u64>,
    /// Most sequences in the batch [default: the profile's]
    #[arg(long, value_name = "SEQUENCES")]
    pub max_running: Option<u32>,
    /// Most tokens one step computes [default: the profile's]
    #[arg(long, value_name = "TOKENS")]
    pub chunk_tokens: Option<u64>,
    /// Most tokens of prompt and answer together; never more than the KV cache
    #[arg(long, value_name = "TOKENS", default_value_t = 32_768)]
    pub context_window: u64,
    /// Tokens of an answer whose request sets no limit
    #[arg(long, value_name = "TOKENS", default_value_t = 64)]
    pub output_tokens: u64,
    /// Pad each token's text to this many bytes
    #[arg(long, value_name = "BYTES", default_value_t = 0)]
    pub chunk_bytes: u16,
    /// Run the clock this many times as fast as the real server's
    #[arg(long, value_name = "FACTOR", default_value_t = 1.0)]
    pub speed: f64,
    /// Microseconds between two tokens of one answer; for the instant profile only
    #[arg(long, value_name = "MICROSECONDS", default_value_t = 0)]
    pub token_interval_us: u64,
}

/// A bound server that does not serve yet.
#[derive(Debug)]
pub struct Simulator {
    listener: TcpListener,
    address: SocketAddr,
    server: Arc<Server>,
}

/// What the server has seen. Counters since the start, but for `running`.
#[derive(Debug, Default)]
pub struct Stats {
    requests: AtomicU64,
    running: AtomicU64,
    aborted: AtomicU64,
    finished: AtomicU64,
    stopped: AtomicU64,
    refused: AtomicU64,
    prompt: AtomicU64,
    generated: AtomicU64,
}

/// What every connection shares.
#[derive(Debug)]
struct Server {
    model: String,
    model_json: String,
    window: Tokens,
    output: Tokens,
    kv: Tokens,
    words: Words,
    token_interval: Duration,
    created_s: u64,
    /// Answers of the instant profile, rendered ahead; their id is always the same.
    chat: Arc<Shape>,
    completion: Arc<Shape>,
    batch: Option<Arc<Batch>>,
    stats: Arc<Stats>,
}

/// Binds the address, so that a taken port is known before anything else starts.
///
/// # Errors
///
/// What the operating system says about the address.
pub async fn bind(options: SimulateOptions) -> io::Result<Simulator> {
    let listener = TcpListener::bind(options.listen).await?;
    let address = listener.local_addr()?;
    Ok(Simulator { listener, address, server: Arc::new(Server::new(options)) })
}

fn unix_now_s() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

// === impl SimulateOptions ===

impl Default for SimulateOptions {
    /// The instant profile on a free port of the loopback, for tests.
    fn default() -> Self {
        Self {
            listen: SocketAddr::from(([127, 0, 0, 1], 0)),
            model: "simulated".to_owned(),
            profile: ProfileName::Instant,
            kv_tokens: None,
            max_running: None,
            chunk_tokens: None,
            context_window: 32_768,
            output_tokens: 64,
            chunk_bytes: 0,
            speed: 1.0,
            token_interval_us: 0,
        }
    }
}

// === impl Simulator ===

impl Simulator {
    /// Where it listens.
    pub const fn local_addr(&self) -> SocketAddr {
        self.address
    }

    /// Its counters, which live on after it.
    pub fn stats(&self) -> Arc<Stats> {
        Arc::clone(&self.server.stats)
    }

    /// Serves until `stop` is done, then cuts what is under way. Dropping the future does the same.
    pub async fn run(self, stop: impl Future<Output = ()>) {
        let clock = async {
            match &self.server.batch {
                Some(batch) => batch.drive().await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            () = stop => {}
            () = clock => {}
            () = self.accept() => {}
        }
    }

    async fn accept(&self) {
        // The set aborts its tasks when it is dropped.
        let mut connections = JoinSet::new();
        loop {
            while connections.try_join_next().is_some() {}
            if connections.len() >= CONNECTIONS_MAX {
                connections.join_next().await;
            }
            match self.listener.accept().await {
                Ok((stream, _)) => {
                    connections.spawn(serve(Arc::clone(&self.server), stream));
                }
                Err(_) => tokio::time::sleep(ACCEPT_PAUSE).await,
            }
        }
    }
}

async fn serve(server: Arc<Server>, stream: TcpStream) {
    // Without it a token waits for the acknowledgement of the one before; it is only slower if it fails.
    let _ = stream.set_nodelay(true);
    let service = service_fn(move |request| {
        let server = Arc::clone(&server);
        async move { Ok::<_, Infallible>(routes::answer(server, request).await) }
    });
    // How a connection ends is the caller's business; aborts are counted where the answer is dropped.
    let _ = http1::Builder::new()
        .timer(TokioTimer::new())
        .serve_connection(TokioIo::new(stream), service)
        .await;
}

// === impl Server ===

impl Server {
    fn new(options: SimulateOptions) -> Self {
        let model_json = serde_json::Value::from(options.model.as_str()).to_string();
        let profile = options.profile.profile().map(|mut profile| {
            profile.kv = options.kv_tokens.map_or(profile.kv, Tokens);
            profile.chunk = options.chunk_tokens.map_or(profile.chunk, Tokens);
            profile.max_running = options.max_running.map_or(profile.max_running, |n| n as usize);
            profile
        });
        let batch = profile.map(|profile| Arc::new(Batch::new(profile, options.speed)));
        let kv = match &batch {
            Some(batch) => batch.load().capacity,
            None => options.kv_tokens.map_or(INSTANT_KV, Tokens),
        };
        let words = Words { pad_bytes: usize::from(options.chunk_bytes) };
        let created_s = unix_now_s();
        let shape = |style| Shape::new(style, words, "instant", created_s, &model_json);
        let (mut chat, mut completion) = (shape(Style::Chat), shape(Style::Completion));
        if batch.is_none() {
            (chat, completion) = (chat.rendered(), completion.rendered());
        }
        Self {
            window: Tokens(options.context_window).min(kv),
            output: Tokens(options.output_tokens.max(1)),
            token_interval: Duration::from_micros(options.token_interval_us),
            stats: Arc::new(Stats::default()),
            model: options.model,
            model_json,
            kv,
            words,
            created_s,
            chat: Arc::new(chat),
            completion: Arc::new(completion),
            batch,
        }
    }
}

// === impl Stats ===

impl Stats {
    /// Generating requests that arrived.
    pub fn requests(&self) -> u64 {
        self.requests.load(Relaxed)
    }

    /// Generating requests here now.
    pub fn running(&self) -> u64 {
        self.running.load(Relaxed)
    }

    /// Requests whose caller left before the end of the answer.
    pub fn aborted(&self) -> u64 {
        self.aborted.load(Relaxed)
    }

    /// Requests answered to the end.
    pub fn finished(&self) -> u64 {
        self.finished.load(Relaxed)
    }

    /// Requests answered with an error.
    pub fn refused(&self) -> u64 {
        self.refused.load(Relaxed)
    }

    fn stopped(&self) -> u64 {
        self.stopped.load(Relaxed)
    }

    fn prompt(&self) -> Tokens {
        Tokens(self.prompt.load(Relaxed))
    }

    fn generated(&self) -> Tokens {
        Tokens(self.generated.load(Relaxed))
    }
}
