//! Who waits for a turn: a bounded queue in lanes per model, ordered by tier, then arrival.
//!
//! A plain structure: it never waits itself and never asks the clock. Leaving costs O(log n).

use crate::{
    ids::{ModelName, TenantId, Tier},
    units::Tokens,
};
use std::{
    collections::{BTreeMap, HashMap},
    ops::Bound,
};

/// Where a request stands in its lane. Smaller goes first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Place {
    /// How urgent.
    pub tier: Tier,
    /// When it came, as a running number.
    pub arrival: u64,
}

/// Finds a waiting request again.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ticket {
    /// Its lane.
    pub model: ModelName,
    /// Its place in it.
    pub place: Place,
}

/// A waiting request.
#[derive(Debug)]
pub struct Waiting<T> {
    /// Who pays.
    pub tenant: TenantId,
    /// Room it needs, in KV tokens.
    pub tokens: Tokens,
    /// What to do with its turn.
    pub item: T,
}

/// Why nobody more can wait.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Full {
    /// The queue as a whole.
    Queue,
    /// This tenant's share of it.
    Tenant,
}

/// Limits of the queue.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Requests in all lanes together.
    pub length_max: usize,
    /// Requests of one tenant.
    pub tenant_max: usize,
}

/// The queue.
#[derive(Debug)]
pub struct Queue<T> {
    lanes: HashMap<ModelName, BTreeMap<Place, Waiting<T>>>,
    tenants: HashMap<TenantId, usize>,
    length: usize,
    arrivals: u64,
    limits: Limits,
}

impl<T> Queue<T> {
    /// An empty queue.
    pub fn new(limits: Limits) -> Self {
        Self { lanes: HashMap::new(), tenants: HashMap::new(), length: 0, arrivals: 0, limits }
    }

    /// Changes the limits. Who waits already stays.
    pub fn set_limits(&mut self, limits: Limits) {
        self.limits = limits;
    }

    /// The next arrival number. A request that must wait again keeps its first one.
    pub fn arrive(&mut self) -> u64 {
        self.arrivals += 1;
        self.arrivals
    }

    /// Puts a request in its lane.
    ///
    /// # Errors
    /// No room; nothing changed and the item is dropped.
    pub fn push(&mut self, ticket: &Ticket, waiting: Waiting<T>) -> Result<(), Full> {
        if self.length >= self.limits.length_max {
            return Err(Full::Queue);
        }
        let mine = self.tenants.get(&waiting.tenant).copied().unwrap_or_default();
        if mine >= self.limits.tenant_max {
            return Err(Full::Tenant);
        }
        self.put_back(ticket, waiting);
        Ok(())
    }

    /// Puts a request in its lane that had its turn and lost it through no doing of its own: a queue that
    /// filled up behind it is no reason to fail it. There are never more of these than had a turn.
    pub fn put_back(&mut self, ticket: &Ticket, waiting: Waiting<T>) {
        *self.tenants.entry(waiting.tenant.clone()).or_default() += 1;
        self.length += 1;
        self.lanes.entry(ticket.model.clone()).or_default().insert(ticket.place, waiting);
    }

    /// Takes a request out, wherever it stands. `None` when it is not there any more.
    pub fn remove(&mut self, ticket: &Ticket) -> Option<Waiting<T>> {
        let lane = self.lanes.get_mut(&ticket.model)?;
        let waiting = lane.remove(&ticket.place)?;
        if lane.is_empty() {
            self.lanes.remove(&ticket.model);
        }
        self.length -= 1;
        if let Some(count) = self.tenants.get_mut(&waiting.tenant) {
            *count -= 1;
            if *count == 0 {
                self.tenants.remove(&waiting.tenant);
            }
        }
        Some(waiting)
    }

    /// The request next behind a place in a lane, or the first one. Costs O(log n).
    pub fn behind(&self, model: &ModelName, place: Option<Place>) -> Option<(Place, &Waiting<T>)> {
        let from = place.map_or(Bound::Unbounded, Bound::Excluded);
        let (place, waiting) = self.lanes.get(model)?.range((from, Bound::Unbounded)).next()?;
        Some((*place, waiting))
    }

    /// Models with somebody waiting.
    pub fn models(&self) -> Vec<ModelName> {
        self.lanes.keys().cloned().collect()
    }

    /// True when nobody waits for this model.
    pub fn is_idle(&self, model: &ModelName) -> bool {
        !self.lanes.contains_key(model)
    }

    /// Requests in this lane that go before this place, and the room they need.
    pub fn ahead(&self, model: &ModelName, place: Place) -> (usize, Tokens) {
        let Some(lane) = self.lanes.get(model) else { return (0, Tokens::ZERO) };
        let mut tokens = Tokens::ZERO;
        let mut count = 0;
        for (_, waiting) in lane.range(..place) {
            tokens = tokens.plus(waiting.tokens);
            count += 1;
        }
        (count, tokens)
    }

    /// Requests waiting, in all lanes.
    pub fn len(&self) -> usize {
        self.length
    }

    /// True when nobody waits.
    pub fn is_empty(&self) -> bool {
        self.length == 0
    }

    /// Requests waiting, by tier.
    pub fn by_tier(&self) -> BTreeMap<Tier, usize> {
        let mut counts: BTreeMap<Tier, usize> =
            Tier::ALL.into_iter().map(|tier| (tier, 0)).collect();
        for place in self.lanes.values().flat_map(BTreeMap::keys) {
            *counts.entry(place.tier).or_default() += 1;
        }
        counts
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn queue(length_max: usize, tenant_max: usize) -> Queue<u32> {
        Queue::new(Limits { length_max, tenant_max })
    }

    fn push(queue: &mut Queue<u32>, tier: Tier, tenant: &str, item: u32) -> Result<Ticket, Full> {
        let arrival = queue.arrive();
        let ticket = Ticket { model: "m".into(), place: Place { tier, arrival } };
        let waiting = Waiting { tenant: tenant.into(), tokens: Tokens(10), item };
        queue.push(&ticket, waiting).map(|()| ticket)
    }

    #[test]
    fn tier_goes_before_arrival() {
        let mut queue = queue(10, 10);
        push(&mut queue, Tier::Batch, "a", 1).unwrap();
        push(&mut queue, Tier::Standard, "a", 2).unwrap();
        push(&mut queue, Tier::Interactive, "a", 3).unwrap();
        push(&mut queue, Tier::Interactive, "a", 4).unwrap();
        let newcomer = Place { tier: Tier::Standard, arrival: u64::MAX };
        assert_eq!(queue.ahead(&"m".into(), newcomer), (3, Tokens(30)));
        // A retried request keeps its arrival: nobody who came later is ahead of it.
        let retried = Place { tier: Tier::Standard, arrival: 0 };
        assert_eq!(queue.ahead(&"m".into(), retried), (2, Tokens(20)));
        let mut order = Vec::new();
        while let Some((place, _)) = queue.behind(&"m".into(), None) {
            order.push(queue.remove(&Ticket { model: "m".into(), place }).unwrap().item);
        }
        assert_eq!(order, [3, 4, 2, 1]);
        assert!(queue.is_empty() && queue.is_idle(&"m".into()));
    }

    #[test]
    fn a_lane_can_be_walked_in_order_while_some_leave() {
        let mut queue = queue(10, 10);
        let third = push(&mut queue, Tier::Batch, "a", 3).unwrap();
        let first = push(&mut queue, Tier::Interactive, "a", 1).unwrap();
        let second = push(&mut queue, Tier::Standard, "a", 2).unwrap();
        let model = "m".into();
        let next =
            |queue: &Queue<u32>, place| queue.behind(&model, place).map(|(p, w)| (p, w.item));
        assert_eq!(next(&queue, None), Some((first.place, 1)));
        assert_eq!(next(&queue, Some(first.place)), Some((second.place, 2)));
        queue.remove(&second).unwrap();
        assert_eq!(next(&queue, Some(second.place)), Some((third.place, 3)));
        assert_eq!(next(&queue, Some(third.place)), None);
    }

    #[test]
    fn who_lost_its_turn_comes_back_to_a_full_queue() {
        let mut queue = queue(2, 2);
        let place = Place { tier: Tier::Standard, arrival: queue.arrive() };
        push(&mut queue, Tier::Standard, "a", 1).unwrap();
        push(&mut queue, Tier::Standard, "a", 2).unwrap();
        let waiting = Waiting { tenant: "a".into(), tokens: Tokens(10), item: 0 };
        queue.put_back(&Ticket { model: "m".into(), place }, waiting);
        assert_eq!(queue.len(), 3);
        assert_eq!(queue.behind(&"m".into(), None).unwrap().1.item, 0, "in front, where it was");
        assert_eq!(push(&mut queue, Tier::Standard, "b", 4), Err(Full::Queue));
    }

    #[test]
    fn one_tenant_cannot_fill_the_queue() {
        let mut queue = queue(3, 2);
        push(&mut queue, Tier::Standard, "greedy", 1).unwrap();
        let second = push(&mut queue, Tier::Standard, "greedy", 2).unwrap();
        assert_eq!(push(&mut queue, Tier::Standard, "greedy", 3), Err(Full::Tenant));
        push(&mut queue, Tier::Standard, "other", 4).unwrap();
        assert_eq!(push(&mut queue, Tier::Standard, "third", 5), Err(Full::Queue));
        queue.remove(&second).unwrap();
        push(&mut queue, Tier::Standard, "greedy", 6).unwrap();
        assert!(queue.remove(&second).is_none());
    }

    proptest! {
        /// Length, tenant counts and tiers always add up, whatever comes and leaves.
        #[test]
        fn counts_add_up(steps in prop::collection::vec((0usize..4, 0u32..3, any::<bool>(), 0usize..20), 0..60)) {
            let mut queue = queue(20, 9);
            let mut tickets = Vec::new();
            for (tier, tenant, leaves, which) in steps {
                if leaves && !tickets.is_empty() {
                    let ticket = tickets.remove(which % tickets.len());
                    prop_assert!(queue.remove(&ticket).is_some());
                } else if let Ok(ticket) = push(&mut queue, Tier::ALL[tier], &tenant.to_string(), 0) {
                    tickets.push(ticket);
                }
                prop_assert_eq!(queue.len(), tickets.len());
                prop_assert_eq!(queue.by_tier().values().sum::<usize>(), tickets.len());
                prop_assert_eq!(queue.tenants.values().sum::<usize>(), tickets.len());
                prop_assert!(queue.tenants.values().all(|count| (1..=9).contains(count)));
            }
        }
    }
}
