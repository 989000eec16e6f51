//! The meter: readings of cards and progress of requests come in, shares go out, and add up.

use super::{
    Key, Places, Spent, Work,
    gauge::{Gauge, Measured, Reading, Source, Step},
    idle::Idle,
    shares::{Active, Share, Shared, Who, shared},
    split,
    works::Progress,
};
use crate::{
    ids::{GpuId, ServerId},
    snapshot::{Answering, DriverState, GpuState},
    units::{GpuMicros, Microjoules},
};
use std::{collections::BTreeMap, sync::Arc, time::Duration};
use tokio::time::Instant;

/// How long a card that the driver does not list any more is remembered.
const FORGET_AFTER: Duration = Duration::from_secs(600);
/// After work a card needs this long to calm down; what it draws until then is not its idle power.
const CALM: Duration = Duration::from_secs(3);
/// Without any reading of power, steps are weighed as if the card drew this, microwatts for each microsecond.
const BLIND_WATTS: u64 = 100;

/// All cards.
#[derive(Debug, Default)]
pub struct Meter {
    at: Option<Instant>,
    cards: BTreeMap<GpuId, Card>,
    /// Work of each server whose energy was not handed out yet, and what was handed out meanwhile.
    costs: BTreeMap<ServerId, (u64, Spent)>,
}

/// What one round handed out.
#[derive(Debug, Default)]
pub struct Round {
    /// To requests.
    pub grants: BTreeMap<Key, Spent>,
    /// Card by card, what was handed out in this round.
    pub cards: Vec<(GpuId, Shares)>,
    /// What the work of a server took: energy and time for so much weight.
    pub costs: Vec<(ServerId, Spent, u64)>,
}

/// How one card's energy and time were split.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Shares {
    /// To requests.
    pub requests: Spent,
    /// To nobody: what it would have drawn without work, and the time without work.
    pub idle: Spent,
    /// To other processes, and to work of servers that did not come through here.
    pub foreign: Spent,
}

/// One card, for operators.
#[derive(Clone, Debug)]
pub struct CardView {
    /// Which.
    pub gpu: GpuId,
    /// How its energy is known.
    pub source: Source,
    /// What was split, since start.
    pub shares: Shares,
    /// Its idle power, watts; `None` until it was seen idle.
    pub idle_w: Option<f64>,
    /// How often its counter went back or leapt.
    pub resets: u64,
    /// For how long nobody knows what it drew.
    pub unmeasured: Duration,
}

#[derive(Debug)]
struct Card {
    gauge: Gauge,
    idle: Idle,
    /// Its MIG devices when it answered last: they are not listed while it does not.
    parts: Vec<GpuState>,
    limit_w: Option<f64>,
    listed: Instant,
    /// When somebody used it last.
    used: Option<Instant>,
    pending: Pending,
    shares: Shares,
}

/// Who shares in energy that is not certain yet. Live requests whose end was seen become part of their
/// key, so this is bounded by requests at work and by keys.
#[derive(Debug, Default)]
struct Pending {
    foreign: u64,
    live: BTreeMap<u64, (Arc<Work>, u64)>,
    done: BTreeMap<Key, u64>,
}

impl Shares {
    /// All of it.
    pub const fn all(self) -> Spent {
        self.requests.plus(self.idle).plus(self.foreign)
    }

    const fn plus(self, other: Self) -> Self {
        Self {
            requests: self.requests.plus(other.requests),
            idle: self.idle.plus(other.idle),
            foreign: self.foreign.plus(other.foreign),
        }
    }
}

impl Pending {
    fn add(&mut self, share: &Share, weight: u64) {
        let to = match &share.who {
            Who::Foreign => &mut self.foreign,
            Who::Live(work) => {
                let entry = self.live.entry(work.id).or_insert_with(|| (Arc::clone(work), 0));
                &mut entry.1
            }
            Who::Done(key) => self.done.entry(key.clone()).or_default(),
        };
        *to = to.saturating_add(weight);
    }

    fn fold(&mut self) {
        let done = &mut self.done;
        self.live.retain(|_, (work, weight)| {
            if work.is_over() {
                let to = done.entry(work.key.clone()).or_default();
                *to = to.saturating_add(*weight);
            }
            !work.is_over()
        });
    }
}

impl Round {
    fn grant(&mut self, key: &Key, spent: Spent) {
        match self.grants.get_mut(key) {
            Some(sum) => *sum = sum.plus(spent),
            None => drop(self.grants.insert(key.clone(), spent)),
        }
    }
}

impl Meter {
    /// One round: what the cards say now, and what was done since the round before. Without readings
    /// (`None`: no driver) what was done waits for the counters to come back. `at` is not before any reading.
    pub fn round(
        &mut self,
        at: Instant,
        driver: Option<&DriverState>,
        places: &Places,
        progress: Progress,
    ) -> Round {
        self.at = Some(at);
        let active = Active::of(progress);
        let gpus = driver.map_or(&[][..], |driver| &driver.gpus);
        let mut round = Round::default();
        for state in gpus.iter().filter(|gpu| gpu.mig.is_none()) {
            let is_part =
                |gpu: &&GpuState| gpu.mig.as_ref().is_some_and(|part| part.parent == state.id);
            let migs: Vec<&GpuState> = gpus.iter().filter(is_part).collect();
            let card = self.cards.entry(state.id.clone()).or_insert_with(|| Card::new(at));
            let shared = if state.answering == Answering::Yes {
                card.remember(&migs);
                shared(state, &migs, places, &active)
            } else {
                card.blind(&state.id, places, &active)
            };
            let shares = card.read((at, driver), state, &shared, &mut round);
            round.cards.push((state.id.clone(), shares));
        }
        let is_listed = |id: &GpuId| gpus.iter().any(|gpu| gpu.id == *id);
        for (id, card) in &mut self.cards {
            if !is_listed(id) {
                let shared = card.blind(id, places, &active);
                let shares = card.missed(at, &shared, &mut round);
                round.cards.push((id.clone(), shares));
            }
        }
        self.cards.retain(|id, card| {
            is_listed(id) || at.saturating_duration_since(card.listed) < FORGET_AFTER
        });
        self.cost(&active, places, &mut round);
        round
    }

    /// The time of the last round.
    pub const fn at(&self) -> Option<Instant> {
        self.at
    }

    /// Every card, by its id.
    pub fn cards(&self) -> Vec<CardView> {
        let view = |(id, card): (&GpuId, &Card)| CardView {
            gpu: id.clone(),
            source: card.gauge.source(),
            shares: card.shares,
            idle_w: card.idle.watts(),
            resets: card.gauge.resets(),
            unmeasured: card.gauge.lost(),
        };
        self.cards.iter().map(view).collect()
    }

    /// What the work of each server took, once its energy was handed out.
    fn cost(&mut self, active: &Active, places: &Places, round: &mut Round) {
        for (server, weight) in active.weights() {
            let cost = self.costs.entry(server.clone()).or_default();
            cost.0 = cost.0.saturating_add(weight);
        }
        for (key, spent) in &round.grants {
            if let Some(cost) = self.costs.get_mut(&key.server) {
                cost.1 = cost.1.plus(*spent);
            }
        }
        // A server without cards is never paid: its work must not pile up until it gets one.
        self.costs.retain(|server, _| places.knows(server));
        for (server, (weight, spent)) in &mut self.costs {
            if spent.energy > Microjoules::ZERO {
                round.costs.push((server.clone(), *spent, *weight));
                (*weight, *spent) = (0, Spent::default());
            }
        }
    }
}

impl Card {
    fn new(at: Instant) -> Self {
        Self {
            gauge: Gauge::default(),
            idle: Idle::default(),
            parts: Vec::new(),
            limit_w: None,
            listed: at,
            used: None,
            pending: Pending::default(),
            shares: Shares::default(),
        }
    }

    fn remember(&mut self, migs: &[&GpuState]) {
        let same = self.parts.iter().map(|part| &part.id).eq(migs.iter().map(|part| &part.id));
        if !same {
            let blank = |part: &&GpuState| GpuState {
                mig: part.mig.clone(),
                memory_total: part.memory_total,
                ..GpuState::blank(part.id.clone(), part.index, String::new())
            };
            self.parts = migs.iter().map(blank).collect();
        }
    }

    /// Who shares in a card that tells nothing: all that is known is who is on it.
    fn blind(&self, id: &GpuId, places: &Places, active: &Active) -> Shared {
        let blank = GpuState::blank(id.clone(), 0, String::new());
        let parts: Vec<&GpuState> = self.parts.iter().collect();
        Shared { busy: 0.0, ..shared(&blank, &parts, places, active) }
    }

    fn read(
        &mut self,
        (at, driver): (Instant, Option<&DriverState>),
        state: &GpuState,
        shared: &Shared,
        round: &mut Round,
    ) -> Shares {
        let before = std::mem::replace(&mut self.listed, at);
        self.limit_w = state.power_limit_w.or(self.limit_w);
        if state.answering != Answering::Yes && state.energy_mj.is_none() {
            return self.missed(at, shared, round);
        }
        let read_at = state.metered_at.or_else(|| driver.map(|driver| driver.read_at));
        let read_at = read_at.unwrap_or(at);
        if self.gauge.at().is_some_and(|last| read_at <= last) {
            // Other cards were read, this one was not: its next reading covers this time too.
            let span = at.saturating_duration_since(before);
            let guess = Microjoules::ZERO;
            self.await_energy(Step { span, guess, result: Measured::Later }, shared);
            return Shares::default();
        }
        let reading = Reading { energy_mj: state.energy_mj, power_w: state.power_w };
        let step = self.gauge.read(read_at, reading);
        self.step(read_at, step, shared, round)
    }

    /// A round in which the card told nothing. What was done on it is paid by its counter once it is back.
    fn missed(&mut self, at: Instant, shared: &Shared, round: &mut Round) -> Shares {
        let step = self.gauge.read(at, Reading::default());
        self.step(at, step, shared, round)
    }

    fn step(&mut self, at: Instant, step: Step, shared: &Shared, round: &mut Round) -> Shares {
        let quiet = self.used.is_none_or(|used| {
            at.checked_duration_since(used).is_some_and(|calm| calm >= CALM + span_of(step))
        });
        let mut shares = self.pass_time(step.span, shared, round);
        if !shared.shares.is_empty() {
            self.used = Some(at);
            self.await_energy(step, shared);
        }
        match step.result {
            Measured::Later => self.pending.fold(),
            // Nobody can be given what nobody measured.
            Measured::Lost(_) => self.pending = Pending::default(),
            Measured::Drawn(drawn, span) => {
                if quiet && shared.shares.is_empty() {
                    self.idle.learn(drawn, span);
                }
                let energy = self.hand_out(drawn, span, round);
                shares = shares.plus(energy);
            }
        }
        self.shares = self.shares.plus(shares);
        shares
    }

    /// Splits the time since the last reading: it needs no counter.
    fn pass_time(&self, span: Duration, shared: &Shared, round: &mut Round) -> Shares {
        let all = u64::try_from(span.as_micros()).unwrap_or(u64::MAX);
        let busy = (all as f64 * shared.busy) as u64;
        let busy = if shared.shares.is_empty() { 0 } else { busy.min(all) };
        let time = |micros| Spent { time: GpuMicros(micros), ..Spent::default() };
        let mut shares = Shares { idle: time(all - busy), ..Shares::default() };
        let weights: Vec<u64> = shared.shares.iter().map(|share| share.weight).collect();
        for (part, share) in split(busy, &weights).into_iter().zip(&shared.shares) {
            match &share.who {
                Who::Foreign => shares.foreign = shares.foreign.plus(time(part)),
                Who::Live(work) => {
                    work.give_time(GpuMicros(part));
                    round.grant(&work.key, time(part));
                    shares.requests = shares.requests.plus(time(part));
                }
                Who::Done(key) => {
                    round.grant(key, time(part));
                    shares.requests = shares.requests.plus(time(part));
                }
            }
        }
        shares
    }

    /// Notes who shares in the energy of this step. Steps weigh by what they drew above idle power, as
    /// far as their power tells.
    fn await_energy(&mut self, step: Step, shared: &Shared) {
        if shared.shares.is_empty() {
            return;
        }
        let micros = u64::try_from(step.span.as_micros()).unwrap_or(u64::MAX);
        let idle = self.idle.part(step.guess, step.span, self.limit_w);
        let guess = match step.guess {
            Microjoules::ZERO => micros.saturating_mul(BLIND_WATTS),
            guess => guess.less(idle).get().max(guess.get() / 100),
        };
        let weights: Vec<u64> = shared.shares.iter().map(|share| share.weight).collect();
        let parts = split(guess.max(weights.len() as u64), &weights);
        for (part, share) in parts.into_iter().zip(&shared.shares) {
            self.pending.add(share, part);
        }
    }

    /// Splits what is certain now.
    fn hand_out(&mut self, drawn: Microjoules, span: Duration, round: &mut Round) -> Shares {
        let pending = std::mem::take(&mut self.pending);
        let weights: Vec<u64> = std::iter::once(pending.foreign)
            .chain(pending.live.values().map(|(_, weight)| *weight))
            .chain(pending.done.values().copied())
            .collect();
        let energy = |part: u64| Spent { energy: Microjoules(part), ..Spent::default() };
        if weights.iter().all(|weight| *weight == 0) {
            return Shares { idle: energy(drawn.get()), ..Shares::default() };
        }
        let idle = self.idle.part(drawn, span, self.limit_w);
        let mut shares = Shares { idle: energy(idle.get()), ..Shares::default() };
        let mut parts = split(drawn.less(idle).get(), &weights).into_iter();
        shares.foreign = energy(parts.next().unwrap_or(0));
        for ((work, _), part) in pending.live.values().zip(&mut parts) {
            work.give_energy(Microjoules(part));
            round.grant(&work.key, energy(part));
            shares.requests = shares.requests.plus(energy(part));
        }
        for (key, part) in pending.done.keys().zip(&mut parts) {
            round.grant(key, energy(part));
            shares.requests = shares.requests.plus(energy(part));
        }
        shares
    }
}

/// How long a step's certain energy goes back.
const fn span_of(step: Step) -> Duration {
    match step.result {
        Measured::Drawn(_, span) | Measured::Lost(span) => span,
        Measured::Later => step.span,
    }
}
