//! One tier of one model: lines of tenants, and whose line is next.
//!
//! Fairness is that of the virtual token counter (Sheng et al., "Fairness in Serving Large Language Models",
//! OSDI 2024): each tenant's counter grows by what it is given over its weight, and the line with the
//! smallest goes next. Who comes back from idle starts no lower than the smallest of those who wait, so that
//! nobody saves up turns.

use super::{Ahead, Sizes, Ticket, Work, promises::Promises, sizes::Stream};
use crate::ids::TenantId;
use std::{
    collections::{BTreeMap, HashMap, VecDeque},
    time::Duration,
};
use tokio::time::Instant;

/// Requests of the own line that are summed one by one; of a longer line the rest is taken as its mean.
const SUMMED_MAX: usize = 256;

/// Where a waiting request stands.
#[derive(Clone, Copy, Debug)]
pub(super) struct Place {
    pub lane: usize,
    pub band: usize,
    pub line: usize,
    pub due: Instant,
    pub arrival: u64,
}

#[derive(Debug, Default)]
pub(super) struct Band {
    /// One for each tenant that ever waited here or was charged; tenants are configured, so they are few.
    lines: Vec<Line>,
    by_tenant: HashMap<TenantId, usize>,
    length: usize,
    /// Prefill and room of all.
    prefill: Sizes,
    room: f64,
    /// Lines in which somebody waits.
    waiting: Vec<usize>,
    /// The counter of the line that was served last: where newcomers start when nobody waits.
    level: f64,
    /// When requests are lifted, and which, nearly in order; those that left are passed over.
    aging: VecDeque<(Instant, Ticket)>,
    /// Lines with requests, by counter; made anew at each look.
    order: Vec<(f64, usize)>,
}

#[derive(Debug)]
struct Line {
    tenant: TenantId,
    weight: f64,
    counter: f64,
    requests: BTreeMap<(Instant, u64), Ticket>,
    charge: f64,
    prefill: Sizes,
    room: f64,
    /// What came of late.
    comes: Stream,
    /// What was sent away and will come again.
    promises: Promises,
}

impl Band {
    pub(super) const fn is_idle(&self) -> bool {
        self.length == 0
    }

    pub(super) const fn all(&self) -> Ahead {
        Ahead { count: self.length, prefill: self.prefill, room: self.room }
    }

    /// Joins the line of its tenant; gives the line's number.
    pub(super) fn push(
        &mut self,
        tenant: &TenantId,
        weight: f64,
        work: Work,
        place: Place,
        ticket: Ticket,
    ) -> usize {
        let start = self.start();
        let at = self.line(tenant, weight);
        self.length += 1;
        if let Some(line) = self.lines.get_mut(at) {
            if line.requests.is_empty() {
                line.counter = line.counter.max(start);
                self.waiting.push(at);
            }
            self.prefill.add(work.prefill_s, 1.0);
            self.room += work.room.get() as f64;
            line.requests.insert((place.due, place.arrival), ticket);
            line.add(work, 1.0);
        }
        at
    }

    pub(super) fn remove(&mut self, place: Place, work: Work) {
        let Some(line) = self.lines.get_mut(place.line) else { return };
        if line.requests.remove(&(place.due, place.arrival)).is_none() {
            return;
        }
        self.length -= 1;
        line.add(work, -1.0);
        self.prefill.add(work.prefill_s, -1.0);
        self.room -= work.room.get() as f64;
        if line.requests.is_empty() {
            self.waiting.retain(|at| *at != place.line);
            (line.charge, line.prefill, line.room) = (0.0, Sizes::default(), 0.0);
            if self.length == 0 {
                self.level = self.level.max(line.counter);
                (self.prefill, self.room) = (Sizes::default(), 0.0);
            }
        }
    }

    pub(super) fn charge(&mut self, tenant: &TenantId, weight: f64, tokens: f64) {
        let start = self.start();
        let at = self.line(tenant, weight);
        let Some(line) = self.lines.get_mut(at) else { return };
        // What goes past the queue counts as if it had waited for no time.
        if tokens > 0.0 && line.requests.is_empty() {
            line.counter = line.counter.max(start);
        }
        line.counter += tokens / line.weight;
        if tokens > 0.0 && self.length == 0 {
            self.level = self.level.max(line.counter);
        }
    }

    /// A request of this tenant came, with so much prefill.
    pub(super) fn came(&mut self, tenant: &TenantId, weight: f64, prefill_s: f64, now: Instant) {
        let at = self.line(tenant, weight);
        if let Some(line) = self.lines.get_mut(at) {
            line.comes.came(prefill_s, now);
        }
    }

    /// Prefill of this tenant's requests that comes of late, of those smaller than this: seconds a second.
    pub(super) fn comes_smaller(&self, tenant: &TenantId, prefill_s: f64, now: Instant) -> f64 {
        let line = self.of(tenant);
        line.map_or(0.0, |line| line.comes.smaller(prefill_s, now))
    }

    /// What comes of others than this tenant, seconds of prefill a second, and this tenant's share of the tier.
    pub(super) fn others(&self, tenant: &TenantId, weight: f64, now: Instant) -> (f64, f64) {
        let others = self.lines.iter().filter(|line| line.tenant != *tenant);
        let (mut comes, mut weights) = (0.0, weight);
        for line in others {
            let rate = line.comes.rate(now);
            comes += rate;
            weights += if rate > 0.01 || !line.requests.is_empty() { line.weight } else { 0.0 };
        }
        (comes, weight / weights)
    }

    /// All that comes, seconds of prefill a second.
    pub(super) fn comes(&self, now: Instant) -> f64 {
        self.lines.iter().map(|line| line.comes.rate(now)).sum()
    }

    /// What a tenant was promised.
    pub(super) fn promises(&mut self, tenant: &TenantId, weight: f64) -> Option<&mut Promises> {
        let at = self.line(tenant, weight);
        self.lines.get_mut(at).map(|line| &mut line.promises)
    }

    /// Work of a tenant that was promised and may come within a time, seconds.
    pub(super) fn promised_s(&self, tenant: &TenantId, within: Duration, now: Instant) -> f64 {
        let line = self.of(tenant);
        line.map_or(0.0, |line| line.promises.due_s(within, now))
    }

    /// Appends the tickets that are next, in order.
    pub(super) fn next(&mut self, most: usize, order: &mut Vec<Ticket>) {
        let room = most.saturating_sub(order.len());
        if room == 0 || self.length == 0 {
            return;
        }
        self.order.clear();
        let waiting = self.waiting.iter().filter_map(|at| Some((*at, self.lines.get(*at)?)));
        self.order.extend(waiting.map(|(at, line)| (line.counter, at)));
        self.order.sort_unstable_by(|a, b| a.0.total_cmp(&b.0).then(a.1.cmp(&b.1)));
        let each = (room / self.order.len()).max(1);
        for (_, at) in &self.order {
            let Some(line) = self.lines.get(*at) else { continue };
            let left = most.saturating_sub(order.len());
            order.extend(line.requests.values().take(each.min(left)));
            if left == 0 {
                return;
            }
        }
    }

    /// Who goes before a request of this tenant: of its own line those due before it, of the others what
    /// fairness gives them until its counter is reached.
    pub(super) fn ahead(
        &self,
        tenant: &TenantId,
        weight: f64,
        own: Work,
        place: (Instant, u64),
        works: impl Fn(Ticket) -> Option<Work>,
    ) -> Ahead {
        let mine = self.of(tenant);
        let (mut ahead, mut charge) =
            mine.map_or((Ahead::default(), 0.0), |line| line.before(place, works));
        charge += own.charge;
        let start = self.start();
        let counter = match mine {
            Some(line) if !line.requests.is_empty() => line.counter,
            Some(line) => line.counter.max(start),
            None => start,
        };
        let level = counter + charge / weight.max(f64::MIN_POSITIVE);
        let waiting = self.waiting.iter().filter_map(|at| self.lines.get(*at));
        for line in waiting.filter(|line| line.tenant != *tenant && line.charge > 0.0) {
            let part = ((level - line.counter) * line.weight / line.charge).clamp(0.0, 1.0);
            ahead.count += (part * line.requests.len() as f64).round() as usize;
            ahead.prefill.add_part(&line.prefill, part);
            ahead.room += part * line.room;
        }
        ahead
    }

    /// The last request of a tenant here, and where it stands.
    pub(super) fn last_of(&self, tenant: &TenantId) -> Option<((Instant, u64), Ticket)> {
        let line = self.of(tenant)?;
        line.requests.last_key_value().map(|(place, ticket)| (*place, *ticket))
    }

    pub(super) fn ages(&mut self, at: Instant, ticket: Ticket) {
        self.aging.push_back((at, ticket));
    }

    /// Forgets those that left, once they are more than those that wait.
    pub(super) fn forget_aged(&mut self, waits: impl Fn(Ticket) -> bool) {
        if self.aging.len() > 2 * self.length + 64 {
            self.aging.retain(|(_, ticket)| waits(*ticket));
        }
    }

    /// The next one that is to be lifted by now.
    pub(super) fn next_aged(
        &mut self,
        now: Instant,
        waits: impl Fn(Ticket) -> bool,
    ) -> Option<Ticket> {
        while let Some((at, ticket)) = self.aging.front().copied() {
            let here = waits(ticket);
            if here && at > now {
                return None;
            }
            self.aging.pop_front();
            if here {
                return Some(ticket);
            }
        }
        None
    }

    /// Where the counter of a newcomer starts.
    fn start(&self) -> f64 {
        let waiting = self.waiting.iter().filter_map(|at| self.lines.get(*at));
        waiting.map(|line| line.counter).reduce(f64::min).unwrap_or(self.level)
    }

    fn of(&self, tenant: &TenantId) -> Option<&Line> {
        self.lines.get(*self.by_tenant.get(tenant)?)
    }

    fn line(&mut self, tenant: &TenantId, weight: f64) -> usize {
        let weight = if weight.is_finite() && weight > 0.0 { weight } else { 1.0 };
        if let Some(at) = self.by_tenant.get(tenant).copied() {
            if let Some(line) = self.lines.get_mut(at) {
                line.weight = weight;
            }
            return at;
        }
        self.by_tenant.insert(tenant.clone(), self.lines.len());
        self.lines.push(Line {
            tenant: tenant.clone(),
            weight,
            counter: self.level,
            requests: BTreeMap::new(),
            charge: 0.0,
            prefill: Sizes::default(),
            room: 0.0,
            comes: Stream::default(),
            promises: Promises::default(),
        });
        self.lines.len() - 1
    }
}

impl Line {
    fn add(&mut self, work: Work, sign: f64) {
        self.charge += sign * work.charge;
        self.prefill.add(work.prefill_s, sign);
        self.room += sign * work.room.get() as f64;
    }

    /// What is due before a place, and its charge.
    fn before(
        &self,
        place: (Instant, u64),
        works: impl Fn(Ticket) -> Option<Work>,
    ) -> (Ahead, f64) {
        let mut before =
            Ahead { count: self.requests.len(), prefill: self.prefill, room: self.room };
        let mut charge = self.charge;
        let mut behind = self.requests.range(place..);
        for (_, ticket) in behind.by_ref().take(SUMMED_MAX) {
            let Some(work) = works(*ticket) else { continue };
            before.count -= 1;
            before.prefill.add(work.prefill_s, -1.0);
            before.room -= work.room.get() as f64;
            charge -= work.charge;
        }
        if behind.next().is_some() {
            // Too many to add up: as many of the rest are taken to be before it as are behind it.
            let half = 0.5;
            before.count = (before.count as f64 * half) as usize;
            before.prefill.fade(half);
            before.room *= half;
            charge *= half;
        }
        before.room = before.room.max(0.0);
        (before, charge.max(0.0))
    }
}
