//! E-mail addresses and telephone numbers.

use super::{
    alphabet::{ALNUM, Alphabet, DIGIT, LETTER},
    detect::Hit,
    kind::Kind,
    view::View,
};
use memchr::memmem;

/// Most characters before the `@` (RFC 5321), and behind it.
const LOCAL_MAX: usize = 64;
const DOMAIN_MAX: usize = 253;
/// How far before an address `://` makes it a part of another address.
const URL_NEAR: usize = 96;

/// What people's addresses are made of before the `@`; the standard allows more.
const LOCAL: Alphabet = ALNUM.and(Alphabet::of(b"._%+-"));
const DOMAIN: Alphabet = ALNUM.and(Alphabet::of(b".-"));

/// Ends of file names, as in `icon@2x.png`.
const FILES: &[&[u8]] =
    &[b"png", b"jpg", b"jpeg", b"gif", b"svg", b"webp", b"pdf", b"js", b"ts", b"css", b"html"];

/// The e-mail address whose `@` is at `at`.
pub(super) fn email(view: &View<'_>, at: usize) -> Option<Hit> {
    let mut start = view.run_back(at, LOCAL, LOCAL_MAX + 1);
    // Marks before the first letter are the sentence's.
    while start < at && !view.is(start, ALNUM) {
        start += 1;
    }
    view.begins(start);
    let local = view.slice(start..at);
    if local.is_empty() || local.len() > LOCAL_MAX || local == b"git" || is_in_url(view, start) {
        return None;
    }
    let end = view.run(at + 1, DOMAIN, DOMAIN_MAX + 1);
    let mut domain = view.slice(at + 1..end);
    // A full stop is the sentence's.
    while let [rest @ .., b'.' | b'-'] = domain {
        domain = rest;
    }
    let good = domain.len() <= DOMAIN_MAX && is_domain(domain);
    good.then(|| Hit::new(Kind::Email, start..at + 1 + domain.len()))
}

/// Is what starts here user and password of an address?
fn is_in_url(view: &View<'_>, start: usize) -> bool {
    if !view.was(start, Alphabet::of(b":/")) {
        return false;
    }
    let before = view.behind(start, URL_NEAR);
    let word = before.rsplit(|byte| byte.is_ascii_whitespace()).next().unwrap_or_default();
    memmem::find(word, b"://").is_some()
}

fn is_domain(domain: &[u8]) -> bool {
    let mut labels = domain.rsplit(|byte| *byte == b'.');
    let top = labels.next().unwrap_or_default();
    let is_top = top.starts_with(b"xn--") || top.iter().all(|byte| LETTER.has(*byte));
    let is_label = |label: &[u8]| {
        (1..=63).contains(&label.len()) && !label.starts_with(b"-") && !label.ends_with(b"-")
    };
    let names = labels.clone().count();
    (2..=24).contains(&top.len())
        && is_top
        && !FILES.iter().any(|file| top.eq_ignore_ascii_case(file))
        && names >= 1
        && labels.all(is_label)
}

// === Telephones ===

/// Fewest and most digits of a number with its country's code (E.164).
const DIGITS: std::ops::RangeInclusive<usize> = 8..=15;
/// Most separators between two digits: `) `.
const SEPARATORS: usize = 2;
const SEPARATOR: Alphabet = Alphabet::of(b" -.()/");

/// Codes of one digit, and beginnings of codes of two (ITU). All others that are given out have three.
const ONE: &[u8] = b"17";
const TWO: [&[u8]; 10] =
    [b"", b"", b"07", b"0123469", b"013456789", b"12345678", b"0123456", b"", b"1246", b"0123458"];

/// The telephone number whose `+` is at `at`.
pub(super) fn phone(view: &View<'_>, at: usize) -> Option<Hit> {
    // `a+1`, `1+1`, `3 + 4`, `++`.
    if view.was(at, ALNUM.and(Alphabet::of(b"+_)")))
        || view.get(at + 1).is_none_or(|byte| !(b'1'..=b'9').contains(&byte))
    {
        return None;
    }
    let (mut digits, mut end, mut place) = (Vec::new(), at + 1, at + 1);
    while let Some(byte) = view.get(place) {
        if DIGIT.has(byte) {
            digits.push(byte);
            place += 1;
            end = place;
        } else {
            let next = view.run(place, SEPARATOR, SEPARATORS);
            if next == place || !view.is(next, DIGIT) {
                break;
            }
            // Numbers that follow are others, once this one is long enough.
            let group = view.run(next, DIGIT, *DIGITS.end() + 1) - next;
            let too_many = digits.len() + group > *DIGITS.end();
            if too_many && byte == b' ' && DIGITS.contains(&digits.len()) {
                break;
            }
            // A decimal fraction.
            if too_many || (byte == b'.' && group < 2) {
                return None;
            }
            place = next;
        }
        if digits.len() > *DIGITS.end() {
            return None;
        }
    }
    let good = DIGITS.contains(&digits.len()) && is_dialled(&digits) && !view.is(end, ALNUM);
    good.then(|| Hit::new(Kind::Phone, at..end))
}

/// Does it start with a country's code, and is what follows of a length that can be?
fn is_dialled(digits: &[u8]) -> bool {
    let &[first, second, ..] = digits else { return false };
    // North American numbers have ten digits and their areas start with 2 to 9.
    if first == b'1' {
        return digits.len() == 11 && second >= b'2';
    }
    let two = TWO.get(usize::from(first - b'0')).is_some_and(|seconds| seconds.contains(&second));
    let code = if ONE.contains(&first) { 1 } else { 3 - usize::from(two) };
    digits.len() - code >= 5 && digits.iter().any(|digit| *digit != first)
}

#[cfg(test)]
mod tests {
    use super::super::{Finder, Kind};

    fn found(text: &str) -> Vec<(Kind, &str)> {
        let only = Finder::of([Kind::Email, Kind::Phone]);
        only.find(text)
            .into_iter()
            .map(|found| (found.kind, text.get(found.span).unwrap()))
            .collect()
    }

    #[test]
    fn addresses_are_found_whole_and_others_are_not() {
        let cases = [
            ("write to jane.doe@example.org.", Some("jane.doe@example.org")),
            ("<jane+news@mail.example.co.uk>", Some("jane+news@mail.example.co.uk")),
            ("mailto:jane@example.com?subject=x", Some("jane@example.com")),
            ("...jane@example.com", Some("jane@example.com")),
            ("(jane_doe%x@a-b.xn--p1ai)", Some("jane_doe%x@a-b.xn--p1ai")),
            ("élise@example.fr", Some("lise@example.fr")),
            ("git@github.com:owner/name.git", None),
            ("@mention and user@host", None),
            ("react@18.2.0", None),
            ("icon@2x.png", None),
            ("a@-bad.com a@bad-.com a@.com a@b..com", None),
            ("jane@example.c", None),
            ("postgres://jane:pw@db.example.com/x", None),
            ("postgres://jane@db.example.com/x", None),
        ];
        for (text, expected) in cases {
            let expected: Vec<_> = expected.map(|span| (Kind::Email, span)).into_iter().collect();
            assert_eq!(found(text), expected, "{text}");
        }
        let long = format!("{}@example.com", "a".repeat(64));
        assert_eq!(found(&long), [(Kind::Email, long.as_str())]);
        assert_eq!(found(&format!("a{long}")), []);
    }

    #[test]
    fn international_numbers_are_found_and_sums_are_not() {
        let cases = [
            ("call +1 (415) 555-2671 now", Some("+1 (415) 555-2671")),
            ("+14155552671", Some("+14155552671")),
            ("+49 30 901820", Some("+49 30 901820")),
            ("tel:+44-20-7946-0958.", Some("+44-20-7946-0958")),
            ("+358 40 1234567, 2024", Some("+358 40 1234567")),
            ("+48 22 123 45 67 1234567890", Some("+48 22 123 45 67")),
            ("+1 115 555 2671", None),
            ("+1 415 555 267", None),
            ("+0 415 555 2671", None),
            ("a+14155552671", None),
            ("1+14155552671", None),
            ("+4915", None),
            ("+4430123456789012345", None),
            ("+44444444444", None),
            ("+49 30 901820x", None),
            ("h * 69069 + 907133923", None),
            ("+35236450.6", None),
            ("+292277026596-12-04", None),
        ];
        for (text, expected) in cases {
            let expected: Vec<_> = expected.map(|span| (Kind::Phone, span)).into_iter().collect();
            assert_eq!(found(text), expected, "{text}");
        }
    }
}
