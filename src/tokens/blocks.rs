//! Hashes of a prompt's beginnings, block by block, out of the pass that counts it.
//!
//! Two prompts that share their first `n` hashes share their first `n` blocks, so their KV cache can be
//! shared too. The hashes are berthd's own: engines number their blocks by rules that change with version
//! and configuration.
//!
//! The format, which hosts must compute alike:
//!
//! * Every hash is HighwayHash-64 (Alakuijala, Cox and Wassenberg 2016) under the public key of its reference
//!   test vectors, the bytes 0 to 31.
//! * The root is the hash of the adapter's name and the cache salt, each as its length in bytes (32 bits,
//!   little-endian) and its UTF-8 bytes. Without adapter or salt the name is empty.
//! * A block's hash is that of its parent's hash (64 bits, little-endian), the root's for the first, and
//!   its token ids (32 bits each, little-endian). Only full blocks have one.
//!
//! The key is public, so a caller can make two prompts that meet: a hash is a hint where to look, and never
//! leave to serve one prompt's cache for another.

use super::{
    CountError, ModelFiles, Profile,
    memo::{Allowance, Sink},
};
use crate::{api::json::Object, units::Tokens};
use highway::{HighwayHash, HighwayHasher, Key};
use std::num::NonZeroU32;

/// The public key: bytes 0 to 31.
const KEY: Key = Key([
    0x0706_0504_0302_0100,
    0x0f0e_0d0c_0b0a_0908,
    0x1716_1514_1312_1110,
    0x1f1e_1d1c_1b1a_1918,
]);

/// What one chain of blocks is made for: prompts meet only where all of it is equal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BlockRule<'a> {
    /// Tokens in a block, as the server divides its cache.
    pub block_tokens: NonZeroU32,
    /// The adapter that runs, if any.
    pub adapter: &'a str,
    /// What keeps caches of tenants apart, if anything.
    pub salt: &'a str,
}

/// The hashes of a prompt's full blocks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PrefixBlocks {
    /// Tokens in each.
    pub block_tokens: NonZeroU32,
    /// One for each full block, in order; each stands for all before it too.
    pub hashes: Vec<u64>,
}

impl BlockRule<'_> {
    /// The hash that the first block's chain begins with.
    pub fn root(&self) -> u64 {
        let mut bytes = Vec::with_capacity(8 + self.adapter.len() + self.salt.len());
        for text in [self.adapter, self.salt] {
            let length = u32::try_from(text.len()).unwrap_or(u32::MAX);
            bytes.extend_from_slice(&length.to_le_bytes());
            bytes.extend_from_slice(text.as_bytes());
        }
        hash(&bytes)
    }

    /// The blocks of ids that are known.
    pub fn blocks(&self, ids: &[u32]) -> PrefixBlocks {
        let mut chain = Chain::new(self);
        chain.take(ids);
        chain.blocks()
    }
}

/// The hash of one block: `parent` is that of the block before it, for a first block [`BlockRule::root`], and
/// `ids` are its token ids, as many as a block has.
pub fn block_hash(parent: u64, ids: &[u32]) -> u64 {
    let mut hasher = HighwayHasher::new(KEY);
    hasher.append(&parent.to_le_bytes());
    for id in ids {
        hasher.append(&id.to_le_bytes());
    }
    hasher.finalize64()
}

fn hash(bytes: &[u8]) -> u64 {
    HighwayHasher::new(KEY).hash64(bytes)
}

/// Takes ids as they come, counts them and hashes what is full.
struct Chain {
    rule: NonZeroU32,
    root: u64,
    /// The parent's hash and the ids of the block that is filling.
    open: Vec<u8>,
    full: usize,
    hashes: Vec<u64>,
    tokens: u64,
}

impl Chain {
    fn new(rule: &BlockRule<'_>) -> Self {
        /// Bytes of a hash.
        const PARENT: usize = 8;
        // A block of any size that a server has fits; a larger one grows as it fills.
        let ids = usize::try_from(rule.block_tokens.get()).unwrap_or(usize::MAX);
        let full = ids.saturating_mul(4).saturating_add(PARENT);
        let root = rule.root();
        let mut chain = Self {
            rule: rule.block_tokens,
            root,
            open: Vec::with_capacity(full.min(4096)),
            full,
            hashes: Vec::new(),
            tokens: 0,
        };
        chain.clear();
        chain
    }

    fn blocks(self) -> PrefixBlocks {
        PrefixBlocks { block_tokens: self.rule, hashes: self.hashes }
    }

    fn begin(&mut self, parent: u64) {
        self.open.clear();
        self.open.extend_from_slice(&parent.to_le_bytes());
    }
}

impl Sink for Chain {
    fn take(&mut self, ids: &[u32]) {
        self.tokens += ids.len() as u64;
        for id in ids {
            self.open.extend_from_slice(&id.to_le_bytes());
            if self.open.len() >= self.full {
                let block = hash(&self.open);
                self.hashes.push(block);
                self.begin(block);
            }
        }
    }

    fn clear(&mut self) {
        self.tokens = 0;
        self.hashes.clear();
        self.begin(self.root);
    }
}

impl ModelFiles {
    /// The number of ids of a chat request's prompt, as [`ModelFiles::count_request`] tells it, and the
    /// hashes of its blocks, from one pass.
    ///
    /// # Errors
    /// As [`ModelFiles::count_request`].
    pub fn count_blocks(
        &self,
        profile: &Profile,
        fields: &Object<'_>,
        allowance: Allowance,
        rule: &BlockRule<'_>,
    ) -> Result<(Tokens, PrefixBlocks), CountError> {
        let mut chain = Chain::new(rule);
        self.prompt(profile, fields, allowance, &mut chain)?;
        Ok((Tokens(chain.tokens), chain.blocks()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rule(block_tokens: u32) -> BlockRule<'static> {
        BlockRule { block_tokens: NonZeroU32::new(block_tokens).unwrap(), adapter: "", salt: "" }
    }

    /// The first two of the algorithm's published vectors: whoever has them computes the same hashes.
    #[test]
    fn the_hash_is_the_published_one() {
        assert_eq!(hash(&[]), 0x907a_56de_22c2_6e53);
        assert_eq!(hash(&[0]), 0x7eab_43aa_c7cd_dd78);
    }

    #[test]
    fn a_chain_follows_the_written_format() {
        let rule = BlockRule { adapter: "a", salt: "été", ..rule(2) };
        let root = hash(&[1, 0, 0, 0, b'a', 5, 0, 0, 0, 0xc3, 0xa9, b't', 0xc3, 0xa9]);
        let block = |parent: u64, ids: [u32; 2]| {
            let ids = ids.iter().flat_map(|id| id.to_le_bytes());
            hash(&parent.to_le_bytes().into_iter().chain(ids).collect::<Vec<_>>())
        };
        let first = block(root, [7, 70_000]);
        let blocks = rule.blocks(&[7, 70_000, 8, 9, 10]);
        assert_eq!(blocks.hashes, [first, block(first, [8, 9])], "the fifth fills no block");
        assert!(rule.blocks(&[7]).hashes.is_empty());
        assert_eq!(block_hash(rule.root(), &[7, 70_000]), first);
    }

    #[test]
    fn blocks_meet_exactly_as_far_as_prompts_do() {
        let ids: Vec<u32> = (0..100).collect();
        let mut other = ids.clone();
        other[40] = 999;
        let (one, two) = (rule(16).blocks(&ids), rule(16).blocks(&other));
        assert_eq!(one.hashes.len(), 6);
        assert_eq!(one.hashes[..2], two.hashes[..2]);
        assert!(
            (2..6).all(|at| one.hashes[at] != two.hashes[at]),
            "a block stands for all before it"
        );
        for apart in [BlockRule { adapter: "x", ..rule(16) }, BlockRule { salt: "x", ..rule(16) }] {
            assert_ne!(apart.blocks(&ids).hashes[0], one.hashes[0]);
        }
    }

    #[test]
    fn ids_may_come_in_any_pieces_and_from_the_start_again() {
        let ids: Vec<u32> = (0..100).map(|id| id * 31).collect();
        let mut chain = Chain::new(&rule(16));
        chain.take(&ids[50..]);
        chain.clear();
        for piece in ids.chunks(7) {
            chain.take(piece);
        }
        assert_eq!(chain.tokens, 100);
        assert_eq!(chain.blocks(), rule(16).blocks(&ids));
    }
}
