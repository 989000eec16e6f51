//! Sets of ASCII characters, and how mixed a text is.

/// A set of ASCII characters. Bytes of longer characters are in none.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Alphabet {
    // Two words: a shift of 128 bits costs three times as much.
    low: u64,
    high: u64,
}

impl Alphabet {
    /// The characters of a list.
    pub(super) const fn of(mut list: &[u8]) -> Self {
        let mut all = Self { low: 0, high: 0 };
        while let Some((byte, rest)) = list.split_first() {
            all = all.and(Self::range(*byte, *byte));
            list = rest;
        }
        all
    }

    /// The characters from one to another, both included.
    const fn range(from: u8, to: u8) -> Self {
        let mut all = Self { low: 0, high: 0 };
        let mut byte = from;
        while byte <= to {
            let bit = 1 << (byte % 64);
            all = if byte < 64 { Self { low: all.low | bit, ..all } } else { all.with_high(bit) };
            byte += 1;
        }
        all
    }

    const fn with_high(self, bit: u64) -> Self {
        Self { low: self.low, high: self.high | bit }
    }

    /// These and the others.
    pub(super) const fn and(self, other: Self) -> Self {
        Self { low: self.low | other.low, high: self.high | other.high }
    }

    /// These without the others.
    pub(super) const fn without(self, other: Self) -> Self {
        Self { low: self.low & !other.low, high: self.high & !other.high }
    }

    /// Is the byte in it?
    pub(super) const fn has(self, byte: u8) -> bool {
        let word = if byte < 64 { self.low } else { self.high };
        byte < 128 && word >> (byte % 64) & 1 == 1
    }
}

/// `0` to `9`.
pub(super) const DIGIT: Alphabet = Alphabet::range(b'0', b'9');
/// `A` to `Z`.
pub(super) const UPPER: Alphabet = Alphabet::range(b'A', b'Z');
/// `a` to `z`.
pub(super) const LOWER: Alphabet = Alphabet::range(b'a', b'z');
/// Letters of both cases.
pub(super) const LETTER: Alphabet = UPPER.and(LOWER);
/// Letters and digits.
pub(super) const ALNUM: Alphabet = LETTER.and(DIGIT);
/// What names in programs are made of.
pub(super) const WORD: Alphabet = ALNUM.and(Alphabet::of(b"_"));
/// What most tokens are made of; also base64 as used in addresses.
pub(super) const TOKEN: Alphabet = WORD.and(Alphabet::of(b"-"));
/// Base64 without its padding.
pub(super) const BASE64: Alphabet = ALNUM.and(Alphabet::of(b"+/"));
/// Base32 as AWS uses it.
pub(super) const BASE32: Alphabet = UPPER.and(Alphabet::range(b'2', b'7'));
/// Hexadecimal digits.
pub(super) const HEX: Alphabet = DIGIT.and(Alphabet::of(b"abcdefABCDEF"));
/// Everything that is seen.
pub(super) const GRAPHIC: Alphabet = Alphabet::range(b'!', b'~');
/// White space.
pub(super) const SPACE: Alphabet = Alphabet::of(b" \t\r\n");

/// How many different bytes a text has.
pub(super) fn distinct(text: &[u8]) -> u32 {
    let (low, high) = text.iter().fold((0_u128, 0_u128), |(low, high), byte| match byte {
        0..128 => (low | 1 << byte, high),
        _ => (low, high | 1 << (byte - 128)),
    });
    low.count_ones() + high.count_ones()
}

/// How unforeseeable each byte of a text is, bits (Shannon's entropy of its bytes). A text of n bytes has
/// at most log2 of n.
pub(super) fn entropy(text: &[u8]) -> f64 {
    let mut sorted = text.to_vec();
    sorted.sort_unstable();
    let all = text.len() as f64;
    let part = |same: &[u8]| {
        let share = same.len() as f64 / all;
        -share * share.log2()
    };
    sorted.chunk_by(|a, b| a == b).map(part).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sets_hold_what_they_say() {
        let cases: &[(Alphabet, &str, &str)] = &[
            (DIGIT, "0189", "/:aZ"),
            (ALNUM, "09azAZ", "_-/:@[`{"),
            (TOKEN, "aZ0_-", ".+/= "),
            (BASE64, "aZ0+/", "=-_"),
            (BASE32, "AZ27", "0189a"),
            (HEX, "09afAF", "gG"),
            (GRAPHIC, "!~aZ", " \n\u{7f}é"),
            (SPACE, " \n\t\r", "a\u{b}"),
            (GRAPHIC.without(LETTER), "!1", "aZ"),
        ];
        for (set, inside, outside) in cases {
            assert!(inside.bytes().all(|byte| set.has(byte)), "{inside}");
            assert!(!outside.bytes().any(|byte| set.has(byte)), "{outside}");
        }
    }

    #[test]
    fn entropy_is_that_of_the_bytes() {
        let cases: &[(&str, f64)] =
            &[("", 0.0), ("aaaa", 0.0), ("abab", 1.0), ("abcd", 2.0), ("aaab", 0.811_278)];
        for (text, bits) in cases {
            assert!((entropy(text.as_bytes()) - bits).abs() < 1e-5, "{text}");
        }
    }

    #[test]
    fn different_bytes_are_counted_once() {
        assert_eq!(distinct(b""), 0);
        assert_eq!(distinct(b"abba"), 2);
        assert_eq!(distinct(&[0, 127, 128, 255, 255]), 4);
    }
}
