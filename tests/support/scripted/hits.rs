//! What the scripted server has seen, and a guard that counts one request.

use std::{
    sync::{
        Mutex,
        atomic::{AtomicU64, Ordering::SeqCst},
    },
    time::Duration,
};
use tokio::{sync::watch, time::Instant};

/// Requests kept for a look.
const SEEN_MAX: usize = 10_000;

/// What the server has seen of generating requests.
#[derive(Debug, Default)]
pub struct Hits {
    requests: AtomicU64,
    finished: AtomicU64,
    open: AtomicU64,
    most_open: AtomicU64,
    aborts: Mutex<Vec<Abort>>,
    seen: Mutex<Vec<Seen>>,
    newest: Mutex<Option<Instant>>,
    changed: watch::Sender<()>,
}

/// A peer that closed before the server had finished.
#[derive(Clone, Copy, Debug)]
pub struct Abort {
    /// When the close was noticed.
    pub at: Instant,
    /// Since the request had come.
    pub after: Duration,
}

/// One request as it came.
#[derive(Clone, Debug)]
pub struct Seen {
    /// Request line and headers.
    pub head: String,
    /// The body, framing taken off.
    pub body: Vec<u8>,
}

// === impl Hits ===

impl Hits {
    /// Generating requests read.
    pub fn requests(&self) -> u64 {
        self.requests.load(SeqCst)
    }

    /// Requests the server ended as it meant to.
    pub fn finished(&self) -> u64 {
        self.finished.load(SeqCst)
    }

    /// Requests open now.
    pub fn open(&self) -> u64 {
        self.open.load(SeqCst)
    }

    /// The most that were open together.
    pub fn most_open(&self) -> u64 {
        self.most_open.load(SeqCst)
    }

    /// Requests whose peer closed before the server had finished.
    pub fn aborted(&self) -> u64 {
        self.aborts().len() as u64
    }

    /// The same, each with its time.
    pub fn aborts(&self) -> Vec<Abort> {
        self.aborts.lock().unwrap().clone()
    }

    /// The generating requests, oldest first.
    pub fn seen(&self) -> Vec<Seen> {
        self.seen.lock().unwrap().clone()
    }

    /// When the newest generating request had come whole.
    pub fn newest(&self) -> Option<Instant> {
        *self.newest.lock().unwrap()
    }

    /// Waits until `condition` holds; it is asked again after every change.
    pub async fn until(&self, condition: impl Fn(&Self) -> bool) {
        let mut changes = self.changed.subscribe();
        while !condition(self) {
            changes.changed().await.expect("the sender is in self");
        }
    }

    fn changed(&self) {
        self.changed.send_replace(());
    }
}

/// Counts one request as open while it lives.
pub(super) struct Open<'a> {
    hits: &'a Hits,
    since: Instant,
}

impl<'a> Open<'a> {
    /// Counts a request in.
    pub fn new(hits: &'a Hits, seen: Seen) -> Self {
        hits.requests.fetch_add(1, SeqCst);
        let open = hits.open.fetch_add(1, SeqCst) + 1;
        hits.most_open.fetch_max(open, SeqCst);
        *hits.newest.lock().unwrap() = Some(Instant::now());
        let mut list = hits.seen.lock().unwrap();
        if list.len() < SEEN_MAX {
            list.push(seen);
        }
        drop(list);
        hits.changed();
        Self { hits, since: Instant::now() }
    }

    /// The peer has left.
    pub fn aborted(self) {
        let at = Instant::now();
        self.hits.aborts.lock().unwrap().push(Abort { at, after: at - self.since });
    }

    /// The server has done what it meant to.
    pub fn finished(self) {
        self.hits.finished.fetch_add(1, SeqCst);
    }
}

impl Drop for Open<'_> {
    fn drop(&mut self) {
        self.hits.open.fetch_sub(1, SeqCst);
        self.hits.changed();
    }
}
