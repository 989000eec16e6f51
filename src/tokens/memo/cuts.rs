//! Where a rendered prompt may be cut so that the parts' ids, end to end, are the ids of the whole.
//!
//! Special tokens are found in the raw text before anything else happens to it, so text on either side of
//! one cannot meet. That holds for most tokenizers, not for all: it is tried out when one is loaded.

use super::super::vocabulary::Vocabulary;
use aho_corasick::{AhoCorasick, MatchKind};
use serde_json::Value;

/// How the text behind a cut is encoded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Behind {
    /// Like any text.
    Alone,
    /// Together with a special token in front of it, which is then dropped: tokenizers that add a space to
    /// the very beginning of a text add none here.
    Anchored,
}

/// The special tokens of one tokenizer, as places to cut.
pub(super) struct Cuts {
    finder: AhoCorasick,
    /// By pattern: the token's id if it may be cut at. Tokens that take neighbouring space with them may not.
    ids: Vec<Option<u32>>,
    longest: usize,
    /// First bytes of tokens.
    starts: [bool; 256],
    texts: Vec<String>,
    behind: Behind,
    anchor: (String, u32),
}

/// One cut.
pub(super) struct Cut {
    pub(super) start: usize,
    pub(super) end: usize,
    pub(super) id: u32,
}

impl Cuts {
    /// The cuts of a `tokenizer.json`, if it has any and a trial shows that they are sound.
    pub(super) fn of(added_tokens: &[Value], vocabulary: &Vocabulary) -> Option<Self> {
        let flag =
            |token: &Value, name: &str| token.get(name).and_then(Value::as_bool).unwrap_or(false);
        let mut texts = Vec::new();
        let mut ids = Vec::new();
        for token in added_tokens {
            // Those are looked for later, in text that has been changed.
            if flag(token, "normalized") {
                continue;
            }
            let text = token.get("content").and_then(Value::as_str).filter(|text| !text.is_empty());
            let id = token.get("id").and_then(Value::as_u64).and_then(|id| u32::try_from(id).ok());
            let (Some(text), Some(id)) = (text, id) else { continue };
            let greedy = ["lstrip", "rstrip", "single_word"].iter().any(|name| flag(token, name));
            texts.push(text.to_owned());
            ids.push((!greedy).then_some(id));
        }
        // Such a token takes white space, or looks at letters, that could be another token's.
        let has = |name: &str| {
            added_tokens.iter().any(|token| flag(token, name) && !flag(token, "normalized"))
        };
        let (strips, words) = (has("lstrip") || has("rstrip"), has("single_word"));
        let is_word = |c: char| c.is_alphanumeric() || c == '_';
        let clashes = |text: &str| {
            (strips && text.trim() != text)
                || (words && (text.starts_with(is_word) || text.ends_with(is_word)))
        };
        if texts.iter().zip(&ids).any(|(text, id)| id.is_some() && clashes(text)) {
            return None;
        }
        let anchor = texts
            .iter()
            .zip(&ids)
            .filter(|(_, id)| id.is_some())
            // The longest is the least likely to run together with what follows.
            .max_by_key(|(text, _)| text.len())
            .and_then(|(text, id)| Some((text.clone(), (*id)?)))?;
        let finder =
            AhoCorasick::builder().match_kind(MatchKind::LeftmostLongest).build(&texts).ok()?;
        let mut starts = [false; 256];
        for text in &texts {
            if let Some(start) =
                text.as_bytes().first().and_then(|byte| starts.get_mut(usize::from(*byte)))
            {
                *start = true;
            }
        }
        let longest = texts.iter().map(String::len).max().unwrap_or(0);
        let mut cuts = Self { finder, ids, longest, starts, texts, behind: Behind::Alone, anchor };
        if cuts.holds(vocabulary) {
            return Some(cuts);
        }
        cuts.behind = Behind::Anchored;
        cuts.holds(vocabulary).then_some(cuts)
    }

    /// Every cut of a text, from left to right.
    pub(super) fn find<'a>(&'a self, text: &'a str) -> impl Iterator<Item = Cut> + 'a {
        self.finder.find_iter(text).filter_map(|found| {
            let id = (*self.ids.get(found.pattern().as_usize())?)?;
            Some(Cut { start: found.start(), end: found.end(), id })
        })
    }

    /// Whether a special token could begin in this text and end behind it.
    pub(super) fn may_go_on(&self, text: &str) -> bool {
        let bytes = text.as_bytes();
        let from = bytes.len().saturating_sub(self.longest.saturating_sub(1));
        let tail = bytes.get(from..).unwrap_or_default();
        tail.iter().enumerate().any(|(at, byte)| {
            let starts = self.starts.get(usize::from(*byte)).copied().unwrap_or(false);
            starts && {
                let tail = tail.get(at..).unwrap_or_default();
                self.texts
                    .iter()
                    .any(|token| token.len() > tail.len() && token.as_bytes().starts_with(tail))
            }
        })
    }

    /// The ids of text that holds no cut.
    pub(super) fn encode<T>(
        &self,
        vocabulary: &Vocabulary,
        text: &str,
        first: bool,
        read: impl FnOnce(&[u32]) -> T,
    ) -> Result<T, super::CountError> {
        if first || self.behind == Behind::Alone {
            return vocabulary.with_ids(text, false, read);
        }
        let (anchor, id) = &self.anchor;
        vocabulary.with_ids(&format!("{anchor}{text}"), false, |ids| match ids.split_first() {
            Some((head, rest)) if head == id => Ok(read(rest)),
            // The anchor ran together with what follows: these are not the text's.
            _ => Err(super::CountError::Encode("a part of the text has no ids of its own".into())),
        })?
    }

    /// Whether text behind a cut counts as it does at the front.
    pub(super) fn is_alone(&self) -> bool {
        self.behind == Behind::Alone
    }

    /// Tries texts with cuts in them: the parts' ids must be those of the whole.
    fn holds(&self, vocabulary: &Vocabulary) -> bool {
        const TRIALS: usize = 300;
        let mut dice = Dice(0x9e37_79b9_7f4a_7c15);
        (0..TRIALS).all(|_| {
            let mut text = String::new();
            for _ in 0..=dice.below(6) {
                for _ in 0..dice.below(4) {
                    text.push_str(dice.pick(&FRAGMENTS));
                }
                if dice.below(4) > 0 {
                    let tokens: Vec<&str> = self.texts.iter().map(String::as_str).collect();
                    text.push_str(dice.pick(&tokens));
                }
            }
            let Ok(whole) = vocabulary.with_ids(&text, false, <[u32]>::to_vec) else {
                return false;
            };
            self.ids_of(vocabulary, &text).is_ok_and(|parts| parts == whole)
        })
    }

    /// A text's ids, part by part.
    fn ids_of(&self, vocabulary: &Vocabulary, text: &str) -> Result<Vec<u32>, super::CountError> {
        let mut all = Vec::new();
        let mut from = 0;
        for cut in self.find(text) {
            let part = text.get(from..cut.start).unwrap_or_default();
            if !part.is_empty() {
                self.encode(vocabulary, part, from == 0, |ids| all.extend_from_slice(ids))?;
            }
            all.push(cut.id);
            from = cut.end;
        }
        let rest = text.get(from..).unwrap_or_default();
        if !rest.is_empty() {
            self.encode(vocabulary, rest, from == 0, |ids| all.extend_from_slice(ids))?;
        }
        Ok(all)
    }
}

/// What stands around cuts in a trial: everything that normalizers and pre-tokenizers treat specially at
/// the edge of a text.
const FRAGMENTS: [&str; 40] = [
    " ",
    "  ",
    "\n",
    "\n\n",
    "\r\n",
    "\t",
    "\u{a0}",
    "\u{2028}",
    "\u{3000}",
    "a",
    "Hello",
    " world",
    "'s",
    "'S",
    "don't",
    "1234567",
    " 42",
    "3.14",
    "é",
    "e\u{301}",
    "\u{301}",
    "ﬁ",
    "İ",
    "ß",
    "今日は",
    "한국어",
    "\u{1100}\u{1161}",
    "👍🏽",
    "\u{200d}",
    "\u{feff}",
    "\u{ad}",
    "▁",
    "<",
    "|>",
    "[",
    "</",
    "...",
    "_",
    "\u{0}",
    "\u{10ffff}",
];

/// Numbers that look random and are the same at every start (xorshift64, Marsaglia 2003).
struct Dice(u64);

impl Dice {
    fn below(&mut self, most: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        usize::try_from(self.0 >> 33).unwrap_or(0) % most.max(1)
    }

    fn pick<'a>(&mut self, from: &[&'a str]) -> &'a str {
        from.get(self.below(from.len())).copied().unwrap_or_default()
    }
}
