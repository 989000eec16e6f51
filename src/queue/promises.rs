//! Work that was sent away and told when to come again, so that there is room when it does.
//!
//! Room is kept only as far as callers do come again: what was promised counts by the share of it that came, of
//! late.

use std::{collections::VecDeque, time::Duration};
use tokio::time::Instant;

/// Promises are kept by the second; further ahead nothing is promised.
const SLOTS_MAX: usize = 300;
/// Share of what the servers do that is promised: returns are not spread evenly.
const PROMISED: f64 = 0.85;
/// Callers come within this share of the time that they were told.
const SPREAD: f64 = 0.35;
/// How long it is remembered who came again, seconds.
const MEMORY_S: f64 = 120.0;
/// Work that must have come before much is expected, seconds.
const DOUBT_S: f64 = 1.0;
/// Share of what was promised that at least counts when others are told a time.
const TOLD_LEAST: f64 = 0.5;
/// And this much later, seconds.
const LATER_S: f64 = 2.0;

/// What one tenant was promised.
#[derive(Clone, Debug, Default)]
pub(super) struct Promises {
    slots: VecDeque<Slot>,
    begun: Option<Instant>,
    /// Work that was due, and that came; both fade.
    due: f64,
    came: f64,
    faded_s: f64,
}

#[derive(Clone, Copy, Debug)]
struct Slot {
    /// Seconds after `begun`.
    at: u64,
    work_s: f64,
    /// What of it is still to come.
    left_s: f64,
    /// Nobody is taken to come again as told before this, in the same seconds.
    from: f64,
    /// Nobody is waited for after this, in the same seconds.
    until: f64,
    /// It was counted as due.
    due: bool,
}

impl Promises {
    fn second(&mut self, now: Instant) -> f64 {
        let begun = *self.begun.get_or_insert(now);
        now.saturating_duration_since(begun).as_secs_f64()
    }

    fn pass(&mut self, now_s: f64) {
        let keep = (-(now_s - self.faded_s).max(0.0) / MEMORY_S).exp();
        self.faded_s = now_s;
        self.due *= keep;
        self.came *= keep;
        for slot in self.slots.iter_mut().take_while(|slot| slot.at as f64 <= now_s) {
            if !std::mem::replace(&mut slot.due, true) {
                self.due += slot.work_s;
            }
        }
        self.slots.retain(|slot| slot.until > now_s);
    }

    /// Share of what was promised that comes, 0.0 to 1.0.
    fn kept(&self) -> f64 {
        (self.came / (self.due + DOUBT_S).max(self.came)).clamp(0.0, 1.0)
    }

    /// Finds when work can be done, at the rate of so many seconds of work a second behind `ahead_s` of it and all
    /// that was promised before, and promises it. Gives seconds from now.
    pub(super) fn promise(&mut self, ahead_s: f64, work_s: f64, rate: f64, now: Instant) -> f64 {
        let now_s = self.second(now);
        self.pass(now_s);
        let rate = (rate * PROMISED).max(1e-3);
        let kept = self.kept().max(TOLD_LEAST);
        let mut before_s = ahead_s.max(0.0) + work_s;
        let mut slots = self.slots.iter().peekable();
        let mut wait_s = SLOTS_MAX as f64;
        for second in 0..SLOTS_MAX {
            let end = now_s + second as f64 + 1.0;
            while let Some(slot) = slots.next_if(|slot| slot.at as f64 <= end) {
                before_s += slot.left_s * kept;
            }
            if before_s <= rate * (second as f64 + 1.0) {
                wait_s = second as f64 + 1.0;
                break;
            }
        }
        let at_s = now_s + wait_s;
        let at = at_s as u64;
        let (from, until) =
            (at_s - SPREAD * wait_s - LATER_S / 2.0, at_s + SPREAD * wait_s + LATER_S);
        let place = self.slots.partition_point(|slot| slot.at < at);
        if let Some(slot) = self.slots.get_mut(place).filter(|slot| slot.at == at) {
            slot.work_s += work_s;
            slot.left_s += work_s;
            slot.until = slot.until.max(until);
            slot.from = slot.from.min(from);
        } else if self.slots.len() < 2 * SLOTS_MAX {
            self.slots.insert(place, Slot { at, work_s, left_s: work_s, from, until, due: false });
        }
        wait_s
    }

    /// Work that was promised and is expected to come until then, seconds.
    pub(super) fn due_s(&self, within: Duration, now: Instant) -> f64 {
        let Some(begun) = self.begun else { return 0.0 };
        let now_s = now.saturating_duration_since(begun).as_secs_f64();
        let last = now_s + within.as_secs_f64();
        let due = self.slots.iter().take_while(|slot| slot.at as f64 <= last);
        let left: f64 = due.filter(|slot| slot.until > now_s).map(|slot| slot.left_s).sum();
        left * self.kept()
    }

    /// Somebody came again with so much work. Whether that was promised for about now: who comes at another time is
    /// a newcomer.
    pub(super) fn claim(&mut self, mut work_s: f64, now: Instant) -> bool {
        let now_s = self.second(now);
        self.pass(now_s);
        let all_s = work_s;
        for slot in self.slots.iter_mut().filter(|slot| slot.from <= now_s) {
            let taken = slot.left_s.min(work_s);
            slot.left_s -= taken;
            work_s -= taken;
            self.came += taken;
            if work_s <= 0.0 {
                break;
            }
        }
        // Estimates of one prompt differ a little from time to time.
        work_s <= all_s / 2.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_is_told_a_time_behind_those_told_before() {
        let (mut promises, now) = (Promises::default(), Instant::now());
        promises.came = 1e6;
        let told: Vec<f64> = (0..40).map(|_| promises.promise(0.0, 0.5, 1.0, now)).collect();
        assert_eq!(told.first(), Some(&1.0));
        assert!(told.is_sorted(), "{told:?}");
        // 20 seconds of work at 0.85 a second.
        assert!((23.0..=25.0).contains(told.last().unwrap()), "{told:?}");
        assert!((promises.due_s(Duration::from_secs(60), now) - 20.0).abs() < 0.1);
        assert!(promises.due_s(Duration::from_secs(5), now) < 5.0);
    }

    #[test]
    fn room_is_kept_as_far_as_callers_come_again() {
        let (mut promises, begun) = (Promises::default(), Instant::now());
        let mut now = begun;
        for _ in 0..60 {
            promises.promise(0.0, 1.0, 1.0, now);
            now += Duration::from_secs(2);
        }
        assert!(promises.due_s(Duration::from_secs(9), now) < 0.01, "nobody came");
        for _ in 0..60 {
            promises.promise(0.0, 1.0, 1.0, now);
            now += Duration::from_secs(2);
            promises.claim(1.0, now);
        }
        promises.promise(0.0, 1.0, 1.0, now);
        let expected = promises.due_s(Duration::from_secs(9), now);
        assert!(expected > 0.5, "{expected}");
        let gone = now + Duration::from_secs(600);
        assert!(promises.due_s(Duration::from_secs(60), gone) < 1e-9);
        assert!(!promises.claim(1.0, gone));
        assert!(promises.slots.is_empty());
    }

    #[test]
    fn who_comes_too_soon_is_a_newcomer() {
        let (mut promises, now) = (Promises::default(), Instant::now());
        assert_eq!(promises.promise(99.0, 1.0, 1.0 / PROMISED, now), 100.0);
        assert!(!promises.claim(1.0, now + Duration::from_secs(2)));
        assert!(promises.claim(1.0, now + Duration::from_secs(70)));
        assert!(!promises.claim(1.0, now + Duration::from_secs(71)), "once");
    }

    #[test]
    fn promises_are_bounded() {
        let (mut promises, now) = (Promises::default(), Instant::now());
        for _ in 0..5_000 {
            assert!(promises.promise(1e6, 1.0, 1.0, now) <= SLOTS_MAX as f64);
        }
        assert!(promises.slots.len() <= 2 * SLOTS_MAX);
    }
}
