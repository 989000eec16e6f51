//! Servers that hang: health says 200, counters stand still, GPUs do nothing. And prefills, which look
//! nearly the same.

use crate::support::{
    house::{Chance, House, Plan, chat},
    nvml::FakeNvml,
    raw::{self, Reply},
    scripted::{Behaviour, Scripted},
};
use berthd::{
    config,
    holding::{Holdings, How, ServerHolding},
    ids::{GpuId, ServerId},
    pipeline::{Broker, Live, count::Counters, device::hanging},
    servers::{Answer, AnswerBody, Call, CallError, Later, ModelServer, Route},
    snapshot::{DriverState, GpuPlane, GpuState, Health, ServedModel, ServerKind, ServerState},
    units::Tokens,
};
use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use std::{
    collections::BTreeMap,
    future::pending,
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering::SeqCst},
    },
    time::Duration,
};
use tokio::{
    sync::{Notify, mpsc, watch},
    task::JoinSet,
    time::{Instant, sleep},
};

/// These servers run on these cards, as whoever finds that out would say.
fn holdings(places: &[(&str, &str)]) -> Holdings {
    let mut holdings = Holdings { at: Some(Instant::now()), ..Holdings::default() };
    for (server, gpu) in places {
        let gpus = BTreeMap::from([(GpuId::from(*gpu), None)]);
        let holding = ServerHolding { gpus, pids: Vec::new(), how: How::Configured };
        holdings.servers.insert(ServerId::from(*server), holding);
    }
    holdings
}

fn cards(first: u32, second: u32) -> String {
    format!(
        "driver=580.65.06\nnvml=13.580.65.06\ngpu 0 uuid=GPU-a name=\"NVIDIA L4\" util={first} mem_util=0\n\
         gpu 1 uuid=GPU-b name=\"NVIDIA L4\" util={second} mem_util=0\n"
    )
}

/// The bound of the drills.
const BOUND: Duration = Duration::from_millis(1500);

/// A house of two servers with a card each, and a driver that is read ten times a second. Whether it is known
/// where the second runs is the test's to say.
async fn house(nvml: &FakeNvml, one: &Scripted, two: &Scripted, known: bool) -> House {
    let gpu = format!(
        "nvml_library = \"{}\"\nperiod_s = 0.1\nstale_after_s = 1\nhung_after_s = {}",
        nvml.library().display(),
        BOUND.as_secs_f64()
    );
    let second = if known { "gpus = [\"GPU-b\"]\n" } else { "" };
    let plan = Plan::new()
        .gpu(&gpu)
        .probe("period_s = 0.2")
        .relay("attempts_max = 1")
        .server_of("vllm", "one", one.addr, "gpus = [\"GPU-a\"]\nmax_running = 4")
        .server_of("vllm", "two", two.addr, &format!("{second}max_running = 4"));
    let house = House::open(&plan).await;
    let places = [("one", "GPU-a"), ("two", "GPU-b")];
    house.broker.devices.hold(holdings(if known { &places } else { &places[..1] }));
    house
}

/// Sends requests until the first server holds `count`.
async fn ask(house: &House, count: usize, stream: bool) -> JoinSet<Reply> {
    let mut replies = JoinSet::new();
    for number in 0..count {
        let body = chat("scripted", &format!("request {number}"), stream);
        let mut connection = house.open_as("a", "", &body).await;
        replies.spawn(async move {
            let (bytes, ended) = raw::read_all(&mut connection).await;
            Reply::parse(&bytes, ended)
        });
    }
    replies
}

#[tokio::test]
async fn a_frozen_server_is_taken_out_and_its_waiting_requests_finish_elsewhere() {
    let nvml = FakeNvml::new(&cards(0, 0));
    let (go, released) = watch::channel(false);
    let one = Scripted::start(Behaviour::Held { after: 2, go: released }).await;
    let two = Scripted::start(Behaviour::ok()).await;
    let house = house(&nvml, &one, &two, true).await;
    house.broker.dispatch.set_drained(&"two".into(), true);
    // A stream that its caller saw begin, then three requests of which nobody has seen anything.
    let mut begun = house.open_as("a", "", &chat("scripted", "begun", true)).await;
    raw::read_until(&mut begun, "-1 ").await;
    one.behave(Behaviour::HangBeforeHead);
    let mut waiting = ask(&house, 2, true).await;
    one.behave(Behaviour::HangAfterHead);
    let mut whole = ask(&house, 1, false).await;
    house.until("four requests are on one", |house| house.server("one").placed == 4).await;
    let frozen = Instant::now();
    assert!(house.server("one").usable, "its health says that all is well");
    house.broker.dispatch.set_drained(&"two".into(), false);

    house.until("it is taken out", |house| house.server("one").hung.is_some()).await;
    let took = frozen.elapsed();
    assert!(took <= BOUND + Duration::from_millis(700), "taken out after {took:?}");
    assert!(took >= BOUND - Duration::from_millis(400), "taken out after {took:?}");
    let view = house.server("one");
    assert_eq!((view.usable, &view.state.health), (false, &Health::Up));
    assert!(house.status()["servers"][0]["hung"].as_str().unwrap().contains("no byte for"));
    for replies in [&mut waiting, &mut whole] {
        while let Some(reply) = replies.join_next().await {
            let reply = reply.unwrap();
            assert_eq!(reply.status, 200, "{reply:?}");
            assert!(reply.whole);
            let head = reply.head.to_ascii_lowercase();
            assert!(head.contains("x-berthd-server: two"), "{head}");
            assert!(head.contains("x-berthd-attempts: 1"), "a recall is no attempt: {head}");
        }
    }
    assert_eq!(two.hits.finished(), 3);
    let metric = |parts: &[&str]| house.metric(parts);
    assert_eq!(metric(&["berthd_server_hung_total{", "one"]), Some(1.0));
    assert_eq!(metric(&["berthd_server_hung_now{", "one"]), Some(1.0));
    assert_eq!(metric(&["berthd_server_hung_now{", "two"]), Some(0.0));
    assert_eq!(metric(&["berthd_server_failures_total", "one", "hung"]), Some(3.0));

    // It wakes up: the stream that was left alone goes on to its end, and that is the sign.
    go.send_replace(true);
    let (rest, _) = raw::read_all(&mut begun).await;
    assert!(raw::contains(&rest, "[DONE]"), "{}", String::from_utf8_lossy(&rest));
    house.until("it is back", |house| house.server("one").hung.is_none()).await;
    house.until("it takes requests", |house| house.server("one").usable).await;
    assert_eq!(house.metric(&["berthd_server_hung_now{", "one"]), Some(0.0));
    house.close().await;
}

/// The only server of a model hangs and comes back: who was on it waits in the queue, even a full one.
#[tokio::test]
async fn with_no_other_server_requests_wait_for_it_to_come_back() {
    let nvml = FakeNvml::new(&cards(0, 0));
    let one = Scripted::start(Behaviour::HangBeforeHead).await;
    let two = Scripted::start(Behaviour::ok()).await;
    let house = house(&nvml, &one, &two, true).await;
    house.broker.dispatch.set_drained(&"two".into(), true);
    let mut waiting = ask(&house, 2, true).await;
    house.until("it hangs", |house| house.server("one").hung.is_some()).await;
    house.until("both wait", |house| house.waiting() == 2).await;
    assert!(waiting.try_join_next().is_none(), "nobody was refused");
    house.broker.dispatch.set_drained(&"two".into(), false);
    while let Some(reply) = waiting.join_next().await {
        assert_eq!(reply.unwrap().status, 200);
    }
    house.close().await;
}

#[tokio::test]
async fn a_server_whose_cards_work_or_are_not_known_is_left_alone() {
    let nvml = FakeNvml::new(&cards(97, 0));
    let (one, two) = (
        Scripted::start(Behaviour::SlowFirstToken(BOUND * 2)).await,
        Scripted::start(Behaviour::SlowFirstToken(BOUND * 2)).await,
    );
    // Nobody knows where the second runs: its idle card says nothing about it.
    let house = house(&nvml, &one, &two, false).await;
    let mut replies = ask(&house, 4, true).await;
    while let Some(reply) = replies.join_next().await {
        assert_eq!(reply.unwrap().status, 200);
    }
    assert_eq!((one.hits.finished(), two.hits.finished()), (2, 2));
    assert_eq!(house.metric(&["berthd_server_hung_total{"]), None);
    house.close().await;
}

// === A thousand long prefills, in simulated time ===

/// Says nothing for the time that a prompt asks for, then everything.
pub struct Prefills {
    pub id: ServerId,
    pub working: Arc<AtomicU32>,
    /// Its engine stands still: it never says anything.
    pub dead: bool,
}

const ANSWER: &str = concat!(
    "data: {\"choices\":[{\"index\":0,\"delta\":{\"content\":\"Hi\"},\"finish_reason\":null}]}\n\n",
    "data: {\"choices\":[{\"index\":0,\"delta\":{},\"finish_reason\":\"stop\"}]}\n\n",
    "data: [DONE]\n\n",
);

impl ModelServer for Prefills {
    fn id(&self) -> &ServerId {
        &self.id
    }

    fn kind(&self) -> ServerKind {
        ServerKind::OpenAi
    }

    fn send(&self, call: Call) -> Later<'_, Result<Answer, CallError>> {
        let body: serde_json::Value = serde_json::from_slice(&call.body).unwrap();
        let seconds: u64 = body["messages"][0]["content"].as_str().unwrap().parse().unwrap_or(0);
        Box::pin(async move {
            if self.dead {
                return pending().await;
            }
            self.working.fetch_add(1, SeqCst);
            sleep(Duration::from_secs(seconds)).await;
            self.working.fetch_sub(1, SeqCst);
            let (give, pieces) = mpsc::channel(1);
            give.try_send(Ok(Bytes::from_static(ANSWER.as_bytes()))).unwrap();
            let mut headers = http::HeaderMap::new();
            headers.insert("content-type", http::HeaderValue::from_static("text/event-stream"));
            let body = AnswerBody::Memory(pieces);
            Ok(Answer { status: http::StatusCode::OK, headers, body })
        })
    }

    fn observe<'a>(&'a self, last: &'a ServerState) -> Later<'a, ServerState> {
        Box::pin(std::future::ready(last.clone()))
    }

    fn count(&self, _route: Route, _body: Bytes) -> Later<'_, Option<Tokens>> {
        Box::pin(std::future::ready(None))
    }
}

/// A broker whose one server has room for a hundred requests, and the bound that everybody has: 30 s.
pub fn broker(server: impl ModelServer + 'static) -> Arc<Broker> {
    let text = "[[tenants]]\nname = \"a\"\nkeys_sha256 = [\"50d858e0985ecc7f60418aaf0cc5ab587f42c2570a884095a9e8ccacd0f6545c\"]\n\
                [relay]\nfirst_token_limit_s = 3600\n[probe]\nstale_after_s = 86400\n";
    let settings = config::parse_text("test", text).unwrap().settings;
    let broker = Broker::new(Live::new(settings, Counters::default()));
    broker.dispatch.join(Arc::new(server), Arc::new(Notify::new()), health());
    broker.devices.hold(holdings(&[("s", "GPU-a")]));
    broker
}

/// What its probes say, always the same: no counter ever moves.
pub fn health() -> ServerState {
    ServerState {
        health: Health::Up,
        models: vec![ServedModel::ready("m".into(), None)],
        read_at: Some(Instant::now()),
        ..ServerState::unknown("s".into(), ServerKind::OpenAi)
    }
}

pub fn plane(percent: Option<u32>) -> Arc<GpuPlane> {
    let mut gpu = GpuState::blank("GPU-a".into(), 0, "card".to_owned());
    gpu.utilisation_percent = percent;
    Arc::new(GpuPlane::Driver(DriverState {
        driver_version: "1".to_owned(),
        nvml_version: "1".to_owned(),
        session: 1,
        gpus: vec![gpu],
        read_at: Instant::now(),
    }))
}

/// Reads the card each second: busy while anybody works, but now and then 0 is sampled all the same, for up
/// to 20 s on end; now and then the driver hangs for up to 90 s, or the card tells nothing. Health pages come
/// late, too.
async fn readings(
    broker: &Broker,
    working: &AtomicU32,
    gpus: watch::Sender<Arc<GpuPlane>>,
    mut chance: Chance,
) {
    loop {
        let (kind, length) = (chance.below(40), chance.below(20) + 1);
        match kind {
            0 => sleep(Duration::from_secs(length * 4 + 10)).await,
            1..=3 => {
                for _ in 0..length {
                    gpus.send_replace(plane((kind != 1).then_some(0)));
                    sleep(Duration::from_secs(1)).await;
                }
            }
            _ => {}
        }
        let busy = working.load(SeqCst) > 0;
        gpus.send_replace(plane(Some(if busy { 60 + length as u32 } else { 0 })));
        if kind.is_multiple_of(3) {
            broker.dispatch.observe(&health());
        }
        sleep(Duration::from_secs(1)).await;
    }
}

pub async fn prompt(broker: Arc<Broker>, seconds: u64) -> bool {
    let body = format!(
        r#"{{"model":"m","stream":true,"messages":[{{"role":"user","content":"{seconds}"}}]}}"#
    );
    let request = http::Request::post("/v1/chat/completions")
        .header("authorization", "Bearer example")
        .body(Full::new(Bytes::from(body)))
        .unwrap();
    let body = broker.handle(request).await.into_body().collect().await.unwrap().to_bytes();
    raw::contains(&body, "[DONE]")
}

#[tokio::test(start_paused = true)]
async fn a_thousand_long_prefills_raise_no_alarm() {
    let working = Arc::new(AtomicU32::new(0));
    let server = Prefills { id: "s".into(), working: Arc::clone(&working), dead: false };
    let broker = broker(server);
    let (publish, gpus) = watch::channel(plane(Some(0)));
    let mut chance = Chance::new("prefills", 7);
    let seconds: Vec<u64> = (0..1000).map(|_| 20 + chance.below(280)).collect();
    let long = seconds.iter().filter(|seconds| **seconds > 30).count();
    let requests = async {
        let mut running = JoinSet::new();
        let mut whole = 0;
        for seconds in seconds {
            if running.len() == 8 {
                whole += usize::from(running.join_next().await.unwrap().unwrap());
            }
            running.spawn(prompt(Arc::clone(&broker), seconds));
        }
        while let Some(done) = running.join_next().await {
            whole += usize::from(done.unwrap());
        }
        whole
    };
    let begun = Instant::now();
    let whole = tokio::select! {
        whole = requests => whole,
        () = hanging::watch(Arc::clone(&broker), gpus) => unreachable!(),
        () = readings(&broker, &working, publish, Chance::new("readings", 11)) => unreachable!(),
    };
    let page = broker.metrics_page(&GpuPlane::Off);
    assert_eq!((whole, page.contains("berthd_server_hung_total{")), (1000, false));
    println!("{long} of 1000 prefills beyond the bound, {:?} in all, no alarm", begun.elapsed());
    assert!(long > 900);
}

/// The same story with an engine that does nothing: what the thousand show is worth something.
#[tokio::test(start_paused = true)]
async fn the_same_readings_find_an_engine_that_died() {
    let working = Arc::new(AtomicU32::new(0));
    let server = Prefills { id: "s".into(), working: Arc::clone(&working), dead: true };
    let broker = broker(server);
    let (publish, gpus) = watch::channel(plane(Some(0)));
    let found = async {
        while broker.dispatch.servers()[0].hung.is_none() {
            sleep(Duration::from_millis(100)).await;
        }
    };
    let begun = Instant::now();
    tokio::select! {
        () = found => {}
        _ = prompt(Arc::clone(&broker), 60) => panic!("it cannot be answered"),
        () = hanging::watch(Arc::clone(&broker), gpus) => unreachable!(),
        () = readings(&broker, &working, publish, Chance::new("readings", 11)) => unreachable!(),
    }
    // As soon as the driver answered for one bound without a break.
    assert!(begun.elapsed() >= Duration::from_secs(30));
    assert!(begun.elapsed() <= Duration::from_secs(600), "{:?}", begun.elapsed());
}
