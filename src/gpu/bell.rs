//! How the GPU thread is woken before its time: to end, or to look at once because a card spoke up.

use std::{
    sync::{Condvar, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

/// One sleeper, any number of ringers.
#[derive(Debug, Default)]
pub(super) struct Bell {
    /// What was rung for and not yet heard. A condition variable goes with it, hence a plain mutex.
    rung: Mutex<Rung>,
    wake: Condvar,
}

#[derive(Debug, Default)]
struct Rung {
    stop: bool,
    look: bool,
}

/// Why a sleep ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Woken {
    /// The owner is gone.
    Stop,
    /// A card spoke up.
    Look,
    /// Nobody rang.
    Time,
}

/// The owner's end: dropping it stops the sleeper.
#[derive(Debug)]
pub(super) struct StopOnDrop(pub(super) std::sync::Arc<Bell>);

impl Drop for StopOnDrop {
    fn drop(&mut self) {
        self.0.lock().stop = true;
        self.0.wake.notify_all();
    }
}

// === impl Bell ===

impl Bell {
    /// Asks the sleeper to look now. Never blocks longer than a moment.
    pub(super) fn look(&self) {
        self.lock().look = true;
        self.wake.notify_all();
    }

    /// Sleeps until somebody rings or the time is over. A ring from before counts; a stop stays rung.
    pub(super) fn wait(&self, limit: Duration) -> Woken {
        let quiet = |rung: &mut Rung| !rung.stop && !rung.look;
        let mut rung = self
            .wake
            .wait_timeout_while(self.lock(), limit, quiet)
            .map_or_else(|poisoned| poisoned.into_inner().0, |(rung, _)| rung);
        if rung.stop {
            Woken::Stop
        } else if std::mem::take(&mut rung.look) {
            Woken::Look
        } else {
            Woken::Time
        }
    }

    /// Two flags cannot be left half written, so a panic elsewhere does not spoil them.
    fn lock(&self) -> MutexGuard<'_, Rung> {
        self.rung.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::{sync::Arc, thread};

    const LONG: Duration = Duration::from_secs(60);

    #[test]
    fn a_ring_from_before_the_sleep_is_heard_once() {
        let bell = Bell::default();
        bell.look();
        bell.look();
        assert_eq!(bell.wait(LONG), Woken::Look);
        assert_eq!(bell.wait(Duration::ZERO), Woken::Time);
    }

    #[test]
    fn a_stop_goes_before_a_look_and_stays() {
        let bell = Arc::new(Bell::default());
        bell.look();
        drop(StopOnDrop(Arc::clone(&bell)));
        assert_eq!(bell.wait(LONG), Woken::Stop);
        assert_eq!(bell.wait(LONG), Woken::Stop);
    }

    #[test]
    fn a_ring_ends_a_sleep_under_way() {
        let bell = Arc::new(Bell::default());
        let sleeper = Arc::clone(&bell);
        let asleep = thread::spawn(move || sleeper.wait(LONG));
        bell.look();
        assert_eq!(asleep.join().unwrap(), Woken::Look);
    }
}
