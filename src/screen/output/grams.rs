//! Does a stream say anything new? It remembers which six words followed each other lately, and how often, and
//! so sees repetition that has no period: a few sentences over and over in changing order.

use super::words::Word;

/// Words in a row that are remembered together.
const ROW: usize = 6;
/// Rows in one set of the memory, and sets: about a thousand rows, the oldest of a set go first.
const WAYS: usize = 4;
const SETS: usize = 256;
/// Times that a row was met after which it is stale. A text with a refrain, or code shown again with a
/// correction, has most rows two or three times.
const STALE: u16 = 4;
/// Stale words that one new row makes up for: one new word in some fifty does not end a repetition.
const NEW_ROW: u32 = 48;
/// Different words that a repetition needs. Tables of yes and no have fewer.
const DIFFERENT: u32 = 5;
/// Words and bytes after which a stretch is not counted any further, so that no sum overflows.
const MOST: u32 = 1 << 26;
/// Words after which different ones are counted afresh.
const BLOCK: u32 = 256;

/// What the stream has said.
#[derive(Clone, Debug)]
pub(super) struct Grams {
    last: [u32; ROW],
    /// Of each row 12 bits of its hash and how often it was met, up to 15.
    seen: Box<[[u16; WAYS]; SETS]>,
    stale: Stale,
    /// A bit for each class of words in this block.
    block: [u64; 32],
    words: u64,
    distinct: u64,
    repeated: u64,
}

/// A stretch of stale words.
#[derive(Clone, Copy, Debug, Default)]
struct Stale {
    /// Stale words, less what new rows made up for.
    level: u32,
    words: u32,
    lettered: u32,
    /// A bit for each class of words.
    kinds: u64,
    bytes: u32,
    /// Bytes that are more common in data than in sentences.
    data: u32,
}

impl Grams {
    pub(super) fn new() -> Self {
        let (seen, stale) = (Box::new([[0; WAYS]; SETS]), Stale::default());
        let (words, distinct, repeated) = (0, 0, 0);
        Self { last: [0; ROW], seen, stale, block: [0; 32], words, distinct, repeated }
    }

    /// Takes the next word.
    pub(super) fn push(&mut self, word: Word) {
        if self.words.is_multiple_of(u64::from(BLOCK)) {
            self.block = [0; 32];
        }
        self.words += 1;
        let class = word.hash >> 21;
        if let Some(bits) = self.block.get_mut(class as usize / 64) {
            self.distinct += u64::from(*bits & (1 << (class % 64)) == 0);
            *bits |= 1 << (class % 64);
        }
        self.last.rotate_left(1);
        if let Some(newest) = self.last.last_mut() {
            *newest = word.hash;
        }
        let met = self.met();
        self.repeated += u64::from(met > 0);
        let stale = &mut self.stale;
        if met >= STALE {
            stale.level = (stale.level + 1).min(MOST);
        } else {
            stale.level = stale.level.saturating_sub(NEW_ROW);
        }
        if stale.level == 0 {
            *stale = Stale::default();
            return;
        }
        stale.kinds |= 1 << (word.hash >> 26);
        if stale.words == MOST {
            return;
        }
        stale.words += 1;
        stale.lettered += u32::from(word.lettered);
    }

    /// Takes a character that may be no part of a word.
    pub(super) fn byte(&mut self, data: bool) {
        if self.stale.level > 0 && self.stale.bytes < MOST {
            self.stale.bytes += 1;
            self.stale.data += u32::from(data);
        }
    }

    /// How often the newest row was met before, and notes it.
    fn met(&mut self) -> u16 {
        let mix = |hash: u64, word: &u32| {
            (hash ^ u64::from(*word)).wrapping_mul(0x9E37_79B9_7F4A_7C15).rotate_left(29)
        };
        let hash = self.last.iter().fold(0, mix);
        let Some(set) = self.seen.get_mut((hash >> 56) as usize) else { return 0 };
        let print = (hash as u16) & 0xFFF0;
        let at = set.iter().position(|row| *row != 0 && row & 0xFFF0 == print);
        let met = at.and_then(|at| set.get(at)).map_or(0, |row| row & 0xF);
        // The newest first; the oldest, or its old place, is overwritten.
        if let Some(moved) = set.get_mut(..=at.unwrap_or(WAYS - 1)) {
            moved.rotate_right(1);
        }
        if let Some(first) = set.first_mut() {
            *first = print | (met + 1).min(0xF);
        }
        met
    }

    /// Were `words` said in a row that were all said before, again and again? Data may repeat four times as
    /// long.
    pub(super) fn is_stale(&self, words: u32) -> bool {
        let Stale { level, words: all, lettered, kinds, bytes, data } = self.stale;
        let enough = if 10 * data >= bytes { 4 * words } else { words };
        level >= enough && 2 * lettered >= all && kinds.count_ones() >= DIFFERENT
    }

    /// Words so far.
    pub(super) fn words(&self) -> u64 {
        self.words
    }

    /// Share of words at which the six last had followed each other before.
    pub(super) fn repeated_share(&self) -> f32 {
        share(self.repeated, self.words)
    }

    /// Share of words that were new within their block of 256.
    pub(super) fn distinct_share(&self) -> f32 {
        share(self.distinct, self.words)
    }
}

fn share(part: u64, of: u64) -> f32 {
    if of == 0 { 0.0 } else { (part as f64 / of as f64) as f32 }
}

#[cfg(test)]
mod tests {
    use super::super::words::Words;
    use super::*;

    fn read(text: &str) -> (Grams, Option<u64>) {
        let (mut grams, mut words, mut stale) = (Grams::new(), Words::default(), None);
        for ch in text.chars() {
            grams.byte(matches!(ch, '|' | ',' | '"' | ':'));
            words.push(ch, |word| grams.push(word));
            if stale.is_none() && grams.is_stale(256) {
                stale = Some(grams.words());
            }
        }
        (grams, stale)
    }

    #[test]
    fn sentences_in_changing_order_get_stale() {
        let lines = [
            "I am not able to help you with that request today. ",
            "Let me try to think about it once more now. ",
        ];
        let order = |n: usize| n.wrapping_mul(2_654_435_761) >> 7 & 1;
        let text: String = (0..80).map(|n| lines[order(n)]).collect();
        let (_, stale) = read(&text);
        assert!(stale.is_some_and(|words| words < 500), "{stale:?}");
    }

    #[test]
    fn what_has_news_does_not() {
        let numbered: String = (0..300)
            .map(|n| format!("Record {n} was written to the table in the disk. "))
            .collect();
        let (grams, stale) = read(&numbered);
        assert_eq!(stale, None);
        assert!(grams.repeated_share() < 0.6, "{}", grams.repeated_share());
        let again = numbered.chars().take(2000).collect::<String>();
        assert_eq!(read(&again.repeat(3)).1, None);
        let flags: String = (0..900u32)
            .map(|n| if n.wrapping_mul(n) % 7 < 3 { "true, " } else { "false, " })
            .collect();
        assert_eq!(read(&flags).1, None);
    }

    #[test]
    fn shares_are_of_all_words() {
        let (grams, _) = read("one two three four five six one two three four five six ");
        assert_eq!((grams.words(), grams.distinct_share()), (12, 0.5));
        assert_eq!(grams.repeated_share(), 1.0 / 12.0);
        assert_eq!(Grams::new().repeated_share(), 0.0);
    }
}
