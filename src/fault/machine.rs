//! One card: what is held against it, and the state that follows.

use super::{
    Condition, GpuHealth, Needs,
    finding::{Cause, Finding},
    reading::Memory,
    sign::Often,
};
use crate::ids::GpuId;
use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};
use tokio::time::Instant;

/// A card that was drained or lost is trusted again after this long without anything against it.
pub(super) const CALM_AFTER_STOP: Duration = Duration::from_secs(30);

/// The same for the lesser states.
pub(super) const CALM: Duration = Duration::from_secs(10);

/// Incidents of the application class that take a card's servers out, if they come within the window
/// of [`super::told`].
pub(super) const REPEATED: usize = 3;

/// Signs of wear in an hour that are worth a person's look.
pub(super) const WEAR: usize = 10;

/// The state of one card or MIG device.
#[derive(Debug)]
pub(super) struct Machine {
    /// Position in the driver's list; `None` until the driver listed it.
    pub(super) index: Option<u32>,
    /// Of a MIG device, the whole card.
    pub(super) parent: Option<GpuId>,
    /// The driver lists it.
    pub(super) listed: bool,
    /// Of a card that is drained for others' NVLinks, those.
    pub(super) neighbour_of: BTreeSet<GpuId>,
    pub(super) findings: BTreeMap<Cause, Finding>,
    pub(super) application: Often<REPEATED>,
    pub(super) wear: Often<WEAR>,
    /// What readings left behind.
    pub(super) memory: Memory,
    /// The state by findings alone, calmed.
    condition: Condition,
    /// Since when the findings would allow a better one.
    better_since: Option<Instant>,
    /// The reasons of the state while it is held on to.
    words: Vec<String>,
    weight: f64,
    /// The state that is told: as above, or unknown.
    told: Condition,
    since: Instant,
}

impl Machine {
    /// A card that nothing is known against.
    pub(super) fn new(now: Instant) -> Self {
        Self {
            index: None,
            parent: None,
            listed: false,
            neighbour_of: BTreeSet::new(),
            findings: BTreeMap::new(),
            application: Often::default(),
            wear: Often::default(),
            memory: Memory::default(),
            condition: Condition::Ok,
            better_since: None,
            words: Vec::new(),
            weight: 1.0,
            told: Condition::Ok,
            since: now,
        }
    }

    /// Holds something against the card; what was held for the same cause is replaced.
    pub(super) fn hold(&mut self, cause: Cause, finding: Finding) {
        self.findings.insert(cause, finding);
    }

    /// A finding that is there as long as `there` says so; `None` says nothing.
    pub(super) fn hold_while(
        &mut self,
        cause: Cause,
        there: Option<bool>,
        finding: impl FnOnce() -> Finding,
    ) {
        match there {
            Some(true) => self.hold(cause, finding()),
            Some(false) => self.drop(cause),
            None => {}
        }
    }

    /// Drops what was held for a cause.
    pub(super) fn drop(&mut self, cause: Cause) {
        self.findings.remove(&cause);
    }

    /// The card was reset, or its driver loaded anew: what such a thing mends is dropped.
    pub(super) fn was_reset(&mut self) {
        self.findings.retain(|cause, _| !cause.ends_with_reset());
        self.memory.forget_links();
    }

    /// The processes on it are other ones now: what they did is theirs no more.
    pub(super) fn restarted(&mut self) {
        self.application = Often::default();
        self.drop(Cause::OneXid);
        self.drop(Cause::Repeated);
    }

    /// An operator says that it is well: everything is dropped at once. What is still so comes back with
    /// the next reading.
    pub(super) fn clear(&mut self) {
        let Self { index, listed, told, since, .. } = *self;
        let parent = self.parent.take();
        *self = Self { index, listed, parent, told, since, ..Self::new(since) };
    }

    /// Since when it waits for its servers' processes to be replaced.
    pub(super) fn awaits_restart(&self) -> Option<Instant> {
        let waits = [Cause::OneXid, Cause::Repeated].iter().any(|c| self.findings.contains_key(c));
        self.application.last().filter(|_| waits)
    }

    /// Draws the consequence of all that is held. `unread`: the readings are too old, or there are none.
    /// Tells the states before and after where the told state changed.
    pub(super) fn settle(&mut self, unread: bool, now: Instant) -> Option<(Condition, Condition)> {
        self.findings.retain(|_, finding| finding.until.is_none_or(|until| until > now));
        let worst = self.findings.values().map(|finding| finding.condition).max();
        let worst = worst.unwrap_or_default();
        let lightest = self.findings.values().map(|finding| finding.weight).fold(1.0, f64::min);
        // Worse: at once. Better: after a calm.
        let held = worst < self.condition && {
            let since = *self.better_since.get_or_insert(now);
            let calm = if self.condition.stops() { CALM_AFTER_STOP } else { CALM };
            now.saturating_duration_since(since) < calm
        };
        if held {
            self.weight = self.weight.min(lightest);
        } else {
            self.condition = worst;
            self.weight = lightest;
            self.better_since = None;
            self.words = self.in_words();
        }
        // A drain outlives the readings that led to it; nothing else is said without readings.
        let told =
            if unread && !self.condition.stops() { Condition::Unknown } else { self.condition };
        let before = std::mem::replace(&mut self.told, told);
        if before == told {
            return None;
        }
        self.since = now;
        Some((before, told))
    }

    /// What is held, the gravest first.
    fn in_words(&self) -> Vec<String> {
        let mut findings: Vec<&Finding> = self.findings.values().collect();
        findings.sort_by_key(|finding| std::cmp::Reverse(finding.condition));
        findings.into_iter().map(|finding| finding.text.clone()).collect()
    }

    /// Why it is as it is, the gravest first.
    pub(super) fn reasons(&self) -> Vec<String> {
        if self.better_since.is_none() {
            return self.in_words();
        }
        let was = self.words.first().map_or("a fault", String::as_str);
        let over =
            format!("{was}; this is over, and it is watched for a while before it is trusted");
        std::iter::once(over).chain(self.in_words()).collect()
    }

    /// What the operator must do: what the driver says before what our table says, and then what the
    /// gravest findings ask for.
    pub(super) fn needs(&self) -> Option<Needs> {
        if let Some(driver) = self.findings.get(&Cause::Recovery) {
            return driver.needs;
        }
        let asking = self.findings.values().filter(|finding| finding.needs.is_some());
        asking.max_by_key(|finding| (finding.condition, finding.needs)).and_then(|one| one.needs)
    }

    /// Everything, for readers.
    pub(super) fn health(&self, gpu: GpuId) -> GpuHealth {
        GpuHealth {
            gpu,
            index: self.index,
            condition: self.told,
            reasons: self.reasons(),
            needs: self.needs(),
            since: self.since,
            weight: self.weight,
        }
    }
}
