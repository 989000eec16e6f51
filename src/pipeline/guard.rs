//! The guard between a caller's socket and the HTTP library: every byte passes the framing rules before
//! it is read, and a caller has only so much time for a head, between requests, and for taking an answer.
//!
//! The library gets the bytes of one request at a time and nothing behind it. While it holds bytes that it
//! cannot use yet it does not read, and a caller who leaves would not be noticed before the answer.

use super::framing::{Follower, Violation};
use std::{
    fmt,
    future::Future,
    io,
    ops::Range,
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

/// Time limits of one connection.
#[derive(Clone, Copy, Debug)]
pub struct Patience {
    /// From a head's first byte to its last.
    pub head: Duration,
    /// Between requests, and while a caller takes nothing of its answer.
    pub idle: Duration,
}

/// What a caller is told who sends the next request too early.
const ONE_AT_A_TIME: Violation =
    Violation::Rule("One request at a time: wait for the answer before sending the next.");

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
    /// Something was written since the last request began.
    answered: bool,
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
            answered: false,
            busy,
        }
    }

    /// True when some of an answer to the last request was written.
    pub const fn has_answered(&self) -> bool {
        self.answered
    }

    /// The socket, and what was wrong if something was.
    pub fn into_parts(self) -> (TcpStream, Option<Violation>) {
        (self.stream, self.violation)
    }

    /// Which of these bytes the library may have: those of the request under way. Empty lines around it
    /// are swallowed.
    fn pass(&mut self, new: &[u8]) -> Result<Range<usize>, Violation> {
        let start = self.follower.skip_blank(new)?;
        let own = new.get(start..).unwrap_or_default();
        if own.is_empty() {
            return Ok(0..0);
        }
        if self.follower.is_idle() {
            // Nobody can have read an answer to its end before it was let go of here.
            if self.busy.load(Ordering::Relaxed) > 0 {
                return Err(ONE_AT_A_TIME);
            }
            self.answered = false;
        }
        let end = start + self.follower.follow(own)?;
        let rest = new.get(end..).unwrap_or_default();
        if self.follower.skip_blank(rest)? < rest.len() {
            return Err(ONE_AT_A_TIME);
        }
        Ok(start..end)
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
        if let Poll::Ready(result) = &written {
            self.stalled = None;
            if result.as_ref().is_ok_and(|bytes| *bytes > 0) {
                self.answered = true;
                // The idle time begins behind the answer. Counted from the request, it could be over as
                // the answer ends, and we would close while the proxy in front sends its next request.
                if !self.follower.in_head() {
                    self.since = Instant::now();
                }
            }
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
        loop {
            if Pin::new(&mut guard.stream).poll_read(cx, buffer)?.is_pending() {
                ready!(guard.poll_patience(cx))?;
                return Poll::Ready(Ok(()));
            }
            let new = buffer.filled().get(before..).unwrap_or_default();
            if new.is_empty() {
                return Poll::Ready(Ok(()));
            }
            let passed = match guard.pass(new) {
                Ok(passed) => passed,
                Err(violation) => {
                    buffer.set_filled(before);
                    guard.violation = Some(violation);
                    return Poll::Ready(Err(refuse()));
                }
            };
            guard.note();
            let length = passed.len();
            if passed.start > 0 && length > 0 {
                let from = before + passed.start;
                buffer.filled_mut().copy_within(from..from + length, before);
            }
            buffer.set_filled(before + length);
            // To the library nothing means the end, so what was swallowed whole is read past.
            if length > 0 {
                return Poll::Ready(Ok(()));
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
    use std::future::poll_fn;
    use tokio::{
        io::AsyncWriteExt,
        net::TcpListener,
        time::{advance, timeout},
    };

    const ONE: &[u8] = b"GET /a HTTP/1.1\r\nHost: a\r\n\r\n";
    const PATIENCE: Patience =
        Patience { head: Duration::from_secs(10), idle: Duration::from_secs(75) };

    /// A guarded connection, on which these bytes have come.
    async fn guarded(bytes: &[u8]) -> (TcpStream, Guarded, Arc<AtomicUsize>) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let mut caller = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        let (stream, _) = listener.accept().await.unwrap();
        caller.write_all(bytes).await.unwrap();
        stream.readable().await.unwrap();
        let busy = Arc::new(AtomicUsize::new(0));
        (caller, Guarded::new(stream, PATIENCE, Arc::clone(&busy)), busy)
    }

    /// One look: what was read, or nothing yet.
    async fn look(guarded: &mut Guarded) -> Option<io::Result<Vec<u8>>> {
        let mut space = [0; 1024];
        poll_fn(|cx| {
            let mut buffer = ReadBuf::new(&mut space);
            Poll::Ready(match Pin::new(&mut *guarded).poll_read(cx, &mut buffer) {
                Poll::Ready(read) => Some(read.map(|()| buffer.filled().to_vec())),
                Poll::Pending => None,
            })
        })
        .await
    }

    /// The idle time ran from the request's last byte, so that a connection closed a second after an
    /// answer of 74 s, while the proxy in front was sending its next request.
    #[tokio::test(start_paused = true)]
    async fn the_idle_time_begins_behind_the_answer() {
        let (_caller, mut guarded, busy) = guarded(ONE).await;
        assert_eq!(look(&mut guarded).await.unwrap().unwrap(), ONE);
        busy.store(1, Ordering::Relaxed);
        // The timer was set for a head; here it is set anew.
        advance(Duration::from_secs(10)).await;
        assert!(look(&mut guarded).await.is_none());
        advance(Duration::from_secs(74)).await;
        guarded.write_all(b"answer").await.unwrap();
        busy.store(0, Ordering::Relaxed);
        for seconds in [2, 72] {
            advance(Duration::from_secs(seconds)).await;
            assert!(look(&mut guarded).await.is_none(), "it may ask for 75 s");
        }
        advance(Duration::from_secs(2)).await;
        assert_eq!(look(&mut guarded).await.unwrap().unwrap(), b"", "but no longer");
    }

    #[tokio::test]
    async fn the_library_gets_one_request_and_nothing_around_it() {
        let bytes = [b"\r\n", ONE, b"\r\n\r\n"].concat();
        let (mut caller, mut guarded, busy) = guarded(&bytes).await;
        assert_eq!(look(&mut guarded).await.unwrap().unwrap(), ONE);
        busy.store(1, Ordering::Relaxed);
        assert!(look(&mut guarded).await.is_none());
        caller.write_all(b"\r\n").await.unwrap();
        let mut space = [0; 64];
        let mut buffer = ReadBuf::new(&mut space);
        let more = poll_fn(|cx| Pin::new(&mut guarded).poll_read(cx, &mut buffer));
        assert!(timeout(Duration::from_millis(50), more).await.is_err(), "swallowed");
        drop(caller);
        let end = poll_fn(|cx| Pin::new(&mut guarded).poll_read(cx, &mut buffer));
        end.await.unwrap();
        assert!(buffer.filled().is_empty(), "the caller has left");
    }

    #[tokio::test]
    async fn a_second_request_before_the_answer_is_refused() {
        let (_caller, mut together, _) = guarded(&[ONE, ONE].concat()).await;
        assert!(look(&mut together).await.unwrap().is_err());
        assert_eq!(together.into_parts().1, Some(ONE_AT_A_TIME));
        let (_caller, mut later, busy) = guarded(ONE).await;
        busy.store(1, Ordering::Relaxed);
        assert!(look(&mut later).await.unwrap().is_err());
        assert_eq!(later.into_parts().1, Some(ONE_AT_A_TIME));
    }
}
