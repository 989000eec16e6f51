//! One request's record: what happened to it, written once at its end, whatever the end is.

use super::{
    count::Counted,
    device::working::{Told, Working},
    dispatch::Decision,
    screening::{Answered, Screened, Verdicts},
    trust::Shadow,
};
use crate::{
    admit::Reservation,
    api::answer::Usage,
    config::Action,
    energy::{Prices, Spent},
    error::{Class, Reason, Refusal},
    ids::{ModelName, RequestId, ServerId, TenantId, Tier},
    ledger::Ledger,
    metrics::Metrics,
    units::Tokens,
};
use std::{collections::VecDeque, sync::Arc, sync::Mutex, sync::PoisonError, time::Duration};
use tokio::time::Instant;

/// How a request ended, for metrics.
#[derive(Debug)]
pub struct Ended<'a> {
    /// The model, if it is one we know.
    pub model: Option<&'a ModelName>,
    /// Its tier, if the caller was known.
    pub tier: Option<Tier>,
    /// How it ended.
    pub class: Class,
    /// Why it ended early.
    pub reason: Option<Reason>,
    /// A server had it, and may have worked on it.
    pub had: bool,
    /// Tokens used.
    pub usage: Usage,
    /// Time to the first content, of a stream.
    pub ttft: Option<Duration>,
    /// Time in all.
    pub elapsed: Duration,
}

/// Refusals and failures that operators may want to see, newest last.
#[derive(Debug, Default)]
pub struct Recent {
    /// Guards the ring; held for one push or one copy.
    ring: Mutex<VecDeque<RecentRefusal>>,
}

/// One of them.
#[derive(Clone, Debug)]
pub struct RecentRefusal {
    /// When.
    pub at: Instant,
    /// Which request.
    pub id: RequestId,
    /// Whose.
    pub tenant: Option<TenantId>,
    /// Of which model.
    pub model: Option<ModelName>,
    /// Why.
    pub reason: Reason,
    /// What the caller was told.
    pub message: String,
}

/// Refusals kept.
const RECENT_MAX: usize = 50;
/// Longest message kept; messages may quote what a caller sent.
const MESSAGE_MAX: usize = 300;

impl Recent {
    fn push(&self, refusal: RecentRefusal) {
        let mut ring = self.ring.lock().unwrap_or_else(PoisonError::into_inner);
        if ring.len() >= RECENT_MAX {
            ring.pop_front();
        }
        ring.push_back(refusal);
    }

    /// All of them, newest last.
    pub fn list(&self) -> Vec<RecentRefusal> {
        self.ring.lock().unwrap_or_else(PoisonError::into_inner).iter().cloned().collect()
    }
}

/// Where records go.
#[derive(Debug, Default)]
pub struct Books {
    /// Counters and histograms.
    pub metrics: Metrics,
    /// Totals per tenant and model.
    pub ledger: Ledger,
    /// Recent refusals.
    pub recent: Recent,
    /// Recent verdicts of screening.
    pub verdicts: Verdicts,
}

/// The record of a request under way. Dropped before its end is written, it says that the caller left, or
/// where a panic drops it, that this daemon failed.
#[derive(Debug)]
pub struct Record {
    books: Arc<Books>,
    /// The request's id.
    pub id: RequestId,
    started: Instant,
    /// Route name.
    pub route: &'static str,
    /// Who pays.
    pub tenant: Option<TenantId>,
    /// How urgent.
    pub tier: Option<Tier>,
    /// The model, once it is known to exist.
    pub model: Option<ModelName>,
    /// The input count.
    pub counted: Option<Counted>,
    /// Our own input count, where the server's should be equal.
    pub shadow: Option<Shadow>,
    /// The token rate held for it.
    pub reservation: Option<Reservation>,
    /// The server that has it, or had it last.
    pub server: Option<ServerId>,
    /// Turns it took.
    pub attempts: u32,
    /// Turns in which the server had it, and may have worked on it. A server that cannot be reached or
    /// refuses at the door costs the tenant nothing.
    pub had: u32,
    /// Wait for turns, all attempts together.
    pub waited: Duration,
    /// Time to the first content.
    pub ttft: Option<Duration>,
    /// Output tokens so far, by our count.
    pub output: Tokens,
    /// The attempt under way, for the meter.
    working: Option<Working>,
    /// What the attempts before took, where that is known.
    spent: Option<Spent>,
    /// The caller wants to know what the request took.
    pub tell_energy: bool,
    /// What that costs.
    pub prices: Prices,
    /// The caller wants to know what was decided about it.
    pub tell_decision: bool,
    /// That, once it is.
    pub decision: Option<Box<Decision>>,
    /// What came of screening its texts.
    pub screened: Option<Screened>,
    /// What came of watching its answer.
    pub watched: Option<Answered>,
    written: bool,
}

impl Record {
    /// A record that begins now.
    pub fn begin(books: Arc<Books>, id: RequestId, route: &'static str) -> Self {
        Self {
            books,
            id,
            started: Instant::now(),
            route,
            tenant: None,
            tier: None,
            model: None,
            counted: None,
            shadow: None,
            reservation: None,
            server: None,
            attempts: 0,
            had: 0,
            waited: Duration::ZERO,
            ttft: None,
            output: Tokens::ZERO,
            working: None,
            spent: None,
            tell_energy: false,
            prices: Prices::default(),
            tell_decision: false,
            decision: None,
            screened: None,
            watched: None,
            written: false,
        }
    }

    /// When the request came.
    pub const fn started(&self) -> Instant {
        self.started
    }

    /// First content reached us.
    pub fn first_content(&mut self) {
        self.ttft.get_or_insert_with(|| self.started.elapsed());
        if let Some(working) = &self.working {
            working.first();
        }
    }

    /// So much output came so far, by our count.
    pub fn said(&mut self, output: Tokens) {
        self.output = output;
        if let Some(working) = &self.working {
            working.output(output);
        }
    }

    /// An attempt begins; `None` where nobody meters.
    pub fn works(&mut self, working: Option<Working>) {
        self.stops_working(None);
        self.working = working;
    }

    /// The attempt is over, with `usage` if its answer is whole. What was known is not told twice.
    pub fn stops_working(&mut self, usage: Option<Usage>) {
        if let Some(spent) = self.working.take().and_then(|working| working.finish(usage)) {
            self.spent = Some(self.spent.map_or(spent, |before| before.plus(spent)));
        }
    }

    /// What the attempts that are over took, where that is known.
    pub fn told(&self) -> Option<Told> {
        self.spent.map(|spent| Told { spent, prices: self.prices })
    }

    /// The request was answered whole.
    pub fn answered(mut self, usage: Usage) {
        self.write(Class::Answered, None, Some(usage));
    }

    /// The request ended early.
    pub fn refused(mut self, refusal: &Refusal) {
        // Strangers must not push what operators look for out of the ring.
        if self.tenant.is_some() {
            self.books.recent.push(RecentRefusal {
                at: Instant::now(),
                id: self.id.clone(),
                tenant: self.tenant.clone(),
                model: self.model.clone(),
                reason: refusal.reason,
                message: refusal.message.chars().take(MESSAGE_MAX).collect(),
            });
        }
        self.write(refusal.reason.class(), Some(refusal.reason), None);
    }

    /// What it used, as far as we know without the server's word.
    fn used(&self) -> Usage {
        // Before a server has it, nothing is used; after that its input is, whatever becomes of it.
        let prompt = match &self.counted {
            Some(counted) if self.had > 0 => counted.tokens,
            _ => Tokens::ZERO,
        };
        Usage { prompt, completion: self.output, cached: Tokens::ZERO }
    }

    fn write(&mut self, class: Class, reason: Option<Reason>, usage: Option<Usage>) {
        if std::mem::replace(&mut self.written, true) {
            return;
        }
        self.stops_working(usage);
        let told = self.told();
        let usage = usage.unwrap_or_else(|| self.used());
        if let Some(reservation) = self.reservation.take() {
            reservation.settle(usage.total());
        }
        if let (Some(tenant), Some(model), true) = (&self.tenant, &self.model, self.had > 0) {
            self.books.ledger.add(tenant, model, usage);
        }
        let elapsed = self.started.elapsed();
        self.books.metrics.ended(&Ended {
            model: self.model.as_ref(),
            tier: self.tier,
            class,
            reason,
            had: self.had > 0,
            usage,
            ttft: self.ttft,
            elapsed,
        });
        if let (Some(model), Some(watched)) = (&self.model, &self.watched) {
            self.books.metrics.answer_watched(model, watched);
        }
        let screened = self.screened.as_ref();
        let watched = self.watched.as_ref();
        self.books.verdicts.keep(&self.id, screened, watched);
        // Microseconds are enough, and read better than every binary digit.
        let millis = |time: Duration| time.as_micros() as f64 / 1e3;
        tracing::info!(
            id = self.id.as_str(),
            route = self.route,
            tenant = self.tenant.as_ref().map(TenantId::as_str),
            tier = self.tier.map(Tier::as_str),
            model = self.model.as_ref().map(ModelName::as_str),
            server = self.server.as_ref().map(ServerId::as_str),
            class = class.as_str(),
            reason = reason.map(Reason::as_str),
            input_tokens = usage.prompt.get(),
            count = self.counted.as_ref().map(|counted| counted.source.as_str()),
            output_tokens = usage.completion.get(),
            joules = told.map(|told| told.spent.energy.joules()),
            gpu_seconds = told.map(|told| told.spent.time.seconds()),
            cost = told.and_then(|told| told.cost()),
            attempts = self.attempts,
            queue_ms = millis(self.waited),
            ttft_ms = self.ttft.map(millis),
            total_ms = millis(elapsed),
            screen_action = screened.and_then(|one| one.action).map(Action::as_str),
            screen_label = screened.and_then(|one| one.label.as_deref()),
            screen_kind = screened.and_then(|one| one.kind.as_deref()),
            screen_score = screened.map(|one| one.score),
            screen_ms = screened.map(|one| millis(one.took)),
            screen_failure = screened.and_then(|one| one.failure),
            answer_action = watched.and_then(|one| one.action).map(Action::as_str),
            answer_label = watched.and_then(|one| one.label.as_deref()),
            answer_kind = watched.and_then(|one| one.kind.as_deref()),
            answer_failure = watched.and_then(|one| one.failure),
            quality = watched.and_then(|one| one.quality),
            "request"
        );
    }
}

impl Drop for Record {
    fn drop(&mut self) {
        if std::thread::panicking() {
            // The caller stayed; it is this daemon that left.
            self.write(Class::Failed, Some(Reason::Internal), None);
        } else {
            self.write(Class::Cancelled, None, None);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::snapshot::GpuPlane;
    use std::panic::{AssertUnwindSafe, catch_unwind};

    /// A panic counted as a caller who left.
    #[tokio::test]
    async fn a_panic_is_a_failure() {
        let books = Arc::new(Books::default());
        let panicked = catch_unwind(AssertUnwindSafe(|| {
            let _record = Record::begin(Arc::clone(&books), RequestId::fresh(), "chat");
            panic!("a fault for the test");
        }));
        assert!(panicked.is_err());
        let page = books.metrics.page(&std::collections::BTreeMap::new(), &[], &GpuPlane::Off);
        assert!(page.contains("class=\"failed\""), "{page}");
        assert!(!page.contains("class=\"cancelled\""), "{page}");
    }
}
