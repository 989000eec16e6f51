//! The thread that waits for what cards say of themselves: Xids, ECC errors, and the driver's newer words.
//!
//! It is a thread of its own, so that a reading that hangs on one card delays no event of another. It shares
//! the session's NVML and ends with the session.

use super::{
    errors::{is_driver_gone, is_for_good},
    raw::{self, CardKey, RawEvent},
};
use crate::{
    gpu::bell::Bell,
    ids::GpuId,
    snapshot::{EventKind, GpuEvent},
};
use nvml_wrapper::{EventSet, Nvml, error::NvmlError};
use std::{
    convert::Infallible,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
        mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel},
    },
    thread::{self, Thread},
    time::Duration,
};
use tokio::{
    sync::mpsc::{self, error::TrySendError},
    time::Instant,
};

/// The thread's name; `top -H` shows its first 15 letters.
const THREAD_NAME: &str = "berthd-nvml-events";

/// The longest wait inside the driver; so long a session's end can take.
const SLICE: Duration = Duration::from_millis(100);

/// The same for NVML.
const SLICE_MS: u32 = 100;

/// Events that wait for their reader. A card that floods its host with more has said what it has to say.
const ROOM: usize = 256;

/// `nvmlEventType*` of NVML's header.
mod bit {
    pub(super) const SINGLE_BIT_ECC: u64 = 0x1;
    pub(super) const DOUBLE_BIT_ECC: u64 = 0x2;
    pub(super) const XID: u64 = 0x8;
    pub(super) const MIG_CHANGED: u64 = 0x100;
    pub(super) const NON_FATAL_POISON: u64 = 0x1000;
    pub(super) const FATAL_POISON: u64 = 0x2000;
    pub(super) const UNAVAILABLE: u64 = 0x4000;
    pub(super) const RECOVERY_ACTION: u64 = 0x8000;
}

/// What is asked for, as far as a card can report it. Changes of clocks and power states are no events here:
/// readings tell them, and they are many.
const WANTED: u64 = bit::SINGLE_BIT_ECC
    | bit::DOUBLE_BIT_ECC
    | bit::XID
    | bit::MIG_CHANGED
    | bit::NON_FATAL_POISON
    | bit::FATAL_POISON
    | bit::UNAVAILABLE
    | bit::RECOVERY_ACTION;

/// Where events go.
#[derive(Clone)]
pub(in crate::gpu) struct Sink {
    events: mpsc::Sender<GpuEvent>,
    dropped: Arc<AtomicU64>,
    /// A card spoke up since the last round.
    news: Arc<AtomicBool>,
    bell: Arc<Bell>,
}

/// The thread, as its owner sees it. Dropping it tells the thread to stop.
pub(super) struct Listening {
    stop: Arc<AtomicBool>,
    thread: Thread,
    /// Nothing is ever sent; it closes when the thread has let go of NVML.
    over: Receiver<Infallible>,
}

/// A sink that rings `bell` with each event, the reader's end of it, and how many events found no room.
pub(in crate::gpu) fn channel(bell: Arc<Bell>) -> (Sink, mpsc::Receiver<GpuEvent>, Arc<AtomicU64>) {
    let (events, reader) = mpsc::channel(ROOM);
    let dropped = Arc::new(AtomicU64::new(0));
    let sink = Sink { events, dropped: Arc::clone(&dropped), news: Arc::default(), bell };
    (sink, reader, dropped)
}

/// Starts the thread for one session; `None` when the system has none to give.
pub(super) fn listen(nvml: Arc<Nvml>, sink: Sink) -> Option<Listening> {
    let stop = Arc::new(AtomicBool::new(false));
    let (alive, over): (SyncSender<Infallible>, _) = sync_channel(0);
    let stopped = Arc::clone(&stop);
    let run = move || {
        hear(&nvml, &stopped, &sink);
        // In this order: who waits for the thread waits for the library to be let go.
        drop(nvml);
        drop(alive);
    };
    match thread::Builder::new().name(THREAD_NAME.into()).spawn(run) {
        Ok(handle) => Some(Listening { stop, thread: handle.thread().clone(), over }),
        Err(error) => {
            tracing::warn!(%error, "no thread for the GPUs' events; faults are seen by readings alone");
            None
        }
    }
}

// === impl Listening ===

impl Listening {
    pub(super) fn stop(&self) {
        self.stop.store(true, Ordering::Release);
        self.thread.unpark();
    }

    /// Waits until the thread has let go of NVML; false when it has not by then.
    pub(super) fn wait(&mut self, limit: Duration) -> bool {
        matches!(self.over.recv_timeout(limit), Err(RecvTimeoutError::Disconnected))
    }

    /// Whether the thread has let go of NVML.
    pub(super) fn is_over(&mut self) -> bool {
        self.wait(Duration::ZERO)
    }
}

impl Drop for Listening {
    fn drop(&mut self) {
        self.stop();
    }
}

// === impl Sink ===

impl Sink {
    /// Whether a card spoke up since the last call.
    pub(super) fn take_news(&self) -> bool {
        self.news.swap(false, Ordering::AcqRel)
    }

    /// Never blocks: a reader that is slow loses events, the driver's thread no time.
    fn give(&self, event: GpuEvent) {
        // Errors that were corrected can come in floods, and nobody has to act on them at once.
        let urgent = event.kind != EventKind::EccSingleBit;
        match self.events.try_send(event) {
            Ok(()) => {}
            Err(TrySendError::Full(event)) => {
                if self.dropped.fetch_add(1, Ordering::Relaxed) == 0 {
                    tracing::warn!(
                        ?event,
                        "GPU events come faster than they are read; some are lost"
                    );
                }
            }
            // Nobody wants them.
            Err(TrySendError::Closed(_)) => return,
        }
        self.news.store(true, Ordering::Release);
        if urgent {
            self.bell.look();
        }
    }
}

// === The thread ===

fn hear(nvml: &Nvml, stop: &AtomicBool, sink: &Sink) {
    let set = match nvml.create_event_set() {
        Ok(set) => set,
        Err(error) => {
            tracing::debug!(%error, "the GPU driver reports no events");
            return;
        }
    };
    let cards = register(nvml, &set);
    if cards.is_empty() {
        return;
    }
    let mut said = false;
    while !stop.load(Ordering::Acquire) {
        match raw::wait(nvml, &set, SLICE_MS) {
            Ok(event) => {
                let event = translate(&cards, &event);
                // Whoever takes it says it to people, once for a storm of them.
                tracing::debug!(gpu = ?event.gpu, kind = ?event.kind, "a GPU event");
                sink.give(event);
            }
            Err(NvmlError::Timeout) => {}
            Err(error) if is_for_good(&error) => {
                tracing::debug!(%error, "the GPU driver cannot be waited for");
                return;
            }
            Err(error) => {
                // A lost card makes every wait fail on some drivers; the other cards' events still come. A
                // driver that is gone is for the session to find. Either may answer at once: no hurry.
                if !said && !is_driver_gone(&error) {
                    tracing::debug!(%error, "waiting for GPU events failed");
                    said = true;
                }
                thread::park_timeout(SLICE);
            }
        }
    }
}

/// Registers each card for what it can report. Cards that refuse are named and have no events.
fn register(nvml: &Nvml, set: &EventSet<'_>) -> Vec<(CardKey, GpuId)> {
    let register_one = |index: u32| {
        let device = nvml.device_by_index(index)?;
        let id: GpuId = device.uuid()?.into();
        let bits = raw::supported_events(nvml, &device)? & WANTED;
        if bits == 0 {
            return Err(NvmlError::NotSupported);
        }
        raw::register(nvml, &device, bits, set)?;
        Ok((raw::key(&device), id))
    };
    let count = nvml.device_count().unwrap_or(0).min(super::session::CARDS_MAX);
    let mut cards = Vec::new();
    for index in 0..count {
        match register_one(index) {
            Ok(card) => cards.push(card),
            Err(error) => {
                let error: NvmlError = error;
                tracing::debug!(index, %error, "this GPU reports no events");
            }
        }
    }
    cards
}

fn translate(cards: &[(CardKey, GpuId)], event: &RawEvent) -> GpuEvent {
    let known = |key: CardKey| cards.iter().find(|(here, _)| *here == key);
    GpuEvent {
        gpu: event.card.and_then(known).map(|(_, id)| id.clone()),
        kind: kind(event.bits, event.data),
        at: Instant::now(),
    }
}

fn kind(bits: u64, data: u64) -> EventKind {
    match bits {
        bit::XID => EventKind::Xid(u32::try_from(data).unwrap_or(u32::MAX)),
        bit::SINGLE_BIT_ECC => EventKind::EccSingleBit,
        bit::DOUBLE_BIT_ECC => EventKind::EccDoubleBit,
        bit::FATAL_POISON => EventKind::FatalPoison,
        bit::NON_FATAL_POISON => EventKind::NonFatalPoison,
        bit::UNAVAILABLE => EventKind::Unavailable,
        bit::RECOVERY_ACTION => EventKind::RecoveryAction,
        bit::MIG_CHANGED => EventKind::MigChanged,
        other => EventKind::Other(other),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gpu::bell::Woken;

    #[test]
    fn each_word_of_the_driver_has_a_meaning_and_unknown_ones_keep_their_bit() {
        for (bits, data, meant) in [
            (0x8, 79, EventKind::Xid(79)),
            (0x8, u64::MAX, EventKind::Xid(u32::MAX)),
            (0x1, 0, EventKind::EccSingleBit),
            (0x2, 0, EventKind::EccDoubleBit),
            (0x100, 0, EventKind::MigChanged),
            (0x1000, 0, EventKind::NonFatalPoison),
            (0x2000, 0, EventKind::FatalPoison),
            (0x4000, 0, EventKind::Unavailable),
            (0x8000, 0, EventKind::RecoveryAction),
            (0x10000, 0, EventKind::Other(0x10000)),
        ] {
            assert_eq!(kind(bits, data), meant);
        }
    }

    #[test]
    fn events_without_room_are_counted_and_hold_up_nobody() {
        let (sink, mut reader, dropped) = channel(Arc::default());
        let event = |xid| GpuEvent { gpu: None, kind: EventKind::Xid(xid), at: Instant::now() };
        let extra = 3;
        for xid in 0..ROOM as u32 + extra {
            sink.give(event(xid));
        }
        assert_eq!(dropped.load(Ordering::Relaxed), u64::from(extra));
        assert_eq!(reader.try_recv().unwrap().kind, EventKind::Xid(0), "the first ones are kept");
        assert!(sink.take_news());
        assert!(!sink.take_news());
    }

    #[test]
    fn corrected_errors_wait_for_the_next_round_and_others_do_not() {
        let bell = Arc::new(Bell::default());
        let (sink, _reader, _) = channel(Arc::clone(&bell));
        let event = |kind| GpuEvent { gpu: None, kind, at: Instant::now() };
        sink.give(event(EventKind::EccSingleBit));
        assert_eq!(bell.wait(Duration::ZERO), Woken::Time);
        assert!(sink.take_news(), "but that round reads everything");
        sink.give(event(EventKind::Xid(79)));
        assert_eq!(bell.wait(Duration::ZERO), Woken::Look);
    }

    #[test]
    fn a_sink_without_a_reader_counts_nothing_as_lost() {
        let (sink, reader, dropped) = channel(Arc::default());
        drop(reader);
        sink.give(GpuEvent { gpu: None, kind: EventKind::EccDoubleBit, at: Instant::now() });
        assert_eq!(dropped.load(Ordering::Relaxed), 0);
    }
}
