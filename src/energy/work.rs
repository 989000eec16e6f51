//! One request at work on one server: how much of its work is done, in weighted tokens.
//!
//! The request writes, the meter reads; everything between them is an atomic number, so neither waits for
//! the other.

use super::{Key, Spent};
use crate::units::{GpuMicros, Microjoules, Tokens};
use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};
use tokio::time::Instant;

/// Weight of one input token. Weights are whole thousandths, so that they can be split exactly.
pub const INPUT_WEIGHT: u64 = 1000;

/// What is known of a request when it is placed.
#[derive(Clone, Debug)]
pub struct Facts {
    /// For whom it works.
    pub key: Key,
    /// Its input.
    pub input: Tokens,
    /// The output that is expected of it, all choices together.
    pub output: Tokens,
    /// Its tokens are seen as they come.
    pub stream: bool,
}

/// A request at work.
#[derive(Debug)]
pub struct Work {
    /// For whom.
    pub key: Key,
    pub(super) id: u64,
    begun: Instant,
    stream: bool,
    expected: u64,
    pace: Arc<Pace>,
    input: AtomicU64,
    cached: AtomicU64,
    output: AtomicU64,
    /// When the first content came, microseconds after the beginning, from 1; 0 before.
    first: AtomicU64,
    /// When it ended, likewise.
    ended: AtomicU64,
    /// Input and output are no longer guesses.
    told: AtomicBool,
    /// Up to where the meter looked. Only the meter moves these.
    seen_weight: AtomicU64,
    seen_micros: AtomicU64,
    /// What was handed out: microjoules, and GPU microseconds.
    energy: AtomicU64,
    time: AtomicU64,
}

/// How fast one server is, and what a unit of its work takes: learned from its requests.
#[derive(Debug)]
pub struct Pace {
    /// Input tokens a second of one request.
    prefill: Mean,
    /// Output tokens a second of one request.
    decode: Mean,
    /// Microjoules, and GPU microseconds, for a thousandth of an input token, on all its cards together.
    energy: Mean,
    time: Mean,
}

/// A running mean that anybody may read.
#[derive(Debug)]
struct Mean {
    bits: AtomicU64,
    learned: AtomicBool,
}

/// Before any request ended: a slow prefill, a slow answer. Wrong only until the first answer.
const PREFILL_FIRST: f64 = 2_000.0;
const DECODE_FIRST: f64 = 30.0;
/// The share of a new value.
const NEW: f64 = 0.2;

impl Mean {
    const fn new(first: f64) -> Self {
        Self { bits: AtomicU64::new(first.to_bits()), learned: AtomicBool::new(false) }
    }

    fn get(&self) -> f64 {
        f64::from_bits(self.bits.load(Relaxed))
    }

    /// Two at once may lose one of them: it is a mean.
    fn learn(&self, value: f64) {
        if !value.is_finite() || value < 0.0 {
            return;
        }
        let known = self.learned.swap(true, Relaxed);
        let mean = if known { self.get() + (value - self.get()) * NEW } else { value };
        self.bits.store(mean.to_bits(), Relaxed);
    }
}

impl Default for Pace {
    fn default() -> Self {
        Self {
            prefill: Mean::new(PREFILL_FIRST),
            decode: Mean::new(DECODE_FIRST),
            energy: Mean::new(0.0),
            time: Mean::new(0.0),
        }
    }
}

impl Pace {
    /// This much work took this much.
    pub fn learn_cost(&self, spent: Spent, weight: u64) {
        if weight > 0 {
            self.energy.learn(spent.energy.get() as f64 / weight as f64);
            self.time.learn(spent.time.get() as f64 / weight as f64);
        }
    }

    /// What this much work will take. `None` until any was seen.
    fn cost(&self, weight: u64) -> Option<Spent> {
        let of = |mean: &Mean| (mean.get() * weight as f64) as u64;
        self.energy.learned.load(Relaxed).then(|| Spent {
            energy: Microjoules(of(&self.energy)),
            time: GpuMicros(of(&self.time)),
        })
    }
}

/// How much of something expected is done after `x` times the time that it should have taken: nearly all
/// at 1, and never quite all before it is seen to be done, so that what takes longer still moves.
fn ramp(x: f64) -> f64 {
    if x <= 1.0 { 0.9 * x.max(0.0) } else { 1.0 - 0.1 / x }
}

impl Work {
    pub(super) fn new(facts: Facts, id: u64, pace: Arc<Pace>, now: Instant) -> Self {
        let zero = || AtomicU64::new(0);
        Self {
            key: facts.key,
            id,
            begun: now,
            stream: facts.stream,
            expected: facts.output.get(),
            pace,
            input: AtomicU64::new(facts.input.get()),
            cached: zero(),
            output: zero(),
            first: zero(),
            ended: zero(),
            told: AtomicBool::new(false),
            seen_weight: zero(),
            seen_micros: zero(),
            energy: zero(),
            time: zero(),
        }
    }

    fn micros(&self, now: Instant) -> u64 {
        u64::try_from(now.saturating_duration_since(self.begun).as_micros()).unwrap_or(u64::MAX)
    }

    /// First content came: the input is processed.
    pub fn first(&self, now: Instant) {
        let micros = self.micros(now).max(1);
        if self.first.compare_exchange(0, micros, Relaxed, Relaxed).is_ok() {
            let input = self.input.load(Relaxed);
            self.pace.prefill.learn(input as f64 * 1e6 / micros as f64);
        }
    }

    /// So much output came so far.
    pub fn output(&self, tokens: Tokens) {
        self.output.store(tokens.get(), Relaxed);
    }

    /// The answer is whole, and this is what it used.
    pub fn finish(&self, input: Tokens, cached: Tokens, output: Tokens, now: Instant) {
        self.input.store(input.get(), Relaxed);
        self.cached.store(cached.get().min(input.get()), Relaxed);
        self.output.store(output.get(), Relaxed);
        self.told.store(true, Relaxed);
        let first = match self.first.load(Relaxed) {
            // Of a whole answer only the end is seen.
            0 => (input.less(cached).get() as f64 * 1e6 / self.pace.prefill.get()) as u64,
            first => first,
        };
        let rest = self.micros(now).saturating_sub(first);
        if output.get() > 1 && rest > 0 {
            self.pace.decode.learn(output.get() as f64 * 1e6 / rest as f64);
        }
    }

    pub(super) fn end(&self, now: Instant) {
        let _ = self.ended.compare_exchange(0, self.micros(now).max(1), Relaxed, Relaxed);
    }

    pub(super) fn is_over(&self) -> bool {
        self.ended.load(Relaxed) > 0
    }

    /// Time at work up to now or to its end, microseconds.
    fn lasted(&self, now: Instant) -> u64 {
        match self.ended.load(Relaxed) {
            0 => self.micros(now),
            ended => ended,
        }
    }

    /// What is done up to now, thousandths of an input token.
    pub(super) fn weight(&self, now: Instant, output_weight: u64) -> u64 {
        let load = |number: &AtomicU64| number.load(Relaxed);
        let input = load(&self.input).saturating_sub(load(&self.cached));
        let input = input.saturating_mul(INPUT_WEIGHT);
        if self.told.load(Relaxed) || load(&self.first) > 0 {
            return input.saturating_add(load(&self.output).saturating_mul(output_weight));
        }
        // Nothing was seen yet: what should be done by now.
        let elapsed = self.lasted(now) as f64 / 1e6;
        let prefill = load(&self.input) as f64 / self.pace.prefill.get().max(1e-3);
        if self.stream || self.expected == 0 || elapsed < prefill {
            let whole_ramp = if self.stream || self.expected == 0 {
                ramp(elapsed / prefill)
            } else {
                elapsed / prefill
            };
            return (input as f64 * if prefill > 0.0 { whole_ramp } else { 1.0 }) as u64;
        }
        let decode = self.expected as f64 / self.pace.decode.get().max(1e-3);
        let output = self.expected.saturating_mul(output_weight) as f64;
        input.saturating_add((output * ramp((elapsed - prefill) / decode)) as u64)
    }

    /// What was done since the look before: weight, and time at work.
    pub(super) fn look(&self, now: Instant, output_weight: u64) -> (u64, Duration) {
        // What was believed to be done is not taken back when less turns out to be true.
        let weight = self.weight(now, output_weight);
        let micros = self.lasted(now);
        let moved = weight.saturating_sub(self.seen_weight.fetch_max(weight, Relaxed));
        let worked = micros.saturating_sub(self.seen_micros.fetch_max(micros, Relaxed));
        (moved, Duration::from_micros(worked))
    }

    /// Hands out a part of what was measured.
    pub(super) fn give_energy(&self, energy: Microjoules) {
        self.energy.fetch_add(energy.get(), Relaxed);
    }

    /// The same of time.
    pub(super) fn give_time(&self, time: GpuMicros) {
        self.time.fetch_add(time.get(), Relaxed);
    }

    /// What it took up to now. Provisional: the totals get the exact shares at the next reading. What was
    /// handed out goes on at its own rate since the last reading; where nothing was yet, it is what such work
    /// takes here. `None` where neither is known.
    pub fn estimate(&self, now: Instant, output_weight: u64) -> Option<Spent> {
        let seen = self.seen_micros.load(Relaxed);
        let share = |given: &AtomicU64| {
            let given = given.load(Relaxed);
            // By time, not by tokens: of a whole answer only the end tells how many there were, and what
            // was handed out before went by a guess at them.
            let longer = self.lasted(now) as f64 / seen.max(1) as f64;
            (given > 0 && seen > 0).then(|| (given as f64 * longer.max(1.0)) as u64)
        };
        let usual = self.pace.cost(self.weight(now, output_weight));
        let energy = share(&self.energy).or(usual.map(|usual| usual.energy.get()))?;
        let time = share(&self.time).or(usual.map(|usual| usual.time.get())).unwrap_or(0);
        Some(Spent { energy: Microjoules(energy), time: GpuMicros(time) })
    }
}
