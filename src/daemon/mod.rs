//! Assembly: builds the daemon in floor order, keeps its tasks, reloads it, drains it.

mod doors;
mod found;
mod heart;
mod make;
mod parts;

use crate::{
    config::Settings,
    control::{Control, ReloadWish},
    gpu,
    ids::ServerId,
    pipeline::{Broker, device, listen, trial, trust},
    processes,
    snapshot::GpuPlane,
    systemd::{Listeners, Notifier},
};
use doors::{Doors, bind, bind_socket};
use found::discoveries;
use heart::Heart;
use parts::Parts;
use std::{
    collections::HashMap, future::Future, io, net::SocketAddr, path::PathBuf, sync::Arc,
    time::Duration,
};
use tokio::{
    sync::{mpsc, watch},
    task::JoinSet,
    time::Instant,
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
    /// The rules for screening cannot be used.
    #[error("screen.rules: {0}")]
    Screening(String),
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

/// How often the ports of undiscovered servers are looked at.
const DISCOVER_EVERY: Duration = Duration::from_secs(30);

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
        let broker = Broker::new(make::live(settings, None).await?);
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
        let dispatch = Arc::clone(&parts.broker.dispatch);
        inner.spawn(async move { dispatch.pace().await });
        inner.spawn(trial::watch(Arc::clone(&parts.broker)));
        inner.spawn(device::hanging::watch(Arc::clone(&parts.broker), gpus.subscribe()));
        inner.spawn(device::memory::watch(Arc::clone(&parts.broker), gpus.subscribe()));
        let (planes, events) = (gpus.subscribe(), gpus.take_events());
        inner.spawn(device::faulting::watch(Arc::clone(&parts.broker), planes, events));
        inner.spawn(trust::watch::watch(Arc::clone(&parts.broker), make::find_files));
        inner.spawn(device::holding::watch(
            Arc::clone(&parts.broker),
            gpus.subscribe(),
            processes::Reader::default(),
            parts.own_ports.clone(),
        ));
        let mut offered = parts.broker.devices.watch_offers();
        inner.spawn(device::metering::watch(Arc::clone(&parts.broker), gpus.subscribe()));
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
                    // The look under way began by the old rules, if it was to begin at all.
                    found.set(discoveries(&parts, Duration::ZERO));
                }
                Some(()) = hangups.recv() => {
                    // The outcome is logged; there is nobody to tell.
                    drop(heart.during(parts.reload()).await);
                    found.set(discoveries(&parts, Duration::ZERO));
                }
                servers = &mut found => {
                    parts.adopt(servers);
                    found.set(discoveries(&parts, DISCOVER_EVERY));
                }
                Ok(()) = offered.changed() => {
                    let offers = Arc::clone(&offered.borrow_and_update());
                    parts.adopt_offered(&offers);
                }
                () = heart.due() => heart.beat(),
                _ = status.tick() => {
                    parts.forget_gone();
                    parts.notifier.status(&parts.status_line());
                }
                _ = callers.join_next() => break Some("the callers' listener"),
                _ = inner.join_next() => break Some("an operators' door or a watcher (trials, counts, devices)"),
                () = gpus.ended() => break Some("the GPU thread"),
            }
        };
        if let Some(part) = fault {
            tracing::error!(part, "a part of the daemon ended by a fault; stopping");
        }
        // Who still wants a reload hears at once that it is too late.
        drop(reloads);
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
