//! The body of a server's answer: from a connection, or from a model in this process.

use super::{CallError, exchange::Exchange};
use bytes::Bytes;
use std::{
    future::poll_fn,
    task::{Context, Poll},
};
use tokio::sync::mpsc;

/// A body as it comes. Dropping it aborts the call.
#[derive(Debug)]
pub enum AnswerBody {
    /// From an HTTP connection.
    Wire(Box<Exchange>),
    /// From a model in this process; the channel's bound is the back-pressure.
    Memory(mpsc::Receiver<Result<Bytes, CallError>>),
}

impl AnswerBody {
    /// The next piece, `None` at the clean end.
    pub fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Bytes, CallError>>> {
        match self {
            Self::Wire(exchange) => exchange.poll_next(cx),
            Self::Memory(pieces) => pieces.poll_recv(cx),
        }
    }

    /// The next piece, `None` at the clean end. Dropping the future loses nothing.
    pub async fn next(&mut self) -> Option<Result<Bytes, CallError>> {
        poll_fn(|cx| self.poll_next(cx)).await
    }
}
