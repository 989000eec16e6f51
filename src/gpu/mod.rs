//! The GPU plane: one plain thread asks the driver and publishes what it says.
//!
//! A call into the driver can block for many seconds, most of all when a card is failing. So nothing but
//! this thread ever calls it, nothing waits for this thread, and readers judge a snapshot by its
//! `read_at`. What a reading means for scheduling is not decided here.

use crate::{
    config,
    snapshot::{DriverState, GpuPlane},
};
use std::{
    convert::Infallible,
    io,
    sync::{
        Arc,
        mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel},
    },
    thread,
    time::Duration,
};
use tokio::sync::watch;

mod nvml;

/// The thread's name, as `top -H` and a debugger show it.
const THREAD_NAME: &str = "berthd-nvml";

/// The shortest time between rounds, whatever is configured: the driver is shared with the model servers.
const PERIOD_LEAST: Duration = Duration::from_millis(10);

/// The wait before a missing driver is tried again the first time.
const RETRY_FIRST: Duration = Duration::from_secs(1);

/// The longest wait between tries. Each try loads a library; a driver that was installed by hand may
/// well take this long to be noticed.
const RETRY_MOST: Duration = Duration::from_secs(30);

/// What readers find when the thread ended by a fault.
const ENDED: &str = "the GPU thread ended by a fault of its own; restart berthd to read GPUs again";

/// Something that can say how the GPUs are.
pub trait Probe: Send {
    /// One round of readings. It may block for as long as the driver does. After
    /// [`GpuPlane::NoDriver`] the next call starts anew.
    fn read(&mut self) -> GpuPlane;
}

/// The GPU thread could not be started. Nothing was left behind; trying again is safe.
#[derive(Debug, thiserror::Error)]
#[error("the GPU thread could not be started")]
pub struct StartError(#[source] io::Error);

/// The owner's end of the GPU plane. Dropping it tells the thread to stop; it does so after the call it
/// is in, and nobody waits for that.
#[derive(Debug)]
pub struct GpuWatch {
    plane: watch::Receiver<Arc<GpuPlane>>,
    life: Life,
}

/// What keeps the channel open. Never used, only held: dropping it is the signal.
#[derive(Debug)]
enum Life {
    Thread { _stop: SyncSender<Infallible> },
    SwitchedOff { _publish: watch::Sender<Arc<GpuPlane>> },
}

/// Starts to read the GPUs through NVML every `settings.period`. A driver that is absent is no error
/// here: it is published, and tried again after 1 s, doubling to 30 s. Where the GPU plane is switched
/// off no thread is started and [`GpuPlane::Off`] stays.
pub fn start(settings: &config::Gpu) -> Result<GpuWatch, StartError> {
    if settings.enabled {
        start_with(nvml::NvmlProbe::new(settings.nvml_library.clone()), settings.period)
    } else {
        let (publish, plane) = watch::channel(Arc::new(GpuPlane::Off));
        Ok(GpuWatch { plane, life: Life::SwitchedOff { _publish: publish } })
    }
}

/// Starts to read any probe every `period`, counted from the end of one round to the start of the next.
pub fn start_with(probe: impl Probe + 'static, period: Duration) -> Result<GpuWatch, StartError> {
    let (publish, plane) = watch::channel(Arc::new(GpuPlane::Off));
    // Room for nothing: no message is ever sent, the sender's end is the message.
    let (stop, stopped) = sync_channel(0);
    let publisher = Publisher(publish);
    thread::Builder::new()
        .name(THREAD_NAME.into())
        .spawn(move || sample(probe, period.max(PERIOD_LEAST), &publisher, &stopped))
        .map_err(StartError)?;
    Ok(GpuWatch { plane, life: Life::Thread { _stop: stop } })
}

// === impl GpuWatch ===

impl GpuWatch {
    /// A view for a reader. It outlives this handle; after the thread's end it keeps the last value and
    /// `changed()` fails.
    pub fn subscribe(&self) -> watch::Receiver<Arc<GpuPlane>> {
        self.plane.clone()
    }

    /// What was published last. Never blocks on the driver.
    pub fn latest(&self) -> Arc<GpuPlane> {
        Arc::clone(&self.plane.borrow())
    }

    /// Waits until the thread has ended, which before [`GpuWatch::stop`] only a fault can cause. Never
    /// returns where the GPU plane is switched off. Dropping the future changes nothing.
    pub async fn ended(&self) {
        let mut plane = self.plane.clone();
        while plane.changed().await.is_ok() {}
    }

    /// Tells the thread to stop and waits until it has left the driver. Give it a time limit: it may be
    /// blocked there. It matters because killing a process inside a driver call can wedge a failing
    /// card. Dropping the future leaves the thread to end by itself.
    pub async fn stop(self) {
        let Self { mut plane, life } = self;
        drop(life);
        while plane.changed().await.is_ok() {}
    }
}

// === The thread ===

/// The thread's end of the channel. When the thread unwinds, readers are told so before the channel
/// closes; otherwise they would go on seeing the last good readings.
struct Publisher(watch::Sender<Arc<GpuPlane>>);

impl Drop for Publisher {
    fn drop(&mut self) {
        if thread::panicking() {
            tracing::error!(thread = THREAD_NAME, "{ENDED}");
            self.0.send_replace(Arc::new(GpuPlane::NoDriver(ENDED.into())));
        }
    }
}

fn sample(
    mut probe: impl Probe,
    period: Duration,
    publisher: &Publisher,
    stopped: &Receiver<Infallible>,
) {
    let mut retry = RETRY_FIRST;
    loop {
        let plane = probe.read();
        let wait = match &plane {
            GpuPlane::NoDriver(_) => next_retry(&mut retry),
            GpuPlane::Off | GpuPlane::Driver(_) => {
                retry = RETRY_FIRST;
                period
            }
        };
        log_change(&publisher.0.borrow(), &plane);
        publisher.0.send_replace(Arc::new(plane));
        match stopped.recv_timeout(wait) {
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => return,
        }
    }
}

/// This wait, and doubles the next one up to the ceiling.
fn next_retry(retry: &mut Duration) -> Duration {
    let now = *retry;
    *retry = now.saturating_mul(2).min(RETRY_MOST);
    now
}

/// One line when the driver comes, goes, or fails in another way; none while nothing changes.
fn log_change(before: &GpuPlane, now: &GpuPlane) {
    match (before, now) {
        (GpuPlane::Driver(_), GpuPlane::Driver(_)) => {}
        (_, GpuPlane::Driver(DriverState { driver_version, nvml_version, gpus, .. })) => {
            tracing::info!(%driver_version, %nvml_version, gpus = gpus.len(), "the GPU driver answers");
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
    use tokio::time::{Instant, timeout};

    const LIMIT: Duration = Duration::from_secs(10);

    /// Gives the planes of a script in order, then panics.
    struct Script(Vec<GpuPlane>);

    impl Probe for Script {
        fn read(&mut self) -> GpuPlane {
            assert!(!self.0.is_empty(), "the script is over");
            self.0.remove(0)
        }
    }

    /// Answers for ever.
    struct Steady;

    impl Probe for Steady {
        fn read(&mut self) -> GpuPlane {
            answers()
        }
    }

    fn answers() -> GpuPlane {
        GpuPlane::Driver(DriverState {
            driver_version: "580.65.06".into(),
            nvml_version: "13.580.65.06".into(),
            session: 1,
            gpus: Vec::new(),
            read_at: Instant::now(),
        })
    }

    #[test]
    fn retries_start_at_a_second_and_double_up_to_the_ceiling() {
        let mut retry = RETRY_FIRST;
        let waits: Vec<u64> = (0..7).map(|_| next_retry(&mut retry).as_secs()).collect();
        assert_eq!(waits, [1, 2, 4, 8, 16, 30, 30]);
    }

    #[tokio::test]
    async fn a_plane_switched_off_stays_off_and_does_not_end() {
        let settings = config::Gpu { enabled: false, ..config::Gpu::default() };
        let gpus = start(&settings).unwrap();
        assert!(matches!(*gpus.latest(), GpuPlane::Off));
        assert!(timeout(Duration::from_millis(50), gpus.ended()).await.is_err());
    }

    #[tokio::test]
    async fn a_panic_in_the_thread_is_published_and_closes_the_channel() {
        let gpus = start_with(Script(vec![answers()]), PERIOD_LEAST).unwrap();
        timeout(LIMIT, gpus.ended()).await.unwrap();
        let GpuPlane::NoDriver(why) = &*gpus.latest() else {
            panic!("readers must not go on seeing the last good readings");
        };
        assert!(why.contains("GPU thread ended"), "{why}");
    }

    #[tokio::test]
    async fn dropping_the_handle_ends_the_thread_and_keeps_the_last_readings() {
        let gpus = start_with(Steady, LIMIT * 6).unwrap();
        let mut plane = gpus.subscribe();
        let seen = plane.wait_for(|plane| matches!(**plane, GpuPlane::Driver(_)));
        timeout(LIMIT, seen).await.unwrap().unwrap();
        drop(gpus);
        // The thread was in the middle of its minute between rounds.
        assert!(timeout(LIMIT, plane.changed()).await.unwrap().is_err());
        assert!(matches!(**plane.borrow(), GpuPlane::Driver(_)));
    }

    #[tokio::test]
    async fn stop_waits_for_the_threads_end() {
        let gpus = start_with(Steady, LIMIT * 6).unwrap();
        let mut plane = gpus.subscribe();
        timeout(LIMIT, gpus.stop()).await.unwrap();
        plane.mark_unchanged();
        assert!(plane.has_changed().is_err(), "the thread is gone");
    }
}
