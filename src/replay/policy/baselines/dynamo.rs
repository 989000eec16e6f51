//! Blocks to compute plus blocks in use: the KV router of NVIDIA Dynamo (ai-dynamo/dynamo,
//! lib/kv-router/src/scheduling/selector/default.rs; docs.nvidia.com/dynamo, "Router Design").
//!
//! A server costs `weight x (tokens that wait for prefill there + the prompt's uncached ones) / block` plus the
//! blocks that would be in use there with this prompt, a block shared by several counted once. Output is not
//! counted, which is the default. The lowest cost wins (temperature 0), of equal ones any. The published router
//! is told by servers what they cache; here it goes by what it sent, its own mode without such events.

use super::{
    BaselineSetup, Caches, Chance, ServerView,
    front::{Chooser, Load, Prompt},
};
use std::collections::HashMap;

/// Weight of blocks to compute.
const PREFILL_WEIGHT: f64 = 1.0;

/// Blocks in use on one server.
#[derive(Clone, Debug, Default)]
struct InUse {
    /// Users of each block.
    users: HashMap<u64, usize>,
    /// Blocks that have no id.
    others: u64,
}

/// What was sent where, and what of it has not ended.
#[derive(Clone, Debug)]
pub(super) struct Dynamo {
    caches: Caches,
    chance: Chance,
    block_tokens: u64,
    servers: Vec<InUse>,
    /// Blocks of each request, and how many more without an id.
    requests: HashMap<usize, (Vec<u64>, u64)>,
}

// === impl Dynamo ===

impl Dynamo {
    /// Nothing sent yet.
    pub(super) fn new(caches: Caches, chance: Chance, setup: &BaselineSetup) -> Self {
        Self {
            caches,
            chance,
            block_tokens: setup.block_tokens.max(1),
            servers: vec![InUse::default(); setup.servers],
            requests: HashMap::new(),
        }
    }

    /// Blocks of a prompt that have no id.
    fn others(&self, prompt: &Prompt<'_>) -> u64 {
        prompt.input.div_ceil(self.block_tokens).saturating_sub(prompt.blocks.len() as u64)
    }

    fn cost(&self, prompt: &Prompt<'_>, server: usize, load: &Load) -> f64 {
        let prefill = load.prefill + self.caches.uncached(server, prompt);
        let prefill = prefill as f64 / self.block_tokens as f64;
        let in_use = self.servers.get(server).map_or(0, |here| {
            let new = prompt.blocks.iter().filter(|block| !here.users.contains_key(*block));
            here.users.len() as u64 + here.others + new.count() as u64 + self.others(prompt)
        });
        PREFILL_WEIGHT * prefill + in_use as f64
    }
}

impl Chooser for Dynamo {
    fn choose(&mut self, prompt: &Prompt<'_>, loads: &[Load], _: &[ServerView]) -> Option<usize> {
        let cost = |(server, load)| -self.cost(prompt, server, load);
        let costs: Vec<f64> = loads.iter().enumerate().map(cost).collect();
        self.chance.largest(costs)
    }

    fn placed(&mut self, prompt: &Prompt<'_>, server: usize) -> u64 {
        let uncached = self.caches.touch(server, prompt);
        let others = self.others(prompt);
        if let Some(here) = self.servers.get_mut(server) {
            here.others += others;
            for block in prompt.blocks {
                *here.users.entry(*block).or_default() += 1;
            }
        }
        self.requests.insert(prompt.request, (prompt.blocks.to_vec(), others));
        uncached
    }

    fn ended(&mut self, request: usize, server: usize) {
        let Some((blocks, others)) = self.requests.remove(&request) else { return };
        let Some(here) = self.servers.get_mut(server) else { return };
        here.others = here.others.saturating_sub(others);
        for block in blocks {
            let Some(users) = here.users.get_mut(&block) else { continue };
            *users = users.saturating_sub(1);
            if *users == 0 {
                here.users.remove(&block);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{
        super::samples::{loads, prompt, setup},
        *,
    };

    fn dynamo() -> Dynamo {
        Dynamo::new(Caches::new(&setup(2)), Chance::new(1), &setup(2))
    }

    #[test]
    fn blocks_to_compute_and_blocks_in_use_are_added() {
        let mut policy = dynamo();
        let none = Load::default();
        let four = prompt(&[1, 2, 3, 4]);
        // Four blocks and a hundred tokens to compute, five blocks in use.
        let empty = (4.0 * 512.0 + 100.0) / 512.0 + 5.0;
        assert_eq!(policy.cost(&four, 0, &none), empty);
        policy.placed(&prompt(&[1, 2]), 0);
        // Two fewer to compute; one more in use, for two are shared.
        assert_eq!(policy.cost(&four, 0, &none), empty - 2.0 + 1.0);
        assert_eq!(policy.choose(&four, &loads([1, 0]), &[]), Some(0));
        let waits = [Load { requests: 1, prefill: 1024 }, none];
        assert_eq!(policy.choose(&four, &waits, &[]), Some(1));
        policy.ended(0, 0);
        assert_eq!(policy.cost(&four, 0, &none), empty - 2.0, "the cache stays");
    }

    #[test]
    fn what_ended_is_no_longer_in_use() {
        let mut policy = dynamo();
        policy.placed(&Prompt { request: 1, ..prompt(&[1, 2]) }, 1);
        policy.placed(&Prompt { request: 2, ..prompt(&[1, 3]) }, 1);
        policy.ended(1, 1);
        let mut left: Vec<u64> = policy.servers[1].users.keys().copied().collect();
        left.sort_unstable();
        assert_eq!((left, policy.servers[1].others), (vec![1, 3], 1));
        policy.ended(2, 1);
        policy.ended(2, 1);
        assert!(policy.servers[1].users.is_empty() && policy.requests.is_empty());
    }
}
