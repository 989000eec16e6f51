//! The GPU thread's life: rounds, what is read between them, retries, and what it publishes.

use super::{
    Meters, Probe,
    bell::{Bell, Woken},
};
use crate::snapshot::{DriverState, GpuPlane};
use std::{sync::Arc, thread, time::Duration};
use tokio::{sync::watch, time::Instant};

/// The thread's name, as `top -H` and a debugger show it.
pub(super) const THREAD_NAME: &str = "berthd-nvml";

/// The shortest time between readings, whatever is configured: the driver is shared with the model servers.
const PERIOD_LEAST: Duration = Duration::from_millis(10);

/// The shortest time between rounds that cards ask for by events. A flood of events is no reason to ask the
/// driver without end.
const LOOK_LEAST: Duration = Duration::from_millis(100);

/// The wait before a missing driver is tried again the first time.
const RETRY_FIRST: Duration = Duration::from_secs(1);

/// The longest wait between tries. Each try loads a library; a driver that was installed by hand may
/// well take this long to be noticed.
const RETRY_MOST: Duration = Duration::from_secs(30);

/// What readers find when the thread ended by a fault.
const ENDED: &str = "the GPU thread ended by a fault of its own; restart berthd to read GPUs again";

/// How often is read.
#[derive(Clone, Copy, Debug)]
pub(super) struct Pace {
    /// From the end of one round to the start of the next.
    pub(super) period: Duration,
    /// From one reading of the meters to the next, between rounds. Zero or longer than `period`: none.
    pub(super) fast_period: Duration,
}

impl Pace {
    fn period(self) -> Duration {
        self.period.max(PERIOD_LEAST)
    }

    fn fast(self) -> Option<Duration> {
        let fast = self.fast_period.max(PERIOD_LEAST);
        (!self.fast_period.is_zero() && fast < self.period()).then_some(fast)
    }
}

/// The thread's end of the channel. When the thread unwinds, readers are told so before the channel
/// closes; otherwise they would go on seeing the last good readings.
pub(super) struct Publisher(pub(super) watch::Sender<Arc<GpuPlane>>);

impl Publisher {
    fn publish(&self, plane: GpuPlane) {
        self.0.send_replace(Arc::new(plane));
    }

    fn last(&self) -> Arc<GpuPlane> {
        Arc::clone(&self.0.borrow())
    }
}

impl Drop for Publisher {
    fn drop(&mut self) {
        if thread::panicking() {
            tracing::error!(thread = THREAD_NAME, "{ENDED}");
            self.publish(GpuPlane::NoDriver(ENDED.into()));
        }
    }
}

/// Reads until the bell says stop.
pub(super) fn sample(mut probe: impl Probe, pace: Pace, publisher: &Publisher, bell: &Bell) {
    let mut retry = RETRY_FIRST;
    loop {
        let plane = probe.read();
        let (wait, fast) = match &plane {
            GpuPlane::NoDriver(_) => (next_retry(&mut retry), None),
            GpuPlane::Off | GpuPlane::Driver(_) => {
                retry = RETRY_FIRST;
                (pace.period(), pace.fast())
            }
        };
        log_change(&publisher.last(), &plane);
        publisher.publish(plane);
        let between = || {
            let GpuPlane::Driver(last) = &*publisher.last() else { return Seen::Same };
            match probe.meter(last) {
                Meters::Read(state) => publisher.publish(GpuPlane::Driver(state)),
                Meters::Changed => return Seen::Change,
                Meters::Absent => {}
            }
            Seen::Same
        };
        if !rest(wait, fast, bell, between) {
            return;
        }
    }
}

/// What a reading between rounds saw.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Seen {
    /// Nothing that a whole round would have to tell.
    Same,
    /// Something that a whole round must tell.
    Change,
}

/// The time between two rounds, with `between` every `fast`. A change that it sees shortens the rest, as an
/// event does. False when it is time to end.
fn rest(
    wait: Duration,
    fast: Option<Duration>,
    bell: &Bell,
    mut between: impl FnMut() -> Seen,
) -> bool {
    let began = Instant::now();
    let mut until = began + wait;
    loop {
        let left = until.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return true;
        }
        match bell.wait(fast.map_or(left, |fast| fast.min(left))) {
            Woken::Stop => return false,
            Woken::Look => until = until.min(began + LOOK_LEAST),
            Woken::Time if Instant::now() < until => {
                if between() == Seen::Change {
                    until = until.min(began + LOOK_LEAST);
                }
            }
            Woken::Time => {}
        }
    }
}

/// This wait, and doubles the next one up to the ceiling.
fn next_retry(retry: &mut Duration) -> Duration {
    let now = *retry;
    *retry = now.saturating_mul(2).min(RETRY_MOST);
    now
}

/// One line when the driver comes, goes, is opened anew, or fails in another way; none while nothing changes.
fn log_change(before: &GpuPlane, now: &GpuPlane) {
    match (before, now) {
        (GpuPlane::Driver(old), GpuPlane::Driver(new)) if old.session == new.session => {}
        (_, GpuPlane::Driver(DriverState { driver_version, nvml_version, gpus, session, .. })) => {
            let gpus = gpus.len();
            tracing::info!(%driver_version, %nvml_version, gpus, session, "the GPU driver answers");
        }
        (GpuPlane::NoDriver(old), GpuPlane::NoDriver(new)) if old == new => {}
        // A host without a GPU is no fault; one whose driver went away has one.
        (GpuPlane::Off, GpuPlane::NoDriver(why)) => tracing::info!("{why}"),
        (_, GpuPlane::NoDriver(why)) => tracing::warn!("{why}"),
        (_, GpuPlane::Off) => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LONG: Duration = Duration::from_secs(60);

    #[test]
    fn retries_start_at_a_second_and_double_up_to_the_ceiling() {
        let mut retry = RETRY_FIRST;
        let waits: Vec<u64> = (0..7).map(|_| next_retry(&mut retry).as_secs()).collect();
        assert_eq!(waits, [1, 2, 4, 8, 16, 30, 30]);
    }

    #[test]
    fn a_fast_period_counts_only_between_rounds() {
        let second = Duration::from_secs(1);
        let pace = |fast_period| Pace { period: second, fast_period };
        assert_eq!(pace(Duration::ZERO).fast(), None);
        assert_eq!(pace(second).fast(), None);
        assert_eq!(pace(second / 10).fast(), Some(second / 10));
        assert_eq!(pace(Duration::from_nanos(1)).fast(), Some(PERIOD_LEAST));
    }

    #[test]
    fn a_card_that_speaks_up_shortens_the_rest_but_not_to_nothing() {
        let bell = Bell::default();
        let began = Instant::now();
        bell.look();
        assert!(rest(LONG, None, &bell, || Seen::Same));
        assert!(began.elapsed() >= LOOK_LEAST);
        assert!(began.elapsed() < LONG);
    }

    #[test]
    fn meters_are_read_between_rounds() {
        let bell = Bell::default();
        let mut readings = 0;
        let fast = Some(PERIOD_LEAST);
        assert!(rest(PERIOD_LEAST * 20, fast, &bell, || {
            readings += 1;
            // Whatever this machine is busy with, one reading more can only end the rest.
            if readings == 3 {
                bell.look();
            }
            Seen::Same
        }));
        assert!(readings >= 1);
    }

    #[test]
    fn a_change_between_rounds_brings_the_next_round_forward() {
        let began = Instant::now();
        assert!(rest(LONG, Some(PERIOD_LEAST), &Bell::default(), || Seen::Change));
        assert!(began.elapsed() >= LOOK_LEAST);
        assert!(began.elapsed() < LONG);
    }
}
