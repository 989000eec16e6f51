//! Waiting for a turn, and the room that a turn holds.

use super::{
    Ask, Dispatch, Outcome,
    pulse::Pulse,
    state::{Granted, State, Turn},
};
use crate::{
    error::{Reason, Refusal},
    ids::{ModelName, ServerId},
    queue::{Ticket, Waiting},
    schedule::{self, Choice, Need},
    servers::ModelServer,
};
use std::{sync::Arc, time::Duration};
use tokio::{sync::oneshot, time::Instant};

/// Least time between two looks at whether a server is up, where the operator allows no wait for one.
const LOOK_LEAST: Duration = Duration::from_millis(250);

impl Dispatch {
    /// Waits for a turn. Dropping the future leaves the queue at once; a turn that was already on its
    /// way is given back.
    ///
    /// # Errors
    /// The queue is full, the wait would be or was too long, or no server is left. Nothing is held.
    pub async fn turn(self: &Arc<Self>, ask: &mut Ask) -> Result<Placement, Refusal> {
        let entered = Instant::now();
        let (ticket, turn, no_server_wait) = {
            let mut state = self.lock();
            let nobody_waits = state.queue.is_idle(&ask.model);
            let choice = schedule::choose(&state.rooms, need(ask));
            match choice {
                Choice::Here(index) if nobody_waits => {
                    // Should it have to wait later, it stands where it would have stood today.
                    ask.arrival.get_or_insert_with(|| state.queue.arrive());
                    let granted = state.grant(index, need(ask), entered);
                    return Ok(self.place(&state, granted));
                }
                Choice::Nobody => return Err(nobody(ask)),
                _ => {}
            }
            let ticket = state.ticket(ask);
            let again = ask.recalls > 0;
            if !again {
                state.refuse_hopeless(ask, entered)?;
            }
            let (give, turn) = oneshot::channel();
            let (sequences, span) = (ask.sequences, ask.span);
            let item = Turn { give, tried: ask.tried.clone(), sequences, span };
            let waiting = Waiting { tenant: ask.tenant.clone(), tokens: ask.tokens, item };
            if again {
                state.queue.put_back(&ticket, waiting);
            } else if let Err(full) = state.queue.push(&ticket, waiting) {
                return Err(state.full(full, ask));
            }
            // A newcomer may stand where its turn is due: in front by its tier, or behind retried
            // requests only.
            state.hand_out();
            (ticket, turn, state.queue_rules.no_server_wait)
        };
        let mut cramped: Option<Instant> = None;
        let mut waiter = Waiter { dispatch: self, ticket, turn: Some(turn) };
        loop {
            let now = Instant::now();
            let (down, no_memory) = {
                let state = self.lock();
                let memory = schedule::choose(&state.rooms, need(ask)) == Choice::Cramped;
                (state.down_since(need(ask)), memory.then(|| state.no_memory(ask)))
            };
            cramped = no_memory.as_ref().map(|_| cramped.unwrap_or(now));
            let out = down.or(cramped);
            let look = match out.map(|since| since.max(entered) + no_server_wait) {
                Some(give_up) if now >= give_up => {
                    let down = || no_server(&ask.model, no_server_wait);
                    return Err(no_memory.unwrap_or_else(down));
                }
                Some(give_up) => give_up,
                // A server that goes down from now on is given up no earlier than this.
                None => now + no_server_wait.max(LOOK_LEAST),
            };
            if now >= ask.deadline {
                return Err(no_memory.unwrap_or_else(|| self.lock().too_late(ask, entered)));
            }
            let until = ask.deadline.min(look);
            let Some(turn) = waiter.turn.as_mut() else {
                return Err(Refusal::new(Reason::Internal, "The turn was lost."));
            };
            if let Ok(granted) = tokio::time::timeout_at(until, turn).await {
                waiter.turn = None;
                // Let go without a turn: the last server it could have gone to has left.
                let granted = granted.map_err(|_| nobody(ask))?;
                return Ok(self.place(&self.lock(), granted));
            }
        }
    }

    fn place(self: &Arc<Self>, state: &State, granted: Granted) -> Placement {
        let berth = state.berths.get(&granted.server);
        let server = berth.map(|berth| (Arc::clone(&berth.server), Arc::clone(&berth.pulse)));
        Placement {
            dispatch: Arc::clone(self),
            granted,
            server,
            since: Instant::now(),
            left: false,
        }
    }
}

pub(super) fn need(ask: &Ask) -> Need<'_> {
    let Ask { model, tokens, span, sequences, tried, .. } = ask;
    Need { model, tokens: *tokens, span: *span, sequences: *sequences, tried }
}

fn nobody(ask: &Ask) -> Refusal {
    let text = format!("No server of model '{}' is left to try.", ask.model);
    Refusal::new(Reason::NoServer, text).retry_after(Duration::from_secs(2))
}

fn no_server(model: &ModelName, waited: Duration) -> Refusal {
    let text = format!(
        "No server of model '{model}' is up, and none came back within {:.0} s. Retry later.",
        waited.as_secs_f64()
    );
    Refusal::new(Reason::NoServer, text).retry_after(Duration::from_secs(5))
}

/// Somebody in the queue. Dropping it leaves the queue, or gives back a turn that nobody took.
struct Waiter<'a> {
    dispatch: &'a Dispatch,
    ticket: Ticket,
    turn: Option<oneshot::Receiver<Granted>>,
}

impl Drop for Waiter<'_> {
    fn drop(&mut self) {
        let Some(mut turn) = self.turn.take() else { return };
        let mut state = self.dispatch.lock();
        if state.queue.remove(&self.ticket).is_some() {
            // Who stood behind may fit where this one did not.
            state.hand_out();
            return;
        }
        drop(state);
        if let Ok(granted) = turn.try_recv() {
            self.dispatch.release(&granted);
        }
    }
}

/// Room on one server, held for one call. Dropping it gives the room back.
pub struct Placement {
    dispatch: Arc<Dispatch>,
    granted: Granted,
    server: Option<(Arc<dyn ModelServer>, Arc<Pulse>)>,
    since: Instant,
    left: bool,
}

impl std::fmt::Debug for Placement {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Placement").field("granted", &self.granted).finish()
    }
}

impl Placement {
    /// Which server.
    pub const fn id(&self) -> &ServerId {
        &self.granted.server
    }

    /// The server itself; `None` when it left the configuration in this very moment.
    pub fn server(&self) -> Option<&Arc<dyn ModelServer>> {
        self.server.as_ref().map(|(server, _)| server)
    }

    /// Since when it is held.
    pub const fn since(&self) -> Instant {
        self.since
    }

    /// The server sent something that is no comment.
    pub fn hear(&self, now: Instant) {
        if let Some((_, pulse)) = &self.server {
            pulse.hear(now);
        }
    }

    /// Waits until the call is taken back because its server hangs. Dropping the future changes nothing.
    pub async fn recalled(&self) {
        match &self.server {
            Some((_, pulse)) => pulse.recalled_since(self.granted.recalls).await,
            None => std::future::pending().await,
        }
    }

    /// Tells the breaker what became of the call.
    pub fn report(&self, outcome: Outcome) -> bool {
        self.dispatch.report(&self.granted.server, outcome, Instant::now())
    }
}

impl Drop for Placement {
    fn drop(&mut self) {
        if !std::mem::replace(&mut self.left, true) {
            self.dispatch.release(&self.granted);
        }
    }
}
