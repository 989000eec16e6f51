//! An answer under way: when its next token is due, and the body that carries it.
//!
//! Dropping an answer before its end is what a hang-up looks like from here: the sequence leaves the batch
//! at once and the abort is counted.

use super::{
    Stats,
    batch::Ticket,
    wire::{Finish, Shape},
};
use crate::units::Tokens;
use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use std::{
    convert::Infallible,
    future::{Future, poll_fn},
    pin::Pin,
    sync::{Arc, atomic::Ordering::Relaxed},
    task::{Context, Poll, ready},
    time::Duration,
};
use tokio::time::{Instant, Sleep, sleep_until};

/// When tokens come.
pub(super) enum Pace {
    /// At once, each in a write of its own. `Some(n)`: token `n` waits for the one before to be written.
    Free { paused_at: Option<u64> },
    /// Evenly.
    Interval { start: Instant, interval: Duration, sleep: Pin<Box<Sleep>> },
    /// When the batch has computed them.
    Batch(Ticket),
}

/// One generating request, from its arrival to the last byte of its answer.
pub(super) struct Answer {
    pub shape: Arc<Shape>,
    pub prompt: Tokens,
    pub output: Tokens,
    pub finish: Finish,
    pub wants_usage: bool,
    pub pace: Pace,
    pub flight: Option<Flight>,
}

/// Counts one request in, and on drop out again, under the way it ended.
pub(super) struct Flight {
    stats: Arc<Stats>,
    end: End,
}

#[derive(Clone, Copy)]
enum End {
    Aborted,
    Refused,
    Finished,
}

/// The body of a response.
pub(super) enum Page {
    Whole(Option<Bytes>),
    Stream(Box<Stream>),
}

pub(super) struct Stream {
    answer: Answer,
    next: Next,
}

#[derive(Clone, Copy)]
enum Next {
    Opening,
    Token(u64),
    Closing,
    Nothing,
}

// === impl Flight ===

impl Flight {
    pub fn new(stats: Arc<Stats>) -> Self {
        stats.requests.fetch_add(1, Relaxed);
        stats.running.fetch_add(1, Relaxed);
        Self { stats, end: End::Aborted }
    }

    /// It is answered with an error.
    pub fn refuse(&mut self) {
        self.end = End::Refused;
    }

    fn finish(&mut self, prompt: Tokens, output: Tokens, finish: Finish) {
        self.end = End::Finished;
        self.stats.prompt.fetch_add(prompt.get(), Relaxed);
        self.stats.generated.fetch_add(output.get(), Relaxed);
        if finish == Finish::Stop {
            self.stats.stopped.fetch_add(1, Relaxed);
        }
    }
}

impl Drop for Flight {
    fn drop(&mut self) {
        self.stats.running.fetch_sub(1, Relaxed);
        let ended = match self.end {
            End::Aborted => &self.stats.aborted,
            End::Refused => &self.stats.refused,
            End::Finished => &self.stats.finished,
        };
        ended.fetch_add(1, Relaxed);
    }
}

// === impl Pace ===

impl Pace {
    pub fn evenly(interval: Duration) -> Self {
        let start = Instant::now();
        Self::Interval { start, interval, sleep: Box::pin(sleep_until(start)) }
    }

    /// Ready when the token numbered `index` is there.
    fn poll(&mut self, index: u64, cx: &mut Context<'_>) -> Poll<()> {
        match self {
            Self::Free { paused_at } if *paused_at == Some(index) || index == 0 => Poll::Ready(()),
            Self::Free { paused_at } => {
                // A body that pauses makes hyper flush, so that each token is one write as on a real
                // server, where tokens come one by one.
                *paused_at = Some(index);
                cx.waker().wake_by_ref();
                Poll::Pending
            }
            Self::Interval { start, interval, sleep } => {
                let after = interval.saturating_mul(u32::try_from(index).unwrap_or(u32::MAX));
                let due = start.checked_add(after).unwrap_or(*start);
                if sleep.deadline() != due {
                    sleep.as_mut().reset(due);
                }
                sleep.as_mut().poll(cx)
            }
            Self::Batch(ticket) => ticket.poll(index, cx),
        }
    }
}

// === impl Answer ===

impl Answer {
    /// Waits for the last token and gives the answer in one piece. Dropping the future aborts.
    pub async fn whole(mut self) -> Bytes {
        let last = self.output.get().saturating_sub(1);
        if !matches!(self.pace, Pace::Free { .. }) {
            poll_fn(|cx| self.pace.poll(last, cx)).await;
        }
        if let Some(flight) = &mut self.flight {
            flight.finish(self.prompt, self.output, self.finish);
        }
        self.shape.whole(self.prompt, self.output, self.finish)
    }

    /// The answer as a stream of events. Dropping it aborts.
    pub fn stream(self) -> Page {
        Page::Stream(Box::new(Stream { answer: self, next: Next::Opening }))
    }
}

// === impl Stream ===

impl Stream {
    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Option<Bytes>> {
        let answer = &mut self.answer;
        loop {
            match self.next {
                Next::Opening => {
                    // vLLM sends its first chunk after the prefill, with the first token.
                    ready!(answer.pace.poll(0, cx));
                    self.next = Next::Token(0);
                    if let Some(opening) = answer.shape.opening() {
                        return Poll::Ready(Some(opening));
                    }
                }
                Next::Token(index) => {
                    ready!(answer.pace.poll(index, cx));
                    let following = index.saturating_add(1);
                    let last = following >= answer.output.get();
                    self.next = if last { Next::Closing } else { Next::Token(following) };
                    let finish = last.then_some(answer.finish);
                    return Poll::Ready(Some(answer.shape.token(index, finish)));
                }
                Next::Closing => {
                    self.next = Next::Nothing;
                    if let Some(flight) = &mut answer.flight {
                        flight.finish(answer.prompt, answer.output, answer.finish);
                    }
                    let usage = answer.wants_usage.then_some((answer.prompt, answer.output));
                    return Poll::Ready(Some(answer.shape.closing(usage)));
                }
                Next::Nothing => return Poll::Ready(None),
            }
        }
    }
}

// === impl Page ===

impl Body for Page {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        let piece = match self.get_mut() {
            Self::Whole(piece) => piece.take(),
            Self::Stream(stream) => ready!(stream.poll(cx)),
        };
        Poll::Ready(piece.map(|piece| Ok(Frame::data(piece))))
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Whole(piece) => piece.is_none(),
            Self::Stream(stream) => matches!(stream.next, Next::Nothing),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Whole(piece) => SizeHint::with_exact(piece.as_ref().map_or(0, Bytes::len) as u64),
            Self::Stream(_) => SizeHint::default(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::simulate::wire::{Style, Words};
    use std::task::Waker;

    fn answer(stats: &Arc<Stats>, output: u64) -> Answer {
        Answer {
            shape: Arc::new(Shape::new(Style::Chat, Words { pad_bytes: 0 }, "1", 1, r#""m""#)),
            prompt: Tokens(4),
            output: Tokens(output),
            finish: Finish::Length,
            wants_usage: false,
            pace: Pace::Free { paused_at: None },
            flight: Some(Flight::new(Arc::clone(stats))),
        }
    }

    /// What one poll brings: the data, or a pause.
    fn poll(page: &mut Page) -> Option<String> {
        let mut cx = Context::from_waker(Waker::noop());
        match Pin::new(page).poll_frame(&mut cx) {
            Poll::Pending => None,
            Poll::Ready(Some(Ok(frame))) => {
                Some(String::from_utf8(frame.into_data().unwrap().to_vec()).unwrap())
            }
            Poll::Ready(None) => Some(String::new()),
        }
    }

    #[test]
    fn an_instant_stream_pauses_before_every_further_token() {
        let stats = Arc::new(Stats::default());
        let mut page = answer(&stats, 3).stream();
        assert!(poll(&mut page).unwrap().contains("assistant"));
        assert!(poll(&mut page).unwrap().contains("word0"));
        for word in ["word1", "word2"] {
            assert_eq!(poll(&mut page), None, "so that hyper writes what it has");
            assert!(poll(&mut page).unwrap().contains(word));
        }
        assert!(poll(&mut page).unwrap().contains("[DONE]"));
        assert_eq!((stats.running(), stats.finished()), (1, 0));
        drop(page);
        assert_eq!((stats.running(), stats.finished(), stats.aborted()), (0, 1, 0));
    }

    #[test]
    fn a_stream_dropped_before_its_end_is_an_abort() {
        let stats = Arc::new(Stats::default());
        let mut page = answer(&stats, 1).stream();
        poll(&mut page);
        drop(page);
        assert_eq!((stats.running(), stats.finished(), stats.aborted()), (0, 0, 1));
        assert_eq!(stats.generated(), Tokens::ZERO);
    }

    #[tokio::test(start_paused = true)]
    async fn an_even_pace_is_kept_from_the_start() {
        let stats = Arc::new(Stats::default());
        let pace = Pace::evenly(Duration::from_millis(30));
        let start = Instant::now();
        Answer { pace, ..answer(&stats, 11) }.whole().await;
        assert_eq!(start.elapsed().as_millis(), 300);
    }
}
