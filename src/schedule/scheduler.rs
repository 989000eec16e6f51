//! Everything that decides about turns, joined: the queue, the rooms, what is known of answers.
//!
//! No I/O, no clock, no task: whoever drives it says what happened and when, and asks whose turn is next. The
//! daemon and the replay of traces drive the same.

use super::{
    bias::{Bias, Foreseen},
    choice::{Choice, View, choose, enough},
    estimate::{self, Outlook},
    flow::Prompt,
    memory::{self, Card},
    outputs::Outputs,
    pace::Pace,
    request::{Grant, Offer, Request, Turn, need},
    room::{Need, Room, Weighed},
    rules::Rules,
    seat::{Blocks, Known, Progress, Seat, SeatId},
};
use crate::{
    ids::{ModelName, ServerId, Tier},
    queue::{Full, Limits, Queue, Ticket, Waiting, Work},
    units::Tokens,
};
use std::{collections::HashMap, sync::Arc, time::Duration};
use tokio::time::Instant;

/// Who waits is looked at again after this time at the latest.
const LOOK_AGAIN: Duration = Duration::from_millis(50);

/// Times that a batch request gives its room to others; after that it keeps it.
const PREEMPTED_MAX: u32 = 4;

/// Queue and rooms. `T` is what a waiting request is known by to whoever drives this.
#[derive(Debug)]
pub struct Scheduler<T> {
    /// The servers.
    pub rooms: Vec<Room>,
    /// The cards of servers whose memory grows, as they were read last.
    pub cards: Vec<Card>,
    /// Who waits.
    pub queue: Queue<Asking<T>>,
    /// How long answers are.
    pub outputs: Outputs,
    /// What it goes by.
    pub rules: Rules,
    pub(super) pace: HashMap<ModelName, Pace>,
    /// How far estimates are off.
    pub(super) bias: Bias,
    /// The batch request that is to make way; one at a time.
    pub(super) calling: Option<(ServerId, SeatId)>,
    /// Scratch for a look: who is next, and rooms that somebody waits for whom nobody may pass.
    order: Vec<Ticket>,
    held: Vec<bool>,
    /// Who must make place, to be told at the next turn.
    displaced: Vec<Ticket>,
}

/// Somebody who waits.
#[derive(Debug)]
pub struct Asking<T> {
    request: Request,
    known: Known,
    item: T,
}

impl<T> Asking<T> {
    /// What it is known by.
    pub const fn item(&self) -> &T {
        &self.item
    }
}

/// Finds a batch request that makes way for another: the newest one that has shown nothing, on a server that could
/// take the other. It is called back.
fn preempt(
    rooms: &mut [Room],
    need: Need<'_>,
    rules: &Rules,
) -> Option<(ServerId, SeatId, Arc<Progress>)> {
    for room in rooms.iter().filter(|room| room.usable && room.may_take(need)) {
        let makes_way = |seat: &Seat| {
            seat.tier == Tier::Batch
                && seat.watched
                && seat.first.is_none()
                && seat.preempted < PREEMPTED_MAX
                && room.fits_without(need, seat, rules)
        };
        let able = room.seats.tickets().filter(|(_, seat)| makes_way(seat));
        if let Some((ticket, seat)) = able.max_by_key(|(_, seat)| seat.placed_at) {
            seat.progress.call_back();
            return Some((room.id.clone(), SeatId(ticket), Arc::clone(&seat.progress)));
        }
    }
    None
}

impl<T> Scheduler<T> {
    /// An empty house.
    pub fn new(rules: Rules, limits: Limits) -> Self {
        Self {
            rooms: Vec::new(),
            cards: Vec::new(),
            queue: Queue::new(limits),
            outputs: Outputs::default(),
            rules,
            pace: HashMap::new(),
            bias: Bias::default(),
            order: Vec::new(),
            held: Vec::new(),
            calling: None,
            displaced: Vec::new(),
        }
    }

    /// Takes new rules. What was learned stays.
    pub fn set_rules(&mut self, rules: Rules) {
        self.rules = rules;
    }

    /// A server, if it is here.
    pub fn room(&self, id: &ServerId) -> Option<&Room> {
        self.rooms.iter().find(|room| room.id == *id)
    }

    /// A server, if it is here.
    pub fn room_mut(&mut self, id: &ServerId) -> Option<&mut Room> {
        self.rooms.iter_mut().find(|room| room.id == *id)
    }

    /// What could be done for a request now.
    pub fn choose(&self, request: &Request, now: Instant) -> Choice {
        choose(&self.rooms, need(request, request.tier), &mut Known::default(), &self.rules, now).0
    }

    /// Takes a request in. `known` is what was found out about its blocks already. `again`: it had its turn and
    /// lost it through no doing of its own, so it is neither refused for its deadline nor for a full queue.
    pub fn offer(
        &mut self,
        mut request: Request,
        mut known: Known,
        item: T,
        again: bool,
        now: Instant,
    ) -> Offer<T> {
        let need_now = need(&request, request.tier);
        let (choice, _) = choose(&self.rooms, need_now, &mut known, &self.rules, now);
        if choice == Choice::Nobody {
            return Offer::Nobody;
        }
        request.arrival.get_or_insert_with(|| self.queue.arrive());
        if request.returned && request.tried.is_empty() {
            request.returned = self.claimed(&request, now);
        }
        let outlook = self.outlook(&request, &mut known, now);
        request.foreseen = self.foreseen(&request, &outlook, now);
        let outlook = self.corrected(outlook);
        if !again && let Some(late) = self.late(&request, &outlook, now) {
            return Offer::Late(late, outlook);
        }
        if let Choice::Here(at, weighed) = choice
            && self.queue.is_empty()
        {
            self.came(&request, outlook.prefill_s, now);
            return match self.grant(at, &request, request.tier, weighed, now) {
                Some(grant) => Offer::Placed(grant, item, outlook),
                None => Offer::Nobody,
            };
        }
        if !again {
            match self.queue.room_for(&request.tenant) {
                Ok(()) => {}
                Err(Full::Queue) => match self.queue.outermost(&request.tenant) {
                    Some(last) => self.displaced.push(last),
                    None => return Offer::Full(Full::Queue, outlook),
                },
                Err(full) => return Offer::Full(full, outlook),
            }
        }
        self.came(&request, outlook.prefill_s, now);
        let waiting = self.waiting(request, known, item, &outlook);
        Offer::Waits(self.queue.put_back(waiting), outlook, choice)
    }

    /// Whose turn is next, if anybody's; to be asked until it says nobody's.
    pub fn next(&mut self, now: Instant) -> Option<Turn<T>> {
        while let Some(ticket) = self.displaced.pop() {
            if let Some(gone) = self.queue.remove(ticket) {
                return Some(Turn::Displaced(gone.item.item, gone.item.request));
            }
        }
        if self.queue.is_empty() {
            return None;
        }
        self.queue.age(now);
        let (mut order, mut held) =
            (std::mem::take(&mut self.order), std::mem::take(&mut self.held));
        let found = self.first(&mut order, &mut held, now);
        (self.order, self.held) = (order, held);
        found
    }

    /// The first who can go, or must: over all models tier by tier, since models may share servers.
    fn first(
        &mut self,
        order: &mut Vec<Ticket>,
        held: &mut Vec<bool>,
        now: Instant,
    ) -> Option<Turn<T>> {
        held.clear();
        held.resize(self.rooms.len(), false);
        for tier in Tier::ALL {
            for lane in 0..self.queue.lanes() {
                self.queue.next(lane, tier, self.rules.look_ahead, order);
                let found = self.first_of(order, held, now);
                if found.is_some() {
                    return found;
                }
            }
        }
        None
    }

    /// Gives a caller's place in the queue up. `None`: it has had its turn.
    pub fn leave(&mut self, ticket: Ticket) -> Option<T> {
        self.queue.remove(ticket).map(|waiting| waiting.item.item)
    }

    /// When somebody who waits could get a turn though nothing happens until then.
    pub fn wakes(&self, now: Instant) -> Option<Instant> {
        if self.queue.is_empty() {
            return None;
        }
        let open = self.rooms.iter().filter(|room| room.usable);
        let falls = open.filter_map(|room| {
            let limits = [self.rules.debt_limit_s(Tier::Interactive), self.rules.debt_max_s];
            let owed = room.flow.debt_s(now);
            let next = limits.into_iter().find(|limit| *limit < owed)?;
            room.flow.falls_to(next, now)
        });
        // What is worth waiting for changes without a word, too.
        let again = now + LOOK_AGAIN;
        Some(falls.min().map_or(again, |at| at.min(again)))
    }

    /// An estimate by what was learned of estimates.
    fn corrected(&self, outlook: Outlook) -> Outlook {
        let factor = self.bias.factor(outlook.ttft_s(), outlook.wait_s > 0.0);
        Outlook { wait_s: outlook.wait_s * factor, serve_s: outlook.serve_s * factor, ..outlook }
    }

    /// What is to be compared: of a request whose first token will be seen, at its first turn.
    fn foreseen(&self, request: &Request, outlook: &Outlook, now: Instant) -> Option<Foreseen> {
        let first =
            request.tried.is_empty() && request.preempted == 0 && request.foreseen.is_none();
        let ttft_s = outlook.ttft_s();
        (request.watched && first && ttft_s > 0.0).then_some(Foreseen {
            at: now,
            ttft_s,
            waits: outlook.wait_s > 0.0,
        })
    }

    /// The pace at which room comes free for a model.
    pub(super) fn pace(&self, model: &ModelName) -> Option<&Pace> {
        self.pace.get(model)
    }

    fn waiting(
        &self,
        request: Request,
        known: Known,
        item: T,
        outlook: &Outlook,
    ) -> Waiting<Asking<T>> {
        let work = Work {
            charge: self.charge(&request, Tokens::ZERO),
            prefill_s: outlook.prefill_s,
            room: request.input.plus(request.output),
        };
        Waiting {
            model: request.model.clone(),
            tenant: request.tenant.clone(),
            weight: request.weight,
            tier: request.tier,
            due: request.due,
            arrival: request.arrival.unwrap_or_default(),
            entered: request.entered,
            work,
            item: Asking { request, known, item },
        }
    }

    fn came(&mut self, request: &Request, prefill_s: f64, now: Instant) {
        let (lane, tenant) = ((&request.model, request.tier), (&request.tenant, request.weight));
        self.queue.came(lane, tenant, prefill_s, now);
    }

    /// Tokens that a tenant is charged for a request.
    pub(super) fn charge(&self, request: &Request, cached: Tokens) -> f64 {
        request.input.less(cached).get() as f64
            + self.rules.output_weight * request.output.get() as f64
    }

    /// The first in this order who can go, or must. `held` are rooms that others wait for.
    fn first_of(&mut self, order: &[Ticket], held: &mut [bool], now: Instant) -> Option<Turn<T>> {
        for ticket in order {
            let Some(tier) = self.queue.tier_now(*ticket) else { continue };
            let Some(Asking { request, known, .. }) = self.queue.get_mut(*ticket) else { continue };
            let whole = request.due.saturating_duration_since(request.entered);
            let waited = now.saturating_duration_since(request.entered);
            let (half, patient) = (waited >= whole / 2, waited < whole * 3 / 4);
            let need = need(request, tier);
            let view = View { rooms: &self.rooms, held, patient };
            let (choice, soonest) = view.choose(need, known, &self.rules, now);
            let late = estimate::doomed(&self.rooms, request, soonest, now);
            match choice {
                _ if late.is_some() => {
                    let Asking { request, item, .. } = self.queue.remove(*ticket)?.item;
                    return Some(Turn::Late(item, late.unwrap_or_default(), request));
                }
                Choice::Here(at, weighed) => {
                    let Asking { request, item, .. } = self.queue.remove(*ticket)?.item;
                    return Some(match self.grant(at, &request, tier, weighed, now) {
                        Some(grant) => Turn::Granted(item, grant, request),
                        None => Turn::Nobody(item),
                    });
                }
                Choice::Nobody => return Some(Turn::Nobody(self.queue.remove(*ticket)?.item.item)),
                // A retried one keeps nobody back: the servers that it tried are of no use to it.
                Choice::Full if request.tried.is_empty() => {
                    // Who waits for room has it kept once half of its time is over, so that small ones do not
                    // pass it for ever.
                    if half {
                        let enough = enough(&self.rooms, need);
                        for (room, held) in self.rooms.iter().zip(held.iter_mut()) {
                            *held |= room.usable && room.may_take(need) && room.size() >= enough;
                        }
                    }
                    if self.rules.preempt_batch && tier < Tier::Batch && self.calling.is_none() {
                        let called = preempt(&mut self.rooms, need, &self.rules);
                        if let Some((server, seat, progress)) = called {
                            self.calling = Some((server.clone(), seat));
                            return Some(Turn::Preempt(server, progress));
                        }
                    }
                }
                Choice::Full | Choice::Patient | Choice::Down | Choice::Cramped => {}
            }
        }
        None
    }

    fn grant(
        &mut self,
        at: usize,
        request: &Request,
        tier: Tier,
        weighed: Weighed,
        now: Instant,
    ) -> Option<Grant> {
        let charged = self.charge(request, weighed.cached);
        let room = self.rooms.get_mut(at)?;
        let need = need(request, tier);
        let promise = room.promise(need);
        let counts = !room.blocks_of(&request.blocks).is_empty();
        let blocks = if counts { request.blocks.clone() } else { Blocks::default() };
        let shared = Tokens(blocks.hashes.len() as u64 * u64::from(blocks.tokens));
        let claim = room.claim(need.tokens).less(shared);
        let sequences = room.claim_sequences(request.sequences);
        room.prefix.pin(&blocks.hashes);
        room.claimed = room.claimed.plus(claim);
        room.placed = room.placed.saturating_add(sequences);
        room.requests += 1;
        room.placed_ever += 1;
        let seat = Seat {
            model: request.model.clone(),
            tenant: request.tenant.clone(),
            weight: request.weight,
            tier,
            output: request.output,
            sequences,
            blocks,
            claim,
            promise,
            charged,
            progress: Arc::clone(&request.progress),
            watched: request.watched,
            preempted: request.preempted,
            foreseen: request.foreseen,
            placed_at: now,
            first: None,
        };
        room.fit_prefix();
        let seat = SeatId(room.seats.insert(seat));
        let prompt = Prompt {
            seat: seat.number(),
            input: request.input,
            cached: weighed.cached,
            quiet_s: room.flow.costs().quiet_step_s(room.placed_tokens()),
            watched: request.watched,
        };
        room.flow.sent(prompt, now);
        let server = room.id.clone();
        self.queue.charge(&request.model, tier, &request.tenant, request.weight, charged);
        memory::settle(&mut self.rooms, &self.cards);
        Some(Grant { server, seat, weighed })
    }
}
