//! NVML, asked by the GPU thread: one session after the other, each over all cards.
//!
//! Nothing here waits for longer than the driver does, retries or publishes; what a reading means is decided
//! elsewhere.

use super::{Meters, Probe};
use crate::snapshot::{DriverState, GpuPlane};
use events::{Listening, Sink};
use nvml_wrapper::error::NvmlError;
use session::Session;
use std::{path::PathBuf, time::Duration};
use tokio::time::Instant;

mod asks;
mod card;
mod errors;
pub(super) mod events;
mod mig;
mod processes;
mod raw;
mod readings;
mod session;

/// The library the system's loader is asked for when none is configured.
const LIBRARY: &str = "libnvidia-ml.so.1";

/// How long the events' thread of a session that is over may take to leave the driver before the next session
/// is opened all the same. It leaves within 100 ms unless the driver holds it.
const FAREWELL: Duration = Duration::from_secs(1);

/// The shortest time between rounds that read everything because of events.
const ALL_LEAST: Duration = Duration::from_secs(1);

/// Reads GPUs through the driver's own library, which is opened at the first round and again after the
/// driver was lost.
pub(super) struct NvmlProbe {
    library: PathBuf,
    /// Where events go; without it there is no thread that waits for them.
    sink: Option<Sink>,
    session: Option<Session>,
    /// The thread that waits for the session's events.
    listening: Option<Listening>,
    /// That of an earlier session, which the driver holds. While it lives there is no other, so that a
    /// driver that hangs cannot collect threads.
    held: Option<Listening>,
    /// How often NVML was opened.
    sessions: u64,
    /// When an event last made a round read everything.
    read_all: Option<Instant>,
}

impl NvmlProbe {
    /// Nothing is opened yet. `None` lets the system's loader find the library.
    pub(super) fn new(library: Option<PathBuf>, sink: Option<Sink>) -> Self {
        Self {
            library: library.unwrap_or_else(|| LIBRARY.into()),
            sink,
            session: None,
            listening: None,
            held: None,
            sessions: 0,
            read_all: None,
        }
    }

    fn round(&mut self) -> Result<DriverState, NvmlError> {
        // Taken out, so that a session that failed is shut down and not asked again.
        let mut session = match self.session.take() {
            Some(session) => session,
            None => self.open()?,
        };
        let all = self.everything();
        let state = match session.round(all) {
            Ok(Some(state)) => Ok(state),
            Ok(None) => {
                // NVML shows the cards that were there when it was opened.
                tracing::info!("the number of GPUs changed; NVML is opened anew");
                self.close(session);
                session = self.open()?;
                session.round(true).and_then(|state| state.ok_or(NvmlError::Unknown))
            }
            Err(error) => Err(error),
        };
        match state {
            Ok(state) => {
                if session.take_returned() {
                    // Nothing is said about what became of its events meanwhile.
                    self.end_listening();
                }
                self.listen(&session);
                self.session = Some(session);
                Ok(state)
            }
            Err(error) => {
                self.close(session);
                Err(error)
            }
        }
    }

    /// Whether a card gave reason to read all there is. Events that keep coming are no reason to keep asking
    /// for what changes slowly.
    fn everything(&mut self) -> bool {
        let now = Instant::now();
        let lately = self.read_all.is_some_and(|last| now.duration_since(last) < ALL_LEAST);
        let all = !lately && self.sink.as_ref().is_some_and(Sink::take_news);
        if all {
            self.read_all = Some(now);
        }
        all
    }

    fn open(&mut self) -> Result<Session, NvmlError> {
        // The loader gives out the file it has as long as anybody holds it, even when the file was
        // replaced since; and it is the events' thread that may still hold it.
        if let Some(mut held) = self.held.take()
            && !held.wait(FAREWELL)
        {
            self.held = Some(held);
        }
        let session = Session::open(&self.library, self.sessions.saturating_add(1))?;
        self.sessions = session.number();
        self.listen(&session);
        Ok(session)
    }

    /// Starts the thread for events unless there is one or none can be.
    fn listen(&mut self, session: &Session) {
        let Some(sink) = &self.sink else { return };
        if self.listening.is_some() || self.held.as_mut().is_some_and(|held| !held.is_over()) {
            return;
        }
        self.held = None;
        self.listening = events::listen(session.nvml(), sink.clone());
    }

    /// The thread goes before the session, so that the library is let go with it.
    fn close(&mut self, session: Session) {
        self.end_listening();
        drop(session);
    }

    fn end_listening(&mut self) {
        if let Some(mut listening) = self.listening.take() {
            listening.stop();
            if !listening.wait(FAREWELL) {
                self.held = Some(listening);
            }
        }
    }
}

impl Probe for NvmlProbe {
    fn read(&mut self) -> GpuPlane {
        match self.round() {
            Ok(state) => GpuPlane::Driver(state),
            Err(error) => GpuPlane::NoDriver(errors::explain(&error, &self.library)),
        }
    }

    fn meter(&mut self, last: &DriverState) -> Meters {
        self.session.as_mut().map_or(Meters::Absent, |session| session.meter(last))
    }
}

impl Drop for NvmlProbe {
    fn drop(&mut self) {
        if let Some(session) = self.session.take() {
            self.close(session);
        }
        // Who waits for this end wants nobody left in the driver.
        if let Some(mut held) = self.held.take() {
            held.wait(FAREWELL);
        }
    }
}
