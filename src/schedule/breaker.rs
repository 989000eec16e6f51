//! A circuit breaker before one server.
//!
//! Closed: requests pass. Open: none pass, and the daemon sends small trial requests of its own, soon at
//! first and then at a bounded distance, so that the breaker closes as soon as the server answers again
//! and no caller is spent on finding out.

use crate::config;
use std::time::Duration;
use tokio::time::Instant;

/// The breaker's state.
#[derive(Clone, Debug)]
pub struct Breaker {
    failures: u32,
    open: Option<Open>,
}

#[derive(Clone, Copy, Debug)]
struct Open {
    next_trial: Instant,
    pause: Duration,
}

impl Default for Breaker {
    fn default() -> Self {
        Self::new()
    }
}

impl Breaker {
    /// A closed breaker.
    pub const fn new() -> Self {
        Self { failures: 0, open: None }
    }

    /// True when no request may pass.
    pub const fn is_open(&self) -> bool {
        self.open.is_some()
    }

    /// When the next trial is due.
    pub fn next_trial(&self) -> Option<Instant> {
        self.open.map(|open| open.next_trial)
    }

    /// The server answered as it should. Open => Closed, at once. True when that changed the state.
    pub fn success(&mut self) -> bool {
        self.failures = 0;
        self.open.take().is_some()
    }

    /// The server must not get any request until it has shown that it answers. Closed => Open.
    pub fn open(&mut self, rules: &config::Breaker, now: Instant) {
        let pause = rules.trial_first;
        self.open.get_or_insert(Open { next_trial: now + pause, pause });
    }

    /// The server failed a request or a trial. True when that opened the breaker.
    pub fn failure(&mut self, rules: &config::Breaker, now: Instant) -> bool {
        match &mut self.open {
            // Open => Open: the next trial waits longer, up to the ceiling. Answers that were under
            // way when it opened also land here and must not push the trial out again.
            Some(open) => {
                if now >= open.next_trial {
                    open.pause = (open.pause * 2).min(rules.trial_max);
                    open.next_trial = now + open.pause;
                }
                false
            }
            // Closed => Open after enough failures in a row.
            None => {
                self.failures = self.failures.saturating_add(1);
                if self.failures < rules.failures {
                    return false;
                }
                self.open(rules, now);
                true
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const RULES: config::Breaker = config::Breaker {
        failures: 3,
        trial_first: Duration::from_millis(250),
        trial_max: Duration::from_secs(2),
    };

    #[test]
    fn opens_on_failures_in_a_row_only() {
        let now = Instant::now();
        let mut breaker = Breaker::new();
        assert!(!breaker.failure(&RULES, now));
        assert!(!breaker.failure(&RULES, now));
        breaker.success();
        assert!(!breaker.failure(&RULES, now));
        assert!(!breaker.failure(&RULES, now));
        assert!(breaker.failure(&RULES, now));
        assert!(breaker.is_open());
    }

    #[test]
    fn one_that_is_told_to_open_keeps_its_trials_and_closes_as_ever() {
        let now = Instant::now();
        let mut breaker = Breaker::new();
        breaker.open(&RULES, now);
        assert_eq!(breaker.next_trial(), Some(now + RULES.trial_first));
        breaker.open(&RULES, now + Duration::from_secs(9));
        assert_eq!(breaker.next_trial(), Some(now + RULES.trial_first));
        assert!(breaker.success());
    }

    #[test]
    fn trials_back_off_to_a_ceiling_and_one_good_answer_closes() {
        let mut now = Instant::now();
        let mut breaker = Breaker::new();
        for _ in 0..3 {
            breaker.failure(&RULES, now);
        }
        let mut pauses = Vec::new();
        for _ in 0..6 {
            let due = breaker.next_trial().unwrap();
            pauses.push((due - now).as_millis());
            // A late failure of an old request does not move the trial.
            breaker.failure(&RULES, now);
            assert_eq!(breaker.next_trial(), Some(due));
            now = due;
            breaker.failure(&RULES, now);
        }
        assert_eq!(pauses, [250, 500, 1000, 2000, 2000, 2000]);
        assert!(breaker.success());
        assert!(!breaker.is_open());
    }
}
