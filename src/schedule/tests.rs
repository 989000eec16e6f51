//! Rooms and turns as the daemon and the replay drive them, told as stories.

use super::*;
use crate::{
    ids::Tier,
    queue::Limits,
    snapshot::{Capacity, ServedModel},
    units::Tokens,
};
use proptest::prelude::*;
use std::{sync::Arc, time::Duration};
use tokio::time::Instant;

/// Costs that are easy to reckon with: a millisecond a token, nothing else.
fn rules() -> Rules {
    let costs =
        Costs { prompt_s: 0.0, token_s: 1e-3, attention_s: 0.0, step_s: 0.01, context_s: 0.0 };
    // And no rests.
    Rules { costs, costs_known: true, token_gap_s: 10.0, ..Rules::default() }
}

struct House {
    scheduler: Scheduler<u32>,
    now: Instant,
}

impl House {
    fn new(rules: Rules, servers: &[(&str, u64, u32)]) -> Self {
        let limits = Limits {
            length_max: 1000,
            tenant_max: 1000,
            standard_ages: Duration::from_secs(30),
            batch_ages: Duration::from_secs(120),
        };
        let mut scheduler = Scheduler::new(rules.clone(), limits);
        for (id, kv, max_running) in servers {
            let mut room = Room::new((*id).into(), &rules);
            room.usable = true;
            let capacity = Capacity {
                kv_tokens: Some(Tokens(*kv)),
                max_running: Some(*max_running),
                block_tokens: Some(16),
            };
            room.adopt(&[ServedModel::ready("m".into(), None)], &capacity);
            scheduler.rooms.push(room);
        }
        Self { scheduler, now: Instant::now() }
    }

    fn request(&self, tenant: &str, input: u64) -> Request {
        Request {
            watched: true,
            ..Request::plain("m".into(), tenant.into(), Tokens(input), self.now)
        }
    }

    /// A request whose prompt begins with these blocks of 16 tokens.
    fn with_blocks(&self, input: u64, blocks: &[u64]) -> Request {
        let blocks = Blocks { hashes: blocks.into(), tokens: 16 };
        Request { blocks, ..self.request("a", input) }
    }

    fn offer(&mut self, request: Request, item: u32) -> Offer<u32> {
        self.scheduler.offer(request, Known::default(), item, false, self.now)
    }

    fn placed(&mut self, request: Request) -> Grant {
        match self.offer(request, 0) {
            Offer::Placed(grant, ..) => grant,
            other => panic!("it has no turn: {other:?}"),
        }
    }

    fn waits(&mut self, request: Request, item: u32) -> crate::queue::Ticket {
        match self.offer(request, item) {
            Offer::Waits(ticket, ..) => ticket,
            other => panic!("it does not wait: {other:?}"),
        }
    }

    fn first_token(&mut self, grant: &Grant) {
        self.scheduler.first_token(&grant.server, grant.seat, self.now);
    }

    fn end(&mut self, grant: &Grant, output: u64) {
        self.scheduler.take_back(&grant.server, grant.seat, Some(Tokens(output)), self.now);
    }

    fn after(&mut self, ms: u64) {
        self.now += Duration::from_millis(ms);
    }
}

#[test]
fn the_server_that_has_the_beginning_takes_it_unless_it_owes_too_much() {
    let mut house = House::new(rules(), &[("a", 10_000, 8), ("b", 10_000, 8)]);
    let blocks: Vec<u64> = (0..10).collect();
    let first = house.placed(house.with_blocks(200, &blocks));
    house.after(200);
    house.first_token(&first);
    house.end(&first, 10);
    let again = house.placed(house.with_blocks(200, &blocks));
    assert_eq!((again.server.clone(), again.weighed.cached), (first.server.clone(), Tokens(160)));
    // Long work there: what is cached is not worth so long a wait.
    house.placed(Request { tried: vec![other(&first)], ..house.request("a", 300) });
    house.placed(Request { tried: vec![other(&first)], ..house.request("a", 2_000) });
    let elsewhere = house.placed(house.with_blocks(200, &blocks));
    assert_eq!(elsewhere.server, other(&first));
}

fn other(grant: &Grant) -> crate::ids::ServerId {
    if grant.server.as_str() == "a" { "b".into() } else { "a".into() }
}

#[test]
fn a_warm_server_is_waited_for_a_little_and_others_pass_meanwhile() {
    let mut house = House::new(rules(), &[("a", 100_000, 8), ("b", 100_000, 8)]);
    let blocks: Vec<u64> = (0..250).collect();
    let first = house.placed(house.with_blocks(4_000, &blocks));
    assert_eq!(first.server.as_str(), "a");
    house.after(4_000);
    house.first_token(&first);
    let owing = house.placed(Request { tried: vec!["b".into()], ..house.request("a", 600) });
    // 4 s of prefill on b, at once; next to nothing on a, in 0.2 s: it waits.
    house.waits(house.with_blocks(4_010, &blocks), 7);
    assert!(house.scheduler.next(house.now).is_none());
    // One with nothing cached does not have to.
    house.waits(house.request("a", 50), 8);
    assert!(
        matches!(house.scheduler.next(house.now), Some(Turn::Granted(8, grant, _)) if grant.server.as_str() == "b")
    );
    assert!(house.scheduler.wakes(house.now).is_some_and(|at| at > house.now));
    house.after(600);
    house.first_token(&owing);
    assert!(
        matches!(house.scheduler.next(house.now), Some(Turn::Granted(7, grant, _)) if grant.server.as_str() == "a")
    );
}

#[test]
fn shared_beginnings_take_room_once() {
    let mut house = House::new(rules(), &[("a", 1_000, 8)]);
    let blocks: Vec<u64> = (0..40).collect();
    let one = house.placed(house.with_blocks(650, &blocks));
    house.after(650);
    house.first_token(&one);
    assert_eq!(house.scheduler.rooms[0].placed_tokens(), Tokens(650));
    let two = house.placed(house.with_blocks(700, &blocks));
    assert_eq!(house.scheduler.rooms[0].placed_tokens(), Tokens(640 + 10 + 60));
    house.end(&one, 1);
    assert_eq!(house.scheduler.rooms[0].placed_tokens(), Tokens(700), "the other still uses them");
    house.end(&two, 1);
    assert_eq!(house.scheduler.rooms[0].placed_tokens(), Tokens::ZERO);
}

#[test]
fn the_batch_tier_leaves_room_for_others() {
    let mut house = House::new(rules(), &[("a", 1_000, 8)]);
    let _first = house.placed(house.request("a", 100));
    let batch = Request { tier: Tier::Batch, ..house.request("a", 780) };
    assert_eq!(house.scheduler.choose(&batch, house.now), Choice::Full);
    let standard = Request { tier: Tier::Standard, ..batch };
    assert!(matches!(house.scheduler.choose(&standard, house.now), Choice::Here(..)));
}

#[test]
fn who_cannot_make_its_deadline_is_refused_at_once_and_told_when_to_come() {
    let mut house = House::new(rules(), &[("a", 1_000_000, 100)]);
    let due = |house: &House, seconds: u64| house.now + Duration::from_secs(seconds);
    for item in 0..20 {
        let request = Request { due: due(&house, 60), strict: true, ..house.request("a", 1_000) };
        assert!(!matches!(house.offer(request, item), Offer::Late(..) | Offer::Full(..)));
    }
    let late = Request { due: due(&house, 30), strict: true, ..house.request("a", 1_000) };
    assert!(!matches!(house.offer(late, 20), Offer::Late(..)), "due before most of them");
    let late = Request { due: due(&house, 61), strict: true, ..house.request("a", 50_000) };
    let Offer::Late(told, _) = house.offer(late.clone(), 21) else { panic!("it cannot be done") };
    assert!(told.ttft_s > 61.0 && (60.0..=61.0).contains(&told.left_s), "{told:?}");
    // 71 s of work at 0.85 a second.
    let retry = house.scheduler.promise(&late, house.now);
    assert!((80.0..90.0).contains(&retry), "{retry}");
    // Patient ones are not refused for a guess while nobody is before them.
    let mut idle = House::new(rules(), &[("a", 1_000_000, 100)]);
    let patient = Request { due: idle.now + Duration::from_secs(1), ..idle.request("a", 50_000) };
    assert!(matches!(idle.offer(patient, 0), Offer::Placed(..)));
}

#[test]
fn a_request_that_grew_too_late_in_the_queue_is_dropped_and_not_served() {
    let mut house = House::new(rules(), &[("a", 100_000, 1)]);
    let running = house.placed(house.request("a", 100));
    let due = house.now + Duration::from_secs(2);
    house.waits(Request { due, strict: true, ..house.request("a", 500) }, 1);
    house.after(1_700);
    assert!(
        matches!(house.scheduler.next(house.now), Some(Turn::Late(1, late, _)) if late.left_s < 0.5)
    );
    house.end(&running, 1);
    assert!(house.scheduler.next(house.now).is_none());
}

#[test]
fn a_tenant_with_less_takes_a_place_of_the_fullest_in_a_full_queue() {
    let mut house = House::new(rules(), &[("a", 1_000, 1)]);
    house.scheduler.queue.set_limits(Limits {
        length_max: 4,
        tenant_max: 4,
        standard_ages: Duration::from_secs(30),
        batch_ages: Duration::from_secs(120),
    });
    let _running = house.placed(house.request("greedy", 10));
    for item in 0..4 {
        house.waits(house.request("greedy", 10), item);
    }
    assert!(matches!(house.offer(house.request("greedy", 10), 4), Offer::Full(..)));
    house.waits(house.request("quiet", 10), 5);
    assert!(matches!(house.scheduler.next(house.now), Some(Turn::Displaced(3, _))));
    assert!(house.scheduler.next(house.now).is_none());
    assert_eq!(house.scheduler.queue.len(), 4);
}

#[test]
fn an_answer_that_grows_takes_more_room_and_a_refund_follows_a_cancel() {
    let mut house = House::new(rules(), &[("a", 10_000, 8)]);
    for _ in 0..50 {
        house.scheduler.outputs.observe(&"a".into(), &"m".into(), Tokens(100), Tokens(100));
    }
    let request = Request { output: Tokens(100), ..house.request("a", 200) };
    let progress = Arc::clone(&request.progress);
    let grant = house.placed(request);
    house.first_token(&grant);
    assert_eq!(house.scheduler.rooms[0].placed_tokens(), Tokens(300));
    progress.set(Tokens(500));
    house.after(500);
    house.scheduler.look(house.now);
    let grown = house.scheduler.rooms[0].placed_tokens();
    assert!(grown > Tokens(700), "{grown}");
    house.end(&grant, 600);
    assert_eq!(house.scheduler.rooms[0].placed_tokens(), Tokens::ZERO);
    // One that leaves before anything was computed is charged nothing: its tenant is next again.
    let full = house.placed(house.request("c", 9_000));
    for (tenant, item) in [("a", 1), ("b", 2), ("a", 3), ("b", 4)] {
        house.waits(house.request(tenant, 3_000), item);
    }
    house.end(&full, 1);
    let turn = house.scheduler.next(house.now);
    let Some(Turn::Granted(1, gone, _)) = turn else { panic!("{turn:?}") };
    house.scheduler.take_back(&gone.server, gone.seat, None, house.now);
    let turn = house.scheduler.next(house.now);
    let Some(Turn::Granted(3, computed, _)) = turn else { panic!("{turn:?}") };
    house.after(3_000);
    house.first_token(&computed);
    house.scheduler.take_back(&computed.server, computed.seat, None, house.now);
    assert!(matches!(house.scheduler.next(house.now), Some(Turn::Granted(2, ..))));
}

#[test]
fn a_large_request_is_not_passed_by_small_ones_for_ever() {
    let mut house = House::new(rules(), &[("a", 1_000, 8)]);
    let running = house.placed(house.request("a", 500));
    house.after(500);
    house.first_token(&running);
    house.waits(Request { due: house.now + Duration::from_secs(20), ..house.request("a", 900) }, 1);
    house.waits(house.request("a", 100), 2);
    assert!(matches!(house.scheduler.next(house.now), Some(Turn::Granted(2, ..))), "it is young");
    house.after(10_000);
    house.waits(house.request("a", 100), 3);
    assert!(house.scheduler.next(house.now).is_none(), "it has waited for half of its time");
    house.end(&running, 1);
    assert!(house.scheduler.next(house.now).is_none());
}

/// What can happen to a house.
#[derive(Clone, Copy, Debug)]
enum Step {
    Come { tenant: u8, tier: u8, input: u64, output: u64, from: u64, strict: bool },
    First(usize),
    Grow(usize, u64),
    End(usize, bool),
    Leave(usize),
    Time(u64),
    Shut(bool),
    Lose,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        4 => (0u8..3, 0u8..4, 1u64..3_000, 0u64..400, 0u64..4, any::<bool>()).prop_map(
            |(tenant, tier, input, output, from, strict)| Step::Come { tenant, tier, input, output, from, strict }
        ),
        2 => (0usize..50).prop_map(Step::First),
        1 => ((0usize..50), 1u64..900).prop_map(|(at, more)| Step::Grow(at, more)),
        2 => ((0usize..50), any::<bool>()).prop_map(|(at, whole)| Step::End(at, whole)),
        1 => (0usize..50).prop_map(Step::Leave),
        2 => (1u64..3_000).prop_map(Step::Time),
        1 => any::<bool>().prop_map(Step::Shut),
        1 => Just(Step::Lose),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 256, ..ProptestConfig::default() })]

    /// Whatever happens in whatever order: no room is given beyond what a server has, what rooms hold is the sum
    /// of what runs, nothing is held twice, and at the end nothing is left.
    #[test]
    fn nothing_is_lost_and_nothing_is_left(steps in prop::collection::vec(step(), 1..120)) {
        let mut house = House::new(rules(), &[("a", 4_000, 6), ("b", 8_000, 3)]);
        let mut running: Vec<(Grant, Arc<Progress>, u64, u64)> = Vec::new();
        let mut waiting: Vec<(crate::queue::Ticket, Arc<Progress>, u64)> = Vec::new();
        let mut number = 0u32;
        for step in steps {
            match step {
                Step::Come { tenant, tier, input, output, from, strict } => {
                    number += 1;
                    let blocks: Vec<u64> = (0..input / 16).map(|at| from * 1_000 + at).collect();
                    let request = Request {
                        tier: Tier::ALL[usize::from(tier)],
                        output: Tokens(output),
                        blocks: Blocks { hashes: blocks.as_slice().into(), tokens: 16 },
                        strict,
                        due: house.now + Duration::from_secs(8),
                        ..house.request(&tenant.to_string(), input)
                    };
                    let progress = Arc::clone(&request.progress);
                    match house.offer(request, number) {
                        Offer::Placed(grant, ..) => running.push((grant, progress, input, output)),
                        Offer::Waits(ticket, ..) => waiting.push((ticket, progress, input)),
                        Offer::Full(..) | Offer::Late(..) | Offer::Nobody => {}
                    }
                }
                Step::First(at) if !running.is_empty() => {
                    let at = at % running.len();
                    house.scheduler.first_token(&running[at].0.server.clone(), running[at].0.seat, house.now);
                }
                Step::Grow(at, more) if !running.is_empty() => {
                    let at = at % running.len();
                    let progress = &running[at].1;
                    progress.set(progress.produced().plus(Tokens(more)));
                }
                Step::End(at, whole) if !running.is_empty() => {
                    let (grant, progress, ..) = running.swap_remove(at % running.len());
                    let output = whole.then(|| progress.produced());
                    house.scheduler.take_back(&grant.server, grant.seat, output, house.now);
                    // A second time it changes nothing.
                    house.scheduler.take_back(&grant.server, grant.seat, output, house.now);
                }
                Step::Leave(at) if !waiting.is_empty() => {
                    let (ticket, ..) = waiting.swap_remove(at % waiting.len());
                    house.scheduler.leave(ticket);
                    prop_assert!(house.scheduler.leave(ticket).is_none());
                }
                Step::Time(ms) => house.after(ms),
                Step::Shut(open) => house.scheduler.rooms[1].usable = open,
                Step::Lose => house.scheduler.rooms[0].prefix.clear(),
                _ => {}
            }
            let before: Vec<Tokens> = house.scheduler.rooms.iter().map(Room::placed_tokens).collect();
            while let Some(turn) = house.scheduler.next(house.now) {
                if let Turn::Granted(_, grant, request) = turn {
                    running.push((grant, request.progress.clone(), request.input.get(), request.output.get()));
                }
            }
            for (room, before) in house.scheduler.rooms.iter().zip(before) {
                let (size, placed) = (room.capacity.kv_tokens.unwrap(), room.placed_tokens());
                let share = Tokens((size.get() as f64 * 0.95) as u64 + 1);
                prop_assert!(placed <= before.max(share) || room.requests == 1, "{placed} of {size}");
                let here = running.iter().filter(|(grant, ..)| grant.server == room.id).count();
                prop_assert_eq!(room.requests as usize, here);
                prop_assert!(room.placed <= room.capacity.max_running.unwrap());
            }
            house.scheduler.look(house.now);
        }
        for (grant, ..) in running {
            house.scheduler.take_back(&grant.server, grant.seat, None, house.now);
        }
        for (ticket, ..) in waiting {
            house.scheduler.leave(ticket);
        }
        house.scheduler.rooms[1].usable = true;
        while let Some(turn) = house.scheduler.next(house.now) {
            if let Turn::Granted(_, grant, _) = turn {
                house.scheduler.take_back(&grant.server, grant.seat, None, house.now);
            }
        }
        for room in &house.scheduler.rooms {
            prop_assert_eq!((room.placed_tokens(), room.placed, room.requests), (Tokens::ZERO, 0, 0));
            prop_assert_eq!(room.prefix.pinned(), 0);
            prop_assert_eq!(room.flow.waiting(), 0);
        }
        prop_assert!(house.scheduler.queue.is_empty());
    }
}

#[test]
fn batch_work_that_has_shown_nothing_makes_way_where_the_operator_wants_it() {
    let mut house = House::new(Rules { preempt_batch: true, ..rules() }, &[("a", 1_000, 4)]);
    let _third = house.placed(house.request("c", 100));
    let batch = |house: &House| Request { tier: Tier::Batch, ..house.request("b", 100) };
    let shown = house.placed(batch(&house));
    house.after(100);
    house.first_token(&shown);
    let request = batch(&house);
    let called = Arc::clone(&request.progress);
    let hidden = house.placed(request);
    let _fourth = house.placed(house.request("c", 100));
    house.waits(house.request("a", 100), 1);
    let turn = house.scheduler.next(house.now);
    assert!(matches!(&turn, Some(Turn::Preempt(server, _)) if server.as_str() == "a"), "{turn:?}");
    assert!(called.is_called_back());
    // Once is enough, and who has shown something stays.
    assert!(house.scheduler.next(house.now).is_none());
    house.scheduler.take_back(&hidden.server, hidden.seat, None, house.now);
    assert!(matches!(house.scheduler.next(house.now), Some(Turn::Granted(1, ..))));
    house.waits(house.request("a", 100), 2);
    assert!(house.scheduler.next(house.now).is_none());
    // Not for its own kind, and not unless the operator wants it.
    let mut house = House::new(rules(), &[("a", 1_000, 1)]);
    let _running = house.placed(batch(&house));
    house.waits(house.request("a", 100), 1);
    assert!(house.scheduler.next(house.now).is_none());
}

/// Costs learned in a bad hour once refused every request that had a deadline, for ever: nothing was placed that
/// could have put them right.
#[test]
fn a_server_that_was_slow_for_an_hour_is_tried_again() {
    let mut house = House::new(rules(), &[("a", 1_000_000, 8)]);
    let strict = |house: &House| Request {
        due: house.now + Duration::from_secs(2),
        strict: true,
        ..house.request("a", 1_000)
    };
    for _ in 0..400 {
        let grant = house.placed(house.request("a", 1_000));
        house.after(10_000);
        house.first_token(&grant);
        house.end(&grant, 1);
    }
    let mut served = 0;
    for _ in 0..20_000 {
        house.after(500);
        if let Offer::Placed(grant, ..) = house.offer(strict(&house), 0) {
            served += 1;
            house.after(1_000);
            house.first_token(&grant);
            house.end(&grant, 1);
        }
    }
    assert!(served > 5_000, "{served} of 20000");
}

/// Batch work of one model once passed interactive requests for another on the same server for ever.
#[test]
fn tiers_hold_over_models_that_share_a_server() {
    let mut house = House::new(rules(), &[("a", 1_000, 2)]);
    let models = ["m", "other"].map(|name| ServedModel::ready(name.into(), None));
    let capacity = house.scheduler.rooms[0].capacity.clone();
    house.scheduler.rooms[0].adopt(&models, &capacity);
    let other = |house: &House| Request {
        tier: Tier::Batch,
        model: "other".into(),
        ..house.request("b", 100)
    };
    let first = house.placed(house.request("c", 500));
    house.after(500);
    house.first_token(&first);
    // It waits for room, and a small one of the other model comes by.
    house.waits(Request { tier: Tier::Interactive, ..house.request("a", 800) }, 1);
    house.after(301_000);
    house.waits(other(&house), 2);
    assert!(house.scheduler.next(house.now).is_none(), "nobody passes one that waited so long");
    house.end(&first, 1);
    assert!(matches!(house.scheduler.next(house.now), Some(Turn::Granted(1, ..))));
}

/// Who hung up before the first token once paid nothing, and so went first again and again.
#[test]
fn who_hangs_up_pays_for_what_was_computed() {
    let mut house = House::new(rules(), &[("a", 100_000, 1)]);
    let mut turns = [0u32, 0];
    let mut running = house.placed(house.request("honest", 10));
    for (tenant, item) in [("leaves", 0), ("leaves", 0), ("honest", 1), ("honest", 1)] {
        house.waits(house.request(tenant, 2_000), item);
    }
    house.end(&running, 1);
    for _ in 0..40 {
        let Some(Turn::Granted(item, grant, _)) = house.scheduler.next(house.now) else { panic!() };
        running = grant;
        turns[item as usize] += 1;
        let tenant = if item == 0 { "leaves" } else { "honest" };
        house.waits(house.request(tenant, 2_000), item);
        house.after(1_900);
        if item == 0 {
            house.scheduler.take_back(&running.server, running.seat, None, house.now);
        } else {
            house.after(100);
            house.first_token(&running);
            house.end(&running, 1);
        }
    }
    assert!(turns[0].abs_diff(turns[1]) <= 4, "{turns:?}");
}

/// One large request that only one server can take once kept everybody from the others.
#[test]
fn one_that_waits_for_one_server_keeps_nobody_from_the_others() {
    let mut house = House::new(rules(), &[("large", 10_000, 1), ("small", 1_000, 1)]);
    let running = house.placed(house.request("a", 5_000));
    assert_eq!(running.server.as_str(), "large");
    house.waits(house.request("a", 8_000), 1);
    house.after(400_000);
    house.waits(house.request("a", 500), 2);
    let turn = house.scheduler.next(house.now);
    assert!(
        matches!(&turn, Some(Turn::Granted(2, grant, _)) if grant.server.as_str() == "small"),
        "{turn:?}"
    );
    // But nobody takes the large one before it.
    house.scheduler.rooms[1].usable = false;
    house.waits(house.request("a", 500), 3);
    house.end(&running, 1);
    assert!(matches!(house.scheduler.next(house.now), Some(Turn::Granted(1, ..))));
}

#[test]
fn the_batch_tier_leaves_a_sequence_where_there_are_few() {
    let mut house = House::new(rules(), &[("a", 1_000_000, 4)]);
    let batch = |house: &House| Request { tier: Tier::Batch, ..house.request("a", 10) };
    for _ in 0..3 {
        house.placed(batch(&house));
    }
    house.waits(batch(&house), 1);
    house.waits(Request { tier: Tier::Interactive, ..house.request("a", 10) }, 2);
    assert!(matches!(house.scheduler.next(house.now), Some(Turn::Granted(2, ..))));
    // Where there is one only, it may have it.
    let mut house = House::new(rules(), &[("a", 1_000_000, 1)]);
    house.placed(batch(&house));
}
