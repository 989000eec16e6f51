//! Who holds what: joins each reading of the GPUs with the processes and the servers, publishes it, and
//! says what changed.

use super::{super::Broker, offers::Asking};
use crate::{
    config::FoundOnGpu,
    holding::{Book, Holdings, Joined, Owner, Resident, Scene, Seat},
    ids::{GpuId, ServerId},
    processes::{Reader, Wanted},
    servers::ModelServer,
    snapshot::{GpuPlane, GpuState, ProcessTable},
};
use std::{
    collections::{BTreeSet, HashMap, HashSet},
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};
use tokio::{sync::watch, time::Instant};

/// How long a host's name is taken to stand for the same addresses.
const NAMES_FOR: Duration = Duration::from_secs(60);

/// Time to look a host's name up; one a round, so that a slow name server delays no round by more.
const NAME_LIMIT: Duration = Duration::from_millis(500);

/// A stranger who was gone this long is news when it comes back.
const FORGOTTEN_AFTER: Duration = Duration::from_secs(600);

/// Most strangers that are remembered as told.
const TOLD_MAX: usize = 256;

/// Joins each round. Never returns; dropping the future ends it after the reading that it is in.
/// `own_ports` are the daemon's own, which are no servers'.
pub async fn watch(
    broker: Arc<Broker>,
    mut gpus: watch::Receiver<Arc<GpuPlane>>,
    reader: Reader,
    own_ports: Vec<u16>,
) {
    let mut watcher = Watcher {
        broker,
        reader: Arc::new(Mutex::new(reader)),
        own_ports,
        book: Book::default(),
        names: HashMap::new(),
        last: None,
        asking: Asking::default(),
        told: Told::default(),
    };
    gpus.mark_changed();
    loop {
        tokio::select! {
            changed = gpus.changed() => {
                if changed.is_err() {
                    // Whoever owns the GPU thread ends the daemon.
                    return std::future::pending().await;
                }
                let plane = Arc::clone(&gpus.borrow_and_update());
                watcher.round(&plane).await;
            }
            () = watcher.asking.answered() => watcher.publish_offers(),
        }
    }
}

struct Watcher {
    broker: Arc<Broker>,
    /// Held by one reading at a time, off the async threads.
    reader: Arc<Mutex<Reader>>,
    own_ports: Vec<u16>,
    book: Book,
    /// What hosts' names stand for; only those of servers that are here.
    names: HashMap<String, (Instant, Vec<IpAddr>)>,
    /// When the GPUs were read that were joined last.
    last: Option<Instant>,
    asking: Asking,
    told: Told,
}

/// What was said already.
#[derive(Default)]
struct Told {
    denied: bool,
    cut: bool,
    /// Rounds in a row in which a process on a GPU was not to be seen.
    unseen: u32,
    differ: HashMap<ServerId, Vec<GpuId>>,
    strangers: HashMap<(GpuId, String), Instant>,
    offers: HashSet<(String, u16)>,
}

impl Watcher {
    async fn round(&mut self, plane: &GpuPlane) {
        let (list, read_at) = match plane {
            // Between whole rounds only power and load are new.
            GpuPlane::Driver(driver) if self.last == Some(driver.read_at) => return,
            GpuPlane::Driver(driver) => (driver.gpus.as_slice(), driver.read_at),
            // What was known of servers stands while they live.
            GpuPlane::NoDriver(_) if self.last.is_some() => (&[][..], Instant::now()),
            GpuPlane::NoDriver(_) | GpuPlane::Off => return,
        };
        self.last = Some(read_at);
        let residents = self.residents().await;
        let table = self.read(list, &residents).await;
        let scene = Scene {
            gpus: list,
            gpus_read_at: read_at,
            table: &table,
            residents: &residents,
            own_pid: std::process::id(),
        };
        let joined = self.book.join(&scene);
        let before = self.broker.devices.holdings();
        self.told.limits(list, &table);
        self.told.changes(&before, &joined.holdings);
        self.told.differences(&joined);
        self.told.strangers(&joined.holdings, Instant::now());
        self.broker.devices.hold(joined.holdings);
        let mut candidates = joined.candidates;
        let wanted = self.broker.live.load().settings.gpu.found != FoundOnGpu::Off;
        candidates.retain(|one| {
            wanted && !(one.at.ip().is_loopback() && self.own_ports.contains(&one.at.port()))
        });
        // Nobody is asked when that was switched off, and those found before are forgotten.
        self.asking.see(candidates, Instant::now());
        self.publish_offers();
    }

    /// The servers as the rule sees them.
    async fn residents(&mut self) -> Vec<Resident> {
        let live = self.broker.live.load_full();
        let views = self.broker.dispatch.servers();
        let mut servers: Vec<Arc<dyn ModelServer>> =
            views.iter().filter_map(|view| self.broker.dispatch.server(&view.state.id)).collect();
        servers.sort_by(|a, b| a.id().cmp(b.id()));
        self.look_up(&servers).await;
        let configured = |id: &ServerId| {
            let entry = live.settings.servers.iter().find(|server| server.name == *id);
            entry.map(|entry| entry.gpus.clone()).unwrap_or_default()
        };
        let resident = |server: &Arc<dyn ModelServer>| {
            let seat = match server.address() {
                Some((host, port)) => Seat::At { addresses: self.addresses(host), port },
                None => Seat::Inside,
            };
            Resident { id: server.id().clone(), seat, gpus: configured(server.id()) }
        };
        servers.iter().map(resident).collect()
    }

    fn addresses(&self, host: &str) -> Vec<IpAddr> {
        literal(host)
            .or_else(|| self.names.get(host).map(|(_, addresses)| addresses.clone()))
            .unwrap_or_default()
    }

    /// Looks one name up that was not looked up for a while.
    async fn look_up(&mut self, servers: &[Arc<dyn ModelServer>]) {
        let named = servers.iter().filter_map(|server| server.address());
        let named: HashMap<&str, u16> = named.filter(|(host, _)| literal(host).is_none()).collect();
        self.names.retain(|host, _| named.contains_key(host.as_str()));
        let now = Instant::now();
        let due = |(host, _): &(&&str, &u16)| {
            let known = self.names.get(**host);
            known.is_none_or(|(at, _)| now.duration_since(*at) >= NAMES_FOR)
        };
        // Those never asked go first.
        let age = |(host, _): &(&&str, &u16)| self.names.get(**host).map(|(at, _)| *at);
        let Some((host, port)) = named.iter().filter(due).min_by_key(age) else { return };
        let asked = tokio::time::timeout(NAME_LIMIT, tokio::net::lookup_host((*host, *port))).await;
        let known = self.names.entry((*host).to_owned()).or_insert((now, Vec::new()));
        known.0 = now;
        if let Ok(Ok(found)) = asked {
            known.1 = found.map(|address| address.ip()).collect();
        }
    }

    /// Reads the processes, off the async threads.
    async fn read(&self, gpus: &[GpuState], residents: &[Resident]) -> ProcessTable {
        let mut pids = self.book.pids();
        pids.extend(gpus.iter().flat_map(|gpu| gpu.processes.iter().flatten()).map(|one| one.pid));
        let port = |one: &Resident| match one.seat {
            Seat::At { port, .. } => Some(port),
            Seat::Inside => None,
        };
        // The daemon itself is looked at for the sake of its embedded model.
        pids.insert(std::process::id());
        let wanted = Wanted { pids, ports: residents.iter().filter_map(port).collect() };
        let reader = Arc::clone(&self.reader);
        let reading = tokio::task::spawn_blocking(move || {
            reader.lock().unwrap_or_else(PoisonError::into_inner).read(&wanted)
        });
        // A reading that panicked found nothing; the next may.
        reading.await.unwrap_or_default()
    }

    fn publish_offers(&mut self) {
        let offers = self.asking.offers();
        for offer in &offers {
            if self.told.offers.len() < TOLD_MAX
                && self.told.offers.insert((offer.host.clone(), offer.port))
            {
                let models: Vec<&str> = offer.models.iter().map(|model| model.as_str()).collect();
                tracing::info!(
                    kind = offer.kind.as_str(),
                    url = format!("http://{}:{}", offer.host, offer.port),
                    ?models,
                    gpus = %list(&offer.gpus),
                    pid = offer.pid,
                    "a model server on a GPU is not configured"
                );
            }
        }
        self.told.offers.retain(|(host, port)| {
            offers.iter().any(|offer| offer.host == *host && offer.port == *port)
        });
        self.broker.devices.offer(offers);
    }
}

/// The addresses of a host that needs no looking up.
fn literal(host: &str) -> Option<Vec<IpAddr>> {
    if host.trim_end_matches('.').eq_ignore_ascii_case("localhost") {
        return Some(vec![Ipv4Addr::LOCALHOST.into(), Ipv6Addr::LOCALHOST.into()]);
    }
    let bare = host.trim_start_matches('[').trim_end_matches(']');
    bare.parse().ok().map(|address| vec![address])
}

fn list(gpus: &BTreeSet<GpuId>) -> String {
    gpus.iter().map(GpuId::as_str).collect::<Vec<_>>().join(", ")
}

// === impl Told ===

impl Told {
    /// What could not be looked into, once.
    fn limits(&mut self, gpus: &[GpuState], table: &ProcessTable) {
        let mut pids = gpus.iter().flat_map(|gpu| gpu.processes.iter().flatten());
        let hidden = pids.any(|process| !table.processes.contains_key(&process.pid));
        // One that just ended is listed for a round.
        self.unseen = if hidden { self.unseen.saturating_add(1) } else { 0 };
        if (table.denied || self.unseen >= UNSEEN_ROUNDS) && !self.denied {
            self.denied = true;
            tracing::warn!(
                "not every process may be looked into, so some servers' GPUs may stay unknown; \
                 see \"What the daemon may see\" in docs/gpu.md, or set servers.gpus"
            );
        }
        if table.cut && !self.cut {
            self.cut = true;
            tracing::warn!(
                "there are more processes or sockets than are looked at; set servers.gpus"
            );
        }
    }

    /// Servers that came to GPUs or left them.
    fn changes(&self, before: &Holdings, now: &Holdings) {
        let gpus = |holdings: &Holdings, server: &ServerId| -> Option<BTreeSet<GpuId>> {
            Some(holdings.servers.get(server)?.gpus.keys().cloned().collect())
        };
        for (server, holding) in &now.servers {
            let (was, is) = (gpus(before, server), gpus(now, server).unwrap_or_default());
            if was.as_ref() != Some(&is) {
                tracing::info!(
                    server = server.as_str(),
                    gpus = %list(&is),
                    how = holding.how.as_str(),
                    pids = ?holding.pids,
                    "the server's GPUs are known"
                );
            }
        }
        for server in before.servers.keys().filter(|server| !now.servers.contains_key(*server)) {
            tracing::info!(server = server.as_str(), "the server's GPUs are not known any more");
        }
    }

    /// Servers that are on other GPUs than the configuration says, once for each finding.
    fn differences(&mut self, joined: &Joined) {
        self.differ.retain(|server, _| joined.differ.iter().any(|(one, _)| one == server));
        for (server, found) in &joined.differ {
            if self.differ.get(server) != Some(found) {
                let found_on = list(&found.iter().cloned().collect());
                tracing::warn!(
                    server = server.as_str(),
                    %found_on,
                    "the server holds memory on other GPUs than its entry gives it; the entry is followed"
                );
                self.differ.insert(server.clone(), found.clone());
            }
        }
    }

    /// Strangers who take memory on a card that a server of ours uses.
    fn strangers(&mut self, holdings: &Holdings, now: Instant) {
        self.strangers.retain(|_, seen| now.duration_since(*seen) < FORGOTTEN_AFTER);
        let used: BTreeSet<&GpuId> =
            holdings.servers.values().flat_map(|server| server.gpus.keys()).collect();
        for gpu in holdings.gpus.iter().filter(|gpu| used.contains(&gpu.gpu)) {
            for holder in &gpu.holders {
                let Owner::Foreign { .. } = holder.owner else { continue };
                let key = (gpu.gpu.clone(), holder.owner.label());
                let full = self.strangers.len() >= TOLD_MAX;
                if let Some(seen) = self.strangers.get_mut(&key) {
                    *seen = now;
                } else if !full {
                    tracing::info!(
                        gpu = gpu.gpu.as_str(),
                        holder = key.1,
                        memory = holder.memory.map(|memory| memory.human()),
                        pids = ?holder.pids,
                        "another process holds memory on a server's GPU"
                    );
                    self.strangers.insert(key, now);
                }
            }
        }
    }
}

/// After so many rounds in which a process on a GPU was not to be seen, it is hidden.
const UNSEEN_ROUNDS: u32 = 5;
