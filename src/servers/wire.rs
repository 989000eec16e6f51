//! A socket that hyper reads and writes while the pool may still look at it.

use std::{
    io,
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    task::{Context, Poll},
};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::TcpStream,
};

/// A shared TCP stream. One side reads and writes; the other only peeks while it is idle.
///
/// Reads go through the stream's own `poll_read`, which needs it exclusively, rather than through
/// `try_read`: that one wants its buffer zeroed, and asks the kernel once more after every short read.
#[derive(Clone, Debug)]
pub(super) struct Wire {
    /// Guards the stream for one poll. Both sides run in the task that has the connection, so it is
    /// never contended.
    socket: Arc<Mutex<TcpStream>>,
}

impl Wire {
    pub(super) fn new(socket: TcpStream) -> Self {
        Self { socket: Arc::new(Mutex::new(socket)) }
    }

    fn lock(&self) -> MutexGuard<'_, TcpStream> {
        self.socket.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// An idle HTTP/1 socket has nothing to read. Bytes are an answer nobody asked for, the end of
    /// stream is a closed connection; both make it useless. Asked of the kernel itself, since the
    /// runtime's idea of readiness may be older than the bytes.
    pub(super) fn is_silent(&self) -> bool {
        use rustix::net::{RecvFlags, recv};
        let mut byte = [0u8; 1];
        let flags = RecvFlags::PEEK | RecvFlags::DONTWAIT;
        matches!(recv(&*self.lock(), &mut byte[..], flags), Err(rustix::io::Errno::AGAIN))
    }
}

impl AsyncRead for Wire {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut *self.lock()).poll_read(cx, buffer)
    }
}

impl AsyncWrite for Wire {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut *self.lock()).poll_write(cx, bytes)
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut *self.lock()).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut *self.lock()).poll_shutdown(cx)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut *self.lock()).poll_write_vectored(cx, slices)
    }

    fn is_write_vectored(&self) -> bool {
        true
    }
}
