//! One form for texts that read alike: what matchers and classifiers are shown.
//!
//! Two passes, each over the whole text once, and each only if something calls for it: letters are composed
//! (NFKC) with what nobody sees taken out, and then words with borrowed letters are made Latin. What makes
//! no difference to a reader is counted, unless it is what honest texts hold too: joiners in emoji and in
//! scripts that join, emoji selectors, direction marks in texts with right-to-left letters, subdivision
//! flags, a byte order mark. Full-width letters are not counted: East Asian keyboards write them.
//!
//! A text grows at most sixfold. The one character that would make more of it, an Arabic ligature of
//! eighteen letters, stays as it is.

use super::{
    confusables::{is_latin, latinize},
    map::Map,
};
use std::{borrow::Cow, ops::Range};
use unicode_normalization::{
    IsNormalized, UnicodeNormalization, char as unicode, is_nfc_quick, is_nfkc_quick,
};

/// Marks that one letter may carry: Vietnamese and phonetics need no more.
const MARKS_MAX: usize = 3;
/// Marks of its own script that one letter may carry. Burmese and Tibetan stack them.
const OWN_MARKS_MAX: usize = 8;
/// Characters that are composed at once. None that compose stand further apart.
const CLUSTER_MAX: usize = 32;
/// Selectors in a row that hold bytes: honest texts have one behind a character.
const SELECTORS_MIN: usize = 4;
/// The ligature that stands for eighteen letters.
const LONGEST: char = '\u{fdfa}';

/// Tags of the flags that are drawn: England, Scotland, Wales.
const FLAGS: [&str; 3] = [
    "\u{e0067}\u{e0062}\u{e0065}\u{e006e}\u{e0067}\u{e007f}",
    "\u{e0067}\u{e0062}\u{e0073}\u{e0063}\u{e0074}\u{e007f}",
    "\u{e0067}\u{e0062}\u{e0077}\u{e006c}\u{e0073}\u{e007f}",
];

/// A text in its normal form.
#[derive(Clone, Debug)]
pub struct Folded<'t> {
    /// What a reader sees. Borrowed where nothing had to change.
    pub text: Cow<'t, str>,
    /// What a reader does not see.
    pub seen: Oddities,
    /// Text that was spelled in tag characters, or in the bytes of variation selectors.
    pub hidden: String,
    composed: Map,
    latin: Map,
}

/// How much of a text is there to mislead, in characters.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Oddities {
    /// Characters of no width: zero-width spaces and joiners, soft hyphens, selectors, fillers.
    pub invisible: u32,
    /// Characters that change the direction of what follows.
    pub bidi: u32,
    /// Tag characters: U+E0000 to U+E007F.
    pub tags: u32,
    /// Letters that were drawn or borrowed to look like Latin ones.
    pub homoglyphs: u32,
    /// Marks taken off letters that had too many, or that were struck through.
    pub marks: u32,
}

impl Oddities {
    /// All of them.
    pub fn total(&self) -> u32 {
        let counts = [self.invisible, self.bidi, self.tags, self.homoglyphs, self.marks];
        counts.into_iter().fold(0, u32::saturating_add)
    }
}

impl Folded<'_> {
    /// The part of the original text that a part of the folded text came from, both in bytes. Where several
    /// characters became one it is all of them, with invisible ones behind them. In texts that change in
    /// thousands of places it may be a little wider.
    pub fn origin(&self, range: Range<usize>) -> Range<usize> {
        self.composed.origin(self.latin.origin(range))
    }
}

/// Folds a text. Linear in its length; plain ASCII is borrowed after one look.
pub fn fold(text: &str) -> Folded<'_> {
    let mut folded = Folded {
        text: Cow::Borrowed(text),
        seen: Oddities::default(),
        hidden: String::new(),
        composed: Map::default(),
        latin: Map::default(),
    };
    if text.is_ascii() {
        return folded;
    }
    if !is_settled(text) {
        let mut folder = Folder::new(text);
        folder.run();
        folded.text = Cow::Owned(folder.out);
        folded.seen = folder.seen;
        folded.hidden = folder.hidden;
        folded.composed = folder.map;
    }
    if let Some(latin) = latinize(&folded.text) {
        folded.seen.homoglyphs = folded.seen.homoglyphs.saturating_add(latin.letters);
        folded.latin = latin.map;
        folded.text = Cow::Owned(latin.text);
    }
    folded
}

/// Whether the first pass would change nothing.
fn is_settled(text: &str) -> bool {
    let mut marks = 0;
    for letter in text.chars().filter(|letter| !letter.is_ascii() || letter.is_alphanumeric()) {
        marks = if is_mark(letter) { marks + 1 } else { 0 };
        if marks > MARKS_MAX || is_unseen(letter) || is_stroke(letter) || letter == '\u{2800}' {
            return false;
        }
    }
    is_nfkc_quick(text.chars()) == IsNormalized::Yes
}

/// The first pass.
struct Folder<'t> {
    text: &'t str,
    /// How far it has been read.
    at: usize,
    out: String,
    map: Map,
    seen: Oddities,
    hidden: String,
    /// The letter before, of any kind.
    before: Option<char>,
    /// A right-to-left letter was read.
    leftward: bool,
    /// What is composed next.
    cluster: Vec<char>,
    /// A letter that was composed alone, and where that was written.
    last: Option<(char, Range<usize>)>,
    selectors: Vec<u8>,
}

impl<'t> Folder<'t> {
    fn new(text: &'t str) -> Self {
        Self {
            text,
            at: 0,
            out: String::with_capacity(text.len()),
            map: Map::default(),
            seen: Oddities::default(),
            hidden: String::new(),
            before: None,
            leftward: false,
            cluster: Vec::new(),
            last: None,
            selectors: Vec::new(),
        }
    }

    fn run(&mut self) {
        while let Some(rest) = self.text.get(self.at..).filter(|rest| !rest.is_empty()) {
            let ascii = rest.bytes().position(|byte| !byte.is_ascii());
            // A mark behind them belongs to the last.
            let plain = ascii.map_or(rest.len(), |count| count.saturating_sub(1));
            let (plain, rest) = rest.split_at_checked(plain).unwrap_or_default();
            self.out.push_str(plain);
            self.map.copy(plain.len());
            self.at += plain.len();
            if !rest.is_empty() {
                let read = self.read(rest);
                self.write(rest.get(..read).unwrap_or_default());
                self.at += read.max(1);
            }
        }
    }

    /// Reads a letter with all that belongs to it; gives how many bytes that is.
    fn read(&mut self, rest: &str) -> usize {
        self.cluster.clear();
        let (mut marks, mut own) = (0, 0);
        let mut end = 0;
        while let Some(letter) = rest.get(end..).and_then(|rest| rest.chars().next()) {
            if end > 0 && (begins(letter) || self.cluster.len() >= CLUSTER_MAX) {
                break;
            }
            end += letter.len_utf8();
            if is_unseen(letter) {
                self.unseen(letter);
            } else {
                self.spell_selectors();
                let combining = !letter.is_ascii() && unicode::is_combining_mark(letter);
                marks += usize::from(is_mark(letter));
                own += usize::from(combining && !is_mark(letter));
                if marks > CLUSTER_MAX / 2 || own > OWN_MARKS_MAX {
                    self.seen.marks = self.seen.marks.saturating_add(1);
                } else {
                    self.cluster.push(letter);
                }
                self.leftward = self.leftward || is_leftward(letter);
            }
            self.before = Some(letter);
            let behind = rest.get(end..).unwrap_or_default();
            if letter == '\u{1f3f4}' && FLAGS.iter().any(|tags| behind.starts_with(tags)) {
                end += FLAGS.first().map_or(0, |tags| tags.len());
            }
        }
        self.spell_selectors();
        self.bare(marks);
        end
    }

    /// Takes off what is too much: from a Latin letter all that cannot be a part of it.
    fn bare(&mut self, marks: usize) {
        let base = self.cluster.first().copied().filter(|letter| !is_mark(*letter));
        let before = self.cluster.len();
        if marks > MARKS_MAX && base.is_some_and(|base| is_latin(base) || base.is_ascii()) {
            self.cluster.retain(|letter| !is_mark(*letter));
        } else if marks > MARKS_MAX {
            let mut kept = 0;
            self.cluster.retain(|letter| {
                kept += usize::from(is_mark(*letter));
                !is_mark(*letter) || kept <= MARKS_MAX
            });
        } else if base.is_some_and(|base| base.is_ascii_alphanumeric()) {
            self.cluster.retain(|letter| !is_stroke(*letter));
        }
        let off = u32::try_from(before - self.cluster.len()).unwrap_or(u32::MAX);
        // Keys are drawn around digits.
        let key = base.is_some_and(|base| base.is_ascii_digit()) && self.before == Some('\u{20e3}');
        self.seen.marks = self.seen.marks.saturating_add(if key { 0 } else { off });
    }

    /// Writes what was read, composed.
    fn write(&mut self, original: &str) {
        let from = self.out.len();
        // Composing is slow, and texts of one letter are the longest.
        let same = self.last.as_ref().filter(|(last, _)| self.cluster == [*last]);
        match (self.cluster.as_slice(), same) {
            // Empty Braille.
            (['\u{2800}'], _) => self.out.push(' '),
            ([LONGEST, ..], _) => self.out.extend(&self.cluster),
            (_, Some((_, span))) => self.out.extend_from_within(span.clone()),
            (cluster, None) => self.out.extend(cluster.iter().copied().nfkc()),
        }
        if let [letter] = self.cluster.as_slice() {
            self.last = Some((*letter, from..self.out.len()));
        }
        let written = self.out.get(from..).unwrap_or_default();
        if written == original {
            self.map.copy(original.len());
        } else {
            let drawn = self.cluster.iter().any(|letter| is_drawn(*letter));
            if drawn
                && written
                    .starts_with(|letter: char| letter.is_ascii_alphanumeric() || letter == '(')
            {
                self.seen.homoglyphs = self.seen.homoglyphs.saturating_add(1);
            }
            self.map.unit(original.len(), written.len());
        }
    }

    /// Counts a character that is taken out, and keeps what it spells.
    fn unseen(&mut self, letter: char) {
        let code = u32::from(letter);
        let selector = match code {
            0xfe00..=0xfe0f => u8::try_from(code - 0xfe00).ok(),
            0xe0100..=0xe01ef => u8::try_from(code - 0xe0100 + 16).ok(),
            _ => None,
        };
        match selector {
            Some(byte) => self.selectors.push(byte),
            None => self.spell_selectors(),
        }
        let count = match code {
            0xe0000..=0xe007f => {
                let spelled =
                    u8::try_from(code - 0xe0000).ok().filter(|byte| matches!(byte, 32..=126));
                self.hidden.extend(spelled.map(char::from));
                &mut self.seen.tags
            }
            _ if self.is_expected(letter) => return,
            0x61c | 0x200e | 0x200f | 0x202a..=0x202e | 0x2066..=0x2069 => &mut self.seen.bidi,
            _ => &mut self.seen.invisible,
        };
        *count = count.saturating_add(1);
    }

    /// Reads selectors in a row as bytes.
    fn spell_selectors(&mut self) {
        if self.selectors.len() >= SELECTORS_MIN
            && let Ok(spelled) = std::str::from_utf8(&self.selectors)
            && !spelled.chars().any(|letter| letter.is_control() && !letter.is_whitespace())
        {
            self.hidden.push_str(spelled);
        }
        self.selectors.clear();
    }

    /// Whether honest texts hold this where it stands.
    fn is_expected(&self, letter: char) -> bool {
        let Some(before) = self.before else { return letter == '\u{feff}' };
        let emoji = matches!(before, '\u{1f000}'..|'\u{2190}'..='\u{2bff}'| '\u{fe0f}');
        let joining = matches!(before, '\u{600}'..='\u{dff}' | '\u{1000}'..='\u{109f}')
            || matches!(before, '\u{1780}'..='\u{18af}');
        match letter {
            '\u{fe00}'..='\u{fe0f}' if before.is_ascii() => {
                before.is_ascii_digit() || matches!(before, '#' | '*')
            }
            '\u{fe00}'..='\u{fe0f}' => !is_latin(before) && !is_unseen(before),
            '\u{180b}'..='\u{180f}' => joining,
            '\u{e0100}'..='\u{e01ef}' => {
                matches!(before, '\u{3400}'..='\u{9fff}' | '\u{20000}'..='\u{3ffff}')
            }
            '\u{200d}' => (emoji && !matches!(before, '\u{e0000}'..)) || joining,
            '\u{200c}' => joining,
            // Where words are written without spaces.
            '\u{200b}' => {
                joining || matches!(before, '\u{e00}'..='\u{eff}' | '\u{3000}'..='\u{9fff}')
            }
            '\u{200e}' | '\u{200f}' | '\u{61c}' => self.leftward && !is_unseen(before),
            _ => false,
        }
    }
}

/// Whether a letter begins something new: nothing before it can change it, nor be changed by it.
fn begins(letter: char) -> bool {
    if letter.is_ascii() {
        return true;
    }
    if is_unseen(letter) || unicode::is_combining_mark(letter) {
        return false;
    }
    let mut first = None;
    unicode::decompose_compatible(letter, |part| {
        first.get_or_insert(part);
    });
    first.is_none_or(|first| {
        unicode::canonical_combining_class(first) == 0
            && is_nfc_quick(std::iter::once(first)) == IsNormalized::Yes
    })
}

/// Marks of no one script.
fn is_mark(letter: char) -> bool {
    matches!(letter, '\u{300}'..='\u{36f}' | '\u{483}'..='\u{489}' | '\u{1ab0}'..='\u{1aff}')
        || matches!(letter, '\u{1dc0}'..='\u{1dff}' | '\u{20d0}'..='\u{20ff}' | '\u{fe20}'..='\u{fe2f}')
}

/// Marks that strike a letter through, underline it or draw something around it.
fn is_stroke(letter: char) -> bool {
    matches!(
        letter,
        '\u{305}' | '\u{332}'..='\u{338}' | '\u{33f}' | '\u{489}' | '\u{20d2}' | '\u{20d3}'
    ) || matches!(letter, '\u{20d8}'..='\u{20da}' | '\u{20dd}'..='\u{20e0}' | '\u{20e2}'..='\u{20e6}')
}

/// Letters of mathematics, and letters in circles and squares: composing makes them plain.
fn is_drawn(letter: char) -> bool {
    matches!(letter, '\u{1d400}'..='\u{1d7ff}' | '\u{249c}'..='\u{24e9}' | '\u{1f110}'..='\u{1f149}')
}

/// Letters that are written from right to left.
fn is_leftward(letter: char) -> bool {
    matches!(letter, '\u{590}'..='\u{8ff}' | '\u{fb1d}'..='\u{fdff}' | '\u{fe70}'..='\u{fefc}')
        || matches!(letter, '\u{10800}'..='\u{10fff}' | '\u{1e800}'..='\u{1efff}')
}

/// Characters that are never drawn: default-ignorable (`DerivedCoreProperties.txt`), and annotation anchors.
fn is_unseen(letter: char) -> bool {
    match letter {
        '\0'..='\u{ac}' => false,
        '\u{ad}' | '\u{34f}' | '\u{61c}' | '\u{115f}' | '\u{1160}' | '\u{17b4}' | '\u{17b5}' => {
            true
        }
        '\u{180b}'..='\u{180f}' | '\u{200b}'..='\u{200f}' | '\u{202a}'..='\u{202e}' => true,
        '\u{2060}'..='\u{206f}' | '\u{3164}' | '\u{fe00}'..='\u{fe0f}' | '\u{feff}' => true,
        '\u{ffa0}' | '\u{fff0}'..='\u{fffb}' | '\u{1bca0}'..='\u{1bca3}' => true,
        '\u{1d173}'..='\u{1d17a}' | '\u{e0000}'..='\u{e0fff}' => true,
        _ => false,
    }
}

#[cfg(test)]
#[path = "fold_tests.rs"]
mod tests;
