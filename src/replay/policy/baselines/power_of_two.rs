//! Two random servers, and of these the one with fewer requests in flight (Mitzenmacher, "The Power of Two
//! Choices in Randomized Load Balancing", IEEE TPDS 2001; `power_of_two` of SGLang's gateway).

use super::{
    Chance, ServerView,
    front::{Chooser, Load, Prompt, least},
};

/// Chance.
#[derive(Clone, Debug)]
pub(super) struct PowerOfTwo {
    chance: Chance,
}

// === impl PowerOfTwo ===

impl PowerOfTwo {
    /// With this chance.
    pub(super) const fn new(chance: Chance) -> Self {
        Self { chance }
    }
}

impl Chooser for PowerOfTwo {
    fn choose(&mut self, _: &Prompt<'_>, loads: &[Load], _: &[ServerView]) -> Option<usize> {
        let servers = loads.len();
        let one = self.chance.below(servers);
        // Never the same twice, unless there is only one.
        let other = one + 1 + self.chance.below(servers.saturating_sub(1));
        least(loads, [one, other.checked_rem(servers)?].into_iter())
    }
}

#[cfg(test)]
mod tests {
    use super::{
        super::samples::{loads, prompt},
        *,
    };

    fn row<const N: usize>(seed: u64, requests: [usize; N]) -> Vec<usize> {
        let mut policy = PowerOfTwo::new(Chance::new(seed));
        let loads = loads(requests);
        (0..200).map(|_| policy.choose(&prompt(&[]), &loads, &[]).unwrap()).collect()
    }

    #[test]
    fn a_seed_decides() {
        assert_eq!(row(5, [0; 8]), row(5, [0; 8]));
        assert_ne!(row(5, [0; 8]), row(6, [0; 8]));
    }

    #[test]
    fn the_worst_is_never_taken_and_not_always_the_best() {
        let row = row(1, [9, 0, 5, 7]);
        assert!(!row.contains(&0), "two different ones are drawn");
        assert!(row.contains(&1) && row.contains(&2) && row.contains(&3));
        assert!(self::row(1, [4]).iter().all(|server| *server == 0));
    }
}
