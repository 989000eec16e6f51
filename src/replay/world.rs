//! The played world: servers that turn their steps, requests that come, and a policy between them.
//!
//! Time is simulated. A server begins its next step the moment the last one ends: what a policy decides because
//! of that step comes too late for the next, as it would on a real host.

use super::policy::{Order, Policy, ServerView, View};
use crate::{
    simulate::clock::{Beginning, Clock, Profile, SequenceId, Token},
    units::Tokens,
};
use std::{cmp::Reverse, collections::BinaryHeap, sync::Arc};

/// Age of what a policy sees of servers' metrics pages, seconds.
pub const METRICS_EVERY_S: f64 = 0.05;

/// A request that comes.
#[derive(Clone, Debug)]
pub struct Arrival {
    /// When, seconds.
    pub at_s: f64,
    /// Input tokens.
    pub input: u64,
    /// Output tokens. No policy may look at it.
    pub output: u64,
    /// Blocks that the prompt begins with.
    pub blocks: Arc<[u64]>,
    /// Whose it is.
    pub tenant: usize,
    /// When its first token must have come, seconds from its arrival.
    pub ttft_s: f64,
}

/// What became of it. Times are seconds of the simulation.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Fate {
    /// When it was first placed.
    pub placed_s: Option<f64>,
    /// When its first token came.
    pub first_s: Option<f64>,
    /// When its last token came.
    pub last_s: Option<f64>,
    /// When it was refused for good.
    pub refused_s: Option<f64>,
    /// When it may come again after a refusal, if the caller comes again.
    pub back_s: Option<f64>,
    /// Times that it was refused.
    pub refusals: u32,
    /// Expected time to its first token when it was admitted, from then, and when that was.
    pub promised: Option<(f64, f64)>,
}

/// What the servers did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Done {
    /// Sequences that lost their pages and were computed again.
    pub preemptions: u64,
    /// Prompt tokens that were found in caches.
    pub hits: u64,
}

/// How the world is set up.
#[derive(Clone, Debug)]
pub struct Setup {
    /// What each server is.
    pub profile: Profile,
    /// How many there are.
    pub servers: usize,
    /// Servers take requests in the order of their priority.
    pub server_priority: bool,
    /// Refused callers come back when they were told to, within this share of the time told.
    pub returns: Option<f64>,
    /// Tokens in a block.
    pub block_tokens: u64,
}

struct Server {
    clock: Clock,
    /// When the step under way ends.
    ends: Option<f64>,
}

impl Server {
    fn begin(&mut self, now: f64) {
        self.ends = self.clock.begin().map(|step_s| now + step_s);
    }
}

/// Runs a policy to the end. `progress` hears how many requests have ended, of all.
pub fn run(
    setup: &Setup,
    arrivals: &[Arrival],
    policy: &mut dyn Policy,
    chance: impl FnMut() -> f64,
    mut progress: impl FnMut(usize),
) -> (Vec<Fate>, Done) {
    let mut world = World::new(setup, arrivals, chance);
    while world.ended < arrivals.len() {
        // Nobody will ever say anything again: what still waits was forgotten by the policy.
        let Some(at) = world.soonest(policy) else { break };
        world.now = at.max(world.now);
        world.turn_steps(policy);
        world.read_metrics();
        world.meet(policy);
        progress(world.ended);
    }
    let done = world.servers.iter().fold(Done::default(), |done, server| Done {
        preemptions: done.preemptions + server.clock.preemptions(),
        hits: done.hits + server.clock.hits().get(),
    });
    (world.fates, done)
}

struct World<'a, C> {
    setup: &'a Setup,
    arrivals: &'a [Arrival],
    chance: C,
    now: f64,
    servers: Vec<Server>,
    fates: Vec<Fate>,
    /// Where each request runs.
    places: Vec<Option<usize>>,
    /// What metrics pages said last, and when.
    seen: Vec<ServerView>,
    seen_at: f64,
    /// The next one that comes.
    next: usize,
    /// Those that come again, and when.
    back: BinaryHeap<Reverse<(ordered::Time, usize)>>,
    ended: usize,
    tokens: Vec<Token>,
    orders: Vec<Order>,
}

impl<'a, C: FnMut() -> f64> World<'a, C> {
    fn new(setup: &'a Setup, arrivals: &'a [Arrival], chance: C) -> Self {
        let server = || Server { clock: Clock::new(setup.profile.clone()), ends: None };
        Self {
            setup,
            arrivals,
            chance,
            now: 0.0,
            servers: (0..setup.servers).map(|_| server()).collect(),
            fates: vec![Fate::default(); arrivals.len()],
            places: vec![None; arrivals.len()],
            seen: vec![ServerView::default(); setup.servers],
            seen_at: f64::NEG_INFINITY,
            next: 0,
            back: BinaryHeap::new(),
            ended: 0,
            tokens: Vec::new(),
            orders: Vec::new(),
        }
    }

    /// When something happens next.
    fn soonest(&self, policy: &dyn Policy) -> Option<f64> {
        let steps = self.servers.iter().filter_map(|server| server.ends);
        let comes = self.arrivals.get(self.next).map(|arrival| arrival.at_s);
        let returns = self.back.peek().map(|Reverse((time, _))| time.0);
        let wakes = policy.wakes(self.now);
        steps.chain(comes).chain(returns).chain(wakes).reduce(f64::min)
    }

    /// Ends the steps that are over, and begins the next ones.
    fn turn_steps(&mut self, policy: &mut dyn Policy) {
        let now = self.now;
        for (index, server) in self.servers.iter_mut().enumerate() {
            if server.ends.is_none_or(|ends| ends > now) {
                continue;
            }
            self.tokens.clear();
            server.clock.finish(&mut self.tokens);
            server.begin(now);
            for token in &self.tokens {
                let Ok(request) = usize::try_from(token.id.0) else { continue };
                let Some(fate) = self.fates.get_mut(request) else { continue };
                if token.generated == Tokens(1) {
                    fate.first_s = Some(now);
                    policy.first_token(request, index, now);
                }
                policy.token(request, token.generated.get());
                if token.last {
                    fate.last_s = Some(now);
                    self.ended += 1;
                    policy.finished(request, index, token.generated.get(), now);
                }
            }
        }
    }

    fn read_metrics(&mut self) {
        if self.now - self.seen_at < METRICS_EVERY_S {
            return;
        }
        self.seen_at = self.now;
        for (view, server) in self.seen.iter_mut().zip(&self.servers) {
            *view = ServerView {
                running: server.clock.running(),
                waiting: server.clock.waiting(),
                used: server.clock.used().get(),
                capacity: server.clock.capacity().get(),
            };
        }
    }

    /// Shows the policy who comes, and does what it wants.
    fn meet(&mut self, policy: &mut dyn Policy) {
        let now = self.now;
        let mut orders = std::mem::take(&mut self.orders);
        let view = View { arrivals: self.arrivals, seen: &self.seen };
        while self.arrivals.get(self.next).is_some_and(|arrival| arrival.at_s <= now) {
            policy.arrives(self.next, &view, now, &mut orders);
            self.next += 1;
        }
        while self.back.peek().is_some_and(|Reverse((time, _))| time.0 <= now) {
            if let Some(Reverse((_, request))) = self.back.pop() {
                policy.arrives(request, &view, now, &mut orders);
            }
        }
        policy.decide(&view, now, &mut orders);
        for order in orders.drain(..) {
            match order {
                Order::Place { request, server, priority } => {
                    self.place(request, server, priority, policy);
                }
                Order::TakeBack { request } => {
                    let place = self.places.get_mut(request).and_then(Option::take);
                    if let Some(server) = place.and_then(|at| self.servers.get_mut(at)) {
                        server.clock.abort(SequenceId(request as u64));
                    }
                }
                Order::Promise { request, ttft_s } => {
                    if let Some(fate) = self.fates.get_mut(request) {
                        fate.promised = Some((ttft_s, now));
                    }
                }
                Order::Refuse { request, retry_s } => self.refuse(request, retry_s),
            }
        }
        self.orders = orders;
    }

    fn place(&mut self, request: usize, at: usize, priority: i64, policy: &mut dyn Policy) {
        let (Some(arrival), Some(server), Some(fate)) =
            (self.arrivals.get(request), self.servers.get_mut(at), self.fates.get_mut(request))
        else {
            return;
        };
        let beginning = Beginning {
            blocks: Arc::clone(&arrival.blocks),
            block_tokens: self.setup.block_tokens,
        };
        let taken = server.clock.submit_as(
            SequenceId(request as u64),
            Tokens(arrival.input),
            Tokens(arrival.output),
            beginning,
            if self.setup.server_priority { priority } else { 0 },
        );
        if taken.is_err() {
            // Larger than the server: it says so at once.
            fate.refused_s = Some(self.now);
            self.ended += 1;
            policy.finished(request, at, 0, self.now);
            return;
        }
        fate.placed_s.get_or_insert(self.now);
        if let Some(place) = self.places.get_mut(request) {
            *place = Some(at);
        }
        if server.ends.is_none() {
            server.begin(self.now);
        }
    }

    fn refuse(&mut self, request: usize, retry_s: Option<f64>) {
        let Some(fate) = self.fates.get_mut(request) else { return };
        fate.refusals += 1;
        fate.promised = None;
        match (self.setup.returns, retry_s) {
            (Some(spread), Some(retry_s)) if fate.refusals == 1 => {
                let late = retry_s * (1.0 + spread * (2.0 * (self.chance)() - 1.0));
                fate.back_s = Some(self.now + late);
                self.back.push(Reverse((ordered::Time(self.now + late), request)));
            }
            _ => {
                fate.refused_s = Some(self.now);
                self.ended += 1;
            }
        }
    }
}

mod ordered {
    /// A time that is never NaN, so that it has an order.
    #[derive(Clone, Copy, Debug, PartialEq)]
    pub(super) struct Time(pub f64);

    impl Eq for Time {}

    impl Ord for Time {
        fn cmp(&self, other: &Self) -> std::cmp::Ordering {
            self.0.total_cmp(&other.0)
        }
    }

    impl PartialOrd for Time {
        fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
            Some(self.cmp(other))
        }
    }
}
