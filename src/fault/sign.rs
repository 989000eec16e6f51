//! Signs that must last before they count, counters that must grow fast enough, events that must come often.

use std::time::Duration;
use tokio::time::Instant;

/// A sign that counts after it was there for a while without a gap, and stops counting after it was away
/// for a while.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Lasting {
    /// Since when it has been there without a gap.
    since: Option<Instant>,
    /// When it was there last.
    last: Option<Instant>,
    on: bool,
}

impl Lasting {
    /// One look; `None` where nothing could be seen, which changes nothing. True while the sign counts.
    pub(super) fn look(
        &mut self,
        there: Option<bool>,
        now: Instant,
        enter: Duration,
        leave: Duration,
    ) -> bool {
        match there {
            Some(true) => {
                let since = *self.since.get_or_insert(now);
                self.last = Some(now);
                self.on |= now.saturating_duration_since(since) >= enter;
            }
            Some(false) => {
                self.since = None;
                self.on &= self.last.is_some_and(|at| now.saturating_duration_since(at) < leave);
            }
            None => {}
        }
        self.on
    }
}

/// How much a counter grew within a stretch of time.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Growth {
    start: Option<(Instant, u64)>,
}

/// The stretch.
pub(super) const GROWTH_WINDOW: Duration = Duration::from_secs(60);

impl Growth {
    /// One reading; the growth since the stretch began. A counter that went back began anew.
    pub(super) fn see(&mut self, value: u64, now: Instant) -> u64 {
        match self.start {
            Some((at, begun)) if value >= begun => {
                if now.saturating_duration_since(at) >= GROWTH_WINDOW {
                    self.start = Some((now, value));
                }
                value - begun
            }
            _ => {
                self.start = Some((now, value));
                0
            }
        }
    }

    /// Forgets what was read.
    pub(super) fn reset(&mut self) {
        self.start = None;
    }
}

/// The last `N` times of something, to know if it came `N` times within a window.
#[derive(Clone, Copy, Debug)]
pub(super) struct Often<const N: usize> {
    /// The oldest first.
    times: [Option<Instant>; N],
}

impl<const N: usize> Default for Often<N> {
    fn default() -> Self {
        Self { times: [None; N] }
    }
}

impl<const N: usize> Often<N> {
    /// It came now.
    pub(super) fn note(&mut self, now: Instant) {
        self.times.rotate_left(1);
        if let Some(last) = self.times.last_mut() {
            *last = Some(now);
        }
    }

    /// When it came last.
    pub(super) fn last(&self) -> Option<Instant> {
        self.times.last().copied().flatten()
    }

    /// Whether it came `N` times within the window before `now`.
    pub(super) fn within(&self, window: Duration, now: Instant) -> bool {
        let oldest = self.times.first().copied().flatten();
        oldest.is_some_and(|oldest| now.saturating_duration_since(oldest) <= window)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const S: Duration = Duration::from_secs(1);

    #[test]
    fn a_sign_counts_when_it_lasts_and_until_it_stays_away() {
        let (start, mut sign) = (Instant::now(), Lasting::default());
        let mut look = |at: u32, there| sign.look(there, start + S * at, S * 3, S * 10);
        assert!(!look(0, Some(true)) && !look(2, Some(true)));
        assert!(!look(3, Some(false)), "a gap before it counted");
        assert!(!look(4, Some(true)) && !look(6, Some(true)) && look(7, Some(true)));
        assert!(look(8, Some(false)) && look(30, None), "unseen is not away");
        assert!(look(16, Some(false)));
        assert!(!look(17, Some(false)), "away for ten seconds");
    }

    #[test]
    fn growth_is_that_of_the_window_and_a_reset_is_none() {
        let (start, mut growth) = (Instant::now(), Growth::default());
        let mut see = |at: u32, value| growth.see(value, start + S * at);
        assert_eq!(see(0, 1000), 0, "what was counted before we came is no growth");
        assert_eq!(see(10, 1005), 5);
        assert_eq!(see(61, 1009), 9);
        assert_eq!(see(62, 1010), 1, "a new window");
        assert_eq!(see(63, 3), 0, "the driver was loaded anew");
        assert_eq!(see(64, 4), 1);
    }

    #[test]
    fn often_is_n_times_in_the_window() {
        let (start, mut often) = (Instant::now(), Often::<3>::default());
        for at in [0, 1, 20] {
            assert!(!often.within(S * 10, start + S * at));
            often.note(start + S * at);
        }
        assert!(!often.within(S * 10, start + S * 20));
        assert!(often.within(S * 20, start + S * 20));
        assert_eq!(often.last(), Some(start + S * 20));
    }
}
