//! The clock in real time: one task turns its steps, requests hold tickets.

use super::clock::{Clock, Profile, SequenceId, Token, TooLong};
use crate::units::Tokens;
use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    task::{Context, Poll, Waker},
    time::Duration,
};
use tokio::{
    sync::Notify,
    time::{Instant, sleep_until},
};

/// Sequences in the line; beyond it vLLM answers 503.
const WAITING_MAX: usize = 16_384;

/// How far behind steps may fall on a busy machine before the lost time is written off.
const LAG_MAX: Duration = Duration::from_secs(1);

/// The batch that all requests share.
#[derive(Debug)]
pub(super) struct Batch {
    /// Guards the clock and who waits for its tokens; held for plain arithmetic only, never over an await.
    inner: Mutex<Inner>,
    /// Work came while there was none.
    work: Notify,
    speed: f64,
}

#[derive(Debug)]
struct Inner {
    clock: Clock,
    next_id: u64,
    seats: HashMap<SequenceId, Seat>,
}

/// Where a request waits for its tokens.
#[derive(Debug, Default)]
struct Seat {
    generated: u64,
    waker: Option<Waker>,
}

/// What the metrics page shows.
#[derive(Clone, Copy, Debug)]
pub(super) struct Load {
    pub running: usize,
    pub waiting: usize,
    pub used: Tokens,
    pub capacity: Tokens,
    pub preemptions: u64,
}

/// Why a sequence was not taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Refused {
    LineFull,
    TooLong(TooLong),
}

/// A sequence in the batch. Dropped, the sequence is aborted.
pub(super) struct Ticket {
    batch: Arc<Batch>,
    id: SequenceId,
}

// === impl Batch ===

impl Batch {
    /// `speed` divides every step's time; a value that makes no sense counts as 1.
    pub fn new(profile: Profile, speed: f64) -> Self {
        let clock = Clock::new(profile);
        let speed = if speed.is_finite() && speed > 0.0 { speed } else { 1.0 };
        let inner = Inner { clock, next_id: 0, seats: HashMap::new() };
        Self { inner: Mutex::new(inner), work: Notify::new(), speed }
    }

    pub fn submit(self: &Arc<Self>, prompt: Tokens, output: Tokens) -> Result<Ticket, Refused> {
        let mut inner = self.lock();
        if inner.clock.waiting() >= WAITING_MAX {
            return Err(Refused::LineFull);
        }
        let id = SequenceId(inner.next_id);
        inner.clock.submit(id, prompt, output).map_err(Refused::TooLong)?;
        inner.next_id = inner.next_id.wrapping_add(1);
        inner.seats.insert(id, Seat::default());
        drop(inner);
        self.work.notify_one();
        Ok(Ticket { batch: Arc::clone(self), id })
    }

    pub fn load(&self) -> Load {
        let clock = &self.lock().clock;
        Load {
            running: clock.running(),
            waiting: clock.waiting(),
            used: clock.used(),
            capacity: clock.capacity(),
            preemptions: clock.preemptions(),
        }
    }

    /// Turns steps for ever. Dropping the future stops the clock.
    pub async fn drive(&self) {
        let mut tokens = Vec::new();
        let mut due = Instant::now();
        loop {
            let step = self.lock().clock.begin();
            let Some(step_s) = step else {
                self.work.notified().await;
                due = Instant::now();
                continue;
            };
            // From one deadline to the next, so that a timer's millisecond does not add up.
            let now = Instant::now();
            if now.saturating_duration_since(due) > LAG_MAX {
                due = now;
            }
            let step = Duration::try_from_secs_f64(step_s / self.speed).unwrap_or_default();
            due = due.checked_add(step).unwrap_or(due);
            sleep_until(due).await;
            self.lock().finish(&mut tokens);
        }
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        // Nothing inside can leave it half changed, so a panic elsewhere does not spoil it.
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

// === impl Inner ===

impl Inner {
    fn finish(&mut self, tokens: &mut Vec<Token>) {
        tokens.clear();
        self.clock.finish(tokens);
        for token in tokens.iter() {
            let Some(seat) = self.seats.get_mut(&token.id) else { continue };
            seat.generated = token.generated.get();
            if let Some(waker) = seat.waker.take() {
                waker.wake();
            }
        }
    }
}

// === impl Ticket ===

impl Ticket {
    /// Ready when the token numbered `index` is computed.
    pub fn poll(&self, index: u64, cx: &mut Context<'_>) -> Poll<()> {
        let mut inner = self.batch.lock();
        match inner.seats.get_mut(&self.id) {
            Some(seat) if seat.generated <= index => {
                seat.waker = Some(cx.waker().clone());
                Poll::Pending
            }
            _ => Poll::Ready(()),
        }
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        let mut inner = self.batch.lock();
        inner.clock.abort(self.id);
        inner.seats.remove(&self.id);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::future::poll_fn;

    /// Every step takes `fix_s`, whatever it does.
    fn batch(speed: f64) -> Arc<Batch> {
        let profile = Profile {
            weights_s: 0.0,
            fix_s: 0.1,
            token_s: 0.0,
            context_s: 0.0,
            attention_s: 0.0,
            kv: Tokens(1600),
            chunk: Tokens(512),
            max_running: 2,
        };
        Arc::new(Batch::new(profile, speed))
    }

    #[tokio::test(start_paused = true)]
    async fn tokens_come_at_the_end_of_their_steps() {
        let batch = batch(2.0);
        let start = Instant::now();
        let ticket = batch.submit(Tokens(5), Tokens(3)).unwrap();
        let read = async {
            let mut at = Vec::new();
            for index in 0..3 {
                poll_fn(|cx| ticket.poll(index, cx)).await;
                at.push(start.elapsed().as_millis());
            }
            at
        };
        let at = tokio::select! { at = read => at, () = batch.drive() => Vec::new() };
        assert_eq!(at, [50, 100, 150], "0.1 s a step at double speed");
    }

    #[tokio::test(start_paused = true)]
    async fn a_dropped_ticket_leaves_the_batch_at_once() {
        let batch = batch(1.0);
        let tickets: Vec<_> =
            (0..3).map(|_| batch.submit(Tokens(16), Tokens(100)).unwrap()).collect();
        tokio::select! {
            () = batch.drive() => {}
            () = tokio::time::sleep(Duration::from_millis(250)) => {}
        }
        assert_eq!((batch.load().running, batch.load().waiting), (2, 1));
        drop(tickets);
        let load = batch.load();
        assert_eq!((load.running, load.waiting, load.used), (0, 0, Tokens::ZERO));
    }
}
