//! How much work there is, by the size of its pieces: a large piece keeps one server busy, not all of them.

use tokio::time::Instant;

/// Sizes are told apart by powers of two, from a millisecond to a minute.
const BUCKETS: usize = 17;
/// The upper end of the first bucket, seconds.
const FIRST_S: f64 = 1e-3;

/// How long what came is remembered, seconds.
const STREAM_MEMORY_S: f64 = 20.0;

/// Work that comes, by size, fading.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Stream {
    sizes: Sizes,
    at: Option<Instant>,
}

impl Stream {
    fn keep(&self, now: Instant) -> f64 {
        let age = self.at.map_or(0.0, |at| now.saturating_duration_since(at).as_secs_f64());
        (-age / STREAM_MEMORY_S).exp()
    }

    /// A request with so much prefill came.
    pub(super) fn came(&mut self, prefill_s: f64, now: Instant) {
        self.sizes.fade(self.keep(now));
        self.at = Some(now);
        if prefill_s.is_finite() {
            self.sizes.add(prefill_s, 1.0);
        }
    }

    /// All of it, seconds a second.
    pub(super) fn rate(&self, now: Instant) -> f64 {
        self.sizes.total_s() * self.keep(now) / STREAM_MEMORY_S
    }

    /// Of requests smaller than one of this size, seconds a second.
    pub(super) fn smaller(&self, prefill_s: f64, now: Instant) -> f64 {
        self.sizes.smaller_s(prefill_s) * self.keep(now) / STREAM_MEMORY_S
    }
}

/// Pieces of work, by size.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Sizes {
    counts: [f64; BUCKETS],
    seconds: [f64; BUCKETS],
}

impl Sizes {
    /// The bucket of a piece of this many seconds.
    pub fn bucket(piece_s: f64) -> usize {
        let at = (piece_s.max(FIRST_S) / FIRST_S).log2().ceil();
        (at as usize).min(BUCKETS - 1)
    }

    /// Adds pieces, or takes them out (negative).
    pub fn add(&mut self, piece_s: f64, count: f64) {
        let at = Self::bucket(piece_s);
        if let (Some(pieces), Some(seconds)) = (self.counts.get_mut(at), self.seconds.get_mut(at)) {
            *pieces += count;
            *seconds += count * piece_s;
        }
    }

    /// Adds a part of others.
    pub fn add_part(&mut self, others: &Self, part: f64) {
        let mine = self.counts.iter_mut().chain(&mut self.seconds);
        for (mine, other) in mine.zip(others.counts.iter().chain(&others.seconds)) {
            *mine += part * other;
        }
    }

    /// Lets what is in it fade.
    pub fn fade(&mut self, keep: f64) {
        for value in self.counts.iter_mut().chain(&mut self.seconds) {
            *value *= keep;
        }
    }

    /// Seconds in all.
    pub fn total_s(&self) -> f64 {
        self.seconds.iter().map(|seconds| seconds.max(0.0)).sum()
    }

    /// Seconds of pieces that are smaller than those of this size.
    pub fn smaller_s(&self, piece_s: f64) -> f64 {
        self.seconds.iter().take(Self::bucket(piece_s)).map(|seconds| seconds.max(0.0)).sum()
    }

    /// When a server is free for the next piece, seconds from now, if each piece runs on one of them and those
    /// that are busy are so for `busy_s`. `servers` is how many there are, as far as they are at hand: less than
    /// one a server where other work comes in between.
    ///
    /// It is the least `w` beyond which `servers * w` is more than the sum of all pieces, each counted up to `w`:
    /// until then every server has work.
    pub fn free_in_s(&self, busy_s: &[f64], servers: f64) -> f64 {
        let upto = |w: f64| {
            let busy: f64 = busy_s.iter().map(|busy| busy.min(w)).sum();
            let pieces = self.counts.iter().zip(&self.seconds);
            let work: f64 = pieces
                .filter(|(count, _)| **count > 0.0)
                .map(|(count, seconds)| seconds.min(count * w).max(0.0))
                .sum();
            busy + work - servers * w
        };
        const EARLIEST_S: f64 = 1e-4;
        const LATEST_S: f64 = 3600.0;
        // Where all have exactly as much as they can do, none is free yet.
        let idle = |w: f64| upto(w) < -1e-9;
        if idle(EARLIEST_S) {
            return 0.0;
        }
        if servers <= 0.0 || !idle(LATEST_S) {
            return LATEST_S;
        }
        let (mut low, mut high) = (EARLIEST_S, LATEST_S);
        // Halving on a scale of ratios: a percent is near enough.
        while high / low > 1.01 {
            let middle = (low * high).sqrt();
            if idle(middle) { high = middle } else { low = middle }
        }
        high
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sizes(pieces: &[(f64, f64)]) -> Sizes {
        let mut sizes = Sizes::default();
        for (piece, count) in pieces {
            sizes.add(*piece, *count);
        }
        sizes
    }

    #[test]
    fn a_large_piece_keeps_one_server_busy_and_not_all() {
        let near = |said: f64, is: f64| {
            assert!((said - is).abs() < 0.02 * is.max(0.05), "{said} for {is}")
        };
        near(sizes(&[(8.0, 3.0)]).free_in_s(&[], 4.0), 0.0);
        near(sizes(&[(8.0, 4.0)]).free_in_s(&[], 4.0), 8.0);
        near(sizes(&[(8.0, 3.0), (0.1, 40.0)]).free_in_s(&[], 4.0), 4.0);
        near(sizes(&[(0.1, 40.0)]).free_in_s(&[0.0; 4], 4.0), 1.0);
        near(sizes(&[]).free_in_s(&[2.0, 3.0], 2.0), 2.0);
        near(sizes(&[(1.0, 2.0)]).free_in_s(&[2.0, 3.0], 2.0), 3.5);
        assert!(sizes(&[(1.0, 5.0)]).free_in_s(&[], 0.0) > 1000.0);
    }

    #[test]
    fn what_was_added_can_be_taken_out() {
        let mut all = sizes(&[(0.5, 2.0), (3.0, 1.0)]);
        all.add(0.5, -2.0);
        assert!((all.total_s() - 3.0).abs() < 1e-9);
        assert!((all.smaller_s(10.0) - 3.0).abs() < 1e-9);
        assert_eq!(all.smaller_s(0.5), 0.0);
        all.add_part(&sizes(&[(1.0, 4.0)]), 0.5);
        assert!((all.total_s() - 5.0).abs() < 1e-9);
    }
}
