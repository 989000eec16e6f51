//! What a policy believes servers' caches hold: the blocks that it sent there, least recently used out first.
//!
//! A block's id stands for the whole prompt up to there, so a set of ids says the same as a radix tree of
//! prompts whose edges are whole blocks.

use super::{BaselineSetup, front::Prompt};
use std::collections::{BTreeMap, HashMap};

/// Blocks of one server.
#[derive(Clone, Debug, Default)]
struct Blocks {
    /// When each was last used.
    used: HashMap<u64, u64>,
    /// The same by when.
    oldest: BTreeMap<u64, u64>,
    stamp: u64,
}

/// Blocks of all servers.
#[derive(Clone, Debug)]
pub(super) struct Caches {
    servers: Vec<Blocks>,
    /// The most blocks of one server.
    blocks_max: usize,
    block_tokens: u64,
}

// === impl Blocks ===

impl Blocks {
    fn known(&self, blocks: &[u64]) -> usize {
        blocks.iter().take_while(|block| self.used.contains_key(*block)).count()
    }

    fn touch(&mut self, blocks: &[u64], blocks_max: usize) {
        // The last block is the oldest, so that what is left of a prompt is always a beginning.
        for block in blocks.iter().rev() {
            self.stamp += 1;
            if let Some(before) = self.used.insert(*block, self.stamp) {
                self.oldest.remove(&before);
            }
            self.oldest.insert(self.stamp, *block);
        }
        while self.used.len() > blocks_max {
            let Some((_, gone)) = self.oldest.pop_first() else { return };
            self.used.remove(&gone);
        }
    }
}

// === impl Caches ===

impl Caches {
    /// Empty caches as large as the servers'.
    pub(super) fn new(setup: &BaselineSetup) -> Self {
        let blocks_max = setup.kv_tokens.checked_div(setup.block_tokens).unwrap_or(0);
        Self {
            servers: vec![Blocks::default(); setup.servers],
            blocks_max: usize::try_from(blocks_max).unwrap_or(usize::MAX),
            block_tokens: setup.block_tokens,
        }
    }

    /// Blocks that the prompt begins with and a server has.
    pub(super) fn known(&self, server: usize, prompt: &Prompt<'_>) -> usize {
        self.servers.get(server).map_or(0, |blocks| blocks.known(prompt.blocks))
    }

    /// Tokens of the prompt that a server has not; at least one, for a server computes the last one always.
    pub(super) fn uncached(&self, server: usize, prompt: &Prompt<'_>) -> u64 {
        let known = (self.known(server, prompt) as u64).saturating_mul(self.block_tokens);
        prompt.input.saturating_sub(known).max(1)
    }

    /// The prompt went to a server. Gives the tokens of it that the server had not.
    pub(super) fn touch(&mut self, server: usize, prompt: &Prompt<'_>) -> u64 {
        let uncached = self.uncached(server, prompt);
        if let Some(blocks) = self.servers.get_mut(server) {
            blocks.touch(prompt.blocks, self.blocks_max);
        }
        uncached
    }
}

#[cfg(test)]
mod tests {
    use super::{
        super::samples::{prompt, setup},
        *,
    };

    #[test]
    fn the_beginning_counts_and_at_least_one_token_is_computed() {
        let mut caches = Caches::new(&setup(2));
        caches.touch(1, &prompt(&[1, 2, 3]));
        assert_eq!(caches.known(1, &prompt(&[1, 2, 9, 3])), 2);
        assert_eq!(caches.known(1, &prompt(&[2, 3])), 2, "ids stand for whole beginnings");
        assert_eq!(caches.known(0, &prompt(&[1])), 0);
        let whole = Prompt { input: 1024, ..prompt(&[1, 2]) };
        assert_eq!((caches.uncached(1, &whole), caches.uncached(0, &whole)), (1, 1024));
    }

    #[test]
    fn the_least_recently_used_go_first_and_of_one_prompt_the_last() {
        let mut caches = Caches::new(&BaselineSetup { kv_tokens: 4 * 512, ..setup(1) });
        caches.touch(0, &prompt(&[1, 2]));
        caches.touch(0, &prompt(&[3, 4]));
        caches.touch(0, &prompt(&[1, 2]));
        caches.touch(0, &prompt(&[5]));
        assert_eq!(caches.known(0, &prompt(&[3, 4])), 1);
        assert_eq!(caches.known(0, &prompt(&[1, 2])), 2);
        assert_eq!(caches.known(0, &prompt(&[5])), 1);
    }
}
