//! Assembly: builds the daemon in floor order, keeps its tasks, reloads it, drains it.

use crate::{
    admit::Admission,
    config::{self, Place, Settings},
    control::{Control, ReloadWish},
    gpu,
    ids::ServerId,
    pipeline::{Broker, Live, auth::Keys, count::Counters, listen, trial},
    report::Addresses,
    servers::{ModelServer, discover, http::ClientLimits, probe, remote::Remote},
    snapshot::{GpuPlane, ServedModel, ServerState},
    systemd::{Listeners, Notifier},
};
use std::{
    collections::HashMap,
    future::Future,
    io,
    net::SocketAddr,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    sync::{Arc, atomic::Ordering},
    time::Duration,
};
use tokio::{
    net::{TcpListener, UnixListener},
    sync::{Notify, mpsc, watch},
    task::JoinSet,
    time::{Instant, Interval},
};

/// Why the daemon did not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// An address cannot be bound.
    #[error("cannot listen on {address} ({key})")]
    Bind {
        /// What was asked for.
        address: String,
        /// Its key in the configuration.
        key: &'static str,
        /// What the system said.
        source: io::Error,
    },
    /// Another daemon answers on the control socket.
    #[error("another berthd answers on {0}; stop it, or choose another listen.socket")]
    Running(PathBuf),
    /// A server cannot be made.
    #[error("server '{0}': {1}")]
    Server(ServerId, String),
    /// The system gave us something unusable.
    #[error("{0}")]
    System(String),
}

/// The daemon ended by a fault; the text says which part.
#[derive(Debug, thiserror::Error)]
#[error("{0} ended by a fault; the daemon stops so that it can be started anew")]
pub struct Fatal(&'static str);

/// Reads the configuration again: the whole of it, or every problem as text.
pub type Reread = Box<dyn Fn() -> Result<Settings, String> + Send + Sync>;

/// A daemon whose sockets are bound and whose models are loaded.
pub struct Daemon {
    doors: Doors,
    gpus: gpu::GpuWatch,
    parts: Parts,
}

struct Doors {
    data: TcpListener,
    admin: TcpListener,
    control: UnixListener,
    socket: PathBuf,
}

/// What lives on while the daemon serves.
struct Parts {
    broker: Arc<Broker>,
    watched: HashMap<ServerId, Watched>,
    notifier: Notifier,
    reread: Reread,
    own_ports: Vec<u16>,
}

/// One server's watcher; dropping it ends the watching.
struct Watched {
    /// As configured; `None` for a discovered one.
    config: Option<config::Server>,
    /// Turns true after the first look.
    seen: watch::Receiver<bool>,
    _task: JoinSet<()>,
}

/// How often the ports of undiscovered servers are looked at.
const DISCOVER_EVERY: Duration = Duration::from_secs(30);
/// Time for one look.
const DISCOVER_LIMIT: Duration = Duration::from_secs(2);
/// How often the status line of the service manager is renewed.
const STATUS_EVERY: Duration = Duration::from_secs(10);
/// Reloads waiting; each is answered in turn.
const RELOADS_MAX: usize = 4;
/// How long the start waits for the first readings of all servers.
const FIRST_LOOK_LIMIT: Duration = Duration::from_secs(1);
/// After the drain, time for the driver to let go of the GPU thread.
const GPU_STOP_LIMIT: Duration = Duration::from_secs(2);

impl Daemon {
    /// Binds early, so that a bad address fails before a model loads, then builds in floor order.
    ///
    /// # Errors
    /// As [`StartError`]. Nothing is left behind.
    pub async fn build(
        settings: Settings,
        given: Listeners,
        notifier: Notifier,
        reread: Reread,
    ) -> Result<Self, StartError> {
        let data = bind(settings.listen.data, given.data, "listen.data").await?;
        let admin = bind(settings.listen.admin, given.admin, "listen.admin").await?;
        let control = bind_socket(&settings.listen.socket, given.control).await?;
        let socket = settings.listen.socket.clone();
        let own_ports = [&data, &admin]
            .into_iter()
            .filter_map(|listener| listener.local_addr().ok())
            .map(|address| address.port())
            .collect();
        let gpus = gpu::start(&settings.gpu)
            .map_err(|error| StartError::System(format!("cannot start the GPU thread: {error}")))?;
        notifier.status("loading models");
        let configured = settings.servers.clone();
        let broker = Broker::new(live(settings, None).await?);
        let mut parts = Parts { broker, watched: HashMap::new(), notifier, reread, own_ports };
        for server in configured {
            parts.add(server).await?;
        }
        Ok(Self { doors: Doors { data, admin, control, socket }, gpus, parts })
    }

    /// Where callers connect.
    ///
    /// # Errors
    /// The system does not tell.
    pub fn data_address(&self) -> io::Result<SocketAddr> {
        self.doors.data.local_addr()
    }

    /// Where metrics are read.
    ///
    /// # Errors
    /// The system does not tell.
    pub fn admin_address(&self) -> io::Result<SocketAddr> {
        self.doors.admin.local_addr()
    }

    /// The broker, for those who run a daemon inside their own process.
    pub fn broker(&self) -> Arc<Broker> {
        Arc::clone(&self.parts.broker)
    }

    /// The GPU readings.
    pub fn gpus(&self) -> watch::Receiver<Arc<GpuPlane>> {
        self.gpus.subscribe()
    }

    /// Serves until `stop` resolves, then drains. Each message of `hangups` is a wish to reload;
    /// `ready` is called once everything is open.
    ///
    /// # Errors
    /// A part of the daemon ended by a fault. Running requests were drained all the same.
    pub async fn run(
        self,
        stop: impl Future<Output = ()>,
        mut hangups: mpsc::Receiver<()>,
        ready: impl FnOnce(),
    ) -> Result<(), Fatal> {
        let Self { doors, gpus, mut parts } = self;
        let (stopping, stop_seen) = watch::channel(false);
        let (reload, mut reloads) = mpsc::channel::<ReloadWish>(RELOADS_MAX);
        let control =
            Control::new(Arc::clone(&parts.broker), gpus.subscribe(), doors.addresses(), reload);
        tracing::info!(
            data = doors.data.local_addr().map(tracing::field::display).ok(),
            admin = doors.admin.local_addr().map(tracing::field::display).ok(),
            socket = %doors.socket.display(),
            version = env!("CARGO_PKG_VERSION"),
            "serving"
        );
        let mut inner = JoinSet::new();
        inner.spawn(Arc::clone(&control).serve_socket(doors.control));
        inner.spawn(control.serve_admin(doors.admin));
        inner.spawn(trial::watch(Arc::clone(&parts.broker)));
        let found = discoveries(&parts, Duration::ZERO);
        let mut found = std::pin::pin!(found);
        // Until then callers wait in the kernel's line: better than being told that there is no model.
        let give_up = Instant::now() + FIRST_LOOK_LIMIT;
        if parts.discovers()
            && let Ok(servers) = tokio::time::timeout_at(give_up, &mut found).await
        {
            parts.adopt(servers);
            found.set(discoveries(&parts, DISCOVER_EVERY));
        }
        parts.first_look(give_up).await;
        let mut callers = JoinSet::new();
        callers.spawn(listen::serve(Arc::clone(&parts.broker), doors.data, stop_seen));
        parts.notifier.ready(&parts.status_line());
        ready();
        let mut stop = std::pin::pin!(stop);
        let mut status = tokio::time::interval(STATUS_EVERY);
        let mut heart = Heart::new(parts.notifier.clone());
        let fault = loop {
            tokio::select! {
                () = &mut stop => break None,
                Some(wish) = reloads.recv() => {
                    let result = heart.during(parts.reload()).await;
                    // Whoever asked may have left.
                    let _ = wish.send(result);
                }
                // The outcome is logged; there is nobody to tell.
                Some(()) = hangups.recv() => drop(heart.during(parts.reload()).await),
                servers = &mut found => {
                    parts.adopt(servers);
                    found.set(discoveries(&parts, DISCOVER_EVERY));
                }
                () = heart.due() => heart.beat(),
                _ = status.tick() => parts.notifier.status(&parts.status_line()),
                _ = callers.join_next() => break Some("the callers' listener"),
                _ = inner.join_next() => break Some("an operators' door or the trial watcher"),
                () = gpus.ended() => break Some("the GPU thread"),
            }
        };
        if let Some(part) = fault {
            tracing::error!(part, "a part of the daemon ended by a fault; stopping");
        }
        heart.during(parts.drain(&stopping, &mut callers)).await;
        inner.shutdown().await;
        // A driver call that hangs must not keep the daemon from ending.
        let _ = tokio::time::timeout(GPU_STOP_LIMIT, gpus.stop()).await;
        // Another daemon may have taken the path over; only a dead socket is removed.
        if tokio::net::UnixStream::connect(&doors.socket).await.is_err() {
            let _ = std::fs::remove_file(&doors.socket);
        }
        fault.map_or(Ok(()), |part| Err(Fatal(part)))
    }
}

impl Doors {
    fn addresses(&self) -> Addresses {
        let text = |address: io::Result<SocketAddr>| {
            address.map_or_else(|_| "-".to_owned(), |address| address.to_string())
        };
        Addresses { data: text(self.data.local_addr()), admin: text(self.admin.local_addr()) }
    }
}

/// Tells the service manager that the daemon is alive, from the loop that does the daemon's work.
struct Heart {
    notifier: Notifier,
    interval: Interval,
}

impl Heart {
    fn new(notifier: Notifier) -> Self {
        let forever = Duration::from_secs(24 * 3600);
        // A manager that wants a beat every zero seconds wants none that we could give.
        let every = notifier.watchdog_interval().filter(|every| !every.is_zero());
        let interval = tokio::time::interval(every.unwrap_or(forever));
        Self { notifier, interval }
    }

    /// Resolves when a beat is due. Dropping the future loses no beat.
    async fn due(&mut self) {
        self.interval.tick().await;
    }

    fn beat(&self) {
        self.notifier.watchdog();
    }

    /// Beats while long work is done in the loop's place: loading models, draining. Such work has its
    /// own limits.
    async fn during<T>(&mut self, work: impl Future<Output = T>) -> T {
        let mut work = std::pin::pin!(work);
        loop {
            tokio::select! {
                done = &mut work => return done,
                () = self.due() => self.beat(),
            }
        }
    }
}

impl Parts {
    /// Whether servers on default ports are looked for.
    fn discovers(&self) -> bool {
        self.broker.live.load().settings.probe.discover
    }

    /// Waits until every server was looked at once, whatever came of it, or until the time is over.
    async fn first_look(&self, give_up: Instant) {
        let mut looks: Vec<watch::Receiver<bool>> =
            self.watched.values().map(|watched| watched.seen.clone()).collect();
        let all = async {
            for look in &mut looks {
                // A watcher that is gone will not look any more.
                let _ = look.wait_for(|seen| *seen).await.map(drop);
            }
        };
        if tokio::time::timeout_at(give_up, all).await.is_err() {
            tracing::warn!("a server does not answer; serving without having seen it");
        }
    }

    /// A configured server joins.
    async fn add(&mut self, config: config::Server) -> Result<(), StartError> {
        let live = self.broker.live.load_full();
        let server = make(&config, &live.settings).await?;
        self.watch(server, &live.settings.probe, Some(config));
        Ok(())
    }

    fn watch(
        &mut self,
        server: Arc<dyn ModelServer>,
        rules: &config::Probe,
        config: Option<config::Server>,
    ) {
        let id = server.id().clone();
        let nudge = Arc::new(Notify::new());
        let first = unseen(&*server, config.as_ref());
        let (publish, mut readings) = watch::channel(Arc::new(first.clone()));
        let (saw, seen) = watch::channel(false);
        self.broker.dispatch.join(Arc::clone(&server), Arc::clone(&nudge), first);
        let dispatch = Arc::clone(&self.broker.dispatch);
        let rules = rules.clone();
        let mut task = JoinSet::new();
        task.spawn(async move {
            let forward = async {
                while readings.changed().await.is_ok() {
                    let reading = Arc::clone(&readings.borrow_and_update());
                    dispatch.observe(&reading);
                    saw.send_replace(true);
                }
            };
            tokio::join!(probe::watch(server, rules, publish, nudge), forward);
        });
        self.watched.insert(id, Watched { config, seen, _task: task });
    }

    /// Discovered servers join, unless they are known by now.
    fn adopt(&mut self, found: Vec<discover::Found>) {
        let live = self.broker.live.load_full();
        for server in found {
            let known = self.watched.values().filter_map(|watched| watched.config.as_ref());
            if known.into_iter().any(|config| place_is(&config.place, server.port)) {
                continue;
            }
            let config = config::Server {
                name: format!("{}-{}", server.kind.as_str(), server.port).into(),
                kind: server.kind,
                place: Place::Http {
                    host: server.host.clone(),
                    port: server.port,
                    prefix: String::new(),
                },
                api_key: None,
                models: Vec::new(),
                kv_tokens: None,
                max_running: None,
            };
            if self.watched.contains_key(&config.name) {
                continue;
            }
            let limits = client_limits(&live.settings);
            let Some(remote) = Remote::new(&config, live.settings.probe.limit, limits) else {
                continue;
            };
            tracing::info!(server = config.name.as_str(), "found a model server");
            self.watch(Arc::new(remote), &live.settings.probe, None);
        }
    }

    /// Reads the configuration again. All of it takes effect, or nothing.
    async fn reload(&mut self) -> Result<String, String> {
        self.notifier.reloading();
        let result = self.try_reload().await;
        match &result {
            Ok(what) => tracing::info!(changes = what.as_str(), "configuration reloaded"),
            Err(problems) => {
                tracing::error!(problems = problems.as_str(), "configuration not reloaded");
            }
        }
        self.notifier.ready(&self.status_line());
        result
    }

    async fn try_reload(&mut self) -> Result<String, String> {
        let settings = (self.reread)()?;
        let before = self.broker.live.load_full();
        let mut made = Vec::new();
        let mut kept = 0;
        for config in &settings.servers {
            let same = self.watched.get(&config.name).is_some_and(|watched| {
                watched.config.as_ref() == Some(config)
                    && settings.probe == before.settings.probe
                    && settings.relay == before.settings.relay
            });
            if same {
                kept += 1;
            } else {
                let server = make(config, &settings).await.map_err(|error| error.to_string())?;
                made.push((server, config.clone()));
            }
        }
        let next = live(settings, Some(&before)).await.map_err(|error| error.to_string())?;
        // From here on nothing fails.
        let needs_restart = restart_keys(&before.settings, &next.settings);
        let names: Vec<ServerId> =
            next.settings.servers.iter().map(|server| server.name.clone()).collect();
        let probe = next.settings.probe.clone();
        self.broker.dispatch.reconfigure(&next.settings);
        self.broker.live.store(Arc::new(next));
        let gone: Vec<ServerId> = self
            .watched
            .iter()
            .filter(|(id, watched)| watched.config.is_some() && !names.contains(id))
            .map(|(id, _)| id.clone())
            .collect();
        for id in &gone {
            self.watched.remove(id);
            self.broker.dispatch.leave(id);
        }
        let changed = made.len();
        for (server, config) in made {
            self.watch(server, &probe, Some(config));
        }
        let mut what = format!(
            "Reloaded: {kept} servers kept, {changed} new or changed, {} removed.",
            gone.len()
        );
        if !needs_restart.is_empty() {
            what.push_str(&format!(" Needs a restart: {}.", needs_restart.join(", ")));
        }
        Ok(what)
    }

    /// Refuses new work, lets running work finish up to the limit, then ends the rest.
    async fn drain(&self, stopping: &watch::Sender<bool>, callers: &mut JoinSet<()>) {
        self.broker.stopping.store(true, Ordering::Relaxed);
        let limit = self.broker.live.load().settings.listen.drain_limit;
        self.notifier.stopping("draining: running requests finish, new ones are refused");
        tracing::info!(limit_s = limit.as_secs_f64(), "stopping: running requests may finish");
        // Nobody is listening only if all callers are gone already.
        let _ = stopping.send(true);
        let finished = async { while callers.join_next().await.is_some() {} };
        if tokio::time::timeout(limit, finished).await.is_err() {
            tracing::warn!("the drain limit is over; ending what still runs");
            callers.shutdown().await;
        }
        tracing::info!("stopped");
    }

    fn status_line(&self) -> String {
        let servers = self.broker.dispatch.servers();
        let usable = servers.iter().filter(|server| server.usable).count();
        let running: u32 = servers.iter().map(|server| server.placed).sum();
        let waiting: usize = self.broker.dispatch.waiting().values().sum();
        format!(
            "serving: {usable} of {} servers usable, {running} requests running, {waiting} waiting",
            servers.len()
        )
    }
}

/// Looks for servers after a pause; never resolves when switched off.
fn discoveries(
    parts: &Parts,
    pause: Duration,
) -> impl Future<Output = Vec<discover::Found>> + use<> {
    let live = parts.broker.live.load_full();
    let on = live.settings.probe.discover;
    let mut known = parts.own_ports.clone();
    for watched in parts.watched.values() {
        if let Some(config::Server { place: Place::Http { port, .. }, .. }) = &watched.config {
            known.push(*port);
        }
    }
    async move {
        if !on {
            return std::future::pending().await;
        }
        tokio::time::sleep(pause).await;
        discover::discover(DISCOVER_LIMIT, &known).await
    }
}

/// What is known of a server before it is looked at: the models that the configuration names.
fn unseen(server: &dyn ModelServer, config: Option<&config::Server>) -> ServerState {
    let mut state = ServerState::unknown(server.id().clone(), server.kind());
    let named = config.into_iter().flat_map(|config| {
        let own = config::embedded_model(config).filter(|_| config.models.is_empty());
        config.models.iter().cloned().chain(own)
    });
    state.models = named.map(|name| ServedModel { name, context_window: None }).collect();
    state
}

fn place_is(place: &Place, wanted: u16) -> bool {
    matches!(place, Place::Http { port, .. } if *port == wanted)
}

/// Settings that only take effect at start.
fn restart_keys(before: &Settings, after: &Settings) -> Vec<&'static str> {
    let mut keys = Vec::new();
    if before.listen != after.listen {
        keys.push("listen");
    }
    if before.gpu != after.gpu {
        keys.push("gpu");
    }
    if before.threads != after.threads {
        keys.push("threads");
    }
    if before.log != after.log {
        keys.push("log");
    }
    keys
}

/// Loads what requests need. Reads model folders, so it runs off the async threads.
async fn live(settings: Settings, before: Option<&Live>) -> Result<Live, StartError> {
    let loaded = tokio::task::spawn_blocking(move || {
        let (counters, problems) = Counters::load(&settings);
        (settings, counters, problems)
    });
    let (settings, counters, problems) =
        loaded.await.map_err(|error| StartError::System(format!("loading models: {error}")))?;
    for (model, problem) in problems {
        tracing::warn!(
            model = model.as_str(),
            problem,
            "input cannot be counted here; the server is asked, or it is estimated"
        );
    }
    let keys = Keys::new(&settings.tenants);
    let before = before.map(|live| (&live.admission, live.settings.tenants.as_slice()));
    let admission = Admission::new(&settings.tenants, before, Instant::now());
    Ok(Live { settings, keys, admission, counters })
}

fn client_limits(settings: &Settings) -> ClientLimits {
    ClientLimits {
        connect: settings.relay.connect_limit,
        idle_max: settings.relay.idle_connections_max,
        keep_after_stream: false,
    }
}

/// Makes the adapter of a configured server.
async fn make(
    config: &config::Server,
    settings: &Settings,
) -> Result<Arc<dyn ModelServer>, StartError> {
    let failed = |why: String| StartError::Server(config.name.clone(), why);
    if let Some(remote) = Remote::new(config, settings.probe.limit, client_limits(settings)) {
        return Ok(Arc::new(remote));
    }
    let Place::Folder(folder) = &config.place else {
        return Err(failed("neither a URL nor a folder".to_owned()));
    };
    embedded(config, folder.clone()).await.map_err(failed)
}

#[cfg(feature = "candle")]
async fn embedded(
    config: &config::Server,
    folder: PathBuf,
) -> Result<Arc<dyn ModelServer>, String> {
    use crate::servers::embedded::{Embedded, MAX_RUNNING};
    let name = config::embedded_model(config).ok_or("its folder has no name; set models")?;
    let id = config.name.clone();
    let max_running = config.max_running.unwrap_or(MAX_RUNNING);
    let load = move || Embedded::load(id, name, &folder, max_running);
    let loaded = tokio::task::spawn_blocking(load).await.map_err(|error| error.to_string())?;
    loaded.map(|server| Arc::new(server) as Arc<dyn ModelServer>).map_err(|error| error.to_string())
}

#[cfg(not(feature = "candle"))]
async fn embedded(_: &config::Server, _: PathBuf) -> Result<Arc<dyn ModelServer>, String> {
    Err("this build has no embedded models (cargo feature 'candle')".to_owned())
}

async fn bind(
    address: SocketAddr,
    given: Option<std::net::TcpListener>,
    key: &'static str,
) -> Result<TcpListener, StartError> {
    let listener = match given {
        Some(listener) => TcpListener::from_std(listener),
        None => TcpListener::bind(address).await,
    };
    listener.map_err(|source| StartError::Bind { address: address.to_string(), key, source })
}

/// Binds the control socket. One that a dead daemon left behind is replaced; one that answers is not.
async fn bind_socket(
    path: &Path,
    given: Option<std::os::unix::net::UnixListener>,
) -> Result<UnixListener, StartError> {
    let failed = |source: io::Error| StartError::Bind {
        address: path.display().to_string(),
        key: "listen.socket",
        source,
    };
    if let Some(listener) = given {
        return UnixListener::from_std(listener).map_err(failed);
    }
    if tokio::net::UnixStream::connect(path).await.is_ok() {
        return Err(StartError::Running(path.to_owned()));
    }
    match std::fs::symlink_metadata(path) {
        Ok(meta) => {
            use std::os::unix::fs::FileTypeExt;
            if !meta.file_type().is_socket() {
                let why = "there is a file that is not a socket; choose another path or remove it";
                return Err(failed(io::Error::new(io::ErrorKind::AlreadyExists, why)));
            }
            std::fs::remove_file(path).map_err(failed)?;
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(failed(error)),
    }
    let listener = UnixListener::bind(path).map_err(failed)?;
    // Whoever may read status may also drain: the owner and the group.
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o660)).map_err(failed)?;
    Ok(listener)
}
