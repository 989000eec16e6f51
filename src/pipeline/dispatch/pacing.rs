//! What time alone changes: debts of prefill fall, answers grow, and somebody who waits may go.

use super::Dispatch;
use crate::{ids::ServerId, snapshot::KvChange};
use std::time::Duration;
use tokio::time::{Instant, sleep_until};

/// Between two looks at what runs.
const LOOK_EVERY: Duration = Duration::from_millis(500);

impl Dispatch {
    /// Hands out turns when time makes room for them, and looks at what runs twice a second. Never ends;
    /// dropping the future stops both.
    pub async fn pace(&self) {
        let mut looked = Instant::now();
        loop {
            let now = Instant::now();
            let next = {
                let mut state = self.lock();
                if now.saturating_duration_since(looked) >= LOOK_EVERY {
                    looked = now;
                    state.scheduler.look(now);
                }
                state.hand_out();
                let running = state.scheduler.rooms.iter().any(|room| room.requests > 0);
                let look = running.then(|| looked + LOOK_EVERY);
                state.scheduler.wakes(now).into_iter().chain(look).min()
            };
            let stirred = self.stir.notified();
            match next {
                // A millisecond is what timers tell apart.
                Some(at) => {
                    let at = at.max(now + Duration::from_millis(1));
                    tokio::select! { () = sleep_until(at) => {} () = stirred => {} }
                }
                None => {
                    stirred.await;
                    looked = Instant::now();
                }
            }
        }
    }

    /// A server says what changed in its cache. Blocks of another size than it told of mean nothing here.
    pub fn kv_changed(&self, server: &ServerId, change: &KvChange) {
        let mut state = self.lock();
        let Some(room) = state.scheduler.room_mut(server) else { return };
        match change {
            KvChange::Stored { block_tokens, hashes } if *block_tokens == room.block_tokens() => {
                room.prefix.stored(hashes);
            }
            KvChange::Stored { .. } => {}
            KvChange::Removed { hashes } => room.prefix.removed(hashes),
            KvChange::Cleared => room.prefix.clear(),
        }
    }
}
