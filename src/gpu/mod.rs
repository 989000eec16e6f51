//! The GPU plane: one plain thread asks the driver and publishes what it says; another waits for what cards
//! say of themselves.
//!
//! A call into the driver can block for many seconds, most of all when a card is failing. So nothing but
//! these threads ever calls it, nothing waits for them, and readers judge a snapshot by its `read_at`. What a reading means for scheduling is not decided here.

use crate::{
    config,
    snapshot::{DriverState, GpuEvent, GpuPlane},
};
use bell::{Bell, StopOnDrop};
use nvml::{NvmlProbe, events};
use sampler::{Pace, Publisher, THREAD_NAME, sample};
use std::{
    io,
    path::PathBuf,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    thread,
    time::Duration,
};
use tokio::sync::{mpsc, watch};

mod bell;
mod nvml;
mod sampler;

/// Something that can say how the GPUs are.
pub trait Probe: Send {
    /// One round of readings. It may block for as long as the driver does. After
    /// [`GpuPlane::NoDriver`] the next call starts anew.
    fn read(&mut self) -> GpuPlane;

    /// The last round with utilisation, power and energy read again; its `read_at` stays.
    fn meter(&mut self, last: &DriverState) -> Meters {
        let _ = last;
        Meters::Absent
    }
}

/// What came of a reading between rounds.
#[derive(Debug)]
pub enum Meters {
    /// The last round, with what was read again.
    Read(DriverState),
    /// A card that answered does not any more, or the number of cards is another: a whole round tells.
    Changed,
    /// Nothing can be read between rounds.
    Absent,
}

/// The GPU thread could not be started. Nothing was left behind; trying again is safe.
#[derive(Debug, thiserror::Error)]
#[error("the GPU thread could not be started")]
pub struct StartError(#[source] io::Error);

/// The owner's end of the GPU plane. Dropping it tells the threads to stop; they do so after the calls they
/// are in, and nobody waits for that.
#[derive(Debug)]
pub struct GpuWatch {
    plane: watch::Receiver<Arc<GpuPlane>>,
    /// Until somebody takes them. Locked only to take.
    events: Mutex<Option<mpsc::Receiver<GpuEvent>>>,
    dropped: Arc<AtomicU64>,
    life: Life,
}

/// What keeps the plane going. Never used, only held: dropping it is the signal.
#[derive(Debug)]
enum Life {
    Thread { _stop: StopOnDrop },
    SwitchedOff { _publish: watch::Sender<Arc<GpuPlane>> },
}

/// Starts to read the GPUs through NVML every `settings.period`, utilisation, power and energy every
/// `settings.fast_period`, and to wait for events. A driver that is absent is no error here: it is published,
/// and tried again after 1 s, doubling to 30 s. Where the GPU plane is switched off no thread is started and
/// [`GpuPlane::Off`] stays.
pub fn start(settings: &config::Gpu) -> Result<GpuWatch, StartError> {
    if !settings.enabled {
        let (publish, plane) = watch::channel(Arc::new(GpuPlane::Off));
        let life = Life::SwitchedOff { _publish: publish };
        return Ok(GpuWatch { plane, events: Mutex::default(), dropped: Arc::default(), life });
    }
    let bell = Arc::new(Bell::default());
    let (sink, events, dropped) = events::channel(Arc::clone(&bell));
    let probe = NvmlProbe::new(settings.nvml_library.clone(), Some(sink));
    let pace = Pace { period: settings.period, fast_period: settings.fast_period };
    let watch = run(probe, pace, bell)?;
    Ok(GpuWatch { events: Mutex::new(Some(events)), dropped, ..watch })
}

/// Starts to read any probe every `period`, counted from the end of one round to the start of the next. It has
/// no events.
pub fn start_with(probe: impl Probe + 'static, period: Duration) -> Result<GpuWatch, StartError> {
    run(probe, Pace { period, fast_period: Duration::ZERO }, Arc::default())
}

/// One round through NVML, by the caller's own thread, which may block for as long as the driver does. For
/// people who look at a node without a daemon. `None` lets the system's loader find the library.
pub fn read_once(library: Option<PathBuf>) -> GpuPlane {
    NvmlProbe::new(library, None).read()
}

fn run(probe: impl Probe + 'static, pace: Pace, bell: Arc<Bell>) -> Result<GpuWatch, StartError> {
    let (publish, plane) = watch::channel(Arc::new(GpuPlane::Off));
    let publisher = Publisher(publish);
    let rung = Arc::clone(&bell);
    thread::Builder::new()
        .name(THREAD_NAME.into())
        .spawn(move || sample(probe, pace, &publisher, &rung))
        .map_err(StartError)?;
    let life = Life::Thread { _stop: StopOnDrop(bell) };
    Ok(GpuWatch { plane, events: Mutex::default(), dropped: Arc::default(), life })
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

    /// What cards say of themselves, in the driver's order. The channel is bounded: who takes it must read
    /// it. `None` when it was taken before, and where there are no events.
    pub fn take_events(&self) -> Option<mpsc::Receiver<GpuEvent>> {
        self.events.lock().unwrap_or_else(PoisonError::into_inner).take()
    }

    /// Events that were lost because nobody read them in time.
    pub fn dropped_events(&self) -> u64 {
        self.dropped.load(Ordering::Relaxed)
    }

    /// Waits until the thread has ended, which before [`GpuWatch::stop`] only a fault can cause. Never
    /// returns where the GPU plane is switched off. Dropping the future changes nothing.
    pub async fn ended(&self) {
        let mut plane = self.plane.clone();
        while plane.changed().await.is_ok() {}
    }

    /// Tells the threads to stop and waits until they have left the driver. Give it a time limit: it may be
    /// blocked there. It matters because killing a process inside a driver call can wedge a failing
    /// card. Dropping the future leaves the threads to end by themselves.
    pub async fn stop(self) {
        let Self { mut plane, life, .. } = self;
        drop(life);
        while plane.changed().await.is_ok() {}
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

    #[tokio::test]
    async fn a_plane_switched_off_stays_off_and_does_not_end() {
        let settings = config::Gpu { enabled: false, ..config::Gpu::default() };
        let gpus = start(&settings).unwrap();
        assert!(matches!(*gpus.latest(), GpuPlane::Off));
        assert!(gpus.take_events().is_none());
        assert!(timeout(Duration::from_millis(50), gpus.ended()).await.is_err());
    }

    #[tokio::test]
    async fn a_panic_in_the_thread_is_published_and_closes_the_channel() {
        let gpus = start_with(Script(vec![answers()]), Duration::ZERO).unwrap();
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
