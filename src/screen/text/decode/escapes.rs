//! Escapes of single letters: percent, entities, backslashes.

use super::{Coding, Finds, bytes::readable};
use memchr::memchr_iter;
use std::ops::Range;

/// Escapes that are worth a look.
const ESCAPES_MIN: usize = 3;
/// Bytes between two escapes that belong together. What stands around them is shown too.
const ESCAPES_GAP: usize = 96;

pub(super) fn percent(text: &str, finds: &mut Finds) {
    escapes(text, b'%', finds, |rest, out| {
        out.push(u8::try_from(code(rest.get(1..3)?, 16)?).ok()?);
        Some((3, Coding::Percent))
    });
}

pub(super) fn entities(text: &str, finds: &mut Finds) {
    const NAMED: [(&str, char); 20] = [
        ("lt;", '<'),
        ("gt;", '>'),
        ("amp;", '&'),
        ("quot;", '"'),
        ("apos;", '\''),
        ("nbsp;", ' '),
        ("vert;", '|'),
        ("verbar;", '|'),
        ("lsqb;", '['),
        ("lbrack;", '['),
        ("rsqb;", ']'),
        ("rbrack;", ']'),
        ("colon;", ':'),
        ("sol;", '/'),
        ("bsol;", '\\'),
        ("num;", '#'),
        ("lowbar;", '_'),
        ("period;", '.'),
        ("Tab;", '\t'),
        ("NewLine;", '\n'),
    ];
    escapes(text, b'&', finds, |rest, out| {
        let name = rest.get(1..)?;
        if let Some((name, letter)) = NAMED.iter().find(|(known, _)| name.starts_with(known)) {
            push(out, *letter);
            return Some((1 + name.len(), Coding::Entities));
        }
        let number = name.strip_prefix('#')?;
        let (digits, radix) =
            number.strip_prefix(['x', 'X']).map_or((number, 10), |digits| (digits, 16));
        let len = digits.bytes().take(8).position(|byte| !char::from(byte).is_digit(radix))?;
        push(out, char::from_u32(code(digits.get(..len)?, radix)?)?);
        let closed = digits.get(len..)?.starts_with(';');
        Some((rest.len() - digits.len() + len + usize::from(closed), Coding::Entities))
    });
}

pub(super) fn backslashes(text: &str, finds: &mut Finds) {
    escapes(text, b'\\', finds, |rest, out| {
        let hex = |span: Range<usize>| code(rest.get(span)?, 16);
        match rest.as_bytes().get(1)? {
            b'x' => {
                out.push(u8::try_from(hex(2..4)?).ok()?);
                Some((4, Coding::Hex))
            }
            b'U' => {
                push(out, char::from_u32(hex(2..10)?)?);
                Some((10, Coding::Escapes))
            }
            b'u' if rest.as_bytes().get(2) == Some(&b'{') => {
                let len = rest.bytes().take(12).position(|byte| byte == b'}')?;
                push(out, char::from_u32(hex(3..len)?)?);
                Some((len + 1, Coding::Escapes))
            }
            b'u' => {
                let first = hex(2..6)?;
                let second =
                    rest.get(6..8).filter(|behind| *behind == "\\u").and_then(|_| hex(8..12));
                let (first, second) =
                    (u16::try_from(first).ok()?, u16::try_from(second.unwrap_or(0)).ok()?);
                let letter = char::decode_utf16([first, second]).next()?.ok()?;
                push(out, letter);
                Some((if letter > '\u{ffff}' { 12 } else { 6 }, Coding::Escapes))
            }
            _ => None,
        }
    });
}

fn code(digits: &str, radix: u32) -> Option<u32> {
    let plain = !digits.is_empty() && digits.chars().all(|digit| digit.is_digit(radix));
    if plain { u32::from_str_radix(digits, radix).ok() } else { None }
}

fn push(out: &mut Vec<u8>, letter: char) {
    out.extend_from_slice(letter.encode_utf8(&mut [0; 4]).as_bytes());
}

/// Escapes that stand near each other, and what they make of the text around them.
struct Escaped {
    span: Range<usize>,
    /// Escapes that tell that text was to be hidden.
    told: usize,
    coding: Coding,
    bytes: Vec<u8>,
}

/// Walks over escapes that begin with a byte. `read` takes one from the start of a text; it gives its length.
fn escapes(
    text: &str,
    lead: u8,
    finds: &mut Finds,
    read: impl Fn(&str, &mut Vec<u8>) -> Option<(usize, Coding)>,
) {
    let mut open: Option<Escaped> = None;
    let mut bytes = Vec::new();
    for at in memchr_iter(lead, text.as_bytes()) {
        bytes.clear();
        if open.as_ref().is_some_and(|open| at < open.span.end) {
            continue;
        }
        let Some((len, coding)) = text.get(at..).and_then(|rest| read(rest, &mut bytes)) else {
            continue;
        };
        if let Some(far) = open.take_if(|open| at - open.span.end > ESCAPES_GAP) {
            far.close(text, finds);
        }
        let new = || Escaped { span: at..at, told: 0, coding, bytes: Vec::new() };
        let open = open.get_or_insert_with(new);
        open.told += usize::from(tells(&bytes, open.span.end == at && !open.bytes.is_empty()));
        open.bytes.extend_from_slice(text.as_bytes().get(open.span.end..at).unwrap_or_default());
        open.bytes.extend_from_slice(&bytes);
        open.span.end = at + len;
        // Bytes in hexadecimal, unless there are others.
        open.coding = if coding == open.coding { coding } else { Coding::Escapes };
    }
    if let Some(last) = open {
        last.close(text, finds);
    }
}

/// Whether an escape tells that text was to be hidden: it stands for something that needs none, or for one
/// of several letters in a row.
fn tells(bytes: &[u8], behind_another: bool) -> bool {
    match bytes {
        [b' '..=b'~'] => true,
        [first] => behind_another && *first >= 0xc0,
        several => {
            let letter = std::str::from_utf8(several).ok().and_then(|text| text.chars().next());
            behind_another && letter.is_some_and(char::is_alphanumeric)
        }
    }
}

impl Escaped {
    fn close(self, text: &str, finds: &mut Finds) {
        if self.told < ESCAPES_MIN {
            return;
        }
        // The rest of the line, but not so much that parts of two overlap.
        let mut span = self.span.clone();
        for (at, letter) in text.get(..span.start).unwrap_or_default().char_indices().rev() {
            if letter == '\n' || self.span.start - at > ESCAPES_GAP / 2 {
                break;
            }
            span.start = at;
        }
        for letter in text.get(span.end..).unwrap_or_default().chars() {
            if letter == '\n' || span.end - self.span.end > ESCAPES_GAP / 2 - 4 {
                break;
            }
            span.end += letter.len_utf8();
        }
        let part = |span: Range<usize>| text.as_bytes().get(span).unwrap_or_default();
        let around = [part(span.start..self.span.start), part(self.span.end..span.end)];
        let [before, behind] = around;
        if let Some(found) = readable(&[before, &self.bytes, behind].concat()) {
            finds.add(self.coding, span, found);
        }
    }
}
