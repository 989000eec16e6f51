//! One model on one server: whether our count of its input is that server's, and why we think so.
//!
//! A rule: it takes what was compared and the time, and says what follows. It asks nobody.

use crate::{
    api::Route,
    pipeline::{count::Counter, dispatch::ServerView},
    snapshot::ServerKind,
    units::Tokens,
};
use std::{sync::Arc, time::Duration};
use tokio::time::Instant;

#[cfg(test)]
#[path = "pair_tests.rs"]
pub(super) mod tests;

/// What our count is worth.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Standing {
    /// Probes, or enough answers in a row, agree.
    Exact,
    /// Nothing was compared yet.
    Unproven,
    /// Probes disagree, or answers that were compared before anything had agreed.
    Estimated,
    /// An answer contradicted a count that was called exact.
    Drifted,
}

/// What one round of probes showed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// So many probes were counted alike, or refused by both, and of so many there are no two numbers.
    Agreed {
        /// Alike.
        alike: u32,
        /// Not comparable.
        apart: u32,
    },
    /// This probe was not.
    Disagreed(Difference),
    /// Of no probe are there two numbers.
    Nothing,
    /// The server has no counting endpoint.
    Absent,
    /// The server did not answer; the text says how.
    Failed(String),
}

/// A probe that was counted differently.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Difference {
    /// Which probe.
    pub probe: &'static str,
    /// Our count; `None` where our template refuses it.
    pub ours: Option<Tokens>,
    /// The server's count.
    pub theirs: Tokens,
}

/// A change that operators should hear of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Change {
    /// An exact count was contradicted.
    Drifted,
    /// Probes, or first answers, disagree.
    Doubted,
    /// It is exact now, and was not.
    Proven,
}

/// What is known of the server's counting endpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Endpoint {
    /// It was not asked yet, or did not answer.
    Unknown,
    /// It counts.
    Here,
    /// It has none.
    Absent,
}

/// Answers in a row that must agree where only answers can prove a count.
pub const ANSWERS_PROVE: u32 = 3;
/// Drifts in a row that the probes did not show, after which only answers are believed.
const UNEXPLAINED_MAX: u32 = 2;
/// First pause before probes are asked again; doubles up to [`PAUSE_MAX`].
pub const PAUSE_FIRST: Duration = Duration::from_secs(1);
/// Longest pause before probes are asked again. A server whose template changes comes back, and is asked at
/// once; more often would keep llama.cpp from going to sleep.
pub const PAUSE_MAX: Duration = Duration::from_secs(900);

/// One model on one server.
#[derive(Clone, Debug)]
pub struct Pair {
    /// Whose count is compared.
    pub counter: Arc<Counter>,
    /// What it is worth.
    pub standing: Standing,
    /// Why, in words.
    pub reason: String,
    /// Ours and theirs, of the comparison that decided, where it had both.
    pub numbers: Option<(Tokens, Tokens)>,
    /// When the last comparison was.
    pub compared_at: Option<Instant>,
    /// What is known of the counting endpoint.
    pub endpoint: Endpoint,
    /// The server takes requests now.
    pub usable: bool,
    /// Answers in a row that agreed.
    agreed: u32,
    /// Drifts since the last proof by answers that the probes did not show.
    unexplained: u32,
    /// Probes disagreed, so that only probes can put it right.
    probes_disagree: bool,
    /// The route of the answer that was not as counted.
    doubted_on: Option<Route>,
    /// When probes are asked next.
    due: Option<Instant>,
    pause: Duration,
    kind: Option<ServerKind>,
    version: Option<String>,
    /// Which coming of the server this is about.
    pub comings: Option<u64>,
}

impl Pair {
    /// A model that was just seen on a server.
    pub fn new(counter: Arc<Counter>, now: Instant) -> Self {
        Self {
            counter,
            standing: Standing::Unproven,
            reason: "not compared yet".to_owned(),
            numbers: None,
            compared_at: None,
            endpoint: Endpoint::Unknown,
            usable: false,
            agreed: 0,
            unexplained: 0,
            probes_disagree: false,
            doubted_on: None,
            due: Some(now),
            pause: PAUSE_FIRST,
            kind: None,
            version: None,
            comings: None,
        }
    }

    /// Whether requests may be counted by it. Files that an operator named are, until something speaks
    /// against them; files that were found are not, until something speaks for them.
    pub fn is_believed(&self) -> bool {
        match self.standing {
            Standing::Exact => true,
            Standing::Unproven => !self.counter.is_found(),
            Standing::Estimated | Standing::Drifted => false,
        }
    }

    /// Whether probes should be asked now.
    pub fn wants_probes(&self, now: Instant) -> bool {
        self.usable && self.due.is_some_and(|due| due <= now)
    }

    /// Takes over how its server is now. One that comes back, or is another version, may run another
    /// template: what was proven before says nothing of it.
    pub fn saw(&mut self, view: &ServerView, now: Instant) {
        let server = &view.state;
        let returned = self.comings.is_some_and(|comings| comings != view.comings);
        let versions = self.version.as_ref().zip(server.version.as_ref());
        let other = self.kind.is_some_and(|kind| kind != server.kind)
            || versions.is_some_and(|(old, new)| old != new);
        if returned || other {
            self.due = Some(now);
            self.pause = PAUSE_FIRST;
            self.endpoint = Endpoint::Unknown;
            self.agreed = 0;
            self.unexplained = 0;
            if self.standing == Standing::Exact {
                self.standing = Standing::Unproven;
                "the server came back; not compared since".clone_into(&mut self.reason);
            }
        }
        self.comings = Some(view.comings);
        self.kind = Some(server.kind);
        self.version = server.version.clone().or(self.version.take());
        self.usable = view.usable;
    }

    /// An answer's input was counted here and by the server.
    pub fn answered(
        &mut self,
        route: Route,
        ours: Tokens,
        theirs: Tokens,
        now: Instant,
    ) -> Option<Change> {
        if ours == theirs {
            return self.agreed(route, ours, now);
        }
        self.compared_at = Some(now);
        self.agreed = 0;
        self.numbers = Some((ours, theirs));
        let change = match self.standing {
            Standing::Exact => Some(Change::Drifted),
            Standing::Unproven if self.is_believed() => Some(Change::Drifted),
            Standing::Unproven => Some(Change::Doubted),
            Standing::Estimated | Standing::Drifted => None,
        };
        if !self.probes_disagree {
            self.doubted_on = Some(route);
            self.reason = format!(
                "an answer of {} was counted as {ours} here and {theirs} by the server",
                route.as_str()
            );
        }
        if let Some(change) = change {
            let drifted = change == Change::Drifted;
            self.standing = if drifted { Standing::Drifted } else { Standing::Estimated };
            self.unexplained = self.unexplained.saturating_add(1);
            self.pause = PAUSE_FIRST;
            if self.endpoint != Endpoint::Absent {
                self.due = Some(now);
            }
        }
        change
    }

    fn agreed(&mut self, route: Route, count: Tokens, now: Instant) -> Option<Change> {
        // Texts may agree where conversations do not: an answer speaks for what was in doubt only.
        let speaks = match self.doubted_on {
            Some(doubted) => doubted == route,
            None => route == Route::Chat || !self.counter.files().has_template(),
        };
        if !speaks {
            return None;
        }
        self.compared_at = Some(now);
        self.agreed = self.agreed.saturating_add(1);
        if self.agreed < ANSWERS_PROVE {
            return None;
        }
        self.unexplained = 0;
        if self.standing == Standing::Exact || self.probes_disagree {
            return None;
        }
        self.prove(format!("{ANSWERS_PROVE} answers in a row agree"));
        self.numbers = Some((count, count));
        Some(Change::Proven)
    }

    /// A round of probes ended.
    pub fn probed(&mut self, outcome: Outcome, now: Instant) -> Option<Change> {
        match outcome {
            Outcome::Agreed { alike, apart } => {
                self.endpoint = Endpoint::Here;
                self.compared_at = Some(now);
                if self.standing == Standing::Drifted
                    && !self.probes_disagree
                    && self.unexplained >= UNEXPLAINED_MAX
                {
                    self.due = None;
                    self.reason.push_str("; its counting endpoint agrees with us");
                    return None;
                }
                let news = self.standing != Standing::Exact;
                self.prove(match apart {
                    0 => format!("all {alike} probes agree"),
                    _ => format!("{alike} probes agree, {apart} could not be compared"),
                });
                news.then_some(Change::Proven)
            }
            Outcome::Disagreed(difference) => {
                self.endpoint = Endpoint::Here;
                self.compared_at = Some(now);
                self.numbers = difference.ours.map(|ours| (ours, difference.theirs));
                self.reason = difference.to_string();
                self.probes_disagree = true;
                self.doubted_on = None;
                self.agreed = 0;
                self.unexplained = 0;
                self.later(now);
                let news = matches!(self.standing, Standing::Exact | Standing::Unproven);
                if news {
                    self.standing = Standing::Estimated;
                }
                news.then_some(Change::Doubted)
            }
            Outcome::Absent => {
                self.endpoint = Endpoint::Absent;
                self.due = None;
                // What probes found before can no longer be asked again.
                self.probes_disagree = false;
                self.unproven_because("no counting endpoint, and no answer was compared yet");
                None
            }
            Outcome::Nothing => {
                self.pause = PAUSE_MAX;
                self.later(now);
                self.unproven_because("no probe could be compared");
                None
            }
            Outcome::Failed(why) => {
                self.later(now);
                self.unproven_because(&format!("asking failed: {why}"));
                None
            }
        }
    }

    fn prove(&mut self, why: String) {
        self.standing = Standing::Exact;
        self.reason = why;
        self.numbers = None;
        self.probes_disagree = false;
        self.doubted_on = None;
        self.due = None;
        self.pause = PAUSE_FIRST;
    }

    fn later(&mut self, now: Instant) {
        self.due = Some(now + self.pause);
        self.pause = self.pause.saturating_mul(2).min(PAUSE_MAX);
    }

    fn unproven_because(&mut self, why: &str) {
        if self.standing == Standing::Unproven {
            why.clone_into(&mut self.reason);
        }
    }
}

// === impl Standing ===

impl Standing {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::Exact, Self::Unproven, Self::Estimated, Self::Drifted];

    /// Its name in status, logs and metrics.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Exact => "exact",
            Self::Unproven => "unproven",
            Self::Estimated => "estimated",
            Self::Drifted => "drifted",
        }
    }
}

// === impl Difference ===

impl std::fmt::Display for Difference {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { probe, ours, theirs } = self;
        match ours {
            Some(ours) => write!(f, "probe \"{probe}\": {ours} here, {theirs} by the server"),
            None => write!(f, "probe \"{probe}\": refused here, {theirs} by the server"),
        }
    }
}
