//! Weighted scores of servers: the default profile of the Gateway API Inference Extension and llm-d
//! (kubernetes-sigs/gateway-api-inference-extension, pkg/epp/config/loader/defaults.go and the scorers
//! queuedepth, kvcacheutilization and prefix under pkg/epp/framework/plugins/scheduling).
//!
//! Three scores from 0 to 1: the known share of the prompt's blocks (weight 3), the queue between the longest
//! (0) and the shortest (1) of all servers (weight 2), and the free share of the KV cache (weight 2). The largest
//! sum wins, of equal ones any. Queue and cache are what metrics pages said, up to 50 ms ago.

use super::{
    Caches, Chance, ServerView,
    front::{Chooser, Load, Prompt},
};

/// Weight of the known share of the prompt.
const PREFIX_WEIGHT: f64 = 3.0;
/// Weight of the queue.
const QUEUE_WEIGHT: f64 = 2.0;
/// Weight of the free share of the KV cache.
const KV_WEIGHT: f64 = 2.0;

/// What was sent where.
#[derive(Clone, Debug)]
pub(super) struct Gie {
    caches: Caches,
    chance: Chance,
}

/// The share of a server's KV cache that is in use, 0 to 1.
pub(super) fn kv_share(server: &ServerView) -> f64 {
    server.used as f64 / server.capacity.max(1) as f64
}

// === impl Gie ===

impl Gie {
    /// Nothing sent yet.
    pub(super) const fn new(caches: Caches, chance: Chance) -> Self {
        Self { caches, chance }
    }

    /// The best of these servers.
    pub(super) fn best(
        &mut self,
        prompt: &Prompt<'_>,
        candidates: &[(usize, ServerView)],
    ) -> Option<usize> {
        let waiting = || candidates.iter().map(|(_, server)| server.waiting);
        let (longest, shortest) = (waiting().max()?, waiting().min()?);
        let score = |(at, server): &(usize, ServerView)| {
            let known = self.caches.known(*at, prompt) as f64;
            let prefix = known / prompt.blocks.len().max(1) as f64;
            let queue = if longest == shortest {
                1.0
            } else {
                (longest - server.waiting) as f64 / (longest - shortest) as f64
            };
            PREFIX_WEIGHT * prefix + QUEUE_WEIGHT * queue + KV_WEIGHT * (1.0 - kv_share(server))
        };
        let scores: Vec<f64> = candidates.iter().map(score).collect();
        let best = self.chance.largest(scores)?;
        candidates.get(best).map(|(server, _)| *server)
    }
}

impl Chooser for Gie {
    fn choose(&mut self, prompt: &Prompt<'_>, _: &[Load], seen: &[ServerView]) -> Option<usize> {
        let candidates: Vec<_> = seen.iter().copied().enumerate().collect();
        self.best(prompt, &candidates)
    }

    fn placed(&mut self, prompt: &Prompt<'_>, server: usize) -> u64 {
        self.caches.touch(server, prompt)
    }
}

#[cfg(test)]
mod tests {
    use super::{
        super::samples::{prompt, setup},
        *,
    };

    fn seen<const N: usize>(servers: [(usize, u64); N]) -> [ServerView; N] {
        servers.map(|(waiting, used)| ServerView { running: 0, waiting, used, capacity: 100 })
    }

    #[test]
    fn the_scores_are_weighed_3_2_2() {
        let mut policy = Gie::new(Caches::new(&setup(3)), Chance::new(1));
        policy.placed(&prompt(&[1, 2]), 2);
        let mut choose = |blocks, servers| policy.choose(&prompt(blocks), &[], &seen(servers));
        // Half the prompt is 1.5; the whole cache is 2.0.
        assert_eq!(choose(&[1, 5], [(0, 0), (0, 9), (0, 70)]), Some(2));
        assert_eq!(choose(&[1, 5], [(0, 0), (0, 9), (0, 80)]), Some(0));
        // The whole prompt is 3.0; queue and cache together are 4.0.
        assert_eq!(choose(&[1, 2], [(0, 50), (7, 0), (9, 90)]), Some(2));
        assert_eq!(choose(&[1, 2], [(0, 10), (7, 0), (9, 90)]), Some(0));
    }

    #[test]
    fn equal_servers_are_drawn() {
        let mut policy = Gie::new(Caches::new(&setup(3)), Chance::new(1));
        let mut choose = || policy.choose(&prompt(&[]), &[], &seen([(0, 5), (0, 9), (0, 5)]));
        let row: Vec<_> = (0..40).map(|_| choose().unwrap()).collect();
        assert!(row.contains(&0) && row.contains(&2) && !row.contains(&1), "{row:?}");
    }
}
