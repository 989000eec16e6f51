//! HTTP/1 framing, stricter than the library below: whatever two readers could cut differently is
//! refused before it is read.
//!
//! The guard sits between socket and HTTP library and follows the bytes through heads and bodies. It
//! refuses Content-Length beside Transfer-Encoding, repeated lengths and hosts, folded lines, bare line
//! feeds, any coding but `chunked`, absolute targets, and heads that come too slowly (RFC 9112, sections
//! 2.2, 3.2, 6.1 and 11.2, at their strictest).

use std::{
    fmt,
    future::Future,
    io,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    task::{Context, Poll, ready},
    time::Duration,
};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::TcpStream,
    time::{Instant, Sleep},
};

/// Largest request head.
const HEAD_MAX: usize = 64 * 1024;
/// Longest chunk-size line, extensions included.
const CHUNK_LINE_MAX: usize = 256;
/// Longest trailer section.
const TRAILER_MAX: usize = 4096;

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
            Self::LargeHead => "The request's head is larger than 64 KiB.",
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
    Chunked(Chunk, Vec<u8>),
}

#[derive(Clone, Copy, Debug)]
enum Chunk {
    Size,
    Data(u64),
    AfterData,
    Trailer,
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

    /// Follows more bytes.
    ///
    /// # Errors
    /// A rule is broken. The bytes must not be read any further.
    pub fn follow(&mut self, mut bytes: &[u8]) -> Result<(), Violation> {
        while !bytes.is_empty() {
            match &mut self.phase {
                Phase::Head(so_far) => {
                    let (taken, whole) = take_head(so_far, bytes)?;
                    bytes = bytes.get(taken..).unwrap_or_default();
                    if whole {
                        self.phase = check_head(so_far)?;
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
                    }
                }
                Phase::Chunked(chunk, line) => {
                    let taken = follow_chunk(chunk, line, bytes)?;
                    let over = matches!(taken, Taken::Over(_));
                    let (Taken::Some(count) | Taken::Over(count)) = taken;
                    bytes = bytes.get(count..).unwrap_or_default();
                    if over {
                        self.phase = Phase::Head(Vec::new());
                    }
                }
            }
        }
        Ok(())
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
    let (mut length, mut chunked, mut hosts) = (None, false, 0);
    for line in lines.filter(|line| !line.is_empty()) {
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
        (None, true) => Ok(Phase::Chunked(Chunk::Size, Vec::new())),
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

enum Taken {
    /// So many bytes, and the body goes on.
    Some(usize),
    /// So many bytes, and the body is over.
    Over(usize),
}

fn follow_chunk(chunk: &mut Chunk, line: &mut Vec<u8>, bytes: &[u8]) -> Result<Taken, Violation> {
    if let Chunk::Data(left) = chunk {
        let here = (bytes.len() as u64).min(*left);
        *left -= here;
        if *left == 0 {
            *chunk = Chunk::AfterData;
        }
        return Ok(Taken::Some(usize::try_from(here).unwrap_or(usize::MAX)));
    }
    let end = bytes.iter().position(|byte| *byte == b'\n');
    let taken = end.map_or(bytes.len(), |at| at + 1);
    line.extend_from_slice(bytes.get(..taken).unwrap_or_default());
    let max = if matches!(chunk, Chunk::Trailer) { TRAILER_MAX } else { CHUNK_LINE_MAX };
    if line.len() > max {
        return Err(Violation::Rule("A chunk's size line or trailer is too long."));
    }
    if end.is_none() {
        return Ok(Taken::Some(taken));
    }
    let Some(whole) = line.strip_suffix(b"\r\n") else {
        return Err(Violation::Rule("Lines must end with CR LF; a bare LF is refused."));
    };
    match chunk {
        Chunk::Size => {
            let digits = whole.split(|byte| *byte == b';').next().unwrap_or_default();
            let text = std::str::from_utf8(digits.trim_ascii_end()).unwrap_or_default();
            let hex = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_hexdigit());
            let size = u64::from_str_radix(text, 16).ok().filter(|_| hex);
            let size =
                size.ok_or(Violation::Rule("A chunk's size is not a hexadecimal number."))?;
            *chunk = if size == 0 { Chunk::Trailer } else { Chunk::Data(size) };
        }
        Chunk::AfterData if whole.is_empty() => *chunk = Chunk::Size,
        Chunk::AfterData => return Err(Violation::Rule("A chunk is longer than its size.")),
        Chunk::Trailer if whole.is_empty() => return Ok(Taken::Over(taken)),
        // Trailers are read past and merged into nothing.
        Chunk::Trailer | Chunk::Data(_) => {}
    }
    line.clear();
    Ok(Taken::Some(taken))
}

/// Time limits of one connection.
#[derive(Clone, Copy, Debug)]
pub struct Patience {
    /// From a head's first byte to its last.
    pub head: Duration,
    /// Between requests, and while a caller takes nothing of its answer.
    pub idle: Duration,
}

/// A caller's socket with the guard in front.
pub struct Guarded {
    stream: TcpStream,
    follower: Follower,
    violation: Option<Violation>,
    patience: Patience,
    /// When the phase that is timed began.
    since: Instant,
    timer: Pin<Box<Sleep>>,
    was_in_head: bool,
    /// Rings when the caller has taken nothing of its answer for too long; set while it takes nothing.
    stalled: Option<Pin<Box<Sleep>>>,
    /// Requests being answered on this connection; while there is one, silence is no fault.
    busy: Arc<AtomicUsize>,
}

impl fmt::Debug for Guarded {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Guarded").field("follower", &self.follower).finish_non_exhaustive()
    }
}

impl Guarded {
    /// Guards a fresh connection.
    pub fn new(stream: TcpStream, patience: Patience, busy: Arc<AtomicUsize>) -> Self {
        let now = Instant::now();
        Self {
            stream,
            follower: Follower::default(),
            violation: None,
            patience,
            since: now,
            timer: Box::pin(tokio::time::sleep_until(now + patience.head)),
            was_in_head: true,
            stalled: None,
            busy,
        }
    }

    /// The socket, and what was wrong if something was.
    pub fn into_parts(self) -> (TcpStream, Option<Violation>) {
        (self.stream, self.violation)
    }

    /// Nothing to read: is that still all right?
    fn poll_patience(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while self.timer.as_mut().poll(cx).is_ready() {
            let now = Instant::now();
            let in_head = self.follower.in_head() || self.was_in_head;
            let timed =
                in_head || (self.follower.is_idle() && self.busy.load(Ordering::Relaxed) == 0);
            if !timed {
                self.since = now;
            }
            let limit = if in_head { self.patience.head } else { self.patience.idle };
            let due = self.since + limit;
            if timed && due <= now {
                if self.follower.in_head() {
                    self.violation = Some(Violation::SlowHead);
                    return Poll::Ready(Err(refuse()));
                }
                // An idle connection ends like one that the caller closed.
                return Poll::Ready(Ok(()));
            }
            self.timer.as_mut().reset(due);
        }
        Poll::Pending
    }

    fn note(&mut self) {
        // A fresh connection has as long for its first head as any head has.
        let in_head = self.follower.in_head();
        if in_head && !self.was_in_head {
            self.since = Instant::now();
            let due = self.since + self.patience.head;
            if self.timer.deadline() > due {
                self.timer.as_mut().reset(due);
            }
        } else if !in_head {
            self.since = Instant::now();
        }
        self.was_in_head = in_head;
    }
}

impl Guarded {
    /// A caller who stops reading would hold a server's room for ever: it may take nothing for as long
    /// as it may ask for nothing, then its connection ends.
    fn taken(
        &mut self,
        written: Poll<io::Result<usize>>,
        cx: &mut Context<'_>,
    ) -> Poll<io::Result<usize>> {
        if written.is_ready() {
            self.stalled = None;
            return written;
        }
        let limit = self.patience.idle;
        let alarm = self.stalled.get_or_insert_with(|| Box::pin(tokio::time::sleep(limit)));
        ready!(alarm.as_mut().poll(cx));
        Poll::Ready(Err(io::Error::new(io::ErrorKind::TimedOut, "the caller takes nothing")))
    }
}

fn refuse() -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, "framing refused")
}

impl AsyncRead for Guarded {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        let guard = &mut *self;
        if Pin::new(&mut guard.stream).poll_read(cx, buffer)?.is_pending() {
            ready!(guard.poll_patience(cx))?;
            return Poll::Ready(Ok(()));
        }
        let new = buffer.filled().get(before..).unwrap_or_default();
        match guard.follower.follow(new) {
            Ok(()) => {
                guard.note();
                Poll::Ready(Ok(()))
            }
            Err(violation) => {
                buffer.set_filled(before);
                guard.violation = Some(violation);
                Poll::Ready(Err(refuse()))
            }
        }
    }
}

impl AsyncWrite for Guarded {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write(cx, bytes);
        self.taken(written, cx)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write_vectored(cx, slices);
        self.taken(written, cx)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn follow(text: &str) -> Result<bool, &'static str> {
        let mut follower = Follower::default();
        follower.follow(text.as_bytes()).map_err(Violation::text)?;
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
        let long = format!("3;{}", "x".repeat(CHUNK_LINE_MAX));
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
            let verdict: Result<(), Violation> = cuts.windows(2).try_for_each(|pair| follower.follow(&bytes[pair[0]..pair[1]]));
            prop_assert_eq!(verdict.is_err(), bad);
            prop_assert!(bad || follower.is_idle());
        }
    }
}
