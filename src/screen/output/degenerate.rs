//! Has an answer fallen apart? It repeats itself, goes on without saying anything, is no language any more, or
//! shows what only machines should see.
//!
//! What is asked for looks much the same: tables, lists, code, refrains. So the limits are wide, and a loop is
//! called one only after so many tokens (a token is taken for four bytes), with the defaults:
//!
//! * the same with a period of up to 2 KiB: six times (from 160 bytes on four times) and 160 tokens; if more than
//!   a tenth of it are signs of data or code, or hardly any letters, 960 tokens;
//! * the same but for one counter: twelve times and 400 tokens, and only sentences; with more than one number it
//!   is data;
//! * sentences in changing order, or periods of up to some 700 words: 256 words that were all said four times
//!   before, four times as many for data;
//! * one letter 480 times, `!` 160, any other character 1,920; white space 768 times, 64 empty lines;
//! * words of impossible letters: some 50 if there is nothing else, some 160 at three in five;
//! * letters of three scripts or more within words: two dozen changes more than one in 24 letters;
//! * four control tokens right behind words or lines and outside of code, eight of one in a row;
//! * eight marks of broken text in a row, or two dozen and more than one in 32 characters.
//!
//! Not seen: words that exist but make no sense together, lists that count on for ever, long loops with more than
//! one counter or with periods above 700 words, ideographs at random. Seen although asked for: one sentence a
//! hundred times, long cipher texts other than rot13.

use super::{
    control::Control,
    fill::{Fill, FillLimits},
    grams::Grams,
    loops::{Loops, Repeats, is_data},
    odd::Odd,
    words::Words,
};
use std::fmt;

/// Periods from which on fewer repetitions are enough.
const LONG_PERIOD: u32 = 160;
/// Letters that a sentence with a counter has at least.
const SENTENCE: u32 = 16;

/// What is too much. The other figures above follow from these. Taken as at least 1 (tokens of a loop: 10) and
/// at most 100,000 (times of a loop: 1,000).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Tokens that a loop of sentences lasts at least, of about four bytes. Loops of data may last six times as
    /// long, those with a counter two and a half times.
    pub loop_tokens: u32,
    /// Times that a short period comes at least; two fewer for long ones, twice as many with a counter.
    pub loop_times: u32,
    /// Empty lines; twelve times as much other white space.
    pub empty_lines: u32,
    /// Control tokens; of one in a row twice as many.
    pub control_tokens: u32,
    /// Marks of broken text (U+FFFD) in a row; three times as many all in all.
    pub replacements: u32,
}

impl Limits {
    fn clamped(self) -> Self {
        Self {
            loop_tokens: self.loop_tokens.clamp(10, 100_000),
            loop_times: self.loop_times.clamp(1, 1000),
            empty_lines: self.empty_lines.clamp(1, 100_000),
            control_tokens: self.control_tokens.clamp(1, 100_000),
            replacements: self.replacements.clamp(1, 100_000),
        }
    }
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            loop_tokens: 160,
            loop_times: 6,
            empty_lines: 64,
            control_tokens: 4,
            replacements: 8,
        }
    }
}

/// What an answer has become.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Kind {
    /// It says the same again and again.
    Loop,
    /// It is no language.
    Gibberish,
    /// It shows tokens that steer models.
    ControlTokens,
    /// Its bytes are broken.
    Replacement,
    /// It goes on with one character, or with white space.
    Endless,
}

impl Kind {
    /// All of them.
    pub const ALL: [Self; 5] =
        [Self::Loop, Self::Gibberish, Self::ControlTokens, Self::Replacement, Self::Endless];

    /// Its name in records.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Loop => "loop",
            Self::Gibberish => "gibberish",
            Self::ControlTokens => "control_tokens",
            Self::Replacement => "replacement",
            Self::Endless => "endless",
        }
    }
}

/// When an answer fell apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Degeneration {
    /// What it has become.
    pub kind: Kind,
    /// Bytes of the stream when that was certain.
    pub at: usize,
}

/// Figures of an answer so far, for [`super::quality`].
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Facts {
    /// Bytes.
    pub bytes: u64,
    /// Words: rows of letters and figures; single characters in scripts without spaces.
    pub words: u64,
    /// Share of words, 0 to 1, at which the last six had followed each other before, lately.
    pub repeated_share: f32,
    /// Share of words, 0 to 1, that were new within their block of 256. About a half in prose.
    pub distinct_share: f32,
    /// Most times that one character, no white space, came in a row.
    pub longest_run: u32,
    /// Bytes of the longest repetition with a period, white space and figures folded.
    pub longest_loop: u32,
    /// Marks of broken text (U+FFFD).
    pub replacement: u32,
    /// Control tokens right behind words or lines, outside of code.
    pub control_tokens: u32,
    /// Share of words, 0 to 1, that no language has, among those that can be judged.
    pub odd_share: f32,
}

/// Follows one answer. About 7 KiB, however long the answer.
#[derive(Clone)]
pub struct Watch {
    limits: Limits,
    bytes: u64,
    fill: Fill,
    control: Control,
    words: Words,
    grams: Grams,
    loops: Loops,
    odd: Odd,
    found: Option<Degeneration>,
}

/// Nothing of what was said.
impl fmt::Debug for Watch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut shown = f.debug_struct("Watch");
        shown.field("bytes", &self.bytes).field("found", &self.found).finish_non_exhaustive()
    }
}

impl Watch {
    /// Nothing said yet.
    pub fn new(limits: Limits) -> Self {
        Self {
            limits: limits.clamped(),
            bytes: 0,
            fill: Fill::default(),
            control: Control::default(),
            words: Words::default(),
            grams: Grams::new(),
            loops: Loops::new(),
            odd: Odd::new(),
            found: None,
        }
    }

    /// Takes the answer's next piece, cut anywhere. Tells once when it falls apart, whatever the pieces; the
    /// figures go on.
    pub fn push(&mut self, text: &str) -> Option<Degeneration> {
        let known = self.found.is_some();
        let mut utf8 = [0; 4];
        for ch in text.chars() {
            self.fill.push(ch);
            self.control.push(ch);
            self.odd.push(ch);
            let grams = &mut self.grams;
            self.words.push(ch, |word| grams.push(word));
            for byte in ch.encode_utf8(&mut utf8).bytes() {
                self.loops.push(byte);
                self.grams.byte(is_data(byte));
            }
            self.bytes += ch.len_utf8() as u64;
            if self.found.is_none() {
                let at = usize::try_from(self.bytes).unwrap_or(usize::MAX);
                self.found = self.kind().map(|kind| Degeneration { kind, at });
            }
        }
        self.found.filter(|_| !known)
    }

    fn kind(&self) -> Option<Kind> {
        let Limits { loop_tokens, empty_lines, control_tokens, replacements, .. } = self.limits;
        let fill = FillLimits {
            same: 3 * loop_tokens,
            lines: empty_lines,
            blanks: 12 * empty_lines,
            broken: replacements,
        };
        if self.fill.is_endless(&fill) {
            return Some(Kind::Endless);
        }
        if self.fill.is_broken(&fill) {
            return Some(Kind::Replacement);
        }
        if self.control.is_stray(control_tokens) {
            return Some(Kind::ControlTokens);
        }
        if self.is_loop(self.loops.repeats()) || self.grams.is_stale(loop_tokens * 8 / 5) {
            return Some(Kind::Loop);
        }
        self.odd.is_gibberish().then_some(Kind::Gibberish)
    }

    fn is_loop(&self, repeats: Repeats) -> bool {
        let Repeats { period, run, letters, data, changed } = repeats;
        let Limits { loop_tokens, loop_times, .. } = self.limits;
        let bytes = repeats.bytes();
        if bytes < 4 * loop_tokens || period == 0 {
            return false;
        }
        let times =
            if period < LONG_PERIOD { loop_times } else { loop_times.saturating_sub(2).max(2) };
        let is_data = 10 * data >= run || 8 * letters < run;
        if changed == 0 {
            let least = if is_data { 24 * loop_tokens } else { 4 * loop_tokens };
            return bytes >= least && bytes >= times * period;
        }
        // One number a period, or hardly more.
        let a_period = |count| u64::from(count) * u64::from(period);
        let counter = a_period(changed) * 4 <= u64::from(run) * 5;
        let sentence = a_period(letters) >= u64::from(SENTENCE * run);
        let long = bytes >= 10 * loop_tokens && bytes >= 2 * loop_times * period;
        counter && sentence && !is_data && long
    }

    /// How it fell apart, if it did.
    pub fn found(&self) -> Option<Degeneration> {
        self.found
    }

    /// The figures so far.
    pub fn facts(&self) -> Facts {
        Facts {
            bytes: self.bytes,
            words: self.grams.words(),
            repeated_share: self.grams.repeated_share(),
            distinct_share: self.grams.distinct_share(),
            longest_run: self.fill.longest(),
            longest_loop: self.loops.longest(),
            replacement: self.fill.replaced(),
            control_tokens: self.control.stray(),
            odd_share: self.odd.share(),
        }
    }
}
