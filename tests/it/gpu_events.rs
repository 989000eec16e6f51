//! What cards say of themselves: in order, whatever else the driver is busy with, and over its reloads.

use crate::support::{
    nvml::FakeNvml,
    plane::{LIMIT, driver, no_driver, rounds, settings, start, until_first, wait_for},
};
use berthd::{
    config, gpu,
    snapshot::{DriverState, EventKind, GpuEvent, Throttle},
};
use std::time::Duration;
use tokio::{
    sync::mpsc::Receiver,
    time::{Instant, timeout},
};

const CARDS: &str = "driver=580.65.06
gpu 0 uuid=GPU-aaaa name=a temp=60 throttle=0
gpu 1 uuid=GPU-bbbb name=b temp=30 throttle=0
";

async fn next(events: &mut Receiver<GpuEvent>) -> GpuEvent {
    timeout(LIMIT, events.recv()).await.expect("an event").expect("the plane lives")
}

/// What it was and about which card.
fn told(event: &GpuEvent) -> (Option<&str>, EventKind) {
    (event.gpu.as_ref().map(|id| id.as_str()), event.kind)
}

/// The fake gives a set only what appears after it registered, so the test waits for that first.
async fn registered(fake: &FakeNvml, times: usize) {
    let wait = async {
        while fake.calls("nvmlEventSetWait_v2") + fake.calls("nvmlEventSetWait") < times {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    };
    timeout(LIMIT, wait).await.expect("the plane waits for events");
}

/// A plane over these cards that waits for events.
async fn listening(fake: &FakeNvml) -> (gpu::GpuWatch, Receiver<GpuEvent>) {
    let gpus = start(fake.library());
    let events = gpus.take_events().expect("nobody took them");
    registered(fake, 1).await;
    (gpus, events)
}

#[tokio::test]
async fn every_kind_arrives_in_order_with_its_card() {
    let state = format!("log_calls\n{CARDS}");
    let fake = FakeNvml::new(&state);
    let (gpus, mut events) = listening(&fake).await;
    let before = Instant::now();
    fake.set(&format!(
        "{state}event 1 gpu=0 type=xid data=79\nevent 2 gpu=1 type=sbe\nevent 3 gpu=0 type=dbe\n\
         event 4 gpu=1 type=nonfatal\nevent 5 gpu=1 type=poison\nevent 6 gpu=0 type=unavailable\n\
         event 7 gpu=0 type=recovery\nevent 8 gpu=1 type=mig\nevent 9 gpu=none type=xid data=13\n\
         event 10 gpu=0 type=clock\nevent 11 gpu=1 type=xid data=31\n"
    ));
    let (a, b) = (Some("GPU-aaaa"), Some("GPU-bbbb"));
    for expected in [
        (a, EventKind::Xid(79)),
        (b, EventKind::EccSingleBit),
        (a, EventKind::EccDoubleBit),
        (b, EventKind::NonFatalPoison),
        (b, EventKind::FatalPoison),
        (a, EventKind::Unavailable),
        (a, EventKind::RecoveryAction),
        (b, EventKind::MigChanged),
        (None, EventKind::Xid(13)),
        // The clocks' change was not asked for.
        (b, EventKind::Xid(31)),
    ] {
        let event = next(&mut events).await;
        assert_eq!(told(&event), expected);
        assert!(event.at >= before && event.at <= Instant::now());
    }
    assert_eq!(gpus.dropped_events(), 0);
    assert!(gpus.take_events().is_none(), "there is one reader");
}

#[tokio::test]
async fn an_event_arrives_while_a_reading_hangs() {
    let state = format!("log_calls\n{CARDS}hang nvmlDeviceGetTemperature@0=60000ms\n");
    let fake = FakeNvml::new(&state);
    let (gpus, mut events) = listening(&fake).await;
    timeout(LIMIT, fake.hanging()).await.expect("the reading hangs");
    fake.set(&format!("{state}event 1 gpu=1 type=xid data=48\n"));
    assert_eq!(told(&next(&mut events).await), (Some("GPU-bbbb"), EventKind::Xid(48)));
    assert!(driver(&gpus.latest()).is_none(), "no round has ended");
}

#[tokio::test]
async fn a_card_that_speaks_up_is_looked_at_at_once() {
    let state = format!("log_calls\n{CARDS}");
    let fake = FakeNvml::new(&state);
    let settings = config::Gpu { period: LIMIT * 3, ..settings(fake.library()) };
    let gpus = gpu::start(&settings).expect("a thread");
    let mut plane = gpus.subscribe();
    wait_for(&mut plane, driver).await;
    registered(&fake, 1).await;
    let changed = CARDS.replace("throttle=0", "throttle=0x40 pcie_replays=7");
    fake.set(&format!("log_calls\n{changed}event 1 gpu=0 type=recovery\n"));
    let state = until_first(&mut plane, |gpu| gpu.throttle == Some(Throttle(0x40))).await;
    assert_eq!(state.session, 1);
}

#[tokio::test]
async fn a_reloaded_driver_is_listened_to_again_and_nothing_is_told_twice() {
    let state = format!("log_calls\n{CARDS}");
    let fake = FakeNvml::new(&state);
    let (gpus, mut events) = listening(&fake).await;
    let mut plane = gpus.subscribe();
    let one = "event 1 gpu=0 type=xid data=43\n";
    fake.set(&format!("{state}{one}"));
    assert_eq!(told(&next(&mut events).await).1, EventKind::Xid(43));

    fake.set(&format!("{state}{one}unloaded\n"));
    wait_for(&mut plane, no_driver).await;
    fake.set(&format!("{state}{one}"));
    let again = |state: &DriverState| state.session == 2;
    wait_for(&mut plane, |plane| driver(plane).filter(again)).await;
    assert!(fake.calls("nvmlEventSetFree") >= 1 || fake.calls("nvmlShutdown") >= 1);
    let waits = fake.calls("nvmlEventSetWait_v2");
    registered(&fake, waits + 2).await;
    fake.set(&format!("{state}{one}event 2 gpu=1 type=dbe\n"));
    assert_eq!(told(&next(&mut events).await), (Some("GPU-bbbb"), EventKind::EccDoubleBit));
}

#[tokio::test]
async fn a_card_that_refuses_leaves_the_events_of_the_others() {
    for refusal in ["return nvmlDeviceRegisterEvents@0=3\n", "lost 0\n"] {
        let state = format!("log_calls\n{CARDS}{refusal}");
        let fake = FakeNvml::new(&state);
        let (_gpus, mut events) = listening(&fake).await;
        fake.set(&format!(
            "{state}event 1 gpu=0 type=xid data=13\nevent 2 gpu=1 type=xid data=31\n"
        ));
        assert_eq!(told(&next(&mut events).await), (Some("GPU-bbbb"), EventKind::Xid(31)));
    }
}

#[tokio::test]
async fn a_card_is_asked_only_for_events_that_it_knows() {
    let state = format!("log_calls\n{}", CARDS.replace("temp=60", "temp=60 events=0x8"));
    let fake = FakeNvml::new(&state);
    let (_gpus, mut events) = listening(&fake).await;
    fake.set(&format!("{state}event 1 gpu=0 type=xid data=79\n"));
    assert_eq!(told(&next(&mut events).await), (Some("GPU-aaaa"), EventKind::Xid(79)));
}

#[tokio::test]
async fn waiting_outlives_a_card_that_is_lost() {
    let state = format!("log_calls\n{CARDS}");
    let fake = FakeNvml::new(&state);
    let (gpus, mut events) = listening(&fake).await;
    fake.set(&format!("{state}lost_events\nlost 0\n"));
    let mut plane = gpus.subscribe();
    until_first(&mut plane, |gpu| gpu.temperature_c.is_none()).await;
    let failed = fake.calls("nvmlEventSetWait_v2");
    registered(&fake, failed + 3).await;
    fake.set(&format!("{state}lost 0\nevent 1 gpu=1 type=xid data=31\n"));
    assert_eq!(told(&next(&mut events).await), (Some("GPU-bbbb"), EventKind::Xid(31)));
}

#[tokio::test]
async fn a_card_that_comes_back_is_listened_to() {
    let state = format!("log_calls\n{CARDS}");
    let fake = FakeNvml::new(&format!("{state}lost 0\n"));
    let (gpus, mut events) = listening(&fake).await;
    let mut plane = gpus.subscribe();
    wait_for(&mut plane, driver).await;
    fake.set(&state);
    until_first(&mut plane, |gpu| gpu.id.as_str() == "GPU-aaaa").await;
    let sets = async {
        while fake.calls("nvmlEventSetCreate") < 2 {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    };
    timeout(LIMIT, sets).await.expect("the cards are registered anew");
    let waits = fake.calls("nvmlEventSetWait_v2");
    registered(&fake, waits + 1).await;
    fake.set(&format!("{state}event 1 gpu=0 type=xid data=79\n"));
    assert_eq!(told(&next(&mut events).await), (Some("GPU-aaaa"), EventKind::Xid(79)));
}

#[tokio::test]
async fn a_driver_without_events_is_read_all_the_same() {
    for refusal in ["return nvmlEventSetCreate=3", "return nvmlDeviceGetSupportedEventTypes=3"] {
        let fake = FakeNvml::new(&format!("log_calls\n{CARDS}{refusal}\n"));
        let gpus = start(fake.library());
        let mut plane = gpus.subscribe();
        wait_for(&mut plane, driver).await;
        let state = rounds(&mut plane, 5).await;
        assert_eq!(state.gpus[0].temperature_c, Some(60));
        assert_eq!(fake.calls("nvmlEventSetCreate"), 1, "asked once");
        assert_eq!(fake.calls("nvmlEventSetWait_v2"), 0);
    }
}

#[tokio::test]
async fn stopping_leaves_nothing_in_the_driver() {
    let state = format!("log_calls\n{CARDS}");
    let fake = FakeNvml::new(&state);
    let (gpus, mut events) = listening(&fake).await;
    timeout(LIMIT, gpus.stop()).await.expect("both threads left");
    assert_eq!(fake.calls("nvmlEventSetFree"), 1);
    assert_eq!(fake.calls("nvmlShutdown"), 1, "the library was let go last");
    assert_eq!(timeout(LIMIT, events.recv()).await, Ok(None), "and nobody can speak up any more");
}
