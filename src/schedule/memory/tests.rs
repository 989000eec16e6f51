//! Rooms and cards as the dispatch keeps them, told as stories.

use super::*;
use crate::{
    ids::Tier,
    schedule::{Blocks, Choice, Known, Rules, Weighed},
    snapshot::{Loading, ServedModel},
};

const MIB: u64 = 1 << 20;

/// A card with so many MiB free above nothing, and a floor of 500.
fn card(free: u64) -> Card {
    let foreign = Some("pid 4711 (trainer) holds 20.0 GiB".to_owned());
    Card { gpu: "GPU-a".into(), index: 0, free: Bytes::mib(free), floor: Bytes::mib(500), foreign }
}

fn held(growth: u64, undisturbed: bool) -> Option<Held> {
    Some(Held {
        per_token: Bytes(MIB),
        cards: vec![0],
        load_cards: vec![0],
        growth: Bytes::mib(growth),
        undisturbed,
    })
}

fn room(id: &str) -> Room {
    Room {
        usable: true,
        models: vec![ServedModel::ready("m".into(), None)],
        ..Room::new(id.into(), &Rules::default())
    }
}

/// A prompt without blocks.
static NONE: std::sync::LazyLock<Blocks> = std::sync::LazyLock::new(Blocks::default);

fn choose(rooms: &[Room], need: Need<'_>) -> Choice {
    let rules = Rules::default();
    let now = tokio::time::Instant::now();
    match crate::schedule::choose(rooms, need, &mut Known::default(), &rules, now).0 {
        Choice::Here(at, _) => here(at),
        choice => choice,
    }
}

/// A room was chosen, at whatever cost.
fn here(at: usize) -> Choice {
    let weighed =
        Weighed { bar: None, cost_s: 0.0, debt_s: 0.0, prefill_s: 0.0, cached: Tokens::ZERO };
    Choice::Here(at, weighed)
}

fn need<'a>(model: &'a ModelName, tokens: u64) -> Need<'a> {
    Need {
        model,
        tokens: Tokens(tokens),
        input: Tokens(tokens),
        span: Tokens::ZERO,
        sequences: 1,
        tier: Tier::Standard,
        blocks: &NONE,
        tried: &[],
    }
}

/// Rooms as the dispatch keeps them.
struct House {
    rooms: Vec<Room>,
    cards: Vec<Card>,
}

impl House {
    fn new(rooms: Vec<Room>, free: u64) -> Self {
        Self { rooms, cards: vec![card(free)] }
    }

    fn read(&mut self, free: u64, held: &[Option<Held>]) {
        self.cards[0].free = Bytes::mib(free);
        for (room, held) in self.rooms.iter_mut().zip(held) {
            room.hold(held.clone());
        }
        settle(&mut self.rooms, &self.cards);
    }

    fn place(&mut self, index: usize, tokens: u64) -> Option<Promise> {
        let model = "m".into();
        let room = &mut self.rooms[index];
        if !room.memory_fits(need(&model, tokens)) {
            return None;
        }
        let promise = room.promise(need(&model, tokens));
        room.claimed = room.claimed.plus(Tokens(tokens));
        room.requests += 1;
        settle(&mut self.rooms, &self.cards);
        Some(promise)
    }

    fn end(&mut self, index: usize, tokens: u64, promise: Promise) {
        let room = &mut self.rooms[index];
        room.claimed = room.claimed.less(Tokens(tokens));
        room.requests -= 1;
        room.unpromise(promise, &"m".into());
        settle(&mut self.rooms, &self.cards);
    }
}

#[test]
fn what_is_free_above_the_floor_is_given_once() {
    let mut house = House::new(vec![room("a")], 0);
    house.read(1500, &[held(0, false)]);
    let first = house.place(0, 600).unwrap();
    assert_eq!(house.place(0, 401), None);
    house.place(0, 400).unwrap();
    assert_eq!(house.place(0, 1), None);
    // Half of it is seen in the card by now, and is not asked for twice.
    house.read(1000, &[held(500, false)]);
    assert_eq!(house.place(0, 1), None);
    // What ended gives nothing back before a reading shows it.
    house.end(0, 600, first);
    assert_eq!(house.place(0, 1), None);
    house.read(1100, &[held(400, false)]);
    house.place(0, 600).unwrap();
    assert_eq!(house.place(0, 1), None);
}

#[test]
fn what_comes_and_goes_between_two_readings_leaves_nothing_behind() {
    let mut house = House::new(vec![room("a")], 0);
    house.read(1500, &[held(0, false)]);
    for _ in 0..100 {
        let promise = house.place(0, 1000).unwrap();
        house.end(0, 1000, promise);
    }
}

#[test]
fn servers_on_one_card_share_what_is_free() {
    let mut house = House::new(vec![room("a"), room("b")], 0);
    house.read(1500, &[held(0, false), held(0, false)]);
    house.place(0, 700).unwrap();
    assert_eq!(house.place(1, 301), None);
    house.place(1, 300).unwrap();
    assert_eq!(house.place(0, 1), None);
}

#[test]
fn a_server_on_two_cards_needs_half_on_each() {
    let mut house = House::new(vec![room("a")], 0);
    house.cards.push(Card { gpu: "GPU-b".into(), index: 1, ..card(700) });
    let both = Held { cards: vec![0, 1], ..held(0, false).unwrap() };
    house.read(5000, &[Some(both)]);
    // 200 MiB above the floor of the second card.
    assert_eq!(house.place(0, 401), None);
    house.place(0, 400).unwrap();
}

/// A pool that stays after the work: a card below its floor must not shut its server off.
#[test]
fn memory_that_is_kept_serves_the_next_requests() {
    let mut house = House::new(vec![room("a")], 0);
    house.read(1500, &[held(0, false)]);
    let promise = house.place(0, 900).unwrap();
    house.read(600, &[held(900, false)]);
    house.end(0, 900, promise);
    assert_eq!(house.place(0, 101), None, "it may be on its way back to the card");
    for _ in 1..KEPT_READINGS {
        house.read(400, &[held(900, false)]);
        assert_eq!(house.place(0, 1), None, "seen too seldom");
    }
    house.read(400, &[held(900, false)]);
    assert_eq!(house.place(0, 901), None);
    house.place(0, 900).unwrap();
    assert_eq!(house.place(0, 1), None);
}

/// A llama.cpp that filled its card when it loaded would have been refused for ever.
#[test]
fn a_card_that_the_server_itself_filled_is_its_normal_state() {
    let mut house = House::new(vec![room("a")], 0);
    house.read(100, &[held(0, true)]);
    let model = "m".into();
    assert!(house.rooms[0].memory_could_fit(need(&model, 100_000)));
    // Half of what it leaves free, or one request alone, whatever it needs.
    let small = house.place(0, 50).unwrap();
    assert_eq!(house.place(0, 1), None);
    house.end(0, 50, small);
    let large = house.place(0, 100_000).unwrap();
    assert_eq!(house.place(0, 1), None);
    house.end(0, 100_000, large);
    // A foreign process came: now the floor holds, and nothing is there.
    house.read(100, &[held(0, false)]);
    assert_eq!(house.place(0, 1), None);
    assert!(!house.rooms[0].memory_could_fit(need(&model, 1)));
}

#[test]
fn one_alone_does_not_mean_one_of_each_server() {
    let mut house = House::new(vec![room("a"), room("b")], 0);
    house.read(100, &[held(0, true), held(0, true)]);
    house.place(0, 5000).unwrap();
    assert_eq!(house.place(1, 5000), None, "the card is promised to the first");
}

#[test]
fn a_cramped_server_is_told_from_a_full_one() {
    let model: ModelName = "m".into();
    let mut house = House::new(vec![room("a")], 0);
    house.read(1500, &[held(0, false)]);
    assert_eq!(choose(&house.rooms, need(&model, 1000)), here(0));
    assert_eq!(choose(&house.rooms, need(&model, 1001)), Choice::Cramped);
    house.place(0, 1000).unwrap();
    assert_eq!(choose(&house.rooms, need(&model, 1000)), Choice::Full);
    // Another server without a guard takes what is too large for this one.
    house.rooms.push(room("b"));
    assert_eq!(choose(&house.rooms, need(&model, 1001)), here(1));
    house.rooms[1].usable = false;
    assert_eq!(choose(&house.rooms, need(&model, 1001)), Choice::Cramped);
    let text = explain(&house.rooms[0], &house.cards, need(&model, 3000)).unwrap();
    assert_eq!(
        text,
        "This request needs about 2.9 GiB on GPU 0; 1000 MiB are free there above the floor of 500 MiB; \
         pid 4711 (trainer) holds 20.0 GiB."
    );
}

/// A small server once made a large request wait for it, in front of all others, though it would never take it.
#[test]
fn a_server_that_is_too_small_is_nothing_to_wait_for() {
    let model: ModelName = "m".into();
    let mut small = room("small");
    small.capacity.kv_tokens = Some(Tokens(100));
    let mut house = House::new(vec![room("large"), small], 0);
    house.read(1500, &[held(0, false), None]);
    assert_eq!(choose(&house.rooms, need(&model, 1001)), Choice::Cramped);
    assert_eq!(choose(&house.rooms, need(&model, 50)), here(0));
}

/// A driver that went and came back once made old promises count as new ones, which gave memory back twice.
#[test]
fn a_promise_from_before_the_guard_began_anew_gives_nothing_back() {
    let mut house = House::new(vec![room("a")], 0);
    house.read(1500, &[held(0, false)]);
    let old = house.place(0, 600).unwrap();
    house.read(1500, &[None]);
    house.read(1500, &[held(600, false)]);
    let _new = house.place(0, 1000).unwrap();
    house.end(0, 600, old);
    assert_eq!(house.place(0, 1), None);
}

#[test]
fn a_model_is_loaded_only_into_room_that_is_there_or_would_be_made() {
    let on_demand = |name: &str, gib: u64, loaded| ServedModel {
        loading: Some(Loading { memory: Bytes(gib << 30), loaded }),
        ..ServedModel::ready(name.into(), None)
    };
    let models = vec![on_demand("big", 8, false), on_demand("old", 5, true)];
    let mut house = House::new(vec![Room { models, ..room("o") }], 0);
    let small = Held { per_token: Bytes(1024), ..held(0, true).unwrap() };
    let (big, old): (ModelName, ModelName) = ("big".into(), "old".into());
    // 2 GiB above the floor, and 5 that it would give up: one GiB too little, even undisturbed and alone.
    house.read(2 * 1024 + 500, &[Some(small.clone())]);
    assert_eq!(choose(&house.rooms, need(&big, 500)), Choice::Cramped);
    let text = explain(&house.rooms[0], &house.cards, need(&big, 500)).unwrap();
    assert!(text.starts_with("Loading model 'big' and running this request needs about 8.0 GiB"));
    house.read(4 * 1024 + 500, &[Some(small)]);
    assert_eq!(choose(&house.rooms, need(&big, 500)), here(0));
    // Who uses the other one keeps it loaded.
    let user = house.rooms[0].promise(need(&old, 500));
    settle(&mut house.rooms, &house.cards);
    assert_eq!(choose(&house.rooms, need(&big, 500)), Choice::Full);
    house.rooms[0].unpromise(user, &old);
    settle(&mut house.rooms, &house.cards);
    // While it loads, its second user asks for nothing twice.
    house.rooms[0].promise(need(&big, 500));
    settle(&mut house.rooms, &house.cards);
    assert_eq!(house.rooms[0].memory_need(need(&big, 500)), Bytes(500 * 1024));
}

/// Nothing is loaded, so the server is on no card yet: any of them may take the model, in parts too.
#[test]
fn a_model_may_be_loaded_to_any_card_with_room() {
    let model: ModelName = "m".into();
    let loading = Some(Loading { memory: Bytes::mib(3000), loaded: false });
    let models = vec![ServedModel { loading, ..ServedModel::ready("m".into(), None) }];
    let mut house = House::new(vec![Room { models, ..room("o") }], 0);
    house.cards.push(Card { gpu: "GPU-b".into(), index: 1, ..card(3600) });
    let held = Held { cards: Vec::new(), load_cards: vec![0, 1], ..held(0, true).unwrap() };
    house.read(100, &[Some(held.clone())]);
    assert_eq!(choose(&house.rooms, need(&model, 100)), here(0), "the full one is no matter");
    assert_eq!(choose(&house.rooms, need(&model, 101)), Choice::Cramped);
    let text = explain(&house.rooms[0], &house.cards, need(&model, 101)).unwrap();
    assert!(text.contains("about 3.0 GiB on GPU 0, 1; 3.0 GiB are free there"), "{text}");
    // Loaded without a card, on the processor: no card has a say.
    house.rooms[0].models[0].loading = Some(Loading { memory: Bytes::ZERO, loaded: true });
    house.cards[1].free = Bytes::ZERO;
    house.read(0, &[Some(Held { undisturbed: false, ..held })]);
    assert_eq!(choose(&house.rooms, need(&model, 1000)), here(0));
}
