//! The played world: servers that turn their steps, requests that come, and a policy between them.
//!
//! Time is simulated. A server begins its next step the moment the last one ends: what a policy decides because
//! of that step comes too late for the next, as it would on a real host.

use super::policy::{Order, Policy, ServerView, View};
use crate::{
    simulate::clock::{Beginning, Clock, Profile, SequenceId, Token},
    units::Tokens,
};
use std::{
    cmp::Reverse,
    collections::{BinaryHeap, VecDeque},
    sync::Arc,
};

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

/// Runs a policy to the end. `progress` hears how many requests have ended, of all.
pub fn run(
    setup: &Setup,
    arrivals: &[Arrival],
    policy: &mut dyn Policy,
    mut chance: impl FnMut() -> f64,
    mut progress: impl FnMut(usize),
) -> (Vec<Fate>, Done) {
    let server = || Server { clock: Clock::new(setup.profile.clone()), ends: None };
    let mut servers: Vec<Server> = (0..setup.servers).map(|_| server()).collect();
    let mut fates = vec![Fate::default(); arrivals.len()];
    let mut seen = vec![ServerView::default(); setup.servers];
    let mut seen_at = f64::NEG_INFINITY;
    let mut next = 0;
    let mut back: BinaryHeap<Reverse<(ordered::Time, usize)>> = BinaryHeap::new();
    let mut at_of: Vec<Option<usize>> = vec![None; arrivals.len()];
    let mut tokens: Vec<Token> = Vec::new();
    let mut orders: Vec<Order> = Vec::new();
    let mut ended = 0;
    let mut due: VecDeque<usize> = VecDeque::new();
    let mut now = 0.0_f64;
    while ended < arrivals.len() {
        let comes = arrivals.get(next).map(|arrival| arrival.at_s);
        let returns = back.peek().map(|Reverse((time, _))| time.0);
        let steps = servers.iter().filter_map(|server| server.ends);
        let wakes = policy.wakes(now);
        let soonest = steps.chain(comes).chain(returns).chain(wakes).reduce(f64::min);
        // Nobody will ever say anything again: what still waits was forgotten by the policy.
        let Some(at) = soonest else { break };
        now = at.max(now);
        for (index, server) in servers.iter_mut().enumerate() {
            if server.ends.is_none_or(|ends| ends > now) {
                continue;
            }
            tokens.clear();
            server.clock.finish(&mut tokens);
            server.ends = server.clock.begin().map(|step| now + step);
            for token in &tokens {
                let Ok(request) = usize::try_from(token.id.0) else { continue };
                let Some(fate) = fates.get_mut(request) else { continue };
                if token.generated == Tokens(1) {
                    fate.first_s = Some(now);
                    policy.first_token(request, index, now);
                }
                policy.token(request, token.generated.get());
                if token.last {
                    fate.last_s = Some(now);
                    ended += 1;
                    policy.finished(request, index, token.generated.get(), now);
                }
            }
        }
        if now - seen_at >= METRICS_EVERY_S {
            seen_at = now;
            for (view, server) in seen.iter_mut().zip(&servers) {
                *view = ServerView {
                    running: server.clock.running(),
                    waiting: server.clock.waiting(),
                    used: server.clock.used().get(),
                    capacity: server.clock.capacity().get(),
                };
            }
        }
        while arrivals.get(next).is_some_and(|arrival| arrival.at_s <= now) {
            due.push_back(next);
            next += 1;
        }
        while back.peek().is_some_and(|Reverse((time, _))| time.0 <= now) {
            due.extend(back.pop().map(|Reverse((_, request))| request));
        }
        let view = View { arrivals, seen: &seen };
        while let Some(request) = due.pop_front() {
            policy.arrives(request, &view, now, &mut orders);
        }
        policy.decide(&view, now, &mut orders);
        for order in orders.drain(..) {
            match order {
                Order::Place { request, server: at, priority } => {
                    let (Some(arrival), Some(server), Some(fate)) =
                        (arrivals.get(request), servers.get_mut(at), fates.get_mut(request))
                    else {
                        continue;
                    };
                    let priority = if setup.server_priority { priority } else { 0 };
                    let beginning = Beginning {
                        blocks: Arc::clone(&arrival.blocks),
                        block_tokens: setup.block_tokens,
                    };
                    let taken = server.clock.submit_as(
                        SequenceId(request as u64),
                        Tokens(arrival.input),
                        Tokens(arrival.output),
                        beginning,
                        priority,
                    );
                    if taken.is_err() {
                        // Larger than the server: it says so at once.
                        fate.refused_s = Some(now);
                        ended += 1;
                        policy.finished(request, at, 0, now);
                        continue;
                    }
                    fate.placed_s.get_or_insert(now);
                    if let Some(place) = at_of.get_mut(request) {
                        *place = Some(at);
                    }
                    if server.ends.is_none() {
                        server.ends = server.clock.begin().map(|step| now + step);
                    }
                }
                Order::TakeBack { request } => {
                    let place = at_of.get_mut(request).and_then(Option::take);
                    if let Some(server) = place.and_then(|at| servers.get_mut(at)) {
                        server.clock.abort(SequenceId(request as u64));
                    }
                }
                Order::Promise { request, ttft_s } => {
                    if let Some(fate) = fates.get_mut(request) {
                        fate.promised = Some((ttft_s, now));
                    }
                }
                Order::Refuse { request, retry_s } => {
                    let Some(fate) = fates.get_mut(request) else { continue };
                    fate.refusals += 1;
                    fate.promised = None;
                    match (setup.returns, retry_s) {
                        (Some(spread), Some(retry_s)) if fate.refusals == 1 => {
                            let late = retry_s * (1.0 + spread * (2.0 * chance() - 1.0));
                            fate.back_s = Some(now + late);
                            back.push(Reverse((ordered::Time(now + late), request)));
                        }
                        _ => {
                            fate.refused_s = Some(now);
                            ended += 1;
                        }
                    }
                }
            }
        }
        progress(ended);
    }
    let done = servers.iter().fold(Done::default(), |done, server| Done {
        preemptions: done.preemptions + server.clock.preemptions(),
        hits: done.hits + server.clock.hits().get(),
    });
    (fates, done)
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
