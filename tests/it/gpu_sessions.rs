//! The driver's comings and goings: counts that change, libraries that are replaced, modules that do not fit.

use crate::support::{
    nvml::FakeNvml,
    plane::{LIMIT, driver, no_driver, rounds, start, until_first, wait_for},
};
use berthd::{
    gpu::GpuWatch,
    snapshot::{DriverState, EventKind},
    units::Bytes,
};
use std::time::Duration;
use tokio::time::timeout;

const ONE: &str = "driver=580.65.06
gpu 0 uuid=GPU-aaaa name=a temp=60 mem_total=100 mem_used=50 mem_free=40 mem_reserved=10
";
const TWO: &str = "gpu 1 uuid=GPU-bbbb name=b temp=30\n";

fn ids(state: &DriverState) -> Vec<&str> {
    state.gpus.iter().map(|gpu| gpu.id.as_str()).collect()
}

async fn session(gpus: &GpuWatch, number: u64) -> DriverState {
    let is_it = |state: &DriverState| state.session == number;
    wait_for(&mut gpus.subscribe(), |plane| driver(plane).filter(is_it)).await
}

#[tokio::test]
async fn another_number_of_cards_opens_the_driver_anew_at_once() {
    let fake = FakeNvml::new(ONE);
    let gpus = start(fake.library());
    assert_eq!(ids(&session(&gpus, 1).await), ["GPU-aaaa"]);
    let mut plane = gpus.subscribe();
    fake.set(&format!("{ONE}{TWO}"));
    let two = wait_for(&mut plane, |plane| {
        assert!(no_driver(plane).is_none(), "the driver was there all the time: {plane:?}");
        driver(plane).filter(|state| state.gpus.len() == 2)
    });
    let state = two.await;
    assert_eq!((ids(&state), state.session), (vec!["GPU-aaaa", "GPU-bbbb"], 2));
    // And no more often than that.
    assert_eq!(rounds(&mut plane, 5).await.session, 2);
    fake.set(ONE);
    assert_eq!(ids(&session(&gpus, 3).await), ["GPU-aaaa"]);
}

#[tokio::test]
async fn a_module_that_goes_and_comes_back_is_a_new_session() {
    let fake = FakeNvml::new(ONE);
    let gpus = start(fake.library());
    session(&gpus, 1).await;
    fake.set(&format!("{ONE}unloaded\n"));
    let why = wait_for(&mut gpus.subscribe(), no_driver).await;
    assert!(why.contains("kernel module is not loaded"), "{why}");
    fake.set(ONE);
    assert_eq!(session(&gpus, 2).await.gpus[0].temperature_c, Some(60));
}

/// A package that brings a new driver replaces the library's file; the loader gives out the old one for as
/// long as anybody has it open, and the thread that waits for events has.
#[tokio::test]
async fn a_replaced_library_is_the_one_that_is_used_next() {
    let fake = FakeNvml::new(ONE);
    let gpus = start(fake.library());
    assert_eq!(session(&gpus, 1).await.gpus[0].memory_used, Some(Bytes(50)));
    fake.set(&format!("{ONE}mismatch\n"));
    let why = wait_for(&mut gpus.subscribe(), no_driver).await;
    assert!(why.contains("differ in version"), "{why}");

    fake.replace_by_old_driver();
    fake.set(ONE);
    // Only the other library lacks the call that keeps the reserve apart.
    let state = session(&gpus, 2).await;
    assert_eq!(state.gpus[0].memory_used, Some(Bytes(60)));
    assert_eq!(state.gpus[0].memory_reserved, None);
}

#[tokio::test]
async fn waiting_that_hangs_holds_up_no_session_and_is_not_doubled() {
    let state = format!("log_calls\n{ONE}");
    let fake = FakeNvml::new(&format!("{state}hang nvmlEventSetWait_v2=60000ms\n"));
    let gpus = start(fake.library());
    let mut events = gpus.take_events().expect("nobody took them");
    session(&gpus, 1).await;
    timeout(LIMIT, fake.hanging()).await.expect("the wait hangs");
    fake.set(&format!("{state}hang nvmlEventSetWait_v2=60000ms\n{TWO}"));
    assert_eq!(ids(&session(&gpus, 2).await), ["GPU-aaaa", "GPU-bbbb"]);
    rounds(&mut gpus.subscribe(), 5).await;
    assert_eq!(fake.calls("nvmlEventSetCreate"), 1, "one thread in the driver is enough");

    fake.set(&format!("{state}{TWO}"));
    let started = async {
        while fake.calls("nvmlEventSetCreate") < 2 || fake.calls("nvmlEventSetWait_v2") < 3 {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    };
    timeout(LIMIT, started).await.expect("the next one starts when it has left");
    fake.set(&format!("{state}{TWO}event 1 gpu=1 type=dbe\n"));
    let event = timeout(LIMIT, events.recv()).await.expect("an event").expect("the plane lives");
    assert_eq!(event.kind, EventKind::EccDoubleBit);
}

#[tokio::test]
async fn an_old_library_has_readings_and_events() {
    let state = format!("log_calls\n{ONE}");
    let fake = FakeNvml::of_old_driver(&state);
    let gpus = start(fake.library());
    let mut events = gpus.take_events().expect("nobody took them");
    until_first(&mut gpus.subscribe(), |gpu| gpu.temperature_c == Some(60)).await;
    let waits = async {
        while fake.calls("nvmlEventSetWait") + fake.calls("nvmlEventSetWait_v2") == 0 {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    };
    timeout(LIMIT, waits).await.expect("it waits for events");
    fake.set(&format!("{state}event 1 gpu=0 type=xid data=79\n"));
    let event = timeout(LIMIT, events.recv()).await.expect("an event").expect("the plane lives");
    assert_eq!(event.kind, EventKind::Xid(79));
}
