//! Memory truth in admission: a foreign process takes the card from under a server whose memory grows.

use crate::hung::{Prefills, broker};
use crate::support::{
    house::{House, Plan, chat},
    nvml::FakeNvml,
    scripted::{Behaviour, Says, Script, Scripted},
};
use berthd::{
    holding::{Holdings, How, ServerHolding},
    ids::{GpuId, RequestId},
    pipeline::{device::memory, dispatch::Ask},
    schedule::Request,
    snapshot::{DriverState, GpuPlane, GpuProcess, GpuState},
    units::{Bytes, Tokens},
};
use serde_json::{Value, json};
use std::{
    collections::BTreeMap,
    process,
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

const MIB: u64 = 1 << 20;
/// The card, MiB.
const TOTAL: u64 = 8192;
/// What the server holds without work, MiB.
const IDLE: u64 = 2000;
/// `gpu.memory_floor_mib`.
const FLOOR: u64 = 512;

/// What the driver says: a server that holds so much, and a trainer that holds the rest of what is used, MiB.
fn card(total: u64, server: u64, trainer: u64) -> String {
    let used = server + trainer;
    let mut text = format!(
        "driver=580.65.06\nnvml=13.580.65.06\ngpu 0 uuid=GPU-a name=\"NVIDIA L4\" util=50 mem_util=0 \
         mem_total={} mem_used={} mem_free={} mem_reserved=0\n",
        total * MIB,
        used * MIB,
        total.saturating_sub(used) * MIB
    );
    for (pid, memory, name) in
        [(process::id(), server, "/opt/llama/server"), (4711, trainer, "/usr/bin/trainer")]
    {
        if memory > 0 {
            let line = format!("proc 0 pid={pid} mem={} name=\"{name}\"\n", memory * MIB);
            text.push_str(&line);
        }
    }
    text
}

fn gpu(nvml: &FakeNvml) -> String {
    format!(
        "nvml_library = \"{}\"\nperiod_s = 0.1\nstale_after_s = 2\nmemory_floor_mib = {FLOOR}\nhung_after_s = 0",
        nvml.library().display()
    )
}

/// The server runs in this process, as whoever looks for the process behind its socket finds out.
fn hold(house: &House) {
    house.broker.devices.hold(holdings());
}

fn holdings() -> Holdings {
    let mut holdings = Holdings { at: Some(Instant::now()), ..Holdings::default() };
    let gpus = BTreeMap::from([(GpuId::from("GPU-a"), None)]);
    let holding = ServerHolding { gpus, pids: vec![process::id()], how: How::Socket };
    holdings.servers.insert("s".into(), holding);
    holdings
}

fn request() -> Value {
    let mut body = chat("scripted", &"word ".repeat(60), false);
    body["max_tokens"] = json!(60);
    body
}

/// What the drill saw, MiB and counts.
#[derive(Default)]
struct Seen {
    most_used: AtomicU64,
    most_placed: AtomicU64,
    answered: AtomicU64,
    refused: AtomicU64,
}

/// A caller that asks again and again until it is told to stop.
async fn caller(house: Arc<House>, seen: Arc<Seen>, stop: Arc<AtomicBool>) {
    while !stop.load(SeqCst) {
        let reply = house.ask(&request()).await;
        match reply.status {
            200 => _ = seen.answered.fetch_add(1, SeqCst),
            503 => {
                let text = String::from_utf8_lossy(&reply.body).into_owned();
                assert!(text.contains("no_gpu_memory"), "{text}");
                assert!(text.contains("pid 4711 (trainer) holds"), "{text}");
                assert!(text.contains("MiB are free there above the floor of 512 MiB"), "{text}");
                seen.refused.fetch_add(1, SeqCst);
                sleep(Duration::from_millis(20)).await;
            }
            other => panic!("{other}: {reply:?}"),
        }
    }
}

/// The card as it really is: every token that is placed takes its MiB at once, and gives it back at once. The
/// worst that the guard could meet.
struct Card {
    nvml: FakeNvml,
    trainer: u64,
}

impl Card {
    fn used(&self, house: &House) -> u64 {
        IDLE + house.placed().1.get() + self.trainer
    }

    /// Lets the drill run for a while, and looks every few milliseconds.
    async fn run(&mut self, house: &House, seen: &Seen, time: Duration) {
        let until = Instant::now() + time;
        while Instant::now() < until {
            let placed = house.placed().1.get();
            let used = IDLE + placed + self.trainer;
            assert!(
                used <= TOTAL,
                "{used} of {TOTAL} MiB: {placed} placed, {} foreign",
                self.trainer
            );
            seen.most_used.fetch_max(used, SeqCst);
            seen.most_placed.fetch_max(placed, SeqCst);
            self.nvml.set(&card(TOTAL, IDLE + placed, self.trainer));
            sleep(Duration::from_millis(3)).await;
        }
    }
}

#[tokio::test]
async fn a_foreign_process_takes_memory_step_by_step_and_no_request_is_placed_beyond_room() {
    let mut truth = Card { nvml: FakeNvml::new(&card(TOTAL, IDLE, 0)), trainer: 0 };
    let behaviour = Behaviour::Ok { tokens: 8, interval: Duration::from_millis(8) };
    let server = Scripted::start(behaviour).await;
    let plan = Plan::new().gpu(&gpu(&truth.nvml)).queue("no_server_wait_s = 0.1").server(
        "s",
        server.addr,
        "gpus = [\"GPU-a\"]\nmemory_per_token_kib = 1024",
    );
    let house = Arc::new(House::open(&plan).await);
    hold(&house);
    house.until("memory is guarded", |house| house.server("s").memory.is_some()).await;
    let (seen, stop) = (Arc::new(Seen::default()), Arc::new(AtomicBool::new(false)));
    let mut callers = JoinSet::new();
    for _ in 0..24 {
        callers.spawn(caller(Arc::clone(&house), Arc::clone(&seen), Arc::clone(&stop)));
    }
    truth.run(&house, &seen, Duration::from_millis(500)).await;
    assert!(seen.answered.load(SeqCst) > 0);
    let at_ease = seen.most_placed.load(SeqCst);
    assert!(at_ease > 1500, "there is room for many: {at_ease}");

    // Never more at once than the floor, which is what a floor is for.
    while truth.trainer < TOTAL - IDLE - 100 {
        let free = TOTAL.saturating_sub(truth.used(&house));
        truth.trainer += 200.min(free).min(TOTAL - IDLE - 100 - truth.trainer);
        truth.run(&house, &seen, Duration::from_millis(120)).await;
        if let Some(ended) = callers.try_join_next() {
            ended.unwrap();
        }
    }
    truth.run(&house, &seen, Duration::from_millis(400)).await;
    assert_eq!(house.placed().0, 0, "100 MiB are free: nothing is placed any more");
    assert!(seen.refused.load(SeqCst) > 0, "and callers hear why");
    assert_eq!(house.metric(&["berthd_server_memory_squeezed{", "\"s\""]), Some(1.0));
    assert_eq!(house.metric(&["berthd_server_memory_left_bytes{", "\"s\""]), Some(0.0));

    truth.trainer = 0;
    let (before, refused) = (seen.answered.load(SeqCst), seen.refused.load(SeqCst));
    truth.run(&house, &seen, Duration::from_millis(600)).await;
    assert!(seen.answered.load(SeqCst) > before + 24, "requests go on");
    stop.store(true, SeqCst);
    while let Some(ended) = callers.join_next().await {
        ended.unwrap();
    }
    let most = seen.most_used.load(SeqCst);
    println!(
        "{} answered, {refused} refused while the card was full; at most {most} of {TOTAL} MiB in use",
        seen.answered.load(SeqCst)
    );
    assert!(most > TOTAL - FLOOR, "the card was filled for real: {most}");
    assert_eq!(server.hits.aborts().len(), 0, "nothing that ran was ended");
}

/// A card that a llama.cpp filled to the last MiB when it loaded, and nobody else on it.
#[tokio::test]
async fn a_server_that_filled_its_own_card_goes_on_working() {
    let nvml = FakeNvml::new(&card(TOTAL, TOTAL - 60, 0));
    let server = Scripted::start(Behaviour::ok()).await;
    let plan = Plan::new().gpu(&gpu(&nvml)).queue("no_server_wait_s = 0.1").server(
        "s",
        server.addr,
        "gpus = [\"GPU-a\"]\nmemory_per_token_kib = 1024",
    );
    let house = House::open(&plan).await;
    hold(&house);
    house.until("memory is guarded", |house| house.server("s").memory.is_some()).await;
    for _ in 0..5 {
        assert_eq!(house.ask(&request()).await.status, 200);
    }
    // Somebody takes half of the rest.
    nvml.set(&card(TOTAL, TOTAL - 160, 130));
    house.until("it is seen", |house| house.server("s").memory.unwrap().squeezed).await;
    let reply = house.ask(&request()).await;
    assert_eq!(reply.status, 503, "{reply:?}");
    assert!(reply.head.to_ascii_lowercase().contains("retry-after"));
    // Without a driver there is no guard.
    nvml.set("return *=9\nreturn nvmlInit_v2=9\nreturn nvmlDeviceGetCount_v2=9\n");
    house.until("nobody guards", |house| house.server("s").memory.is_none()).await;
    assert_eq!(house.ask(&request()).await.status, 200);
    house.close().await;
}

#[tokio::test]
async fn a_model_that_does_not_fit_is_not_loaded_and_the_figures_are_told() {
    let nvml = FakeNvml::new(&card(24 * 1024, 0, 20 * 1024));
    let script =
        Script { behaviour: Behaviour::ok(), model: "scripted".to_owned(), kv_tokens: None };
    let server = Scripted::with(script).await;
    let pages = |loaded: &str| Says {
        pages: vec![
            ("/api/version", json!({ "version": "0.33.0" }).to_string()),
            (
                "/api/tags",
                json!({ "models": [{ "name": "scripted", "size": 5u64 << 30 }] }).to_string(),
            ),
            ("/api/ps", loaded.to_owned()),
        ],
        ..Says::default()
    };
    server.say(pages(r#"{"models":[]}"#));
    let plan = Plan::new()
        .gpu(&gpu(&nvml))
        .queue("no_server_wait_s = 0.1")
        .probe("period_s = 0.1")
        .server_of("ollama", "s", server.addr, "");
    let house = House::open(&plan).await;
    house.until("memory is guarded", |house| house.server("s").memory.is_some()).await;
    let reply = house.ask(&request()).await;
    let text = String::from_utf8_lossy(&reply.body).into_owned();
    assert_eq!(reply.status, 503, "{text}");
    assert!(text.contains("no_gpu_memory"), "{text}");
    let told = "Loading model 'scripted' and running this request needs about 6.0 GiB on GPU 0; \
                3.5 GiB are free there above the floor of 512 MiB; pid 4711 (trainer) holds 20.0 GiB.";
    assert!(text.contains(told), "{text}");
    assert_eq!(server.hits.requests(), 0, "it was not even asked");
    // Loaded by another way: it only has to run.
    let ps = json!({ "models": [{ "name": "scripted", "size_vram": 1u64 << 30 }] }).to_string();
    server.say(pages(&ps));
    let loaded = |house: &House| house.server("s").state.models[0].loading.unwrap().loaded;
    house.until("it is seen to be loaded", loaded).await;
    assert_eq!(house.ask(&request()).await.status, 200);
    // Given up, and the trainer leaves: it may be loaded.
    server.say(pages(r#"{"models":[]}"#));
    nvml.set(&card(24 * 1024, 0, 0));
    house.until("it is unloaded", |house| !loaded(house)).await;
    let free = |house: &House| house.server("s").memory.unwrap().load_left_bytes.get() > 20 << 30;
    house.until("the card is free", free).await;
    assert_eq!(house.ask(&request()).await.status, 200);
    house.close().await;
}

/// Utilisation is published more often than memory is read. Copies of one reading passed for several, and what
/// a server held in one moment passed for a pool that it keeps.
#[tokio::test(start_paused = true)]
async fn a_reading_that_is_published_again_proves_nothing_more() {
    let dead = Prefills { id: "s".into(), working: Arc::default(), dead: true };
    let broker = broker(dead);
    broker.devices.hold(holdings());
    let start = Instant::now();
    let plane = |second: u64, server: u64, free: u64| {
        let mut gpu = GpuState::blank("GPU-a".into(), 0, "card".to_owned());
        let memory = Some(Bytes::mib(server));
        (gpu.memory_used, gpu.memory_free) = (memory, Some(Bytes::mib(free)));
        gpu.processes =
            Some(vec![GpuProcess { pid: process::id(), memory, ..GpuProcess::default() }]);
        Arc::new(GpuPlane::Driver(DriverState {
            driver_version: "1".to_owned(),
            nvml_version: "1".to_owned(),
            session: 1,
            gpus: vec![gpu],
            read_at: start + Duration::from_secs(second),
        }))
    };
    let (publish, gpus) = watch::channel(plane(0, 1000, 5000));
    // What it takes before it had any work would be no growth by work.
    let request = Request::plain("m".into(), "a".into(), Tokens(1), start);
    let mut ask = Ask { id: RequestId::fresh(), request, recalls: 0, decision: None };
    let works = broker.dispatch.turn(&mut ask).await.unwrap();
    let story = async {
        let left = || broker.dispatch.servers()[0].memory.unwrap().left_bytes;
        let above_floor = Bytes::mib(2000 - 512);
        sleep(Duration::from_millis(10)).await;
        drop(works);
        for _ in 0..6 {
            sleep(Duration::from_millis(10)).await;
            publish.send_replace(plane(1, 4000, 2000));
        }
        sleep(Duration::from_millis(10)).await;
        assert_eq!(left(), above_floor);
        for second in 2..5 {
            publish.send_replace(plane(second, 4000, 2000));
            sleep(Duration::from_millis(10)).await;
        }
        assert_eq!(left(), above_floor.plus(Bytes::mib(3000)), "four readings do");
    };
    tokio::select! {
        () = memory::watch(Arc::clone(&broker), gpus) => unreachable!(),
        () = story => {}
    }
}
