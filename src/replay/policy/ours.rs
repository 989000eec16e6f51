//! The daemon's own rules, driven as the daemon drives them.

use super::{Order, Policy, View};
use crate::{
    ids::{ModelName, TenantId, Tier},
    queue::Limits,
    schedule::{
        Blocks, Grant, Known, Offer, Progress, Request, Room, Rules, Scheduler, SeatId, Turn,
    },
    snapshot::{Capacity, ServedModel},
    units::Tokens,
};
use std::{sync::Arc, time::Duration};
use tokio::time::Instant;

/// Two looks at what runs are this far apart, seconds.
const LOOK_EVERY_S: f64 = 0.5;
/// Output of a model that nobody knows yet.
const GUESS: Tokens = Tokens(256);

/// How it is set up.
#[derive(Clone, Debug)]
pub struct OursSetup {
    /// What scheduling goes by.
    pub rules: Rules,
    /// Places in the queue.
    pub queue_max: usize,
    /// The tier of each tenant.
    pub tiers: Vec<Tier>,
    /// Servers.
    pub servers: usize,
    /// KV tokens of each.
    pub kv: Tokens,
    /// Sequences of each.
    pub max_running: u32,
    /// Tokens in a block.
    pub block_tokens: u32,
}

/// The daemon's rules.
pub struct Ours {
    scheduler: Scheduler<usize>,
    setup: OursSetup,
    begun: Instant,
    model: ModelName,
    tenants: Vec<TenantId>,
    seats: Vec<Option<(usize, SeatId)>>,
    /// Whose each request is.
    owners: Vec<usize>,
    progress: Vec<Arc<Progress>>,
    looked: f64,
    refused: Vec<bool>,
    chance: u64,
}

impl Ours {
    /// Nobody there yet.
    pub fn new(setup: OursSetup, requests: usize) -> Self {
        let several = setup.tiers.len() > 1;
        let limits = Limits {
            length_max: setup.queue_max,
            tenant_max: if several { setup.queue_max / 2 } else { setup.queue_max },
            standard_ages: Duration::from_secs(30),
            batch_ages: Duration::from_secs(120),
        };
        let rules = Rules { costs_known: true, ..setup.rules.clone() };
        let mut scheduler = Scheduler::new(rules.clone(), limits);
        let model = ModelName::from("model");
        for at in 0..setup.servers {
            let mut room = Room::new(format!("server-{at}").into(), &rules);
            room.usable = true;
            let capacity = Capacity {
                kv_tokens: Some(setup.kv),
                max_running: Some(setup.max_running),
                block_tokens: Some(setup.block_tokens),
            };
            room.adopt(&[ServedModel::ready(model.clone(), None)], &capacity);
            scheduler.rooms.push(room);
        }
        Self {
            scheduler,
            begun: Instant::now(),
            model,
            tenants: (0..setup.tiers.len()).map(|at| format!("tenant-{at}").into()).collect(),
            seats: vec![None; requests],
            owners: vec![0; requests],
            progress: (0..requests).map(|_| Arc::default()).collect(),
            looked: 0.0,
            refused: vec![false; requests],
            chance: 0x9e37_79b9_7f4a_7c15,
            setup,
        }
    }

    /// Its servers, as it sees them.
    pub fn rooms(&self) -> &[Room] {
        &self.scheduler.rooms
    }

    fn at(&self, now: f64) -> Instant {
        self.begun + Duration::from_secs_f64(now.max(0.0))
    }

    fn chance(&mut self) -> f64 {
        // Xorshift (Marsaglia 2003): only spreads returns.
        self.chance ^= self.chance << 13;
        self.chance ^= self.chance >> 7;
        self.chance ^= self.chance << 17;
        (self.chance >> 11) as f64 / (1u64 << 53) as f64
    }

    fn refuse(&mut self, request: usize, asked: &Request, now: f64, orders: &mut Vec<Order>) {
        let seconds = self.scheduler.promise(asked, self.at(now));
        if let Some(refused) = self.refused.get_mut(request) {
            *refused = true;
        }
        let chance = self.chance();
        let retry_s = self.scheduler.retry_after(seconds, chance).as_secs_f64();
        orders.push(Order::Refuse { request, retry_s: Some(retry_s) });
    }

    fn place(&mut self, request: usize, grant: &Grant, priority: i64, orders: &mut Vec<Order>) {
        let rooms = &self.scheduler.rooms;
        let Some(server) = rooms.iter().position(|room| room.id == grant.server) else { return };
        if let Some(seat) = self.seats.get_mut(request) {
            *seat = Some((server, grant.seat));
        }
        orders.push(Order::Place { request, server, priority });
    }

    fn priority(&self, view: &View<'_>, request: usize) -> i64 {
        let tenant = view.arrivals.get(request).map_or(0, |arrival| arrival.tenant);
        self.setup.tiers.get(tenant).map_or(0, |tier| *tier as i64)
    }
}

impl Policy for Ours {
    fn arrives(&mut self, request: usize, view: &View<'_>, now: f64, orders: &mut Vec<Order>) {
        let Some(arrival) = view.arrivals.get(request) else { return };
        let (Some(tenant), Some(tier), Some(progress)) = (
            self.tenants.get(arrival.tenant).cloned(),
            self.setup.tiers.get(arrival.tenant).copied(),
            self.progress.get(request).cloned(),
        ) else {
            return;
        };
        if let Some(owner) = self.owners.get_mut(request) {
            *owner = arrival.tenant;
        }
        let at = self.at(now);
        let lengths = self.scheduler.outputs.of(&tenant, &self.model);
        let output = lengths.map_or(GUESS, |lengths| lengths.expect());
        let asked = Request {
            model: self.model.clone(),
            tenant,
            weight: 1.0,
            tier,
            input: Tokens(arrival.input),
            output,
            sequences: 1,
            span: Tokens::ZERO,
            blocks: Blocks { hashes: Arc::clone(&arrival.blocks), tokens: self.setup.block_tokens },
            tried: Vec::new(),
            due: at + Duration::from_secs_f64(arrival.ttft_s),
            strict: true,
            watched: true,
            returned: self.refused.get(request).copied().unwrap_or(false),
            preempted: 0,
            foreseen: None,
            arrival: None,
            entered: at,
            progress,
        };
        let priority = self.priority(view, request);
        match self.scheduler.offer(asked.clone(), Known::default(), request, false, at) {
            Offer::Placed(grant, _, outlook) => {
                orders.push(Order::Promise { request, ttft_s: outlook.ttft_s() });
                self.place(request, &grant, priority, orders);
            }
            Offer::Waits(_, outlook, _) => {
                orders.push(Order::Promise { request, ttft_s: outlook.ttft_s() });
            }
            Offer::Full(..) | Offer::Late(..) => self.refuse(request, &asked, now, orders),
            Offer::Nobody => orders.push(Order::Refuse { request, retry_s: None }),
        }
    }

    fn decide(&mut self, view: &View<'_>, now: f64, orders: &mut Vec<Order>) {
        let at = self.at(now);
        if now - self.looked >= LOOK_EVERY_S {
            self.looked = now;
            self.scheduler.look(at);
        }
        while let Some(turn) = self.scheduler.next(at) {
            match turn {
                Turn::Granted(request, grant, _) => {
                    let priority = self.priority(view, request);
                    self.place(request, &grant, priority, orders);
                }
                Turn::Late(request, _, asked) | Turn::Displaced(request, asked) => {
                    self.refuse(request, &asked, now, orders);
                }
                // No tenant of a replay is asked to make way.
                Turn::Preempt(..) => {}
                Turn::Nobody(request) => orders.push(Order::Refuse { request, retry_s: None }),
            }
        }
    }

    fn first_token(&mut self, request: usize, _server: usize, now: f64) {
        let at = self.at(now);
        let Some(Some((room, seat))) = self.seats.get(request).copied() else { return };
        let Some(id) = self.scheduler.rooms.get(room).map(|room| room.id.clone()) else { return };
        self.scheduler.first_token(&id, seat, at);
    }

    fn token(&mut self, request: usize, generated: u64) {
        if let Some(progress) = self.progress.get(request) {
            progress.set(Tokens(generated));
        }
    }

    fn finished(&mut self, request: usize, _server: usize, generated: u64, now: f64) {
        let at = self.at(now);
        let Some((room, seat)) = self.seats.get_mut(request).and_then(Option::take) else { return };
        let Some(id) = self.scheduler.rooms.get(room).map(|room| room.id.clone()) else { return };
        let output = (generated > 0).then_some(Tokens(generated));
        let owner = self.owners.get(request).and_then(|owner| self.tenants.get(*owner));
        if let (Some(output), Some(tenant)) = (output, owner) {
            self.scheduler.outputs.observe(tenant, &self.model, output, GUESS);
        }
        self.scheduler.take_back(&id, seat, output, at);
    }

    fn wakes(&self, now: f64) -> Option<f64> {
        let at = self.scheduler.wakes(self.at(now))?;
        Some(at.saturating_duration_since(self.begun).as_secs_f64() + 1e-6)
    }
}
