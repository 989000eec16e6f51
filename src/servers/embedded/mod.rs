//! A small language model inside this process: the quickstart's default, and the last step of degradation.
//!
//! It is a server like any other: the broker sends it OpenAI bodies and watches its load. Threads of its
//! own run the model, one sequence each and never more than one core each, so that a machine's cores stay
//! with its real model servers.

mod ask;
mod llama;
mod sample;
mod say;
mod session;
mod shape;
mod text;
mod weights;

#[cfg(test)]
mod tests;
#[cfg(test)]
mod tiny;

use super::{Answer, Call, CallError, Later, ModelServer, Route, Told};
use crate::{
    ids::{ModelName, ServerId},
    snapshot::{Capacity, Health, Load, ServedModel, ServerKind, ServerState},
    tokens::{self, ModelFiles, Profile},
    units::Tokens,
};
use bytes::Bytes;
use llama::Llama;
use session::Reply;
use std::{
    fmt,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError, atomic::AtomicU64, mpsc},
    time::Duration,
};
use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore, oneshot},
    time::{Instant, timeout},
};

/// Sequences at once where nothing else is said.
pub const MAX_RUNNING: u32 = 2;

/// A caller who leaves gives the place back one token later. This long a call waits for that before it is
/// refused.
const PLACE_LIMIT: Duration = Duration::from_millis(250);

/// Bodies up to this size are counted where they are, larger ones on a thread for long work.
const COUNT_HERE_MAX: usize = 8 << 10;

/// Why a model folder cannot be served. Nothing is left behind; a retry helps only once the folder changed.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// A file is missing or not what it should be.
    #[error("cannot read {path}: {why}")]
    File {
        /// The file.
        path: PathBuf,
        /// What was wrong with it.
        why: String,
    },
    /// The model is of a shape that this decoder does not run.
    #[error("cannot run this model: {0}")]
    Unsupported(String),
    /// A weight is missing or has the wrong size.
    #[error("the weights do not fit config.json: {0}")]
    Weights(String),
    /// The tokenizer or the chat template cannot be used.
    #[error("cannot use the tokenizer or chat template")]
    Tokens(#[from] tokens::LoadError),
    /// The system gave us no thread.
    #[error("cannot start a thread")]
    Thread(#[from] std::io::Error),
}

/// A model server inside this process.
pub struct Embedded {
    id: ServerId,
    model: Arc<Model>,
    max_running: u32,
    places: Arc<Semaphore>,
    /// Holds at most one task for each place. Dropping it ends the threads.
    tasks: mpsc::SyncSender<Task>,
}

/// What all threads share.
#[derive(Debug)]
struct Model {
    name: ModelName,
    llama: Llama,
    files: ModelFiles,
    profile: Profile,
    tokens_made: AtomicU64,
}

/// The right to run one sequence.
type Place = OwnedSemaphorePermit;

struct Task {
    call: Call,
    reply: Reply,
    place: Place,
}

// === impl LoadError ===

impl LoadError {
    fn file(path: &Path, why: impl fmt::Display) -> Self {
        Self::File { path: path.to_owned(), why: why.to_string() }
    }
}

// === impl Embedded ===

impl Embedded {
    /// Loads a folder in Hugging Face layout and starts `max_running` threads (at least one) for it.
    ///
    /// Reads files and computes: call it off the async threads.
    pub fn load(
        id: ServerId,
        name: ModelName,
        folder: &Path,
        max_running: u32,
    ) -> Result<Self, LoadError> {
        let files = ModelFiles::load(folder)?;
        let llama = Llama::load(folder)?;
        let profile = Profile::of(ServerKind::Embedded);
        let model = Arc::new(Model { name, llama, files, profile, tokens_made: AtomicU64::new(0) });
        let max_running = max_running.clamp(1, 64);
        let (tasks, waiting) = mpsc::sync_channel(max_running as usize);
        // Guards the receiving end, so that one idle thread at a time waits for the next task.
        let waiting = Arc::new(Mutex::new(waiting));
        for number in 0..max_running {
            let (model, waiting) = (Arc::clone(&model), Arc::clone(&waiting));
            std::thread::Builder::new()
                .name(format!("model-{number}"))
                .spawn(move || run(&model, &waiting))?;
        }
        let places = Arc::new(Semaphore::new(max_running as usize));
        Ok(Self { id, model, max_running, places, tasks })
    }

    /// Tokens of input and output together that one sequence may have.
    pub fn context_window(&self) -> Tokens {
        Tokens(self.model.llama.shape().window as u64)
    }

    /// Tokens made since the start.
    pub fn tokens_made(&self) -> u64 {
        self.model.tokens_made.load(std::sync::atomic::Ordering::Relaxed)
    }

    fn running(&self) -> u32 {
        self.max_running.saturating_sub(self.places.available_permits() as u32)
    }

    async fn hand_over(&self, call: Call) -> Result<Answer, CallError> {
        let refused = || CallError::Refused(format!("all {} places are taken", self.max_running));
        let place = timeout(PLACE_LIMIT, Arc::clone(&self.places).acquire_owned())
            .await
            .map_err(|_| refused())?
            .map_err(|_| refused())?;
        let (reply, answer) = oneshot::channel();
        self.tasks.try_send(Task { call, reply, place }).map_err(|_| refused())?;
        answer.await.map_err(|_| CallError::Broken("the model stopped".to_owned()))?
    }
}

impl fmt::Debug for Embedded {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Embedded").field("id", &self.id).field("model", &self.model.name).finish()
    }
}

impl ModelServer for Embedded {
    fn id(&self) -> &ServerId {
        &self.id
    }

    fn kind(&self) -> ServerKind {
        ServerKind::Embedded
    }

    fn send(&self, call: Call) -> Later<'_, Result<Answer, CallError>> {
        Box::pin(self.hand_over(call))
    }

    fn observe<'a>(&'a self, _last: &'a ServerState) -> Later<'a, ServerState> {
        let window = self.context_window();
        let name = self.model.name.clone();
        Box::pin(std::future::ready(ServerState {
            id: self.id.clone(),
            kind: ServerKind::Embedded,
            health: Health::Up,
            models: vec![ServedModel::ready(name, Some(window))],
            reported: Vec::new(),
            load: Load { running: Some(self.running()), waiting: Some(0), ..Load::default() },
            capacity: Capacity {
                kv_tokens: Some(Tokens(window.get().saturating_mul(u64::from(self.max_running)))),
                max_running: Some(self.max_running),
                block_tokens: None,
            },
            version: Some(env!("CARGO_PKG_VERSION").to_owned()),
            read_at: Some(Instant::now()),
        }))
    }

    fn count(&self, route: Route, body: Bytes) -> Later<'_, Option<Tokens>> {
        let model = Arc::clone(&self.model);
        let here = body.len() <= COUNT_HERE_MAX;
        let count = move || {
            let inputs =
                ask::object(&body).and_then(|body| ask::inputs(&model, route, &body)).ok()?;
            Some(Tokens(inputs.iter().map(|ids| ids.len() as u64).sum()))
        };
        if here {
            return Box::pin(std::future::ready(count()));
        }
        Box::pin(async move { tokio::task::spawn_blocking(count).await.ok().flatten() })
    }

    fn count_told(&self, route: Route, body: Bytes) -> Later<'_, Told> {
        // It counts whatever it would answer.
        Box::pin(async move { self.count(route, body).await.map_or(Told::Refused, Told::Tokens) })
    }
}

/// A thread's life: one task after the other, until the server is dropped.
fn run(model: &Model, waiting: &Mutex<mpsc::Receiver<Task>>) {
    // candle would spread each multiplication over all cores. It asks the pool that its thread belongs to,
    // and this pool is the thread itself.
    let pool = rayon::ThreadPoolBuilder::new().num_threads(1).use_current_thread().build();
    if let Err(error) = &pool {
        tracing::warn!(%error, "the embedded model may use every core");
    }
    loop {
        let task = waiting.lock().unwrap_or_else(PoisonError::into_inner).recv();
        let Ok(Task { call, reply, place }) = task else { return };
        // Whoever left while waiting costs nothing.
        if !reply.is_closed() {
            session::serve(model, &call, reply, place);
        }
    }
}
