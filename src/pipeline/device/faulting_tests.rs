//! The task between rule and dispatch: servers that exist in name only, on GPUs that exist in name only.

use super::faulting;
use crate::{
    config,
    fault::Condition,
    holding::{Holdings, ServerHolding},
    ids::{GpuId, ServerId},
    pipeline::{Broker, Live, count::Counters, dispatch::ServerView, trial},
    servers::{Answer, Call, CallError, Later, ModelServer, Route},
    snapshot::{
        DriverState, EventKind, GpuEvent, GpuPlane, GpuState, Health, ServedModel, ServerKind,
        ServerState,
    },
    units::Tokens,
};
use bytes::Bytes;
use std::{
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
    time::Duration,
};
use tokio::{
    sync::{Notify, mpsc, watch},
    task::JoinSet,
    time::{Instant, advance, sleep},
};

/// Counts its calls and answers none.
struct Name(ServerId, Arc<AtomicU32>);

impl ModelServer for Name {
    fn id(&self) -> &ServerId {
        &self.0
    }

    fn kind(&self) -> ServerKind {
        ServerKind::OpenAi
    }

    fn send(&self, _call: Call) -> Later<'_, Result<Answer, CallError>> {
        self.1.fetch_add(1, Ordering::Relaxed);
        Box::pin(std::future::ready(Err(CallError::Refused("nobody".into()))))
    }

    fn observe<'a>(&'a self, last: &'a ServerState) -> Later<'a, ServerState> {
        Box::pin(std::future::ready(last.clone()))
    }

    fn count(&self, _route: Route, _body: Bytes) -> Later<'_, Option<Tokens>> {
        Box::pin(std::future::ready(None))
    }
}

/// A broker with three servers, the task, and both ends of what it is told. `one` and `two` are configured
/// for GPU-0; of `three` the configuration says nothing.
struct Desk {
    broker: Arc<Broker>,
    plane: watch::Sender<Arc<GpuPlane>>,
    events: mpsc::Sender<GpuEvent>,
    calls: Arc<AtomicU32>,
    _tasks: JoinSet<()>,
}

fn gpu(number: u32) -> GpuId {
    GpuId::from(format!("GPU-{number}"))
}

fn up(id: &str) -> ServerState {
    ServerState {
        health: Health::Up,
        models: vec![ServedModel::ready("m".into(), None)],
        read_at: Some(Instant::now()),
        ..ServerState::unknown(id.into(), ServerKind::OpenAi)
    }
}

impl Desk {
    async fn new(rows: &str) -> Self {
        let key = "50d858e0985ecc7f60418aaf0cc5ab587f42c2570a884095a9e8ccacd0f6545c";
        let text = format!(
            "[gpu]\n{rows}\n[probe]\nstale_after_s = 86400\n[[tenants]]\nname = \"t\"\nkeys_sha256 = [\"{key}\"]\n\
             [[servers]]\nname = \"one\"\nkind = \"openai\"\nurl = \"http://127.0.0.1:1\"\ngpus = [\"GPU-0\"]\n\
             [[servers]]\nname = \"two\"\nkind = \"openai\"\nurl = \"http://127.0.0.1:2\"\ngpus = [\"GPU-0\"]\n\
             [[servers]]\nname = \"three\"\nkind = \"openai\"\nurl = \"http://127.0.0.1:3\"\n"
        );
        let settings = config::parse_text("test", &text).unwrap().settings;
        let broker = Broker::new(Live::new(settings, Counters::default()));
        let calls = Arc::new(AtomicU32::new(0));
        let (plane, planes) = watch::channel(Arc::new(GpuPlane::Off));
        let (events, heard) = mpsc::channel(64);
        let mut tasks = JoinSet::new();
        tasks.spawn(faulting::watch(Arc::clone(&broker), planes, Some(heard)));
        tasks.spawn(trial::watch(Arc::clone(&broker)));
        let desk = Self { broker, plane, events, calls, _tasks: tasks };
        ["one", "two", "three"].into_iter().for_each(|id| desk.join(id));
        desk.round(2, 1);
        desk.a_moment().await;
        desk
    }

    fn join(&self, id: &str) {
        let server = Arc::new(Name(id.into(), Arc::clone(&self.calls)));
        self.broker.dispatch.join(server, Arc::new(Notify::new()), up(id));
    }

    /// The driver lists so many cards.
    fn round(&self, cards: u32, session: u64) {
        let blank = |number| GpuState::blank(gpu(number), number, "card".into());
        self.plane.send_replace(Arc::new(GpuPlane::Driver(DriverState {
            driver_version: "1".into(),
            nvml_version: "1".into(),
            session,
            gpus: (0..cards).map(blank).collect(),
            read_at: Instant::now(),
        })));
    }

    /// So many seconds in which the cards are read.
    async fn seconds(&self, count: u32) {
        for _ in 0..count {
            sleep(Duration::from_secs(1)).await;
            self.round(2, 1);
        }
        self.a_moment().await;
    }

    /// Lets the task see what was sent. No timer of its own comes due meanwhile.
    async fn a_moment(&self) {
        for _ in 0..20 {
            tokio::task::yield_now().await;
        }
    }

    async fn xid(&self, number: u32, xid: u32) {
        let event =
            GpuEvent { gpu: Some(gpu(number)), kind: EventKind::Xid(xid), at: Instant::now() };
        self.events.send(event).await.unwrap();
        self.a_moment().await;
    }

    fn view(&self, id: &str) -> ServerView {
        let views = self.broker.dispatch.servers();
        views.into_iter().find(|view| view.state.id.as_str() == id).unwrap()
    }

    fn usable(&self) -> [bool; 3] {
        ["one", "two", "three"].map(|id| self.view(id).usable)
    }

    fn hold(&self, id: &str, gpus: &[u32], pids: &[u32]) {
        let mut holdings = Holdings::clone(&self.broker.devices.holdings());
        let gpus = gpus.iter().map(|number| (gpu(*number), None)).collect();
        let holding = ServerHolding { gpus, pids: pids.to_vec(), ..ServerHolding::default() };
        holdings.servers.insert(id.into(), holding);
        self.broker.devices.hold(holdings);
    }

    fn condition(&self, number: u32) -> Condition {
        let health = self.broker.devices.health();
        health.iter().find(|health| health.gpu == gpu(number)).unwrap().condition
    }
}

#[tokio::test(start_paused = true)]
async fn an_event_stops_the_servers_of_its_gpu_without_any_timer() {
    let desk = Desk::new("").await;
    assert_eq!(desk.usable(), [true, true, true]);
    let begun = Instant::now();
    desk.xid(0, 48).await;
    assert_eq!(begun.elapsed(), Duration::ZERO);
    assert_eq!(desk.usable(), [false, false, true], "of the third no GPU is known");
    let why = desk.view("one").footing.stop.unwrap();
    assert_eq!(why, "GPU 0 is draining: Xid 48 (double-bit memory error); reset the GPU");
    assert_eq!(desk.condition(0), Condition::Draining);
    let page = desk.broker.metrics_page(&GpuPlane::Off);
    for line in [
        "berthd_gpu_condition{gpu=\"GPU-0\",condition=\"draining\"} 1",
        "berthd_gpu_condition{gpu=\"GPU-0\",condition=\"ok\"} 0",
        "berthd_gpu_condition{gpu=\"GPU-1\",condition=\"ok\"} 1",
        "berthd_gpu_needs{gpu=\"GPU-0\",needs=\"reset_gpu\"} 1",
        "berthd_gpu_xids_total{gpu=\"GPU-0\",class=\"reset\",xid=\"48\"} 1",
        "berthd_gpu_drains_total{gpu=\"GPU-0\"} 1",
        "berthd_gpu_weight_ratio{gpu=\"GPU-1\"} 1.0",
    ] {
        assert!(page.contains(line), "{line} is not on {page}");
    }
    desk.xid(1, 4242).await;
    let page = desk.broker.metrics_page(&GpuPlane::Off);
    assert!(page.contains("{gpu=\"GPU-1\",class=\"unknown\",xid=\"other\"} 1"), "{page}");
}

#[tokio::test(start_paused = true)]
async fn holdings_place_servers_that_the_configuration_does_not() {
    let desk = Desk::new("").await;
    desk.hold("three", &[1], &[77]);
    // The configuration goes before what is found.
    desk.hold("one", &[1], &[78]);
    desk.xid(1, 79).await;
    assert_eq!(desk.usable(), [true, true, false]);
    assert!(desk.view("three").footing.stop.unwrap().contains("reboot the host"));
    // It was started on the other card, which is well.
    desk.hold("three", &[0], &[79]);
    desk.seconds(1).await;
    assert_eq!(desk.usable(), [true, true, true]);
}

#[tokio::test(start_paused = true)]
async fn a_server_that_joins_on_a_sick_gpu_is_stopped_with_the_next_look() {
    let desk = Desk::new("").await;
    desk.xid(1, 79).await;
    desk.join("three");
    desk.hold("three", &[1], &[]);
    desk.seconds(1).await;
    assert_eq!(desk.usable(), [true, true, false]);
}

#[tokio::test(start_paused = true)]
async fn what_operators_only_want_told_stops_nothing() {
    let desk = Desk::new("drain = false").await;
    desk.xid(0, 79).await;
    assert_eq!(desk.usable(), [true, true, true]);
    assert_eq!(desk.condition(0), Condition::Lost);
}

#[tokio::test(start_paused = true)]
async fn servers_come_back_by_themselves_and_at_an_operators_word() {
    let desk = Desk::new("").await;
    desk.xid(0, 95).await;
    desk.seconds(100).await;
    assert_eq!(desk.usable(), [false, false, true]);
    // The driver went and came back.
    desk.plane.send_replace(Arc::new(GpuPlane::NoDriver("gone".into())));
    desk.a_moment().await;
    sleep(Duration::from_secs(300)).await;
    assert_eq!(desk.usable(), [false, false, true], "a drain outlives the driver");
    for _ in 0..40 {
        desk.round(2, 2);
        sleep(Duration::from_secs(1)).await;
    }
    assert_eq!(desk.usable(), [true, true, true]);
    desk.xid(0, 95).await;
    assert!(!desk.broker.devices.clear(gpu(7)).await, "there is no such GPU");
    assert!(desk.broker.devices.clear(gpu(0)).await);
    assert_eq!(desk.usable(), [true, true, true], "at once");
}

#[tokio::test(start_paused = true)]
async fn an_application_fault_tries_the_servers_of_its_gpu_and_no_other() {
    let desk = Desk::new("").await;
    desk.xid(0, 31).await;
    assert_eq!(desk.usable(), [true, true, true]);
    sleep(Duration::from_secs(1)).await;
    // They do not answer, so their breakers opened after three trials each.
    assert_eq!((desk.view("one").breaker_open, desk.view("two").breaker_open), (true, true));
    assert!(!desk.view("three").breaker_open);
    assert!(desk.calls.load(Ordering::Relaxed) >= 6);
    assert_eq!(desk.view("one").footing.stop, None);
}

#[tokio::test(start_paused = true)]
async fn application_faults_end_when_every_server_of_the_gpu_has_a_new_process() {
    let desk = Desk::new("").await;
    desk.hold("one", &[0], &[10]);
    desk.hold("two", &[0], &[20]);
    for _ in 0..3 {
        desk.xid(0, 31).await;
        desk.seconds(2).await;
    }
    assert_eq!(desk.usable(), [false, false, true]);
    desk.hold("one", &[0], &[11]);
    desk.seconds(60).await;
    assert_eq!(desk.condition(0), Condition::Draining, "the other one still runs as it did");
    // It was only silent for a moment.
    desk.broker
        .dispatch
        .observe(&ServerState { health: Health::Down("silent".into()), ..up("two") });
    desk.broker.dispatch.observe(&up("two"));
    desk.seconds(60).await;
    assert_eq!(
        desk.condition(0),
        Condition::Draining,
        "a server that was silent is the same process"
    );
    desk.hold("two", &[0], &[21]);
    desk.seconds(32).await;
    assert_eq!(desk.condition(0), Condition::Ok);
    // Their breakers opened for what they did to the trials; that is another matter.
    assert_eq!((desk.view("one").footing.stop, desk.view("two").footing.stop), (None, None));
}

/// A server that took longer to start than its GPUs are remembered once passed for the one from before the
/// faults, and stayed stopped.
#[tokio::test(start_paused = true)]
async fn a_server_that_is_long_in_starting_is_known_for_a_new_process() {
    let desk = Desk::new("").await;
    desk.hold("three", &[1], &[30]);
    for _ in 0..3 {
        desk.xid(1, 31).await;
        desk.seconds(2).await;
    }
    assert_eq!(desk.condition(1), Condition::Draining);
    desk.broker.devices.hold(Holdings::default());
    desk.seconds(150).await;
    assert_eq!(desk.view("three").footing.stop, None, "nobody knows where it is");
    assert_eq!(desk.condition(1), Condition::Draining, "nor whether it was started anew");
    desk.hold("three", &[1], &[31]);
    desk.seconds(1).await;
    assert!(desk.view("three").footing.stop.is_some(), "until the card was calm for a while");
    desk.seconds(32).await;
    assert_eq!(desk.condition(1), Condition::Ok);
    assert_eq!(desk.view("three").footing.stop, None);
}

#[tokio::test(start_paused = true)]
async fn the_last_known_gpus_hold_for_a_while_and_without_a_driver_for_ever() {
    let desk = Desk::new("").await;
    desk.hold("three", &[1], &[5]);
    desk.xid(1, 48).await;
    desk.broker.devices.hold(Holdings::default());
    desk.seconds(30).await;
    assert_eq!(desk.usable(), [true, true, false]);
    desk.plane.send_replace(Arc::new(GpuPlane::NoDriver("gone".into())));
    advance(Duration::from_secs(600)).await;
    desk.a_moment().await;
    assert_eq!(desk.usable(), [true, true, false]);
    desk.seconds(62).await;
    assert_eq!(desk.usable(), [true, true, true], "for all that is known it computes elsewhere");
}

/// Nothing new goes to a stopped server, not even a trial.
#[tokio::test(start_paused = true)]
async fn a_stopped_server_is_left_alone_until_its_gpus_are_well() {
    let desk = Desk::new("").await;
    desk.xid(0, 48).await;
    desk.xid(0, 31).await;
    desk.seconds(20).await;
    assert_eq!(desk.calls.load(Ordering::Relaxed), 0);
    assert!(desk.broker.devices.clear(gpu(0)).await);
    desk.seconds(1).await;
    assert!(desk.calls.load(Ordering::Relaxed) >= 2, "it is still to be tried");
}

/// A server once stayed stopped for ever when its card was taken out for good and called well.
#[tokio::test(start_paused = true)]
async fn a_card_that_is_gone_for_good_stops_nobody_once_it_is_cleared() {
    let desk = Desk::new("").await;
    desk.hold("three", &[1], &[]);
    desk.round(2, 1);
    desk.seconds(1).await;
    sleep(Duration::from_secs(1)).await;
    desk.round(1, 1);
    desk.a_moment().await;
    assert_eq!(desk.usable(), [true, true, false]);
    assert!(desk.broker.devices.clear(gpu(1)).await);
    assert_eq!(desk.usable(), [true, true, true]);
}
