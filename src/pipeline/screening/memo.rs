//! What was worked out before: scores of texts, since each turn of a conversation sends the turns before it again,
//! and the indexes of system prompts, since an application sends the same one with each request.

use crate::screen::{Scores, output::leak::Secretive};
use highway::{HighwayHash, HighwayHasher, Key};
use quick_cache::sync::Cache;
use std::sync::Arc;

/// Texts remembered. One takes about 150 bytes.
const KEPT: usize = 16 * 1024;
/// Longer texts than this many bytes are worth a place; shorter ones are judged as fast as they are found.
const LEAST_BYTES: usize = 64;

/// Indexes of system prompts remembered. One takes at most 1.2 MiB, usually a hundredth of that.
const PROMPTS_KEPT: usize = 64;

/// Remembered indexes of system prompts.
pub(super) struct Prompts {
    secret: Key,
    known: Cache<u128, Arc<Secretive>>,
}

impl std::fmt::Debug for Prompts {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Prompts").field("known", &self.known.len()).finish_non_exhaustive()
    }
}

impl Default for Prompts {
    fn default() -> Self {
        Self { secret: drawn(), known: Cache::new(PROMPTS_KEPT) }
    }
}

impl Prompts {
    /// The key of a request's system prompts.
    pub(super) fn key(&self, texts: &[&str]) -> u128 {
        let mut hasher = HighwayHasher::new(self.secret);
        for text in texts {
            hasher.append(&text.len().to_le_bytes());
            hasher.append(text.as_bytes());
        }
        joined(hasher.finalize128())
    }

    pub(super) fn get(&self, key: u128) -> Option<Arc<Secretive>> {
        self.known.get(&key)
    }

    pub(super) fn keep(&self, key: u128, index: &Arc<Secretive>) {
        self.known.insert(key, Arc::clone(index));
    }
}

/// A secret of this process, so that callers cannot make two texts that meet.
fn drawn() -> Key {
    let mut bytes = [0u8; 32];
    // Without the kernel's randomness the hash is still sound against chance.
    let _ = getrandom::fill(&mut bytes);
    let mut words = [0u64; 4];
    for (word, chunk) in words.iter_mut().zip(bytes.chunks_exact(8)) {
        *word = chunk.iter().fold(0, |sum, byte| (sum << 8) | u64::from(*byte));
    }
    Key(words)
}

fn joined([low, high]: [u64; 2]) -> u128 {
    (u128::from(high) << 64) | u128::from(low)
}

/// Remembered scores. Callers choose the texts, so the hash has a secret of this process, and a collision's odds
/// are those of 128 bits.
pub(super) struct Memo {
    secret: Key,
    scores: Cache<u128, Scores>,
}

impl std::fmt::Debug for Memo {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Memo").field("texts", &self.scores.len()).finish_non_exhaustive()
    }
}

impl Default for Memo {
    fn default() -> Self {
        Self { secret: drawn(), scores: Cache::new(KEPT) }
    }
}

impl Memo {
    /// The key of a text that is worth remembering, by how it is judged.
    pub(super) fn key(&self, text: &str, how: u8) -> Option<u128> {
        if text.len() < LEAST_BYTES {
            return None;
        }
        let mut hasher = HighwayHasher::new(self.secret);
        hasher.append(&[how]);
        hasher.append(text.as_bytes());
        Some(joined(hasher.finalize128()))
    }

    pub(super) fn get(&self, key: u128) -> Option<Scores> {
        self.scores.get(&key)
    }

    pub(super) fn keep(&self, key: u128, scores: Scores) {
        self.scores.insert(key, scores);
    }
}
