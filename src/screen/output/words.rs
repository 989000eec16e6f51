//! Cuts a stream into words and hands each on when it has ended: rows of letters and figures, and single
//! characters of scripts that write without spaces. It knows nothing of what words mean.

/// One word.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Word {
    /// Of its characters, ASCII in lower case.
    pub(super) hash: u32,
    /// Has it letters, not figures alone?
    pub(super) lettered: bool,
}

/// The word that is being read.
#[derive(Clone, Debug, Default)]
pub(super) struct Words {
    hash: u32,
    len: u32,
    lettered: bool,
}

impl Words {
    /// Takes the next character and hands on the words that it ends: none, the one before it, and itself.
    pub(super) fn push(&mut self, ch: char, mut each: impl FnMut(Word)) {
        let alone = is_alone(ch);
        if alone || !ch.is_alphanumeric() {
            if self.len > 0 {
                each(self.take());
            }
            if !alone {
                return;
            }
        }
        self.hash = (self.hash ^ u32::from(ch.to_ascii_lowercase())).wrapping_mul(0x9E37_79B1);
        self.hash ^= self.hash >> 15;
        self.len = self.len.saturating_add(1);
        self.lettered |= !ch.is_numeric();
        if alone {
            each(self.take());
        }
    }

    fn take(&mut self) -> Word {
        let Self { hash, lettered, .. } = std::mem::take(self);
        Word { hash: hash.wrapping_mul(0x85EB_CA6B), lettered }
    }
}

/// Is it a word of its own? Ideographs, kana, and the letters of South East Asia.
fn is_alone(ch: char) -> bool {
    matches!(ch,
        '\u{0E00}'..='\u{0EFF}' | '\u{1000}'..='\u{109F}' | '\u{1780}'..='\u{17FF}'
        | '\u{3040}'..='\u{30FF}' | '\u{3400}'..='\u{9FFF}' | '\u{20000}'..='\u{3FFFF}')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_end_where_others_begin() {
        let read = |text: &str| {
            let (mut words, mut out) = (Words::default(), Vec::new());
            text.chars().for_each(|ch| words.push(ch, |word| out.push(word)));
            out
        };
        let (a, b) = (read("The cat, 42 times. "), read("the (CAT) \"42\" timeS\n"));
        assert_eq!(a, b);
        assert_eq!(
            a.iter().map(|word| word.lettered).collect::<Vec<_>>(),
            [true, true, false, true]
        );
        assert_eq!(read("GPU训练 ").len(), 3);
        assert_eq!(read("ab ").len() + read("").len() + read("... ").len(), 1);
        assert_ne!(read("ab "), read("ba "));
    }
}
