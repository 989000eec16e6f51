//! Sick GPUs and the servers on them: a whole daemon, the fake driver, scripted servers, a steady flow of
//! requests. What is watched is where requests arrive.
//!
//! `BERTHD_FAULT_RUNS=100` makes the table that is in `docs/gpu.md`; without it each fault comes a few times.

use crate::support::{
    house::{House, Plan, chat},
    nvml::FakeNvml,
    scripted::{
        Behaviour::{self, Held},
        Scripted, TOKENS, expected_text,
    },
};
use berthd::{fault::Condition, ids::GpuId};
use serde_json::json;
use std::{
    env,
    fmt::Write as _,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering::SeqCst},
    },
    time::Duration,
};
use tokio::{
    sync::watch,
    task::JoinSet,
    time::{Instant, sleep},
};

/// From a fault to the last request that is placed on a server of the GPU.
const BOUND: Duration = Duration::from_secs(1);
/// Between two readings. What is not told by an event is seen that much later.
const PERIOD: Duration = Duration::from_millis(100);
/// Callers that ask again and again.
const CALLERS: usize = 3;
/// Requests that must reach the other server, and not this one, before it counts as stopped.
const ELSEWHERE: u64 = 6;
/// A test that waits longer has failed.
const PATIENCE: Duration = Duration::from_secs(30);

/// What happens to the first card.
#[derive(Clone, Copy)]
enum Fault {
    /// The driver tells an event.
    Event(&'static str),
    /// More lines in the fake's state.
    Lines(&'static str),
    /// More keys on the card's line.
    Keys(&'static str),
    /// The card is not listed any more.
    NotListed,
    /// Three events, further apart than those of one incident.
    Thrice(&'static str),
    /// An event while the readings hang.
    WhileHanging(&'static str),
}
use Fault::{Event, Keys, Lines, NotListed, Thrice, WhileHanging};

/// A fault, and what must come of it.
struct Case {
    name: &'static str,
    fault: Fault,
    /// The state that it leads to.
    condition: Condition,
    /// Only so many runs: where nothing is stopped there is no time to measure, and some take seconds.
    runs_most: usize,
}

const fn case(name: &'static str, fault: Fault, condition: Condition) -> Case {
    Case { name, fault, condition, runs_most: usize::MAX }
}

const fn seldom(name: &'static str, fault: Fault, condition: Condition) -> Case {
    Case { name, fault, condition, runs_most: 20 }
}

const fn slow(name: &'static str, fault: Fault, condition: Condition) -> Case {
    Case { name, fault, condition, runs_most: 3 }
}

use Condition::{Degraded, Draining, Lost, Ok as Well, Suspect, Unknown};

const CASES: [Case; 28] = [
    case("Xid 79, reboot class", Event("type=xid data=79"), Lost),
    case("Xid 160, reboot class", Event("type=xid data=160"), Draining),
    case("Xid 48, reset class", Event("type=xid data=48"), Draining),
    case("Xid 119, reset class", Event("type=xid data=119"), Draining),
    case("Xid 74, NVLink", Event("type=xid data=74"), Draining),
    case("Xid 145, NVLink", Event("type=xid data=145"), Draining),
    case("Xid 31, application class", Event("type=xid data=31"), Suspect),
    case("Xid 94, application class", Event("type=xid data=94"), Suspect),
    slow("Xid 13 three times", Thrice("type=xid data=13"), Draining),
    case("Xid 45, note", Event("type=xid data=45"), Well),
    case("Xid 92, note", Event("type=xid data=92"), Well),
    case("Xid 777, unknown", Event("type=xid data=777"), Suspect),
    case("ECC, corrected", Event("type=sbe"), Well),
    case("ECC, not correctable", Event("type=dbe"), Draining),
    case("fatal poison", Event("type=poison"), Draining),
    case("GPU unavailable", Event("type=unavailable"), Lost),
    seldom("recovery action: reset", Keys("recovery=1"), Draining),
    seldom("recovery action: reboot", Keys("recovery=2"), Draining),
    seldom("row remap failed", Keys("rows_failed=1"), Draining),
    seldom("row remap pending", Keys("rows_pending=1"), Degraded),
    case("NVML: GPU is lost", Lines("lost 0\n"), Lost),
    case("NVML: one card fewer", NotListed, Lost),
    slow("NVML: hangs", Lines("hang nvmlDeviceGetTemperature=60000ms\n"), Unknown),
    slow("NVML: hangs, then Xid 48", WhileHanging("type=xid data=48"), Draining),
    slow("NVML: driver unloaded", Lines("unloaded\n"), Unknown),
    slow("NVML: versions differ", Lines("mismatch\n"), Unknown),
    case("NVML: unsupported", Lines("return nvmlDeviceGetTotalEccErrors@0=3\n"), Well),
    case("NVML: MIG reconfiguration", Keys("mig=1"), Well),
];

/// The daemon, its driver, its two servers, and their callers.
struct Node {
    house: House,
    fake: FakeNvml,
    /// On the first card, and on the second.
    first: Scripted,
    second: Scripted,
    /// Answers that callers got whole, and those that they did not.
    answered: Arc<AtomicU64>,
    failed: Arc<AtomicU64>,
    over: Arc<AtomicBool>,
    callers: JoinSet<()>,
    event: u64,
    state: String,
}

const FIRST: &str = "GPU-first";
const SECOND: &str = "GPU-second";

fn cards(keys: &str, listed: bool) -> String {
    let card = "mem_total=1000 mem_used=10 mem_free=990 util=50 mem_util=5 temp=50 rows_correctable=0 recovery=0";
    let mut text = "driver=1\nnvml=1\n".to_owned();
    let names: &[(&str, &str)] =
        if listed { &[(FIRST, keys), (SECOND, "")] } else { &[(SECOND, "")] };
    for (index, (uuid, keys)) in names.iter().enumerate() {
        // A card keeps its place on the bus when another one is gone.
        let slot = if *uuid == FIRST { 1 } else { 2 };
        let pci = format!("pci=00000000:0{slot}:00.0");
        writeln!(text, "gpu {index} uuid={uuid} name=card {pci} {card} {keys}").unwrap();
        if keys.contains("mig=1") {
            writeln!(text, "mig 0 0 uuid=MIG-0 name=part gi=1 ci=0 mem_total=500").unwrap();
        }
    }
    text
}

impl Node {
    /// A node that is read more often than by default, so that slow readings come soon.
    async fn new() -> Self {
        Self::paced(&format!("period_s = {}\nstale_after_s = 0.5", PERIOD.as_secs_f64())).await
    }

    async fn paced(pace: &str) -> Self {
        let fake = FakeNvml::new(&cards("", true));
        let (first, second) =
            (Scripted::start(Behaviour::ok()).await, Scripted::start(Behaviour::ok()).await);
        let gpu = format!("nvml_library = {:?}\n{pace}", fake.library().display().to_string());
        let plan = Plan::new()
            .gpu(&gpu)
            .server("first", first.addr, &format!("gpus = [\"{FIRST}\"]"))
            .server("second", second.addr, &format!("gpus = [\"{SECOND}\"]"));
        let house = House::open(&plan).await;
        let node = Self {
            house,
            fake,
            first,
            second,
            answered: Arc::default(),
            failed: Arc::default(),
            over: Arc::default(),
            callers: JoinSet::new(),
            event: 0,
            state: cards("", true),
        };
        let seen = |house: &House| house.broker.devices.health().len() == 2;
        node.house.until("both cards are known", seen).await;
        node
    }

    /// Callers begin to ask.
    fn flow(&mut self) {
        let request = chat("scripted", "go", false).to_string();
        let request =
            crate::support::house::request("a", crate::support::house::CHAT, "", &request);
        for _ in 0..CALLERS {
            let (request, data, over) = (request.clone(), self.house.data, Arc::clone(&self.over));
            let (answered, failed) = (Arc::clone(&self.answered), Arc::clone(&self.failed));
            self.callers.spawn(async move {
                while !over.load(SeqCst) {
                    let mut stream = tokio::net::TcpStream::connect(data).await.unwrap();
                    tokio::io::AsyncWriteExt::write_all(&mut stream, &request).await.unwrap();
                    let (bytes, _) = crate::support::raw::read_all(&mut stream).await;
                    let good = bytes.starts_with(b"HTTP/1.1 200");
                    (if good { &answered } else { &failed }).fetch_add(1, SeqCst);
                }
            });
        }
    }

    fn condition(&self) -> Condition {
        let health = self.house.broker.devices.health();
        let first = health.iter().find(|health| health.gpu.as_str() == FIRST);
        first.map_or(Unknown, |health| health.condition)
    }

    /// Waits for a condition; says what never came.
    async fn until(&self, what: &str, condition: impl Fn(&Self) -> bool) {
        let give_up = Instant::now() + PATIENCE;
        while !condition(self) {
            let health = self.house.broker.devices.health();
            assert!(Instant::now() < give_up, "never: {what}; {health:?}");
            sleep(Duration::from_millis(1)).await;
        }
    }

    fn tell(&mut self, event: &str) {
        self.event += 1;
        let text = format!("{}event {} gpu=0 {event}\n", self.state, self.event);
        self.fake.set(&text);
    }

    /// Makes the fault; gives the moment just before it.
    async fn make(&mut self, fault: Fault) -> Instant {
        let mut begun = Instant::now();
        match fault {
            Event(event) => self.tell(event),
            Lines(lines) => self.fake.set(&format!("{}{lines}", self.state)),
            Keys(keys) => self.fake.set(&cards(keys, true)),
            NotListed => self.fake.set(&cards("", false)),
            Thrice(event) => {
                for _ in 0..2 {
                    self.tell(event);
                    sleep(Duration::from_millis(1100)).await;
                }
                begun = Instant::now();
                self.tell(event);
            }
            WhileHanging(event) => {
                self.state.push_str("hang nvmlDeviceGetTemperature=60000ms\n");
                self.fake.set(&self.state);
                self.until("the readings are old", |node| node.condition() == Unknown).await;
                begun = Instant::now();
                self.tell(event);
            }
        }
        begun
    }

    /// Takes the fault away and has the card called well.
    async fn mend(&mut self, fault: Fault) {
        self.state = cards("", true);
        self.fake.set(&self.state);
        if let Keys(_) = fault {
            // Some readings are taken in every fifth round only.
            sleep(PERIOD * 8).await;
        }
        let give_up = Instant::now() + PATIENCE;
        loop {
            // Also where nothing shows: what is counted over many events begins anew with each run.
            self.house.broker.devices.clear(GpuId::from(FIRST)).await;
            if self.condition() == Well && self.house.server("first").usable {
                return;
            }
            let health = self.house.broker.devices.health();
            assert!(Instant::now() < give_up, "never well again: {health:?}");
            sleep(Duration::from_millis(5)).await;
        }
    }

    /// One run of a fault that must stop the first server: the time to the last request that reached it.
    async fn stops(&mut self, case: &Case) -> Duration {
        let before = self.first.hits.requests();
        self.until("it gets requests", |node| node.first.hits.requests() > before + 2).await;
        let begun = self.make(case.fault).await;
        self.until(case.name, |node| !node.house.server("first").usable).await;
        let elsewhere = self.second.hits.requests() + ELSEWHERE;
        self.until("the other takes over", |node| node.second.hits.requests() >= elsewhere).await;
        self.until(case.name, |node| node.condition() == case.condition).await;
        let last = self.first.hits.newest().unwrap();
        last.saturating_duration_since(begun)
    }

    /// One run of a fault that must stop nothing. True if it did all the same.
    async fn goes_on(&mut self, case: &Case) -> bool {
        let number = match case.fault {
            Event(event) => event.strip_prefix("type=xid data="),
            _ => None,
        };
        let label = format!("xid=\"{}\"", number.unwrap_or("other"));
        let xids = |node: &Self| node.house.metric(&["berthd_gpu_xids_total", &label]);
        let before = xids(self);
        self.make(case.fault).await;
        match number {
            Some(_) if case.condition == Well => {
                self.until("it is told", |node| xids(node) > before).await;
            }
            Some(_) => {}
            // Without a sign to wait for, some rounds pass.
            None => sleep(PERIOD * 3).await,
        }
        self.until(case.name, |node| node.condition() == case.condition).await;
        let before = self.first.hits.requests();
        self.until("it gets requests", |node| node.first.hits.requests() > before + 3).await;
        !self.house.server("first").usable
    }
}

fn runs() -> usize {
    env::var("BERTHD_FAULT_RUNS").ok().and_then(|runs| runs.parse().ok()).unwrap_or(3)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_fault_has_its_state_and_stops_placements_in_time() {
    let mut node = Node::new().await;
    node.flow();
    let (mut false_drains, mut table) = (0, String::new());
    for case in &CASES {
        let stops = case.condition.stops();
        let (mut worst, runs) = (Duration::ZERO, runs().min(case.runs_most));
        let drains = |node: &Node| {
            let of_first = ["berthd_gpu_drains_total", FIRST];
            node.house.metric(&of_first).unwrap_or_default()
        };
        let drained = drains(&node);
        for _ in 0..runs {
            if stops {
                worst = worst.max(node.stops(case).await);
            } else {
                node.goes_on(case).await;
            }
            node.mend(case.fault).await;
        }
        if !stops && drains(&node) > drained {
            false_drains += 1;
            writeln!(table, "False drains: {}", case.name).unwrap();
        }
        assert!(worst < BOUND, "{}: {worst:?}", case.name);
        let (state, ms) = (case.condition.as_str(), worst.as_secs_f64() * 1000.0);
        let reaction = match case.condition {
            _ if stops => format!("stopped, last request after {ms:.0} ms"),
            Suspect => "goes on, is tried".to_owned(),
            Degraded => "goes on, gets less".to_owned(),
            _ => "goes on".to_owned(),
        };
        writeln!(table, "| {} | `{state}` | {reaction} | {runs} |", case.name).unwrap();
    }
    println!("| Fault | State | Its server | Runs |\n|---|---|---|---|\n{table}");
    assert_eq!(false_drains, 0, "a fault that must stop nothing did");
    node.over.store(true, SeqCst);
    while let Some(ended) = node.callers.join_next().await {
        ended.unwrap();
    }
    assert_eq!(node.failed.load(SeqCst), 0, "of {} requests", node.answered.load(SeqCst));
    node.house.close().await;
}

/// What no event tells is seen by a reading, and soon enough as a node is read by default.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_card_that_is_lost_or_gone_stops_its_servers_in_time_at_the_default_pace() {
    let mut node = Node::paced("").await;
    node.flow();
    for case in [
        case("default pace: GPU is lost", Lines("lost 0\n"), Lost),
        case("default pace: one card fewer", NotListed, Lost),
    ] {
        let mut worst = Duration::ZERO;
        for _ in 0..runs() {
            worst = worst.max(node.stops(&case).await);
            // Called well before it was read again, it would be the same loss still.
            node.fake.set(&cards("", true));
            let is_read = |node: &Node| {
                let health = node.house.broker.devices.health();
                let first = health.iter().find(|health| health.gpu.as_str() == FIRST);
                let over = |why: &String| why.contains("this is over");
                first.is_some_and(|health| health.reasons.iter().any(over))
            };
            node.until("the card is read again", is_read).await;
            node.mend(case.fault).await;
        }
        println!(
            "{}: last request after {:.0} ms, {} runs",
            case.name,
            worst.as_secs_f64() * 1e3,
            runs()
        );
        assert!(worst < BOUND, "{}: {worst:?}", case.name);
    }
    node.over.store(true, SeqCst);
    while let Some(ended) = node.callers.join_next().await {
        ended.unwrap();
    }
    node.house.close().await;
}

/// A server that is stopped keeps what it has: streams end whole, and nobody's room is lost.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_drain_lets_streams_finish_and_sends_the_rest_elsewhere() {
    let mut node = Node::new().await;
    let (go, gone) = watch::channel(false);
    for server in [&node.first, &node.second] {
        server.behave(Held { after: 3, go: gone.clone() });
    }
    let body = json!({
        "model": "scripted", "stream": true, "messages": [{"role": "user", "content": "hold"}],
    });
    let mut streams = Vec::new();
    for _ in 0..4 {
        streams.push(node.house.open_as("a", "", &body).await);
    }
    let both = |node: &Node| node.first.hits.open() == 2 && node.second.hits.open() == 2;
    node.until("both hold two streams", both).await;
    node.tell("type=xid data=79");
    node.until("it is stopped", |node| !node.house.server("first").usable).await;
    let why = node.house.server("first").footing.stop.unwrap();
    assert_eq!(why, "GPU 0 is lost: Xid 79 (the GPU has fallen off the bus); reboot the host");
    node.second.behave(Behaviour::ok());
    for _ in 0..4 {
        assert_eq!(node.house.ask(&chat("scripted", "go", false)).await.status, 200);
    }
    assert_eq!((node.first.hits.requests(), node.second.hits.requests()), (2, 6));
    go.send_replace(true);
    for mut stream in streams {
        let (bytes, ended) = crate::support::raw::read_all(&mut stream).await;
        let reply = crate::support::raw::Reply::parse(&bytes, ended);
        assert_eq!(reply.text(), expected_text("hold", TOKENS));
    }
    node.house.close().await;
}

/// A card that is gone answers nothing any more: whoever has heard nothing is answered elsewhere.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_has_heard_nothing_from_a_lost_card_is_answered_elsewhere() {
    let mut node = Node::new().await;
    node.first.behave(Behaviour::HangBeforeHead);
    node.house.broker.dispatch.set_drained(&"second".into(), true);
    let body = chat("scripted", "go", true);
    let mut stream = node.house.open_as("a", "", &body).await;
    node.until("the first has it", |node| node.first.hits.open() == 1).await;
    node.house.broker.dispatch.set_drained(&"second".into(), false);
    node.tell("type=xid data=79");
    let (bytes, ended) = crate::support::raw::read_all(&mut stream).await;
    let reply = crate::support::raw::Reply::parse(&bytes, ended);
    assert_eq!(reply.status, 200);
    assert_eq!(node.second.hits.finished(), 1);
    node.until("the first has nothing", |node| node.first.hits.open() == 0).await;
    node.house.close().await;
}

/// With one server only there is nowhere else: callers wait, and get their turn when the GPU is well.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_waits_gets_a_turn_when_the_gpu_is_well_again() {
    let mut node = Node::new().await;
    node.house.broker.dispatch.set_drained(&"second".into(), true);
    node.tell("type=xid data=95");
    node.until("it is stopped", |node| !node.house.server("first").usable).await;
    let body = chat("scripted", "go", false);
    let waiting = node.house.ask(&body);
    let mend = async {
        node.until("it waits", |node| node.house.waiting() == 1).await;
        assert!(node.house.broker.devices.clear(GpuId::from(FIRST)).await);
    };
    let (reply, ()) = tokio::join!(waiting, mend);
    assert_eq!(reply.status, 200);
    assert_eq!(node.first.hits.requests(), 1);
    node.house.close().await;
}
