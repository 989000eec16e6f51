//! Secrets that their surroundings give away: `password = …`, `"api_key": "…"`, `Bearer …`, and passwords
//! in addresses.

use super::{
    alphabet::{
        ALNUM, Alphabet, BASE64, DIGIT, GRAPHIC, LETTER, LOWER, TOKEN, UPPER, WORD, entropy,
    },
    detect::Hit,
    kind::Kind,
    view::View,
};
use base64::{Engine, engine::general_purpose::STANDARD_NO_PAD};
use memchr::memmem;

/// Most bytes of a value.
const VALUE_MAX: usize = 256;
/// Most bytes of white space on each side of `=` or `:`.
const GAP: usize = 8;
/// Most bytes of a user name or password in an address.
const URL_PART: usize = 128;

/// What an unquoted value is made of.
const BARE: Alphabet = GRAPHIC.without(Alphabet::of(b"\"'`,;()<>[]{}"));
const QUOTED: Alphabet = GRAPHIC.without(Alphabet::of(b"\"'`"));
const USER: Alphabet = GRAPHIC.without(Alphabet::of(b"\"'`<>()[]{}\\/:@,;"));
const PASSWORD: Alphabet = GRAPHIC.without(Alphabet::of(b"\"'`<>\\/"));
const BEARER: Alphabet = TOKEN.and(BASE64).and(Alphabet::of(b".~"));

/// What stands where people keep the secret out of the text.
const PLACEHOLDERS: &[&[u8]] = &[
    b"your",
    b"example",
    b"changeme",
    b"change_me",
    b"placeholder",
    b"redacted",
    b"dummy",
    b"insert",
    b"xxxx",
    b"****",
    b"....",
    b"<",
    b">",
    b"{{",
    b"}}",
    b"${",
    b"%(",
    b"://",
    b"secret_name",
    b"todo",
    b"not-needed",
    b"no-key",
    b"undefined",
    b"arn:",
];
/// What nobody's random key contains. People's passwords do.
const SEQUENCES: &[&[u8]] = &[b"0123456789", b"12345678", b"abcdefgh"];

/// How a word tells what is assigned to it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Sort {
    /// People make it up: short, of any characters.
    Password,
    /// Machines make it up: long and random.
    Key,
}

/// The start of the value that is assigned to the name ending at `end`, and the quote it stands in:
/// `= v`, `: "v"`, `":"v"`, `=> 'v'`, `\": \"v\"`.
pub(super) fn value_start(view: &View<'_>, end: usize) -> Option<(usize, Option<u8>)> {
    let quoted = quote(view, end).map_or(end, |(behind, _)| behind);
    // `["password"] = …`
    let closed = if view.get(quoted) == Some(b']') { quoted + 1 } else { quoted };
    let sign = view.skip_space(closed, GAP);
    let behind = view.run(sign, Alphabet::of(b":=>"), 3);
    if behind == sign || view.slice(sign..sign + 1) == b">" {
        return None;
    }
    let value = view.skip_space(behind, GAP);
    match quote(view, value) {
        Some((from, quote)) => Some((from, Some(quote))),
        None => Some((value, None)),
    }
}

/// Behind a quote, which may be escaped, and which quote it is.
fn quote(view: &View<'_>, at: usize) -> Option<(usize, u8)> {
    let sign = view.run(at, Alphabet::of(b"\\"), 3);
    let quote = view.get(sign).filter(|byte| matches!(byte, b'"' | b'\'' | b'`'))?;
    Some((sign + 1, quote))
}

/// The value that is assigned to the word ending at `end`.
pub(super) fn assigned(view: &View<'_>, end: usize, sort: Sort) -> Option<Hit> {
    view.begins_later();
    let (from, quote) = value_start(view, end)?;
    view.begins(from);
    let to = match quote {
        Some(_) => view.run(from, QUOTED.without(Alphabet::of(b"\\")), VALUE_MAX),
        None => view.run(from, BARE, VALUE_MAX),
    };
    let next = view.get(to);
    if to - from >= VALUE_MAX {
        return None;
    }
    let value = view.slice(from..to);
    let good = match quote {
        // An escape before the closing quote is the quote's.
        Some(quote) => (next == Some(quote) || next == Some(b'\\')) && is_secret(value, sort, true),
        // A call or an index is a program's.
        None => !matches!(next, Some(b'(' | b'[' | b'{')) && is_secret(value, sort, false),
    };
    good.then(|| Hit::new(Kind::AssignedSecret, from..from + trimmed(value).len()))
}

/// Without the next field of a query (`&name=…`) and the marks that end a sentence.
fn trimmed(value: &[u8]) -> &[u8] {
    let mut fields = memchr::memchr_iter(b'&', value);
    let next = fields.find(|at| {
        let behind = value.get(at + 1..).unwrap_or_default();
        let name = behind.iter().take_while(|byte| WORD.has(**byte)).count();
        name > 0 && behind.get(name) == Some(&b'=')
    });
    match next.and_then(|end| value.get(..end)).unwrap_or(value) {
        [rest @ .., b'.' | b':' | b'?'] => rest,
        value => value,
    }
}

fn is_secret(value: &[u8], sort: Sort, quoted: bool) -> bool {
    let value = trimmed(value);
    let count = |set: Alphabet| value.iter().filter(|byte| set.has(**byte)).count();
    let (letters, digits, signs) = (count(LETTER), count(DIGIT), count(GRAPHIC.without(ALNUM)));
    let both = count(LOWER) > 0 && count(UPPER) > 0;
    let (least, bits, varied) = match sort {
        Sort::Password => (8, 2.3, letters > 0 && (digits > 0 || (quoted && signs > 0))),
        Sort::Key => (16, 3.0, letters > 0 && digits > 0 && !has_one_of(SEQUENCES, value)),
    };
    // `user_password`, `args.token2`, `/etc/key1`, `$KEY`.
    let named = value.iter().all(|byte| WORD.has(*byte) || matches!(byte, b'.' | b'-' | b'/'))
        && signs > 0
        && (digits < 3 || !both && digits * 4 < value.len());
    // `module.Type2`.
    let is_name =
        |part: &[u8]| part.first().is_some_and(|byte| LETTER.has(*byte)) && part.len() < 24;
    let dotted = value.contains(&b'.')
        && value.iter().all(|byte| WORD.has(*byte) || *byte == b'.')
        && value.split(|byte| *byte == b'.').all(is_name);
    let path = matches!(value, [b'/' | b'~', ..] | [b'.', b'/', ..]);
    let variable = matches!(value, [b'$' | b'%' | b'&', b'A'..=b'Z' | b'_' | b'(' | b'{', ..]);
    varied
        && value.len() >= least
        && !(named || dotted && !quoted || path || variable || is_placeholder(value))
        && entropy(value) >= bits
}

fn is_placeholder(value: &[u8]) -> bool {
    has_one_of(PLACEHOLDERS, value)
}

fn has_one_of(signs: &[&[u8]], value: &[u8]) -> bool {
    let lower = value.to_ascii_lowercase();
    signs.iter().any(|sign| memmem::find(&lower, sign).is_some())
}

/// What is sent as `Bearer`, which ends at `end`.
pub(super) fn bearer(view: &View<'_>, at: usize, end: usize) -> Option<Hit> {
    view.begins_later();
    if !view.starts_word(at) {
        return None;
    }
    view.begins(end);
    let to = view.run(end, BEARER, 2048);
    let padded = view.run(to, Alphabet::of(b"="), 2);
    let value = trimmed(view.slice(end..padded));
    (value.len() >= 20 && is_secret(value, Sort::Key, true))
        .then(|| Hit::new(Kind::AssignedSecret, end..end + value.len()))
}

/// User and password that are sent as `Basic`, which ends at `end`.
pub(super) fn basic(view: &View<'_>, at: usize, end: usize) -> Option<Hit> {
    view.begins_later();
    if !view.starts_word(at) {
        return None;
    }
    view.begins(end);
    let to = view.run(end, BASE64, VALUE_MAX);
    let padded = view.run(to, Alphabet::of(b"="), 2);
    let decoded = STANDARD_NO_PAD.decode(view.slice(end..to)).ok()?;
    let colon = memchr::memchr(b':', &decoded)?;
    let good = to - end >= 8
        && decoded.iter().all(|byte| GRAPHIC.has(*byte))
        && colon > 0
        && decoded.len() - colon > 3;
    good.then(|| Hit::new(Kind::AssignedSecret, end..padded))
}

/// The password in an address whose `://` is at `at..end`.
pub(super) fn url_password(view: &View<'_>, at: usize, end: usize) -> Option<Hit> {
    view.begins_later();
    let scheme = view.run_back(at, ALNUM.and(Alphabet::of(b"+.-")), 24);
    if at - scheme < 2 {
        return None;
    }
    let colon = view.run(end, USER, URL_PART);
    if view.get(colon) != Some(b':') {
        return None;
    }
    let from = colon + 1;
    view.begins(from);
    let authority = view.slice(from..view.run(from, PASSWORD, 2 * URL_PART));
    let length = memchr::memrchr(b'@', authority)?;
    let password = authority.get(..length)?;
    let user = view.slice(end..colon);
    let variable = matches!(password, [b'$' | b'{' | b'[', ..]);
    let good = (3..=URL_PART).contains(&length)
        && !(variable || is_placeholder(password) || is_word_for_password(password))
        && (user != password || password.iter().any(|byte| DIGIT.has(*byte)));
    good.then(|| Hit::new(Kind::UrlPassword, from..from + length))
}

/// `user:password@host` explains a form and is nobody's password.
fn is_word_for_password(password: &[u8]) -> bool {
    const WORDS: &[&[u8]] =
        &[b"password", b"passwd", b"pass", b"pwd", b"pw", b"secret", b"token", b"mypassword"];
    WORDS.iter().any(|word| password.eq_ignore_ascii_case(word))
}
