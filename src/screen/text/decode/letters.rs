//! Letters drawn apart or written as something else: spaced out, Morse code, digits for letters.

use super::super::language::{FLUENT, fluency, is_common};
use super::{Coding, Finds};
use std::{borrow::Cow, ops::Range};

/// Letters that were spaced out, at the least.
const SPACED_MIN: usize = 5;
/// The same in scripts of which is not known what reads well.
const SPACED_OTHER_MIN: usize = 8;
/// Bytes of a sentence. Longer ones are cut.
const SENTENCE_MAX: usize = 512;
/// Bytes between two letters that belong together.
const SPACED_GAP: usize = 8;

/// Whether letters that were put together read like language.
pub(super) fn reads(text: &str) -> bool {
    let (mean, pairs) = fluency(text);
    let common = text.split(' ').any(|word| is_common(word.bytes()));
    let words = text.split(|letter: char| !letter.is_alphabetic()).filter(|word| !word.is_empty());
    let letters = text.chars().filter(|letter| letter.is_alphabetic()).count();
    // Few pairs may follow each other well by chance, and so may a letter and nothing.
    let wanted = if common || pairs > 16 { FLUENT } else { FLUENT + 0.5 };
    pairs > 4 && mean >= wanted && letters * 2 >= words.count() * 5
}

/// Single letters with something between them.
pub(super) fn spaced(text: &str, finds: &mut Finds) {
    let mut run = Spaced::default();
    let mut letters = text.char_indices().peekable();
    let mut inside = false;
    while let Some((at, letter)) = letters.next() {
        let is_letter = letter.is_alphanumeric();
        let alone = !inside && letters.peek().is_none_or(|(_, next)| !next.is_alphanumeric());
        inside = is_letter;
        if !is_letter {
            continue;
        }
        if !alone || !run.go_on(text, at, letter) {
            run.close(finds);
            if alone {
                run =
                    Spaced { span: at..at + letter.len_utf8(), letters: letter.into(), gap: None };
            }
        }
    }
    run.close(finds);
}

/// Letters that stand alone in a row.
#[derive(Default)]
struct Spaced<'t> {
    span: Range<usize>,
    letters: String,
    /// What stands between the first two.
    gap: Option<&'t str>,
}

impl<'t> Spaced<'t> {
    /// Takes a letter, if it belongs to the others.
    fn go_on(&mut self, text: &'t str, at: usize, letter: char) -> bool {
        let Some(gap) = text.get(self.span.end..at).filter(|gap| gap.len() <= SPACED_GAP) else {
            return false;
        };
        let mut signs = gap.chars().filter(|sign| !sign.is_whitespace());
        let sign = signs.next();
        // Quotes and brackets are code.
        if self.letters.is_empty() || sign.is_some_and(|sign| !"._-*,/|·•~+:;=&".contains(sign))
        {
            return false;
        }
        let usual = *self.gap.get_or_insert(gap);
        if gap != usual {
            // Wider between words.
            let same = signs.chain(sign).all(|sign| usual.contains(sign));
            if !same || gap.len() < usual.len() && usual.trim().is_empty() {
                return false;
            }
            self.letters.push(' ');
        } else if signs.next().is_some() {
            return false;
        }
        self.letters.push(letter);
        self.span.end = at + letter.len_utf8();
        true
    }

    fn close(&mut self, finds: &mut Finds) {
        let run = std::mem::take(self);
        let count = run.letters.chars().filter(|letter| letter.is_alphabetic()).count();
        let ascii = run.letters.bytes().filter(u8::is_ascii_alphabetic).count();
        let cased = |letter: char| letter.is_lowercase() || letter.is_uppercase() || letter == ' ';
        let found = if ascii * 2 > count {
            count >= SPACED_MIN && is_varied(&run.letters) && reads(&run.letters)
        } else {
            count >= SPACED_OTHER_MIN && run.letters.chars().all(cased)
        };
        if found {
            finds.add(Coding::Spaced, run.span, run.letters);
        }
    }
}

/// Letters by their code: 1, then 0 for each dot and 1 for each dash.
const MORSE: &[u8; 64] = b"  ETIANMSURWDKGOHVF L PJBXCYZQ  54 3   2       16       7   8 90";

pub(super) fn morse(text: &str, finds: &mut Finds) {
    let is_sign = |letter: char| " \n./|·•_-−–—".contains(letter);
    let mut at = 0;
    // Most of what is found first is a space or a dash.
    for part in text.split_inclusive(|letter| !is_sign(letter)) {
        let start = at;
        at += part.len();
        let signs = part.trim_end_matches(|letter| !is_sign(letter));
        if signs.len() > 2 * SPACED_MIN
            && let Some(found) = from_morse(signs).filter(|found| reads(found) && is_varied(found))
        {
            finds.add(Coding::Morse, start..start + signs.len(), found);
        }
    }
}

/// Whether a text has more letters than rulers and tables make of their lines.
fn is_varied(text: &str) -> bool {
    let letters = text.bytes().filter(u8::is_ascii_alphabetic);
    letters.fold(0_u32, |all, letter| all | 1 << (letter & 31)).count_ones() > 3
}

fn from_morse(signs: &str) -> Option<String> {
    let mut text = String::new();
    let mut code = 1;
    for sign in signs.trim().chars().chain([' ']) {
        match sign {
            '.' | '·' | '•' => code *= 2,
            '_' | '-' | '−' | '–' | '—' => code = code * 2 + 1,
            _ if code > 1 => {
                let letter = MORSE.get(code).filter(|letter| **letter != b' ')?;
                text.push(char::from(letter.to_ascii_lowercase()));
                code = 1;
            }
            _ if text.ends_with(' ') => {}
            _ => text.push(' '),
        }
        if code >= MORSE.len() {
            return None;
        }
        if matches!(sign, '/' | '|' | '\n') && !text.ends_with(' ') {
            text.push(' ');
        }
    }
    Some(text.trim().to_owned())
}

/// Sentences, roughly: parts of a text that end with a line or a stop, or where they get long.
fn sentences(text: &str) -> Vec<Range<usize>> {
    let mut sentences = Vec::new();
    let (mut start, mut stop) = (0, false);
    for (at, letter) in text.char_indices() {
        let ends =
            letter == '\n' || (letter.is_whitespace() && (stop || at - start >= SENTENCE_MAX));
        if ends {
            sentences.push(start..at);
            start = at;
        }
        stop = matches!(letter, '.' | '?' | '!' | ';');
    }
    sentences.push(start..text.len());
    sentences
}

/// Digits and signs for letters.
pub(super) fn leet(text: &str, finds: &mut Finds) {
    for span in sentences(text) {
        let Some(sentence) = text.get(span.clone()) else { continue };
        if !sentence.bytes().any(|byte| byte.is_ascii_digit()) {
            continue;
        }
        let (mut evidence, mut last) = (0, "");
        let mut plain = String::new();
        for word in sentence.split_inclusive(char::is_whitespace) {
            let (read, told) = from_leet(word);
            plain.push_str(&read);
            // The same name twice tells no more than once.
            if told && word.trim() != last {
                evidence += 1;
                last = word.trim();
            }
        }
        if evidence > 1 {
            finds.add(Coding::Leet, span, plain.trim().to_owned());
        }
    }
}

/// A word with letters for its digits, and whether it is evidence that they are meant so.
fn from_leet(word: &str) -> (Cow<'_, str>, bool) {
    let is_edge = |letter: char| letter.is_whitespace() || ".,;:?\"'()".contains(letter);
    let inner = word.trim_start_matches(is_edge);
    let bare = inner.trim_end_matches(|letter| is_edge(letter) || letter == '!');
    let digits = bare.bytes().filter(|byte| leet_letter(*byte, b'i').is_some()).count();
    let letters = bare.bytes().filter(u8::is_ascii_alphabetic).count();
    let number = ["0x", "0X", "0b", "0o"].iter().any(|prefix| bare.starts_with(prefix));
    if digits == 0 || number || digits > letters || digits + letters < bare.len() {
        return (word.into(), false);
    }
    // One stands for two letters.
    let [(read, common, mean), other] = [b'i', b'l'].map(|one| {
        let read: String =
            bare.bytes().map(|byte| char::from(leet_letter(byte, one).unwrap_or(byte))).collect();
        let (common, mean) = (is_common(read.bytes()), fluency(&read).0);
        (read, common, mean)
    });
    let first = (common, mean) >= (other.1, other.2);
    let (read, common, mean) = if first { (read, common, mean) } else { other };
    // A digit with a letter behind it: "gpt4" and "utf8" are only names, and so is "Utf8Path".
    let small = bare.bytes().any(|byte| byte.is_ascii_lowercase());
    let within = bare.as_bytes().windows(2).any(|pair| match pair {
        [first, second] if small => first.is_ascii_digit() && second.is_ascii_lowercase(),
        [first, second] => first.is_ascii_digit() && second.is_ascii_alphabetic(),
        _ => false,
    });
    let told = within && (common || (bare.len() > 4 && mean >= FLUENT));
    let (before, behind) = (word.len() - inner.len(), inner.get(bare.len()..).unwrap_or_default());
    let read = [word.get(..before).unwrap_or_default(), &read, behind].concat();
    (read.into(), told)
}

fn leet_letter(byte: u8, one: u8) -> Option<u8> {
    Some(match byte {
        b'0' => b'o',
        b'1' | b'!' => one,
        b'3' => b'e',
        b'4' | b'@' => b'a',
        b'5' | b'$' => b's',
        b'7' | b'+' => b't',
        b'8' => b'b',
        b'9' => b'g',
        _ => return None,
    })
}
