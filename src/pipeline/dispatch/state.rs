//! What the dispatch mutex guards: queue, rooms, servers, and the arithmetic on them.

use super::{Ask, Footing, Hung, pulse::Pulse};
use crate::{
    config,
    error::{Reason, Refusal},
    ids::{ModelName, ServerId},
    queue::{Full, Limits, Place, Queue, Ticket},
    schedule::{
        self, Choice, Need, Room,
        breaker::Breaker,
        memory::{self, Card, Promise},
        pace::{OutputMean, Pace},
    },
    servers::ModelServer,
    snapshot::{Health, ServerState},
    units::Tokens,
};
use std::{collections::HashMap, sync::Arc, time::Duration};
use tokio::{
    sync::{Notify, oneshot},
    time::Instant,
};

/// Longest `Retry-After` that a guess about the future may give.
const RETRY_MAX: Duration = Duration::from_secs(60);

pub(super) struct State {
    pub(super) queue: Queue<Turn>,
    pub(super) rooms: Vec<Room>,
    pub(super) berths: HashMap<ServerId, Berth>,
    pub(super) pace: HashMap<ModelName, Pace>,
    pub(super) outputs: HashMap<ModelName, OutputMean>,
    pub(super) queue_rules: config::Queue,
    pub(super) breaker_rules: config::Breaker,
    pub(super) models: Vec<config::Model>,
    pub(super) stale_after: Duration,
    /// The cards of servers whose memory grows, as they were read last.
    pub(super) cards: Vec<Card>,
}

/// One server beside its room.
pub(super) struct Berth {
    pub(super) server: Arc<dyn ModelServer>,
    /// Asks its watcher to look at once.
    pub(super) nudge: Arc<Notify>,
    pub(super) state: ServerState,
    pub(super) breaker: Breaker,
    pub(super) drained: bool,
    pub(super) busy_until: Option<Instant>,
    /// Times that it came up. What comes back may be another process.
    pub(super) comings: u64,
    /// Since when it has taken no requests.
    pub(super) unusable_since: Option<Instant>,
    /// What the devices under it say.
    pub(super) footing: Footing,
    /// Shared with the requests that it has.
    pub(super) pulse: Arc<Pulse>,
    /// Since when it has had requests without a break.
    pub(super) busy_since: Option<Instant>,
    pub(super) hung: Option<Hung>,
    /// It is to be tried although its breaker is closed.
    pub(super) suspect: bool,
    /// No longer configured; goes when its last request has ended.
    pub(super) leaving: bool,
}

/// Who waits for a turn, and where not to send it.
pub(super) struct Turn {
    pub(super) give: oneshot::Sender<Granted>,
    pub(super) tried: Vec<ServerId>,
    pub(super) sequences: u32,
    pub(super) span: Tokens,
}

/// A turn, in the hands of whoever waited for it.
#[derive(Debug)]
pub(super) struct Granted {
    pub(super) server: ServerId,
    pub(super) claim: Tokens,
    pub(super) sequences: u32,
    /// Recalls from this server before it.
    pub(super) recalls: u64,
    pub(super) model: ModelName,
    pub(super) promise: Promise,
}

/// Expected output of a model nobody configured.
pub(super) const DEFAULT_OUTPUT: Tokens = Tokens(256);

impl State {
    pub(super) fn output_mean(&mut self, model: &ModelName) -> Option<&mut OutputMean> {
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

    /// Takes over what a server's readings say about its room.
    pub(super) fn adopt(&mut self, id: &ServerId) {
        let Some(berth) = self.berths.get(id) else { return };
        let Some(room) = self.rooms.iter_mut().find(|room| room.id == *id) else { return };
        room.models = berth.state.models.clone();
        room.capacity = berth.state.capacity.clone();
    }

    /// Says anew which servers take requests.
    pub(super) fn refresh(&mut self, now: Instant) {
        for room in &mut self.rooms {
            let Some(berth) = self.berths.get_mut(&room.id) else { continue };
            let read_at = berth.state.read_at;
            let fresh = read_at.is_some_and(|at| now.duration_since(at) <= self.stale_after);
            berth.busy_until = berth.busy_until.filter(|until| *until > now);
            room.usable = fresh
                && berth.state.health == Health::Up
                && !berth.breaker.is_open()
                && !berth.drained
                && !berth.leaving
                && berth.footing.stop.is_none()
                && berth.busy_until.is_none();
            room.weight = berth.footing.weight;
            match room.usable {
                true => berth.unusable_since = None,
                false => _ = berth.unusable_since.get_or_insert(now),
            }
        }
    }

    pub(super) fn ticket(&mut self, ask: &mut Ask) -> Ticket {
        ask.arrival.get_or_insert_with(|| self.queue.arrive());
        Ticket { model: ask.model.clone(), place: place(ask) }
    }

    pub(super) fn grant(&mut self, index: usize, need: Need<'_>, now: Instant) -> Granted {
        let model = need.model.clone();
        let Some(room) = self.rooms.get_mut(index) else {
            // `index` comes from a choice over these rooms under the same lock.
            let (server, promise) = (ServerId::from(""), Promise::default());
            return Granted {
                server,
                claim: Tokens::ZERO,
                sequences: 0,
                recalls: 0,
                model,
                promise,
            };
        };
        let promise = room.promise(need);
        let claim = room.claim(need.tokens);
        room.placed_tokens = room.placed_tokens.plus(claim);
        let sequences = room.claim_sequences(need.sequences);
        room.placed = room.placed.saturating_add(sequences);
        room.requests += 1;
        room.placed_ever += 1;
        let berth = self.berths.get_mut(&room.id);
        let recalls = berth.map_or(0, |berth| {
            berth.busy_since.get_or_insert(now);
            berth.pulse.recalls()
        });
        let server = room.id.clone();
        memory::settle(&mut self.rooms, &self.cards);
        Granted { server, claim, sequences, recalls, model, promise }
    }

    pub(super) fn take_back(&mut self, granted: &Granted, now: Instant) {
        let tokens = granted.claim;
        let room = self.rooms.iter_mut().find(|room| room.id == granted.server);
        let Some(room) = room else { return };
        debug_assert!(
            room.requests > 0
                && room.placed >= granted.sequences
                && room.placed_tokens >= granted.claim,
            "room given back twice"
        );
        room.placed_tokens = room.placed_tokens.less(tokens);
        room.placed = room.placed.saturating_sub(granted.sequences);
        room.requests = room.requests.saturating_sub(1);
        room.unpromise(granted.promise, &granted.model);
        if room.requests == 0
            && let Some(berth) = self.berths.get_mut(&room.id)
        {
            berth.busy_since = None;
        }
        for model in room.models.iter().map(|served| &served.name) {
            let busy = !self.queue.is_idle(model);
            if busy || self.pace.contains_key(model) {
                self.pace.entry(model.clone()).or_default().freed(tokens, busy, now);
            }
        }
        memory::settle(&mut self.rooms, &self.cards);
    }

    /// Gives turns along each lane, as long as there is room. Whoever only waits for room keeps those
    /// behind from overtaking. A retried request does not: the servers it tried are of no use to it,
    /// and would stand idle while it waits for another.
    pub(super) fn hand_out(&mut self) {
        if self.queue.is_empty() {
            return;
        }
        let now = Instant::now();
        for model in self.queue.models() {
            let mut passed: Option<Place> = None;
            while let Some((place, waiting)) = self.queue.behind(&model, passed) {
                // A caller who left takes no turn.
                let gone = waiting.item.give.is_closed();
                let Turn { sequences, span, tried, .. } = &waiting.item;
                let (tokens, sequences, span) = (waiting.tokens, *sequences, *span);
                let need = Need { model: &model, tokens, span, sequences, tried };
                let choice =
                    if gone { Choice::Nobody } else { schedule::choose(&self.rooms, need) };
                let first = tried.is_empty();
                let ticket = Ticket { model: model.clone(), place };
                match choice {
                    Choice::Nobody => drop(self.queue.remove(&ticket)),
                    Choice::Here(index) => {
                        let Some(waiting) = self.queue.remove(&ticket) else { break };
                        let tried = waiting.item.tried.as_slice();
                        let need = Need { model: &model, tokens, span, sequences, tried };
                        let granted = self.grant(index, need, now);
                        if let Err(granted) = waiting.item.give.send(granted) {
                            self.take_back(&granted, now);
                        }
                    }
                    Choice::Full | Choice::Down if first => break,
                    // What only others can make room for keeps nobody from what is there.
                    Choice::Full | Choice::Down | Choice::Cramped => passed = Some(place),
                }
            }
        }
    }

    /// Since when no server that this request may go to takes any. `None`: one does.
    pub(super) fn down_since(&self, need: Need<'_>) -> Option<Instant> {
        let mut last = None;
        for room in self.rooms.iter().filter(|room| room.may_take(need)) {
            last = last.max(Some(self.berths.get(&room.id)?.unusable_since?));
        }
        last
    }

    pub(super) fn forget_gone(&mut self) {
        let berths = &mut self.berths;
        self.rooms.retain(|room| {
            let gone = room.requests == 0 && berths.get(&room.id).is_none_or(|berth| berth.leaving);
            if gone {
                berths.remove(&room.id);
            }
            !gone
        });
    }

    fn wait_estimate(&self, ask: &Ask, now: Instant) -> Option<Duration> {
        let (_, ahead) = self.queue.ahead(&ask.model, place(ask));
        self.pace.get(&ask.model)?.wait(ahead.plus(ask.tokens), now)
    }

    /// A caller whose deadline cannot be met is told so now, not after waiting for it. The first in line
    /// is never hopeless: room may come free any moment, and without anybody waiting a wrong estimate
    /// would never be put right.
    pub(super) fn refuse_hopeless(&self, ask: &Ask, now: Instant) -> Result<(), Refusal> {
        if self.queue.ahead(&ask.model, place(ask)).0 == 0 {
            return Ok(());
        }
        let Some(wait) = self.wait_estimate(ask, now) else { return Ok(()) };
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

    pub(super) fn too_late(&self, ask: &Ask, entered: Instant) -> Refusal {
        let waited = entered.elapsed().as_secs_f64();
        let text =
            format!("No server had room for this request within {waited:.1} s. Retry later.");
        let wait = self.wait_estimate(ask, Instant::now()).unwrap_or(Duration::from_secs(5));
        Refusal::new(Reason::WaitTooLong, text).retry_after(bounded(wait))
    }

    pub(super) fn full(&self, full: Full, ask: &Ask) -> Refusal {
        let wait = self.wait_estimate(ask, Instant::now()).unwrap_or(Duration::from_secs(5));
        let wait = bounded(wait);
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

pub(super) fn limits(settings: &config::Settings) -> Limits {
    let rules = &settings.queue;
    // A tenant alone has nobody to leave room for.
    let percent = if settings.tenants.len() < 2 { 100 } else { rules.tenant_share_percent };
    let share = rules.length_max.saturating_mul(usize::from(percent)) / 100;
    Limits { length_max: rules.length_max, tenant_max: share.max(1) }
}

/// Where a request stands or would stand.
fn place(ask: &Ask) -> Place {
    Place { tier: ask.tier, arrival: ask.arrival.unwrap_or(u64::MAX) }
}

fn bounded(wait: Duration) -> Duration {
    wait.clamp(Duration::from_secs(1), RETRY_MAX)
}
