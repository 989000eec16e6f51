//! What a card draws while nobody uses it: that part is no request's.

use crate::units::Microjoules;
use std::time::Duration;

/// Until a card was seen idle: this share of its power limit. Data sheets and readings of server cards
/// lie between 0.10 and 0.22.
const OF_LIMIT: f64 = 0.15;
/// Without a limit: this share of what was drawn.
const OF_DRAWN: f64 = 0.15;
/// How fast the known power follows a lower one: not by a single odd reading.
const FALL: Duration = Duration::from_secs(5);
/// And a higher one: what looks idle and draws more is often a card that has not calmed down yet.
const RISE: Duration = Duration::from_secs(600);

/// The idle power of one card.
#[derive(Clone, Copy, Debug, Default)]
pub struct Idle {
    watts: Option<f64>,
}

impl Idle {
    /// The power, watts; `None` until the card was seen idle.
    pub const fn watts(self) -> Option<f64> {
        self.watts
    }

    /// The card drew this much over this time while nobody used it.
    pub fn learn(&mut self, energy: Microjoules, span: Duration) {
        if span.is_zero() {
            return;
        }
        let seen = energy.joules() / span.as_secs_f64();
        self.watts = Some(match self.watts {
            Some(known) => {
                let within = if seen > known { RISE } else { FALL };
                let part = (span.as_secs_f64() / within.as_secs_f64()).min(1.0);
                known + (seen - known) * part
            }
            None => seen,
        });
    }

    /// The idle part of what was drawn over this time, never more than all of it.
    pub fn part(self, drawn: Microjoules, span: Duration, limit_w: Option<f64>) -> Microjoules {
        let watts = self.watts.or_else(|| limit_w.map(|limit| limit * OF_LIMIT));
        let part = match watts {
            Some(watts) => watts * span.as_secs_f64() * 1e6,
            None => drawn.get() as f64 * OF_DRAWN,
        };
        // A negative number or one that is none becomes zero.
        Microjoules((part as u64).min(drawn.get()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);
    const fn joules(joules: u64) -> Microjoules {
        Microjoules(joules * 1_000_000)
    }

    #[test]
    fn less_is_believed_soon_and_more_slowly() {
        let mut idle = Idle::default();
        idle.learn(joules(90), SECOND);
        idle.learn(joules(0), SECOND);
        assert_eq!(idle.watts(), Some(72.0), "one odd reading");
        for _ in 0..30 {
            idle.learn(joules(60), SECOND);
        }
        assert!(idle.watts().unwrap() < 60.1);
        idle.learn(joules(120), SECOND);
        assert!(idle.watts().unwrap() < 60.2);
        for _ in 0..3600 {
            idle.learn(joules(120), SECOND);
        }
        assert!(idle.watts().unwrap() > 119.0, "an hour is long enough");
    }

    #[test]
    fn until_a_card_was_seen_idle_a_share_stands_in() {
        let idle = Idle::default();
        assert_eq!(idle.part(joules(500), SECOND, Some(700.0)), joules(105));
        assert_eq!(idle.part(joules(50), SECOND, Some(700.0)), joules(50), "never more than all");
        assert_eq!(idle.part(joules(500), SECOND, None), joules(75));
        let known = Idle { watts: Some(80.0) };
        assert_eq!(known.part(joules(900), SECOND * 2, Some(700.0)), joules(160));
    }
}
