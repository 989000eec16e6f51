//! How input is counted: how long that takes, and what our own counts are worth.

use super::{Bounds, Histograms, IntGauge};
use crate::{
    ids::{ModelName, ServerId},
    pipeline::trust::{
        book::Key,
        pair::{Pair, Standing},
    },
    tokens::CacheUse,
};
use prometheus_client::{
    encoding::EncodeLabelSet,
    metrics::{counter::Counter, family::Family},
    registry::{Registry, Unit},
};
use std::{sync::atomic::Ordering, time::Duration};

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Source {
    source: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OnServer {
    model: String,
    server: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct InState {
    model: String,
    server: String,
    state: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Probed {
    model: String,
    server: String,
    result: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OfModel {
    model: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct LookedUp {
    model: String,
    result: &'static str,
}

/// Seconds of one count: from a few messages in memory to a server that is asked.
const COUNT_BOUNDS: &[f64] = &[
    0.000_01, 0.000_02, 0.000_05, 0.0001, 0.0002, 0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05,
    0.1, 0.2, 0.5, 1.0, 2.0,
];

/// The families.
#[derive(Debug)]
pub(super) struct Counting {
    seconds: Histograms<Source>,
    drifts: Family<OnServer, Counter>,
    probes: Family<Probed, Counter>,
    state: Family<InState, IntGauge>,
    lookups: Family<LookedUp, Counter>,
    held: Family<OfModel, IntGauge>,
}

impl Counting {
    pub(super) fn new(r: &mut Registry) -> Self {
        Self {
            seconds: histograms!(
                r,
                "token_count",
                "Time to count one request's input, by where the count came from",
                COUNT_BOUNDS
            ),
            drifts: family!(r, "token_count_drifts", "Exact counts that an answer contradicted"),
            probes: family!(
                r,
                "token_count_probes",
                "Rounds of counts that were asked of the server, by what came of them"
            ),
            state: family!(r, "token_count_state", "1 at what our own count is worth now"),
            lookups: family!(
                r,
                "token_cache_lookups",
                "Parts of prompts looked for among those counted before"
            ),
            held: family!(r, "token_cache", "Memory of counted parts", Unit::Bytes),
        }
    }

    pub(super) fn set_states<'a>(&self, pairs: impl Iterator<Item = &'a (Key, Pair)>) {
        // Pairs that are gone must not stay on the page.
        self.state.clear();
        for ((model, server), pair) in pairs {
            for standing in Standing::ALL {
                let labels = InState {
                    model: model.to_string(),
                    server: server.to_string(),
                    state: standing.as_str(),
                };
                self.state.get_or_create(&labels).set(i64::from(pair.standing == standing));
            }
        }
    }
}

impl super::Metrics {
    /// A request's input was counted, and that took this long.
    pub fn counted(&self, source: &'static str, took: Duration) {
        self.counting.seconds.get_or_create(&Source { source }).observe(took.as_secs_f64());
    }

    /// What is remembered of counts, model by model. Models that share files share a memory.
    pub fn set_caches(&self, used: impl Iterator<Item = (ModelName, CacheUse)>) {
        self.counting.lookups.clear();
        self.counting.held.clear();
        for (model, used) in used {
            let model = model.to_string();
            for (result, count) in [("hit", used.hits), ("miss", used.misses)] {
                let labels = LookedUp { model: model.clone(), result };
                // The cache counts for itself.
                let counter = self.counting.lookups.get_or_create(&labels);
                counter.inner().store(count, Ordering::Relaxed);
            }
            let bytes = i64::try_from(used.bytes).unwrap_or(i64::MAX);
            self.counting.held.get_or_create(&OfModel { model }).set(bytes);
        }
    }

    /// An exact count was contradicted.
    pub fn count_drifted(&self, model: &str, server: &str) {
        let labels = OnServer { model: model.to_owned(), server: server.to_owned() };
        self.counting.drifts.get_or_create(&labels).inc();
    }

    /// A round of probes ended.
    pub fn count_probed(&self, model: &ModelName, server: &ServerId, result: &'static str) {
        let (model, server) = (model.to_string(), server.to_string());
        self.counting.probes.get_or_create(&Probed { model, server, result }).inc();
    }
}
