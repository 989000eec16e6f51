//! The live daemon before three simulated servers with small KV caches: tenants who ask for too much take nothing
//! from those who do not, and callers who leave, whenever, leave nothing behind.

use crate::support::{
    house::{Chance, House, Plan, chat, key},
    raw::{self, PATIENCE},
};
use berthd::simulate::{self, ProfileName, SimulateOptions, Stats};
use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};
use tokio::{
    task::JoinSet,
    time::{Instant, sleep, timeout},
};

/// KV cache of each server, tokens: a dozen of the requests below.
const KV: u64 = 6_000;
/// Answer of each request, tokens.
const OUTPUT: u64 = 32;
/// Callers of each tenant that asks for too much.
const GREEDY: [usize; 2] = [24, 72];

/// Servers that live as long as this does.
struct Fleet {
    running: JoinSet<()>,
    stats: Vec<Arc<Stats>>,
    house: House,
}

async fn fleet(speed: f64) -> Fleet {
    let (mut running, mut stats) = (JoinSet::new(), Vec::new());
    let mut plan = Plan::new().probe("period_s = 1");
    for tenant in ["few", "many", "quiet"] {
        plan = plan.tenant(tenant, "tier = \"standard\"");
    }
    for at in 0..3 {
        let options = SimulateOptions {
            profile: ProfileName::Small8b4On24g,
            kv_tokens: Some(KV),
            speed,
            ..SimulateOptions::default()
        };
        let simulator = simulate::bind(options).await.unwrap();
        plan = plan.server_of("vllm", &format!("s{at}"), simulator.local_addr(), "");
        stats.push(simulator.stats());
        running.spawn(simulator.run(std::future::pending()));
    }
    let house = House::open(&plan).await;
    assert!(house.servers().iter().all(|server| server.state.capacity.kv_tokens.is_some()));
    Fleet { running, stats, house }
}

/// A prompt of some hundred words that no other request has.
fn prompt(chance: &mut Chance) -> String {
    let words = 200 + chance.below(200);
    (0..words).map(|_| format!("w{} ", chance.below(1_000_000))).collect()
}

fn body(prompt: &str) -> serde_json::Value {
    let mut body = chat("simulated", prompt, true);
    body["max_tokens"] = OUTPUT.into();
    body
}

/// Asks again and again until told to stop; counts the answers that came whole, and what else came.
async fn keep_asking(
    house: Arc<House>,
    tenant: &'static str,
    seed: u64,
    stop: Arc<AtomicBool>,
    whole: Arc<AtomicU64>,
) {
    let mut chance = Chance::new(tenant, seed);
    while !stop.load(Relaxed) {
        let reply = house.ask_as(tenant, "", &body(&prompt(&mut chance))).await;
        assert_eq!(reply.status, 200, "{tenant}: nobody is refused who may wait for a minute");
        whole.fetch_add(1, Relaxed);
    }
}

/// Times to the first token of a tenant who asks now and then.
async fn now_and_then(house: &House, rounds: u64, seed: u64) -> Vec<Duration> {
    let mut chance = Chance::new("quiet", seed);
    let mut times = Vec::new();
    for _ in 0..rounds {
        let asked = Instant::now();
        let mut stream = house.open_as("quiet", "", &body(&prompt(&mut chance))).await;
        raw::read_until(&mut stream, "\"content\":\"w").await;
        times.push(asked.elapsed());
        raw::read_all(&mut stream).await;
        sleep(Duration::from_millis(20)).await;
    }
    times.sort();
    times
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_flood_takes_nothing_from_others() {
    let Fleet { running, stats, house } = fleet(4.0).await;
    let house = Arc::new(house);
    let alone = now_and_then(&house, 20, 1).await;
    let stop = Arc::new(AtomicBool::new(false));
    let whole: [Arc<AtomicU64>; 2] = Default::default();
    let mut callers = JoinSet::new();
    for ((tenant, number), whole) in ["few", "many"].into_iter().zip(GREEDY).zip(&whole) {
        for caller in 0..number as u64 {
            let (house, stop, whole) = (Arc::clone(&house), Arc::clone(&stop), Arc::clone(whole));
            callers.spawn(keep_asking(house, tenant, 100 + caller, stop, whole));
        }
    }
    house.until("the servers are full", |house| house.waiting() > 40).await;
    let before = whole.each_ref().map(|whole| whole.load(Relaxed));
    let flooded = now_and_then(&house, 40, 2).await;
    let waiting = house.waiting();
    let given = [0, 1].map(|at: usize| (whole[at].load(Relaxed) - before[at]) as f64);
    stop.store(true, Relaxed);
    while let Some(done) = callers.join_next().await {
        done.unwrap();
    }
    let jain = (given[0] + given[1]).powi(2) / (2.0 * (given[0].powi(2) + given[1].powi(2)));
    let at = |times: &[Duration], share: f64| times[(times.len() as f64 * share) as usize];
    println!(
        "flood by {} + {} callers: {} and {} answers, Jain {jain:.3}; a third tenant's TTFT p50 {:?}, worst {:?} (alone {:?}, {:?})",
        GREEDY[0],
        GREEDY[1],
        given[0],
        given[1],
        at(&flooded, 0.5),
        flooded.last().unwrap(),
        at(&alone, 0.5),
        alone.last().unwrap(),
    );
    assert!(waiting > 20, "the flood went on: {waiting}");
    assert!(given[0] > 20.0, "enough to compare: {given:?}");
    assert!(jain >= 0.98, "three times as many callers get no more: {given:?}");
    // One who has less than its share goes next: it waits for room, not for the line.
    let bound = Duration::from_secs(1).max(*alone.last().unwrap() * 3);
    assert!(at(&flooded, 0.5) < bound, "{flooded:?}");
    let house = Arc::into_inner(house).unwrap();
    house.until_empty().await;
    let all_ended = |stats: &Arc<Stats>| stats.running() == 0;
    assert!(stats.iter().all(all_ended));
    house.close().await;
    drop(running);
}

/// Callers there together.
const TOGETHER: u64 = 100;
const ABORTS: u64 = 10_000;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ten_thousand_callers_who_leave_at_any_moment_leave_nothing_behind() {
    let Fleet { running, stats, house } = fleet(20.0).await;
    let house = Arc::new(house);
    let mut chance = Chance::new("leaving", 9);
    for _ in 0..ABORTS / TOGETHER {
        let mut callers = JoinSet::new();
        for number in 0..TOGETHER {
            let moment = Duration::from_micros(chance.below(80_000));
            let (house, prompt) = (Arc::clone(&house), prompt(&mut chance));
            let tenant = ["few", "many", "quiet"][number as usize % 3];
            callers.spawn(async move {
                let stream = house.open_as(tenant, "", &body(&prompt)).await;
                sleep(moment).await;
                drop(stream);
            });
        }
        callers.join_all().await;
    }
    house.until_empty().await;
    let ended = async {
        while stats.iter().any(|stats| stats.running() > 0) {
            sleep(Duration::from_millis(1)).await;
        }
    };
    timeout(PATIENCE, ended).await.expect("the servers are free");
    let (had, aborted) = stats
        .iter()
        .fold((0, 0), |(had, aborted), stats| (had + stats.requests(), aborted + stats.aborted()));
    println!(
        "{ABORTS} left: {had} reached a server, {aborted} of them before their end; nothing is held"
    );
    assert!(had > ABORTS / 20 && had < ABORTS, "in every state: {had}");
    // And it still serves.
    assert_eq!(house.ask_as("quiet", "", &body("hello")).await.status, 200);
    assert!(!key("quiet").is_empty());
    Arc::into_inner(house).unwrap().close().await;
    drop(running);
}
