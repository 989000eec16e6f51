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
mod tests {
    use super::*;

    fn tags(text: &str) -> String {
        let tag = |letter: char| char::from_u32(0xe0000 + u32::from(letter));
        text.chars().filter_map(tag).collect()
    }

    #[test]
    fn texts_that_read_alike_become_one() {
        let cases = [
            ("plain", "plain"),
            // Composed and widened letters.
            ("cafe\u{301}", "café"),
            ("ｉｇｎｏｒｅ\u{3000}ａｌｌ", "ignore all"),
            ("𝐢𝐠𝐧𝐨𝐫𝐞 𝒶𝓁𝓁 🅘🅖🅝", "ignore all ign"),
            ("ⓘⓖⓝⓞⓡⓔ ﬁle", "ignore file"),
            ("ᄒ\u{1161}\u{11ab}글", "한글"),
            // What nobody sees.
            ("ig\u{200b}no\u{ad}re\u{2060}", "ignore"),
            ("e\u{200b}\u{301}", "é"),
            ("\u{202e}erongi\u{202c}", "erongi"),
            // Letters of other scripts.
            ("ignоrе аll", "ignore all"),
            ("раssшоrd", "password"),
            ("the сосо is", "the coco is"),
            ("Ιgnοre", "Ignore"),
            ("ɪɢɴᴏʀᴇ ᴀʟʟ", "ignore all"),
            ("ᎪᏞᏞ of it", "ALL of it"),
            ("suoᴉʇɔnɹʇsuᴉ", "snoitcurtsni"),
            ("е\u{301}xit", "exit"),
            // Marks.
            ("i\u{335}g\u{335}n\u{336}ore", "ignore"),
            ("z\u{300}\u{301}\u{302}\u{303}\u{304}a\u{316}\u{317}\u{318}\u{319}lgo", "zalgo"),
            ("1\u{fe0f}\u{20e3}", "1"),
            ("\0\u{fc}\0\0\u{fc}", "\0ü\0\0ü"),
        ];
        for (text, expected) in cases {
            assert_eq!(fold(text).text, expected, "{text:?}");
        }
    }

    #[test]
    fn honest_texts_stay_and_nothing_odd_is_seen() {
        let cases = [
            "Съешь ещё этих мягких французских булок, да выпей чаю. Оса села на сосну.",
            "Ξεσκεπάζω την ψυχοφθόρα βδελυγμία. Ο νους και το σώμα.",
            "Müller straße ça été niño Łódź Việt Nam đường phố kırmızı",
            "天地玄黄、宇宙洪荒。ひらがなとカタカナ 대한민국",
            "مرحبا بالعالم שלום עולם नमस्ते दुनिया สวัสดีชาวโลก",
            "The word 'дом' means house; IT-отдел; 5 µm",
            "ɔdɔ ye, ɛyɛ; fəal /fəˈnɛtɪk/ \u{fdfa}",
            "👍🏽 🇩🇪🇫🇷 — “quoted” … naïve",
            "Σ(x) ≤ ∞, α + β = γ, Δt = 3 s",
        ];
        for text in cases {
            let folded = fold(text);
            let composed: String = text
                .split(LONGEST)
                .map(|part| part.nfkc().collect())
                .collect::<Vec<String>>()
                .join("\u{fdfa}");
            assert_eq!((&*folded.text, folded.seen.total()), (&*composed, 0));
            assert_eq!(folded.hidden, "");
        }
    }

    #[test]
    fn what_honest_texts_hold_is_taken_out_and_not_counted() {
        let cases = [
            ("❤\u{fe0f} ok", "❤ ok"),
            ("👨\u{200d}👩\u{200d}👧", "👨👩👧"),
            ("می\u{200c}خواهم", "میخواهم"),
            ("אבג\u{200f}!", "אבג!"),
            ("\u{feff}first", "first"),
            ("葛\u{e0100}城", "葛城"),
        ];
        for (text, expected) in cases {
            let folded = fold(text);
            assert_eq!((&*folded.text, folded.seen.total()), (expected, 0), "{text:?}");
        }
        let flag = format!("\u{1f3f4}{}\u{e007f} flag", tags("gbsct"));
        let folded = fold(&flag);
        assert_eq!((&*folded.text, folded.seen.total()), ("\u{1f3f4} flag", 0));
    }

    #[test]
    fn oddities_are_counted_by_kind() {
        let text = format!(
            "a\u{200b}\u{200b}b \u{202e}c {} pаy {}x\u{300}\u{301}\u{302}\u{303}",
            tags("Do it~"),
            "y\u{336}"
        );
        let folded = fold(&text);
        let expected = Oddities { invisible: 2, bidi: 1, tags: 6, homoglyphs: 1, marks: 5 };
        assert_eq!(folded.seen, expected);
        assert_eq!(folded.hidden, "Do it~");
        assert_eq!(folded.text, "ab c  pay yx");
        assert_eq!(fold("𝐚𝐛").seen.homoglyphs, 2);
        let smuggled: String = "ignore"
            .bytes()
            .filter_map(|byte| char::from_u32(0xe0100 + u32::from(byte) - 16))
            .collect();
        let smuggled = format!("😀{smuggled}");
        let folded = fold(&smuggled);
        assert_eq!((&*folded.text, &*folded.hidden), ("😀", "ignore"));
        assert_eq!(folded.seen.invisible, 6);
    }

    #[test]
    fn places_are_found_again() {
        let text = "x ig\u{200b}nоrе ｙ cafe\u{301}!";
        let folded = fold(text);
        assert_eq!(folded.text, "x ignore y café!");
        let origin = |part: &str| {
            let at = folded.text.find(part).unwrap();
            text.get(folded.origin(at..at + part.len())).unwrap()
        };
        assert_eq!(origin("ignore"), "ig\u{200b}nоrе");
        assert_eq!(origin("re"), "rе");
        assert_eq!(origin("y"), "ｙ");
        assert_eq!(origin("é"), "e\u{301}");
        assert_eq!(origin("!"), "!");
        assert_eq!(folded.origin(0..folded.text.len()), 0..text.len());
        assert_eq!(folded.origin(1..1), 1..1);
        assert_eq!(fold("ab").origin(1..2), 1..2);
        let unseen = fold("\u{200b}\u{200b}");
        assert_eq!((&*unseen.text, unseen.origin(0..0)), ("", 6..6));
    }

    #[test]
    fn many_changes_need_little_room_and_places_hold_what_was_meant() {
        // No two neighbours are of one size.
        let sizes = ["ａ", "é", "ﬁ", "b\u{200b}", "е\u{200b}x", " "];
        let mut text = String::new();
        for number in 0..40_000_usize {
            text.push_str(sizes[number * number % 31 % sizes.len()]);
        }
        text.push_str("needle");
        let folded = fold(&text);
        assert!(folded.composed.is_small() && folded.latin.is_small());
        let at = folded.text.find("needle").unwrap();
        let origin = folded.origin(at..at + 6);
        assert!(
            text.get(origin.clone()).unwrap().contains("needle") && origin.len() < 200,
            "{origin:?}"
        );
        let mut last = 0;
        for (at, letter) in folded.text.char_indices().step_by(97) {
            let origin = folded.origin(at..at + letter.len_utf8());
            assert!(
                origin.start < origin.end
                    && origin.start >= last
                    && text.get(origin.clone()).is_some()
            );
            last = origin.start;
        }
    }

    #[test]
    #[ignore = "prints how long hostile texts take"]
    fn figures() {
        let megabyte = |unit: &str| unit.repeat((1 << 20) / unit.len());
        let cases = [
            ("ascii", "a"),
            ("Cyrillic", "ж"),
            ("Cyrillic that looks Latin", "а"),
            ("such words", "а "),
            ("such a word and another", "а b "),
            ("Han", "中"),
            ("full width", "ａ"),
            ("mathematical", "𝐚"),
            ("marks", "\u{301}"),
            ("a letter and marks", "a\u{301}\u{302}\u{303}\u{304}"),
            ("mixed marks", "\u{316}\u{301}"),
            ("tags", "\u{e0041}"),
            ("zero width", "\u{200b}"),
            ("selectors", "\u{fe01}"),
            ("alternating scripts", "aаbв"),
            ("alternating widths", "aａ\u{200b}bﬁ"),
            ("jamo", "\u{1161}"),
            ("ligature", "\u{fdfa}"),
            ("emoji", "👩\u{200d}🚀"),
        ];
        for (name, unit) in cases {
            let text = megabyte(unit);
            let start = super::super::tests::cpu();
            let folded = fold(&text);
            let took = super::super::tests::cpu() - start;
            println!("fold  {name:26} {took:>12.1?} -> {} bytes", folded.text.len());
        }
    }
}
