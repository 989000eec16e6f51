//! What changed in a model server's KV cache.

/// One change of what a server's KV cache holds, as the server itself told it.
///
/// Hashes are ours (`tokens::blocks`), for prompts without adapter and salt: each stands for a full block and
/// all before it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum KvChange {
    /// These blocks are in the cache now.
    Stored {
        /// Tokens in each, 1 to [`super::BLOCK_TOKENS_MAX`].
        block_tokens: u32,
        /// In the order in which they follow each other; never empty.
        hashes: Vec<u64>,
    },
    /// These blocks are no longer in the cache.
    Removed {
        /// In no order; never empty.
        hashes: Vec<u64>,
    },
    /// Nothing is known to be in the cache: the server emptied it, or changes were missed. What was told before
    /// holds no longer.
    Cleared,
}
