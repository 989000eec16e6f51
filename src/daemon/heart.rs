//! Tells the service manager that the daemon is alive.

use crate::systemd::Notifier;
use std::{future::Future, time::Duration};
use tokio::time::Interval;

/// Tells the service manager that the daemon is alive, from the loop that does the daemon's work.
pub(super) struct Heart {
    notifier: Notifier,
    interval: Interval,
}

impl Heart {
    pub(super) fn new(notifier: Notifier) -> Self {
        let forever = Duration::from_secs(24 * 3600);
        // A manager that wants a beat every zero seconds wants none that we could give.
        let every = notifier.watchdog_interval().filter(|every| !every.is_zero());
        let interval = tokio::time::interval(every.unwrap_or(forever));
        Self { notifier, interval }
    }

    /// Resolves when a beat is due. Dropping the future loses no beat.
    pub(super) async fn due(&mut self) {
        self.interval.tick().await;
    }

    pub(super) fn beat(&self) {
        self.notifier.watchdog();
    }

    /// Beats while long work is done in the loop's place: loading models, draining. Such work has its
    /// own limits.
    pub(super) async fn during<T>(&mut self, work: impl Future<Output = T>) -> T {
        let mut work = std::pin::pin!(work);
        loop {
            tokio::select! {
                done = &mut work => return done,
                () = self.due() => self.beat(),
            }
        }
    }
}
