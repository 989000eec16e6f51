//! How much a server's memory grows with its work: seen, and learned from what was seen.
//!
//! Learned is the most growth that was seen for the most tokens that were placed, since the process started,
//! and a quarter on top: placed tokens are an estimate. A higher figure counts at once. A lower one replaces
//! it step by step, each time the server comes to rest; a figure from little work is mostly what a program allocates
//! once.

use crate::{
    ids::{GpuId, ServerKind},
    units::{Bytes, Tokens},
};
use std::collections::BTreeMap;

/// Less work than this teaches nothing about a token.
const TEACHES: Tokens = Tokens(512);

/// No model takes more for a token: 4.7 MiB would be a dense one of 175 billion parameters with all its heads.
const PER_TOKEN_MAX: f64 = (4 << 20) as f64;
/// And no figure is nothing.
const PER_TOKEN_LEAST: f64 = 1024.0;

/// On top of what was seen.
const MARGIN: f64 = 1.25;

/// What stays of a learned figure when less is seen.
const FORGETS: f64 = 0.75;

/// Foreign memory may move by this much without anybody having taken any: contexts and displays breathe.
const BREATH: Bytes = Bytes::mib(64);

/// Readings that must agree on what is loaded before a new least counts, or growth teaches anything: the server's
/// word and the card's do not come in the same moment.
const STEADY: u8 = 3;

/// What a token is taken to need until work teaches it. llama.cpp, and Ollama by it, allocate their cache when a model
/// loads, so that little comes with the work. Of others: the cache of a model of 8 billion parameters with 16-bit
/// values and eight heads for keys.
pub const fn per_token_default(kind: ServerKind) -> Bytes {
    match kind {
        ServerKind::LlamaCpp | ServerKind::Ollama => Bytes(4 << 10),
        _ => Bytes(128 << 10),
    }
}

/// Whether a server of this kind takes more memory as it works, where nobody said.
pub const fn grows_by_default(kind: ServerKind) -> bool {
    !matches!(kind, ServerKind::Vllm | ServerKind::Sglang | ServerKind::Embedded)
}

/// One reading of a server.
#[derive(Clone, Copy, Debug)]
pub struct Reading<'a> {
    /// Its processes on GPUs.
    pub pids: &'a [u32],
    /// What they hold, on all its cards.
    pub memory: Bytes,
    /// What loaded models take of it, of a server that loads them when they are asked for.
    pub loaded: Bytes,
    /// It loads a model now, which is not in `loaded` yet.
    pub loading: bool,
    /// Tokens placed there.
    pub placed: Tokens,
    /// What foreign processes hold on its cards.
    pub foreign: &'a BTreeMap<GpuId, Bytes>,
}

/// What a reading says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Grown {
    /// Memory above the least that was seen since the process started.
    pub growth: Bytes,
    /// What a token takes.
    pub per_token: Bytes,
    /// No foreign process took any since the server was first seen.
    pub undisturbed: bool,
}

/// What is remembered of one server.
#[derive(Clone, Debug, Default)]
pub struct Growth {
    pids: Vec<u32>,
    least: Option<Bytes>,
    /// Growth when no model was on its way last.
    growth: Bytes,
    loaded: Bytes,
    steady: u8,
    foreign: BTreeMap<GpuId, Bytes>,
    most_placed: Tokens,
    most_growth: Bytes,
    works: bool,
    /// This process had work of ours.
    worked: bool,
    learned: Option<f64>,
}

impl Growth {
    /// Takes a reading. `default` is what a token takes as long as nothing was learned.
    pub fn take(&mut self, reading: Reading<'_>, default: Bytes) -> Grown {
        let another = !self.pids.is_empty() && !reading.pids.is_empty();
        if another && !reading.pids.iter().any(|pid| self.pids.contains(pid)) {
            *self = Self { learned: self.learned, ..Self::default() };
        }
        if !reading.pids.is_empty() {
            self.pids = reading.pids.to_vec();
        }
        self.steady = match reading.loaded == self.loaded && !reading.loading {
            // A process that loads nothing has nothing to wait for.
            true if self.least.is_none() => STEADY,
            true => self.steady.saturating_add(1),
            false => 0,
        };
        self.loaded = reading.loaded;
        let own = reading.memory.less(reading.loaded);
        self.worked |= reading.placed > Tokens::ZERO;
        let least = match self.least {
            // Out of sight, or on its way into the card: what that means is seen later.
            Some(least) if reading.pids.is_empty() || (reading.loading && self.worked) => least,
            // Memory that came before any work was no growth by it: weights on their way into the card.
            Some(_) if !self.worked => own,
            // What a model takes beside itself comes and goes with it: growth is what it was before.
            Some(_) if self.steady < STEADY => own.less(self.growth),
            Some(least) => least.min(own),
            None => own,
        };
        let growth = own.less(least);
        if !reading.pids.is_empty() {
            self.least = Some(least);
            self.growth = if self.steady < STEADY { self.growth } else { growth };
        }
        let undisturbed = self.undisturbed(reading.foreign);
        if self.steady >= STEADY && !reading.pids.is_empty() {
            self.learn(growth, reading.placed, default);
        }
        let per_token = self.learned.map_or(default, |bytes| Bytes(bytes as u64));
        Grown { growth, per_token, undisturbed }
    }

    fn undisturbed(&mut self, foreign: &BTreeMap<GpuId, Bytes>) -> bool {
        let mut quiet = true;
        for (gpu, held) in foreign {
            let first = self.foreign.entry(gpu.clone()).or_insert(*held);
            quiet &= *held <= first.plus(BREATH);
        }
        quiet
    }

    fn learn(&mut self, growth: Bytes, placed: Tokens, default: Bytes) {
        self.most_placed = self.most_placed.max(placed);
        self.most_growth = self.most_growth.max(growth);
        let rests = self.works && placed == Tokens::ZERO;
        self.works = placed > Tokens::ZERO;
        if self.most_placed < TEACHES {
            return;
        }
        let seen = self.most_growth.get() as f64 / self.most_placed.get() as f64 * MARGIN;
        let seen = seen.clamp(PER_TOKEN_LEAST, PER_TOKEN_MAX);
        let known = self.learned.unwrap_or(default.get() as f64);
        if seen > known {
            self.learned = Some(seen);
        } else if rests {
            self.learned = Some(seen.max(self.learned.unwrap_or(0.0) * FORGETS));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DEFAULT: Bytes = Bytes(128 << 10);

    fn foreign(mib: u64) -> BTreeMap<GpuId, Bytes> {
        BTreeMap::from([("GPU-a".into(), Bytes::mib(mib))])
    }

    fn take(growth: &mut Growth, pid: u32, mib: u64, placed: u64) -> Grown {
        let reading = Reading {
            pids: &[pid],
            memory: Bytes::mib(mib),
            loaded: Bytes::ZERO,
            loading: false,
            placed: Tokens(placed),
            foreign: &foreign(0),
        };
        growth.take(reading, DEFAULT)
    }

    #[test]
    fn growth_is_counted_from_the_least_of_this_process() {
        let mut growth = Growth::default();
        assert_eq!(take(&mut growth, 1, 5000, 0).growth, Bytes::ZERO);
        for _ in 0..3 {
            take(&mut growth, 1, 4000, 0);
        }
        assert_eq!(take(&mut growth, 1, 4600, 1000).growth, Bytes::mib(600));
        // Another process begins anew, and knows what was learned.
        let learned = take(&mut growth, 1, 4600, 0).per_token;
        let fresh = take(&mut growth, 2, 9000, 0);
        assert_eq!((fresh.growth, fresh.per_token), (Bytes::ZERO, learned));
    }

    #[test]
    fn more_counts_at_once_and_less_step_by_step() {
        let mut growth = Growth::default();
        (0..STEADY).for_each(|_| _ = take(&mut growth, 1, 1000, 0));
        assert_eq!(take(&mut growth, 1, 1200, 100).per_token, DEFAULT, "too little to learn from");
        let high = take(&mut growth, 1, 1512, 1024).per_token;
        assert_eq!(high, Bytes(640 << 10), "half a MiB and a quarter on top");
        // The same memory serves eight times the work.
        assert_eq!(take(&mut growth, 1, 1512, 8192).per_token, high, "while it still works");
        let mut last = high;
        for _ in 0..20 {
            let next = take(&mut growth, 1, 1512, 0).per_token;
            assert!(next <= last);
            last = next;
            take(&mut growth, 1, 1512, 8192);
        }
        assert_eq!(last, Bytes(80 << 10));
    }

    #[test]
    fn memory_that_does_not_grow_is_learned_when_the_work_is_done() {
        let mut growth = Growth::default();
        (0..STEADY).for_each(|_| _ = take(&mut growth, 1, 1000, 0));
        // It has only just begun: nothing is proven.
        assert_eq!(take(&mut growth, 1, 1000, 4096).per_token, DEFAULT);
        assert_eq!(take(&mut growth, 1, 1000, 0).per_token, Bytes(1024));
    }

    /// A server that is seen while it starts once learned that its tokens take what its weights take.
    #[test]
    fn weights_on_their_way_into_the_card_are_no_growth() {
        let mut growth = Growth::default();
        for mib in [500, 4000, 12_000, 20_000] {
            assert_eq!(take(&mut growth, 1, mib, 0).growth, Bytes::ZERO);
        }
        let works = take(&mut growth, 1, 20_064, 1024);
        assert_eq!((works.growth, works.per_token), (Bytes::mib(64), DEFAULT));
        assert_eq!(
            take(&mut growth, 1, 20_064, 0).growth,
            Bytes::mib(64),
            "what stays of work is growth"
        );
    }

    /// The request that a model is loaded for is placed long before the server tells of the model.
    #[test]
    fn a_model_that_is_loaded_for_a_request_teaches_nothing_of_its_tokens() {
        let mut growth = Growth::default();
        let foreign = foreign(0);
        let mut at = |memory, loaded, loading| {
            let reading = Reading {
                pids: &[1],
                memory: Bytes::mib(memory),
                loaded: Bytes::mib(loaded),
                loading,
                placed: Tokens(1000),
                foreign: &foreign,
            };
            growth.take(reading, DEFAULT)
        };
        for memory in [500, 500, 500, 500, 4000, 8000, 9100] {
            let grown = at(memory, 0, memory > 500);
            assert_eq!((grown.growth, grown.per_token), (Bytes::mib(memory - 500), DEFAULT));
        }
        // It brings 600 MiB of its own.
        for _ in 0..8 {
            let grown = at(9100, 8000, false);
            assert_eq!((grown.growth, grown.per_token), (Bytes::ZERO, DEFAULT));
        }
    }

    /// Ollama has no process on a card until a request makes it load a model.
    #[test]
    fn the_first_process_is_not_measured_against_none() {
        let mut growth = Growth::default();
        let foreign = foreign(0);
        let mut at = |pids, memory, loaded, loading| {
            let (memory, loaded) = (Bytes::mib(memory), Bytes::mib(loaded));
            let placed = Tokens(1000);
            growth
                .take(Reading { pids, memory, loaded, loading, placed, foreign: &foreign }, DEFAULT)
        };
        (0..4).for_each(|_| _ = at(&[], 0, 0, true));
        (0..4).for_each(|_| _ = at(&[1], 5000, 0, true));
        for _ in 0..8 {
            let grown = at(&[1], 8600, 8000, false);
            assert_eq!((grown.growth, grown.per_token), (Bytes::ZERO, DEFAULT));
        }
    }

    /// Its processes may be out of sight for a moment.
    #[test]
    fn a_server_out_of_sight_does_not_hold_nothing() {
        let mut growth = Growth::default();
        (0..4).for_each(|_| _ = take(&mut growth, 1, 1000, 1));
        let foreign = foreign(0);
        let nobody = Reading {
            pids: &[],
            memory: Bytes::ZERO,
            loaded: Bytes::ZERO,
            loading: false,
            placed: Tokens(1000),
            foreign: &foreign,
        };
        assert_eq!(growth.take(nobody, DEFAULT).growth, Bytes::ZERO);
        assert_eq!(take(&mut growth, 1, 1000, 1000).growth, Bytes::ZERO);
    }

    #[test]
    fn foreign_memory_is_held_against_what_was_there_first() {
        let mut growth = Growth::default();
        let mut at = |mib| {
            let foreign = foreign(mib);
            let reading = Reading {
                pids: &[1],
                memory: Bytes::mib(1000),
                loaded: Bytes::ZERO,
                loading: false,
                placed: Tokens::ZERO,
                foreign: &foreign,
            };
            growth.take(reading, DEFAULT).undisturbed
        };
        assert!(at(300) && at(350) && at(0) && at(364));
        assert!(!at(365));
    }

    /// The card shows a model before the server tells of it, and the other way round.
    #[test]
    fn loaded_models_are_no_growth_and_no_new_least() {
        let mut growth = Growth::default();
        let mut at = |memory, loaded| {
            let reading = Reading {
                pids: &[1],
                memory: Bytes::mib(memory),
                loaded: Bytes::mib(loaded),
                loading: false,
                placed: Tokens(1),
                foreign: &foreign(0),
            };
            growth.take(reading, DEFAULT).growth
        };
        for _ in 0..4 {
            assert_eq!(at(500, 0), Bytes::ZERO);
        }
        assert_eq!(at(500, 8000), Bytes::ZERO, "told before it is seen");
        assert_eq!(at(8500, 8000), Bytes::ZERO);
        for _ in 0..STEADY {
            assert_eq!(at(8500, 8000), Bytes::ZERO);
        }
        assert_eq!(at(8600, 8000), Bytes::mib(100));
    }
}
