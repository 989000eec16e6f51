//! An hour of a played node: thousands of requests, cards of every kind, and everything that goes wrong
//! with counters. What is handed out must be what was measured.

use super::{Facts, Key, Meter, Places, Spent, Work, Works, gauge::Source, meter::Shares};
use crate::{
    holding::{GpuHolding, Holder, Holdings, How, Owner, ServerHolding},
    ids::{GpuId, Tier},
    snapshot::{Answering, DriverState, GpuProcess, GpuState, MigPart},
    units::{Bytes, Tokens},
};
use std::{collections::BTreeMap, sync::Arc, time::Duration};
use tokio::time::Instant;

const STEP: Duration = Duration::from_millis(50);
const STEPS: u64 = 72_000;
const FOREIGN_PID: u32 = 9000;
/// Nobody sends anything in these steps.
const PAUSE: std::ops::Range<u64> = 30_000..36_000;
/// The other process computes in these.
const FOREIGN: std::ops::Range<u64> = 10_000..20_000;
const FOREIGN_W: f64 = 120.0;
/// Tokens a step of one request.
const PREFILL: u64 = 200;
const DECODE: u64 = 2;

/// splitmix64.
struct Chance(u64);

impl Chance {
    fn below(&mut self, end: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ (z >> 31)) % end
    }
}

/// A request that is to come.
#[derive(Clone)]
struct Order {
    server: usize,
    tenant: &'static str,
    input: u64,
    output: u64,
    stream: bool,
    /// The caller leaves after so many steps.
    leaves: Option<u64>,
}

struct Running {
    order: Order,
    work: Arc<Work>,
    steps: u64,
    read: u64,
    said: u64,
}

#[derive(Default)]
struct Card {
    idle_w: f64,
    peak_w: f64,
    has_counter: bool,
    truth_j: f64,
    foreign_j: f64,
    /// What the driver would not count any more after it came back.
    forgotten_mj: u64,
    power_w: f64,
    busy: BTreeMap<usize, f64>,
    /// By the test's own reckoning: what the counter moved between readings.
    told_mj: Option<u64>,
    moved_mj: u64,
}

const SERVERS: [&str; 7] = ["chat", "wide", "left", "right", "cut-a", "cut-b", "old"];

/// Cards, and who is on them: one alone with a stranger, a pair for one server, one for two servers, one
/// that is cut, one without a counter.
const ON: [&[usize]; 6] = [&[0], &[1], &[1], &[2, 3], &[4, 5], &[6]];

fn gpu(index: usize) -> GpuId {
    format!("GPU-{index}").as_str().into()
}

fn mig(index: usize) -> GpuId {
    format!("MIG-{index}").as_str().into()
}

fn places() -> Places {
    let mut holdings = Holdings::default();
    for (card, servers) in ON.iter().enumerate() {
        for server in *servers {
            let place: &mut ServerHolding =
                holdings.servers.entry(SERVERS[*server].into()).or_default();
            let on = if card == 4 { mig(*server - 4) } else { gpu(card) };
            place.gpus.insert(on, None);
            place.pids = vec![100 + *server as u32];
            place.how = How::Socket;
        }
    }
    let owner = Owner::Foreign { name: "training".into(), unit: None, container: None };
    let holder = Holder { owner, memory: None, pids: vec![FOREIGN_PID] };
    holdings.gpus.push(GpuHolding { gpu: gpu(0), holders: vec![holder], untold: None });
    Places::of(&holdings, std::iter::empty())
}

fn cards() -> Vec<Card> {
    let card = |idle_w, peak_w| Card {
        idle_w,
        peak_w,
        power_w: idle_w,
        has_counter: true,
        ..Card::default()
    };
    let mut cards = vec![
        card(75.0, 700.0),
        card(70.0, 680.0),
        card(72.0, 690.0),
        card(50.0, 400.0),
        card(80.0, 500.0),
        card(10.0, 70.0),
    ];
    cards[5].has_counter = false;
    cards
}

/// The hour's requests by the step in which they come. For each of tenant `b` there are three of tenant
/// `a` of the same size, within the same two minutes; tenant `c` makes noise and leaves.
fn orders(chance: &mut Chance) -> BTreeMap<u64, Vec<Order>> {
    let mut orders: BTreeMap<u64, Vec<Order>> = BTreeMap::new();
    for _ in 0..1_100 {
        let around = chance.below(STEPS - 6_000);
        if (PAUSE.start - 2_400..PAUSE.end).contains(&around) {
            continue;
        }
        let order = Order {
            server: chance.below(7) as usize,
            tenant: "b",
            input: 50 + chance.below(4_000),
            output: 10 + chance.below(400),
            stream: chance.below(10) < 7,
            leaves: None,
        };
        let mut when = || around + chance.below(2_400);
        for tenant in ["b", "a", "a", "a"] {
            orders.entry(when()).or_default().push(Order { tenant, ..order.clone() });
        }
        let leaves = Some(1 + chance.below(150));
        let at = chance.below(STEPS - 6_000);
        orders.entry(at).or_default().push(Order { tenant: "c", leaves, ..order });
    }
    orders.retain(|at, _| !PAUSE.contains(at));
    orders
}

/// The node.
struct Node {
    start: Instant,
    cards: Vec<Card>,
    works: Works,
    running: Vec<Running>,
    meter: Meter,
    places: Places,
    grants: BTreeMap<Key, Spent>,
    /// Weighted tokens by server and tenant, as they truly were.
    tokens: BTreeMap<(usize, &'static str), u64>,
    begun: u64,
}

impl Node {
    fn now(&self, step: u64) -> Instant {
        self.start + STEP * u32::try_from(step).unwrap()
    }

    fn begin(&mut self, order: Order, now: Instant) {
        let key = Key {
            server: SERVERS[order.server].into(),
            model: "m".into(),
            tenant: order.tenant.into(),
            tier: Tier::Standard,
        };
        let (input, output) = (Tokens(order.input), Tokens(200));
        let facts = Facts { key, input, output, stream: order.stream };
        let work = self.works.begin(facts, now).unwrap();
        self.begun += 1;
        self.running.push(Running { order, work, steps: 0, read: 0, said: 0 });
    }

    /// Servers compute, cards draw.
    fn compute(&mut self, step: u64) {
        let now = self.now(step);
        let mut load = [0.0; 7];
        for one in &mut self.running {
            one.steps += 1;
            let done = &mut self.tokens.entry((one.order.server, one.order.tenant)).or_default();
            if one.read < one.order.input {
                load[one.order.server] += 1.0;
                let more = PREFILL.min(one.order.input - one.read);
                one.read += more;
                **done += more;
                if one.read == one.order.input && one.order.stream {
                    one.work.first(now);
                }
            } else {
                load[one.order.server] += 0.15;
                one.said += DECODE;
                **done += DECODE * 4;
                if one.order.stream {
                    one.work.output(Tokens(one.said));
                }
            }
        }
        let works = &self.works;
        self.running.retain(|one| {
            let over = one.said >= one.order.output;
            if over {
                let (input, output) = (Tokens(one.order.input), Tokens(one.said));
                one.work.finish(input, Tokens::ZERO, output, now);
            }
            let left = one.order.leaves.is_some_and(|leaves| one.steps >= leaves);
            if over || left {
                works.end(&one.work, now);
            }
            !over && !left
        });
        for (index, card) in self.cards.iter_mut().enumerate() {
            card.busy = ON[index].iter().map(|server| (*server, load[*server])).collect();
            let load: f64 = card.busy.values().sum();
            let foreign = if index == 0 && FOREIGN.contains(&step) { FOREIGN_W } else { 0.0 };
            let work =
                (card.peak_w - card.idle_w - FOREIGN_W.min(card.idle_w)) * load / (1.0 + load);
            card.power_w = card.idle_w + work + foreign;
            card.truth_j += card.power_w * STEP.as_secs_f64();
            card.foreign_j += foreign * STEP.as_secs_f64();
        }
    }

    fn states(&mut self, step: u64, whole: bool) -> Vec<GpuState> {
        let mut states = Vec::new();
        for (index, card) in self.cards.iter_mut().enumerate() {
            let mut state = GpuState::blank(gpu(index), index as u32, "card".into());
            let total_mj = (card.truth_j * 1e3) as u64;
            // Two reloads of a driver, one of them while a card is lost.
            if (index == 2 && (step == 24_000 || step == 50_000)) || (index == 1 && step == 45_000)
            {
                card.forgotten_mj = total_mj;
            }
            if index == 3 && (40_000..41_200).contains(&step) {
                state.answering = Answering::Lost("lost".into());
                states.push(state);
                continue;
            }
            let counter = total_mj - card.forgotten_mj;
            if card.has_counter && (whole || card.told_mj.is_none()) {
                card.moved_mj += card.told_mj.map_or(0, |told| counter.saturating_sub(told));
                card.told_mj = Some(counter);
            }
            state.energy_mj = card.told_mj;
            state.power_w = Some(card.power_w);
            state.power_limit_w = Some(card.peak_w);
            state.memory_total = Some(Bytes(80 << 30));
            let foreign = index == 0 && FOREIGN.contains(&step);
            let load: f64 = card.busy.values().sum();
            let percent = |load: f64| (100.0 * load / (1.0 + load)) as u32;
            if index != 4 {
                let busy = percent(load).max(if foreign { 30 } else { 0 });
                state.utilisation_percent = Some(busy);
                let process = |pid, load| GpuProcess {
                    pid,
                    utilisation_percent: Some(load),
                    ..GpuProcess::default()
                };
                let used =
                    |(server, load): (&usize, &f64)| process(100 + *server as u32, percent(*load));
                let mut processes: Vec<GpuProcess> = card.busy.iter().map(used).collect();
                processes.extend(foreign.then(|| process(FOREIGN_PID, 30)));
                state.processes = Some(processes);
                states.push(state);
                continue;
            }
            states.push(state);
            for part in 0..2 {
                let mut state = GpuState::blank(mig(part), index as u32, "part".into());
                let (gpu_instance, compute_instance) = (Some(part as u32), Some(0));
                state.mig = Some(MigPart { parent: gpu(index), gpu_instance, compute_instance });
                state.memory_total = Some(Bytes(if part == 0 { 40 << 30 } else { 20 << 30 }));
                states.push(state);
            }
        }
        states
    }

    fn read(&mut self, step: u64, whole: bool) {
        let at = self.now(step);
        let gpus = self.states(step, whole);
        let driver = DriverState {
            driver_version: String::new(),
            nvml_version: String::new(),
            session: 1,
            gpus,
            read_at: at,
        };
        let progress = self.works.take(at);
        let round = self.meter.round(at, Some(&driver), &self.places, progress);
        for (server, spent, weight) in round.costs {
            self.works.pace(&server).learn_cost(spent, weight);
        }
        for (key, spent) in round.grants {
            let sum = self.grants.entry(key).or_default();
            *sum = sum.plus(spent);
        }
    }

    fn of(&self, tenant: &str, server: Option<&str>) -> Spent {
        let here = |key: &Key| {
            key.tenant.as_str() == tenant
                && server.is_none_or(|server| key.server.as_str() == server)
        };
        let sum = self.grants.iter().filter(|(key, _)| here(key));
        sum.fold(Spent::default(), |sum, (_, spent)| sum.plus(*spent))
    }
}

fn an_hour(seed: u64) -> Node {
    let works = Works::default();
    works.meter(4.0);
    let mut chance = Chance(seed);
    let mut orders = orders(&mut chance);
    let mut node = Node {
        start: Instant::now(),
        cards: cards(),
        works,
        running: Vec::new(),
        meter: Meter::default(),
        places: places(),
        grants: BTreeMap::new(),
        tokens: BTreeMap::new(),
        begun: 0,
    };
    node.read(0, true);
    for step in 1..=STEPS {
        let now = node.now(step);
        for order in orders.remove(&step).unwrap_or_default() {
            node.begin(order, now);
        }
        node.compute(step);
        // Once a second; for a while power five times as often; and once the driver hangs for 30 s.
        let hangs = (60_000..60_600).contains(&step);
        if step % 20 == 0 && !hangs {
            node.read(step, true);
        } else if step < 8_000 && step % 4 == 0 {
            node.read(step, false);
        }
    }
    assert!(node.running.is_empty() && node.works.is_empty(), "all ended before the hour did");
    node
}

/// "All shares plus idle equal the counter", and "3:1 in tokens is 3:1 in joules".
#[test]
fn an_hours_shares_are_what_was_measured_and_follow_the_tokens() {
    let seed = 11;
    let node = an_hour(seed);
    let mut granted = Spent::default();
    for spent in node.grants.values() {
        granted = granted.plus(*spent);
    }
    let mut to_requests = Spent::default();
    println!("seed {seed}: {} requests", node.begun);
    assert!(node.begun > 4_000);
    for (view, card) in node.meter.cards().iter().zip(&node.cards) {
        let Shares { requests, idle, foreign } = view.shares;
        to_requests = to_requests.plus(requests);
        let all = view.shares.all();
        println!(
            "{}: {:?}, counter {:.3} J, shares {:.3} J = requests {:.0} + idle {:.0} + foreign {:.0}; truly {:.0} J; idle power {:.1?} W; {} resets, {:?} unmeasured",
            view.gpu,
            view.source,
            card.moved_mj as f64 / 1e3,
            all.energy.joules(),
            requests.energy.joules(),
            idle.energy.joules(),
            foreign.energy.joules(),
            card.truth_j,
            view.idle_w,
            view.resets,
            view.unmeasured
        );
        if card.has_counter {
            assert_eq!(view.source, Source::Counter);
            assert_eq!(all.energy.get(), card.moved_mj * 1000, "exactly what the counter moved");
        } else {
            assert_eq!(view.source, Source::Power);
            let off = all.energy.joules() / card.truth_j - 1.0;
            println!("  integrated power is off by {:.2} %", off * 100.0);
            // The driver's hang is not measured.
            assert!(off.abs() < 0.02, "{off}");
            assert_eq!(view.unmeasured, Duration::from_secs(31));
        }
        let known = view.idle_w.unwrap() / card.idle_w;
        assert!((0.98..1.02).contains(&known), "idle power {known}");
        assert_eq!(all.time.seconds().round(), 3600.0, "time is split whole, too");
    }
    assert_eq!(to_requests, granted, "what cards gave is what keys got");
    let foreign = node.meter.cards()[0].shares.foreign.energy.joules();
    println!("foreign: {foreign:.0} J, truly {:.0} J", node.cards[0].foreign_j);
    assert!((0.4..1.4).contains(&(foreign / node.cards[0].foreign_j)));
    let ratio = |of: fn(Spent) -> f64, server| of(node.of("a", server)) / of(node.of("b", server));
    let joules = |spent: Spent| spent.energy.joules();
    let seconds = |spent: Spent| spent.time.seconds();
    println!(
        "a : b in tokens is 3, in joules {:.3}, in GPU-seconds {:.3}",
        ratio(joules, None),
        ratio(seconds, None)
    );
    assert!((ratio(joules, None) / 3.0 - 1.0).abs() < 0.05);
    assert!((ratio(seconds, None) / 3.0 - 1.0).abs() < 0.05);
    for (index, server) in SERVERS.iter().enumerate() {
        let tokens = node.tokens[&(index, "a")] as f64 / node.tokens[&(index, "b")] as f64;
        println!("  {server}: tokens {tokens:.3}, joules {:.3}", ratio(joules, Some(server)));
        assert!((ratio(joules, Some(server)) / 3.0 - 1.0).abs() < 0.10, "{server}");
    }
}
