//! Codings of bytes: base64, hexadecimal, binary.

use super::super::language::{FLUENT, fluency};
use super::{Coding, Finds, letters::reads};
use base64::{
    Engine, alphabet,
    engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig},
};
use std::ops::Range;

/// Base64 that is worth a look, characters.
const BASE64_MIN: usize = 16;
/// Bytes in hexadecimal that are worth a look.
const HEX_MIN: usize = 8;
/// Bytes in binary that are worth a look.
const BINARY_MIN: usize = 5;
/// Bytes between two numbers of a list.
const LIST_GAP: usize = 4;
/// Bytes that may be printable by chance.
const CHANCE_MAX: usize = 24;
/// How well the letters of so few must follow each other. Of language hardly any does not, and of letters at
/// random few do.
const CHANCE_FLUENT: f32 = 3.8;

/// Bytes as text. `None` if more than one in eight is not of printable UTF-8, or signs outnumber letters.
pub(super) fn readable(bytes: &[u8]) -> Option<String> {
    let mut text = String::with_capacity(bytes.len());
    let (mut bad, mut words, mut letters) = (0, 0, 0);
    for chunk in bytes.utf8_chunks() {
        for letter in chunk.valid().chars() {
            let space = letter.is_whitespace();
            let private = matches!(letter, '\u{e000}'..='\u{f8ff}' | '\u{fff0}'..='\u{ffff}');
            if (letter.is_control() && !space) || private {
                bad += letter.len_utf8();
                continue;
            }
            letters += 1;
            words += usize::from(space || letter.is_alphanumeric());
            text.push(letter);
        }
        bad += chunk.invalid().len();
        if bad > bytes.len() / 8 {
            return None;
        }
    }
    let enough = letters > 0 && words * 2 >= letters;
    (enough && (bytes.len() >= CHANCE_MAX || is_no_chance(&text))).then_some(text)
}

/// Whether a short text is more than bytes that happen to be printable.
fn is_no_chance(text: &str) -> bool {
    let script = |letter: char| match u32::from(letter) {
        0..0x80 => 0,
        // Latin letters with accents; East Asian scripts, which are mixed.
        0x80..0x250 => 1_u64,
        0x3000..0xd7b0 => 2,
        code => 4 << ((code >> 8) % 62),
    };
    let letters = text.chars().filter(|letter| letter.is_alphabetic());
    let foreign = letters.clone().fold(0, |all, letter| all | script(letter));
    let ascii = letters.filter(char::is_ascii).count();
    let plain = |letter: char| letter.is_alphanumeric() || letter.is_whitespace();
    match ascii {
        _ if foreign.count_ones() > 1 => false,
        // Digits of a coding inside this one.
        0..4 if foreign == 0 => text.chars().all(plain),
        4.. => fluency(text).0 >= CHANCE_FLUENT,
        _ => true,
    }
}

const BASE64: GeneralPurpose = GeneralPurpose::new(
    &alphabet::STANDARD,
    GeneralPurposeConfig::new()
        .with_decode_allow_trailing_bits(true)
        .with_decode_padding_mode(DecodePaddingMode::Indifferent),
);

/// Base64, with lines broken or not.
pub(super) fn base64(text: &str, finds: &mut Finds) {
    let is_digit =
        |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'+' | b'/' | b'-' | b'_');
    let bytes = text.as_bytes();
    let mut lines: Vec<Range<usize>> = Vec::new();
    let mut at = 0;
    while let Some(start) = seek(bytes, at, is_digit) {
        let end = seek(bytes, start, |byte| !is_digit(byte)).unwrap_or(bytes.len());
        lines.push(start..end);
        at = end;
        let rest = bytes.get(end..).unwrap_or_default();
        let behind = rest
            .strip_prefix(b"\r")
            .unwrap_or(rest)
            .strip_prefix(b"\n")
            .map(<[u8]>::trim_ascii_start);
        match behind {
            Some(behind) if behind.first().copied().is_some_and(is_digit) => continue,
            _ => read_base64(text, &lines, finds),
        }
        lines.clear();
    }
}

/// The next byte of a kind.
pub(super) fn seek(bytes: &[u8], at: usize, wanted: impl Fn(u8) -> bool) -> Option<usize> {
    Some(at + bytes.get(at..)?.iter().position(|byte| wanted(*byte))?)
}

fn read_base64(text: &str, lines: &[Range<usize>], finds: &mut Finds) {
    let bytes = text.as_bytes();
    let digits = |lines: &[Range<usize>]| -> Vec<u8> {
        let lines = lines.iter().filter_map(|line| bytes.get(line.clone())).flatten();
        lines
            .map(|digit| match digit {
                b'-' => b'+',
                b'_' => b'/',
                other => *other,
            })
            .collect()
    };
    let mut read = |lines: &[Range<usize>]| {
        let len: usize = lines.iter().map(Range::len).sum();
        let Some((first, last)) = lines.first().zip(lines.last()) else { return false };
        let span = first.start..last.end;
        // Long words have the same letters.
        let coded = len >= BASE64_MIN
            && fluency(text.get(span.clone()).unwrap_or_default()).0 < FLUENT - 0.5;
        let found = if coded { from_base64(&digits(lines)) } else { None };
        found.map(|found| finds.add(Coding::Base64, span, found)).is_some()
    };
    // Lines may as well have nothing to do with each other.
    if !read(lines) && lines.len() > 1 {
        for line in lines {
            read(std::slice::from_ref(line));
        }
    }
}

/// Decodes base64. Something may stand before it that looks like a part of it: `path/aWdub3Jl`.
fn from_base64(digits: &[u8]) -> Option<String> {
    (0..4).find_map(|skipped| {
        let digits =
            digits.get(skipped..).filter(|digits| skipped == 0 || digits.len() > 2 * BASE64_MIN)?;
        let whole = if digits.len() % 4 == 1 { digits.len() - 1 } else { digits.len() };
        let bytes = BASE64.decode(digits.get(..whole)?).ok()?;
        // Two bytes for each letter.
        if bytes.len() > 2 && bytes.chunks_exact(2).all(|pair| pair.last() == Some(&0)) {
            return readable(&bytes.iter().copied().step_by(2).collect::<Vec<_>>());
        }
        readable(&bytes)
    })
}

/// Hexadecimal: in one, in pairs, in a list.
pub(super) fn hex(text: &str, finds: &mut Finds) {
    let is_number = |word: &[u8]| {
        let bare = word.strip_prefix(b"0x").or(word.strip_prefix(b"0X")).unwrap_or(word);
        bare.len().is_multiple_of(2) && !bare.is_empty() && bare.iter().all(u8::is_ascii_hexdigit)
    };
    lists(text, is_number, |numbers, span| {
        let mut bytes = Vec::new();
        let mut decimal = true;
        for number in numbers {
            decimal &= number.iter().all(u8::is_ascii_digit);
            let digits =
                if number.get(1).is_some_and(|x| matches!(x, b'x' | b'X')) { 2 } else { 0 };
            bytes.extend(from_digits(number.get(digits..).unwrap_or_default(), 16, 2));
        }
        let found = if bytes.len() < HEX_MIN { None } else { readable(&bytes) };
        // Ages and prices are digits too.
        let found = found.filter(|found| !decimal || reads(found));
        found.map(|found| finds.add(Coding::Hex, span, found)).is_some()
    });
}

/// Binary, eight digits for each byte.
pub(super) fn binary(text: &str, finds: &mut Finds) {
    let is_number = |word: &[u8]| {
        word.len().is_multiple_of(8) && word.iter().all(|digit| matches!(digit, b'0' | b'1'))
    };
    lists(text, is_number, |numbers, span| {
        let bytes: Vec<u8> = numbers.iter().flat_map(|number| from_digits(number, 2, 8)).collect();
        let found = if bytes.len() < BINARY_MIN { None } else { readable(&bytes) };
        found.map(|found| finds.add(Coding::Binary, span, found)).is_some()
    });
}

/// Bytes of so many digits each.
fn from_digits(digits: &[u8], radix: u32, len: usize) -> impl Iterator<Item = u8> {
    digits.chunks_exact(len).map(move |byte| {
        let digit = |digit: &u8| char::from(*digit).to_digit(radix).unwrap_or(0);
        let value = byte.iter().fold(0, |value, next| value * radix + digit(next));
        u8::try_from(value).unwrap_or(0)
    })
}

/// Walks over lists of numbers. What cannot be read as one is tried number by number.
fn lists<'t>(
    text: &'t str,
    is_number: impl Fn(&[u8]) -> bool,
    mut read: impl FnMut(&[&'t [u8]], Range<usize>) -> bool,
) {
    let bytes = text.as_bytes();
    let mut list: Vec<(&[u8], usize)> = Vec::new();
    let mut flush = |list: &mut Vec<(&'t [u8], usize)>| {
        let numbers: Vec<_> = list.iter().map(|(number, _)| *number).collect();
        let (first, last) = (list.first(), list.last());
        let span = first.map_or(0, |(_, at)| *at)..last.map_or(0, |(number, at)| at + number.len());
        if !numbers.is_empty() && !read(&numbers, span) && numbers.len() > 1 {
            for (number, at) in list.iter() {
                read(&[number], *at..at + number.len());
            }
        }
        list.clear();
    };
    let (mut at, mut before) = (0, 0);
    while let Some(start) = seek(bytes, at, |byte| byte.is_ascii_alphanumeric()) {
        let end = seek(bytes, start, |byte| !byte.is_ascii_alphanumeric()).unwrap_or(bytes.len());
        let word = bytes.get(start..end).unwrap_or_default();
        let gap = bytes.get(before..start).unwrap_or_default();
        let near =
            gap.len() <= LIST_GAP && gap.iter().all(|byte| b" \t\r\n,;:-|'\"".contains(byte));
        if !near || !is_number(word) {
            flush(&mut list);
        }
        if is_number(word) {
            list.push((word, start));
        }
        (at, before) = (end, end);
    }
    flush(&mut list);
}
