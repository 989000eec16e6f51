//! The pulse of one server: when it was last heard, and the word that takes its requests back. Both are
//! reached without the dispatch's lock, by every piece of every answer.

use crate::schedule::Progress;
use std::{
    sync::atomic::{AtomicU64, Ordering},
    time::Duration,
};
use tokio::{sync::Notify, time::Instant};

/// What the requests on one server share.
#[derive(Debug)]
pub(super) struct Pulse {
    begun: Instant,
    /// When the last byte came, microseconds after `begun`.
    heard_us: AtomicU64,
    /// Times that its requests were taken back.
    recalls: AtomicU64,
    recall: Notify,
}

impl Pulse {
    pub(super) fn new(now: Instant) -> Self {
        Self {
            begun: now,
            heard_us: AtomicU64::new(0),
            recalls: AtomicU64::new(0),
            recall: Notify::new(),
        }
    }

    /// The server sent something.
    pub(super) fn hear(&self, now: Instant) {
        let since = now.saturating_duration_since(self.begun).as_micros();
        let since = u64::try_from(since).unwrap_or(u64::MAX);
        self.heard_us.fetch_max(since, Ordering::Relaxed);
    }

    /// When it last sent something; when it joined, before it ever did.
    pub(super) fn heard(&self) -> Instant {
        self.begun + Duration::from_micros(self.heard_us.load(Ordering::Relaxed))
    }

    /// What a request remembers of its start, to know a recall that came since.
    pub(super) fn recalls(&self) -> u64 {
        self.recalls.load(Ordering::Acquire)
    }

    /// Takes all requests back that are on the server now.
    pub(super) fn recall_all(&self) {
        self.recalls.fetch_add(1, Ordering::AcqRel);
        self.recall.notify_waiters();
    }

    /// Has all requests that are on the server look whether they are called back.
    pub(super) fn stir(&self) {
        self.recall.notify_waiters();
    }

    /// Waits until a request that began at this count is taken back, or is called back itself. Dropping the future changes nothing.
    pub(super) async fn recalled_since(&self, begun: u64, progress: &Progress) {
        loop {
            // In this order: what is notified between the two is not lost.
            let word = self.recall.notified();
            if self.recalls() != begun || progress.is_called_back() {
                return;
            }
            word.await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::pin::pin;
    use tokio::time::{advance, timeout};

    #[tokio::test(start_paused = true)]
    async fn a_recall_reaches_who_was_there_and_nobody_later() {
        let pulse = Pulse::new(Instant::now());
        let (before, none) = (pulse.recalls(), Progress::default());
        let mut waits = pin!(pulse.recalled_since(before, &none));
        assert!(timeout(Duration::from_secs(1), &mut waits).await.is_err());
        pulse.recall_all();
        assert!(timeout(Duration::ZERO, waits).await.is_ok());
        // One whose turn was on its way hears it as soon as it listens.
        assert!(timeout(Duration::ZERO, pulse.recalled_since(before, &none)).await.is_ok());
        let later = pulse.recalled_since(pulse.recalls(), &none);
        assert!(timeout(Duration::from_secs(1), later).await.is_err());
    }

    #[tokio::test(start_paused = true)]
    async fn one_alone_is_called_back() {
        let pulse = Pulse::new(Instant::now());
        let (called, other) = (Progress::default(), Progress::default());
        let mut waits = pin!(pulse.recalled_since(0, &called));
        let mut stays = pin!(pulse.recalled_since(0, &other));
        assert!(timeout(Duration::from_secs(1), &mut waits).await.is_err());
        assert!(timeout(Duration::from_secs(1), &mut stays).await.is_err());
        called.call_back();
        pulse.stir();
        assert!(timeout(Duration::ZERO, waits).await.is_ok());
        assert!(timeout(Duration::from_secs(1), stays).await.is_err());
    }

    #[tokio::test(start_paused = true)]
    async fn the_latest_byte_counts() {
        let start = Instant::now();
        let pulse = Pulse::new(start);
        assert_eq!(pulse.heard(), start);
        advance(Duration::from_secs(3)).await;
        pulse.hear(Instant::now());
        pulse.hear(start + Duration::from_secs(1));
        assert_eq!(pulse.heard(), start + Duration::from_secs(3));
    }
}
