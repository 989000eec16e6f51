//! What one card drew between two readings: by its energy counter, or by integrating its power.

use crate::units::Microjoules;
use std::time::Duration;
use tokio::time::Instant;

/// A counter that stands still this long has drawn nothing; for a shorter time it was just not read again
/// (readings of power and utilisation alone come in between).
const STILL_MAX: Duration = Duration::from_secs(5);
/// Power is not integrated over more than this: nobody knows what it was in between.
const POWER_GAP_MAX: Duration = Duration::from_secs(10);
/// No card draws this much, watts: a counter that says so lies.
const WATTS_MAX: u64 = 4_000;
/// Added to that bound, joules: readings are not taken in the moment that they are stamped with.
const SLACK_J: u64 = 2_000;

/// How a card's energy is known.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Source {
    /// Not at all.
    #[default]
    Nothing,
    /// Its own counter.
    Counter,
    /// Its power, integrated by the trapezoid rule. What happens between readings is missed.
    Power,
}

/// What one reading says.
#[derive(Clone, Copy, Debug, Default)]
pub struct Reading {
    /// The counter, millijoules.
    pub energy_mj: Option<u64>,
    /// Power, watts.
    pub power_w: Option<f64>,
}

/// What came of one reading.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Step {
    /// Time since the reading before.
    pub span: Duration,
    /// What was drawn in it, by power alone: good for weighing steps against each other, not for bills.
    pub guess: Microjoules,
    /// What is certain now.
    pub result: Measured,
}

/// What is certain after a reading.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Measured {
    /// Nothing new; a later reading will cover this time too.
    Later,
    /// So much was drawn over so long, up to now.
    Drawn(Microjoules, Duration),
    /// What was drawn since the last certain moment will never be known, for so long.
    Lost(Duration),
}

/// Follows one card.
#[derive(Clone, Debug, Default)]
pub struct Gauge {
    at: Option<Instant>,
    power_w: Option<f64>,
    /// The counter at the last certain moment.
    base: Option<(u64, Instant)>,
    source: Source,
    resets: u64,
    lost: Duration,
}

impl Gauge {
    /// How the card's energy is known.
    pub const fn source(&self) -> Source {
        self.source
    }

    /// The last reading, empty ones too.
    pub const fn at(&self) -> Option<Instant> {
        self.at
    }

    /// How often the counter went back, or jumped beyond all measure.
    pub const fn resets(&self) -> u64 {
        self.resets
    }

    /// For how long nobody knows what was drawn.
    pub const fn lost(&self) -> Duration {
        self.lost
    }

    /// A reading; an empty one where the card did not answer.
    pub fn read(&mut self, at: Instant, reading: Reading) -> Step {
        let span = self.at.map_or(Duration::ZERO, |last| at.saturating_duration_since(last));
        let first = self.at.replace(at).is_none();
        let power_w = reading.power_w.filter(|watts| watts.is_finite() && *watts >= 0.0);
        let before = std::mem::replace(&mut self.power_w, power_w);
        let mean = match (before, power_w) {
            (Some(before), Some(now)) => Some(f64::midpoint(before, now)),
            (before, now) => before.or(now),
        };
        let guess = Microjoules((mean.unwrap_or(0.0) * span.as_secs_f64() * 1e6) as u64);
        let result = match (reading.energy_mj, self.base) {
            (Some(now), Some(base)) => self.counted(now, base, at),
            (Some(now), None) => {
                self.source = Source::Counter;
                self.base = Some((now, at));
                // Up to here its power was all there was.
                if first { Measured::Later } else { self.lose(span) }
            }
            // It has a counter, which was not told this time: the next one covers it.
            (None, Some(_)) => Measured::Later,
            (None, None) if first => Measured::Later,
            (None, None) => match (before, power_w) {
                (Some(_), Some(_)) if span <= POWER_GAP_MAX => {
                    self.source = Source::Power;
                    Measured::Drawn(guess, span)
                }
                _ => self.lose(span),
            },
        };
        Step { span, guess, result }
    }

    fn counted(&mut self, now: u64, (base, since): (u64, Instant), at: Instant) -> Measured {
        let span = at.saturating_duration_since(since);
        if now == base && span < STILL_MAX {
            return Measured::Later;
        }
        self.base = Some((now, at));
        let drawn = now.checked_sub(base);
        let most =
            (span.as_millis() as u64).saturating_mul(WATTS_MAX).saturating_add(SLACK_J * 1000);
        match drawn.filter(|drawn| *drawn <= most) {
            Some(drawn) => Measured::Drawn(Microjoules(drawn.saturating_mul(1000)), span),
            None => {
                self.resets += 1;
                self.lose(span)
            }
        }
    }

    fn lose(&mut self, span: Duration) -> Measured {
        self.lost += span;
        Measured::Lost(span)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn counter(energy_mj: u64) -> Reading {
        Reading { energy_mj: Some(energy_mj), power_w: Some(100.0) }
    }

    fn power(watts: f64) -> Reading {
        Reading { energy_mj: None, power_w: Some(watts) }
    }

    fn drawn(millijoules: u64, span: Duration) -> Measured {
        Measured::Drawn(Microjoules(millijoules * 1000), span)
    }

    #[test]
    fn a_counter_is_taken_by_its_difference_also_over_a_gap() {
        let (mut gauge, start) = (Gauge::default(), Instant::now());
        assert_eq!(gauge.read(start, counter(5_000)).result, Measured::Later);
        assert_eq!(gauge.read(start + SECOND, counter(5_120)).result, drawn(120, SECOND));
        // Lost for half a minute.
        for second in 2..30 {
            let step = gauge.read(start + SECOND * second, Reading::default());
            assert_eq!((step.span, step.result), (SECOND, Measured::Later));
        }
        let step = gauge.read(start + SECOND * 30, counter(9_000));
        assert_eq!(step.result, drawn(3_880, SECOND * 29));
        assert_eq!((gauge.source(), gauge.lost()), (Source::Counter, Duration::ZERO));
    }

    #[test]
    fn a_counter_that_goes_back_or_leaps_is_a_new_base_and_takes_nothing_away() {
        let (mut gauge, start) = (Gauge::default(), Instant::now());
        gauge.read(start, counter(5_000_000));
        assert_eq!(gauge.read(start + SECOND, counter(200)).result, Measured::Lost(SECOND));
        assert_eq!(gauge.read(start + SECOND * 2, counter(300)).result, drawn(100, SECOND));
        assert_eq!(
            gauge.read(start + SECOND * 3, counter(u64::MAX)).result,
            Measured::Lost(SECOND)
        );
        assert_eq!(gauge.read(start + SECOND * 4, counter(500)).result, Measured::Lost(SECOND));
        assert_eq!((gauge.resets(), gauge.lost()), (3, SECOND * 3));
    }

    #[test]
    fn a_counter_that_was_not_read_again_waits_and_one_that_stands_still_drew_nothing() {
        let (mut gauge, start) = (Gauge::default(), Instant::now());
        gauge.read(start, counter(5_000));
        let tenth = SECOND / 10;
        for step in 1..10 {
            let step = gauge.read(start + tenth * step, counter(5_000));
            assert_eq!((step.result, step.guess), (Measured::Later, Microjoules(10_000_000)));
        }
        assert_eq!(gauge.read(start + SECOND, counter(5_090)).result, drawn(90, SECOND));
        assert_eq!(gauge.read(start + SECOND * 6, counter(5_090)).result, drawn(0, SECOND * 5));
    }

    #[test]
    fn power_is_integrated_where_there_is_no_counter_and_gaps_are_told() {
        let (mut gauge, start) = (Gauge::default(), Instant::now());
        assert_eq!(gauge.read(start, power(100.0)).result, Measured::Later);
        assert_eq!(gauge.read(start + SECOND, power(200.0)).result, drawn(150_000, SECOND));
        assert_eq!(
            gauge.read(start + SECOND * 2, Reading::default()).result,
            Measured::Lost(SECOND)
        );
        assert_eq!(gauge.read(start + SECOND * 3, power(200.0)).result, Measured::Lost(SECOND));
        assert_eq!(gauge.read(start + SECOND * 4, power(200.0)).result, drawn(200_000, SECOND));
        // The driver hung.
        assert_eq!(
            gauge.read(start + SECOND * 40, power(200.0)).result,
            Measured::Lost(SECOND * 36)
        );
        assert_eq!((gauge.source(), gauge.lost()), (Source::Power, SECOND * 38));
    }
}
