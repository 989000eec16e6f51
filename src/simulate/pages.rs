//! The KV cache of a played server: pages, and full blocks of prompts that stay for the next request.
//!
//! A block is pinned while a sequence uses it. Unpinned it stays until its pages are needed, least recently
//! used first; of one prompt the last block goes first, so that what is left is always a beginning.

use std::collections::{BTreeMap, HashMap};

/// Tokens in one page.
pub const PAGE_TOKENS: u64 = 16;

/// Pages that hold so many tokens.
pub const fn pages_for(tokens: u64) -> u64 {
    tokens.div_ceil(PAGE_TOKENS)
}

/// Pages and blocks of one server.
#[derive(Clone, Debug)]
pub struct Pages {
    total: u64,
    /// Pages of sequences and of pinned blocks.
    used: u64,
    /// Pages of blocks that nobody uses now.
    idle: u64,
    blocks: HashMap<u64, Block>,
    /// Blocks that nobody uses, by when they were last used.
    oldest: BTreeMap<u64, u64>,
    stamp: u64,
}

#[derive(Clone, Copy, Debug)]
struct Block {
    users: u32,
    pages: u64,
    stamp: u64,
}

impl Pages {
    /// An empty cache of so many pages, at least one.
    pub fn new(total: u64) -> Self {
        Self {
            total: total.max(1),
            used: 0,
            idle: 0,
            blocks: HashMap::new(),
            oldest: BTreeMap::new(),
            stamp: 0,
        }
    }

    /// All of them.
    pub const fn total(&self) -> u64 {
        self.total
    }

    /// Those in use; blocks that nobody uses now do not count.
    pub const fn used(&self) -> u64 {
        self.used
    }

    /// How many of these blocks, from the first on, are here.
    pub fn known(&self, blocks: &[u64]) -> usize {
        blocks.iter().take_while(|block| self.blocks.contains_key(*block)).count()
    }

    /// Takes pages for a sequence; blocks that nobody uses make room. False, and nothing changed, if
    /// there are not as many.
    pub fn take(&mut self, pages: u64) -> bool {
        if self.used.saturating_add(pages) > self.total {
            return false;
        }
        while self.total - self.used - self.idle < pages {
            let Some((_, block)) = self.oldest.pop_first() else { return false };
            if let Some(gone) = self.blocks.remove(&block) {
                self.idle = self.idle.saturating_sub(gone.pages);
            }
        }
        self.used += pages;
        true
    }

    /// Gives pages of a sequence back.
    pub fn give(&mut self, pages: u64) {
        self.used = self.used.saturating_sub(pages);
    }

    /// Pins blocks that are here.
    pub fn pin(&mut self, blocks: &[u64]) {
        for id in blocks {
            let Some(block) = self.blocks.get_mut(id) else { continue };
            if block.users == 0 {
                self.oldest.remove(&block.stamp);
                self.idle = self.idle.saturating_sub(block.pages);
                self.used += block.pages;
            }
            block.users += 1;
        }
    }

    /// Makes pages that a sequence filled a block for others, pinned by that sequence. False if the block is
    /// here already: the pages stay the sequence's own.
    pub fn share(&mut self, id: u64, pages: u64) -> bool {
        if self.blocks.contains_key(&id) {
            return false;
        }
        self.blocks.insert(id, Block { users: 1, pages, stamp: 0 });
        true
    }

    /// Lets go of blocks, the last one first.
    pub fn unpin(&mut self, blocks: &[u64]) {
        for id in blocks.iter().rev() {
            let Some(block) = self.blocks.get_mut(id) else { continue };
            block.users = block.users.saturating_sub(1);
            if block.users == 0 {
                self.stamp += 1;
                block.stamp = self.stamp;
                self.oldest.insert(self.stamp, *id);
                self.used = self.used.saturating_sub(block.pages);
                self.idle += block.pages;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_stay_until_their_pages_are_needed_and_the_last_goes_first() {
        let mut pages = Pages::new(8);
        assert!(pages.take(6));
        for block in [1, 2, 3] {
            assert!(pages.share(block, 2));
        }
        pages.unpin(&[1, 2, 3]);
        assert_eq!((pages.used(), pages.known(&[1, 2, 3])), (0, 3));
        assert!(pages.take(4), "two were free, two are the last block's");
        assert_eq!(pages.known(&[1, 2, 3]), 2);
        pages.pin(&[1, 2]);
        assert!(!pages.take(1), "pinned blocks stay");
        pages.unpin(&[1, 2]);
        pages.give(4);
        assert!(pages.take(8));
        assert_eq!((pages.used(), pages.known(&[1])), (8, 0));
    }

    #[test]
    fn a_block_that_is_here_is_not_shared_twice() {
        let mut pages = Pages::new(8);
        assert!(pages.take(4));
        assert!(pages.share(1, 2));
        assert!(!pages.share(1, 2));
        pages.pin(&[1]);
        pages.unpin(&[1]);
        assert_eq!(pages.used(), 4, "one user is left");
    }
}
