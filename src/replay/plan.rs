//! What is to be replayed, and which values that may have.

use super::{
    policy::baselines::Baseline,
    trace::{Row, TraceError},
};
use crate::{
    ids::Tier,
    simulate::{ProfileName, clock::Profile},
    units::Tokens,
};
use clap::ValueEnum;
use std::{fmt, ops::RangeInclusive};

/// Servers that can be played.
const SERVERS: RangeInclusive<usize> = 1..=64;
/// Tenants that a trace can be dealt to.
const TENANTS: RangeInclusive<usize> = 1..=256;
/// Places in a queue.
const QUEUE: RangeInclusive<usize> = 1..=1_000_000;
/// KV tokens of a server.
const KV: RangeInclusive<u64> = 1_024..=1_000_000_000_000;
/// Tokens of a step.
const CHUNK: RangeInclusive<u64> = 1..=1_000_000_000;
/// Sequences of a batch.
const RUNNING: RangeInclusive<usize> = 1..=65_536;
/// How far off the costs may be that our rules start from.
const COSTS_OFF: RangeInclusive<f64> = 0.01..=100.0;
/// How many times the trace's rate a flood may have.
const FLOOD: RangeInclusive<f64> = 0.01..=1_000.0;
/// Seconds that a flood may last.
const FLOOD_SECONDS: RangeInclusive<f64> = 1.0..=86_400.0;
/// Seconds before it begins.
const FLOOD_START: RangeInclusive<f64> = 0.0..=31_536_000.0;

/// Who decides.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PolicyName {
    /// The daemon's own rules.
    Berthd,
    /// One that they are compared with.
    Baseline(Baseline),
}

/// A second tenant that asks for too much for a while.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Flood {
    /// Its request rate, in mean request rates of the trace as it is played.
    pub factor: f64,
    /// When it begins, seconds.
    pub start_s: f64,
    /// How long it lasts, seconds.
    pub seconds: f64,
}

/// What is to be replayed. [`Plan::new`] has the plain case; fields are public to change it.
#[derive(Clone, Debug)]
pub struct Plan {
    /// What the trace is called.
    pub trace: String,
    /// The trace.
    pub rows: Vec<Row>,
    /// What the servers are called.
    pub profile_name: String,
    /// What each server is.
    pub profile: Profile,
    /// How many there are, 1 to 64.
    pub servers: usize,
    /// How many times as fast requests come, above 0.
    pub speed: f64,
    /// Who decides, one after another.
    pub policies: Vec<PolicyName>,
    /// Decides all chance. With 1 requests come exactly as in the trace, above it each up to 50 ms later.
    pub seed: u64,
    /// Requests that come later are left out, seconds as played; above 0.
    pub max_s: Option<f64>,
    /// Tenants that the trace's requests are dealt to, 1 to 256.
    pub tenants: usize,
    /// Their tier.
    pub tier: Tier,
    /// A flood beside them.
    pub flood: Option<Flood>,
    /// Servers take requests in the order of their tiers.
    pub server_priority: bool,
    /// Refused callers come back when they were told to, within this share of the time told, 0.0 to 1.0.
    pub returns: Option<f64>,
    /// Our rules start from costs that are the true ones times this, 0.01 to 100.
    pub costs_off: f64,
    /// Answers' lengths are dealt anew.
    pub shuffle_outputs: bool,
    /// Places in the queue of policies that have one.
    pub queue_max: usize,
}

/// Why there is no replay.
#[derive(Debug, thiserror::Error)]
pub enum ReplayError {
    /// An option has a value that it cannot have.
    #[error("{0}")]
    Value(String),
    /// There is no such trace.
    #[error(transparent)]
    Trace(#[from] TraceError),
    /// The trace does not fit what is to be done with it.
    #[error("{0}")]
    Load(String),
}

// === impl PolicyName ===

impl PolicyName {
    /// All: ours, then the baselines.
    pub fn all() -> Vec<Self> {
        let baselines = Baseline::ALL.into_iter().map(Self::Baseline);
        std::iter::once(Self::Berthd).chain(baselines).collect()
    }
}

impl fmt::Display for PolicyName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = match self {
            Self::Berthd => return f.pad("berthd"),
            Self::Baseline(which) => which.to_possible_value(),
        };
        f.pad(name.as_ref().map_or("", |name| name.get_name()))
    }
}

// === impl Plan ===

impl Plan {
    /// Our rules, eight servers, the trace as it is.
    ///
    /// # Errors
    /// The profile takes no time.
    pub fn new(trace: &str, rows: Vec<Row>, profile: ProfileName) -> Result<Self, ReplayError> {
        let name = profile.to_possible_value();
        let name = name.as_ref().map_or("", |name| name.get_name()).to_owned();
        let Some(profile) = profile.profile() else {
            let text = "its servers take no time, so no policy could do better than another; choose one of \
                        a real server";
            return Err(ReplayError::Value(format!("--profile {name}: {text}")));
        };
        Ok(Self {
            trace: trace.to_owned(),
            rows,
            profile_name: name,
            profile,
            servers: 8,
            speed: 1.0,
            policies: vec![PolicyName::Berthd],
            seed: 1,
            max_s: None,
            tenants: 1,
            tier: Tier::Standard,
            flood: None,
            server_priority: false,
            returns: None,
            costs_off: 1.0,
            shuffle_outputs: false,
            queue_max: 1500,
        })
    }

    /// What each server is, as it is played: a step has room for a token of every sequence of its batch.
    pub fn server(&self) -> Profile {
        let mut profile = self.profile.clone();
        profile.chunk = profile.chunk.max(Tokens(profile.max_running as u64));
        profile
    }

    /// Is every value one that can be played?
    ///
    /// # Errors
    /// Which is not, and which are.
    pub fn check(&self) -> Result<(), ReplayError> {
        within("--servers", self.servers, &SERVERS)?;
        within("--tenants", self.tenants, &TENANTS)?;
        within("--queue-max", self.queue_max, &QUEUE)?;
        within("--kv-tokens", self.profile.kv, &(Tokens(*KV.start())..=Tokens(*KV.end())))?;
        within(
            "--chunk-tokens",
            self.profile.chunk,
            &(Tokens(*CHUNK.start())..=Tokens(*CHUNK.end())),
        )?;
        within("--max-running", self.profile.max_running, &RUNNING)?;
        within("--costs-off", self.costs_off, &COSTS_OFF)?;
        above_zero("--speed", self.speed, "3 plays the trace three times as fast")?;
        if let Some(max_s) = self.max_s {
            above_zero("--max-seconds", max_s, "leave it out for the whole trace")?;
        }
        if let Some(share) = self.returns {
            within("--returns", share, &(0.0..=1.0))?;
        }
        if let Some(flood) = &self.flood {
            within("--flood", flood.factor, &FLOOD)?;
            within("--flood-seconds", flood.seconds, &FLOOD_SECONDS)?;
            within("--flood-start", flood.start_s, &FLOOD_START)?;
        }
        if self.policies.is_empty() {
            let text = "--policy: name at least one, berthd, a baseline or all";
            return Err(ReplayError::Value(text.to_owned()));
        }
        Ok(())
    }
}

fn within<N>(name: &str, value: N, range: &RangeInclusive<N>) -> Result<(), ReplayError>
where
    N: PartialOrd + fmt::Display,
{
    if range.contains(&value) {
        return Ok(());
    }
    let text = format!("{name} {value}: choose {} to {}", range.start(), range.end());
    Err(ReplayError::Value(text))
}

fn above_zero(name: &str, value: f64, hint: &str) -> Result<(), ReplayError> {
    if value > 0.0 && value.is_finite() {
        return Ok(());
    }
    Err(ReplayError::Value(format!("{name} {value}: choose a number above 0; {hint}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_server_that_takes_no_time_is_refused_with_the_reason() {
        let error = Plan::new("t", Vec::new(), ProfileName::Instant).unwrap_err().to_string();
        assert!(error.starts_with("--profile instant: its servers take no time"), "{error}");
    }

    #[test]
    fn values_that_cannot_be_are_told_with_those_that_can() {
        let plan = Plan::new("t", Vec::new(), ProfileName::Small8bH200).unwrap();
        plan.check().unwrap();
        let of = |change: fn(&mut Plan)| {
            let mut plan = plan.clone();
            change(&mut plan);
            plan.check().unwrap_err().to_string()
        };
        assert_eq!(of(|plan| plan.servers = 0), "--servers 0: choose 1 to 64");
        assert_eq!(of(|plan| plan.servers = 65), "--servers 65: choose 1 to 64");
        assert!(of(|plan| plan.speed = 0.0).starts_with("--speed 0: choose a number above 0"));
        assert!(of(|plan| plan.speed = f64::NAN).starts_with("--speed NaN: "));
        assert!(of(|plan| plan.speed = f64::INFINITY).starts_with("--speed inf: "));
        assert!(of(|plan| plan.max_s = Some(-1.0)).starts_with("--max-seconds -1: "));
        assert_eq!(of(|plan| plan.returns = Some(2.0)), "--returns 2: choose 0 to 1");
        assert!(of(|plan| plan.costs_off = f64::NAN).starts_with("--costs-off NaN: "));
        assert!(of(|plan| plan.policies.clear()).starts_with("--policy: "));
        let flood = |factor| Some(Flood { factor, start_s: 60.0, seconds: 60.0 });
        let mut flooded = plan.clone();
        flooded.flood = flood(-7.0);
        assert!(flooded.check().unwrap_err().to_string().starts_with("--flood -7: choose 0.01 to"));
    }
}
