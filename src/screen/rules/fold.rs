//! Text in the form in which phrases are compared: lower case, white space as single blanks, without
//! characters that nobody sees. Places in it lead back to the text as written.
//!
//! What the prefilter rests on: if a text contains another, the folded text contains the folded other.

use std::borrow::Cow;

/// A folded text.
#[derive(Debug)]
pub(super) struct Folded<'a> {
    /// The folded text.
    pub text: Cow<'a, str>,
    /// Pieces that are as long as in the original: where each starts, here and there.
    pieces: Vec<(usize, usize)>,
}

/// What a character becomes. None: it is dropped.
pub(super) fn fold_char(character: char) -> Option<Folds> {
    Some(match character {
        'A'..='Z' => Folds::One(character.to_ascii_lowercase()),
        '\u{ad}' | '\u{200b}'..='\u{200f}' | '\u{2060}' | '\u{feff}' => return None,
        _ if character.is_whitespace() => Folds::One(' '),
        '\0'..='\u{7f}' => Folds::One(character),
        '\u{2018}' | '\u{2019}' => Folds::One('\''),
        _ => {
            let character = usual(character);
            let mut lower = character.to_lowercase();
            match (lower.next(), lower.next()) {
                (Some(one), None) => Folds::One(one),
                _ => Folds::Many(character.to_lowercase()),
            }
        }
    })
}

/// Lower case letters that have a usual form: the same to a reader, and to a pattern that ignores case.
fn usual(character: char) -> char {
    match character {
        'ſ' => 's',
        'µ' => 'μ',
        '\u{345}' | '\u{1fbe}' => 'ι',
        '\u{1fd3}' => 'ΐ',
        '\u{1fe3}' => 'ΰ',
        'ϐ' => 'β',
        'ϵ' => 'ε',
        'ϑ' => 'θ',
        'ϰ' => 'κ',
        'ϖ' => 'π',
        'ϱ' => 'ρ',
        'ς' => 'σ',
        'ϕ' => 'φ',
        '\u{1c80}' => 'в',
        '\u{1c81}' => 'д',
        '\u{1c82}' => 'о',
        '\u{1c83}' => 'с',
        '\u{1c84}' | '\u{1c85}' => 'т',
        '\u{1c86}' => 'ъ',
        '\u{1c87}' => 'ѣ',
        '\u{1c88}' => 'ꙋ',
        'ẛ' => 'ṡ',
        '\u{fb05}' => '\u{fb06}',
        other => other,
    }
}

/// What a character becomes.
#[derive(Clone, Debug)]
pub(super) enum Folds {
    /// One character.
    One(char),
    /// Several.
    Many(std::char::ToLowercase),
}

/// Adds the folded form of a character to a folded text.
pub(super) fn push_folded(out: &mut String, character: char) {
    match fold_char(character) {
        // Runs of white space are one blank.
        Some(Folds::One(' ')) if out.ends_with(' ') => {}
        Some(Folds::One(one)) => out.push(one),
        Some(Folds::Many(many)) => out.extend(many),
        None => {}
    }
}

/// The folded form of a phrase.
pub(super) fn fold_phrase(phrase: &str) -> String {
    let mut out = String::with_capacity(phrase.len());
    phrase.chars().for_each(|character| push_folded(&mut out, character));
    out
}

impl<'a> Folded<'a> {
    /// Folds a text.
    pub(super) fn new(text: &'a str) -> Self {
        let kept = unchanged(text.as_bytes());
        let (head, rest) = text.split_at_checked(kept).unwrap_or((text, ""));
        if rest.is_empty() {
            return Self { text: Cow::Borrowed(text), pieces: Vec::new() };
        }
        let mut folding = Folding { out: String::with_capacity(text.len()), ..Folding::default() };
        folding.out.push_str(head);
        let mut at = kept;
        for part in rest.split_inclusive(|character: char| !character.is_ascii()) {
            let plain = part.len()
                - part.chars().next_back().map_or(0, |last| match last.len_utf8() {
                    1 => 0,
                    length => length,
                });
            let (ascii, other) = part.split_at_checked(plain).unwrap_or((part, ""));
            folding.ascii(ascii, at);
            folding.place(at + plain);
            other.chars().for_each(|character| push_folded(&mut folding.out, character));
            at += part.len();
        }
        folding.place(text.len());
        Self { text: Cow::Owned(folding.out), pieces: folding.pieces }
    }

    /// The place in the original of a place in the folded text; in the middle of a character that became
    /// longer it may be no boundary.
    pub(super) fn original(&self, at: usize) -> usize {
        let behind = self.pieces.partition_point(|(folded, _)| *folded <= at);
        match behind.checked_sub(1).and_then(|piece| self.pieces.get(piece)) {
            Some((folded, original)) => original + (at - folded),
            None => at,
        }
    }
}

/// A text that is being folded.
#[derive(Default)]
struct Folding {
    out: String,
    pieces: Vec<(usize, usize)>,
    /// How far the folded text is from the original, modulo the numbers there are.
    shift: usize,
}

impl Folding {
    /// Tells which place of the original comes next.
    fn place(&mut self, original: usize) {
        let shift = self.out.len().wrapping_sub(original);
        if shift != self.shift {
            self.shift = shift;
            self.pieces.push((self.out.len(), original));
        }
    }

    /// Folds ASCII text, which is most text, from a place on.
    fn ascii(&mut self, text: &str, at: usize) {
        let is_space = |byte: &u8| byte.is_ascii_whitespace() || *byte == 0x0b;
        let mut rest = text;
        let mut at = at;
        while !rest.is_empty() {
            let blanks = rest.bytes().take_while(|byte| is_space(byte)).count();
            if blanks > 0 && !self.out.ends_with(' ') {
                self.place(at);
                self.out.push(' ');
            }
            let words = rest.bytes().skip(blanks).take_while(|byte| !is_space(byte)).count();
            let (done, behind) = rest.split_at_checked(blanks + words).unwrap_or((rest, ""));
            self.place(at + blanks);
            let from = self.out.len();
            self.out.push_str(done.get(blanks..).unwrap_or_default());
            self.out.get_mut(from..).unwrap_or_default().make_ascii_lowercase();
            (rest, at) = (behind, at + done.len());
        }
    }
}

/// How many bytes at the start fold to themselves.
fn unchanged(text: &[u8]) -> usize {
    let same = |pair: &[u8]| match pair {
        [b' ', b' '] => false,
        [.., b] => matches!(b, b' '..=b'@' | b'['..=b'~'),
        [] => true,
    };
    let first = text.first().map_or(0, |byte| usize::from(same(&[*byte])));
    if first == 0 {
        return 0;
    }
    first + text.windows(2).take_while(|pair| same(pair)).count()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_are_folded() {
        let cases = [
            ("", ""),
            ("plain text.", "plain text."),
            ("IGNORE All", "ignore all"),
            ("a \t\r\n b", "a b"),
            ("  a", " a"),
            ("a\u{a0}\u{3000}b", "a b"),
            ("ig\u{200b}no\u{ad}re", "ignore"),
            ("a \u{200b} b", "a b"),
            ("don\u{2019}t", "don't"),
            ("ÄÖÜ ИГНОРИРУЙ ΟΔΟΣ", "äöü игнорируй οδοσ"),
            ("οδος", "οδοσ"),
            ("ſ \u{212a} İ", "s k i\u{307}"),
            ("无视", "无视"),
        ];
        for (text, folded) in cases {
            assert_eq!(Folded::new(text).text, folded, "{text}");
            assert_eq!(fold_phrase(text), folded, "{text}");
        }
    }

    #[test]
    fn what_is_the_same_without_case_is_the_same_folded() {
        use regex_syntax::hir::{ClassUnicode, ClassUnicodeRange};
        for character in '\0'..=char::MAX {
            let mut alike = ClassUnicode::new([ClassUnicodeRange::new(character, character)]);
            alike.case_fold_simple();
            let folded = fold_phrase(&character.to_string());
            for other in alike.iter().flat_map(|range| range.start()..=range.end()) {
                assert_eq!(fold_phrase(&other.to_string()), folded, "{character:?} {other:?}");
            }
        }
    }

    #[test]
    fn places_lead_back() {
        let cases = [
            ("abc def", "def", "def"),
            ("ABC  DEF", "def", "DEF"),
            ("ABC \n DEF ghi", "c def g", "C \n DEF g"),
            ("İİ DEF", "def", "DEF"),
            ("ig\u{200b}no\u{ad}re it", "ignore", "ig\u{200b}no\u{ad}re"),
            ("x\u{feff}", "x", "x\u{feff}"),
            ("ẞ end", "end", "end"),
        ];
        for (text, phrase, original) in cases {
            let folded = Folded::new(text);
            let start = folded.text.find(phrase).unwrap();
            let span = folded.original(start)..folded.original(start + phrase.len());
            assert_eq!(text.get(span), Some(original), "{text}");
        }
    }

    #[test]
    fn what_contains_a_text_contains_it_folded() {
        let texts = ["A  B", " \u{200b} ", "İ", "don\u{2019}t  ſ", "x\ny", "É"];
        for inner in texts {
            for before in texts {
                for behind in texts {
                    let whole = format!("{before}{inner}{behind}");
                    let folded = Folded::new(&whole);
                    assert!(folded.text.contains(&fold_phrase(inner)), "{whole:?} {inner:?}");
                    assert!(folded.original(folded.text.len()) == whole.len(), "{whole:?}");
                }
            }
        }
    }
}
