//! All requests at work: a short entry at placement, a short leave at the end, and what the meter takes.

use super::{
    Key,
    work::{Facts, Pace, Work},
};
use crate::ids::ServerId;
use std::{
    collections::{BTreeMap, HashMap},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};
use tokio::time::Instant;

/// Requests that ended since the last reading and are kept one by one. Beyond that only what they did for
/// each key is kept: a driver that hangs must not fill the memory.
const ENDED_MAX: usize = 8192;
/// Servers whose pace is remembered: more than can be configured.
const PACES_MAX: usize = 1024;

/// All requests at work.
#[derive(Debug, Default)]
pub struct Works {
    /// Somebody takes what is written down here.
    metering: AtomicBool,
    /// Weight of an output token, thousandths of an input token.
    output_weight: AtomicU64,
    /// Guards the lists; held for one entry or leave, or while the meter copies them.
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    next: u64,
    live: HashMap<u64, Arc<Work>>,
    ended: Vec<Arc<Work>>,
    folded: BTreeMap<Key, Done>,
    paces: HashMap<ServerId, Arc<Pace>>,
}

/// What was done for one key by requests that are over.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Done {
    /// Weighted tokens, thousandths of an input token.
    pub weight: u64,
    /// Time at work, of all of them.
    pub worked: Duration,
}

/// What was done since the last look.
#[derive(Debug, Default)]
pub struct Progress {
    /// By those who are still at work.
    pub live: Vec<(Arc<Work>, Done)>,
    /// By those who ended.
    pub done: BTreeMap<Key, Done>,
}

impl Done {
    fn add(&mut self, (weight, worked): (u64, Duration)) {
        self.weight = self.weight.saturating_add(weight);
        self.worked = self.worked.saturating_add(worked);
    }
}

impl Works {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// From now on somebody takes what is written down. Until then nothing is: a host without GPUs pays
    /// nothing.
    pub fn meter(&self, output_weight: f64) {
        let weight = (output_weight * super::work::INPUT_WEIGHT as f64).round() as u64;
        self.output_weight.store(weight.max(1), Relaxed);
        self.metering.store(true, Relaxed);
    }

    /// Weight of an output token, thousandths of an input token.
    pub fn output_weight(&self) -> u64 {
        self.output_weight.load(Relaxed)
    }

    /// Somebody takes what is written down here.
    pub fn is_metering(&self) -> bool {
        self.metering.load(Relaxed)
    }

    /// A request was placed. `None` where nobody meters.
    pub fn begin(&self, facts: Facts, now: Instant) -> Option<Arc<Work>> {
        if !self.is_metering() {
            return None;
        }
        let mut state = self.lock();
        state.next += 1;
        let id = state.next;
        let pace = state.pace(&facts.key.server);
        let work = Arc::new(Work::new(facts, id, pace, now));
        state.live.insert(id, Arc::clone(&work));
        Some(work)
    }

    /// It is over, whatever the end was.
    pub fn end(&self, work: &Work, now: Instant) {
        work.end(now);
        let mut state = self.lock();
        let Some(work) = state.live.remove(&work.id) else { return };
        state.ended.push(work);
        if state.ended.len() >= ENDED_MAX {
            let weight = self.output_weight();
            let ended = std::mem::take(&mut state.ended);
            fold(&ended, &mut state.folded, now, weight);
        }
    }

    /// What was done since the last time.
    pub fn take(&self, now: Instant) -> Progress {
        let (live, ended, mut done) = {
            let mut state = self.lock();
            let live: Vec<Arc<Work>> = state.live.values().cloned().collect();
            (live, std::mem::take(&mut state.ended), std::mem::take(&mut state.folded))
        };
        let weight = self.output_weight();
        fold(&ended, &mut done, now, weight);
        let look = |work: Arc<Work>| {
            let mut moved = Done::default();
            moved.add(work.look(now, weight));
            (work, moved)
        };
        Progress { live: live.into_iter().map(look).collect(), done }
    }

    /// How fast a server is.
    pub fn pace(&self, server: &ServerId) -> Arc<Pace> {
        self.lock().pace(server)
    }

    /// Requests at work.
    pub fn len(&self) -> usize {
        self.lock().live.len()
    }

    /// Nobody is at work.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

fn fold(ended: &[Arc<Work>], into: &mut BTreeMap<Key, Done>, now: Instant, weight: u64) {
    for work in ended {
        let moved = work.look(now, weight);
        match into.get_mut(&work.key) {
            Some(done) => done.add(moved),
            None => into.entry(work.key.clone()).or_default().add(moved),
        }
    }
}

impl State {
    fn pace(&mut self, server: &ServerId) -> Arc<Pace> {
        if let Some(pace) = self.paces.get(server) {
            return Arc::clone(pace);
        }
        // Servers come and go by configuration; those that are gone need no memory of their pace.
        if self.paces.len() >= PACES_MAX {
            self.paces.clear();
        }
        Arc::clone(self.paces.entry(server.clone()).or_default())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        energy::Spent,
        ids::Tier,
        units::{GpuMicros, Microjoules, Tokens},
    };

    const SECOND: Duration = Duration::from_secs(1);

    fn facts(input: u64, output: u64, stream: bool) -> Facts {
        let key =
            Key { server: "s".into(), model: "m".into(), tenant: "a".into(), tier: Tier::Standard };
        Facts { key, input: Tokens(input), output: Tokens(output), stream }
    }

    fn works() -> (Works, Instant) {
        let works = Works::default();
        works.meter(4.0);
        (works, Instant::now())
    }

    fn moved(progress: &Progress) -> u64 {
        let live: u64 = progress.live.iter().map(|(_, done)| done.weight).sum();
        live + progress.done.values().map(|done| done.weight).sum::<u64>()
    }

    #[test]
    fn a_stream_weighs_its_input_then_each_token_and_at_the_end_what_is_true() {
        let (works, start) = works();
        let work = works.begin(facts(4000, 100, true), start).unwrap();
        // 2 s at the pace that is taken before any is known.
        assert_eq!(moved(&works.take(start + SECOND)), 1_800_000);
        work.first(start + SECOND * 2);
        assert_eq!(moved(&works.take(start + SECOND * 2)), 2_200_000, "the input is done");
        work.output(Tokens(50));
        assert_eq!(moved(&works.take(start + SECOND * 3)), 200_000);
        work.finish(Tokens(4000), Tokens::ZERO, Tokens(80), start + SECOND * 4);
        works.end(&work, start + SECOND * 4);
        let last = works.take(start + SECOND * 5);
        assert!(last.live.is_empty());
        let done = last.done.values().next().unwrap();
        assert_eq!((done.weight, done.worked), (120_000, SECOND), "nothing after its end");
        assert_eq!(moved(&works.take(start + SECOND * 6)), 0, "and nothing twice");
        // The next one is judged by what was seen: 4000 tokens in 2 s, 80 in 2 s.
        let next = works.begin(facts(2000, 40, false), start + SECOND * 6).unwrap();
        assert_eq!(next.weight(start + SECOND * 7, 4000), 2_000_000, "its input is done");
        assert_eq!(next.weight(start + SECOND * 8, 4000), 2_000_000 + 144_000, "and 0.9 of 40");
    }

    #[test]
    fn a_prefill_that_takes_longer_still_moves_and_a_whole_answer_is_trued_up() {
        let (works, start) = works();
        let work = works.begin(facts(1000, 300, true), start).unwrap();
        let mut before = 0;
        for second in 1..20 {
            let weight = work.weight(start + SECOND * second, 4000);
            assert!(weight > before && weight < 1_000_000, "{weight}");
            before = weight;
        }
        let whole = works.begin(facts(1000, 300, false), start).unwrap();
        let guessed = {
            works.take(start + SECOND);
            whole.weight(start + SECOND, 4000)
        };
        assert!(guessed > 1_000_000, "its input and a part of its output");
        whole.finish(Tokens(1000), Tokens(900), Tokens(600), start + SECOND * 2);
        works.end(&whole, start + SECOND * 2);
        let done = works.take(start + SECOND * 2).done.values().next().copied().unwrap();
        assert_eq!(done.weight, 100_000 + 2_400_000 - guessed, "what is cached weighs nothing");
    }

    // A server may write any number into its usage.
    #[test]
    fn absurd_usage_weighs_much_and_overflows_nothing() {
        let (works, start) = works();
        let work = works.begin(facts(10, 10, true), start).unwrap();
        work.finish(Tokens(u64::MAX), Tokens::ZERO, Tokens(u64::MAX), start + SECOND);
        works.end(&work, start + SECOND);
        let done = works.take(start + SECOND).done.values().next().copied().unwrap();
        assert_eq!(done.weight, u64::MAX);
    }

    #[test]
    fn nobody_is_written_down_while_nobody_meters() {
        let works = Works::default();
        assert!(works.begin(facts(1, 1, true), Instant::now()).is_none());
        assert!(works.is_empty());
    }

    #[test]
    fn those_who_end_while_the_driver_hangs_are_kept_as_sums() {
        let (works, start) = works();
        let count = ENDED_MAX + 100;
        for _ in 0..count {
            let work = works.begin(facts(10, 0, true), start).unwrap();
            work.finish(Tokens(10), Tokens::ZERO, Tokens(1), start);
            works.end(&work, start);
        }
        assert!(works.is_empty() && works.lock().ended.len() < ENDED_MAX);
        let progress = works.take(start + SECOND);
        assert_eq!(moved(&progress), count as u64 * 14_000);
        assert_eq!(progress.done.len(), 1);
    }

    #[test]
    fn an_estimate_goes_on_at_the_rate_of_what_was_given_else_it_is_what_such_work_takes() {
        let (works, start) = works();
        let work = works.begin(facts(1000, 10, true), start).unwrap();
        work.first(start + SECOND);
        assert_eq!(work.estimate(start + SECOND, 4000), None, "nothing is known yet");
        let spent = Spent { energy: Microjoules(5_000_000), time: GpuMicros(100_000) };
        works.pace(&"s".into()).learn_cost(spent, 500_000);
        let twice = Spent { energy: Microjoules(10_000_000), time: GpuMicros(200_000) };
        assert_eq!(work.estimate(start + SECOND, 4000), Some(twice));
        works.take(start + SECOND);
        work.give_energy(Microjoules(7_000_000));
        work.give_time(GpuMicros(90_000));
        work.output(Tokens(25));
        let more = Spent { energy: Microjoules(10_500_000), time: GpuMicros(135_000) };
        assert_eq!(work.estimate(start + SECOND * 3 / 2, 4000), Some(more));
        // The first whole answer of a server was told four times what it took: the meter's guess at its tokens
        // had been too low, so each of them looked too dear, and then they were many.
        work.finish(Tokens(1000), Tokens::ZERO, Tokens(2000), start + SECOND * 3 / 2);
        assert_eq!(work.estimate(start + SECOND * 3 / 2, 4000), Some(more));
    }
}
