//! Waiting for a turn, and the room that a turn holds.

use super::{
    Ask, Dispatch, Outcome,
    decisions::{Considered, DecisionId},
    pulse::Pulse,
    state::{Given, Granted, State, Waiting},
};
use crate::{
    error::{Reason, Refusal},
    ids::{ModelName, ServerId},
    queue::{Full, Ticket},
    schedule::{self, Choice, Known, Need, Offer, Outlook, Request},
    servers::ModelServer,
    units::Tokens,
};
use std::{sync::Arc, time::Duration};
use tokio::{sync::oneshot, time::Instant};

/// Least time between two looks at whether a server is up, where the operator allows no wait for one.
const LOOK_LEAST: Duration = Duration::from_millis(250);

/// What became of a request that asked for a turn.
enum Asked {
    Placed(Granted),
    Waits(Ticket, DecisionId),
}

impl Dispatch {
    /// Waits for a turn. Dropping the future leaves the queue at once; a turn that was already on its
    /// way is given back.
    ///
    /// # Errors
    /// The queue is full, the wait would be or was too long, or no server is left. Nothing is held.
    pub async fn turn(self: &Arc<Self>, ask: &mut Ask) -> Result<Placement, Refusal> {
        let entered = Instant::now();
        let (give, turn) = oneshot::channel();
        let (ticket, decision, no_server_wait) = {
            let mut state = self.lock();
            match state.ask(ask, give, entered)? {
                Asked::Placed(granted) => {
                    self.stir.notify_one();
                    return Ok(self.place(&state, granted));
                }
                Asked::Waits(ticket, decision) => {
                    // A newcomer may stand where its turn is due: in front by its tier, or behind retried
                    // requests only.
                    state.hand_out();
                    (ticket, decision, state.queue_rules.no_server_wait)
                }
            }
        };
        self.stir.notify_one();
        let mut waiter = Waiter { dispatch: self, ticket, turn: Some(turn) };
        let mut cramped: Option<Instant> = None;
        loop {
            let now = Instant::now();
            let (down, no_memory) = {
                let state = self.lock();
                let memory = state.scheduler.choose(&ask.request, now) == Choice::Cramped;
                (state.down_since(need(ask)), memory.then(|| state.no_memory(ask)))
            };
            cramped = no_memory.as_ref().map(|_| cramped.unwrap_or(now));
            let out = down.or(cramped);
            let look = match out.map(|since| since.max(entered) + no_server_wait) {
                Some(give_up) if now >= give_up => {
                    let down = || no_server(&ask.request.model, no_server_wait);
                    let refusal = no_memory.unwrap_or_else(down);
                    return Err(self.gives_up(decision, refusal));
                }
                Some(give_up) => give_up,
                // A server that goes down from now on is given up no earlier than this.
                None => now + no_server_wait.max(LOOK_LEAST),
            };
            if now >= ask.request.due {
                let late = || self.lock().too_late(&ask.request, entered);
                let refusal = no_memory.unwrap_or_else(late);
                return Err(self.gives_up(decision, refusal));
            }
            let until = ask.request.due.min(look);
            let Some(turn) = waiter.turn.as_mut() else {
                return Err(Refusal::new(Reason::Internal, "The turn was lost."));
            };
            if let Ok(given) = tokio::time::timeout_at(until, turn).await {
                waiter.turn = None;
                // Let go without a word: the last server it could have gone to has left.
                return match given.map_err(|_| nobody(&ask.request.model))? {
                    Given::Turn(granted) => Ok(self.place(&self.lock(), granted)),
                    Given::Late(late, strict, retry) => Err(State::late(&late, strict, retry)),
                    Given::Displaced(retry) => Err(State::displaced(retry)),
                };
            }
        }
    }

    fn gives_up(&self, decision: DecisionId, refusal: Refusal) -> Refusal {
        let why = refusal.reason.as_str();
        self.lock().decisions.refused(decision, why, Instant::now());
        refusal
    }

    fn place(self: &Arc<Self>, state: &State, granted: Granted) -> Placement {
        let berth = state.berths.get(&granted.server);
        let server = berth.map(|berth| (Arc::clone(&berth.server), Arc::clone(&berth.pulse)));
        Placement {
            dispatch: Arc::clone(self),
            granted,
            server,
            since: Instant::now(),
            output: None,
            left: false,
        }
    }
}

impl State {
    /// A request asks for a turn: it has one, or waits.
    fn ask(
        &mut self,
        ask: &mut Ask,
        give: oneshot::Sender<Given>,
        now: Instant,
    ) -> Result<Asked, Refusal> {
        let again = ask.recalls > 0 || ask.request.preempted > 0;
        // Should it have to wait again, it stands where it would have stood today.
        let arrival = &mut ask.request.arrival;
        *arrival = Some(arrival.unwrap_or_else(|| self.scheduler.queue.arrive()));
        let mut known = Known::default();
        let considered = self.considered(&ask.request, &mut known, now);
        let decision = self.decisions.came(&ask.id, ask.decision, &ask.request, considered, now);
        ask.decision = Some(decision);
        let (request, waiting) = (ask.request.clone(), Waiting { decision, give });
        let refusal = match self.scheduler.offer(request, known, waiting, again, now) {
            Offer::Placed(grant, _, outlook) => {
                self.decisions.foreseen(decision, outlook);
                self.decisions.placed(decision, &grant.server, &grant.weighed, now);
                let progress = Arc::clone(&ask.request.progress);
                return Ok(Asked::Placed(self.granted(grant, progress, now)));
            }
            Offer::Waits(ticket, outlook, choice) => {
                self.decisions.foreseen(decision, outlook);
                self.decisions.waits(decision, why_it_waits(choice, &outlook));
                return Ok(Asked::Waits(ticket, decision));
            }
            Offer::Nobody => nobody(&ask.request.model),
            Offer::Late(late, outlook) => {
                self.decisions.foreseen(decision, outlook);
                let retry = match late.hopeless {
                    true => Duration::ZERO,
                    false => self.retry(&ask.request, now),
                };
                Self::late(&late, ask.request.strict, retry)
            }
            Offer::Full(full, outlook) => {
                self.decisions.foreseen(decision, outlook);
                self.full(full, &ask.request)
            }
        };
        self.decisions.refused(decision, refusal.reason.as_str(), now);
        Err(refusal)
    }

    /// The servers that a request could go to, as they are now.
    fn considered(&self, request: &Request, known: &mut Known, now: Instant) -> Vec<Considered> {
        let need = request.need();
        let enough = schedule::enough(&self.scheduler.rooms, need);
        let rooms = self.scheduler.rooms.iter().filter(|room| room.may_take(need));
        let considered = rooms.take(Considered::most()).map(|room| {
            let weighed = room.weigh(need, known, enough, &self.scheduler.rules, now);
            Considered::new(&room.id, &weighed, room.placed_tokens(), room.capacity.kv_tokens)
        });
        considered.collect()
    }
}

const fn why_it_waits(choice: Choice, outlook: &Outlook) -> &'static str {
    match choice {
        Choice::Here(..) if outlook.ahead > 0 => "others go before it",
        Choice::Here(..) => "its turn is being given",
        Choice::Patient => "a server that has more of its prompt is worth waiting for",
        Choice::Full => "no server has room, or all owe prefill",
        Choice::Cramped => "GPU memory is short",
        Choice::Down => "no server takes requests now",
        Choice::Nobody => "no server is left",
    }
}

pub(super) fn need(ask: &Ask) -> Need<'_> {
    ask.request.need()
}

fn nobody(model: &ModelName) -> Refusal {
    let text = format!("No server of model '{model}' is left to try.");
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
    turn: Option<oneshot::Receiver<Given>>,
}

impl Drop for Waiter<'_> {
    fn drop(&mut self) {
        let Some(mut turn) = self.turn.take() else { return };
        let mut state = self.dispatch.lock();
        if let Some(gone) = state.scheduler.leave(self.ticket) {
            state.decisions.left(gone.decision, Instant::now());
            // Who stood behind may fit where this one did not.
            state.hand_out();
            return;
        }
        drop(state);
        if let Ok(Given::Turn(granted)) = turn.try_recv() {
            self.dispatch.release(&granted, None);
        }
    }
}

/// Room on one server, held for one call. Dropping it gives the room back.
pub struct Placement {
    dispatch: Arc<Dispatch>,
    granted: Granted,
    server: Option<(Arc<dyn ModelServer>, Arc<Pulse>)>,
    since: Instant,
    output: Option<Tokens>,
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

    /// The first token of the answer came: its prompt is computed.
    pub fn first_token(&self, now: Instant) {
        let mut state = self.dispatch.lock();
        let Granted { server, seat, .. } = &self.granted;
        state.scheduler.first_token(server, *seat, now);
        state.hand_out();
    }

    /// So many tokens came so far, all its answers together. Takes no lock.
    pub fn produced(&self, output: Tokens) {
        self.granted.progress.set(output);
    }

    /// The answer is whole, and this long.
    pub fn answered(&mut self, output: Tokens) {
        self.output = Some(output);
    }

    /// Waits until the call is taken back because its server hangs. Dropping the future changes nothing.
    pub async fn recalled(&self) {
        match &self.server {
            Some((_, pulse)) => {
                pulse.recalled_since(self.granted.recalls, &self.granted.progress).await;
            }
            None => std::future::pending().await,
        }
    }

    /// It must give its room to somebody more urgent.
    pub fn is_preempted(&self) -> bool {
        self.granted.progress.is_called_back()
    }

    /// Tells the breaker what became of the call.
    pub fn report(&self, outcome: Outcome) -> bool {
        self.dispatch.report(&self.granted.server, outcome, Instant::now())
    }
}

impl Drop for Placement {
    fn drop(&mut self) {
        if !std::mem::replace(&mut self.left, true) {
            self.dispatch.release(&self.granted, self.output);
        }
    }
}

impl State {
    pub(super) fn displaced(retry: Duration) -> Refusal {
        let text = "The queue is full, and tenants who had less go first. Retry later.";
        Refusal::new(Reason::QueueFull, text).retry_after(retry)
    }

    fn full(&mut self, full: Full, request: &Request) -> Refusal {
        let retry = self.retry(request, Instant::now());
        match full {
            Full::Queue => Refusal::new(
                Reason::QueueFull,
                format!("All {} places in the queue are taken. Retry later.", self.scheduler.queue.len()),
            ),
            Full::Tenant => Refusal::new(
                Reason::TenantQueueFull,
                "This key's owner already fills its share of the queue. Send fewer requests at once.",
            ),
        }
        .retry_after(retry)
    }
}
