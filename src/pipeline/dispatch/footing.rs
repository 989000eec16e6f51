//! What the devices under a server do to it: it is stopped, weighed, or tried.

use super::{Dispatch, Footing};
use crate::ids::ServerId;
use tokio::time::Instant;

impl Dispatch {
    /// What the devices under a server say. False if that is nothing new, or there is no such server.
    pub fn set_footing(&self, id: &ServerId, footing: Footing) -> bool {
        let mut state = self.lock();
        let Some(berth) = state.berths.get_mut(id) else { return false };
        if berth.footing == footing {
            return false;
        }
        berth.footing = footing;
        self.refresh(&mut state);
        true
    }

    /// What runs there will come to nothing: the requests of which no caller has seen a byte are taken back, to
    /// go elsewhere or to wait. To be called once nothing new can be placed there. False if there is no such
    /// server.
    pub fn recall(&self, id: &ServerId) -> bool {
        let state = self.lock();
        let Some(berth) = state.berths.get(id) else { return false };
        berth.pulse.recall_all();
        true
    }

    /// Something happened that may have harmed a server: its watcher looks at once, and it is asked for one
    /// token, again until it answers or its breaker opens. Requests go on meanwhile. False if there is no
    /// such server.
    pub fn suspect(&self, id: &ServerId) -> bool {
        let mut state = self.lock();
        let Some(berth) = state.berths.get_mut(id) else { return false };
        berth.suspect = true;
        berth.nudge.notify_one();
        true
    }

    /// Whether requests are still let through to a server, and it said something on one of them since then.
    pub fn gets_ahead(&self, id: &ServerId, since: Instant) -> bool {
        let state = self.lock();
        let berth = state.berths.get(id).filter(|berth| !berth.breaker.is_open());
        berth.is_some_and(|berth| berth.pulse.heard() > since)
    }

    /// Every server, and how often it came up. What comes back may be another process.
    pub fn comings(&self) -> Vec<(ServerId, u64)> {
        let state = self.lock();
        state.berths.iter().map(|(id, berth)| (id.clone(), berth.comings)).collect()
    }
}
