//! Keys of remembered counts: 128-bit keyed hashes.
//!
//! Callers choose the texts, so the hash must not let them make two that meet: HighwayHash with a secret
//! of this process. A collision by chance among 2^40 entries has odds of about 2^-48.

use highway::{HighwayHash, HighwayHasher, Key as Secret};
use std::sync::LazyLock;

/// What a remembered count is found by.
pub(in crate::tokens) type Key = u128;

/// Drawn once, so that nobody outside can compute a key.
static SECRET: LazyLock<Secret> = LazyLock::new(|| {
    let mut bytes = [0u8; 32];
    // Without the kernel's randomness the hash is still sound against chance.
    let _ = getrandom::fill(&mut bytes);
    let mut words = [0u64; 4];
    for (word, chunk) in words.iter_mut().zip(bytes.chunks_exact(8)) {
        *word = chunk.iter().fold(0, |sum, byte| (sum << 8) | u64::from(*byte));
    }
    Secret(words)
});

/// Words of the lists that are hashed the short way, their length included.
const SHORT_WORDS: usize = 16;

/// What the short way adds to each word, twice.
static SHORT_SECRETS: LazyLock<[[u64; SHORT_WORDS]; 2]> = LazyLock::new(|| {
    let mut secrets = [[0u64; SHORT_WORDS]; 2];
    for (at, secret) in secrets.iter_mut().flatten().enumerate() {
        let [low, _] = HighwayHasher::new(*SECRET).hash128(format!("short {at}").as_bytes());
        *secret = low;
    }
    secrets
});

/// A key from one piece of text.
pub(in crate::tokens) fn of(text: &[u8]) -> Key {
    joined(HighwayHasher::new(*SECRET).hash128(text))
}

/// A key from several texts in order, for `tag` of what they are to be found for. No text is copied.
pub fn key_of_texts<'t>(tag: u8, texts: impl IntoIterator<Item = &'t str>) -> u128 {
    let mut writer = KeyWriter::default();
    writer.tag(tag);
    for text in texts {
        writer.number(of(text.as_bytes()));
    }
    writer.key()
}

fn joined([low, high]: [u64; 2]) -> Key {
    (Key::from(high) << 64) | Key::from(low)
}

/// Makes one key of several values. Each is written with its length, so that no two lists of values meet.
#[derive(Default)]
pub(in crate::tokens) struct KeyWriter(Vec<u8>);

impl KeyWriter {
    /// A key or another number.
    pub(in crate::tokens) fn number(&mut self, number: u128) -> &mut Self {
        self.0.extend_from_slice(&number.to_le_bytes());
        self
    }

    /// A short tag.
    pub(in crate::tokens) fn tag(&mut self, tag: u8) -> &mut Self {
        self.0.push(tag);
        self
    }

    /// A text.
    pub(in crate::tokens) fn text(&mut self, text: &str) -> &mut Self {
        self.0.extend_from_slice(&(text.len() as u64).to_le_bytes());
        self.0.extend_from_slice(text.as_bytes());
        self
    }

    /// Begins anew, in the same memory.
    pub(in crate::tokens) fn clear(&mut self) {
        self.0.clear();
    }

    /// The key of all that was written.
    ///
    /// Short lists, of which every turn of a loop has one, go through the universal hash NH (Black and
    /// others, UMAC, 1999) twice, with secrets of this process: that two lists meet has odds below 2^-64.
    pub(in crate::tokens) fn key(&self) -> Key {
        let mut words = [0u64; SHORT_WORDS];
        if self.0.len() > (SHORT_WORDS - 1) * 8 {
            return of(&self.0);
        }
        let chunks = self.0.chunks(8).map(|chunk| {
            chunk.iter().rev().fold(0u64, |word, byte| (word << 8) | u64::from(*byte))
        });
        // All lists are as long as the longest; what they lack is zeros, and the length stands in front.
        let all = std::iter::once(self.0.len() as u64).chain(chunks);
        words.iter_mut().zip(all).for_each(|(word, value)| *word = value);
        let sum = |secrets: &[u64; SHORT_WORDS]| -> u128 {
            words.chunks_exact(2).zip(secrets.chunks_exact(2)).fold(0u128, |sum, pair| match pair {
                ([one, two], [first, second]) => sum.wrapping_add(
                    u128::from(one.wrapping_add(*first)) * u128::from(two.wrapping_add(*second)),
                ),
                _ => sum,
            })
        };
        let [one, two] = &*SHORT_SECRETS;
        sum(one).wrapping_add(sum(two).rotate_left(64))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_tell_texts_and_lists_apart() {
        assert_eq!(of(b"one"), of(b"one"));
        assert_ne!(of(b"one"), of(b"two"));
        let list = |parts: &[&str]| {
            let mut writer = KeyWriter::default();
            for part in parts {
                writer.text(part);
            }
            writer.key()
        };
        assert_ne!(list(&["ab", "c"]), list(&["a", "bc"]));
    }
}
