//! Chance that a seed decides. Each use has a row of numbers of its own, so that no option changes what another
//! draws.

/// What is drawn.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Draw {
    /// How much later requests come.
    Jitter = 1,
    /// Whose they are.
    Tenants = 2,
    /// How long their answers are.
    Outputs = 3,
    /// What a flood asks for.
    Flood = 4,
    /// When refused callers come back.
    Returns = 5,
}

/// A row of numbers: SplitMix64 (Steele et al., OOPSLA 2014).
#[derive(Clone, Debug)]
pub(super) struct Chance {
    state: u64,
}

/// What one number is from the next.
pub(in crate::replay) const GAMMA: u64 = 0x9e37_79b9_7f4a_7c15;

// === impl Chance ===

impl Chance {
    /// The row of one use. Any seed will do.
    pub(super) const fn new(seed: u64, draw: Draw) -> Self {
        Self { state: mix(seed ^ mix(draw as u64)) }
    }

    /// A number from 0.0 up to but without 1.0.
    pub(super) fn unit(&mut self) -> f64 {
        self.state = self.state.wrapping_add(GAMMA);
        (mix(self.state) >> 11) as f64 / (1_u64 << 53) as f64
    }

    /// A number from 0 up to but without `end`; 0 when there is none.
    pub(super) fn below(&mut self, end: usize) -> usize {
        ((self.unit() * end as f64) as usize).min(end.saturating_sub(1))
    }
}

/// Spreads a number over all 64 bits: the last step of SplitMix64.
pub(in crate::replay) const fn mix(number: u64) -> u64 {
    let mut mixed = (number ^ (number >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    mixed ^ (mixed >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_seed_and_a_use_decide_the_row_and_every_number_comes() {
        let row = |seed, draw| {
            let mut chance = Chance::new(seed, draw);
            (0..64).map(|_| chance.below(8)).collect::<Vec<_>>()
        };
        assert_eq!(row(1, Draw::Flood), row(1, Draw::Flood));
        assert_ne!(row(1, Draw::Flood), row(2, Draw::Flood));
        assert_ne!(row(1, Draw::Flood), row(1, Draw::Tenants));
        assert!((0..8).all(|number| row(1, Draw::Jitter).contains(&number)));
        assert_eq!(Chance::new(0, Draw::Returns).below(0), 0);
        let mut chance = Chance::new(9, Draw::Returns);
        let mean = (0..10_000).map(|_| chance.unit()).sum::<f64>() / 10_000.0;
        assert!((0.49..0.51).contains(&mean), "{mean}");
    }
}
