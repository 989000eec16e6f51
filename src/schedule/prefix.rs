//! Which beginnings of prompts a server has in its cache, as far as we can know.
//!
//! Fed by what we place there, and corrected by the server's own events where it sends them. As large as the
//! server's cache, least recently used first out. Of one prompt the last block is the oldest, so what is left of
//! it is always a beginning, and how much of a prompt is here is found by halving.

use std::collections::HashMap;

/// No entry.
const NONE: u32 = u32::MAX;

/// The blocks of one server.
#[derive(Clone, Debug)]
pub struct PrefixIndex {
    cells: Vec<Cell>,
    free: Vec<u32>,
    by_hash: HashMap<u64, u32>,
    /// Least recently used and most, of the blocks that nobody uses now: the others are in no order.
    oldest: u32,
    newest: u32,
    /// Blocks that running requests use.
    pinned: usize,
    limit: usize,
    version: u64,
}

#[derive(Clone, Copy, Debug)]
struct Cell {
    hash: u64,
    older: u32,
    newer: u32,
    users: u32,
    /// The server has it. Not so for one that only waits for its users to end.
    here: bool,
}

impl PrefixIndex {
    /// An empty index of at most `limit` blocks beside those in use.
    pub fn new(limit: usize) -> Self {
        Self {
            cells: Vec::new(),
            free: Vec::new(),
            by_hash: HashMap::new(),
            oldest: NONE,
            newest: NONE,
            pinned: 0,
            limit,
            version: 0,
        }
    }

    /// Changes the limit; what is too much goes.
    pub fn set_limit(&mut self, limit: usize) {
        self.limit = limit;
        self.trim();
    }

    /// Changes whenever what it knows does.
    pub const fn version(&self) -> u64 {
        self.version
    }

    /// Blocks that are known.
    pub fn len(&self) -> usize {
        self.by_hash.len()
    }

    /// True when no block is known.
    pub fn is_empty(&self) -> bool {
        self.by_hash.is_empty()
    }

    /// Blocks that running requests use, each counted once.
    pub const fn pinned(&self) -> usize {
        self.pinned
    }

    /// How many blocks of a prompt, from its first on, the server has.
    pub fn known(&self, blocks: &[u64]) -> usize {
        // What is here of a prompt is a beginning: halving finds its end.
        blocks.partition_point(|hash| self.cell(*hash).is_some_and(|cell| cell.here))
    }

    /// How many blocks of a prompt, from its first on, running requests use.
    pub fn pinned_of(&self, blocks: &[u64]) -> usize {
        blocks.partition_point(|hash| self.cell(*hash).is_some_and(|cell| cell.users > 0))
    }

    /// A request with these blocks goes to the server: it will have them, and they are in use.
    pub fn pin(&mut self, blocks: &[u64]) {
        self.version += 1;
        for hash in blocks.iter().rev() {
            let at = self.find_or_add(*hash);
            if self.cells.get(at as usize).is_some_and(|cell| cell.users == 0) {
                self.unlink(at);
                self.pinned += 1;
            }
            let Some(cell) = self.cells.get_mut(at as usize) else { continue };
            cell.here = true;
            cell.users += 1;
        }
        self.trim();
    }

    /// That request is gone. If it was not computed, what nobody else uses is forgotten.
    pub fn unpin(&mut self, blocks: &[u64], computed: bool) {
        self.version += 1;
        for hash in blocks.iter().rev() {
            let Some(at) = self.by_hash.get(hash).copied() else { continue };
            let Some(cell) = self.cells.get_mut(at as usize) else { continue };
            if cell.users == 0 {
                continue;
            }
            cell.users -= 1;
            if cell.users > 0 {
                continue;
            }
            let here = cell.here && computed;
            self.pinned -= 1;
            self.link_newest(at);
            if !here {
                self.forget(at);
            }
        }
        self.trim();
    }

    /// The server says that it has these, in the order of the prompt.
    pub fn stored(&mut self, blocks: &[u64]) {
        self.version += 1;
        for hash in blocks.iter().rev() {
            let at = self.find_or_add(*hash);
            if let Some(cell) = self.cells.get_mut(at as usize) {
                cell.here = true;
            }
            self.freshen(at);
        }
        self.trim();
    }

    /// The server says that it has these no more.
    pub fn removed(&mut self, blocks: &[u64]) {
        self.version += 1;
        for hash in blocks {
            let Some(at) = self.by_hash.get(hash).copied() else { continue };
            let Some(cell) = self.cells.get_mut(at as usize) else { continue };
            cell.here = false;
            if cell.users == 0 {
                self.forget(at);
            }
        }
    }

    /// Nothing is known any more, but for what is in use: that the server will have again.
    pub fn clear(&mut self) {
        self.version += 1;
        let idle: Vec<u32> = self.by_hash.values().copied().collect();
        for at in idle {
            if self.cells.get(at as usize).is_some_and(|cell| cell.users == 0) {
                self.forget(at);
            }
        }
    }

    fn cell(&self, hash: u64) -> Option<&Cell> {
        self.cells.get(*self.by_hash.get(&hash)? as usize)
    }

    fn find_or_add(&mut self, hash: u64) -> u32 {
        if let Some(at) = self.by_hash.get(&hash) {
            return *at;
        }
        let cell = Cell { hash, older: NONE, newer: NONE, users: 0, here: false };
        let at = match self.free.pop() {
            Some(at) => at,
            None => {
                self.cells.push(cell);
                // One cell is 32 bytes: memory ends long before the numbers do.
                u32::try_from(self.cells.len() - 1).unwrap_or(NONE)
            }
        };
        if let Some(place) = self.cells.get_mut(at as usize) {
            *place = cell;
        }
        self.by_hash.insert(hash, at);
        self.link_newest(at);
        at
    }

    fn freshen(&mut self, at: u32) {
        let used = self.cells.get(at as usize).is_none_or(|cell| cell.users > 0);
        if !used && self.newest != at {
            self.unlink(at);
            self.link_newest(at);
        }
    }

    fn link_newest(&mut self, at: u32) {
        let newest = self.newest;
        if let Some(cell) = self.cells.get_mut(at as usize) {
            (cell.older, cell.newer) = (newest, NONE);
        }
        match self.cells.get_mut(newest as usize) {
            Some(before) => before.newer = at,
            None => self.oldest = at,
        }
        self.newest = at;
    }

    fn unlink(&mut self, at: u32) {
        let Some(Cell { older, newer, .. }) = self.cells.get(at as usize).copied() else { return };
        match self.cells.get_mut(older as usize) {
            Some(cell) => cell.newer = newer,
            None => self.oldest = newer,
        }
        match self.cells.get_mut(newer as usize) {
            Some(cell) => cell.older = older,
            None => self.newest = older,
        }
    }

    /// Of one that nobody uses.
    fn forget(&mut self, at: u32) {
        self.unlink(at);
        if let Some(cell) = self.cells.get(at as usize) {
            self.by_hash.remove(&cell.hash);
            self.free.push(at);
        }
    }

    /// What is in use takes its part of the cache; beside it the rest may stay.
    fn trim(&mut self) {
        while self.by_hash.len() > self.limit.max(self.pinned) && self.oldest != NONE {
            self.forget(self.oldest);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn what_was_placed_is_known_and_the_end_goes_first() {
        let mut index = PrefixIndex::new(4);
        index.pin(&[1, 2, 3]);
        assert_eq!((index.known(&[1, 2, 3, 4]), index.pinned()), (3, 3));
        index.unpin(&[1, 2, 3], true);
        index.pin(&[1, 9]);
        index.unpin(&[1, 9], true);
        assert_eq!(index.known(&[1, 2, 3]), 3);
        index.pin(&[7]);
        assert_eq!(index.known(&[1, 2, 3]), 2, "the last block of the oldest prompt made room");
        index.unpin(&[7], true);
        index.set_limit(1);
        assert_eq!((index.len(), index.known(&[7])), (1, 1));
    }

    #[test]
    fn what_was_never_computed_is_not_known_afterwards() {
        let mut index = PrefixIndex::new(10);
        index.pin(&[1, 2]);
        index.pin(&[1]);
        index.unpin(&[1, 2], false);
        assert_eq!((index.known(&[1, 2]), index.pinned()), (1, 1));
        index.unpin(&[1], true);
        assert_eq!((index.known(&[1]), index.pinned()), (1, 0));
    }

    #[test]
    fn the_servers_word_goes_before_ours() {
        let mut index = PrefixIndex::new(10);
        index.stored(&[1, 2, 3]);
        assert_eq!(index.known(&[1, 2, 3]), 3);
        index.removed(&[3]);
        assert_eq!(index.known(&[1, 2, 3]), 2);
        index.pin(&[1, 2]);
        index.removed(&[2]);
        assert_eq!((index.known(&[1, 2]), index.pinned()), (1, 2), "it is still in use");
        index.unpin(&[1, 2], true);
        assert_eq!((index.known(&[1, 2]), index.pinned(), index.len()), (1, 0, 1));
        index.clear();
        assert!(index.is_empty());
    }

    proptest! {
        /// Whatever comes and goes: what is pinned is counted once, the bound holds, and nothing stays pinned.
        #[test]
        fn pins_add_up(steps in prop::collection::vec((0u8..5, 0u64..6, 1usize..6), 0..80)) {
            let mut index = PrefixIndex::new(8);
            let mut running: Vec<Vec<u64>> = Vec::new();
            for (what, from, length) in steps {
                let blocks: Vec<u64> = (0..length as u64).map(|at| from * 100 + at).collect();
                match what {
                    0 | 1 => { index.pin(&blocks); running.push(blocks); }
                    2 if !running.is_empty() => {
                        let gone = running.remove(length % running.len());
                        index.unpin(&gone, from % 2 == 0);
                    }
                    3 => index.removed(&blocks),
                    4 => index.stored(&blocks),
                    _ => {}
                }
                let distinct: std::collections::BTreeSet<u64> = running.iter().flatten().copied().collect();
                prop_assert_eq!(index.pinned(), distinct.len());
                prop_assert!(index.len() <= 8.max(distinct.len()));
            }
            for blocks in running {
                index.unpin(&blocks, true);
            }
            prop_assert_eq!(index.pinned(), 0);
        }
    }
}
