//! A streamed answer: one future that does the work, one slot that hands its pieces to the caller.
//!
//! The future runs inside the response body. There is no task and no channel between them: when the
//! caller leaves, the body is dropped, the future with it, and with the future every guard it holds.
//! The slot holds one piece, so a slow reader holds the server back.

use crate::error::Refusal;
use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use std::{
    convert::Infallible,
    future::{Future, poll_fn},
    pin::Pin,
    sync::{Arc, Mutex, PoisonError},
    task::{Context, Poll},
    time::Duration,
};
use tokio::time::{Instant, Sleep};

/// What keeps a silent connection alive. Comments mean nothing to a client.
const HEARTBEAT: Bytes = Bytes::from_static(b": berthd is waiting for the model server\n\n");

/// The inner side: where the future puts pieces.
#[derive(Clone, Debug, Default)]
pub struct Slot {
    /// Guards the one piece; both sides run in the same task, so it is never contended.
    piece: Arc<Mutex<Option<Bytes>>>,
}

impl Slot {
    fn lock(&self) -> std::sync::MutexGuard<'_, Option<Bytes>> {
        self.piece.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Hands a piece to the caller; waits while the one before is not taken yet.
    pub async fn give(&self, piece: Bytes) {
        let mut piece = Some(piece);
        poll_fn(|_| {
            // No waker is needed: the body takes the piece and polls the future again itself.
            let mut slot = self.lock();
            if slot.is_some() {
                return Poll::Pending;
            }
            *slot = piece.take();
            Poll::Ready(())
        })
        .await;
    }
}

type Work = Pin<Box<dyn Future<Output = Result<(), Refusal>> + Send>>;

/// The outer side: the body of a streamed answer.
pub struct Flow {
    work: Option<Work>,
    slot: Slot,
    heartbeat: Duration,
    quiet_since: Instant,
    alarm: Pin<Box<Sleep>>,
    /// Turns a late refusal into the stream's last event.
    explain: Box<dyn Fn(&Refusal) -> Bytes + Send>,
}

impl std::fmt::Debug for Flow {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Flow").field("over", &self.work.is_none()).finish_non_exhaustive()
    }
}

/// What came first.
#[derive(Debug)]
pub enum First {
    /// Content: the answer has begun.
    Piece(Bytes),
    /// The end, without any content.
    End(Result<(), Refusal>),
    /// Nothing yet, and the caller should hear that we are alive.
    Silence,
}

impl Flow {
    /// A flow over `work`, which gives its pieces to `slot`.
    pub fn new(
        work: Work,
        slot: Slot,
        heartbeat: Duration,
        explain: Box<dyn Fn(&Refusal) -> Bytes + Send>,
    ) -> Self {
        let alarm = Box::pin(tokio::time::sleep(heartbeat));
        Self { work: Some(work), slot, heartbeat, quiet_since: Instant::now(), alarm, explain }
    }

    fn poll_piece(&mut self, cx: &mut Context<'_>) -> Poll<First> {
        if let Some(piece) = self.slot.lock().take() {
            return Poll::Ready(First::Piece(piece));
        }
        let Some(work) = self.work.as_mut() else { return Poll::Ready(First::End(Ok(()))) };
        let done = work.as_mut().poll(cx);
        let piece = self.slot.lock().take();
        if let Some(piece) = piece {
            if let Poll::Ready(end) = done {
                self.finish(end);
            }
            return Poll::Ready(First::Piece(piece));
        }
        if let Poll::Ready(end) = done {
            self.work = None;
            return Poll::Ready(First::End(end));
        }
        self.poll_alarm(cx)
    }

    /// The alarm is set again only when it rings, not at each piece: a busy stream pays nothing for it.
    fn poll_alarm(&mut self, cx: &mut Context<'_>) -> Poll<First> {
        while self.alarm.as_mut().poll(cx).is_ready() {
            let due = self.quiet_since + self.heartbeat;
            let now = Instant::now();
            if due <= now {
                self.quiet_since = now;
                self.alarm.as_mut().reset(now + self.heartbeat);
                return Poll::Ready(First::Silence);
            }
            self.alarm.as_mut().reset(due);
        }
        Poll::Pending
    }

    /// The work ended in the same turn in which it gave its last piece: what is left to say goes
    /// into the slot behind it.
    fn finish(&mut self, end: Result<(), Refusal>) {
        self.work = None;
        if let Err(refusal) = end {
            *self.slot.lock() = Some((self.explain)(&refusal));
        }
    }

    /// Waits for what comes first.
    pub async fn first(&mut self) -> First {
        poll_fn(|cx| self.poll_piece(cx)).await
    }

    /// Puts a piece that was taken with [`Flow::first`] back in front.
    #[must_use]
    pub fn begin_with(self, piece: Bytes) -> Begun {
        Begun { first: Some(piece), flow: self }
    }

    /// The body of an answer whose head goes out before any content.
    #[must_use]
    pub fn begin(self) -> Begun {
        self.begin_with(HEARTBEAT)
    }
}

/// A flow whose head has been sent.
#[derive(Debug)]
pub struct Begun {
    first: Option<Bytes>,
    flow: Flow,
}

impl Body for Begun {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        if let Some(first) = self.first.take() {
            self.flow.quiet_since = Instant::now();
            return Poll::Ready(Some(Ok(Frame::data(first))));
        }
        let piece = match std::task::ready!(self.flow.poll_piece(cx)) {
            First::Piece(piece) => {
                self.flow.quiet_since = Instant::now();
                piece
            }
            First::Silence => HEARTBEAT,
            First::End(Ok(())) => return Poll::Ready(None),
            First::End(Err(refusal)) => (self.flow.explain)(&refusal),
        };
        Poll::Ready(Some(Ok(Frame::data(piece))))
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Reason;
    use http_body_util::BodyExt;

    fn flow(work: impl Future<Output = Result<(), Refusal>> + Send + 'static, slot: Slot) -> Flow {
        let explain = |refusal: &Refusal| Bytes::from(format!("error {}", refusal.message));
        Flow::new(Box::pin(work), slot, Duration::from_secs(10), Box::new(explain))
    }

    async fn frames(mut body: Begun, count: usize) -> Vec<String> {
        let mut out = Vec::new();
        while out.len() < count {
            let Some(frame) = body.frame().await else { break };
            let data = frame.unwrap().into_data().unwrap();
            out.push(String::from_utf8(data.to_vec()).unwrap());
        }
        out
    }

    #[tokio::test(start_paused = true)]
    async fn pieces_come_in_order_then_the_error_and_the_end() {
        let slot = Slot::default();
        let give = slot.clone();
        let work = async move {
            give.give(Bytes::from_static(b"a")).await;
            give.give(Bytes::from_static(b"b")).await;
            Err(Refusal::new(Reason::AnswerBroken, "cut"))
        };
        let mut flow = flow(work, slot);
        let First::Piece(first) = flow.first().await else { panic!("no piece") };
        assert_eq!(frames(flow.begin_with(first), 9).await, ["a", "b", "error cut"]);
    }

    #[tokio::test(start_paused = true)]
    async fn silence_is_filled_with_heartbeats_and_only_silence() {
        let slot = Slot::default();
        let give = slot.clone();
        let work = async move {
            tokio::time::sleep(Duration::from_secs(25)).await;
            for _ in 0..3 {
                give.give(Bytes::from_static(b"x")).await;
                tokio::time::sleep(Duration::from_secs(9)).await;
            }
            Ok(())
        };
        let mut flow = flow(work, slot);
        assert!(matches!(flow.first().await, First::Silence));
        let out = frames(flow.begin(), 9).await;
        let kinds: Vec<bool> = out.iter().map(|piece| piece.starts_with(':')).collect();
        // 10 s (the head's own), 20 s; then pieces every 9 s keep the heart quiet.
        assert_eq!(kinds, [true, true, false, false, false]);
    }

    #[tokio::test(start_paused = true)]
    async fn dropping_the_body_drops_the_work() {
        let held = Arc::new(());
        let inside = Arc::clone(&held);
        let slot = Slot::default();
        let work = async move {
            let _inside = inside;
            std::future::pending::<()>().await;
            Ok(())
        };
        let mut flow = flow(work, slot);
        assert!(matches!(flow.first().await, First::Silence));
        let body = flow.begin();
        assert_eq!(Arc::strong_count(&held), 2);
        drop(body);
        assert_eq!(Arc::strong_count(&held), 1);
    }
}
