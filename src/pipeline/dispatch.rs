//! Turns: who runs where, and who waits.
//!
//! One plain mutex guards queue and rooms. When nobody waits and a server has room, a request places
//! itself in passing. Otherwise it waits, and whoever gives room back hands out the next turns on the
//! spot, so no task stands between a free server and the next request.

use crate::{
    config,
    error::{Reason, Refusal},
    ids::{ModelName, ServerId, TenantId, Tier},
    queue::{Full, Limits, Place, Queue, Ticket, Waiting},
    schedule::{
        self, Choice, Need, Room,
        breaker::Breaker,
        catalog::Catalog,
        pace::{OutputMean, Pace},
    },
    servers::ModelServer,
    snapshot::{Health, ServerState},
    units::Tokens,
};
use arc_swap::ArcSwap;
use std::{
    collections::{BTreeMap, HashMap},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};
use tokio::{
    sync::{Notify, oneshot},
    time::Instant,
};

/// Longest `Retry-After` that a guess about the future may give.
const RETRY_MAX: Duration = Duration::from_secs(60);

/// What a request asks for.
#[derive(Clone, Debug)]
pub struct Ask {
    /// The model, by the name that servers know.
    pub model: ModelName,
    /// Who pays.
    pub tenant: TenantId,
    /// How urgent.
    pub tier: Tier,
    /// Input plus expected output.
    pub tokens: Tokens,
    /// Servers that had it already.
    pub tried: Vec<ServerId>,
    /// The latest time a turn is of use.
    pub deadline: Instant,
    /// Its first place in the queue, kept over attempts.
    pub arrival: Option<u64>,
}

/// Queue, rooms and what is known about servers.
pub struct Dispatch {
    /// Guards everything below; held for a choice, never across an await, never during I/O.
    state: Mutex<State>,
    catalog: ArcSwap<Catalog>,
}

struct State {
    queue: Queue<Turn>,
    rooms: Vec<Room>,
    berths: HashMap<ServerId, Berth>,
    pace: HashMap<ModelName, Pace>,
    outputs: HashMap<ModelName, OutputMean>,
    queue_rules: config::Queue,
    breaker_rules: config::Breaker,
    models: Vec<config::Model>,
    stale_after: Duration,
}

/// One server beside its room.
struct Berth {
    server: Arc<dyn ModelServer>,
    /// Asks its watcher to look at once.
    nudge: Arc<Notify>,
    state: ServerState,
    breaker: Breaker,
    drained: bool,
    busy_until: Option<Instant>,
    /// No longer configured; goes when its last request has ended.
    leaving: bool,
}

/// Who waits for a turn, and where not to send it.
struct Turn {
    give: oneshot::Sender<Granted>,
    tried: Vec<ServerId>,
}

/// A turn, in the hands of whoever waited for it.
#[derive(Debug)]
struct Granted {
    server: ServerId,
    claim: Tokens,
}

/// What became of a call, for the breaker.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// The server did what it should.
    Answered,
    /// It failed, lied or stayed silent.
    Failed,
    /// It said that it is overloaded, and for how long if it did.
    Busy(Option<Duration>),
}

/// One server, for operators.
#[derive(Clone, Debug)]
pub struct ServerView {
    /// What its probes say.
    pub state: ServerState,
    /// KV tokens placed there.
    pub placed_tokens: Tokens,
    /// Requests placed there.
    pub placed: u32,
    /// Its breaker is open.
    pub breaker_open: bool,
    /// An operator drained it.
    pub drained: bool,
    /// It takes requests now.
    pub usable: bool,
}

impl Dispatch {
    /// An empty house.
    pub fn new(settings: &config::Settings) -> Arc<Self> {
        let state = State {
            queue: Queue::new(limits(settings)),
            rooms: Vec::new(),
            berths: HashMap::new(),
            pace: HashMap::new(),
            outputs: HashMap::new(),
            queue_rules: settings.queue.clone(),
            breaker_rules: settings.breaker.clone(),
            models: settings.models.clone(),
            stale_after: settings.probe.stale_after,
        };
        Arc::new(Self { state: Mutex::new(state), catalog: ArcSwap::default() })
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// All models, by every name.
    pub fn catalog(&self) -> Arc<Catalog> {
        self.catalog.load_full()
    }

    /// Takes new settings. Who waits and what runs stays.
    pub fn reconfigure(&self, settings: &config::Settings) {
        let mut state = self.lock();
        state.queue.set_limits(limits(settings));
        state.queue_rules = settings.queue.clone();
        state.breaker_rules = settings.breaker.clone();
        state.models = settings.models.clone();
        state.stale_after = settings.probe.stale_after;
        self.refresh(&mut state);
    }

    /// A server joins, or another process takes an old name over. `nudge` asks its watcher to look at
    /// once, after a failed call. `known` is what can be said before the first look.
    pub fn join(&self, server: Arc<dyn ModelServer>, nudge: Arc<Notify>, mut known: ServerState) {
        let mut state = self.lock();
        let id = server.id().clone();
        let before = state.berths.get(&id);
        let drained = before.is_some_and(|berth| berth.drained);
        // A server that only changed its settings keeps its models until it is looked at: callers wait
        // that moment instead of hearing that there is no such model.
        if let Some(before) = before.filter(|_| known.models.is_empty()) {
            known.models = before.state.models.clone();
        }
        let berth = Berth {
            server,
            nudge,
            state: known,
            breaker: Breaker::new(),
            drained,
            busy_until: None,
            leaving: false,
        };
        state.berths.insert(id.clone(), berth);
        if !state.rooms.iter().any(|room| room.id == id) {
            state.rooms.push(Room::new(id));
        }
        self.refresh(&mut state);
    }

    /// A server is no longer configured: nothing new goes there, what runs may finish.
    pub fn leave(&self, id: &ServerId) {
        let mut state = self.lock();
        if let Some(berth) = state.berths.get_mut(id) {
            berth.leaving = true;
        }
        self.refresh(&mut state);
    }

    /// New readings of a server.
    pub fn observe(&self, reading: &ServerState) {
        let mut state = self.lock();
        if let Some(berth) = state.berths.get_mut(&reading.id) {
            berth.state = reading.clone();
        }
        self.refresh(&mut state);
    }

    /// Nothing new goes to this server, or something again. False if there is no such server.
    pub fn set_drained(&self, id: &ServerId, drained: bool) -> bool {
        let mut state = self.lock();
        let Some(berth) = state.berths.get_mut(id) else { return false };
        berth.drained = drained;
        self.refresh(&mut state);
        true
    }

    /// Tells the breaker what became of a call or a trial. True when that changed the breaker.
    pub fn report(&self, id: &ServerId, outcome: Outcome, now: Instant) -> bool {
        let mut state = self.lock();
        let rules = state.breaker_rules.clone();
        let Some(berth) = state.berths.get_mut(id) else { return false };
        let changed = match outcome {
            Outcome::Answered => berth.busy_until.take().is_some() | berth.breaker.success(),
            Outcome::Failed => {
                berth.nudge.notify_one();
                berth.breaker.failure(&rules, now)
            }
            Outcome::Busy(wait) => {
                // A server that sheds load is not broken. It gets a moment of peace, no more: its own
                // figure may be a guess.
                let wait = wait.unwrap_or(Duration::from_millis(500)).min(Duration::from_secs(5));
                berth.busy_until = Some(now + wait);
                true
            }
        };
        if changed {
            self.refresh(&mut state);
        }
        changed
    }

    /// Servers whose breakers want a trial now, with a model to try.
    pub fn trials_due(&self, now: Instant) -> Vec<(Arc<dyn ModelServer>, ModelName)> {
        let state = self.lock();
        let due = state.berths.values().filter(|berth| {
            !berth.leaving && berth.breaker.next_trial().is_some_and(|trial| trial <= now)
        });
        due.filter_map(|berth| {
            let model = berth.state.models.first()?.name.clone();
            Some((Arc::clone(&berth.server), model))
        })
        .collect()
    }

    /// Looks again at what time alone changes: readings grown stale, pauses that are over.
    pub fn tick(&self) {
        let mut state = self.lock();
        self.refresh(&mut state);
    }

    /// The server that would be asked to count this model's input: a usable one if there is any.
    pub fn counter_for(&self, model: &ModelName) -> Option<Arc<dyn ModelServer>> {
        let state = self.lock();
        let room = state.rooms.iter().find(|room| room.usable && room.models.contains(model))?;
        state.berths.get(&room.id).map(|berth| Arc::clone(&berth.server))
    }

    /// What an answer of this model is expected to need.
    pub fn expected_output(&self, model: &ModelName) -> Tokens {
        let mut state = self.lock();
        state.output_mean(model).map_or(DEFAULT_OUTPUT, |mean| mean.expect())
    }

    /// An answer of this model was this long.
    pub fn saw_output(&self, model: &ModelName, output: Tokens) {
        if let Some(mean) = self.lock().output_mean(model) {
            mean.observe(output);
        }
    }

    /// Requests waiting, by tier.
    pub fn waiting(&self) -> BTreeMap<Tier, usize> {
        self.lock().queue.by_tier()
    }

    /// Every server.
    pub fn servers(&self) -> Vec<ServerView> {
        let state = self.lock();
        let mut views: Vec<ServerView> = state
            .rooms
            .iter()
            .filter_map(|room| {
                let berth = state.berths.get(&room.id)?;
                Some(ServerView {
                    state: berth.state.clone(),
                    placed_tokens: room.placed_tokens,
                    placed: room.placed,
                    breaker_open: berth.breaker.is_open(),
                    drained: berth.drained,
                    usable: room.usable,
                })
            })
            .collect();
        views.sort_by(|a, b| a.state.id.cmp(&b.state.id));
        views
    }

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
                    let granted = state.grant(index, ask.tokens);
                    return Ok(self.place(&state, granted));
                }
                Choice::Nobody => return Err(nobody(ask)),
                _ => {}
            }
            let ticket = state.ticket(ask);
            state.refuse_hopeless(ask, ticket.place.tier, entered)?;
            let (give, turn) = oneshot::channel();
            let item = Turn { give, tried: ask.tried.clone() };
            let waiting = Waiting { tenant: ask.tenant.clone(), tokens: ask.tokens, item };
            if let Err(full) = state.queue.push(&ticket, waiting) {
                return Err(state.full(full, ask));
            }
            (ticket, turn, state.queue_rules.no_server_wait)
        };
        let mut waiter = Waiter { dispatch: self, ticket, turn: Some(turn) };
        let mut down_since: Option<Instant> = None;
        loop {
            let now = Instant::now();
            // While no server of the model is up, look again soon; else only the deadline counts.
            let step = if self.usable(ask) {
                down_since = None;
                no_server_wait
            } else {
                let down = *down_since.get_or_insert(now);
                let give_up = down + no_server_wait;
                if now >= give_up {
                    return Err(no_server(&ask.model, no_server_wait));
                }
                give_up - now
            };
            if now >= ask.deadline {
                return Err(self.lock().too_late(ask, entered));
            }
            let until = ask.deadline.min(now + step);
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

    fn usable(&self, ask: &Ask) -> bool {
        let state = self.lock();
        matches!(schedule::choose(&state.rooms, need(ask)), Choice::Here(_) | Choice::Full)
    }

    fn place(self: &Arc<Self>, state: &State, granted: Granted) -> Placement {
        let server = state.berths.get(&granted.server).map(|berth| Arc::clone(&berth.server));
        Placement {
            dispatch: Arc::clone(self),
            id: granted.server,
            tokens: granted.claim,
            server,
            left: false,
        }
    }

    /// Gives room back and hands it on.
    fn release(&self, id: &ServerId, tokens: Tokens) {
        let mut state = self.lock();
        state.take_back(id, tokens, Instant::now());
        state.hand_out();
        state.forget_gone();
    }

    /// Recomputes what follows from readings, and hands out what became free.
    fn refresh(&self, state: &mut State) {
        let now = Instant::now();
        let stale_after = state.stale_after;
        for room in &mut state.rooms {
            let Some(berth) = state.berths.get_mut(&room.id) else { continue };
            let fresh = berth.state.read_at.is_some_and(|at| now.duration_since(at) <= stale_after);
            berth.busy_until = berth.busy_until.filter(|until| *until > now);
            room.usable = fresh
                && berth.state.health == Health::Up
                && !berth.breaker.is_open()
                && !berth.drained
                && !berth.leaving
                && berth.busy_until.is_none();
            room.models = berth.state.models.iter().map(|model| model.name.clone()).collect();
            room.capacity = berth.state.capacity.clone();
        }
        state.forget_gone();
        state.hand_out();
        let states: Vec<ServerState> = state
            .berths
            .values()
            .filter(|berth| !berth.leaving)
            .map(|berth| berth.state.clone())
            .collect();
        let catalog = Catalog::build(&state.models, &states);
        if **self.catalog.load() != catalog {
            self.catalog.store(Arc::new(catalog));
        }
    }
}

/// Expected output of a model nobody configured.
const DEFAULT_OUTPUT: Tokens = Tokens(256);

impl State {
    fn output_mean(&mut self, model: &ModelName) -> Option<&mut OutputMean> {
        let start = self
            .models
            .iter()
            .find(|known| known.name == *model)
            .map_or(DEFAULT_OUTPUT, |known| known.expected_output);
        // Names come from servers and the configuration; a server that lists thousands is cut off.
        if self.outputs.len() >= MODELS_MAX && !self.outputs.contains_key(model) {
            return None;
        }
        Some(self.outputs.entry(model.clone()).or_insert_with(|| OutputMean::new(start)))
    }

    fn ticket(&mut self, ask: &mut Ask) -> Ticket {
        let arrival = match ask.arrival {
            Some(arrival) => arrival,
            None => self.queue.arrive(),
        };
        ask.arrival = Some(arrival);
        Ticket { model: ask.model.clone(), place: Place { tier: ask.tier, arrival } }
    }

    fn grant(&mut self, index: usize, tokens: Tokens) -> Granted {
        let Some(room) = self.rooms.get_mut(index) else {
            // `index` comes from a choice over these rooms under the same lock.
            return Granted { server: ServerId::from(""), claim: Tokens::ZERO };
        };
        let claim = room.claim(tokens);
        room.placed_tokens = room.placed_tokens.plus(claim);
        room.placed += 1;
        room.placed_ever += 1;
        Granted { server: room.id.clone(), claim }
    }

    fn take_back(&mut self, id: &ServerId, tokens: Tokens, now: Instant) {
        let Some(room) = self.rooms.iter_mut().find(|room| room.id == *id) else { return };
        debug_assert!(room.placed > 0 && room.placed_tokens >= tokens, "room given back twice");
        room.placed_tokens = room.placed_tokens.less(tokens);
        room.placed = room.placed.saturating_sub(1);
        for model in &room.models {
            let busy = !self.queue.is_idle(model);
            if busy || self.pace.contains_key(model) {
                self.pace.entry(model.clone()).or_default().freed(tokens, busy, now);
            }
        }
    }

    /// Gives turns to whoever is first in each lane, as long as there is room.
    fn hand_out(&mut self) {
        if self.queue.is_empty() {
            return;
        }
        for model in self.queue.models() {
            while let Some((place, waiting)) = self.queue.first(&model) {
                // A caller who left takes no turn.
                let gone = waiting.item.give.is_closed();
                let tokens = waiting.tokens;
                let need = Need { model: &model, tokens, tried: &waiting.item.tried };
                let choice =
                    if gone { Choice::Nobody } else { schedule::choose(&self.rooms, need) };
                let ticket = Ticket { model: model.clone(), place };
                match choice {
                    Choice::Nobody => drop(self.queue.remove(&ticket)),
                    Choice::Here(index) => {
                        let Some(waiting) = self.queue.remove(&ticket) else { break };
                        let granted = self.grant(index, tokens);
                        if let Err(granted) = waiting.item.give.send(granted) {
                            self.take_back(&granted.server, granted.claim, Instant::now());
                        }
                    }
                    _ => break,
                }
            }
        }
    }

    fn forget_gone(&mut self) {
        let berths = &mut self.berths;
        self.rooms.retain(|room| {
            let gone = room.placed == 0 && berths.get(&room.id).is_none_or(|berth| berth.leaving);
            if gone {
                berths.remove(&room.id);
            }
            !gone
        });
    }

    fn wait_estimate(&self, ask: &Ask, tier: Tier) -> Option<Duration> {
        let (_, ahead) = self.queue.ahead(&ask.model, tier);
        self.pace.get(&ask.model)?.wait(ahead.plus(ask.tokens))
    }

    /// A caller whose deadline cannot be met is told so now, not after waiting for it.
    fn refuse_hopeless(&self, ask: &Ask, tier: Tier, now: Instant) -> Result<(), Refusal> {
        let Some(wait) = self.wait_estimate(ask, tier) else { return Ok(()) };
        let left = ask.deadline.saturating_duration_since(now);
        if wait <= left {
            return Ok(());
        }
        let text = format!(
            "A turn is expected in {:.1} s, later than this request's deadline in {:.1} s. Retry later, or allow more time.",
            wait.as_secs_f64(),
            left.as_secs_f64()
        );
        Err(Refusal::new(Reason::WaitTooLong, text).retry_after(bounded(wait.saturating_sub(left))))
    }

    fn too_late(&self, ask: &Ask, entered: Instant) -> Refusal {
        let waited = entered.elapsed().as_secs_f64();
        let text =
            format!("No server had room for this request within {waited:.1} s. Retry later.");
        let wait = self.wait_estimate(ask, ask.tier).unwrap_or(Duration::from_secs(5));
        Refusal::new(Reason::WaitTooLong, text).retry_after(bounded(wait))
    }

    fn full(&self, full: Full, ask: &Ask) -> Refusal {
        let wait = bounded(self.wait_estimate(ask, ask.tier).unwrap_or(Duration::from_secs(5)));
        match full {
            Full::Queue => Refusal::new(
                Reason::QueueFull,
                format!("All {} places in the queue are taken. Retry later.", self.queue.len()),
            ),
            Full::Tenant => Refusal::new(
                Reason::TenantQueueFull,
                "This key's owner already fills its share of the queue. Send fewer requests at once.",
            ),
        }
        .retry_after(wait)
    }
}

/// Models whose output length is tracked.
const MODELS_MAX: usize = 1024;

fn limits(settings: &config::Settings) -> Limits {
    let rules = &settings.queue;
    // A tenant alone has nobody to leave room for.
    let percent = if settings.tenants.len() < 2 { 100 } else { rules.tenant_share_percent };
    let share = rules.length_max.saturating_mul(usize::from(percent)) / 100;
    Limits { length_max: rules.length_max, tenant_max: share.max(1) }
}

fn need(ask: &Ask) -> Need<'_> {
    Need { model: &ask.model, tokens: ask.tokens, tried: &ask.tried }
}

fn bounded(wait: Duration) -> Duration {
    wait.clamp(Duration::from_secs(1), RETRY_MAX)
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
            self.dispatch.release(&granted.server, granted.claim);
        }
    }
}

/// Room on one server, held for one call. Dropping it gives the room back.
pub struct Placement {
    dispatch: Arc<Dispatch>,
    id: ServerId,
    tokens: Tokens,
    server: Option<Arc<dyn ModelServer>>,
    left: bool,
}

impl std::fmt::Debug for Placement {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Placement").field("id", &self.id).field("tokens", &self.tokens).finish()
    }
}

impl Placement {
    /// Which server.
    pub const fn id(&self) -> &ServerId {
        &self.id
    }

    /// The server itself; `None` when it left the configuration in this very moment.
    pub const fn server(&self) -> Option<&Arc<dyn ModelServer>> {
        self.server.as_ref()
    }

    /// Tells the breaker what became of the call.
    pub fn report(&self, outcome: Outcome) -> bool {
        self.dispatch.report(&self.id, outcome, Instant::now())
    }
}

impl Drop for Placement {
    fn drop(&mut self) {
        if !std::mem::replace(&mut self.left, true) {
            self.dispatch.release(&self.id, self.tokens);
        }
    }
}
