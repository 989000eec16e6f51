//! What turns cost: a decision, coming and leaving, with 10,000 requests of 64 tenants waiting for 8 servers; and the
//! replay of a trace, where one is named.
//!
//! `cargo bench --bench schedule` prints a table. `BERTHD_TRACE` may name a trace; then all policies are replayed
//! on it at 3 and 3.6 times its speed, as docs/replay.md tells.

use berthd::{
    queue::{Limits, Ticket},
    replay,
    schedule::{Blocks, Grant, Known, Offer, Request, Room, Rules, Scheduler, Turn},
    simulate::ProfileName,
    snapshot::{Capacity, ServedModel},
    units::Tokens,
};
use std::{
    alloc::{GlobalAlloc, Layout, System},
    hint::black_box,
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};
use tokio::time::Instant;

const WAITING: usize = 10_000;
const TENANTS: u64 = 64;
const SERVERS: usize = 8;
const ROUNDS: usize = 50_000;
/// Blocks of 16 tokens that each prompt begins with, and how many beginnings there are.
const BLOCKS: u64 = 100;
const BEGINNINGS: u64 = 500;

/// Counts what is allocated.
struct Counting;

static ALLOCATIONS: AtomicU64 = AtomicU64::new(0);

#[expect(unsafe_code, reason = "an allocator that counts is the only way to see allocations")]
// SAFETY: everything is handed on to the system's allocator as it came.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        ALLOCATIONS.fetch_add(1, Relaxed);
        // SAFETY: as above.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, at: *mut u8, layout: Layout) {
        // SAFETY: as above.
        unsafe { System.dealloc(at, layout) }
    }

    unsafe fn realloc(&self, at: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        ALLOCATIONS.fetch_add(1, Relaxed);
        // SAFETY: as above.
        unsafe { System.realloc(at, layout, size) }
    }
}

#[global_allocator]
static COUNTING: Counting = Counting;

/// Numbers by chance (xorshift, Marsaglia 2003), always the same.
struct Chance(u64);

impl Chance {
    fn below(&mut self, end: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % end.max(1)
    }
}

/// Times of one kind of step, and allocations within.
#[derive(Default)]
struct Times {
    nanos: Vec<u64>,
    allocations: u64,
}

impl Times {
    fn measure<T>(&mut self, step: impl FnOnce() -> T) -> T {
        let (allocations, begun) = (ALLOCATIONS.load(Relaxed), Instant::now());
        let result = black_box(step());
        let nanos = begun.elapsed().as_nanos();
        self.allocations += ALLOCATIONS.load(Relaxed) - allocations;
        self.nanos.push(u64::try_from(nanos).unwrap_or(u64::MAX));
        result
    }

    fn print(mut self, what: &str) {
        self.nanos.sort_unstable();
        let at = |share: f64| {
            let index = (self.nanos.len().saturating_sub(1) as f64 * share) as usize;
            self.nanos.get(index).copied().unwrap_or(0) as f64 / 1e3
        };
        println!(
            "{what:<34} {:>8} {:>9.2} {:>9.2} {:>9.2} {:>12.3}",
            self.nanos.len(),
            at(0.5),
            at(0.99),
            at(1.0),
            self.allocations as f64 / self.nanos.len().max(1) as f64
        );
    }
}

struct House {
    scheduler: Scheduler<u64>,
    chance: Chance,
    now: Instant,
    running: Vec<Grant>,
    waiting: Vec<Ticket>,
}

impl House {
    fn new() -> Self {
        let rules = Rules { costs_known: true, ..Rules::default() };
        let limits = Limits {
            length_max: 2 * WAITING,
            tenant_max: WAITING,
            standard_ages: Duration::from_secs(30),
            batch_ages: Duration::from_secs(120),
        };
        let mut scheduler = Scheduler::new(rules.clone(), limits);
        for at in 0..SERVERS {
            let mut room = Room::new(format!("server-{at}").into(), &rules);
            room.usable = true;
            let capacity = Capacity {
                kv_tokens: Some(Tokens(820_000)),
                max_running: Some(256),
                block_tokens: Some(16),
            };
            room.adopt(&[ServedModel::ready("model".into(), None)], &capacity);
            scheduler.rooms.push(room);
        }
        let (chance, now) = (Chance(88_172_645_463_325_252), Instant::now());
        Self { scheduler, chance, now, running: Vec::new(), waiting: Vec::new() }
    }

    fn request(&mut self) -> Request {
        let tenant = format!("tenant-{}", self.chance.below(TENANTS));
        let (input, from) = (BLOCKS * 16 + self.chance.below(3_000), self.chance.below(BEGINNINGS));
        let hashes: Arc<[u64]> = (0..BLOCKS).map(|at| from * 1_000_000 + at).collect();
        let due =
            self.now + Duration::from_secs(600) + Duration::from_millis(self.chance.below(60_000));
        Request {
            output: Tokens(200),
            blocks: Blocks { hashes, tokens: 16 },
            watched: true,
            due,
            ..Request::plain("model".into(), tenant.as_str().into(), Tokens(input), self.now)
        }
    }

    fn keep(&mut self, offer: Offer<u64>) {
        match offer {
            Offer::Placed(grant, ..) => self.running.push(grant),
            Offer::Waits(ticket, ..) => self.waiting.push(ticket),
            other => give_up(&format!("the bench's house is too small: {other:?}")),
        }
    }

    /// Somebody's first token comes, so that its server takes more; and somebody ends.
    fn stir(&mut self) {
        self.now += Duration::from_millis(20);
        let at = self.chance.below(self.running.len() as u64) as usize;
        if at < self.running.len() {
            let grant = self.running.swap_remove(at);
            self.scheduler.first_token(&grant.server, grant.seat, self.now);
            self.scheduler.take_back(&grant.server, grant.seat, Some(Tokens(200)), self.now);
        }
    }
}

fn turns() {
    let mut house = House::new();
    while house.waiting.len() < WAITING {
        let request = house.request();
        let offer = house.scheduler.offer(request, Known::default(), 0, false, house.now);
        house.keep(offer);
    }
    let (mut granted, mut nobody) = (Times::default(), Times::default());
    let (mut came, mut left, mut freed) = (Times::default(), Times::default(), Times::default());
    for _ in 0..ROUNDS {
        freed.measure(|| house.stir());
        loop {
            let begun = Instant::now();
            let allocations = ALLOCATIONS.load(Relaxed);
            let turn = black_box(house.scheduler.next(house.now));
            let nanos = u64::try_from(begun.elapsed().as_nanos()).unwrap_or(u64::MAX);
            let times = if turn.is_some() { &mut granted } else { &mut nobody };
            times.nanos.push(nanos);
            times.allocations += ALLOCATIONS.load(Relaxed) - allocations;
            match turn {
                Some(Turn::Granted(_, grant, _)) => house.running.push(grant),
                Some(other) => give_up(&format!("nobody is late here: {other:?}")),
                None => break,
            }
        }
        while house.scheduler.queue.len() < WAITING {
            let request = house.request();
            let offer = came
                .measure(|| house.scheduler.offer(request, Known::default(), 0, false, house.now));
            house.keep(offer);
        }
        let at = house.chance.below(house.waiting.len() as u64) as usize;
        let ticket = house.waiting.swap_remove(at);
        if house.scheduler.queue.get(ticket).is_some() {
            left.measure(|| house.scheduler.leave(ticket));
        }
    }
    println!(
        "{WAITING} waiting, {TENANTS} tenants, {SERVERS} servers, {BLOCKS} blocks a prompt; microseconds"
    );
    println!(
        "{:<34} {:>8} {:>9} {:>9} {:>9} {:>12}",
        "step", "times", "p50", "p99", "worst", "allocations"
    );
    granted.print("a decision that gives a turn");
    nobody.print("a decision that nobody can go");
    came.print("coming");
    left.print("leaving");
    freed.print("a first token and an end");
}

fn traces(path: &Path) -> Result<(), Box<dyn std::error::Error>> {
    let rows = replay::trace::read(path)?;
    println!("\n{}, 8 x 8b-h200, seed 1", path.display());
    println!(
        "{:<20} {:>6} {:>8} {:>12} {:>11}",
        "policy", "speed", "good %", "good ktok/s", "rejected %"
    );
    for speed in [3.0, 3.6] {
        let mut plan = replay::Plan::new("trace", rows.clone(), ProfileName::Small8bH200)?;
        plan.speed = speed;
        plan.policies = replay::PolicyName::all();
        for report in replay::run(&plan, |_| {})? {
            println!(
                "{:<20} {speed:>6} {:>8.1} {:>12.1} {:>11.1}",
                report.policy, report.good_pct, report.good_ktok_s, report.rejected_pct
            );
        }
    }
    Ok(())
}

fn give_up(why: &str) -> ! {
    println!("{why}");
    std::process::exit(1);
}

fn main() {
    turns();
    if let Some(path) = std::env::var_os("BERTHD_TRACE")
        && let Err(error) = traces(Path::new(&path))
    {
        give_up(&error.to_string());
    }
}
