//! A running simulation: takes commands, plays scripts, and says what it did.

use super::{
    GpuOptions,
    command::{Command, Wrong, wrong},
    desk::{Desk, DeskError},
    script::Script,
};
use std::{
    future::Future,
    io,
    os::unix::fs::{FileTypeExt, PermissionsExt},
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};
use tokio::{
    io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader},
    net::{UnixListener, UnixStream},
    sync::{OwnedSemaphorePermit, Semaphore, mpsc},
    task::JoinSet,
    time::{sleep, timeout},
};

/// Connections at a time. One more is closed at once.
const CONNECTIONS_MAX: usize = 16;

/// Scripts that play at a time.
const PLAYS_MAX: usize = 4;

/// The longest command, in bytes.
const COMMAND_MAX: u64 = 4096;

/// How long a connection may say nothing, and how long it may take to read an answer.
const IDLE_MAX: Duration = Duration::from_secs(60);

/// Why a simulation cannot run.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// Its folder cannot be used.
    #[error(transparent)]
    Desk(#[from] DeskError),
    /// Another process has the socket.
    #[error("{0}: a simulation runs there already; speak to it, or stop it")]
    Running(PathBuf),
    /// The socket cannot be made.
    #[error("{path}: {source}")]
    Socket {
        /// Where.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The script cannot be played.
    #[error(transparent)]
    Script(#[from] Wrong),
}

/// A node whose folder is set up, which takes no commands yet.
#[derive(Debug)]
pub struct Node {
    stage: Arc<Stage>,
    listener: UnixListener,
    scripts: mpsc::Receiver<(Script, OwnedSemaphorePermit)>,
    fresh: bool,
}

/// What all who give commands share.
#[derive(Debug)]
struct Stage {
    desk: Desk,
    plays: Arc<Semaphore>,
    /// To the task that owns those that play. As much room as there are permits.
    play: mpsc::Sender<(Script, OwnedSemaphorePermit)>,
}

// === impl Node ===

impl Node {
    /// Sets up the folder and binds the socket. Needs a runtime around it.
    ///
    /// # Errors
    ///
    /// Why not; the folder may have been written by then.
    pub async fn open(options: &GpuOptions, folder: &Path) -> Result<Self, OpenError> {
        let script = options.play.as_deref().map(Script::find).transpose()?;
        let (desk, fresh) = Desk::set_up(options, folder)?;
        let listener = bind(&desk.socket()).await?;
        let (play, scripts) = mpsc::channel(PLAYS_MAX);
        let plays = Arc::new(Semaphore::new(PLAYS_MAX));
        let stage = Arc::new(Stage { desk, plays, play });
        if let Some(script) = script {
            stage.start(script)?;
        }
        Ok(Self { stage, listener, scripts, fresh })
    }

    /// What a person has to know who started it.
    pub fn greeting(&self) -> String {
        let desk = &self.stage.desk;
        let kept = if self.fresh { "" } else { " (the state file was there and is kept)" };
        format!(
            "{} simulated GPUs{kept}. For the daemon's configuration:\n\n[gpu]\nnvml_library = \"{}\"\n\n\
             Commands are taken here and from {}; try help.\n",
            desk.cards(),
            desk.library().display(),
            desk.socket().display()
        )
    }

    /// Takes commands from `lines` and from the socket until `stop` is done; the end of `lines` ends nothing.
    /// What is to be printed goes to `say`. Dropping the future stops it, too, and leaves the socket's file.
    pub async fn run(
        mut self,
        mut lines: mpsc::Receiver<String>,
        say: impl Fn(&str),
        stop: impl Future<Output = ()>,
    ) {
        // Room for a few words of those that play; when it is full, they wait.
        let (tell, mut told) = mpsc::channel::<String>(16);
        // Both sets abort their tasks when they are dropped.
        let (mut plays, mut connections) = (JoinSet::new(), JoinSet::new());
        let (mut stop, mut open) = (std::pin::pin!(stop), true);
        loop {
            tokio::select! {
                () = &mut stop => break,
                line = lines.recv(), if open => match line {
                    Some(line) => say(&self.stage.answer(&line)),
                    None => open = false,
                },
                Some(text) = told.recv() => say(&text),
                Some((script, permit)) = self.scripts.recv() => {
                    let (stage, tell) = (Arc::clone(&self.stage), tell.clone());
                    plays.spawn(async move {
                        stage.play(&script, &tell).await;
                        drop(permit);
                    });
                }
                Ok((stream, _)) = self.listener.accept() => {
                    if connections.len() < CONNECTIONS_MAX {
                        connections.spawn(serve(Arc::clone(&self.stage), stream));
                    }
                }
                Some(_) = plays.join_next() => {}
                Some(_) = connections.join_next() => {}
            }
        }
        // Left behind it does no harm: the next simulation replaces it.
        let _ = std::fs::remove_file(self.stage.desk.socket());
    }
}

// === impl Stage ===

impl Stage {
    /// Does what a line says. The answer is one line, `ok` or `error: ...`, behind what was asked for.
    fn answer(&self, line: &str) -> String {
        // A small file is read and written, and nothing else happens in this process meanwhile.
        let done = Command::parse(line.trim()).and_then(|command| match command {
            Command::Play { script } => Script::find(&script).and_then(|script| self.start(script)),
            command => self.desk.run(&command),
        });
        match done {
            Ok(said) => format!("{}ok\n", said.unwrap_or_default()),
            Err(why) => format!("error: {why}\n"),
        }
    }

    fn start(&self, script: Script) -> Result<Option<String>, Wrong> {
        let many = || wrong(format_args!("{PLAYS_MAX} scripts are being played already"));
        let permit = Arc::clone(&self.plays).try_acquire_owned().map_err(|_| many())?;
        self.play.try_send((script, permit)).map_err(|_| many())?;
        Ok(None)
    }

    /// Does one step after the other. A step that is refused ends the script.
    async fn play(&self, script: &Script, tell: &mpsc::Sender<String>) {
        for step in &script.steps {
            sleep(step.after).await;
            let done = self.desk.run(&step.command);
            let text = match &done {
                Ok(said) => {
                    format!(
                        "{}: {}\n{}",
                        script.name,
                        step.text,
                        said.as_deref().unwrap_or_default()
                    )
                }
                Err(why) => format!("{}: {}\nerror: {why}; it ends here\n", script.name, step.text),
            };
            // Nobody listens only when the simulation ends.
            if tell.send(text).await.is_err() || done.is_err() {
                return;
            }
        }
        let _ = tell.send(format!("{}: played\n", script.name)).await;
    }
}

/// Binds the socket for its owner alone. One that nobody answers on is replaced.
async fn bind(path: &Path) -> Result<UnixListener, OpenError> {
    if UnixStream::connect(path).await.is_ok() {
        return Err(OpenError::Running(path.to_owned()));
    }
    let failed = |source| OpenError::Socket { path: path.to_owned(), source };
    if std::fs::symlink_metadata(path).is_ok_and(|found| found.file_type().is_socket()) {
        std::fs::remove_file(path).map_err(failed)?;
    }
    let listener = UnixListener::bind(path).map_err(failed)?;
    let owner_only = std::fs::Permissions::from_mode(0o600);
    std::fs::set_permissions(path, owner_only).map_err(failed)?;
    Ok(listener)
}

/// Answers one line after the other, until the other side is silent for too long or says too much at once.
async fn serve(stage: Arc<Stage>, stream: UnixStream) {
    let (read, mut write) = stream.into_split();
    let mut read = BufReader::new(read);
    loop {
        let mut line = Vec::new();
        let mut bounded = (&mut read).take(COMMAND_MAX);
        match timeout(IDLE_MAX, bounded.read_until(b'\n', &mut line)).await {
            Ok(Ok(length)) if length > 0 => {}
            _ => return,
        }
        let whole = line.len() < COMMAND_MAX as usize || line.ends_with(b"\n");
        let answer = match std::str::from_utf8(&line) {
            Ok(text) if whole => stage.answer(text),
            _ => format!("error: a command is text of up to {COMMAND_MAX} bytes\n"),
        };
        let written = timeout(IDLE_MAX, write.write_all(answer.as_bytes())).await;
        if !whole || !matches!(written, Ok(Ok(()))) {
            return;
        }
    }
}
