//! Who holds a listening socket: by the open files of processes, where they may be looked into.
//!
//! Once found, a holder is believed while it lives: the socket is still listed, so somebody has it. All
//! processes are gone through only for sockets that matter and whose holder is not known.

use super::{Wanted, sockets};
use crate::snapshot::{Listener, ProcessTable};
use std::{
    collections::{BTreeSet, HashMap, HashSet},
    fs::{self, File},
    io::{self, Read},
    net::SocketAddr,
    os::unix::fs::MetadataExt,
    path::Path,
    time::Duration,
};
use tokio::time::Instant;

/// Most processes of the host that are looked at in one search.
const PROCESSES_MAX: usize = 32_768;

/// Most open files that are looked at in one search.
const FILES_MAX: usize = 1 << 20;

/// The first pause before a socket without a known holder is searched for again; it doubles.
const AGAIN_FIRST: Duration = Duration::from_secs(2);

/// The longest such pause. Whoever may not be looked into now will hardly ever be.
const AGAIN_MOST: Duration = Duration::from_secs(60);

/// After a search none follows for so many times as long as it took, whoever opens sockets meanwhile: on a host
/// of many processes it takes seconds.
const REST: u32 = 20;

/// How often the open files of GPU processes and their ancestors are looked at for new sockets.
const CLOSE_EVERY: Duration = Duration::from_secs(10);

/// The program that carries connections to a published port into its container.
const FORWARDER: &str = "docker-proxy";

/// Most bytes of a forwarder's arguments.
const ARGUMENTS_MAX: u64 = 4096;

/// What is remembered between readings.
#[derive(Debug, Default)]
pub(super) struct Holders {
    /// By the socket's inode: processes by id and start.
    known: HashMap<u64, Vec<(u32, Option<u64>)>>,
    /// Where forwarders lead, by the inode of their listening socket.
    forwards: HashMap<u64, SocketAddr>,
    /// Control groups of sockets that mattered and whose holders were not found.
    groups: HashMap<u64, u64>,
    /// Sockets that mattered and were not found, when to search again, and the pause after that.
    missing: Option<(BTreeSet<u64>, Instant, Duration)>,
    /// Until when no process is looked into for a new socket.
    rest: Option<Instant>,
    /// The GPU processes and ancestors that were looked at last, and when.
    close: Option<(BTreeSet<u32>, BTreeSet<u64>, Instant)>,
    /// The last search met a process that it may not look into.
    denied: bool,
}

/// One search.
struct Search<'a> {
    root: &'a Path,
    files_left: usize,
    denied: bool,
    found: HashMap<u64, Vec<u32>>,
    /// Published ports that forwarders carry on.
    forwards: HashMap<u16, Vec<Forward>>,
}

/// What one process says about a port that it forwards. Anybody may call a program so and give it such
/// arguments.
struct Forward {
    pid: u32,
    user: u32,
    to: SocketAddr,
}

impl Holders {
    /// Fills in the holders of the table's listeners.
    pub(super) fn find(
        &mut self,
        root: &Path,
        wanted: &Wanted,
        table: &mut ProcessTable,
        now: Instant,
    ) {
        let listed: HashSet<u64> = table.listeners.iter().map(|one| one.inode).collect();
        self.known.retain(|inode, _| listed.contains(inode));
        self.forwards.retain(|inode, _| listed.contains(inode));
        self.groups.retain(|inode, _| listed.contains(inode));
        self.known.retain(|_, holders| {
            holders.retain(|(pid, started)| alive(root, *pid, *started));
            !holders.is_empty()
        });
        let unknown: BTreeSet<u64> =
            listed.iter().copied().filter(|inode| !self.known.contains_key(inode)).collect();
        // The daemon's own files are its callers' connections, and its sockets are no server's.
        let looked = |pid: &u32| *pid > 1 && *pid != std::process::id();
        let close: BTreeSet<u32> = table.processes.keys().copied().filter(looked).collect();
        if self.is_close_due(&close, &unknown, now) {
            let mut search = Search::new(root);
            close.iter().for_each(|pid| search.look_into(*pid));
            self.take(search, &table.listeners);
            self.close = Some((close, unknown, now));
        }
        let matters = |one: &&Listener| one.network.is_some() || wanted.ports.contains(&one.port);
        let matter: Vec<u64> =
            table.listeners.iter().filter(matters).map(|one| one.inode).collect();
        let before = self.missing_of(&matter);
        if self.is_search_due(&before, now) {
            let mut search = Search::new(root);
            let began = Instant::now();
            table.cut |= search.look_everywhere(&before);
            self.rest_after(began, Instant::now());
            self.denied = search.denied;
            self.take(search, &table.listeners);
            let left = self.missing_of(&matter);
            if !left.is_empty() {
                self.groups = super::diag::groups();
            }
            self.groups.retain(|inode, _| left.contains(inode));
            let pause = match &self.missing {
                Some((was, _, pause)) if *was == left => pause.saturating_mul(2).min(AGAIN_MOST),
                _ => AGAIN_FIRST,
            };
            self.missing = (!left.is_empty()).then(|| (left, now + pause, pause));
        }
        let unknown =
            |inode: &u64| !self.groups.contains_key(inode) && !self.forwards.contains_key(inode);
        let missing = self.missing.as_ref();
        table.denied = self.denied && missing.is_some_and(|(left, ..)| left.iter().any(unknown));
        for listener in &mut table.listeners {
            let holders = self.known.get(&listener.inode);
            listener.holders = holders.into_iter().flatten().map(|(pid, _)| *pid).collect();
            listener.group = self.groups.get(&listener.inode).copied();
            listener.forward = self.forwards.get(&listener.inode).copied();
        }
    }

    /// Remembers the starts of the holders as the table has them: another process of the same id is
    /// another holder.
    pub(super) fn keep(&mut self, table: &ProcessTable) {
        for holders in self.known.values_mut() {
            holders.retain_mut(|(pid, started)| match table.processes.get(pid) {
                Some(process) => *started.get_or_insert(process.started) == process.started,
                None => false,
            });
        }
        self.known.retain(|_, holders| !holders.is_empty());
    }

    fn missing_of(&self, inodes: &[u64]) -> BTreeSet<u64> {
        inodes.iter().copied().filter(|inode| !self.known.contains_key(inode)).collect()
    }

    fn is_close_due(&self, close: &BTreeSet<u32>, unknown: &BTreeSet<u64>, now: Instant) -> bool {
        if close.is_empty() || unknown.is_empty() {
            return false;
        }
        match &self.close {
            Some((pids, inodes, at)) => {
                pids != close || inodes != unknown || now.duration_since(*at) >= CLOSE_EVERY
            }
            None => true,
        }
    }

    fn rest_after(&mut self, began: Instant, ended: Instant) {
        self.rest = ended.checked_add(ended.duration_since(began).saturating_mul(REST));
    }

    /// At once for a socket that was not there before, else after a growing pause; never in the rest after a
    /// search.
    fn is_search_due(&self, missing: &BTreeSet<u64>, now: Instant) -> bool {
        if self.rest.is_some_and(|until| now < until) {
            return false;
        }
        match &self.missing {
            Some((known, again, _)) => {
                !missing.is_empty() && (!missing.is_subset(known) || now >= *again)
            }
            None => !missing.is_empty(),
        }
    }

    fn take(&mut self, search: Search<'_>, listeners: &[Listener]) {
        for listener in listeners {
            if let Some(pids) = search.found.get(&listener.inode) {
                let holders = self.known.entry(listener.inode).or_default();
                for &pid in pids {
                    if !holders.iter().any(|(known, _)| *known == pid) {
                        holders.push((pid, None));
                    }
                }
            }
            // A forwarder is root's: who it is cannot be seen by the socket, but its arguments can.
            let told = search.forwards.get(&listener.port).filter(|_| listener.network.is_none());
            let holders = self.known.get(&listener.inode);
            let is_its = |one: &&Forward| {
                one.user == listener.user
                    && holders.is_none_or(|all| all.iter().any(|(pid, _)| *pid == one.pid))
            };
            if let Some(forward) = told.into_iter().flatten().rfind(is_its) {
                self.forwards.insert(listener.inode, forward.to);
            }
        }
    }
}

/// Is it still the process that was found? One whose start is not known yet was found this very moment.
pub(super) fn alive(root: &Path, pid: u32, started: Option<u64>) -> bool {
    let Ok(line) = fs::read(root.join(pid.to_string()).join("stat")) else { return false };
    let read = super::stat::stat(&String::from_utf8_lossy(&line));
    read.is_some_and(|read| started.is_none_or(|started| started == read.started))
}

impl<'a> Search<'a> {
    fn new(root: &'a Path) -> Self {
        let (found, forwards) = (HashMap::new(), HashMap::new());
        Self { root, files_left: FILES_MAX, denied: false, found, forwards }
    }

    /// The sockets that one process holds.
    fn look_into(&mut self, pid: u32) {
        let folder = self.root.join(pid.to_string()).join("fd");
        let files = match fs::read_dir(folder) {
            Ok(files) => files,
            Err(error) => {
                self.denied |= error.kind() == io::ErrorKind::PermissionDenied;
                return;
            }
        };
        for file in files.flatten() {
            if self.files_left == 0 {
                return;
            }
            self.files_left -= 1;
            match fs::read_link(file.path()) {
                Ok(link) => {
                    let inode = link.to_str().and_then(sockets::inode);
                    if let Some(inode) = inode {
                        self.found.entry(inode).or_default().push(pid);
                    }
                }
                Err(error) => self.denied |= error.kind() == io::ErrorKind::PermissionDenied,
            }
        }
    }

    /// The sockets of all processes, and where forwarders lead. True if there were too many.
    fn look_everywhere(&mut self, missing: &BTreeSet<u64>) -> bool {
        let Ok(entries) = fs::read_dir(self.root) else { return false };
        let number = |entry: fs::DirEntry| entry.file_name().to_str()?.parse::<u32>().ok();
        // The service manager holds the sockets that it hands over; they are not its own.
        let mut pids = entries.flatten().filter_map(number).filter(|pid| *pid > 1);
        for pid in pids.by_ref().take(PROCESSES_MAX) {
            self.look_into(pid);
            self.look_for_forward(pid);
        }
        // Holders that were found share a socket with none that was not.
        let all = missing.iter().all(|inode| self.found.contains_key(inode));
        pids.next().is_some() || (self.files_left == 0 && !all)
    }

    fn look_for_forward(&mut self, pid: u32) {
        let folder = self.root.join(pid.to_string());
        let named = fs::read_to_string(folder.join("comm"));
        if named.is_ok_and(|name| name.trim_end() == FORWARDER)
            && let Ok(user) = fs::metadata(&folder).map(|folder| folder.uid())
            && let Ok(arguments) = File::open(folder.join("cmdline"))
        {
            let mut text = Vec::new();
            // What was read before an error is too little to be understood.
            let _ = arguments.take(ARGUMENTS_MAX).read_to_end(&mut text);
            if let Some((port, to)) = sockets::forwarded(&text) {
                self.forwards.entry(port).or_default().push(Forward { pid, user, to });
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    // A container that opened ports without end had all processes of the host gone through each time.
    #[test]
    fn whoever_opens_sockets_without_end_cannot_have_all_processes_searched_all_the_time() {
        let second = Duration::from_secs(1);
        let mut holders = Holders::default();
        let (mut now, mut searching) = (Instant::now(), Duration::ZERO);
        let begun = now;
        for inode in 1..=1000 {
            if holders.is_search_due(&BTreeSet::from([inode]), now) {
                holders.rest_after(now, now + second * 2);
                holders.missing = Some((BTreeSet::from([inode]), now + AGAIN_FIRST, AGAIN_FIRST));
                searching += second * 2;
                now += second * 2;
            }
            now += second;
        }
        assert!(searching > Duration::ZERO);
        assert!(searching * REST < now - begun, "{searching:?} of {:?}", now - begun);
    }
}
