//! Private keys and JSON web tokens: what is longer than a line.

use super::{
    alphabet::{ALNUM, Alphabet, BASE64, DIGIT, LETTER, SPACE, TOKEN, UPPER},
    detect::{Hit, What},
    kind::Kind,
    view::{BACK, View},
};
use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use memchr::memmem;
use std::ops::ControlFlow;

/// Most characters of a label in a PEM header.
const LABEL_MAX: usize = 48;
/// Fewest characters of a full line of a key.
const LINE: usize = 24;
/// Most header lines before a key's body, and most bytes of one.
const HEADERS: (usize, usize) = (6, 120);
/// Most gaps between two lines of a key that escapes part, and most bytes of one.
const GAPS: (usize, usize) = (8, 64);
/// Most bytes of a JSON web token's first part.
const JWT_HEADER: usize = 2048;

const LABEL: Alphabet = UPPER.and(DIGIT).and(Alphabet::of(b" "));
const BODY: Alphabet = BASE64.and(Alphabet::of(b"="));
/// What stands between a key's lines: white space, and what programs put around lines of a string. An
/// escape's letter is dealt with apart.
const BETWEEN: Alphabet = SPACE.and(Alphabet::of(b"\"'`,;>|"));

/// A private key whose `-----BEGIN ` is at `at..end`. The header alone is enough; what follows of the key
/// is part of the finding.
pub(super) fn pem(view: &View<'_>, at: usize, end: usize) -> Option<Hit> {
    let close = view.run(end, LABEL, LABEL_MAX);
    let label = view.slice(end..close);
    if memmem::find(label, b"PRIVATE KEY").is_none() || !view.follows(close, b"-----") {
        return None;
    }
    let kind = if label.starts_with(b"PGP") {
        Kind::PgpPrivateKey
    } else if memmem::find(view.behind(at, BACK), b"service_account").is_some() {
        Kind::GcpServiceKey
    } else {
        Kind::PrivateKey
    };
    let (end, cut) = body(view, close + 5, false);
    Some(Hit::new(kind, at..end).go_on(cut.then_some(What::PemRest(kind))))
}

/// The key of a PuTTY file, whose `Private-Lines: ` is at `at..end`.
pub(super) fn putty(view: &View<'_>, at: usize, end: usize) -> Option<Hit> {
    let close = view.run(end, DIGIT, 4);
    if close == end {
        return None;
    }
    let (end, cut) = body(view, close, false);
    Some(Hit::new(Kind::PrivateKey, at..end).go_on(cut.then_some(What::PemRest(Kind::PrivateKey))))
}

/// What is left of a key at `at`, where the window of the detector before ended.
pub(super) fn pem_rest(view: &View<'_>, at: usize, kind: Kind) -> Option<Hit> {
    let (end, cut) = body(view, at, true);
    (end > at).then(|| Hit::new(kind, at..end).go_on(cut.then_some(What::PemRest(kind))))
}

/// Where a key's body ends, and whether only the window ended it. `inside`: in the middle of a line.
fn body(view: &View<'_>, from: usize, inside: bool) -> (usize, bool) {
    let mut end = from;
    let mut headers = if inside { 0 } else { HEADERS.0 };
    let mut inside = inside;
    loop {
        let line = between(view, end);
        let to = view.run(line, BODY, usize::MAX);
        if to >= view.limit() {
            return (view.limit(), true);
        }
        if to - line >= LINE || (inside && to > line && line == end) {
            (end, headers, inside) = (to, 0, false);
            continue;
        }
        match closing(view, line, to) {
            ControlFlow::Break(behind) => return (behind, false),
            ControlFlow::Continue(()) if headers > 0 => headers -= 1,
            ControlFlow::Continue(()) => return (end, false),
        }
        let Some(behind) = header(view, line) else { return (end, false) };
        end = behind;
    }
}

/// Behind white space, quotes and escapes.
fn between(view: &View<'_>, from: usize) -> usize {
    let mut at = from;
    for _ in 0..GAPS.0 {
        let next = view.run(at, BETWEEN, GAPS.1);
        at = match (view.get(next), view.get(next + 1)) {
            (Some(b'\\'), Some(b'n' | b'r' | b't' | b'\\' | b'"' | b'\n')) => next + 2,
            _ => return next,
        };
    }
    at
}

/// Behind the key, if its last line is at `line..to` (empty, or short) and the footer follows.
fn closing(view: &View<'_>, line: usize, to: usize) -> ControlFlow<usize> {
    let mut foot = between(view, to);
    // A PGP block ends with a checksum on a line of its own.
    if view.get(foot) == Some(b'=') {
        foot = between(view, view.run(foot, BODY, 5));
    }
    if view.follows(foot, b"-----END ") {
        let label = view.run(foot + 9, LABEL, LABEL_MAX);
        return ControlFlow::Break(view.run(label, Alphabet::of(b"-"), 5));
    }
    // PuTTY's last line is short, and what follows says what it is.
    if to > line && view.follows(foot, b"Private-MAC") {
        return ControlFlow::Break(to);
    }
    ControlFlow::Continue(())
}

/// Behind a header line such as `Proc-Type: 4,ENCRYPTED`.
fn header(view: &View<'_>, line: usize) -> Option<usize> {
    let colon = view.run(line, ALNUM.and(Alphabet::of(b"-")), 24);
    if colon == line || !view.follows(colon, b": ") {
        return None;
    }
    let most = colon + HEADERS.1;
    let escaped = |at: usize| view.get(at) == Some(b'\\') && view.get(at + 1) == Some(b'n');
    (colon..most).find(|at| view.get(*at) == Some(b'\n') || escaped(*at))
}

/// A JSON web token whose `eyJ` is at `at`: three parts (five if encrypted), the first of them a JSON
/// object that names its algorithm.
pub(super) fn jwt(view: &View<'_>, at: usize) -> Option<Hit> {
    if !view.starts_run(at, TOKEN.and(Alphabet::of(b"."))) {
        return None;
    }
    let dot = view.run(at, TOKEN, JWT_HEADER);
    if view.get(dot) != Some(b'.') || !names_algorithm(view.slice(at..dot)) {
        return None;
    }
    let mut end = view.run(dot + 1, TOKEN, usize::MAX);
    if end == dot + 1 {
        return None;
    }
    for part in 2..5 {
        if end >= view.limit() {
            return Some(Hit::new(Kind::Jwt, at..view.limit()).go_on(Some(What::JwtRest)));
        }
        let next = if view.get(end) == Some(b'.') {
            view.run(end + 1, TOKEN, usize::MAX)
        } else if part == 2 {
            return None;
        } else {
            break;
        };
        // A token without signature ends in a dot; behind a signature the dot is the sentence's.
        if part > 2 && next == end + 1 {
            break;
        }
        end = next;
    }
    Some(Hit::new(Kind::Jwt, at..end))
}

/// What is left of a JSON web token at `at`, where the window of the detector before ended.
pub(super) fn jwt_rest(view: &View<'_>, at: usize) -> Option<Hit> {
    let end = view.run(at, TOKEN.and(Alphabet::of(b".")), usize::MAX);
    let cut = end >= view.limit();
    (end > at).then(|| Hit::new(Kind::Jwt, at..end).go_on(cut.then_some(What::JwtRest)))
}

fn names_algorithm(part: &[u8]) -> bool {
    let Ok(decoded) = URL_SAFE_NO_PAD.decode(part) else { return false };
    let Ok(header) = serde_json::from_slice::<serde_json::Value>(&decoded) else { return false };
    let letters = |name: &str| name.bytes().any(|byte| LETTER.has(byte));
    header.get("alg").and_then(serde_json::Value::as_str).is_some_and(letters)
}
