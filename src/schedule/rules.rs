//! The figures that scheduling goes by.

use super::cost::Costs;
use crate::units::Tokens;
use std::time::Duration;

/// What scheduling goes by. The defaults hold on every machine that was simulated; docs/scheduling.md says
/// when to change one.
#[derive(Clone, Debug, PartialEq)]
pub struct Rules {
    /// Share of a server's KV cache that is given away, above 0.0 up to 1.0: answers grow beyond what was
    /// expected.
    pub kv_share: f64,
    /// Share of that which the batch tier leaves to others, 0.0 up to 1.0.
    pub batch_leaves: f64,
    /// Prefill that a server may owe when it is given more, seconds.
    pub debt_max_s: f64,
    /// How many times as much for the tiers above standard.
    pub debt_urgent: f64,
    /// Time per output token that callers are to see, seconds: above it prefill slows down.
    pub token_gap_s: f64,
    /// Batch requests that have shown nothing yet give their room to others.
    pub preempt_batch: bool,
    /// Waiting requests that are looked at for each free place.
    pub look_ahead: usize,
    /// Where each server's costs start to be learned from.
    pub costs: Costs,
    /// Those are figures of these servers, not a guess: they count before any was seen.
    pub costs_known: bool,
    /// How many times as much an output token counts as an input token, between tenants.
    pub output_weight: f64,
    /// Longest time that a caller is told to stay away.
    pub retry_max: Duration,
    /// Prompt tokens that a server computes in one step.
    pub chunk: Tokens,
}

impl Default for Rules {
    fn default() -> Self {
        Self {
            kv_share: 0.95,
            batch_leaves: 0.12,
            debt_max_s: 0.4,
            debt_urgent: 2.0,
            token_gap_s: 0.1,
            preempt_batch: false,
            look_ahead: 32,
            costs: Costs::default(),
            costs_known: false,
            output_weight: 2.0,
            retry_max: Duration::from_secs(300),
            chunk: Tokens(2048),
        }
    }
}

impl Rules {
    /// Steps in which a server computes so many new tokens, at least 1.
    pub fn steps(&self, new: Tokens) -> f64 {
        (new.get() as f64 / self.chunk.get().max(1) as f64).max(1.0)
    }
}
