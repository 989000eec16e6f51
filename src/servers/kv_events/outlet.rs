//! Hands changes on through a bounded channel, and never waits long for whoever reads it.
//!
//! A change that finds no room is lost, and all that the reader believes is void with it: it must hear that first
//! of all. Must not know where changes come from.

use super::counts::Counts;
use crate::{ids::ServerId, snapshot::KvChange};
use std::{pin::pin, sync::Arc, time::Duration};
use tokio::sync::mpsc::Sender;

/// A full channel is waited for this long, while the publisher keeps what it says for us.
const SEND_LIMIT: Duration = Duration::from_millis(100);

pub(super) struct Outlet {
    server: ServerId,
    changes: Sender<(ServerId, KvChange)>,
    counts: Arc<Counts>,
    /// The reader believes something, that is: was sent a change and no clearing since.
    believed: bool,
    /// It must hear that its view is void.
    owed: bool,
}

impl Outlet {
    pub(super) const fn new(
        server: ServerId,
        changes: Sender<(ServerId, KvChange)>,
        counts: Arc<Counts>,
    ) -> Self {
        Self { server, changes, counts, believed: false, owed: false }
    }

    /// What was sent holds no longer.
    pub(super) fn owe(&mut self) {
        self.owed |= self.believed;
    }

    /// Sends changes in order. False: those that were left found no room, or a debt stands in front of them.
    pub(super) async fn send(&mut self, changes: Vec<KvChange>) -> bool {
        let mut left = changes.len() as u64;
        for change in changes {
            if !self.send_one(change).await {
                self.counts.dropped.add(left);
                self.owed = true;
                return false;
            }
            left = left.saturating_sub(1);
        }
        true
    }

    async fn send_one(&mut self, change: KvChange) -> bool {
        if self.owed {
            // No waiting: there was none to be had, and every batch would wait anew.
            if self.changes.try_send((self.server.clone(), KvChange::Cleared)).is_err() {
                return false;
            }
            (self.owed, self.believed) = (false, false);
        }
        let clears = change == KvChange::Cleared;
        if clears && !self.believed {
            return true;
        }
        let sent = self.changes.send_timeout((self.server.clone(), change), SEND_LIMIT).await;
        self.believed = !(clears && sent.is_ok());
        sent.is_ok()
    }

    /// Waits for `future`, and pays meanwhile what is owed as soon as there is room.
    pub(super) async fn settling<F: Future>(&mut self, future: F) -> F::Output {
        let mut future = pin!(future);
        while self.owed {
            tokio::select! {
                output = &mut future => return output,
                room = self.changes.reserve() => match room {
                    Ok(room) => {
                        room.send((self.server.clone(), KvChange::Cleared));
                        (self.owed, self.believed) = (false, false);
                    }
                    // Nobody is owed anything any more.
                    Err(_) => self.owed = false,
                },
            }
        }
        future.await
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::future::{pending, ready};
    use tokio::{
        sync::mpsc::{self, Receiver},
        time::timeout,
    };

    fn outlet(room: usize) -> (Outlet, Receiver<(ServerId, KvChange)>) {
        let (sender, receiver) = mpsc::channel(room);
        (Outlet::new("s".into(), sender, Arc::default()), receiver)
    }

    fn new(hash: u64) -> KvChange {
        KvChange::Stored { block_tokens: 16, hashes: vec![hash] }
    }

    fn read(receiver: &mut Receiver<(ServerId, KvChange)>) -> Vec<KvChange> {
        std::iter::from_fn(|| receiver.try_recv().ok().map(|(_, change)| change)).collect()
    }

    #[tokio::test(start_paused = true)]
    async fn what_finds_no_room_is_dropped_and_a_clearing_goes_first() {
        let (mut outlet, mut receiver) = outlet(2);
        assert!(!outlet.send(vec![new(1), new(2), new(3), new(4)]).await);
        assert!(!outlet.send(vec![new(5)]).await, "still full");
        assert_eq!(outlet.counts.read().dropped, 3);
        assert_eq!(read(&mut receiver), [new(1), new(2)]);
        assert!(outlet.send(vec![new(6)]).await);
        assert_eq!(read(&mut receiver), [KvChange::Cleared, new(6)]);
    }

    #[tokio::test(start_paused = true)]
    async fn a_slow_reader_is_waited_for_a_little() {
        let (mut outlet, mut receiver) = outlet(1);
        assert!(outlet.send(vec![new(1)]).await);
        let both = async { tokio::join!(outlet.send(vec![new(2)]), receiver.recv()) };
        let (sent, first) = both.await;
        assert_eq!((sent, first), (true, Some(("s".into(), new(1)))));
        assert_eq!(read(&mut receiver), [new(2)]);
    }

    /// An engine that falls silent after a burst must not leave the reader with a void view.
    #[tokio::test(start_paused = true)]
    async fn a_debt_is_paid_while_nothing_happens() {
        let (mut outlet, mut receiver) = outlet(1);
        assert!(!outlet.send(vec![new(1), new(2)]).await);
        let paying = timeout(Duration::from_secs(1), outlet.settling(pending::<()>()));
        let (_, first) = tokio::join!(paying, receiver.recv());
        assert_eq!(first, Some(("s".into(), new(1))));
        assert_eq!(read(&mut receiver), [KvChange::Cleared]);
        assert_eq!(outlet.settling(ready(7)).await, 7);
    }

    #[tokio::test(start_paused = true)]
    async fn who_believes_nothing_is_told_nothing() {
        let (mut outlet, mut receiver) = outlet(4);
        outlet.owe();
        assert!(outlet.send(vec![KvChange::Cleared, new(1), KvChange::Cleared]).await);
        outlet.owe();
        assert!(outlet.send(vec![KvChange::Cleared, new(2)]).await);
        assert_eq!(read(&mut receiver), [new(1), KvChange::Cleared, new(2)]);
    }
}
