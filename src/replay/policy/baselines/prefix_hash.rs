//! Consistent hashing of the prompt's beginning, bounded by load: `prefix_hash` of SGLang's gateway
//! (sgl-project/sglang, sgl-model-gateway/src/policies/prefix_hash.rs).
//!
//! The first 256 tokens name a place on a ring and so a server. If that has more than 1.25 times the mean of
//! requests in flight, the server with the fewest is taken instead. A trace names blocks of 512 tokens, so the
//! first block stands for the first 256 tokens. A prompt without a full block counts as unlike all others.

use super::{
    ServerView,
    chance::mix,
    front::{Chooser, Load, Prompt, least},
};

/// A server may have so many times the mean load.
const LOAD_FACTOR: f64 = 1.25;
/// Places of each server on the ring.
const PLACES: u64 = 160;

/// The ring.
#[derive(Clone, Debug)]
pub(super) struct PrefixHash {
    /// Place and server, by place.
    ring: Vec<(u64, usize)>,
}

// === impl PrefixHash ===

impl PrefixHash {
    /// A ring of so many servers.
    pub(super) fn new(servers: usize) -> Self {
        let places = |server| (0..PLACES).map(move |at| (mix(mix(server as u64) ^ at), server));
        let mut ring: Vec<_> = (0..servers).flat_map(places).collect();
        ring.sort_unstable();
        Self { ring }
    }

    fn owner(&self, prompt: &Prompt<'_>) -> Option<usize> {
        // Requests' numbers and blocks' ids must not meet.
        let alone = || mix(prompt.request as u64 ^ (1 << 63));
        let place = prompt.blocks.first().map_or_else(alone, |block| mix(*block));
        let at = self.ring.partition_point(|(other, _)| *other < place);
        self.ring.get(at).or_else(|| self.ring.first()).map(|(_, server)| *server)
    }
}

impl Chooser for PrefixHash {
    fn choose(&mut self, prompt: &Prompt<'_>, loads: &[Load], _: &[ServerView]) -> Option<usize> {
        let owner = self.owner(prompt)?;
        let total: usize = loads.iter().map(|load| load.requests).sum();
        let most = (total + 1) as f64 / loads.len().max(1) as f64 * LOAD_FACTOR;
        if total == 0 || loads.get(owner).is_some_and(|load| load.requests as f64 <= most) {
            return Some(owner);
        }
        least(loads, 0..loads.len())
    }
}

#[cfg(test)]
mod tests {
    use super::{
        super::samples::{loads, prompt},
        *,
    };

    #[test]
    fn the_same_beginning_goes_to_the_same_server_until_that_has_too_much() {
        let mut policy = PrefixHash::new(4);
        let owner = policy.choose(&prompt(&[7, 1]), &loads([0; 4]), &[]).unwrap();
        assert_eq!(policy.choose(&prompt(&[7, 2, 3]), &loads([5; 4]), &[]), Some(owner));
        let mut some = [4; 4];
        some[owner] = 5;
        assert_eq!(
            policy.choose(&prompt(&[7]), &loads(some), &[]),
            Some(owner),
            "5 <= 1.25 * 18/4"
        );
        some[owner] = 7;
        let other = (owner + 2) % 4;
        some[other] = 3;
        assert_eq!(policy.choose(&prompt(&[7]), &loads(some), &[]), Some(other));
    }

    #[test]
    fn beginnings_spread_and_most_stay_when_a_server_comes() {
        let (few, more) = (PrefixHash::new(4), PrefixHash::new(5));
        let (mut counts, mut moved) = ([0; 4], 0);
        for block in 0..1000 {
            let blocks = [block];
            let before = few.owner(&prompt(&blocks)).unwrap();
            counts[before] += 1;
            let after = more.owner(&prompt(&blocks)).unwrap();
            moved += usize::from(before != after);
            assert!(before == after || after == 4, "only the new one takes");
        }
        assert!(counts.iter().all(|count| *count > 150), "{counts:?}");
        assert!((100..300).contains(&moved), "{moved}");
    }
}
