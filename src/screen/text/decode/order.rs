//! The same letters in another order: ROT13, and backwards.

use super::super::language::{FLUENT, Place, follows, is_common, place};
use super::{Coding, Finds, bytes::seek};
use std::ops::Range;

/// What each pair of letters costs a reading, in quarters of a point of how well letters follow each other:
/// one that is no better than the text as it stands comes to nothing.
const ROT13_MARGIN: i32 = 2;
/// The same backwards: language reads less badly so.
const REVERSED_MARGIN: i32 = 1;
/// What a common word is worth.
const COMMON_GAIN: i32 = 40;
/// What a stretch may lose before it ends.
const DROP: i32 = 80;

/// ROT13, and backwards: the stretches of a text that read better so than as they stand.
pub(super) fn letters(text: &str, finds: &mut Finds) {
    let (mut rot13, mut reversed) = (Stretch::default(), Stretch::default());
    let bytes = text.as_bytes();
    let is_letter = |byte: u8| byte.is_ascii_alphabetic() || byte >= 0x80;
    let mut at = 0;
    while let Some(start) = seek(bytes, at, is_letter) {
        at = seek(bytes, start, |byte| !is_letter(byte) && byte != b'\'').unwrap_or(bytes.len());
        let [as_is, moved, back] = weigh(bytes.get(start..at).unwrap_or_default());
        let done = rot13.feed(start..at, as_is, moved, ROT13_MARGIN);
        add_rot13(text, done, finds);
        let done = reversed.feed(start..at, as_is, back, REVERSED_MARGIN);
        add_reversed(text, done, finds);
    }
    add_rot13(text, rot13.best, finds);
    add_reversed(text, reversed.best, finds);
}

/// How a word reads.
#[derive(Clone, Copy, Default)]
struct Reading {
    pairs: i32,
    /// How well its letters follow each other, added up.
    score: i32,
    /// A bit that stands for the word, if it is a common one.
    common: u64,
}

/// How a word reads as it stands, by ROT13, and backwards.
fn weigh(word: &[u8]) -> [Reading; 3] {
    let moved = |place: Place| if matches!(place, 1..=26) { (place + 12) % 26 + 1 } else { place };
    let mut readings = [Reading::default(); 3];
    let mut before = 0;
    for place in word.iter().filter(|byte| **byte != b'\'').map(|byte| place(*byte)).chain([0]) {
        let ways = [(before, place), (moved(before), moved(place)), (place, before)];
        for (reading, (first, second)) in readings.iter_mut().zip(ways) {
            if let Some(often) = follows(first, second) {
                reading.pairs += 1;
                reading.score += often;
            }
        }
        before = place;
    }
    let [as_is, rot13, back] = &mut readings;
    let bit = 1 << (word.iter().fold(0, |sum: u32, byte| sum + u32::from(byte & 31)) % 64);
    let common = |is_common: bool| if is_common { bit } else { 0 };
    as_is.common = common(is_common(word.iter().copied()));
    rot13.common = common(is_common(word.iter().map(|byte| from_rot13(*byte))));
    back.common = common(is_common(word.iter().rev().copied()));
    readings
}

fn from_rot13(byte: u8) -> u8 {
    match byte {
        b'a'..=b'm' | b'A'..=b'M' => byte + 13,
        b'n'..=b'z' | b'N'..=b'Z' => byte - 13,
        other => other,
    }
}

/// Words in a row, added up.
#[derive(Clone, Default)]
struct Totals {
    span: Range<usize>,
    words: i32,
    pairs: i32,
    score: i32,
    as_is: i32,
    /// Common words, as they are read and as they stand.
    common: u64,
    common_as_is: u64,
    gain: i32,
}

/// Finds the words in a row whose other reading gains most.
#[derive(Default)]
struct Stretch {
    now: Totals,
    best: Totals,
}

impl Stretch {
    /// Takes a word; gives the best stretch if it ended before this one, else an empty one.
    fn feed(&mut self, span: Range<usize>, as_is: Reading, read: Reading, margin: i32) -> Totals {
        let commons = (i32::from(read.common > 0) - i32::from(as_is.common > 0)) * COMMON_GAIN;
        let gain = match read.pairs {
            // In other scripts.
            0 => -COMMON_GAIN,
            pairs => (read.score - as_is.score) * 4 - margin * pairs + commons,
        };
        let now = &mut self.now;
        if now.words == 0 {
            if gain <= 0 {
                return Totals::default();
            }
            now.span.start = span.start;
        }
        now.span.end = span.end;
        now.words += 1;
        now.pairs += read.pairs;
        now.score += read.score;
        now.as_is += as_is.score;
        now.common |= read.common;
        now.common_as_is |= as_is.common;
        now.gain += gain;
        if now.gain >= self.best.gain {
            self.best = now.clone();
        }
        if now.gain > 0 && now.gain > self.best.gain - DROP {
            return Totals::default();
        }
        std::mem::take(self).best
    }
}

impl Totals {
    /// Whether they are language as they are read, and not as they stand. Common words tell; without them it
    /// takes many pairs, in words longer than most names in programs.
    fn are_language(&self) -> bool {
        let pairs = self.pairs.max(1);
        let mean = self.score as f32 / pairs as f32;
        let better = mean - self.as_is as f32 / pairs as f32;
        let (common, as_is) = (self.common.count_ones(), self.common_as_is.count_ones());
        let told = match common {
            0..=1 => false,
            2 => self.pairs > 15 && better > 0.5,
            _ => better > 0.0,
        };
        let long = self.pairs > 48 && self.pairs > self.words * 5 && better > 0.9;
        let long = long && mean > FLUENT + 0.3;
        mean >= FLUENT && ((told && common > 2 * as_is) || (long && common >= as_is))
    }
}

fn add_rot13(text: &str, found: Totals, finds: &mut Finds) {
    if found.are_language() {
        let part = text.get(found.span.clone()).unwrap_or_default();
        let moved = part.chars().map(|letter| match u8::try_from(letter) {
            Ok(byte) if byte.is_ascii() => char::from(from_rot13(byte)),
            _ => letter,
        });
        finds.add(Coding::Rot13, found.span, moved.collect());
    }
}

fn add_reversed(text: &str, found: Totals, finds: &mut Finds) {
    if found.are_language() {
        let part = text.get(found.span.clone()).unwrap_or_default();
        finds.add(Coding::Reversed, found.span.clone(), part.chars().rev().collect());
        // Word by word, where each was turned in its place.
        let words: Vec<String> =
            part.split_whitespace().map(|word| word.chars().rev().collect()).collect();
        finds.add(Coding::Reversed, found.span, words.join(" "));
    }
}
