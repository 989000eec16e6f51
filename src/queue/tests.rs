//! Who goes first, told as stories.

use super::*;
use proptest::prelude::*;

fn limits(length_max: usize, tenant_max: usize) -> Limits {
    Limits {
        length_max,
        tenant_max,
        standard_ages: Duration::from_secs(30),
        batch_ages: Duration::from_secs(120),
    }
}

/// A queue whose requests are numbered.
struct House {
    queue: Queue<u32>,
    now: Instant,
}

impl House {
    fn new(length_max: usize, tenant_max: usize) -> Self {
        Self { queue: Queue::new(limits(length_max, tenant_max)), now: Instant::now() }
    }

    fn waiting(&mut self, tier: Tier, tenant: &str, due_s: u64, item: u32) -> Waiting<u32> {
        Waiting {
            model: "m".into(),
            tenant: tenant.into(),
            weight: 1.0,
            tier,
            due: self.now + Duration::from_secs(due_s),
            arrival: self.queue.arrive(),
            entered: self.now,
            work: Work { charge: 100.0, prefill_s: 0.1, room: Tokens(10) },
            item,
        }
    }

    fn push(&mut self, tier: Tier, tenant: &str, item: u32) -> Result<Ticket, Full> {
        let waiting = self.waiting(tier, tenant, 600, item);
        self.queue.push(waiting)
    }

    /// Whose turn is next.
    fn next(&mut self) -> Option<Ticket> {
        let mut order = Vec::new();
        self.queue.age(self.now);
        for tier in Tier::ALL {
            self.queue.next(0, tier, 32, &mut order);
            if !order.is_empty() {
                break;
            }
        }
        order.first().copied()
    }

    /// Serves all, charging each what it takes.
    fn drain(&mut self) -> Vec<u32> {
        let mut order = Vec::new();
        while let Some(ticket) = self.next() {
            let gone = self.queue.remove(ticket).unwrap();
            let Waiting { model, tier, tenant, weight, work, item, .. } = gone;
            self.queue.charge(&model, tier, &tenant, weight, work.charge);
            order.push(item);
        }
        order
    }
}

#[test]
fn tiers_go_strictly_one_after_another() {
    let mut house = House::new(10, 10);
    house.push(Tier::Batch, "a", 1).unwrap();
    house.push(Tier::Standard, "a", 2).unwrap();
    house.push(Tier::Interactive, "a", 3).unwrap();
    house.push(Tier::System, "b", 4).unwrap();
    house.push(Tier::Interactive, "a", 5).unwrap();
    assert_eq!(house.drain(), [4, 3, 5, 2, 1]);
    assert!(house.queue.is_empty() && house.queue.is_idle(&"m".into()));
}

#[test]
fn who_waits_long_is_lifted_one_tier_and_no_further_at_once() {
    let mut house = House::new(10, 10);
    house.push(Tier::Batch, "a", 1).unwrap();
    house.push(Tier::Standard, "a", 2).unwrap();
    house.now += Duration::from_secs(29);
    house.push(Tier::Interactive, "b", 3).unwrap();
    let first = house.next().unwrap();
    assert_eq!(house.queue.tier_now(first), Some(Tier::Interactive));
    // The standard one goes with the interactive ones now, the batch one does not.
    house.now += Duration::from_secs(2);
    let lifted = house.next().unwrap();
    house.push(Tier::Standard, "c", 4).unwrap();
    house.now += Duration::from_secs(90);
    house.push(Tier::Standard, "d", 5).unwrap();
    // 121 s: the batch one goes with the standard ones.
    assert_eq!(house.queue.tier_now(lifted), Some(Tier::Interactive));
    house.next();
    let batch = house.queue.by_tier();
    assert_eq!((batch[&Tier::Batch], batch[&Tier::Standard]), (0, 2));
    assert_eq!(house.drain().len(), 5);
}

#[test]
fn tenants_share_a_tier_by_tokens_and_weight() {
    let mut house = House::new(1000, 1000);
    for item in 0..60 {
        house.push(Tier::Standard, "many", item).unwrap();
    }
    for item in 100..120 {
        let mut waiting = house.waiting(Tier::Standard, "heavy", 600, item);
        waiting.work.charge = 200.0;
        house.queue.push(waiting).unwrap();
    }
    for item in 200..260 {
        let mut waiting = house.waiting(Tier::Standard, "twice", 600, item);
        waiting.weight = 2.0;
        house.queue.push(waiting).unwrap();
    }
    let order = house.drain();
    let first: Vec<u32> = order[..42].to_vec();
    let of = |from: u32| first.iter().filter(|item| **item / 100 == from / 100).count();
    // Six rounds of 200 tokens a weight: 2 of one, 1 of the heavy one, 4 of the one with weight two.
    for (of, expected) in [(of(0), 12), (of(100), 6), (of(200), 24)] {
        assert!(of.abs_diff(expected) <= 2, "{of} for {expected}: {first:?}");
    }
}

#[test]
fn a_tenant_that_comes_back_from_idle_has_saved_nothing_up() {
    let mut house = House::new(1000, 1000);
    house.push(Tier::Standard, "idle", 0).unwrap();
    house.drain();
    for item in 1..50 {
        house.push(Tier::Standard, "busy", item).unwrap();
        house.drain();
    }
    for item in 50..60 {
        house.push(Tier::Standard, "busy", item).unwrap();
        house.push(Tier::Standard, "idle", item + 100).unwrap();
    }
    let order = house.drain();
    let idle = order[..10].iter().filter(|item| **item >= 100).count();
    assert_eq!(idle, 5, "they take turns: {order:?}");
}

#[test]
fn of_one_tenant_the_request_that_is_due_first_goes_first() {
    let mut house = House::new(10, 10);
    for (due_s, item) in [(600, 1), (5, 2), (600, 3), (1, 4)] {
        let waiting = house.waiting(Tier::Standard, "a", due_s, item);
        house.queue.push(waiting).unwrap();
    }
    assert_eq!(house.drain(), [4, 2, 1, 3]);
}

#[test]
fn who_lost_its_turn_comes_back_to_a_full_queue_where_it_was() {
    let mut house = House::new(2, 2);
    let first = house.waiting(Tier::Standard, "a", 600, 0);
    house.push(Tier::Standard, "a", 1).unwrap();
    house.push(Tier::Standard, "a", 2).unwrap();
    house.queue.put_back(first);
    assert_eq!(house.queue.len(), 3);
    assert_eq!(house.push(Tier::Standard, "b", 4), Err(Full::Queue));
    assert_eq!(house.drain(), [0, 1, 2]);
}

#[test]
fn one_tenant_cannot_fill_the_queue_and_the_fullest_makes_place() {
    let mut house = House::new(4, 3);
    for item in 0..3 {
        house.push(Tier::Standard, "greedy", item).unwrap();
    }
    assert_eq!(house.push(Tier::Standard, "greedy", 3), Err(Full::Tenant));
    house.push(Tier::Standard, "other", 4).unwrap();
    assert_eq!(house.push(Tier::Standard, "third", 5), Err(Full::Queue));
    // The last one of the fullest tenant, for one who has none; nobody for the fullest itself.
    let last = house.queue.outermost(&"third".into()).unwrap();
    assert_eq!(house.queue.get(last).unwrap().item, 2);
    assert_eq!(house.queue.outermost(&"greedy".into()), None);
    assert!(house.queue.remove(last).is_some() && house.queue.remove(last).is_none());
}

#[test]
fn what_goes_before_counts_a_tenants_own_share_only() {
    let mut house = House::new(1000, 1000);
    for item in 0..100 {
        house.push(Tier::Standard, "flood", item).unwrap();
    }
    let mine = house.waiting(Tier::Standard, "quiet", 600, 0);
    let ahead = house.queue.ahead(&mine);
    assert_eq!(ahead.count, 1, "one turn each: {ahead:?}");
    let theirs = house.waiting(Tier::Standard, "flood", 600, 0);
    assert_eq!(house.queue.ahead(&theirs).count, 100);
    let urgent = house.waiting(Tier::Standard, "flood", 1, 0);
    assert_eq!(house.queue.ahead(&urgent).count, 0, "due before all of them");
    let interactive = house.waiting(Tier::Interactive, "flood", 600, 0);
    assert_eq!(house.queue.ahead(&interactive).count, 0);
    let batch = house.waiting(Tier::Batch, "quiet", 600, 0);
    assert_eq!(house.queue.ahead(&batch).count, 100, "a whole tier");
}

#[test]
fn one_tenants_stuck_requests_hide_nobody() {
    let mut house = House::new(1000, 1000);
    for item in 0..100 {
        house.push(Tier::Standard, "stuck", item).unwrap();
    }
    house.push(Tier::Standard, "other", 100).unwrap();
    let mut order = Vec::new();
    house.queue.next(0, Tier::Standard, 32, &mut order);
    let items: Vec<u32> = order.iter().map(|t| house.queue.get(*t).unwrap().item).collect();
    assert!(items.len() <= 32 && items.contains(&100), "{items:?}");
}

proptest! {
    /// Length, tenants and tiers always add up, whatever comes, leaves and ages; tiers are never inverted; and
    /// what is ahead of nobody is nothing.
    #[test]
    fn counts_add_up(steps in prop::collection::vec((0usize..4, 0u32..3, 0u8..4, 0usize..20), 0..80)) {
        let mut house = House::new(20, 9);
        let mut tickets = Vec::new();
        for (tier, tenant, what, which) in steps {
            match what {
                0 if !tickets.is_empty() => {
                    let ticket = tickets.remove(which % tickets.len());
                    prop_assert!(house.queue.remove(ticket).is_some());
                }
                1 => house.now += Duration::from_secs(which as u64),
                _ => tickets.extend(house.push(Tier::ALL[tier], &tenant.to_string(), 0)),
            }
            house.queue.age(house.now);
            prop_assert_eq!(house.queue.len(), tickets.len());
            prop_assert_eq!(house.queue.by_tier().values().sum::<usize>(), tickets.len());
            prop_assert_eq!(house.queue.tenants.values().sum::<usize>(), tickets.len());
            for tier in Tier::ALL {
                let mut order = Vec::new();
                house.queue.next(0, tier, 64, &mut order);
                prop_assert!(order.iter().all(|t| house.queue.tier_now(*t) == Some(tier)));
            }
            for ticket in &tickets {
                let waiting = house.queue.get(*ticket).unwrap();
                let lifted = house.queue.tier_now(*ticket).unwrap();
                let steps = waiting.tier as usize - lifted as usize;
                let waited = house.now - waiting.entered;
                let least = if waiting.tier == Tier::Batch { 120 } else { 30 };
                prop_assert!(steps == 0 || waited >= Duration::from_secs(least));
            }
        }
        for ticket in tickets {
            house.queue.remove(ticket);
        }
        let probe = house.waiting(Tier::Batch, "x", 1, 0);
        let ahead = house.queue.ahead(&probe);
        prop_assert_eq!(ahead.count, 0);
        prop_assert!(ahead.prefill.total_s().abs() < 1e-9 && ahead.room.abs() < 1e-9);
    }

    /// The bound of the paper (theorem 4.8): while two tenants both wait, what they were given differs by no more
    /// than twice the largest request.
    #[test]
    fn tenants_who_wait_get_the_same_within_two_requests(
        sizes in prop::collection::vec((0usize..3, 1.0f64..1000.0), 60..200)
    ) {
        let mut house = House::new(1000, 1000);
        let mut left = [0usize; 3];
        for (tenant, size) in &sizes {
            let mut waiting = house.waiting(Tier::Standard, &tenant.to_string(), 600, *tenant as u32);
            waiting.work.charge = *size;
            house.queue.push(waiting).unwrap();
            left[*tenant] += 1;
        }
        let mut given = [0.0f64; 3];
        while left.iter().all(|left| *left > 0) {
            let ticket = house.next().unwrap();
            let gone = house.queue.remove(ticket).unwrap();
            house.queue.charge(&gone.model, gone.tier, &gone.tenant, 1.0, gone.work.charge);
            let tenant = gone.item as usize;
            given[tenant] += gone.work.charge;
            left[tenant] -= 1;
            let (low, high) = given.iter().fold((f64::MAX, 0.0f64), |(l, h), g| (l.min(*g), h.max(*g)));
            prop_assert!(high - low <= 2.0 * 1000.0, "{:?}", given);
        }
    }
}
