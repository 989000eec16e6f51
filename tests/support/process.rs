//! The real binary as a process: started with a configuration of its own, watched as a service manager
//! would, asked over its own sockets, and killed when dropped.

use super::raw::{Ended, PATIENCE, Reply};
use berthd::simulate::{self, ProfileName, SimulateOptions, Stats};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use std::{
    fs::{self, File},
    future::Future,
    io,
    net::SocketAddr,
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Output, Stdio},
    sync::Arc,
    time::Duration,
};
use tempfile::TempDir;
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt},
    net::{TcpStream, UnixDatagram, UnixStream},
    task::JoinSet,
    time::{sleep, timeout},
};

/// The key of the tenant `team` in every configuration that [`Setup`] writes.
pub const KEY: &str = "sk-marker-key-5f1e";

/// What a daemon is to be started with.
#[derive(Clone, Debug)]
pub struct Setup {
    /// Lines below `[listen]`, after the addresses.
    pub listen: String,
    /// Lines below `[gpu]`.
    pub gpu: String,
    /// Lines below `[log]`.
    pub log: String,
    /// Lines below `[probe]`.
    pub probe: String,
    /// Sections and entries: servers, more tenants.
    pub rest: String,
    /// Where callers connect; a free port unless a test says otherwise.
    pub data: String,
    /// Environment of the process.
    pub env: Vec<(String, String)>,
}

/// A daemon that runs.
pub struct Daemon {
    child: Child,
    folder: TempDir,
    notify: UnixDatagram,
    setup: Setup,
    /// Every notice so far, a line each.
    pub notices: Vec<String>,
    /// Where callers connect.
    pub data: SocketAddr,
    /// Where metrics are read.
    pub admin: SocketAddr,
}

/// The binary under test.
pub fn berthd() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_berthd"));
    for name in ["NOTIFY_SOCKET", "WATCHDOG_USEC", "JOURNAL_STREAM", "LISTEN_FDS", "BERTHD_SOCKET"]
    {
        command.env_remove(name);
    }
    command
}

/// Runs a command that ends by itself, with this on its standard input.
pub async fn run_with(mut command: Command, input: &str) -> Output {
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().expect("the binary starts");
    let mut stdin = child.stdin.take().expect("a pipe");
    let input = input.to_owned();
    let work = tokio::task::spawn_blocking(move || {
        // A command that does not read its input has closed it.
        let _ = io::Write::write_all(&mut stdin, input.as_bytes());
        drop(stdin);
        child.wait_with_output()
    });
    timeout(PATIENCE, work).await.expect("the command ends").unwrap().unwrap()
}

/// Runs `berthd` with these arguments.
pub async fn run(args: &[&str]) -> Output {
    let mut command = berthd();
    command.args(args);
    run_with(command, "").await
}

/// What a command printed, and on which exit code it ended.
pub fn told(output: &Output) -> (i32, String, String) {
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    (output.status.code().unwrap_or(-1), text(&output.stdout), text(&output.stderr))
}

/// Waits until `look` finds something; `what` is told when it never does.
pub async fn eventually<T, F: Future<Output = Option<T>>>(
    what: &str,
    mut look: impl FnMut() -> F,
) -> T {
    let found = async {
        loop {
            if let Some(found) = look().await {
                return found;
            }
            sleep(Duration::from_millis(5)).await;
        }
    };
    timeout(PATIENCE, found).await.unwrap_or_else(|_| panic!("never came: {what}"))
}

/// The digest of a key, as the configuration holds it.
pub fn digest(key: &str) -> String {
    Sha256::digest(key.as_bytes()).iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Waits for the end of a process.
pub async fn ended(child: &mut Child) -> ExitStatus {
    timeout(PATIENCE, end_of(child)).await.expect("the process ends")
}

async fn end_of(child: &mut Child) -> ExitStatus {
    loop {
        if let Some(status) = child.try_wait().expect("a child of ours") {
            return status;
        }
        sleep(Duration::from_millis(2)).await;
    }
}

/// Sends a signal to a process of ours.
pub fn signal(child: &Child, signal: rustix::process::Signal) {
    let id = rustix::process::Pid::from_child(child);
    rustix::process::kill_process(id, signal).expect("the process is there");
}

/// One HTTP exchange on a connection that is closed after it.
pub async fn exchange<S>(
    stream: &mut S,
    method: &str,
    path: &str,
    headers: &[(&str, &str)],
    body: &str,
) -> Reply
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let request = request(method, path, headers, body, "close");
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut bytes = Vec::new();
    let ended = match timeout(PATIENCE, stream.read_to_end(&mut bytes)).await.expect("in time") {
        Ok(_) => Ended::Closed,
        Err(error) if error.kind() == io::ErrorKind::ConnectionReset => Ended::Reset,
        Err(error) => panic!("reading failed: {error}"),
    };
    Reply::parse(&bytes, ended)
}

/// A request as it goes over the wire.
pub fn request(
    method: &str,
    path: &str,
    headers: &[(&str, &str)],
    body: &str,
    connection: &str,
) -> String {
    let headers: String =
        headers.iter().map(|(name, value)| format!("{name}: {value}\r\n")).collect();
    format!(
        "{method} {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n{headers}\
         Connection: {connection}\r\nContent-Length: {}\r\n\r\n{body}",
        body.len()
    )
}

/// A GET without a key.
pub async fn get(to: SocketAddr, path: &str) -> Reply {
    let mut stream = TcpStream::connect(to).await.unwrap();
    exchange(&mut stream, "GET", path, &[], "").await
}

/// A chat request body.
pub fn ask(model: &str, stream: bool, max_tokens: u64) -> Value {
    json!({
        "model": model, "stream": stream, "max_tokens": max_tokens,
        "messages": [{ "role": "user", "content": "What is berthd?" }],
    })
}

async fn read_notice(socket: &UnixDatagram) -> Option<Vec<String>> {
    let mut notice = [0; 4096];
    let length = timeout(PATIENCE, socket.recv(&mut notice)).await.ok()?.unwrap();
    let text = std::str::from_utf8(&notice[..length]).unwrap();
    Some(text.lines().map(str::to_owned).collect())
}

/// A simulated model server in the test's own process.
pub struct Simulated {
    /// Where it listens.
    pub addr: SocketAddr,
    /// What it has seen.
    pub stats: Arc<Stats>,
    /// Aborts the server when dropped.
    _task: JoinSet<()>,
}

/// Starts one that serves `model`, with this pause between two tokens.
pub async fn simulated(model: &str, token_interval: Duration) -> Simulated {
    let options = SimulateOptions {
        listen: SocketAddr::from(([127, 0, 0, 1], 0)),
        model: model.into(),
        profile: ProfileName::Instant,
        token_interval_us: u64::try_from(token_interval.as_micros()).unwrap(),
        ..Default::default()
    };
    let simulator = simulate::bind(options).await.unwrap();
    let (addr, stats) = (simulator.local_addr(), simulator.stats());
    let mut task = JoinSet::new();
    task.spawn(simulator.run(std::future::pending()));
    Simulated { addr, stats, _task: task }
}

// === impl Setup ===

impl Default for Setup {
    fn default() -> Self {
        Self {
            listen: "drain_limit_s = 10".into(),
            gpu: "enabled = false".into(),
            log: "format = \"json\"".into(),
            probe: "period_s = 0.1".into(),
            rest: String::new(),
            data: "127.0.0.1:0".into(),
            env: Vec::new(),
        }
    }
}

impl Setup {
    /// With a vLLM-like server.
    pub fn with_server(name: &str, at: SocketAddr) -> Self {
        Self::default().server(name, at)
    }

    /// One more vLLM-like server.
    pub fn server(mut self, name: &str, at: SocketAddr) -> Self {
        self.rest.push_str(&format!(
            "[[servers]]\nname = \"{name}\"\nkind = \"vllm\"\nurl = \"http://{at}\"\n"
        ));
        self
    }

    /// The configuration file's text.
    pub fn text(&self, socket: &Path) -> String {
        format!(
            "[listen]\ndata = \"{}\"\nadmin = \"127.0.0.1:0\"\nsocket = \"{}\"\n{}\n[gpu]\n{}\n[log]\n{}\n\
             [probe]\ndiscover = false\n{}\n[[tenants]]\nname = \"team\"\nkeys_sha256 = [\"{}\"]\n{}",
            self.data,
            socket.display(),
            self.listen,
            self.gpu,
            self.log,
            self.probe,
            digest(KEY),
            self.rest
        )
    }

    /// Starts the daemon and waits until it says that it is ready.
    pub async fn start(self) -> Daemon {
        let folder = tempfile::tempdir().unwrap();
        self.start_in(folder).await
    }

    /// The same in a folder that a daemon used before.
    pub async fn start_in(self, folder: TempDir) -> Daemon {
        let mut daemon = self.spawn(folder);
        daemon.notice("READY=1").await;
        let status = daemon.status().await;
        let address = |name: &str| status[name].as_str().unwrap().parse().unwrap();
        (daemon.data, daemon.admin) = (address("data"), address("admin"));
        daemon
    }

    /// Starts the process and waits for nothing.
    pub fn spawn(self, folder: TempDir) -> Daemon {
        let config = folder.path().join("berthd.toml");
        fs::write(&config, self.text(&folder.path().join("s"))).unwrap();
        let notify = folder.path().join("notify");
        // A daemon that was here before left its manager's socket behind.
        let _ = fs::remove_file(&notify);
        let socket = UnixDatagram::bind(&notify).unwrap();
        let log =
            File::options().create(true).append(true).open(folder.path().join("log")).unwrap();
        let child = berthd()
            .args(["serve", "--config"])
            .arg(&config)
            .env("NOTIFY_SOCKET", &notify)
            .envs(self.env.iter().map(|(name, value)| (name, value)))
            .current_dir(folder.path())
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .expect("the binary starts");
        let nowhere = SocketAddr::from(([127, 0, 0, 1], 0));
        Daemon {
            child,
            folder,
            notify: socket,
            setup: self,
            notices: Vec::new(),
            data: nowhere,
            admin: nowhere,
        }
    }
}

// === impl Daemon ===

impl Daemon {
    /// The control socket.
    pub fn socket(&self) -> PathBuf {
        self.folder.path().join("s")
    }

    /// The configuration file.
    pub fn config(&self) -> PathBuf {
        self.folder.path().join("berthd.toml")
    }

    /// What it was started with; change it and call [`Daemon::write`].
    pub fn setup(&mut self) -> &mut Setup {
        &mut self.setup
    }

    /// Writes the configuration anew.
    pub fn write(&self) {
        fs::write(self.config(), self.setup.text(&self.socket())).unwrap();
    }

    /// Everything it wrote on standard error.
    pub fn log(&self) -> String {
        fs::read_to_string(self.folder.path().join("log")).unwrap()
    }

    /// The lines of a JSON log with this message.
    pub fn logged(&self, message: &str) -> Vec<Value> {
        let log = self.log();
        let whole = log.rfind('\n').map_or("", |end| &log[..end]);
        let line = |line| serde_json::from_str::<Value>(line).expect("each line is one object");
        whole.lines().map(line).filter(|line| line["message"] == message).collect()
    }

    /// The next notice: its lines.
    pub async fn next_notice(&mut self) -> Vec<String> {
        let Some(lines) = read_notice(&self.notify).await else {
            panic!("no notice; so far {:?}; its log:\n{}", self.notices, self.log());
        };
        self.notices.extend(lines.iter().cloned());
        lines
    }

    /// Reads notices until one with this line comes: all lines of that one. Fails at once when the
    /// process ends instead.
    pub async fn notice(&mut self, line: &str) -> Vec<String> {
        loop {
            let early = tokio::select! {
                lines = read_notice(&self.notify) => {
                    let Some(lines) = lines else {
                        panic!("no {line}; so far {:?}; its log:\n{}", self.notices, self.log());
                    };
                    self.notices.extend(lines.iter().cloned());
                    if lines.iter().any(|have| have == line) {
                        return lines;
                    }
                    continue;
                }
                status = end_of(&mut self.child) => status,
            };
            panic!("ended with {early} before {line}:\n{}", self.log());
        }
    }

    /// Sends it a signal.
    pub fn signal(&self, which: rustix::process::Signal) {
        signal(&self.child, which);
    }

    /// Kills it as the kernel would, and gives back its folder.
    pub async fn kill(mut self) -> TempDir {
        self.child.kill().unwrap();
        ended(&mut self.child).await;
        std::mem::replace(&mut self.folder, tempfile::tempdir().unwrap())
    }

    /// Waits for its end: the exit code.
    pub async fn exit(&mut self) -> i32 {
        ended(&mut self.child).await.code().expect("it ended by itself")
    }

    /// One exchange over the control socket.
    pub async fn control(&self, method: &str, path: &str) -> Reply {
        let mut stream = UnixStream::connect(self.socket()).await.unwrap();
        exchange(&mut stream, method, path, &[], "").await
    }

    /// The status report.
    pub async fn status(&self) -> Value {
        self.control("GET", "/status").await.json()
    }

    /// Waits until the status report says so.
    pub async fn until<T>(&self, what: &str, mut is_it: impl FnMut(&Value) -> Option<T>) -> T {
        let look = async {
            loop {
                if let Some(found) = is_it(&self.status().await) {
                    return found;
                }
                sleep(Duration::from_millis(5)).await;
            }
        };
        match timeout(PATIENCE, look).await {
            Ok(found) => found,
            Err(_) => panic!("never: {what}; now {:#}\n{}", self.status().await, self.log()),
        }
    }

    /// Runs a command against it, `--socket` appended.
    pub async fn command(&self, args: &[&str]) -> Output {
        let mut command = berthd();
        command.args(args).arg("--socket").arg(self.socket());
        run_with(command, "").await
    }

    /// Asks it for a chat answer, with this key.
    pub async fn chat_as(&self, key: &str, body: &Value) -> Reply {
        let mut stream = TcpStream::connect(self.data).await.unwrap();
        let key = format!("Bearer {key}");
        let headers = [("Authorization", key.as_str())];
        exchange(&mut stream, "POST", "/v1/chat/completions", &headers, &body.to_string()).await
    }

    /// Asks it for a chat answer.
    pub async fn chat(&self, body: &Value) -> Reply {
        self.chat_as(KEY, body).await
    }

    /// Sends a chat request and leaves the answer unread.
    pub async fn open_chat(&self, body: &Value) -> TcpStream {
        let mut stream = TcpStream::connect(self.data).await.unwrap();
        let key = format!("Bearer {KEY}");
        let headers = [("Authorization", key.as_str())];
        let text =
            request("POST", "/v1/chat/completions", &headers, &body.to_string(), "keep-alive");
        stream.write_all(text.as_bytes()).await.unwrap();
        stream
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
