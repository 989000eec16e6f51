//! What one request's answer must not say: the windows of its system prompts and the marks planted in them.

use super::{
    boilerplate,
    fold::{WORD, fold, is_figure, leet, merged, rot13, weight},
    patterns::{Pattern, Patterns},
    reader::Reader,
    shingles::{Table, Window},
};
use std::fmt;

/// Words in a row that are no chance, unless somebody says otherwise.
pub const WORDS: usize = 8;
/// Fewest and most words that can be asked for.
const WORDS_RANGE: (usize, usize) = (4, 16);
/// Bytes of system prompts that are looked at, from their start.
const PROMPTS_MAX: usize = 64 * 1024;
/// Bytes of what anyone may hear that are looked at.
pub const SAID_MAX: usize = 256 * 1024;
/// Canaries that are looked for. Each costs a little at every letter.
pub const CANARIES_MAX: usize = 32;

/// The form in which something was said.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum How {
    /// Letter by letter, whatever the case, accents, spaces, punctuation and escapes.
    Plain,
    /// With figures in place of letters, `l1ke 7h15`.
    Leet,
    /// Turned by half the alphabet.
    Rot13,
    /// From the last letter to the first.
    Reversed,
    /// In base64, of either alphabet.
    Base64,
    /// As hexadecimal bytes, with or without separators and prefixes.
    Hex,
}

impl How {
    /// All of them.
    pub const ALL: [Self; 6] =
        [Self::Plain, Self::Leet, Self::Rot13, Self::Reversed, Self::Base64, Self::Hex];

    /// Its name in records.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Plain => "plain",
            Self::Leet => "leet",
            Self::Rot13 => "rot13",
            Self::Reversed => "reversed",
            Self::Base64 => "base64",
            Self::Hex => "hex",
        }
    }

    pub(super) const fn kind(self) -> u8 {
        match self {
            Self::Leet => 1,
            Self::Rot13 => 2,
            Self::Reversed => 3,
            _ => 0,
        }
    }

    pub(super) const fn of_kind(kind: u8) -> Self {
        match kind {
            1 => Self::Leet,
            2 => Self::Rot13,
            3 => Self::Reversed,
            _ => Self::Plain,
        }
    }
}

/// The index of one request's secrets. Some 20 bytes for each letter of the prompts, at most about 1.2 MiB;
/// requests with the same system prompt should share one.
#[derive(Clone)]
pub struct Secretive {
    pub(super) table: Table,
    pub(super) patterns: Patterns,
    /// Units of a window, and of what has to be met in a row.
    pub(super) window: u32,
    pub(super) enough: u32,
}

/// Nothing of the secrets.
impl fmt::Debug for Secretive {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Secretive").field("windows", &self.table.len()).finish_non_exhaustive()
    }
}

impl Secretive {
    /// Indexes system prompts, up to 64 KiB of them, and canaries, up to [`CANARIES_MAX`] of those that
    /// [`Secretive::fits`]. `words` in a row are a leak, 4 to 16, by default [`WORDS`]. A word is five letters,
    /// or two ideographs.
    ///
    /// A prompt shorter than that has to be said as a whole. One shorter than half of that is not guarded, and
    /// neither are phrases that everyone's prompts have.
    pub fn new(system_prompts: &[&str], canaries: &[String], words: usize) -> Self {
        let words = words.clamp(WORDS_RANGE.0, WORDS_RANGE.1);
        let (mut left, mut texts) = (PROMPTS_MAX, Vec::new());
        for prompt in system_prompts {
            let text = start_of(prompt, left);
            left -= text.len();
            texts.push(Letters::of(text, words));
        }
        let mut table = Table::with_room(texts.iter().map(Letters::windows_most).sum());
        let mut patterns = Patterns::default();
        let (window, enough) = (words as u32 * WORD / 2, words as u32 * WORD);
        for text in &texts {
            if text.weight() >= enough {
                text.index(&mut table, Some(boilerplate::windows(words)));
            } else if text.weight() >= window && text.says_something() {
                add_pattern(&mut patterns, &text.all, None);
            }
        }
        let fitting = canaries.iter().enumerate().filter(|(_, canary)| Self::fits(canary));
        for (number, canary) in fitting.take(CANARIES_MAX) {
            add_pattern(&mut patterns, &letters_of(canary.chars()), Some(number));
        }
        patterns.seal();
        Self { table, patterns, window, enough }
    }

    /// Leaves out what the caller has said, or what anyone may hear: repeating it is no leak. Canaries stay.
    pub fn allowing(mut self, said: &[&str]) -> Self {
        if self.is_empty() {
            return self;
        }
        let mut left = SAID_MAX;
        for text in said {
            let text = start_of(text, left);
            left -= text.len();
            let (mut plain, mut leeted) = (Window::new(self.window), Window::new(self.window));
            read(text, |code| {
                if !is_figure(code) {
                    plain.push(merged(code), 0);
                    plain.full().into_iter().for_each(|hash| self.table.forget(hash));
                }
                leeted.push(leet(code), 0);
                leeted.full().into_iter().for_each(|hash| self.table.forget(hash));
                self.patterns.forget(&leeted);
            });
        }
        self
    }

    /// Can this be a canary? It needs four letters or figures; the last 50 are compared.
    pub fn fits(canary: &str) -> bool {
        letters_of(canary.chars()).len() >= Pattern::SHORTEST
    }

    /// Is there nothing to look for?
    pub fn is_empty(&self) -> bool {
        self.table.len() == 0 && self.patterns.is_empty()
    }
}

/// A text's letters, read in the ways that an answer might say them.
struct Letters {
    /// With figures.
    all: Vec<u16>,
    plain: Vec<u16>,
    /// From the last character to the first.
    reversed: Vec<u16>,
    words: usize,
}

impl Letters {
    fn of(text: &str, words: usize) -> Self {
        let mut all = Vec::with_capacity(text.len());
        read(text, |code| all.push(code));
        let letters =
            |codes: &[u16]| codes.iter().copied().filter(|code| !is_figure(*code)).collect();
        let plain = letters(&all);
        // By characters, since one may be several letters.
        let reversed = letters(&letters_of(text.chars().rev()));
        Self { all, plain, reversed, words }
    }

    fn weight(&self) -> u32 {
        self.all.iter().map(|code| weight(*code)).sum()
    }

    fn windows_most(&self) -> usize {
        let figures = self.all.len() - self.plain.len();
        2 * self.plain.len() + self.reversed.len() + self.all.len().min(50 * figures)
    }

    /// Is there more to it than what everyone says?
    fn says_something(&self) -> bool {
        let mut table = Table::with_room(self.windows_most());
        self.index(&mut table, Some(boilerplate::windows(self.words)));
        table.len() > 0
    }

    fn index(&self, table: &mut Table, but: Option<&Table>) {
        let least = self.words as u32 * WORD / 2;
        let mut add = |letters, how: How, read| add_windows(table, letters, how, read, least, but);
        add(&self.plain, How::Plain, merged);
        if self.all.len() > self.plain.len() {
            add(&self.all, How::Leet, leet);
        }
        add(&self.plain, How::Rot13, |code| merged(rot13(code)));
        add(&self.reversed, How::Reversed, merged);
    }
}

/// Adds the windows of a text, in all readings, to a table, but those of another table.
pub(super) fn add_text(table: &mut Table, text: &str, words: usize, but: Option<&Table>) {
    Letters::of(text, words).index(table, but);
}

fn add_windows(
    table: &mut Table,
    letters: &[u16],
    how: How,
    read: fn(u16) -> u16,
    least: u32,
    but: Option<&Table>,
) {
    let (mut window, mut spread, mut tail) =
        (Window::new(least), Spread::default(), letters.iter());
    for (at, code) in letters.iter().enumerate() {
        window.push(read(*code), at);
        spread.add(*code);
        while spread.letters > window.len() {
            tail.next().into_iter().for_each(|code| spread.remove(*code));
        }
        if let Some(hash) = window.full()
            && spread.is_telling(how)
            && but.is_none_or(|but| but.find(hash).is_none())
        {
            table.insert(hash, how.kind());
        }
    }
}

/// How many different letters a window has. Rows of few (`aaaa`, rules, paddings) and of figures tell nothing.
struct Spread {
    counts: [u8; 64],
    different: usize,
    letters: usize,
    figures: usize,
}

impl Default for Spread {
    fn default() -> Self {
        Self { counts: [0; 64], different: 0, letters: 0, figures: 0 }
    }
}

impl Spread {
    fn add(&mut self, code: u16) {
        if let Some(count) = self.counts.get_mut(usize::from(code % 64)) {
            self.different += usize::from(*count == 0);
            *count += 1;
        }
        self.letters += 1;
        self.figures += usize::from(is_figure(code));
    }

    fn remove(&mut self, code: u16) {
        if let Some(count) = self.counts.get_mut(usize::from(code % 64)) {
            *count = count.saturating_sub(1);
            self.different -= usize::from(*count == 0);
        }
        self.letters -= 1;
        self.figures -= usize::from(is_figure(code));
    }

    fn is_telling(&self, how: How) -> bool {
        // Without figures it is the same as the plain window.
        let figures = how != How::Leet || (self.figures > 0 && 2 * self.figures <= self.letters);
        figures && self.different >= 4 && 4 * self.different >= self.letters
    }
}

fn add_pattern(patterns: &mut Patterns, letters: &[u16], canary: Option<usize>) {
    patterns.add(letters.iter().map(|code| leet(*code)), How::Plain, canary);
    patterns.add(letters.iter().map(|code| leet(rot13(*code))), How::Rot13, canary);
    patterns.add(letters.iter().rev().map(|code| leet(*code)), How::Reversed, canary);
}

/// All codes of a text as the answer's are read.
fn read(text: &str, mut each: impl FnMut(u16)) {
    let mut reader = Reader::default();
    for (at, ch) in text.char_indices() {
        reader.push(ch, at, |ch, _| fold(ch, &mut each));
    }
}

fn letters_of(chars: impl Iterator<Item = char>) -> Vec<u16> {
    let mut letters = Vec::new();
    chars.for_each(|ch| fold(ch, |code| letters.push(code)));
    letters
}

/// At most so many bytes from a text's start.
fn start_of(text: &str, bytes: usize) -> &str {
    (0..=bytes.min(text.len())).rev().find_map(|end| text.get(..end)).unwrap_or_default()
}
