//! One request at work, as the meter sees it; and what its caller hears of it.

use crate::{
    api::answer::Usage,
    energy::{Facts, Prices, Spent, Work, Works},
    error::{Reason, Refusal},
    units::Tokens,
};
use bytes::Bytes;
use http::{HeaderMap, HeaderValue};
use std::{fmt::Write, sync::Arc};
use tokio::time::Instant;

/// Callers may ask with this header what their request took.
pub const ENERGY: &str = "x-berthd-energy";

/// A request's place among those at work, from its placement to the end of the attempt. Dropping it is
/// the end.
#[derive(Debug)]
pub struct Working {
    works: Arc<Works>,
    work: Arc<Work>,
}

/// What a request took so far, all attempts together. An attribution, and provisional: the part since the
/// last reading of the cards is what such work took lately.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Told {
    /// Energy and time.
    pub spent: Spent,
    /// What that costs, at the prices of the moment in which the request came.
    pub prices: Prices,
}

/// Whether the caller wants to know what the request took.
///
/// # Errors
/// The header says neither yes nor no.
pub fn wants(headers: &HeaderMap) -> Result<bool, Refusal> {
    let Some(value) = headers.get(ENERGY) else { return Ok(false) };
    match value.as_bytes() {
        b"yes" => Ok(true),
        b"no" => Ok(false),
        _ => {
            let text = "The header X-Berthd-Energy must be yes or no.";
            Err(Refusal::new(Reason::OutOfRange, text).param(ENERGY))
        }
    }
}

impl Working {
    /// From now on a server works on it. `None` where nobody meters.
    pub fn begin(works: &Arc<Works>, facts: impl FnOnce() -> Facts) -> Option<Self> {
        let facts = works.is_metering().then(facts)?;
        let work = works.begin(facts, Instant::now())?;
        Some(Self { works: Arc::clone(works), work })
    }

    /// First content came.
    pub fn first(&self) {
        self.work.first(Instant::now());
    }

    /// So much output came so far.
    pub fn output(&self, tokens: Tokens) {
        self.work.output(tokens);
    }

    /// The attempt is over; `usage` is there if its answer is whole. What it took, where that is known.
    pub fn finish(self, usage: Option<Usage>) -> Option<Spent> {
        let now = Instant::now();
        if let Some(usage) = usage {
            self.work.finish(usage.prompt, usage.cached, usage.completion, now);
        }
        self.work.estimate(now, self.works.output_weight())
    }
}

impl Drop for Working {
    fn drop(&mut self) {
        self.works.end(&self.work, Instant::now());
    }
}

impl Told {
    /// Puts it on an answer.
    pub fn head(&self, headers: &mut HeaderMap) {
        let (joules, seconds, cost) = self.texts();
        for (name, text) in [
            ("x-berthd-energy-joules", Some(joules)),
            ("x-berthd-gpu-seconds", Some(seconds)),
            ("x-berthd-cost", cost),
        ] {
            if let Some(value) = text.and_then(|text| HeaderValue::try_from(text).ok()) {
                headers.insert(name, value);
            }
        }
    }

    /// The end mark of a stream with a comment before it, in one piece: clients skip comments.
    pub fn before(&self, end: &Bytes) -> Bytes {
        let (joules, seconds, cost) = self.texts();
        let mut text = format!(": energy joules={joules} gpu_seconds={seconds}");
        if let Some(cost) = cost {
            let _ = write!(text, " cost={cost}");
        }
        text.push_str("\n\n");
        let mut piece = text.into_bytes();
        piece.extend_from_slice(end);
        Bytes::from(piece)
    }

    /// Cost in units of the operator's currency; `None` without prices.
    pub fn cost(&self) -> Option<f64> {
        self.prices.are_set().then(|| self.prices.cost(self.spent).units())
    }

    fn texts(&self) -> (String, String, Option<String>) {
        let joules = format!("{:.3}", self.spent.energy.joules());
        let seconds = format!("{:.6}", self.spent.time.seconds());
        (joules, seconds, self.cost().map(|cost| format!("{cost:.6}")))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        config,
        units::{GpuMicros, Microjoules},
    };

    #[test]
    fn a_caller_hears_joules_seconds_and_a_cost_where_there_are_prices() {
        let spent = Spent { energy: Microjoules(12_345_678), time: GpuMicros(1_500_000) };
        let mut told = Told { spent, prices: Prices::default() };
        let mut headers = HeaderMap::new();
        told.head(&mut headers);
        assert_eq!(headers["x-berthd-energy-joules"], "12.346");
        assert_eq!(headers["x-berthd-gpu-seconds"], "1.500000");
        assert!(!headers.contains_key("x-berthd-cost"));
        let rules = config::Energy { price_per_gpu_hour: 3.6, ..config::Energy::default() };
        told.prices = Prices::of(&rules);
        let piece = told.before(&Bytes::from_static(b"data: [DONE]\n\n"));
        let text = ": energy joules=12.346 gpu_seconds=1.500000 cost=0.001500\n\ndata: [DONE]\n\n";
        assert_eq!(piece, text);
    }

    #[test]
    fn only_yes_and_no_are_understood() {
        let with = |value| {
            HeaderMap::from_iter([(
                http::HeaderName::from_static(ENERGY),
                HeaderValue::from_static(value),
            )])
        };
        assert!(!wants(&HeaderMap::new()).unwrap());
        assert!(wants(&with("yes")).unwrap());
        assert!(!wants(&with("no")).unwrap());
        assert_eq!(wants(&with("si")).unwrap_err().reason, Reason::OutOfRange);
    }
}
