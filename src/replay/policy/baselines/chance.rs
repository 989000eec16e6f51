//! Chance that a seed decides: xorshift (Marsaglia, "Xorshift RNGs", 2003).

use crate::replay::chance;

/// A row of numbers that a seed decides.
#[derive(Clone, Debug)]
pub(super) struct Chance {
    state: u64,
}

// === impl Chance ===

impl Chance {
    /// Any seed will do.
    pub(super) fn new(seed: u64) -> Self {
        // Xorshift never leaves zero.
        Self { state: mix(seed).max(1) }
    }

    /// A number from 0 up to but without `end`; 0 when there is none.
    pub(super) fn below(&mut self, end: usize) -> usize {
        self.state ^= self.state << 13;
        self.state ^= self.state >> 7;
        self.state ^= self.state << 17;
        let number = (self.state >> 11).checked_rem(end as u64).unwrap_or(0);
        usize::try_from(number).unwrap_or(0)
    }

    /// The place of the largest score; of several equal ones, any.
    pub(super) fn largest(&mut self, scores: impl IntoIterator<Item = f64>) -> Option<usize> {
        let (mut best, mut most, mut equal) = (None, f64::NEG_INFINITY, 0);
        for (at, score) in scores.into_iter().enumerate() {
            if score > most {
                (best, most, equal) = (Some(at), score, 1);
            } else if score == most {
                equal += 1;
                // Each of the equal ones has the same chance in the end.
                if self.below(equal) == 0 {
                    best = Some(at);
                }
            }
        }
        best
    }
}

/// Spreads a number over all 64 bits: a step of SplitMix64.
pub(super) const fn mix(number: u64) -> u64 {
    chance::mix(number.wrapping_add(chance::GAMMA))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_seed_decides_the_row_and_every_number_comes() {
        let row = |seed| {
            let mut chance = Chance::new(seed);
            (0..64).map(|_| chance.below(8)).collect::<Vec<_>>()
        };
        assert_eq!(row(0), row(0));
        assert_ne!(row(0), row(1));
        assert!((0..8).all(|number| row(0).contains(&number)));
        assert_eq!(Chance::new(1).below(0), 0);
    }

    #[test]
    fn the_largest_wins_and_equal_ones_take_turns() {
        let mut chance = Chance::new(3);
        assert_eq!(chance.largest([1.0, 3.0, 2.0]), Some(1));
        assert_eq!(chance.largest([]), None);
        let mut counts = [0; 3];
        for _ in 0..300 {
            counts[chance.largest([5.0, 1.0, 5.0]).unwrap()] += 1;
        }
        assert!(counts[0] > 100 && counts[1] == 0 && counts[2] > 100, "{counts:?}");
    }
}
