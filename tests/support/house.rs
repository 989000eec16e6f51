//! A whole daemon inside the test's process: real configuration, real listeners, real pipeline. Only the
//! model servers behind it are played.

use super::raw::{self, PATIENCE, Reply};
use berthd::{
    cli::keys::digest_hex,
    config,
    daemon::{Daemon, Fatal},
    pipeline::{Broker, dispatch::ServerView},
    report::{self, Addresses},
    snapshot::{GpuPlane, Health},
    systemd::{Listeners, Notifier},
    units::Tokens,
};
use serde_json::{Value, json};
use std::{fmt::Write, net::SocketAddr, sync::Arc, time::Duration};
use tempfile::TempDir;
use tokio::{
    io::AsyncWriteExt,
    net::TcpStream,
    sync::{mpsc, oneshot},
    task::JoinSet,
    time::{Instant, sleep},
};

/// The route that most tests take.
pub const CHAT: &str = "/v1/chat/completions";

/// Between two looks at a condition.
const LOOK: Duration = Duration::from_millis(1);

/// The configuration of a house, section by section.
#[derive(Clone, Debug)]
pub struct Plan {
    listen: String,
    limits: String,
    queue: String,
    relay: String,
    breaker: String,
    probe: String,
    gpu: String,
    rows: String,
}

/// A running daemon; it ends at once when dropped, and in order with [`House::close`].
pub struct House {
    /// Where callers connect.
    pub data: SocketAddr,
    /// Its inside.
    pub broker: Arc<Broker>,
    stop: oneshot::Sender<()>,
    running: JoinSet<Result<(), Fatal>>,
    hangups: mpsc::Sender<()>,
    _folder: TempDir,
}

/// Numbers by chance, always the same ones for the same seed (splitmix64).
#[derive(Clone, Debug)]
pub struct Chance(u64);

// === impl Plan ===

impl Plan {
    /// A house with the tenant `a` and no server.
    pub fn new() -> Self {
        let empty = || String::new();
        let plan = Self {
            listen: empty(),
            limits: empty(),
            queue: empty(),
            relay: empty(),
            breaker: empty(),
            probe: "period_s = 5".to_owned(),
            gpu: "enabled = false".to_owned(),
            rows: empty(),
        };
        plan.tenant("a", "tier = \"interactive\"")
    }

    /// Lines of `[listen]`.
    #[must_use]
    pub fn listen(self, listen: &str) -> Self {
        Self { listen: listen.to_owned(), ..self }
    }

    /// Lines of `[limits]`.
    #[must_use]
    pub fn limits(self, limits: &str) -> Self {
        Self { limits: limits.to_owned(), ..self }
    }

    /// Lines of `[queue]`.
    #[must_use]
    pub fn queue(self, queue: &str) -> Self {
        Self { queue: queue.to_owned(), ..self }
    }

    /// Lines of `[relay]`.
    #[must_use]
    pub fn relay(self, relay: &str) -> Self {
        Self { relay: relay.to_owned(), ..self }
    }

    /// Lines of `[breaker]`.
    #[must_use]
    pub fn breaker(self, breaker: &str) -> Self {
        Self { breaker: breaker.to_owned(), ..self }
    }

    /// Lines of `[probe]`; servers are looked at every five seconds without them.
    #[must_use]
    pub fn probe(self, probe: &str) -> Self {
        Self { probe: probe.to_owned(), ..self }
    }

    /// Lines of `[gpu]`; no GPU is read without them.
    #[must_use]
    pub fn gpu(self, gpu: &str) -> Self {
        Self { gpu: gpu.to_owned(), ..self }
    }

    /// One more tenant, whose key is [`key`] of its name.
    #[must_use]
    pub fn tenant(mut self, name: &str, rest: &str) -> Self {
        let digest = digest_hex(&key(name));
        writeln!(self.rows, "[[tenants]]\nname = \"{name}\"\nkeys_sha256 = [\"{digest}\"]\n{rest}")
            .unwrap();
        self
    }

    /// One more model.
    #[must_use]
    pub fn model(mut self, name: &str, rest: &str) -> Self {
        writeln!(self.rows, "[[models]]\nname = \"{name}\"\n{rest}").unwrap();
        self
    }

    /// One more server, of the kind that is not asked for anything but its models.
    #[must_use]
    pub fn server(self, name: &str, at: SocketAddr, rest: &str) -> Self {
        self.server_of("openai", name, at, rest)
    }

    /// One more server of any kind.
    #[must_use]
    pub fn server_of(mut self, kind: &str, name: &str, at: SocketAddr, rest: &str) -> Self {
        writeln!(
            self.rows,
            "[[servers]]\nname = \"{name}\"\nkind = \"{kind}\"\nurl = \"http://{at}\"\n{rest}"
        )
        .unwrap();
        self
    }

    fn text(&self, folder: &TempDir) -> String {
        let Self { listen, limits, queue, relay, breaker, probe, gpu, rows } = self;
        format!(
            "[listen]\ndata = \"127.0.0.1:0\"\nadmin = \"127.0.0.1:0\"\nsocket = \"{}/s\"\ndrain_limit_s = 5\n\
             {listen}\n[limits]\n{limits}\n[queue]\n{queue}\n[relay]\n{relay}\n[breaker]\n{breaker}\n\
             [probe]\ndiscover = false\n{probe}\n[gpu]\n{gpu}\n[log]\nlevel = \"error\"\n{rows}",
            folder.path().display()
        )
    }
}

// === impl House ===

impl House {
    /// Builds a daemon, runs it, and waits until it has looked at each of its servers.
    pub async fn open(plan: &Plan) -> Self {
        let folder = TempDir::new().unwrap();
        let text = plan.text(&folder);
        let settings = match config::parse_text("house.toml", &text) {
            Ok(loaded) => loaded.settings,
            Err(problems) => panic!("{problems}\n{text}"),
        };
        let again = settings.clone();
        let reread = Box::new(move || Ok(again.clone()));
        let daemon =
            Daemon::build(settings, Listeners::default(), Notifier::default(), reread).await;
        let daemon = daemon.unwrap();
        let (data, broker) = (daemon.data_address().unwrap(), daemon.broker());
        let (stop, stopped) = oneshot::channel();
        let (hangups, hung_up) = mpsc::channel(1);
        let mut running = JoinSet::new();
        running.spawn(daemon.run(async { drop(stopped.await) }, hung_up, || {}));
        let house = Self { data, broker, stop, running, hangups, _folder: folder };
        let looked = |server: &ServerView| server.state.health != Health::Unknown;
        house.until("every server was looked at", |house| house.servers().iter().all(looked)).await;
        house
    }

    /// Stops the daemon and sees it end in order, with nothing left inside.
    pub async fn close(mut self) {
        self.until_empty().await;
        let _ = self.stop.send(());
        let ended = tokio::time::timeout(PATIENCE, self.running.join_next()).await;
        ended.expect("it stops in time").unwrap().unwrap().expect("it stops in order");
    }

    /// Wishes that the daemon reads its files again; what comes of it is seen later.
    pub async fn reload(&self) {
        self.hangups.send(()).await.unwrap();
    }

    /// The status report, as `berthd status --json` has it.
    pub fn status(&self) -> Value {
        let addresses = Addresses { data: "-".into(), admin: "-".into() };
        json!(report::status(&self.broker, &GpuPlane::Off, &addresses))
    }

    /// The value of a metric's line that holds all of `parts`.
    pub fn metric(&self, parts: &[&str]) -> Option<f64> {
        let page = self.broker.metrics_page(&GpuPlane::Off);
        let mut lines = page.lines().filter(|line| parts.iter().all(|part| line.contains(part)));
        lines.next().and_then(|line| line.rsplit(' ').next()?.parse().ok())
    }

    /// Every server as the dispatcher sees it.
    pub fn servers(&self) -> Vec<ServerView> {
        self.broker.dispatch.servers()
    }

    /// One server.
    pub fn server(&self, name: &str) -> ServerView {
        self.servers().into_iter().find(|server| server.state.id.as_str() == name).unwrap()
    }

    /// Requests in the queue.
    pub fn waiting(&self) -> usize {
        self.broker.dispatch.waiting().values().sum()
    }

    /// Requests and tokens placed on all servers.
    pub fn placed(&self) -> (u32, Tokens) {
        let servers = self.servers();
        let tokens = servers.iter().fold(Tokens::ZERO, |sum, one| sum.plus(one.placed_tokens));
        (servers.iter().map(|server| server.placed).sum(), tokens)
    }

    /// Why a server's attempts failed, as the metrics have it; empty where none did.
    pub fn causes(&self, server: &str) -> String {
        let dispatch = &self.broker.dispatch;
        let metrics = &self.broker.books.metrics;
        let page = metrics.page(&dispatch.waiting(), &dispatch.servers(), &GpuPlane::Off);
        let of_server = format!("server=\"{server}\"");
        let lines = page.lines().filter(|line| line.starts_with("berthd_server_failures_total"));
        let causes = lines.filter(|line| line.contains(&of_server)).filter_map(|line| {
            line.split_once("cause=\"").and_then(|(_, rest)| rest.split('"').next())
        });
        causes.collect::<Vec<_>>().join(", ")
    }

    /// Waits until a condition holds; a test fails that waits too long.
    pub async fn until(&self, what: &str, condition: impl Fn(&Self) -> bool) {
        let give_up = Instant::now() + PATIENCE;
        while !condition(self) {
            assert!(
                Instant::now() < give_up,
                "never came true: {what}; {} wait, {:?}",
                self.waiting(),
                self.servers()
            );
            sleep(LOOK).await;
        }
    }

    /// Waits until nobody waits and nothing is placed.
    pub async fn until_empty(&self) {
        let empty = |house: &Self| house.waiting() == 0 && house.placed() == (0, Tokens::ZERO);
        self.until("queue, running and placed tokens are zero", empty).await;
    }

    /// A chat request of tenant `a`, read to its end.
    pub async fn ask(&self, body: &Value) -> Reply {
        self.ask_as("a", "", body).await
    }

    /// A chat request of any tenant with more headers.
    pub async fn ask_as(&self, tenant: &str, headers: &str, body: &Value) -> Reply {
        let (bytes, ended) = raw::read_all(&mut self.open_as(tenant, headers, body).await).await;
        Reply::parse(&bytes, ended)
    }

    /// Sends a chat request and leaves the answer unread.
    pub async fn open_as(&self, tenant: &str, headers: &str, body: &Value) -> TcpStream {
        let mut stream = TcpStream::connect(self.data).await.unwrap();
        stream.write_all(&request(tenant, CHAT, headers, &body.to_string())).await.unwrap();
        stream
    }

    /// Sends bytes as they are and reads to the end of the connection. A peer that refuses may close
    /// before all is sent.
    pub async fn send(&self, bytes: &[u8]) -> Reply {
        let stream = TcpStream::connect(self.data).await.unwrap();
        let (mut read, mut write) = stream.into_split();
        let (_, got) = tokio::join!(write.write_all(bytes), async {
            let mut got = Vec::new();
            let end = tokio::io::AsyncReadExt::read_to_end(&mut read, &mut got);
            let end = tokio::time::timeout(PATIENCE, end).await.expect("in time");
            (got, if end.is_ok() { raw::Ended::Closed } else { raw::Ended::Reset })
        });
        Reply::parse(&got.0, got.1)
    }
}

/// The API key of a tenant.
pub fn key(tenant: &str) -> String {
    format!("key-of-{tenant}")
}

/// The bytes of a POST with `Connection: close`. `headers` are whole lines.
pub fn request(tenant: &str, path: &str, headers: &str, body: &str) -> Vec<u8> {
    format!(
        "POST {path} HTTP/1.1\r\nHost: berthd\r\nAuthorization: Bearer {}\r\n\
         Content-Type: application/json\r\nConnection: close\r\n{headers}Content-Length: {}\r\n\r\n{body}",
        key(tenant),
        body.len()
    )
    .into_bytes()
}

/// A chat request.
pub fn chat(model: &str, prompt: &str, stream: bool) -> Value {
    json!({
        "model": model, "stream": stream,
        "messages": [{ "role": "user", "content": prompt }],
    })
}

// === impl Chance ===

impl Chance {
    /// Starts from a seed, which is printed.
    pub fn new(test: &str, seed: u64) -> Self {
        println!("{test}: seed {seed}");
        Self(seed)
    }

    /// A number below `end`.
    pub fn below(&mut self, end: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ (z >> 31)) % end
    }

    /// Takes one out of a list.
    pub fn take<T>(&mut self, from: &mut Vec<T>) -> T {
        let index = self.below(from.len() as u64) as usize;
        from.swap_remove(index)
    }
}
