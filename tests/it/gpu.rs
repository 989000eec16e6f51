//! The GPU plane against a library that speaks NVML's own ABI.
//!
//! A real thread asks it, so these tests run in real time: they wait for what must be published, and
//! the limit only says when to give up.

use crate::support::{
    nvml::FakeNvml,
    plane::{LIMIT, PERIOD, driver, no_driver, start, wait_for},
};
use berthd::{
    config, gpu,
    snapshot::{Answering, DriverState, GpuPlane, GpuProcess},
    units::Bytes,
};
use tokio::time::{Instant, timeout};

const TWO_CARDS: &str = "\
driver=580.65.06
nvml=13.580.65.06
gpu 0 uuid=GPU-aaaa name=\"NVIDIA H200\" mem_total=150754820096 mem_used=98784247808 \
mem_free=51436847104 mem_reserved=533725184 util=87 mem_util=41 power_mw=612345 limit_mw=700000 temp=63
gpu 1 uuid=GPU-bbbb name=\"NVIDIA L4\" mem_total=24152899584 mem_used=1048576 mem_free=23622320128 \
mem_reserved=529530880 util=0 mem_util=0 power_mw=16250 limit_mw=72000 temp=31
";

/// The first round that the fake, in this state, gives.
async fn first_round(fake: &FakeNvml) -> DriverState {
    let gpus = start(fake.library());
    wait_for(&mut gpus.subscribe(), driver).await
}

#[tokio::test]
async fn readings_come_through_exactly() {
    let fake = FakeNvml::new(TWO_CARDS);
    let before = Instant::now();
    let state = first_round(&fake).await;

    assert_eq!(state.driver_version, "580.65.06");
    assert_eq!(state.nvml_version, "13.580.65.06");
    assert!(state.read_at >= before && state.read_at <= Instant::now());
    assert_eq!(state.gpus.len(), 2);

    let h200 = &state.gpus[0];
    assert_eq!((h200.id.as_str(), h200.index, h200.name.as_str()), ("GPU-aaaa", 0, "NVIDIA H200"));
    assert_eq!(h200.memory_total, Some(Bytes(150_754_820_096)));
    assert_eq!(h200.memory_used, Some(Bytes(98_784_247_808)));
    assert_eq!(h200.memory_free, Some(Bytes(51_436_847_104)));
    assert_eq!(h200.utilisation_percent, Some(87));
    assert_eq!(h200.memory_utilisation_percent, Some(41));
    assert_eq!(h200.power_w, Some(612.345));
    assert_eq!(h200.power_limit_w, Some(700.0));
    assert_eq!(h200.temperature_c, Some(63));
    assert_eq!(h200.processes.as_deref(), Some(&[][..]), "nobody on the card is an answer");

    let l4 = &state.gpus[1];
    assert_eq!((l4.id.as_str(), l4.index, l4.name.as_str()), ("GPU-bbbb", 1, "NVIDIA L4"));
    assert_eq!(l4.memory_used, Some(Bytes(1_048_576)));
    assert_eq!(l4.utilisation_percent, Some(0), "idle is a reading, not a missing one");
    assert_eq!(l4.power_w, Some(16.25));
}

#[tokio::test]
async fn readings_follow_the_card() {
    let fake = FakeNvml::new(TWO_CARDS);
    let gpus = start(fake.library());
    let mut plane = gpus.subscribe();
    wait_for(&mut plane, driver).await;
    fake.set(&TWO_CARDS.replace("temp=63", "temp=91"));
    wait_for(&mut plane, |plane| {
        driver(plane).filter(|state| state.gpus[0].temperature_c == Some(91))
    })
    .await;
}

#[tokio::test]
async fn processes_of_both_lists_are_merged_and_named() {
    let fake = FakeNvml::new(&format!(
        "{TWO_CARDS}\
proc 0 pid=4100 mem=98000000000 name=\"/opt/vllm/bin/python3 serve --api-key s3cret\"
proc 0 pid=900 mem=5000000 kind=graphics name=\"/usr/lib/xorg/Xorg\"
proc 0 pid=4100 mem=98000000000 kind=graphics
proc 0 pid=77 kind=compute
proc 1 pid=5000 mem=1 name=other
"
    ));
    let state = first_round(&fake).await;
    let process = |pid, name: Option<&str>, memory: Option<u64>| GpuProcess {
        pid,
        name: name.map(Into::into),
        memory: memory.map(Bytes),
        utilisation_percent: None,
    };
    assert_eq!(
        state.gpus[0].processes,
        Some(vec![
            process(77, None, None),
            process(900, Some("Xorg"), Some(5_000_000)),
            // In both lists with the same memory: not counted twice. Its key is nobody's business.
            process(4100, Some("python3"), Some(98_000_000_000)),
        ])
    );
    assert_eq!(state.gpus[1].processes, Some(vec![process(5000, Some("other"), Some(1))]));
}

#[tokio::test]
async fn a_reading_that_a_card_lacks_is_none_and_the_others_stay() {
    let fake = FakeNvml::new(&format!(
        "{TWO_CARDS}\
return nvmlDeviceGetTemperature@0=3
return nvmlDeviceGetUtilizationRates@0=3
return nvmlDeviceGetEnforcedPowerLimit@1=999
no_processes 1
"
    ));
    let state = first_round(&fake).await;
    let [h200, l4] = &state.gpus[..] else { panic!("two cards: {state:?}") };

    assert_eq!(h200.temperature_c, None);
    assert_eq!((h200.utilisation_percent, h200.memory_utilisation_percent), (None, None));
    assert_eq!(h200.memory_total, Some(Bytes(150_754_820_096)));
    assert_eq!(h200.power_w, Some(612.345));
    assert!(h200.processes.is_some());

    assert_eq!(l4.temperature_c, Some(31));
    assert_eq!(l4.power_limit_w, None, "an unknown error on one reading costs that reading");
    assert_eq!(l4.processes, None, "a driver that will not say is not an empty card");
}

#[tokio::test]
async fn shares_that_cannot_be_are_no_reading() {
    let fake = FakeNvml::new(&TWO_CARDS.replace("util=87", "util=4294967295"));
    let state = first_round(&fake).await;
    assert_eq!(state.gpus[0].utilisation_percent, None);
    assert_eq!(state.gpus[0].memory_utilisation_percent, Some(41));
}

#[tokio::test]
async fn an_old_driver_is_read_with_the_calls_it_has() {
    let fake = FakeNvml::of_old_driver(&format!("{TWO_CARDS}proc 0 pid=4100 mem=98000000000\n"));
    let state = first_round(&fake).await;
    let h200 = &state.gpus[0];
    assert_eq!(h200.memory_total, Some(Bytes(150_754_820_096)));
    assert_eq!(h200.memory_free, Some(Bytes(51_436_847_104)));
    // The first version of the call counts the driver's reserve as used.
    assert_eq!(h200.memory_used, Some(Bytes(98_784_247_808 + 533_725_184)));
    assert_eq!(h200.processes.as_ref().map(|list| list[0].pid), Some(4100));
}

#[tokio::test]
async fn a_struct_version_that_the_driver_refuses_falls_back() {
    let fake = FakeNvml::new(&format!(
        "{TWO_CARDS}proc 0 pid=4100 mem=5
return nvmlDeviceGetMemoryInfo_v2=25
return nvmlDeviceGetComputeRunningProcesses_v3=13
return nvmlDeviceGetGraphicsRunningProcesses_v3=25
"
    ));
    let state = first_round(&fake).await;
    assert_eq!(state.gpus[0].memory_used, Some(Bytes(98_784_247_808 + 533_725_184)));
    assert_eq!(state.gpus[0].processes.as_ref().map(|list| list[0].memory), Some(Some(Bytes(5))));
}

#[tokio::test]
async fn a_lost_card_keeps_its_name_and_the_other_its_readings() {
    let fake = FakeNvml::new(TWO_CARDS);
    let gpus = start(fake.library());
    let mut plane = gpus.subscribe();
    wait_for(&mut plane, driver).await;

    fake.set(&format!("{TWO_CARDS}return *@0=15\n"));
    let lost =
        |plane: &GpuPlane| driver(plane).filter(|state| state.gpus[0].memory_total.is_none());
    let state = wait_for(&mut plane, lost).await;
    assert_eq!(state.gpus.len(), 2);
    let gone = &state.gpus[0];
    assert_eq!((gone.id.as_str(), gone.index, gone.name.as_str()), ("GPU-aaaa", 0, "NVIDIA H200"));
    assert_eq!((gone.temperature_c, gone.power_w, &gone.processes), (None, None, &None));
    assert_eq!(state.gpus[1].temperature_c, Some(31));

    fake.set(TWO_CARDS);
    let back =
        |plane: &GpuPlane| driver(plane).filter(|state| state.gpus[0].memory_total.is_some());
    assert_eq!(wait_for(&mut plane, back).await.gpus[0].temperature_c, Some(63));
}

/// With a minute between rounds nothing but a reading between them can have noticed.
#[tokio::test]
async fn a_card_that_is_lost_or_gone_between_rounds_brings_the_next_one_forward() {
    let fake = FakeNvml::new(TWO_CARDS);
    let settings = config::Gpu {
        period: LIMIT * 3,
        fast_period: PERIOD,
        ..crate::support::plane::settings(fake.library())
    };
    let gpus = gpu::start(&settings).expect("a thread");
    let mut plane = gpus.subscribe();
    wait_for(&mut plane, driver).await;

    fake.set(&format!("{TWO_CARDS}return *@0=15\n"));
    let lost = |plane: &GpuPlane| {
        driver(plane).filter(|state| matches!(state.gpus[0].answering, Answering::Lost(_)))
    };
    let state = wait_for(&mut plane, lost).await;
    assert_eq!(state.gpus[1].answering, Answering::Yes);

    let one_card = TWO_CARDS.lines().take(3).fold(String::new(), |all, line| all + line + "\n");
    fake.set(&one_card);
    wait_for(&mut plane, |plane| driver(plane).filter(|state| state.gpus.len() == 1)).await;
}

#[tokio::test]
async fn a_card_lost_amid_its_readings_does_not_mix_old_with_none() {
    let fake = FakeNvml::new(&format!("{TWO_CARDS}return nvmlDeviceGetPowerUsage@0=15\n"));
    let state = first_round(&fake).await;
    assert_eq!(state.gpus[0].memory_total, None, "what was read before the loss is not trusted");
    assert_eq!(state.gpus[1].power_w, Some(16.25));
}

#[tokio::test]
async fn cards_that_were_lost_before_the_start_do_not_hide_the_others() {
    let fake = FakeNvml::new(&format!("{TWO_CARDS}return *@0=15\n"));
    let state = first_round(&fake).await;
    let ids: Vec<&str> = state.gpus.iter().map(|gpu| gpu.id.as_str()).collect();
    assert_eq!(ids, ["GPU-bbbb"], "a card that never told its name cannot be named");
    assert_eq!(state.gpus[0].index, 1);
}

#[tokio::test]
async fn a_node_whose_only_card_is_lost_still_has_a_driver() {
    let fake = FakeNvml::new("driver=580.65.06\ngpu 0 uuid=GPU-aaaa name=a temp=1\n");
    let gpus = start(fake.library());
    let mut plane = gpus.subscribe();
    wait_for(&mut plane, driver).await;
    fake.set("driver=580.65.06\ngpu 0 uuid=GPU-aaaa name=a temp=1\nreturn *@0=15\n");
    let state = wait_for(&mut plane, |plane| {
        assert!(no_driver(plane).is_none(), "the driver was there all the time: {plane:?}");
        driver(plane).filter(|state| state.gpus[0].temperature_c.is_none())
    });
    assert_eq!(state.await.nvml_version, "unknown", "a version that is not told is no fault");
}

#[tokio::test]
async fn a_driver_that_is_not_loaded_is_said_and_found_when_it_comes() {
    let fake = FakeNvml::new("return nvmlInit_v2=9\n");
    let gpus = start(fake.library());
    let mut plane = gpus.subscribe();
    let why = wait_for(&mut plane, no_driver).await;
    assert!(why.contains("kernel module is not loaded"), "{why}");

    fake.set(TWO_CARDS);
    assert_eq!(wait_for(&mut plane, driver).await.gpus.len(), 2);
}

#[tokio::test]
async fn a_driver_that_goes_and_comes_back_newer_is_opened_again() {
    let fake = FakeNvml::new(TWO_CARDS);
    let gpus = start(fake.library());
    let mut plane = gpus.subscribe();
    assert_eq!(wait_for(&mut plane, driver).await.driver_version, "580.65.06");

    // Only reading calls fail, as they do when the module is gone and the count is remembered.
    fake.set(&format!("{TWO_CARDS}return nvmlDeviceGetHandleByIndex_v2=999\n"));
    let why = wait_for(&mut plane, no_driver).await;
    assert!(why.contains("does not answer"), "{why}");

    fake.set(&TWO_CARDS.replace("driver=580.65.06", "driver=590.10"));
    assert_eq!(wait_for(&mut plane, driver).await.driver_version, "590.10");
}

#[tokio::test]
async fn a_driver_replaced_under_the_library_asks_for_a_person() {
    let fake = FakeNvml::new(TWO_CARDS);
    let gpus = start(fake.library());
    let mut plane = gpus.subscribe();
    wait_for(&mut plane, driver).await;
    // One reading of one card is enough to know.
    fake.set(&format!("{TWO_CARDS}return nvmlDeviceGetTemperature@1=18\n"));
    let why = wait_for(&mut plane, no_driver).await;
    assert!(why.contains("differ in version"), "{why}");
}

#[tokio::test]
async fn a_missing_library_is_named() {
    let empty = tempfile::tempdir().expect("a directory");
    let library = empty.path().join("libnvidia-ml.so.1");
    let gpus = start(library.clone());
    let why = wait_for(&mut gpus.subscribe(), no_driver).await;
    assert_eq!(why, format!("no NVIDIA driver: {} not found", library.display()));
}

#[tokio::test]
async fn a_file_that_is_no_library_is_not_called_missing() {
    let dir = tempfile::tempdir().expect("a directory");
    let library = dir.path().join("libnvidia-ml.so.1");
    std::fs::write(&library, "not a library").expect("a file");
    let gpus = start(library);
    let why = wait_for(&mut gpus.subscribe(), no_driver).await;
    assert!(why.contains("does not load"), "{why}");
}

#[tokio::test]
async fn a_hanging_driver_leaves_the_last_readings_and_they_age() {
    let fake = FakeNvml::new(TWO_CARDS);
    let gpus = start(fake.library());
    let mut plane = gpus.subscribe();
    wait_for(&mut plane, driver).await;

    fake.set(&format!("{TWO_CARDS}hang nvmlDeviceGetPowerUsage=60000ms\n"));
    timeout(LIMIT, fake.hanging()).await.expect("the driver hangs");
    let last = driver(&plane.borrow_and_update()).expect("the last readings");
    let silence = PERIOD * 15;
    assert!(timeout(silence, plane.changed()).await.is_err(), "a stuck round publishes nothing");
    let still = driver(&gpus.latest()).expect("readers are answered all the same");
    assert_eq!(still.read_at, last.read_at);
    assert!(still.read_at.elapsed() >= silence, "and can see how old that is");

    fake.set(TWO_CARDS);
    wait_for(&mut plane, |plane| driver(plane).filter(|state| state.read_at > last.read_at)).await;
}

#[tokio::test]
async fn nobody_waits_for_a_hanging_driver_unless_they_ask_to() {
    let fake = FakeNvml::new(&format!("{TWO_CARDS}hang nvmlDeviceGetPowerUsage=60000ms\n"));
    let gpus = start(fake.library());
    let plane = gpus.subscribe();
    timeout(LIMIT, fake.hanging()).await.expect("the driver hangs");

    // Stopping waits, for as long as the caller likes ...
    assert!(timeout(PERIOD * 5, gpus.stop()).await.is_err());
    // ... and the thread is still in the driver, which it leaves as soon as it can.
    assert!(plane.has_changed().is_ok());
    fake.set(TWO_CARDS);
    let ended = async {
        while plane.has_changed().is_ok() {
            tokio::task::yield_now().await
        }
    };
    timeout(LIMIT, ended).await.expect("the thread ends after the call");
}
