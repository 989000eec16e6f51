//! HTTP/1 framing, stricter than the library below: whatever two readers could cut differently is
//! refused before it is read.
//!
//! A [`Follower`] follows the bytes of a connection through heads and bodies. It refuses Content-Length
//! beside Transfer-Encoding, repeated lengths and hosts, folded lines, bare line feeds, any coding but
//! `chunked`, and targets that are no path (RFC 9112, sections 2.2, 3.2, 6.1 and 11.2, at their strictest).

use crate::api::chunked::{Chunked, Piece};

/// Largest request head.
const HEAD_MAX: usize = 64 * 1024;

/// Most header lines of a request; the library below takes no more.
const LINES_MAX: usize = 100;

/// What was wrong with the framing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Violation {
    /// A rule was broken; the text says which.
    Rule(&'static str),
    /// The head did not come in time.
    SlowHead,
    /// The head is too large.
    LargeHead,
}

impl Violation {
    /// What the caller is told.
    pub const fn text(self) -> &'static str {
        match self {
            Self::Rule(text) => text,
            Self::SlowHead => "The request's head did not come in time.",
            Self::LargeHead => {
                "The request's head is larger than 64 KiB, or has more than 100 lines."
            }
        }
    }
}

/// Where the next byte belongs.
#[derive(Debug)]
enum Phase {
    /// A head; what has come of it so far.
    Head(Vec<u8>),
    /// A body of known length.
    Body(u64),
    /// A chunked body.
    Chunked(Box<Chunked>),
}

/// Follows the bytes of one connection.
#[derive(Debug)]
pub struct Follower {
    phase: Phase,
}

impl Default for Follower {
    fn default() -> Self {
        Self { phase: Phase::Head(Vec::new()) }
    }
}

impl Follower {
    /// True between requests.
    pub const fn is_idle(&self) -> bool {
        matches!(&self.phase, Phase::Head(so_far) if so_far.is_empty())
    }

    /// True inside a head.
    pub const fn in_head(&self) -> bool {
        matches!(&self.phase, Phase::Head(so_far) if !so_far.is_empty())
    }

    /// Follows the empty lines that may stand before a request, and says how many bytes they are.
    ///
    /// # Errors
    /// As [`Follower::follow`].
    pub fn skip_blank(&mut self, bytes: &[u8]) -> Result<usize, Violation> {
        let Phase::Head(so_far) = &mut self.phase else { return Ok(0) };
        if !(so_far.is_empty() || so_far == b"\r") {
            return Ok(0);
        }
        let is_blank = |byte: &&u8| matches!(**byte, b'\r' | b'\n');
        let blank = bytes.iter().take_while(is_blank).count();
        take_head(so_far, bytes.get(..blank).unwrap_or_default())?;
        Ok(blank)
    }

    /// Follows more bytes, up to the end of the request that they belong to. Says how many those are.
    ///
    /// # Errors
    /// A rule is broken. The bytes must not be read any further.
    pub fn follow(&mut self, bytes: &[u8]) -> Result<usize, Violation> {
        let all = bytes.len();
        let mut bytes = bytes;
        while !bytes.is_empty() {
            match &mut self.phase {
                Phase::Head(so_far) => {
                    let (taken, whole) = take_head(so_far, bytes)?;
                    bytes = bytes.get(taken..).unwrap_or_default();
                    if whole {
                        self.phase = check_head(so_far)?;
                        if self.is_idle() {
                            break;
                        }
                    }
                }
                Phase::Body(left) => {
                    let here = (bytes.len() as u64).min(*left);
                    *left -= here;
                    bytes = bytes
                        .get(usize::try_from(here).unwrap_or(usize::MAX)..)
                        .unwrap_or_default();
                    if *left == 0 {
                        self.phase = Phase::Head(Vec::new());
                        break;
                    }
                }
                Phase::Chunked(chunked) => {
                    let piece = chunked.follow(bytes).map_err(Violation::Rule)?;
                    bytes = bytes.get(piece.len()..).unwrap_or_default();
                    if matches!(piece, Piece::Over(_)) {
                        self.phase = Phase::Head(Vec::new());
                        break;
                    }
                }
            }
        }
        Ok(all - bytes.len())
    }
}

/// Adds bytes to a head until its empty line. Says how many were taken and whether it is whole.
fn take_head(so_far: &mut Vec<u8>, bytes: &[u8]) -> Result<(usize, bool), Violation> {
    let mut taken = 0;
    while let Some(rest) = bytes.get(taken..).filter(|rest| !rest.is_empty()) {
        let end = memchr::memchr(b'\n', rest).map(|at| at + 1);
        let line = rest.get(..end.unwrap_or(rest.len())).unwrap_or_default();
        check_line(so_far.last() == Some(&b'\r'), line, end.is_some())?;
        so_far.extend_from_slice(line);
        taken += line.len();
        if so_far == b"\r\n" {
            // Empty lines before a request line are to be skipped.
            so_far.clear();
        } else if end.is_some() && so_far.ends_with(b"\r\n\r\n") {
            return Ok((taken, true));
        }
    }
    if so_far.len() > HEAD_MAX {
        return Err(Violation::LargeHead);
    }
    Ok((taken, false))
}

/// Checks a line or, unless it is `ended`, the beginning of one, which may follow a CR from before.
fn check_line(after_cr: bool, line: &[u8], ended: bool) -> Result<(), Violation> {
    let text = line.strip_suffix(b"\n").filter(|_| ended).unwrap_or(line);
    if after_cr && !(ended && text.is_empty()) {
        return Err(Violation::Rule("A CR must be followed by LF."));
    }
    // A CR at the end may have its LF still to come.
    let inner = text.strip_suffix(b"\r").unwrap_or(text);
    if memchr::memchr(b'\r', inner).is_some() {
        return Err(Violation::Rule("A CR must be followed by LF."));
    }
    if memchr::memchr(0, inner).is_some() {
        return Err(Violation::Rule("A NUL byte has no place in a head."));
    }
    if ended && !after_cr && inner.len() == text.len() {
        return Err(Violation::Rule("Lines must end with CR LF; a bare LF is refused."));
    }
    Ok(())
}

/// Checks a whole head and says what follows it.
fn check_head(head: &[u8]) -> Result<Phase, Violation> {
    if head.len() > HEAD_MAX {
        return Err(Violation::LargeHead);
    }
    let mut lines =
        head.split(|byte| *byte == b'\n').map(|line| line.strip_suffix(b"\r").unwrap_or(line));
    let request = lines.next().unwrap_or_default();
    let mut words = request.split(|byte| *byte == b' ');
    let (_, target, version) = (words.next(), words.next(), words.next());
    if !target.is_some_and(|target| target.starts_with(b"/")) {
        return Err(Violation::Rule(
            "The request target must be a path. Hosts cannot be named here.",
        ));
    }
    if !matches!(version, Some(b"HTTP/1.1" | b"HTTP/1.0")) {
        return Err(Violation::Rule("Only HTTP/1.1 and HTTP/1.0 are spoken here."));
    }
    let (mut length, mut chunked, mut hosts, mut count) = (None, false, 0, 0);
    for line in lines.filter(|line| !line.is_empty()) {
        count += 1;
        if count > LINES_MAX {
            return Err(Violation::LargeHead);
        }
        if matches!(line.first(), Some(b' ' | b'\t')) {
            return Err(Violation::Rule("Folded header lines are refused."));
        }
        let colon = line.iter().position(|byte| *byte == b':');
        let (name, value) = colon.and_then(|at| line.split_at_checked(at)).unwrap_or((line, b""));
        let value = value.strip_prefix(b":").unwrap_or(value).trim_ascii();
        if colon.is_none() || name.is_empty() || name.iter().any(|b| !b.is_ascii_graphic()) {
            return Err(Violation::Rule("A header line is not 'Name: value'."));
        }
        let is = |known: &[u8]| name.eq_ignore_ascii_case(known);
        if is(b"content-length") {
            if length.replace(read_length(value)?).is_some() {
                return Err(Violation::Rule("Content-Length is given twice."));
            }
        } else if is(b"transfer-encoding") {
            if chunked || !value.eq_ignore_ascii_case(b"chunked") {
                return Err(Violation::Rule("The only Transfer-Encoding taken is one 'chunked'."));
            }
            chunked = true;
        } else if is(b"host") {
            hosts += 1;
        } else if is(b"expect") && !value.eq_ignore_ascii_case(b"100-continue") {
            return Err(Violation::Rule("The only expectation known is 100-continue."));
        }
    }
    if hosts > 1 || (hosts == 0 && version != Some(b"HTTP/1.0")) {
        return Err(Violation::Rule("A request must have exactly one Host header."));
    }
    match (length, chunked) {
        (Some(_), true) => {
            Err(Violation::Rule("Content-Length and Transfer-Encoding exclude each other."))
        }
        (None, true) if version == Some(b"HTTP/1.0") => {
            Err(Violation::Rule("HTTP/1.0 has no chunked bodies."))
        }
        (None, true) => Ok(Phase::Chunked(Box::default())),
        (Some(length), false) if length > 0 => Ok(Phase::Body(length)),
        _ => Ok(Phase::Head(Vec::new())),
    }
}

fn read_length(value: &[u8]) -> Result<u64, Violation> {
    let text = std::str::from_utf8(value).unwrap_or_default();
    if text.is_empty() || !text.bytes().all(|byte| byte.is_ascii_digit()) {
        return Err(Violation::Rule("Content-Length must be a plain number."));
    }
    text.parse().map_err(|_| Violation::Rule("Content-Length is beyond all measure."))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Follows request after request to the end of the bytes.
    fn follow_all(follower: &mut Follower, mut bytes: &[u8]) -> Result<(), Violation> {
        while !bytes.is_empty() {
            bytes = &bytes[follower.follow(bytes)?..];
        }
        Ok(())
    }

    fn follow(text: &str) -> Result<bool, &'static str> {
        let mut follower = Follower::default();
        follow_all(&mut follower, text.as_bytes()).map_err(Violation::text)?;
        Ok(follower.is_idle())
    }

    fn with(headers: &str) -> Result<bool, &'static str> {
        follow(&format!("POST /v1/x HTTP/1.1\r\nHost: a\r\n{headers}\r\n"))
    }

    #[test]
    fn plain_requests_pass_one_after_another() {
        let one = "POST /a HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\n\r\nabc";
        let two = "POST /a HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n3;x=1\r\nabc\r\n0\r\nT: 1\r\n\r\n";
        let three = "GET /a HTTP/1.0\r\n\r\n";
        assert_eq!(follow(&format!("{one}{two}\r\n{three}{one}")), Ok(true));
        assert_eq!(with("Content-Length: 5\r\n"), Ok(false));
    }

    #[test]
    fn each_request_ends_where_it_ends() {
        for one in [
            "POST /a HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\n\r\nabc",
            "POST /a HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n",
            "GET /a HTTP/1.0\r\n\r\n",
        ] {
            let mut follower = Follower::default();
            assert_eq!(follower.follow(format!("{one}\r\n{one}").as_bytes()), Ok(one.len()));
            assert!(follower.is_idle());
            assert_eq!(follower.skip_blank(b"\r\n\r"), Ok(3));
            assert!(follower.in_head(), "a line feed must follow");
            assert_eq!(follower.skip_blank(format!("\n{one}").as_bytes()), Ok(1));
            assert!(follower.is_idle());
            assert_eq!(follower.follow(&one.as_bytes()[..5]), Ok(5));
            assert_eq!(follower.skip_blank(b"\r\n"), Ok(0), "inside a head nothing is blank");
        }
        assert!(Follower::default().skip_blank(b"\n").is_err());
    }

    #[test]
    fn whatever_can_be_read_two_ways_is_refused() {
        for headers in [
            "Content-Length: 3\r\nTransfer-Encoding: chunked\r\n",
            "Content-Length: 3\r\nContent-Length: 3\r\n",
            "Content-Length: 3, 3\r\n",
            "Content-Length: +3\r\n",
            "Content-Length: 0x3\r\n",
            "Content-Length: 99999999999999999999\r\n",
            "Content-Length:\r\n",
            "Transfer-Encoding: identity, chunked\r\n",
            "Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n",
            "Transfer-Encoding: gzip\r\n",
            "Transfer-Encoding : chunked\r\n",
            "X: a\r\n folded\r\n",
            "X: a\n",
            "X: a\rb\r\n",
            "X: a\0b\r\n",
            "Host: b\r\n",
            "Expect: 200-maybe\r\n",
            "no colon\r\n",
            ": empty\r\n",
        ] {
            assert!(with(headers).is_err(), "{headers:?}");
        }
        assert!(follow("POST /a HTTP/1.1\r\n\r\n").is_err(), "no host");
        assert!(
            follow("GET http://other/ HTTP/1.1\r\nHost: a\r\n\r\n").is_err(),
            "absolute target"
        );
        assert!(follow("CONNECT a:1 HTTP/1.1\r\nHost: a\r\n\r\n").is_err(), "authority target");
    }

    #[test]
    fn broken_chunks_are_refused() {
        let chunked = |body: &str| {
            follow(&format!(
                "POST /a HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n{body}"
            ))
        };
        for body in [
            "x\r\n",
            "3\nabc",
            "3\r\nabcd\r\n",
            "\r\n",
            "-1\r\n",
            "3 \r\nabc\n",
            "11111111111111111\r\n",
        ] {
            assert!(chunked(body).is_err(), "{body:?}");
        }
        let long = format!("3;{}", "x".repeat(256));
        assert!(chunked(&long).is_err());
    }

    proptest! {
        /// However the bytes are cut, the verdict is the same.
        #[test]
        fn cuts_do_not_matter(cuts in prop::collection::vec(0usize..200, 0..6), bad in any::<bool>()) {
            let tail = if bad { "Content-Length: 1\r\n" } else { "" };
            let text = format!("POST /a HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n{tail}\r\n3\r\nabc\r\n0\r\n\r\nGET / HTTP/1.1\r\nHost: b\r\n\r\n");
            let bytes = text.as_bytes();
            let mut cuts: Vec<usize> = cuts.into_iter().map(|cut| cut.min(bytes.len())).collect();
            cuts.extend([0, bytes.len()]);
            cuts.sort_unstable();
            let mut follower = Follower::default();
            let verdict: Result<(), Violation> = cuts.windows(2).try_for_each(|pair| follow_all(&mut follower, &bytes[pair[0]..pair[1]]));
            prop_assert_eq!(verdict.is_err(), bad);
            prop_assert!(bad || follower.is_idle());
        }
    }
}
