//! The meter before any script of readings: the sum holds, whatever comes; and who gets what, case by case.

use super::{
    Key, Meter, Places, Spent,
    work::Facts,
    works::{Done, Progress, Works},
};
use crate::{
    holding::{GpuHolding, Holder, Holdings, Owner, ServerHolding},
    ids::Tier,
    snapshot::{Answering, DriverState, GpuProcess, GpuState, MigPart},
    units::{Bytes, Microjoules, Tokens},
};
use proptest::prelude::*;
use std::{collections::BTreeMap, time::Duration};
use tokio::time::Instant;

const SECOND: Duration = Duration::from_secs(1);

fn key(server: &str, tenant: &str) -> Key {
    Key { server: server.into(), model: "m".into(), tenant: tenant.into(), tier: Tier::Batch }
}

fn card(name: &str, energy_mj: Option<u64>) -> GpuState {
    let mut card = GpuState::blank(name.into(), 0, "card".into());
    card.energy_mj = energy_mj;
    card.memory_total = Some(Bytes(64 << 30));
    card
}

fn driver(gpus: Vec<GpuState>, read_at: Instant) -> DriverState {
    let (driver_version, nvml_version) = (String::new(), String::new());
    DriverState { driver_version, nvml_version, session: 1, gpus, read_at }
}

/// Servers on cards, each with the process of the number beside it.
fn places(servers: &[(&str, &[&str], u32)]) -> Places {
    let mut holdings = Holdings::default();
    for (server, gpus, pid) in servers {
        let mut place = ServerHolding { pids: vec![*pid], ..ServerHolding::default() };
        place.gpus.extend(gpus.iter().map(|gpu| ((*gpu).into(), None)));
        holdings.servers.insert((*server).into(), place);
    }
    let owner = Owner::Foreign { name: "other".into(), unit: None, container: None };
    let holder = Holder { owner, memory: None, pids: vec![99] };
    holdings.gpus.push(GpuHolding { gpu: "g".into(), holders: vec![holder], untold: None });
    Places::of(&holdings, std::iter::empty())
}

fn done(of: &[(&str, &str, u64)]) -> Progress {
    let worked = Duration::from_millis(700);
    let done = of
        .iter()
        .map(|(server, tenant, weight)| (key(server, tenant), Done { weight: *weight, worked }));
    Progress { live: Vec::new(), done: done.collect() }
}

fn joules(spent: Option<&Spent>) -> f64 {
    spent.map_or(0.0, |spent| spent.energy.joules())
}

/// Two rounds a second apart in which the card `g` draws 500 J, 100 W of it idle; what becomes of them.
fn split_of(state: GpuState, places: &Places, progress: Progress) -> (Meter, BTreeMap<Key, Spent>) {
    let (mut meter, start) = (Meter::default(), Instant::now());
    let reading = |energy_mj, at| driver(vec![GpuState { energy_mj, ..state.clone() }], at);
    let idle = GpuState { utilisation_percent: Some(0), ..card("g", Some(0)) };
    let first = driver(vec![idle.clone()], start);
    meter.round(start, Some(&first), places, Progress::default());
    let at = start + SECOND;
    let still = driver(vec![GpuState { energy_mj: Some(100_000), ..idle }], at);
    meter.round(at, Some(&still), places, Progress::default());
    let at = start + SECOND * 2;
    let round = meter.round(at, Some(&reading(Some(600_000), at)), places, progress);
    (meter, round.grants)
}

fn process(pid: u32, utilisation_percent: Option<u32>) -> GpuProcess {
    GpuProcess { pid, utilisation_percent, ..GpuProcess::default() }
}

#[test]
fn servers_share_by_tokens_where_the_driver_tells_nothing_of_processes() {
    let places = places(&[("s", &["g"], 1), ("t", &["g"], 2)]);
    let progress = done(&[("s", "a", 3000), ("s", "b", 1000), ("t", "a", 4000)]);
    let (meter, grants) = split_of(card("g", None), &places, progress);
    assert_eq!(joules(grants.get(&key("s", "a"))), 150.0);
    assert_eq!(joules(grants.get(&key("s", "b"))), 50.0);
    assert_eq!(joules(grants.get(&key("t", "a"))), 200.0);
    let view = &meter.cards()[0];
    assert_eq!(view.shares.idle.energy, Microjoules(200_000_000), "100 W, also while it worked");
}

#[test]
fn processes_share_by_their_utilisation_and_a_stranger_pays_his_part() {
    let places = places(&[("s", &["g"], 1), ("t", &["g"], 2)]);
    let mut state = card("g", None);
    state.utilisation_percent = Some(80);
    state.processes = Some(vec![process(1, Some(30)), process(2, Some(10)), process(99, Some(40))]);
    let progress = done(&[("s", "a", 1), ("t", "a", 1_000_000)]);
    let (meter, grants) = split_of(state.clone(), &places, progress);
    assert_eq!(joules(grants.get(&key("s", "a"))), 150.0);
    assert_eq!(joules(grants.get(&key("t", "a"))), 50.0);
    let shares = meter.cards()[0].shares;
    assert_eq!(shares.foreign.energy, Microjoules(200_000_000));
    assert_eq!(shares.foreign.time.seconds(), 0.4, "half of the 0.8 s that it worked");
    // A server of ours that works without requests of ours works for somebody else.
    let (meter, grants) = split_of(state, &places, done(&[("s", "a", 1)]));
    assert_eq!(joules(grants.get(&key("s", "a"))), 150.0);
    assert_eq!(meter.cards()[0].shares.foreign.energy, Microjoules(250_000_000));
}

#[test]
fn without_requests_a_busy_card_works_for_strangers_and_another_is_idle() {
    let places = places(&[("s", &["g"], 1)]);
    let busy = GpuState { utilisation_percent: Some(50), ..card("g", None) };
    let (meter, _) = split_of(busy, &places, Progress::default());
    assert_eq!(meter.cards()[0].shares.foreign.energy, Microjoules(400_000_000));
    let calm = GpuState { utilisation_percent: Some(0), ..card("g", None) };
    let (meter, _) = split_of(calm, &places, Progress::default());
    assert_eq!(meter.cards()[0].shares.idle.energy, Microjoules(600_000_000));
}

#[test]
fn requests_that_show_nothing_share_by_time() {
    let places = places(&[("s", &["g"], 1)]);
    let mut progress = done(&[("s", "a", 0), ("s", "b", 0)]);
    progress.done.get_mut(&key("s", "a")).unwrap().worked = Duration::from_millis(2100);
    let (_, grants) = split_of(card("g", None), &places, progress);
    assert_eq!(joules(grants.get(&key("s", "a"))), 300.0);
    assert_eq!(joules(grants.get(&key("s", "b"))), 100.0);
}

#[test]
fn a_card_that_was_lost_is_paid_by_those_who_worked_meanwhile() {
    let places = places(&[("s", &["g"], 1)]);
    let (mut meter, start) = (Meter::default(), Instant::now());
    let mut lost = card("g", None);
    lost.answering = Answering::Lost("lost".into());
    let rounds = [
        (card("g", Some(0)), Progress::default()),
        (lost.clone(), done(&[("s", "a", 1000)])),
        (lost, done(&[("s", "b", 9000)])),
        (card("g", Some(100_000)), Progress::default()),
    ];
    let mut grants = BTreeMap::new();
    for (second, (state, progress)) in (0..).zip(rounds) {
        let at = start + SECOND * second;
        grants.extend(meter.round(at, Some(&driver(vec![state], at)), &places, progress).grants);
    }
    // By time: nobody knows which second took how much.
    assert_eq!(joules(grants.get(&key("s", "a"))), 42.5);
    assert_eq!(joules(grants.get(&key("s", "b"))), 42.5);
    assert_eq!(meter.cards()[0].shares.all().energy, Microjoules(100_000_000));
}

#[test]
fn steps_between_two_readings_of_the_counter_weigh_by_their_power() {
    let places = places(&[("s", &["g"], 1)]);
    let (mut meter, start) = (Meter::default(), Instant::now());
    let mut grants = BTreeMap::new();
    // 0 W idle, learned; then half a second at 100 W for one, half a second at 300 W for the other.
    let rounds = [
        (0, 0, 0.0, Progress::default()),
        (1000, 0, 0.0, Progress::default()),
        (6000, 0, 0.0, Progress::default()),
        (6001, 0, 100.0, Progress::default()),
        (6500, 0, 100.0, done(&[("s", "a", 500)])),
        (6501, 0, 300.0, Progress::default()),
        (7000, 210_000, 300.0, done(&[("s", "b", 500)])),
    ];
    for (millis, energy_mj, watts, progress) in rounds {
        let at = start + Duration::from_millis(millis);
        let mut state = card("g", Some(energy_mj));
        state.power_w = Some(watts);
        state.utilisation_percent = Some(if millis > 6000 { 100 } else { 0 });
        let round = meter.round(at, Some(&driver(vec![state], at)), &places, progress);
        grants.extend(round.grants.into_iter().filter(|(_, spent)| spent.energy.get() > 0));
    }
    assert!((joules(grants.get(&key("s", "a"))) - 52.0).abs() < 1.0, "{grants:?}");
    assert!((joules(grants.get(&key("s", "b"))) - 157.0).abs() < 1.0, "{grants:?}");
}

#[test]
fn a_request_that_ends_between_two_rounds_is_paid_under_its_key() {
    let places = places(&[("s", &["g"], 1)]);
    let (works, mut meter, start) = (Works::default(), Meter::default(), Instant::now());
    works.meter(4.0);
    let facts = Facts { key: key("s", "a"), input: Tokens(10), output: Tokens(9), stream: false };
    let first = driver(vec![card("g", Some(0))], start);
    meter.round(start, Some(&first), &places, works.take(start));
    let work = works.begin(facts, start + SECOND / 4).unwrap();
    works.end(&work, start + SECOND / 2);
    let at = start + SECOND;
    let next = driver(vec![card("g", Some(80_000))], at);
    let round = meter.round(at, Some(&next), &places, works.take(at));
    assert_eq!(joules(round.grants.get(&key("s", "a"))), 68.0);
    assert_eq!(round.costs.len(), 1);
}

/// A card that is lost lists no MIG devices; who worked on them meanwhile went unpaid.
#[test]
fn a_cut_card_that_was_lost_is_paid_by_those_on_its_parts() {
    let places = places(&[("s", &["M"], 1)]);
    let (mut meter, start) = (Meter::default(), Instant::now());
    let parent = || "g".into();
    let part = MigPart { parent: parent(), gpu_instance: Some(1), compute_instance: Some(0) };
    let mig = GpuState { mig: Some(part), ..card("M", None) };
    let lost = GpuState { answering: Answering::Lost("lost".into()), ..card("g", None) };
    let rounds = [
        (vec![card("g", Some(0)), mig.clone()], Progress::default()),
        (vec![lost], done(&[("s", "a", 1000)])),
        (vec![], done(&[("s", "b", 1000)])),
        (vec![card("g", Some(100_000)), mig], Progress::default()),
    ];
    let mut grants = BTreeMap::new();
    for (second, (gpus, progress)) in (0..).zip(rounds) {
        let at = start + SECOND * second;
        grants.extend(meter.round(at, Some(&driver(gpus, at)), &places, progress).grants);
    }
    assert_eq!(joules(grants.get(&key("s", "a"))), 42.5);
    assert_eq!(joules(grants.get(&key("s", "b"))), 42.5);
}

/// Meters may be read between rounds, and a card that hangs is left out then.
#[test]
fn cards_have_times_of_their_own() {
    let places = places(&[("s", &["g", "h"], 1)]);
    let (mut meter, start) = (Meter::default(), Instant::now());
    let stamped = |name, energy_mj, millis| GpuState {
        metered_at: Some(start + Duration::from_millis(millis)),
        ..card(name, Some(energy_mj))
    };
    let rounds = [
        (0, stamped("g", 0, 0), stamped("h", 0, 0), Progress::default()),
        (500, stamped("g", 100_000, 500), stamped("h", 0, 0), done(&[("s", "a", 1)])),
        (1000, stamped("g", 200_000, 1000), stamped("h", 400_000, 1000), done(&[("s", "b", 1)])),
    ];
    let mut all: BTreeMap<Key, Spent> = BTreeMap::new();
    for (millis, g, h, progress) in rounds {
        let driver = driver(vec![g, h], start);
        let at = start + Duration::from_millis(millis);
        for (key, spent) in meter.round(at, Some(&driver), &places, progress).grants {
            let sum = all.entry(key).or_default();
            *sum = sum.plus(spent);
        }
    }
    // Of `g` each its own half second; of `h` both by time: half a second, and the second that it took.
    assert_eq!(joules(all.get(&key("s", "a"))).round(), 85.0 + 113.0);
    assert_eq!(joules(all.get(&key("s", "b"))).round(), 85.0 + 227.0);
    for view in meter.cards() {
        assert_eq!(view.shares.all().time.seconds(), 1.0);
    }
}

/// What can happen to three cards, the first of them cut into two, in one round.
#[derive(Clone, Debug)]
struct Event {
    millis: u64,
    /// For each card: how the counter moves, or what else becomes of the reading.
    cards: Vec<(u8, u64, u8)>,
    progress: Vec<(u8, u8, u64)>,
    no_driver: bool,
}

fn events() -> impl Strategy<Value = Vec<Event>> {
    let card = (0..12_u8, 0..900_000_u64, 0..=100_u8);
    let event = (
        50..3_000_u64,
        prop::collection::vec(card, 3),
        prop::collection::vec((0..4_u8, 0..3_u8, 0..5_000_u64), 0..6),
        prop::bool::weighted(0.05),
    );
    let event = event.prop_map(|(millis, cards, progress, no_driver)| Event {
        millis,
        cards,
        progress,
        no_driver,
    });
    prop::collection::vec(event, 1..60)
}

proptest! {
    /// Whatever happens, each card's shares are what its counter moved, to the microjoule, and what
    /// cards give to requests is what keys get.
    #[test]
    fn the_sum_holds_over_any_script(events in events()) {
        let names = ["cut", "g", "pair"];
        let places = places(&[
            ("s", &["M-0", "g"], 1), ("t", &["M-1"], 2), ("u", &["g", "pair"], 3), ("v", &["nowhere"], 4),
        ]);
        let (mut meter, start) = (Meter::default(), Instant::now());
        let mut at = start;
        let mut counters = [0_u64; 3];
        // By the test's own reckoning: the last told value, when it was told, and what moved.
        let mut told = [(0_u64, start); 3];
        let first = driver(names.iter().map(|name| card(name, Some(0))).collect(), start);
        meter.round(start, Some(&first), &places, Progress::default());
        let mut moved = [0_u64; 3];
        let mut granted = Spent::default();
        for event in &events {
            at += Duration::from_millis(event.millis);
            let mut gpus = Vec::new();
            for (index, (what, by, percent)) in event.cards.iter().enumerate() {
                counters[index] += by * event.millis / 1000;
                let mut state = card(names[index], Some(counters[index]));
                state.utilisation_percent = (*percent % 3 > 0).then_some(u32::from(*percent));
                state.power_w = (*percent % 2 > 0).then_some(*by as f64 / 1e3);
                state.power_limit_w = Some(700.0);
                if *percent % 5 == 0 {
                    let used = |pid: u32| process(pid, Some(u32::from(*percent) / 2));
                    state.processes = Some([1, 3, 99].map(used).to_vec());
                }
                match what {
                    0 => {
                        counters[index] = by / 1000;
                        state.energy_mj = Some(counters[index]);
                    }
                    1 => {
                        state.energy_mj = None;
                        state.answering = Answering::Lost("lost".into());
                    }
                    2 => state.energy_mj = None,
                    3 => continue,
                    // Not read again. A counter that stood still for long and then leaps is not believed.
                    4 if at - told[index].1 < SECOND * 4 => {
                        state.energy_mj = Some(told[index].0);
                    }
                    _ => {}
                }
                if let (Some(now), false) = (state.energy_mj, event.no_driver) {
                    let (last, since) = told[index];
                    if now != last || at - since >= SECOND * 5 {
                        moved[index] += now.saturating_sub(last);
                        told[index] = (now, at);
                    }
                }
                gpus.push(state);
                if index == 0 {
                    for (part, name) in ["M-0", "M-1"].iter().enumerate() {
                        let mut state = card(name, None);
                        let parent = "cut".into();
                        let gpu_instance = Some(part as u32);
                        state.mig = Some(MigPart { parent, gpu_instance, compute_instance: None });
                        gpus.push(state);
                    }
                }
            }
            let servers = ["s", "t", "u", "v"];
            let tenants = ["a", "b", "c"];
            let of: Vec<(&str, &str, u64)> = event.progress.iter()
                .map(|(s, t, weight)| (servers[usize::from(*s)], tenants[usize::from(*t)], *weight))
                .collect();
            let driver = driver(gpus, at);
            let round = meter.round(at, (!event.no_driver).then_some(&driver), &places, done(&of));
            for spent in round.grants.values() {
                granted = granted.plus(*spent);
            }
        }
        let mut to_requests = Spent::default();
        for view in meter.cards() {
            let index = names.iter().position(|name| *name == view.gpu.as_str()).unwrap();
            let all = view.shares.all();
            prop_assert_eq!(all.energy.get(), moved[index] * 1000);
            prop_assert_eq!(u128::from(all.time.get()), (at - start).as_micros());
            to_requests = to_requests.plus(view.shares.requests);
        }
        prop_assert_eq!(to_requests, granted);
    }
}
