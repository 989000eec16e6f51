//! How fast room comes free, to tell a caller honestly how long the wait will be.

use crate::units::Tokens;
use std::time::Duration;
use tokio::time::Instant;

/// Weight of the newest observation in the running mean.
const NEWEST: f64 = 0.1;
/// How long a rate is believed after the last observation. Only requests that wait bring new ones: a rate
/// that refuses them all would otherwise never be corrected.
const REMEMBERED: Duration = Duration::from_secs(60);

/// Room that comes free in one lane, as a running mean over the times when somebody waited.
#[derive(Clone, Debug, Default)]
pub struct Pace {
    /// Tokens a second, and when that was last observed.
    seen: Option<(f64, Instant)>,
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
        // The first room of a spell was filled before the spell began: it says when to start
        // counting, and nothing about how fast room comes free.
        let Some(since) = self.since else {
            self.since = Some(now);
            return;
        };
        self.freed = self.freed.plus(tokens);
        let span = now.saturating_duration_since(since).as_secs_f64();
        // Bursts within a moment belong to one observation.
        if span >= 0.05 {
            let rate = self.freed.get() as f64 / span;
            let mean = self.rate(now).map_or(rate, |old| old + NEWEST * (rate - old));
            self.seen = Some((mean, now));
            self.since = Some(now);
            self.freed = Tokens::ZERO;
        }
    }

    /// How long until `ahead` tokens of room have come free; `None` while nothing is known, or nothing
    /// of late.
    pub fn wait(&self, ahead: Tokens, now: Instant) -> Option<Duration> {
        let rate = self.rate(now).filter(|rate| *rate > 0.0)?;
        Duration::try_from_secs_f64(ahead.get() as f64 / rate).ok()
    }

    /// Tokens a second, unless the last observation is too old to tell anything.
    fn rate(&self, now: Instant) -> Option<f64> {
        let (rate, seen) = self.seen?;
        (now.saturating_duration_since(seen) <= REMEMBERED).then_some(rate)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_wait_follows_the_rate_at_which_room_comes_free() {
        let start = Instant::now();
        let mut pace = Pace::default();
        assert_eq!(pace.wait(Tokens(10), start), None);
        pace.freed(Tokens(0), true, start);
        for step in 1..50u32 {
            pace.freed(Tokens(100), true, start + Duration::from_millis(100) * step);
        }
        let wait = pace.wait(Tokens(500), start + Duration::from_secs(5)).unwrap().as_secs_f64();
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
        let now = start + Duration::from_millis(200_100);
        pace.freed(Tokens(100), true, now);
        let wait = pace.wait(Tokens(1000), now).unwrap().as_secs_f64();
        assert!((wait - 1.0).abs() < 0.01, "{wait}");
    }

    /// Room that was filled long before anybody waited once counted as if it had come free within the
    /// spell, so that a large answer promised a speed that nothing had.
    #[test]
    fn the_room_that_begins_a_busy_spell_does_not_count() {
        let start = Instant::now();
        let mut pace = Pace::default();
        pace.freed(Tokens(1_000_000), true, start);
        let now = start + Duration::from_secs(1);
        pace.freed(Tokens(100), true, now);
        assert_eq!(pace.wait(Tokens(100), now), Some(Duration::from_secs(1)));
    }

    #[test]
    fn an_old_rate_is_forgotten_and_not_mixed_into_the_next() {
        let start = Instant::now();
        let mut pace = Pace::default();
        pace.freed(Tokens(0), true, start);
        let slow = start + Duration::from_secs(100);
        pace.freed(Tokens(100), true, slow);
        pace.freed(Tokens(0), false, slow);
        assert_eq!(pace.wait(Tokens(100), slow), Some(Duration::from_secs(100)));
        assert!(pace.wait(Tokens(100), slow + REMEMBERED).is_some());
        let later = slow + REMEMBERED + Duration::from_secs(1);
        assert_eq!(pace.wait(Tokens(100), later), None);
        pace.freed(Tokens(0), true, later);
        let now = later + Duration::from_secs(1);
        pace.freed(Tokens(100), true, now);
        assert_eq!(pace.wait(Tokens(100), now), Some(Duration::from_secs(1)));
    }
}
