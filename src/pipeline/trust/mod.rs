//! What our own token counts are worth: compared with the servers' at attach and at every answer, and
//! believed only as long as they agree.
//!
//! The state is kept for each model on each server. Nobody waits for a comparison: requests read the last
//! verdict, probes run in a task of their own.

pub mod book;
pub mod pair;
pub mod probes;
pub mod search;
pub mod watch;

use super::{Broker, Live, count::Counter, record::Record, relay::Watched};
use crate::{api::Route, ids::ModelName, servers::ModelServer, units::Tokens};
use arc_swap::ArcSwap;
use book::{Book, Compared, Key};
use pair::{Change, Endpoint, Outcome, Pair};
use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};
use tokio::{sync::Notify, time::Instant};

/// Our own count of a request's input, kept beside the one that is used, for comparison with what its server
/// says. It exists only where the two should be equal.
#[derive(Clone, Debug)]
pub struct Shadow {
    /// By whose files.
    pub counter: Arc<Counter>,
    /// What was asked.
    pub route: Route,
    /// Input tokens.
    pub tokens: Tokens,
    /// Bytes of the body, against which a server's number must make sense.
    pub body_bytes: usize,
}

/// What our own counts are worth.
#[derive(Debug, Default)]
pub struct Trust {
    /// Guards the pairs; held for a look or a note, never across an await.
    book: Mutex<Book>,
    /// The verdict for each model, made anew at each change.
    beliefs: ArcSwap<HashMap<ModelName, bool>>,
    /// Counters whose files nobody configured.
    found: ArcSwap<HashMap<ModelName, Arc<Counter>>>,
    /// Asks the watcher to look at once.
    wake: Notify,
}

impl Trust {
    fn lock(&self) -> MutexGuard<'_, Book> {
        self.book.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether requests for the model are counted by these files.
    pub fn believes(&self, model: &ModelName, counter: &Counter) -> bool {
        // Of a model that no server lists yet nothing speaks against configured files.
        self.beliefs.load().get(model).copied().unwrap_or(!counter.is_found())
    }

    /// The files that were found for a model.
    pub fn found(&self, model: &ModelName) -> Option<Arc<Counter>> {
        self.found.load().get(model).cloned()
    }

    /// All models whose files were found.
    pub fn all_found(&self) -> Vec<(ModelName, Arc<Counter>)> {
        let found = self.found.load();
        found.iter().map(|(model, counter)| (model.clone(), Arc::clone(counter))).collect()
    }

    /// The server to ask for its count of a model's input: rather one that we cannot count for, and none
    /// that cannot count.
    pub fn who_counts(
        &self,
        model: &ModelName,
        servers: Vec<Arc<dyn ModelServer>>,
    ) -> Option<Arc<dyn ModelServer>> {
        let book = self.lock();
        let believed =
            |server: &Arc<dyn ModelServer>| match book.get(&(model.clone(), server.id().clone())) {
                Some(pair) if pair.endpoint == Endpoint::Absent => None,
                Some(pair) => Some(pair.is_believed()),
                None => Some(true),
            };
        let ranked = servers.into_iter().filter_map(|server| Some((believed(&server)?, server)));
        ranked.min_by_key(|(believed, _)| *believed).map(|(_, server)| server)
    }

    /// Every pair, in order.
    pub fn pairs(&self) -> Vec<(Key, Pair)> {
        self.lock().iter().map(|(key, pair)| (key.clone(), pair.clone())).collect()
    }

    /// Looks again soon: files or servers changed.
    pub fn wake(&self) {
        self.wake.notify_one();
    }

    fn judge(&self, book: &Book) {
        self.beliefs.store(Arc::new(book.beliefs()));
    }
}

impl Broker {
    /// The counter of a model: of the configured files, else of those that were found.
    pub fn counter_of(&self, live: &Live, model: &ModelName) -> Option<Arc<Counter>> {
        live.counters.get(model).cloned().or_else(|| self.trust.found(model))
    }

    /// Compares an answer's input as its server counted it with ours.
    pub(super) fn compare(&self, record: &Record, watched: &Watched) {
        let (Some(model), Some(server)) = (&record.model, &record.server) else { return };
        let (Some(shadow), Some(told)) = (&record.shadow, watched.told) else { return };
        let Some(theirs) = told.as_count_of(shadow.tokens, shadow.body_bytes) else { return };
        let Shadow { counter, route, tokens: ours, .. } = shadow;
        let compared = Compared { counter, route: *route, ours: *ours, theirs };
        let key = (model.clone(), server.clone());
        let mut book = self.trust.lock();
        let Some((change, pair)) = book.answered(&key, &compared, Instant::now()) else { return };
        self.changed(change, &key, pair);
        self.trust.judge(&book);
        drop(book);
        self.trust.wake();
    }

    fn probed(&self, key: &Key, begun: &Pair, outcome: Outcome) {
        self.books.metrics.count_probed(&key.0, &key.1, outcome.as_str());
        let mut book = self.trust.lock();
        if let Some((change, pair)) = book.probed(key, begun, outcome, Instant::now()) {
            self.changed(change, key, pair);
        }
        self.trust.judge(&book);
    }

    /// Looks at which servers and files there are now.
    fn attach(&self, live: &Live, now: Instant) {
        let servers = self.dispatch.servers();
        let mut book = self.trust.lock();
        book.attach(&servers, |model| self.counter_of(live, model), now);
        self.trust.judge(&book);
    }

    /// One line for each change, and the metric of drifts.
    fn changed(&self, change: Change, (model, server): &Key, pair: &Pair) {
        let (model, server) = (model.as_str(), server.as_str());
        let fingerprint = pair.counter.files().fingerprint();
        let ours = pair.numbers.map(|(ours, _)| ours.get());
        let theirs = pair.numbers.map(|(_, theirs)| theirs.get());
        let reason = pair.reason.as_str();
        match change {
            Change::Drifted => {
                self.books.metrics.count_drifted(model, server);
                tracing::warn!(
                    model,
                    server,
                    ours,
                    theirs,
                    fingerprint,
                    reason,
                    "the server counts input differently by now; its own count is used until they agree again"
                );
            }
            Change::Doubted => tracing::warn!(
                model,
                server,
                ours,
                theirs,
                fingerprint,
                reason,
                "the server counts input differently; its own count is used until they agree"
            ),
            Change::Proven => {
                tracing::info!(model, server, fingerprint, reason, "input is counted exactly");
            }
        }
    }
}

/// The worst standing of a model's pairs, of those on usable servers if there are any.
pub fn worst<'a>(pairs: impl Iterator<Item = &'a Pair> + Clone) -> Option<&'a Pair> {
    let usable = pairs.clone().filter(|pair| pair.usable).max_by_key(|pair| pair.standing);
    usable.or_else(|| pairs.max_by_key(|pair| pair.standing))
}

// === impl Outcome ===

impl Outcome {
    /// Its name in metrics.
    pub const fn as_str(&self) -> &'static str {
        match self {
            Self::Agreed { .. } => "agreed",
            Self::Disagreed(_) => "disagreed",
            Self::Nothing => "nothing_compared",
            Self::Absent => "no_endpoint",
            Self::Failed(_) => "failed",
        }
    }
}
