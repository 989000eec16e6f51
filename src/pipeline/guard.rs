//! The guard between a caller's socket and the HTTP library: every byte passes the framing rules before
//! it is read, and a caller has only so much time for a head, between requests, and for taking an answer.

use super::framing::{Follower, Violation};
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
