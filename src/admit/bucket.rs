//! A token bucket in whole numbers: a rate per minute, one minute of burst, debt allowed on settling.

use std::time::Duration;
use tokio::time::Instant;

/// Levels are kept in units times 60,000, so that a refill of `rate` units a minute is exactly `rate`
/// a millisecond and nothing is lost to rounding.
const SCALE: i128 = 60_000;

/// A bucket. All methods take `now`; a time before the last one seen counts as that one.
#[derive(Clone, Debug)]
pub struct Bucket {
    per_minute: i128,
    level: i128,
    seen: Instant,
}

impl Bucket {
    /// A full bucket of `per_minute` units a minute.
    pub fn new(per_minute: u64, now: Instant) -> Self {
        let per_minute = i128::from(per_minute);
        Self { per_minute, level: per_minute * SCALE, seen: now }
    }

    fn refill(&mut self, now: Instant) {
        let millis = now.saturating_duration_since(self.seen).as_millis();
        if millis == 0 {
            return;
        }
        // Only whole milliseconds are counted; the rest stays in the clock.
        let whole = Duration::from_millis(u64::try_from(millis).unwrap_or(u64::MAX));
        self.seen += whole;
        let millis = i128::try_from(millis).unwrap_or(i128::MAX / (1 << 64));
        let gain = self.per_minute.saturating_mul(millis);
        self.level = self.level.saturating_add(gain).min(self.per_minute * SCALE);
    }

    /// Takes `units`, or says how long until they are there. A request larger than the whole bucket
    /// is let through when the bucket is full, and leaves a debt.
    ///
    /// # Errors
    /// The time to wait; nothing was taken.
    pub fn take(&mut self, units: u64, now: Instant) -> Result<(), Duration> {
        self.refill(now);
        let want = i128::from(units) * SCALE;
        let need = want.min(self.per_minute * SCALE);
        if self.level >= need {
            self.level -= want;
            return Ok(());
        }
        let missing = need - self.level;
        let millis = missing.saturating_add(self.per_minute - 1) / self.per_minute.max(1);
        Err(Duration::from_millis(u64::try_from(millis).unwrap_or(u64::MAX)))
    }

    /// Gives `units` back.
    pub fn refund(&mut self, units: u64) {
        let back = i128::from(units) * SCALE;
        self.level = self.level.saturating_add(back).min(self.per_minute * SCALE);
    }

    /// Takes `units` whether they are there or not: they were used already.
    pub fn charge(&mut self, units: u64) {
        self.level = self.level.saturating_sub(i128::from(units) * SCALE);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn burst_then_steady_rate_with_the_exact_wait() {
        let start = Instant::now();
        let mut bucket = Bucket::new(60, start);
        for _ in 0..60 {
            bucket.take(1, start).unwrap();
        }
        assert_eq!(bucket.take(1, start), Err(Duration::from_secs(1)));
        let later = start + Duration::from_millis(999);
        assert_eq!(bucket.take(1, later), Err(Duration::from_millis(1)));
        bucket.take(1, start + Duration::from_secs(1)).unwrap();
    }

    #[test]
    fn more_than_the_bucket_passes_once_and_leaves_a_debt() {
        let start = Instant::now();
        let mut bucket = Bucket::new(100, start);
        bucket.take(250, start).unwrap();
        // 150 below zero and one more unit: 151 units at 100 a minute.
        assert_eq!(bucket.take(1, start), Err(Duration::from_millis(151 * 600)));
    }

    proptest! {
        /// However requests come, no more passes than burst plus rate times time.
        #[test]
        fn never_more_than_burst_plus_rate(rate in 1u64..500, steps in prop::collection::vec((0u64..3000, 1u64..20), 1..80)) {
            let start = Instant::now();
            let mut bucket = Bucket::new(rate, start);
            let (mut millis, mut passed) = (0u64, 0u64);
            for (wait, units) in steps {
                millis += wait;
                let units = units.min(rate);
                if bucket.take(units, start + Duration::from_millis(millis)).is_ok() {
                    passed += units;
                }
                prop_assert!(passed * 60_000 <= rate * 60_000 + rate * millis);
            }
        }
    }
}
