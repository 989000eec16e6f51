//! Who waits for a turn: a bounded queue in lanes per model.
//!
//! Within a lane tiers go strictly one after another; who waits long is lifted into the next tier. Within a
//! tier the tenant goes first that got least for its weight (`band`), and of a tenant the request that is due
//! first.
//!
//! A plain structure: it never waits itself and never asks the clock. Coming and leaving costs O(log n).

mod band;
mod promises;
mod sizes;
mod slab;

pub use sizes::Sizes;
pub use slab::{Slab, Ticket};

use crate::{
    ids::{ModelName, TenantId, Tier},
    units::Tokens,
};
use band::{Band, Place};
use std::{collections::BTreeMap, time::Duration};
use tokio::time::Instant;

/// A waiting request.
#[derive(Debug)]
pub struct Waiting<T> {
    /// The model.
    pub model: ModelName,
    /// Who pays.
    pub tenant: TenantId,
    /// Share of its tier that the tenant is due, relative to others'; above 0.
    pub weight: f64,
    /// How urgent.
    pub tier: Tier,
    /// When it is of use no more; what is due first goes first within its tenant.
    pub due: Instant,
    /// When it came, as a running number: decides between equals.
    pub arrival: u64,
    /// When it came.
    pub entered: Instant,
    /// What it takes.
    pub work: Work,
    /// What to do with its turn.
    pub item: T,
}

/// What a request takes.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Work {
    /// Tokens that its tenant is charged in the order of turns: input, and output at its weight.
    pub charge: f64,
    /// Prefill, seconds, on the server that has most of it.
    pub prefill_s: f64,
    /// Room, KV tokens.
    pub room: Tokens,
}

/// Why nobody more can wait.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Full {
    /// The queue as a whole.
    Queue,
    /// This tenant's share of it.
    Tenant,
}

/// What the operator allows.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Requests in all lanes together.
    pub length_max: usize,
    /// Requests of one tenant.
    pub tenant_max: usize,
    /// After this wait a request of the standard tier goes with the interactive ones.
    pub standard_ages: Duration,
    /// After this wait a request of the batch tier goes with the standard ones.
    pub batch_ages: Duration,
}

/// Who goes before a request, at its tenant's own share.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Ahead {
    /// Requests.
    pub count: usize,
    /// Their prefill.
    pub prefill: Sizes,
    /// Their room, KV tokens.
    pub room: f64,
}

/// The queue.
#[derive(Debug)]
pub struct Queue<T> {
    lanes: Vec<Lane>,
    slab: Slab<Held<T>>,
    tenants: BTreeMap<TenantId, usize>,
    arrivals: u64,
    limits: Limits,
}

/// The requests for one model.
#[derive(Debug)]
struct Lane {
    model: ModelName,
    bands: [Band; Tier::ALL.len()],
}

#[derive(Debug)]
struct Held<T> {
    waiting: Waiting<T>,
    place: Place,
}

impl<T> Queue<T> {
    /// An empty queue.
    pub const fn new(limits: Limits) -> Self {
        Self { lanes: Vec::new(), slab: Slab::new(), tenants: BTreeMap::new(), arrivals: 0, limits }
    }

    /// Changes the limits. Who waits already stays.
    pub const fn set_limits(&mut self, limits: Limits) {
        self.limits = limits;
    }

    /// The next arrival number. A request that must wait again keeps its first one.
    pub const fn arrive(&mut self) -> u64 {
        self.arrivals += 1;
        self.arrivals
    }

    /// Whether a tenant may wait with one more.
    ///
    /// # Errors
    /// No room.
    pub fn room_for(&self, tenant: &TenantId) -> Result<(), Full> {
        if self.len() >= self.limits.length_max {
            return Err(Full::Queue);
        }
        let mine = self.tenants.get(tenant).copied().unwrap_or_default();
        if mine >= self.limits.tenant_max { Err(Full::Tenant) } else { Ok(()) }
    }

    /// Puts a request in its lane.
    ///
    /// # Errors
    /// No room; nothing changed and the item is dropped.
    pub fn push(&mut self, waiting: Waiting<T>) -> Result<Ticket, Full> {
        self.room_for(&waiting.tenant)?;
        Ok(self.put_back(waiting))
    }

    /// Puts a request in its lane that had its turn and lost it through no doing of its own: a queue that
    /// filled up behind it is no reason to fail it. There are never more of these than had a turn.
    pub fn put_back(&mut self, waiting: Waiting<T>) -> Ticket {
        match self.tenants.get_mut(&waiting.tenant) {
            Some(count) => *count += 1,
            None => _ = self.tenants.insert(waiting.tenant.clone(), 1),
        }
        let lane = self.lane_or_new(&waiting.model);
        let tier = waiting.tier;
        let place = Place {
            lane,
            band: tier as usize,
            line: 0,
            due: waiting.due,
            arrival: waiting.arrival,
        };
        let ages = self.ages(tier, waiting.entered);
        let ticket = self.slab.insert(Held { waiting, place });
        self.join(ticket, ages);
        ticket
    }

    /// Takes a request out, wherever it stands. `None` when it is not there any more.
    pub fn remove(&mut self, ticket: Ticket) -> Option<Waiting<T>> {
        let held = self.slab.remove(ticket)?;
        if let Some(band) = self.band_mut(held.place) {
            band.remove(held.place, held.waiting.work);
        }
        if let Some(count) = self.tenants.get_mut(&held.waiting.tenant) {
            *count -= 1;
            if *count == 0 {
                self.tenants.remove(&held.waiting.tenant);
            }
        }
        Some(held.waiting)
    }

    /// A request that waits.
    pub fn get(&self, ticket: Ticket) -> Option<&Waiting<T>> {
        Some(&self.slab.get(ticket)?.waiting)
    }

    /// A request that waits.
    pub fn get_mut(&mut self, ticket: Ticket) -> Option<&mut T> {
        Some(&mut self.slab.get_mut(ticket)?.waiting.item)
    }

    /// The tier that a request goes with now.
    pub fn tier_now(&self, ticket: Ticket) -> Option<Tier> {
        Tier::ALL.get(self.slab.get(ticket)?.place.band).copied()
    }

    /// Lifts those who waited long enough.
    pub fn age(&mut self, now: Instant) {
        for lane in 0..self.lanes.len() {
            // From above, so that nobody is lifted twice at once.
            for (band, above) in
                [(Tier::Standard, Tier::Interactive), (Tier::Batch, Tier::Standard)]
            {
                while let Some(ticket) = self.next_aged(lane, band, now) {
                    self.lift(ticket, above, now);
                }
            }
        }
    }

    /// Writes down whose turn is next in a tier of a lane, in order, at most `most`. Of one tenant no more than its
    /// part of that, so that one whose requests are stuck hides nobody.
    pub fn next(&mut self, lane: usize, tier: Tier, most: usize, order: &mut Vec<Ticket>) {
        order.clear();
        let band = self.lanes.get_mut(lane).and_then(|lane| lane.bands.get_mut(tier as usize));
        if let Some(band) = band {
            band.next(most, order);
        }
    }

    /// Lanes, with or without anybody in them.
    pub const fn lanes(&self) -> usize {
        self.lanes.len()
    }

    /// Models with somebody waiting.
    pub fn models(&self) -> impl Iterator<Item = &ModelName> {
        self.lanes.iter().filter(|lane| !lane.is_idle()).map(|lane| &lane.model)
    }

    /// True when nobody waits for this model.
    pub fn is_idle(&self, model: &ModelName) -> bool {
        self.lanes.iter().find(|lane| lane.model == *model).is_none_or(Lane::is_idle)
    }

    /// Charges a tenant for what it gets, or gives back (negative). The one who got least goes first.
    pub fn charge(
        &mut self,
        model: &ModelName,
        tier: Tier,
        tenant: &TenantId,
        weight: f64,
        tokens: f64,
    ) {
        let lane = self.lane_or_new(model);
        if let Some(band) =
            self.lanes.get_mut(lane).and_then(|lane| lane.bands.get_mut(tier as usize))
        {
            band.charge(tenant, weight, tokens);
        }
    }

    /// A request came that is let in: what comes tells others how long they will wait.
    pub fn came(
        &mut self,
        (model, tier): (&ModelName, Tier),
        (tenant, weight): (&TenantId, f64),
        prefill_s: f64,
        now: Instant,
    ) {
        let lane = self.lane_or_new(model);
        if let Some(band) =
            self.lanes.get_mut(lane).and_then(|lane| lane.bands.get_mut(tier as usize))
        {
            band.came(tenant, weight, prefill_s, now);
        }
    }

    /// Prefill that comes of a request's tenant in its tier, of those smaller than it: seconds a second.
    pub fn comes_smaller<U>(&self, waiting: &Waiting<U>, now: Instant) -> f64 {
        let lane = self.lanes.iter().find(|lane| lane.model == waiting.model);
        let band = lane.and_then(|lane| lane.bands.get(waiting.tier as usize));
        band.map_or(0.0, |band| band.comes_smaller(&waiting.tenant, waiting.work.prefill_s, now))
    }

    /// Promises a request that is sent away when it can be done: seconds from now. `servers` do a second of
    /// prefill a second each; what is ahead of it and what others of its urgency bring goes before.
    pub fn promise<U>(&mut self, waiting: &Waiting<U>, servers: f64, now: Instant) -> f64 {
        let ahead = self.ahead(waiting);
        // In the same measure as its own work.
        let by_room =
            ahead.room / (waiting.work.room.get() as f64).max(1.0) * waiting.work.prefill_s;
        let ahead_s = ahead.prefill.total_s().max(by_room);
        let lane = self.lane_or_new(&waiting.model);
        let Some(lane) = self.lanes.get_mut(lane) else { return 1.0 };
        let above = lane.bands.iter().take(waiting.tier as usize);
        let servers = servers - above.map(|band| band.comes(now)).sum::<f64>();
        let Some(band) = lane.bands.get_mut(waiting.tier as usize) else { return 1.0 };
        let (others, share) = band.others(&waiting.tenant, waiting.weight, now);
        let rate = (servers - others).max(servers * share);
        let promises = band.promises(&waiting.tenant, waiting.weight);
        promises.map_or(1.0, |of| of.promise(ahead_s, waiting.work.prefill_s, rate, now))
    }

    /// A request came again. Whether it was told to for about now.
    pub fn claim<U>(&mut self, waiting: &Waiting<U>, now: Instant) -> bool {
        let lane = self.lane_or_new(&waiting.model);
        let band =
            self.lanes.get_mut(lane).and_then(|lane| lane.bands.get_mut(waiting.tier as usize));
        let of = band.and_then(|band| band.promises(&waiting.tenant, waiting.weight));
        of.is_some_and(|of| of.claim(waiting.work.prefill_s, now))
    }

    /// Prefill of a request's tenant that was sent away and may come again within a time, seconds.
    pub fn promised_s<U>(&self, waiting: &Waiting<U>, within: Duration, now: Instant) -> f64 {
        let lane = self.lanes.iter().find(|lane| lane.model == waiting.model);
        let band = lane.and_then(|lane| lane.bands.get(waiting.tier as usize));
        band.map_or(0.0, |band| band.promised_s(&waiting.tenant, within, now))
    }

    /// Who would go before a request that comes now.
    pub fn ahead<U>(&self, waiting: &Waiting<U>) -> Ahead {
        let Some(lane) = self.lanes.iter().find(|lane| lane.model == waiting.model) else {
            return Ahead::default();
        };
        let mut ahead = Ahead::default();
        for (at, band) in lane.bands.iter().enumerate().take(waiting.tier as usize + 1) {
            let more = match at == waiting.tier as usize {
                false => band.all(),
                true => {
                    let place = (waiting.due, waiting.arrival);
                    let works = |ticket| self.slab.get(ticket).map(|held| held.waiting.work);
                    band.ahead(&waiting.tenant, waiting.weight, waiting.work, place, works)
                }
            };
            ahead.count += more.count;
            ahead.prefill.add_part(&more.prefill, 1.0);
            ahead.room += more.room;
        }
        ahead
    }

    /// Where a request is the last one that would go: of the tenant that fills most of the queue, in its
    /// least urgent tier. For whoever has less than an equal part and finds the queue full.
    pub fn outermost(&self, but: &TenantId) -> Option<Ticket> {
        let mine = self.tenants.get(but).copied().unwrap_or_default();
        let (largest, count) = self.tenants.iter().max_by_key(|(_, count)| **count)?;
        let equal = self.limits.length_max / (self.tenants.len() + usize::from(mine == 0)).max(1);
        if mine >= equal || *count <= equal || largest == but {
            return None;
        }
        let last = |tier: usize| {
            let bands = self.lanes.iter().filter_map(move |lane| lane.bands.get(tier));
            bands.filter_map(|band| band.last_of(largest)).max_by_key(|(place, _)| *place)
        };
        (0..Tier::ALL.len()).rev().find_map(last).map(|(_, ticket)| ticket)
    }

    /// Requests waiting, in all lanes.
    pub const fn len(&self) -> usize {
        self.slab.len()
    }

    /// True when nobody waits.
    pub const fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Requests waiting, by tier.
    pub fn by_tier(&self) -> BTreeMap<Tier, usize> {
        let of = |tier: Tier| {
            let bands = self.lanes.iter().filter_map(|lane| lane.bands.get(tier as usize));
            bands.map(|band| band.all().count).sum()
        };
        Tier::ALL.into_iter().map(|tier| (tier, of(tier))).collect()
    }

    fn lane_or_new(&mut self, model: &ModelName) -> usize {
        if let Some(at) = self.lanes.iter().position(|lane| lane.model == *model) {
            return at;
        }
        self.lanes.push(Lane { model: model.clone(), bands: Default::default() });
        self.lanes.len() - 1
    }

    fn band_mut(&mut self, place: Place) -> Option<&mut Band> {
        self.lanes.get_mut(place.lane)?.bands.get_mut(place.band)
    }

    /// When a request of a tier is lifted, if it ever is.
    fn ages(&self, tier: Tier, since: Instant) -> Option<Instant> {
        match tier {
            Tier::System | Tier::Interactive => None,
            Tier::Standard => Some(since + self.limits.standard_ages),
            Tier::Batch => Some(since + self.limits.batch_ages),
        }
    }

    fn join(&mut self, ticket: Ticket, ages: Option<Instant>) {
        let Some(held) = self.slab.get_mut(ticket) else { return };
        let place = held.place;
        let Some(band) =
            self.lanes.get_mut(place.lane).and_then(|lane| lane.bands.get_mut(place.band))
        else {
            return;
        };
        held.place.line =
            band.push(&held.waiting.tenant, held.waiting.weight, held.waiting.work, place, ticket);
        if let Some(at) = ages {
            band.ages(at, ticket);
            let slab = &self.slab;
            band.forget_aged(|ticket| {
                slab.get(ticket).is_some_and(|held| held.place.band == place.band)
            });
        }
    }

    fn next_aged(&mut self, lane: usize, tier: Tier, now: Instant) -> Option<Ticket> {
        let band = self.lanes.get_mut(lane)?.bands.get_mut(tier as usize)?;
        let slab = &self.slab;
        band.next_aged(now, |ticket| {
            slab.get(ticket).is_some_and(|held| held.place.band == tier as usize)
        })
    }

    fn lift(&mut self, ticket: Ticket, above: Tier, now: Instant) {
        let Some(held) = self.slab.get_mut(ticket) else { return };
        let (place, work) = (held.place, held.waiting.work);
        held.place.band = above as usize;
        if let Some(band) = self.band_mut(place) {
            band.remove(place, work);
        }
        let ages = self.ages(above, now);
        self.join(ticket, ages);
    }
}

impl Lane {
    fn is_idle(&self) -> bool {
        self.bands.iter().all(Band::is_idle)
    }
}

#[cfg(test)]
mod tests;
