//! Servers that hang: what is heard of each, and how one is taken out with its requests.

use super::Dispatch;
use crate::{ids::ServerId, snapshot::Load};
use tokio::time::Instant;

/// Why a server is thought to hang.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hung {
    /// When it was taken out.
    pub at: Instant,
    /// The signs, in words with figures.
    pub why: String,
}

/// What is heard of one server.
#[derive(Clone, Debug)]
pub struct Heard {
    /// Which.
    pub server: ServerId,
    /// Since when it has had requests of ours without a break. `None`: it has none.
    pub busy_since: Option<Instant>,
    /// When the last byte came from it that was no comment, on any request; when it joined, before any did.
    pub last_byte: Instant,
    /// It loads a model that a request of ours asked for: a long silence, in which GPUs need not compute.
    pub loading: bool,
    /// How busy it said it is, last.
    pub load: Load,
    /// When it was taken out because it hung, if it is.
    pub hung_at: Option<Instant>,
}

impl Dispatch {
    /// What is heard of each server.
    pub fn heard(&self) -> Vec<Heard> {
        let state = self.lock();
        let heard = state.scheduler.rooms.iter().filter_map(|room| {
            let berth = state.berths.get(&room.id).filter(|berth| !berth.leaving)?;
            Some(Heard {
                server: room.id.clone(),
                busy_since: berth.busy_since,
                last_byte: berth.pulse.heard(),
                loading: room.is_loading(),
                load: berth.state.load.clone(),
                hung_at: berth.hung.as_ref().map(|hung| hung.at),
            })
        });
        heard.collect()
    }

    /// A server hangs: nothing new goes there until it answers a trial or gets ahead again, and the requests
    /// of which no caller has seen a byte are taken back. Gives the number of requests that it had, those
    /// that stay among them; `None` if it is gone, or was taken out for this before.
    pub fn hang(&self, id: &ServerId, why: String, now: Instant) -> Option<u32> {
        let mut state = self.lock();
        let rules = state.breaker_rules.clone();
        let berth = state.berths.get_mut(id).filter(|berth| berth.hung.is_none())?;
        berth.hung = Some(Hung { at: now, why });
        berth.breaker.open(&rules, now);
        let pulse = std::sync::Arc::clone(&berth.pulse);
        let requests =
            state.scheduler.rooms.iter().find(|room| room.id == *id).map(|room| room.requests);
        self.refresh(&mut state);
        // Only once nothing can be placed there any more: whoever comes back must not come back here.
        pulse.recall_all();
        requests
    }
}
