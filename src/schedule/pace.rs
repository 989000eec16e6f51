//! How fast room comes free, to tell a caller honestly how long the wait will be; and how long answers
//! are, to reserve what they will need.

use crate::units::Tokens;
use std::time::Duration;
use tokio::time::Instant;

/// Weight of the newest observation in the running means.
const NEWEST: f64 = 0.1;

/// Room that comes free in one lane, as a running mean over the times when somebody waited.
#[derive(Clone, Debug, Default)]
pub struct Pace {
    tokens_per_s: Option<f64>,
    since: Option<Instant>,
    freed: Tokens,
}

impl Pace {
    /// Room came free while somebody waited (`busy`) or while nobody did.
    pub fn freed(&mut self, tokens: Tokens, busy: bool, now: Instant) {
        if !busy {
            self.since = None;
            self.freed = Tokens::ZERO;
            return;
        }
        let since = *self.since.get_or_insert(now);
        self.freed = self.freed.plus(tokens);
        let span = now.saturating_duration_since(since).as_secs_f64();
        // Bursts within a moment belong to one observation.
        if span >= 0.05 {
            let rate = self.freed.get() as f64 / span;
            self.tokens_per_s =
                Some(self.tokens_per_s.map_or(rate, |old| old + NEWEST * (rate - old)));
            self.since = Some(now);
            self.freed = Tokens::ZERO;
        }
    }

    /// How long until `ahead` tokens of room have come free; `None` before anything is known.
    pub fn wait(&self, ahead: Tokens) -> Option<Duration> {
        let rate = self.tokens_per_s.filter(|rate| *rate > 0.0)?;
        Duration::try_from_secs_f64(ahead.get() as f64 / rate).ok()
    }
}

/// Running mean of output tokens.
#[derive(Clone, Debug)]
pub struct OutputMean(f64);

impl OutputMean {
    /// Starts from the configured expectation.
    pub fn new(start: Tokens) -> Self {
        Self(start.get() as f64)
    }

    /// An answer was this long.
    pub fn observe(&mut self, output: Tokens) {
        self.0 += NEWEST * (output.get() as f64 - self.0);
    }

    /// What to expect of the next one, at least 1.
    pub fn expect(&self) -> Tokens {
        Tokens(self.0.ceil().max(1.0) as u64)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_wait_follows_the_rate_at_which_room_comes_free() {
        let start = Instant::now();
        let mut pace = Pace::default();
        assert_eq!(pace.wait(Tokens(10)), None);
        pace.freed(Tokens(0), true, start);
        for step in 1..50u32 {
            pace.freed(Tokens(100), true, start + Duration::from_millis(100) * step);
        }
        let wait = pace.wait(Tokens(500)).unwrap().as_secs_f64();
        assert!((wait - 0.5).abs() < 0.01, "{wait}");
    }

    #[test]
    fn idle_time_does_not_slow_the_rate() {
        let start = Instant::now();
        let mut pace = Pace::default();
        pace.freed(Tokens(0), true, start);
        pace.freed(Tokens(100), true, start + Duration::from_millis(100));
        pace.freed(Tokens(100), false, start + Duration::from_secs(100));
        pace.freed(Tokens(0), true, start + Duration::from_secs(200));
        pace.freed(Tokens(100), true, start + Duration::from_millis(200_100));
        let wait = pace.wait(Tokens(1000)).unwrap().as_secs_f64();
        assert!((wait - 1.0).abs() < 0.01, "{wait}");
    }

    #[test]
    fn output_expectation_moves_towards_what_is_seen() {
        let mut mean = OutputMean::new(Tokens(256));
        for _ in 0..100 {
            mean.observe(Tokens(20));
        }
        assert!(mean.expect() <= Tokens(21));
    }
}
