//! How long a request will wait, and whether that is too long.

use super::{
    choice::{PREFILL_MARGIN, enough},
    request::{Request, need},
    room::{Bar, Room},
    scheduler::Scheduler,
    seat::Known,
};
use crate::{
    queue::{Waiting, Work},
    units::Tokens,
};
use std::time::Duration;
use tokio::time::Instant;

/// Share of what was promised that newcomers step back for: more would send nearly all of them away once,
/// less would leave no room for those who come again.
const PROMISED: f64 = 0.4;

/// Servers whose own debt counts; of more, a few do not matter.
const BUSY_MAX: usize = 64;
/// What a request may expect.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Outlook {
    /// Wait for its turn, seconds.
    pub wait_s: f64,
    /// From its turn to its first token, seconds.
    pub serve_s: f64,
    /// Of that its own prefill, on the server that has most of it, seconds.
    pub prefill_s: f64,
    /// Requests that go before it.
    pub ahead: usize,
}

/// Why a request is too late.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Late {
    /// Expected time to its first token, from now, seconds.
    pub ttft_s: f64,
    /// What is left until its deadline, seconds.
    pub left_s: f64,
    /// Its prompt alone takes longer than its deadline allows: it need not come again like this.
    pub hopeless: bool,
}

impl Outlook {
    /// Time to the first token, seconds.
    pub fn ttft_s(&self) -> f64 {
        self.wait_s + self.serve_s
    }
}

impl<T> Scheduler<T> {
    /// What a request that comes now may expect, at its tenant's own share of what the servers do.
    pub fn outlook(&self, request: &Request, known: &mut Known, now: Instant) -> Outlook {
        let need = need(request, request.tier);
        let enough = enough(&self.rooms, need);
        let limit_s = self.rules.debt_limit_s(request.tier);
        let (mut servers, mut open, mut known_costs) = (0.0, false, false);
        let fastest_s = self.fastest_s(request);
        let mut best: Option<(f64, f64)> = None;
        let mut prefill_s = f64::INFINITY;
        let mut full = false;
        let mut busy = [0.0; BUSY_MAX];
        let mut seen = 0;
        for room in self.rooms.iter().filter(|room| room.usable && room.may_take(need)) {
            let weighed = room.weigh(need, known, enough, &self.rules, now);
            servers += self.worth(room, fastest_s, request.input);
            if let Some(place) = busy.get_mut(seen) {
                *place = (weighed.debt_s - limit_s).max(0.0);
                seen += 1;
            }
            open |= weighed.bar.is_none();
            prefill_s = prefill_s.min(weighed.prefill_s);
            full |= weighed.bar == Some(Bar::Full);
            known_costs |= room.flow.is_known();
            let serve_s = weighed.debt_s.min(limit_s) + weighed.prefill_s;
            if best.is_none_or(|(cost, _)| weighed.cost_s < cost) {
                best = Some((weighed.cost_s, serve_s));
            }
        }
        let Some((_, serve_s)) = best else { return Outlook::default() };
        let probe = self.probe(request, prefill_s);
        let ahead = self.queue.ahead(&probe);
        // Who comes again as told goes before newcomers.
        let mut later = 0.0;
        if !request.returned {
            let within = request.due.saturating_duration_since(now).max(Duration::from_secs(1));
            later += PROMISED * self.queue.promised_s(&probe, within, now) / within.as_secs_f64();
        }
        let waits = !open || ahead.count > 0;
        let by_prefill = if waits {
            // Of what comes later, the smaller ones are due before it.
            if request.strict {
                later += self.queue.comes_smaller(&probe, now);
            }
            let servers = servers - later.min(0.95 * servers);
            ahead.prefill.free_in_s(busy.get(..seen).unwrap_or_default(), servers)
        } else {
            0.0
        };
        // What is free in full rooms is too little for whoever waits: room for all of them must come free.
        let by_room = if waits && full {
            let tokens = Tokens((ahead.room + need.tokens.get() as f64) as u64);
            let wait = self.pace(&request.model).and_then(|pace| pace.wait(tokens, now));
            wait.map_or(0.0, |wait| wait.as_secs_f64())
        } else {
            0.0
        };
        let by_prefill = if known_costs { by_prefill } else { 0.0 };
        let serve_s = if known_costs { serve_s } else { 0.0 };
        Outlook { wait_s: by_prefill.max(by_room), serve_s, prefill_s, ahead: ahead.count }
    }

    /// A request's prefill on the fastest server that it may go to, seconds; infinite if there is none.
    fn fastest_s(&self, request: &Request) -> f64 {
        let need = request.need();
        let open = self.rooms.iter().filter(|room| room.usable && room.may_take(need));
        let prefills = open.map(|room| room.flow.costs().prefill_s(request.input, Tokens::ZERO));
        prefills.fold(f64::INFINITY, f64::min)
    }

    /// What a request takes of the servers, seconds of one of them: its prefill, or where room is scarcer, its part of
    /// the time in which room comes free.
    fn work_s(&self, request: &Request, prefill_s: f64, servers: f64, now: Instant) -> f64 {
        let tokens = request.input.plus(request.output);
        let wait = self.pace(&request.model).and_then(|pace| pace.wait(tokens, now));
        wait.map_or(prefill_s, |wait| prefill_s.max(wait.as_secs_f64() * servers))
    }

    /// How much of the fastest server another one is.
    fn worth(&self, room: &Room, fastest_s: f64, input: Tokens) -> f64 {
        let own_s = room.flow.costs().prefill_s(input, Tokens::ZERO).max(1e-9);
        room.weight.clamp(0.05, 1.0) * (fastest_s / own_s).clamp(0.0, 1.0)
    }

    /// A request as the queue would hold it.
    fn probe(&self, request: &Request, prefill_s: f64) -> Waiting<()> {
        Waiting {
            model: request.model.clone(),
            tenant: request.tenant.clone(),
            weight: request.weight,
            tier: request.tier,
            due: request.due,
            arrival: request.arrival.unwrap_or(u64::MAX),
            entered: request.entered,
            work: Work {
                charge: self.charge(request, Tokens::ZERO),
                prefill_s,
                room: request.input.plus(request.output),
            },
            item: (),
        }
    }

    /// When a request that is refused may come again, seconds from now. Room is kept for it then.
    pub fn promise(&mut self, request: &Request, now: Instant) -> f64 {
        let need = need(request, request.tier);
        let prefill_s = self.fastest_s(request);
        if !prefill_s.is_finite() {
            return 1.0;
        }
        let open = self.rooms.iter().filter(|room| room.usable && room.may_take(need));
        let servers = open.map(|room| self.worth(room, prefill_s, request.input)).sum();
        let prefill_s = self.work_s(request, prefill_s, servers, now);
        let probe = self.probe(request, prefill_s);
        self.queue.promise(&probe, servers, now)
    }

    /// A request comes again. Whether it was told to for about now.
    pub(super) fn claimed(&mut self, request: &Request, now: Instant) -> bool {
        let costs = self.rooms.iter().filter(|room| room.usable).map(|room| room.flow.costs());
        let prefill = costs.map(|costs| costs.prefill_s(request.input, Tokens::ZERO));
        let Some(prefill_s) = prefill.reduce(f64::min) else { return false };
        let open = self.rooms.iter().filter(|room| room.usable && room.may_take(request.need()));
        let servers = open.map(|room| self.worth(room, prefill_s, request.input)).sum();
        let prefill_s = self.work_s(request, prefill_s, servers, now);
        let probe = self.probe(request, prefill_s);
        self.queue.claim(&probe, now)
    }

    /// Whether a request with this outlook is better refused.
    pub(super) fn late(&self, request: &Request, outlook: &Outlook, now: Instant) -> Option<Late> {
        // One at a time is let through to a server that had nothing for long: costs that were learned in a bad hour
        // would refuse for ever what alone could correct them.
        if request.returned || may_try(&self.rooms, request, now) {
            return None;
        }
        let left_s = request.due.saturating_duration_since(now).as_secs_f64();
        let ttft_s = match request.strict {
            true => outlook.ttft_s() + (PREFILL_MARGIN - 1.0) * outlook.prefill_s,
            // Only its turn must come in time; the first in line is never refused for a guess.
            false if outlook.ahead == 0 => 0.0,
            false => outlook.wait_s,
        };
        if ttft_s <= left_s {
            return None;
        }
        let whole_s = request.due.saturating_duration_since(request.entered).as_secs_f64();
        let hopeless = request.strict && outlook.prefill_s > whole_s && outlook.serve_s > 0.0;
        Some(Late { ttft_s, left_s, hopeless })
    }

    /// `Retry-After` for a late request: what is missing, spread by a tenth so that not all come at once.
    /// `chance` is a random number from 0.0 to 1.0.
    pub fn retry_after(&self, seconds: f64, chance: f64) -> Duration {
        let spread = seconds.max(1.0) * (0.9 + 0.2 * chance.clamp(0.0, 1.0));
        Duration::from_secs_f64(spread.clamp(1.0, self.rules.retry_max.as_secs_f64().max(1.0)))
    }
}

/// Whether an idle server was not tried for long that a request may go to.
fn may_try(rooms: &[Room], request: &Request, now: Instant) -> bool {
    let need = request.need();
    let mut open = rooms.iter().filter(|room| room.usable && room.may_take(need));
    open.any(|room| room.requests == 0 && room.flow.is_untried(now))
}

/// Whether a strict request cannot make its deadline any more, if its first token comes `soonest_s` from now.
pub(super) fn doomed(
    rooms: &[Room],
    request: &Request,
    soonest_s: f64,
    now: Instant,
) -> Option<Late> {
    let left_s = request.due.saturating_duration_since(now).as_secs_f64();
    let late = request.strict && soonest_s.is_finite() && soonest_s > left_s;
    (late && !may_try(rooms, request, now)).then_some(Late {
        ttft_s: soonest_s,
        left_s,
        hopeless: false,
    })
}
