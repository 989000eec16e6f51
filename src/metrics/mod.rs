//! Prometheus metrics: the request families, the gauges set at each scrape, and the text.

use crate::{
    config::Action,
    error::{Class, Reason},
    holding::Holdings,
    ids::{ModelName, Tier},
    pipeline::{
        dispatch::ServerView,
        record::Ended,
        screening::{Answered, Judged, Models, Screened},
        trust::{book::Key, pair::Pair},
    },
    snapshot::GpuPlane,
    units::Tokens,
};
use prometheus_client::{
    encoding::{
        EncodeLabelSet, EncodeMetric, MetricEncoder,
        text::{encode_eof, encode_registry},
    },
    metrics::{
        MetricType,
        counter::Counter,
        family::{Family, MetricConstructor},
        gauge::Gauge,
        histogram::Histogram,
        info::Info,
    },
    registry::{Registry, Unit},
};
use std::{
    collections::BTreeMap,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicI64, AtomicU64},
    },
    time::Duration,
};
use tokio::time::Instant;

/// Registers a family and hands it back.
macro_rules! family {
    ($registry:expr, $name:literal, $help:literal) => {{
        let family = Family::default();
        $registry.register($name, $help, family.clone());
        family
    }};
    ($registry:expr, $name:literal, $help:literal, $unit:expr) => {{
        let family = Family::default();
        $registry.register_with_unit($name, $help, $unit, family.clone());
        family
    }};
}

macro_rules! histograms {
    ($registry:expr, $name:literal, $help:literal, $bounds:expr) => {{
        let family = Family::new_with_constructor(Bounds($bounds));
        $registry.register_with_unit($name, $help, Unit::Seconds, family.clone());
        family
    }};
}

mod cards;
mod counting;
mod energy;
mod faults;
mod gauges;
mod holding;
mod hung;
mod memory;
mod older;
mod screen;
#[cfg(test)]
mod tests;
mod turns;

pub use older::older_text;

use cards::Cards;
use counting::Counting;
use energy::Energy;
use faults::Faults;
use holding::Holding;
use hung::Hangs;
use memory::Memory;
use screen::Screens;
use turns::Turns;

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct RequestLabels {
    model: String,
    tier: &'static str,
    class: &'static str,
    reason: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ModelTier {
    model: String,
    tier: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct TierLabel {
    tier: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ModelLabel {
    model: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct CountLabels {
    model: String,
    source: &'static str,
    result: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ServerLabel {
    server: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ServerCause {
    server: String,
    cause: &'static str,
}

type FloatGauge = Gauge<f64, AtomicU64>;
type IntGauge = Gauge<i64, AtomicI64>;

/// A gauge without labels that is absent from the page while it holds no number: a 0 would say that
/// something was read just now.
#[derive(Clone, Debug)]
struct Perhaps(FloatGauge);

impl Perhaps {
    fn absent() -> Self {
        let gauge = Self(FloatGauge::default());
        gauge.0.set(f64::NAN);
        gauge
    }
}

impl EncodeMetric for Perhaps {
    fn encode(&self, encoder: MetricEncoder<'_>) -> Result<(), std::fmt::Error> {
        if self.0.get().is_nan() { Ok(()) } else { self.0.encode(encoder) }
    }

    fn metric_type(&self) -> MetricType {
        MetricType::Gauge
    }
}

/// Makes histograms with fixed bounds.
#[derive(Clone, Debug)]
struct Bounds(&'static [f64]);

impl MetricConstructor<Histogram> for Bounds {
    fn new_metric(&self) -> Histogram {
        Histogram::new(self.0.iter().copied())
    }
}

type Histograms<L> = Family<L, Histogram, Bounds>;

/// Seconds until something begins: from cached prefill to a long queue.
const WAIT_BOUNDS: &[f64] = &[
    0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 20.0, 60.0, 120.0,
    300.0,
];
/// Seconds between tokens.
const GAP_BOUNDS: &[f64] =
    &[0.001, 0.002, 0.005, 0.01, 0.015, 0.02, 0.03, 0.05, 0.075, 0.1, 0.2, 0.5, 1.0, 5.0];
/// Seconds of whole requests.
const WHOLE_BOUNDS: &[f64] =
    &[0.01, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0, 900.0, 3600.0];

/// Every metric. Labels are bounded: models come from servers and the configuration, and whatever a
/// caller invents counts as `unknown`.
#[derive(Debug)]
pub struct Metrics {
    registry: Registry,
    /// Held while a page is made: gauges are cleared and set anew for each, and two readers at once
    /// would find each other's half-made pages.
    page: Mutex<()>,
    started: Instant,
    uptime: FloatGauge,
    requests: Family<RequestLabels, Counter>,
    running: IntGauge,
    connections: IntGauge,
    queue_depth: Family<TierLabel, IntGauge>,
    queue_wait: Histograms<TierLabel>,
    ttft: Histograms<ModelTier>,
    gap: Histograms<ModelLabel>,
    whole: Histograms<ModelTier>,
    input: Family<ModelTier, Counter>,
    output: Family<ModelTier, Counter>,
    counts: Family<CountLabels, Counter>,
    counting: Counting,
    energy: Energy,
    hangs: Hangs,
    memory: Memory,
    turns: Turns,
    holding: Holding,
    faults: Faults,
    screens: Screens,
    failures: Family<ServerCause, Counter>,
    server_up: Family<ServerLabel, IntGauge>,
    server_usable: Family<ServerLabel, IntGauge>,
    server_breaker: Family<ServerLabel, IntGauge>,
    server_placed: Family<ServerLabel, IntGauge>,
    server_placed_tokens: Family<ServerLabel, IntGauge>,
    server_capacity: Family<ServerLabel, IntGauge>,
    server_running: Family<ServerLabel, IntGauge>,
    server_waiting: Family<ServerLabel, IntGauge>,
    server_kv: Family<ServerLabel, FloatGauge>,
    server_age: Family<ServerLabel, FloatGauge>,
    gpu_age: Perhaps,
    cards: Cards,
    /// Families whose names are not ours, so without our prefix.
    bare: Registry,
}

impl Default for Metrics {
    fn default() -> Self {
        Self::new()
    }
}

impl Metrics {
    /// All families, empty.
    pub fn new() -> Self {
        let mut r = Registry::with_prefix("berthd");
        let version = Info::new(vec![("version", env!("CARGO_PKG_VERSION"))]);
        r.register("build", "The version of this daemon", version);
        let uptime = FloatGauge::default();
        r.register_with_unit("uptime", "Time since start", Unit::Seconds, uptime.clone());
        let running = IntGauge::default();
        r.register("requests_running", "Requests placed on servers now", running.clone());
        let connections = IntGauge::default();
        r.register("connections", "Callers' connections now", connections.clone());
        let gpu_age = Perhaps::absent();
        r.register_with_unit(
            "gpu_readings_age",
            "Age of the newest GPU readings",
            Unit::Seconds,
            gpu_age.clone(),
        );
        let cards = Cards::default();
        r.register_collector(Box::new(cards::Own(cards.clone())));
        let mut bare = Registry::default();
        bare.register_collector(Box::new(cards::Dcgm(cards.clone())));
        Self {
            page: Mutex::new(()),
            started: Instant::now(),
            requests: family!(r, "requests", "Requests ended, by outcome class and reason"),
            queue_depth: family!(r, "queue_depth", "Requests waiting for a turn"),
            queue_wait: histograms!(r, "queue_wait", "Wait for a turn", WAIT_BOUNDS),
            ttft: histograms!(
                r,
                "ttft",
                "Time from request to first content, queue included",
                WAIT_BOUNDS
            ),
            gap: histograms!(
                r,
                "inter_token",
                "Time between content events of a stream",
                GAP_BOUNDS
            ),
            whole: histograms!(r, "request", "Time from request to end of answer", WHOLE_BOUNDS),
            input: family!(r, "input_tokens", "Input tokens of requests that reached a server"),
            output: family!(r, "output_tokens", "Output tokens"),
            counts: family!(
                r,
                "token_count_checks",
                "Our input count beside the server's usage, by where ours came from"
            ),
            counting: Counting::new(&mut r),
            energy: Energy::new(&mut r),
            hangs: Hangs::new(&mut r),
            memory: Memory::new(&mut r),
            turns: Turns::new(&mut r),
            holding: Holding::new(&mut r),
            faults: Faults::new(&mut r),
            screens: Screens::new(&mut r),
            failures: family!(r, "server_failures", "Attempts that a server failed, by cause"),
            server_up: family!(r, "server_up", "1 when the server's own health says it is ready"),
            server_usable: family!(
                r,
                "server_usable",
                "1 when requests may be placed on the server"
            ),
            server_breaker: family!(
                r,
                "server_breaker_open",
                "1 while the server's breaker is open"
            ),
            server_placed: family!(r, "server_placed_requests", "Requests placed on the server"),
            server_placed_tokens: family!(
                r,
                "server_placed_tokens",
                "KV tokens placed on the server"
            ),
            server_capacity: family!(r, "server_capacity_tokens", "KV tokens the server can hold"),
            server_running: family!(r, "server_running", "Sequences running, as the server says"),
            server_waiting: family!(
                r,
                "server_waiting",
                "Sequences waiting in the server, as it says"
            ),
            server_kv: family!(
                r,
                "server_kv_used_ratio",
                "Share of KV cache in use, as the server says"
            ),
            server_age: family!(
                r,
                "server_readings_age",
                "Age of the server's newest readings",
                Unit::Seconds
            ),
            uptime,
            running,
            connections,
            gpu_age,
            cards,
            bare,
            registry: r,
        }
    }

    /// A request ended.
    pub fn ended(&self, ended: &Ended<'_>) {
        let model = ended.model.map_or("unknown", ModelName::as_str);
        let tier = ended.tier.map_or("none", Tier::as_str);
        let labels = RequestLabels {
            model: model.to_owned(),
            tier,
            class: ended.class.as_str(),
            reason: ended.reason.map_or("", Reason::as_str),
        };
        self.requests.get_or_create(&labels).inc();
        if !ended.had {
            return;
        }
        let labels = ModelTier { model: model.to_owned(), tier };
        self.input.get_or_create(&labels).inc_by(ended.usage.prompt.get());
        self.output.get_or_create(&labels).inc_by(ended.usage.completion.get());
        if let Some(ttft) = ended.ttft {
            self.ttft.get_or_create(&labels).observe(ttft.as_secs_f64());
        }
        if ended.class == Class::Answered {
            self.whole.get_or_create(&labels).observe(ended.elapsed.as_secs_f64());
        }
    }

    /// A request got its turn after waiting this long.
    pub fn waited(&self, tier: Tier, wait: Duration) {
        self.queue_wait
            .get_or_create(&TierLabel { tier: tier.as_str() })
            .observe(wait.as_secs_f64());
    }

    /// The histogram of a model's gaps between tokens, to be held for the length of a stream.
    pub fn gaps(&self, model: &ModelName) -> Histogram {
        self.gap.get_or_create(&ModelLabel { model: model.to_string() }).clone()
    }

    /// Our input count was compared with the server's.
    pub fn count_checked(
        &self,
        model: &ModelName,
        source: &'static str,
        ours: Tokens,
        theirs: Tokens,
    ) {
        let result = if ours == theirs { "match" } else { "mismatch" };
        let labels = CountLabels { model: model.to_string(), source, result };
        self.counts.get_or_create(&labels).inc();
    }

    /// A request was screened; `wished` is what a stricter mode would have done.
    pub fn screened(&self, screened: &Screened, wished: Action, judged: &[Judged]) {
        self.screens.input(screened, wished, judged);
    }

    /// An answer was watched.
    pub fn answer_watched(&self, model: &ModelName, answered: &Answered) {
        self.screens.output(model, answered);
    }

    /// Sets what the classifiers do, for the next page.
    pub fn set_classifiers(&self, models: &Models) {
        self.screens.set(models);
    }

    /// A server failed an attempt.
    pub fn server_failed(&self, server: &str, cause: &'static str) {
        let labels = ServerCause { server: server.to_owned(), cause };
        self.failures.get_or_create(&labels).inc();
    }

    /// A caller connected (+1) or left (-1).
    pub fn connection(&self, change: i64) {
        self.connections.inc_by(change);
    }

    /// Callers' connections now.
    pub fn connections_now(&self) -> i64 {
        self.connections.get()
    }

    /// Time since start.
    pub fn uptime(&self) -> Duration {
        self.started.elapsed()
    }

    /// Keeps who holds what on the GPUs, for the next page.
    pub fn set_holdings(&self, holdings: Arc<Holdings>) {
        self.holding.keep(holdings);
    }

    /// The whole page, with gauges set from what is known now.
    pub fn page(
        &self,
        waiting: &BTreeMap<Tier, usize>,
        servers: &[ServerView],
        gpus: &GpuPlane,
    ) -> String {
        self.page_with(waiting, servers, &[], gpus)
    }

    /// As [`Metrics::page`], with what our own token counts are worth.
    pub fn page_with(
        &self,
        waiting: &BTreeMap<Tier, usize>,
        servers: &[ServerView],
        counts: &[(Key, Pair)],
        gpus: &GpuPlane,
    ) -> String {
        let _alone = self.page.lock().unwrap_or_else(PoisonError::into_inner);
        self.uptime.set(self.started.elapsed().as_secs_f64());
        for (tier, count) in waiting {
            let labels = TierLabel { tier: tier.as_str() };
            self.queue_depth.get_or_create(&labels).set(i64::try_from(*count).unwrap_or(i64::MAX));
        }
        self.set_servers(servers);
        self.hangs.set(servers);
        self.memory.set(servers);
        self.turns.set(servers);
        self.counting.set_states(counts.iter());
        self.set_gpus(gpus);
        self.holding.set();
        self.faults.set();
        let mut text = String::with_capacity(16 * 1024);
        // Writing to a string cannot fail.
        let _ = encode_registry(&mut text, &self.registry);
        let _ = encode_registry(&mut text, &self.bare);
        let _ = encode_eof(&mut text);
        text
    }
}
