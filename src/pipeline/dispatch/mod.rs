//! Turns: who runs where, and who waits.
//!
//! One plain mutex guards queue and rooms. When nobody waits and a server has room, a request places
//! itself in passing. Otherwise it waits, and whoever gives room back hands out the next turns on the
//! spot, so no task stands between a free server and the next request.

mod decisions;
mod footing;
mod guard;
mod hang;
mod pacing;
mod pulse;
mod state;
#[cfg(test)]
mod tests;
mod turn;

pub use decisions::{Considered, Decision, DecisionId, Foreseen, Verdict};
pub use guard::Placed;
pub use hang::{Heard, Hung};
pub use turn::Placement;

use decisions::Decisions;
use pulse::Pulse;
use state::{Berth, Granted, State, limits};

use crate::{
    config,
    ids::{ModelName, RequestId, ServerId, TenantId, Tier},
    schedule::{
        FlowView, Request, Room, Scheduler, block_tokens,
        breaker::Breaker,
        catalog::Catalog,
        memory::{MemoryRoom, MemoryView},
        outputs::Lengths,
    },
    servers::{ModelServer, Route},
    snapshot::{Health, ServerState},
    units::Tokens,
};
use arc_swap::ArcSwap;
use std::{
    collections::{BTreeMap, HashMap},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};
use tokio::{sync::Notify, time::Instant};

/// What a request asks for.
#[derive(Clone, Debug)]
pub struct Ask {
    /// Which request.
    pub id: RequestId,
    /// What the rules know of it.
    pub request: Request,
    /// Times that it was taken back from a server that hung.
    pub recalls: u32,
    /// Where what is decided about it is written down, once it is.
    pub decision: Option<DecisionId>,
}

/// Queue, rooms and what is known about servers.
pub struct Dispatch {
    /// Guards everything below; held for a choice, never across an await, never during I/O.
    state: Mutex<State>,
    catalog: ArcSwap<Catalog>,
    /// Somebody waits, or something runs, that did not before: whoever paces looks again.
    stir: Notify,
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
    /// What happened says nothing about the server.
    Unjudged,
}

/// What the devices under a server say about it.
#[derive(Clone, Debug, PartialEq)]
pub struct Footing {
    /// Why nothing new may go there.
    pub stop: Option<String>,
    /// Share of its full work that it is good for, above 0.0 up to 1.0.
    pub weight: f64,
}

impl Default for Footing {
    fn default() -> Self {
        Self { stop: None, weight: 1.0 }
    }
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
    /// What the devices under it say.
    pub footing: Footing,
    /// It hangs, and why that is thought.
    pub hung: Option<Hung>,
    /// What it may still use of its GPUs' memory, where that is guarded.
    pub memory: Option<MemoryView>,
    /// Prefill on its way through it; `None` for a server of a test that has none.
    pub flow: Option<FlowView>,
    /// It takes requests now.
    pub usable: bool,
    /// Times that it came up. What comes back may be another process.
    pub comings: u64,
}

#[cfg(test)]
impl ServerView {
    /// A server without work, not usable, that never came up.
    pub(crate) fn idle(state: ServerState) -> Self {
        Self {
            state,
            placed_tokens: Tokens::ZERO,
            placed: 0,
            breaker_open: false,
            drained: false,
            footing: Footing::default(),
            hung: None,
            memory: None,
            flow: None,
            usable: false,
            comings: 0,
        }
    }
}

impl Dispatch {
    /// An empty house.
    pub fn new(settings: &config::Settings) -> Arc<Self> {
        let state = State {
            scheduler: Scheduler::new(state::rules(settings), limits(settings)),
            berths: HashMap::new(),
            queue_rules: settings.queue.clone(),
            breaker_rules: settings.breaker.clone(),
            models: settings.models.clone(),
            stale_after: settings.probe.stale_after,
            decisions: Decisions::default(),
        };
        // What is configured exists before the first server joins: counting needs none.
        let catalog = ArcSwap::from_pointee(Catalog::build(&state.models, []));
        Arc::new(Self { state: Mutex::new(state), catalog, stir: Notify::new() })
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
        state.scheduler.queue.set_limits(limits(settings));
        state.scheduler.set_rules(state::rules(settings));
        state.queue_rules = settings.queue.clone();
        state.breaker_rules = settings.breaker.clone();
        state.models = settings.models.clone();
        state.stale_after = settings.probe.stale_after;
        self.refresh(&mut state);
        self.remake_catalog(&state);
    }

    /// A server joins, or another process takes an old name over. `nudge` asks its watcher to look at
    /// once, after a failed call. `known` is what can be said before the first look.
    pub fn join(&self, server: Arc<dyn ModelServer>, nudge: Arc<Notify>, mut known: ServerState) {
        let now = Instant::now();
        let mut state = self.lock();
        let id = server.id().clone();
        let before = state.berths.get(&id);
        let comings = before.map_or(0, |berth| berth.comings).wrapping_add(1);
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
            comings,
            unusable_since: None,
            footing: before.map(|berth| berth.footing.clone()).unwrap_or_default(),
            // Requests that are under way belong to the new berth: so does the word that calls them back.
            pulse: before
                .map_or_else(|| Arc::new(Pulse::new(now)), |berth| Arc::clone(&berth.pulse)),
            busy_since: before.and_then(|berth| berth.busy_since),
            hung: None,
            suspect: false,
            leaving: false,
        };
        berth.pulse.hear(now);
        state.berths.insert(id.clone(), berth);
        if state.scheduler.room(&id).is_none() {
            let room = Room::new(id.clone(), &state.scheduler.rules);
            state.scheduler.rooms.push(room);
        } else if let Some(room) = state.scheduler.room_mut(&id) {
            // Another process: what was cached and learned was the old one's.
            room.starts_anew();
        }
        let paced = state.berths.get(&id).is_some_and(|berth| berth.server.is_paced());
        if let Some(room) = state.scheduler.room_mut(&id) {
            room.flow.set_serial(paced);
        }
        state.adopt(&id);
        self.refresh(&mut state);
        self.remake_catalog(&state);
    }

    /// A server is no longer configured: nothing new goes there, what runs may finish.
    pub fn leave(&self, id: &ServerId) {
        let mut state = self.lock();
        if let Some(berth) = state.berths.get_mut(id) {
            berth.leaving = true;
        }
        self.refresh(&mut state);
        self.remake_catalog(&state);
    }

    /// New readings of a server.
    pub fn observe(&self, reading: &ServerState) {
        let reading = reading.clone();
        let id = reading.id.clone();
        let mut state = self.lock();
        let Some(berth) = state.berths.get_mut(&id) else { return };
        let before = std::mem::replace(&mut berth.state, reading);
        let models_changed = before.models != berth.state.models;
        let came = before.health != Health::Up && berth.state.health == Health::Up;
        if came {
            berth.comings = berth.comings.wrapping_add(1);
        }
        if let Some(room) = state.scheduler.room_mut(&id).filter(|_| came) {
            room.prefix.clear();
        }
        state.adopt(&id);
        self.refresh(&mut state);
        if models_changed {
            self.remake_catalog(&state);
        }
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
            Outcome::Answered => {
                berth.hung = None;
                berth.suspect = false;
                berth.busy_until.take().is_some() | berth.breaker.success()
            }
            Outcome::Unjudged => false,
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

    /// Servers that want a trial now, with a model to try: their breaker is open, or they are suspect.
    pub fn trials_due(&self, now: Instant) -> Vec<(Arc<dyn ModelServer>, ModelName)> {
        let state = self.lock();
        let due = state.berths.values().filter(|berth| {
            !berth.leaving
                && !berth.drained
                && berth.footing.stop.is_none()
                && berth.breaker.next_trial().map_or(berth.suspect, |trial| trial <= now)
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
        self.usable_of(model).into_iter().next()
    }

    /// The usable servers of a model.
    pub fn usable_of(&self, model: &ModelName) -> Vec<Arc<dyn ModelServer>> {
        let state = self.lock();
        let rooms = state.scheduler.rooms.iter().filter(|room| room.usable);
        let rooms = rooms.filter(|room| room.models.iter().any(|served| served.name == *model));
        let berths = rooms.filter_map(|room| state.berths.get(&room.id));
        berths.map(|berth| Arc::clone(&berth.server)).collect()
    }

    /// A server, if it is here.
    pub fn server(&self, id: &ServerId) -> Option<Arc<dyn ModelServer>> {
        self.lock().berths.get(id).map(|berth| Arc::clone(&berth.server))
    }

    /// Whether any server of this model should get token ids.
    pub fn takes_ids(&self, model: &ModelName, route: Route) -> bool {
        let state = self.lock();
        state.berths.values().any(|berth| {
            berth.server.takes_ids(route)
                && berth.state.models.iter().any(|served| served.name == *model)
        })
    }

    /// Whether a server of this model serves others, too.
    pub fn shares_servers(&self, model: &ModelName) -> bool {
        let state = self.lock();
        state.scheduler.rooms.iter().any(|room| {
            room.models.len() > 1 && room.models.iter().any(|served| served.name == *model)
        })
    }

    /// Tokens in a block of the cache of this model's servers, as they tell it; the smallest of several.
    pub fn block_tokens(&self, model: &ModelName) -> Option<u32> {
        let state = self.lock();
        let serving = state
            .berths
            .values()
            .filter(|berth| berth.state.models.iter().any(|served| served.name == *model));
        serving.map(|berth| block_tokens(berth.state.capacity.block_tokens)).min()
    }

    /// What an answer of this model is expected to need, for this tenant.
    pub fn expected_output(&self, tenant: &TenantId, model: &ModelName) -> Tokens {
        let state = self.lock();
        let lengths = state.scheduler.outputs.of(tenant, model);
        lengths.map_or_else(|| state.guess(model), Lengths::expect)
    }

    /// An answer of this model was this long.
    pub fn saw_output(&self, tenant: &TenantId, model: &ModelName, output: Tokens) {
        let mut state = self.lock();
        let guess = state.guess(model);
        state.scheduler.outputs.observe(tenant, model, output, guess);
    }

    /// What was decided about a request, and why, if that is not forgotten.
    pub fn explain(&self, request: &str) -> Option<Decision> {
        self.lock().decisions.find(request, Instant::now())
    }

    /// The newest decisions, newest first.
    pub fn decisions(&self, most: usize) -> Vec<Decision> {
        self.lock().decisions.newest(most, Instant::now())
    }

    /// Requests waiting, by tier.
    pub fn waiting(&self) -> BTreeMap<Tier, usize> {
        self.lock().scheduler.queue.by_tier()
    }

    /// Every server.
    pub fn servers(&self) -> Vec<ServerView> {
        let (now, state) = (Instant::now(), self.lock());
        let mut views: Vec<ServerView> = state
            .scheduler
            .rooms
            .iter()
            .filter_map(|room| {
                let berth = state.berths.get(&room.id)?;
                Some(ServerView {
                    state: berth.state.clone(),
                    placed_tokens: room.placed_tokens(),
                    placed: room.requests,
                    breaker_open: berth.breaker.is_open(),
                    drained: berth.drained,
                    footing: berth.footing.clone(),
                    hung: berth.hung.clone(),
                    memory: room.memory.as_ref().map(MemoryRoom::view),
                    flow: Some(room.flow_view(now)),
                    usable: room.usable,
                    comings: berth.comings,
                })
            })
            .collect();
        views.sort_by(|a, b| a.state.id.cmp(&b.state.id));
        views
    }

    /// Gives room back and hands it on.
    fn release(&self, granted: &Granted, output: Option<Tokens>) {
        let mut state = self.lock();
        state.take_back(granted, output, Instant::now());
        state.hand_out();
        state.forget_gone();
    }

    /// Recomputes which servers take requests, and hands out what became free. Called at each report and
    /// tick, so it copies nothing.
    fn refresh(&self, state: &mut State) {
        state.refresh(Instant::now());
        state.forget_gone();
        state.hand_out();
    }

    /// Makes the catalogue anew: servers, their models or the configured models changed.
    fn remake_catalog(&self, state: &State) {
        let berths = state.scheduler.rooms.iter().filter_map(|room| state.berths.get(&room.id));
        let servers = berths.filter(|berth| !berth.leaving).map(|berth| &berth.state);
        let catalog = Catalog::build(&state.models, servers);
        if **self.catalog.load() != catalog {
            self.catalog.store(Arc::new(catalog));
        }
    }
}
