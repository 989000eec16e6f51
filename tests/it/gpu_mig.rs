//! MIG devices: units of their own behind their parent, which come and go while the driver stays.

use crate::support::{
    nvml::FakeNvml,
    plane::{driver, rounds, start, wait_for},
};
use berthd::{
    snapshot::{Answering, DriverState, GpuProcess, GpuState, MigPart},
    units::Bytes,
};

const CARDS: &str = "driver=580.65.06
gpu 0 uuid=GPU-aaaa name=\"NVIDIA H200\" pci=00000000:1b:00.0 mig=1 temp=63 power_mw=300000 util=50 mem_util=5 \
 mem_total=100 mem_used=30 mem_free=70
gpu 1 uuid=GPU-bbbb name=\"NVIDIA H200\" mig=0 temp=40 util=9 mem_util=1
";

const PARTS: &str = "\
mig 0 0 uuid=MIG-one name=\"NVIDIA H200 MIG 3g.71gb\" gi=1 ci=0 mem_total=50 mem_used=20 mem_free=29 mem_reserved=1
mig 0 4 uuid=MIG-two name=\"NVIDIA H200 MIG 1g.18gb\" gi=9 ci=0 mem_total=10 mem_used=0 mem_free=10
proc 0 pid=4100 mem=19 gi=1 ci=0 name=python3
";

fn ids(state: &DriverState) -> Vec<&str> {
    state.gpus.iter().map(|gpu| gpu.id.as_str()).collect()
}

fn find<'a>(state: &'a DriverState, id: &str) -> &'a GpuState {
    state.gpus.iter().find(|gpu| gpu.id.as_str() == id).expect("it is listed")
}

#[tokio::test]
async fn each_part_is_listed_behind_its_parent_with_its_own_memory_and_processes() {
    let fake = FakeNvml::new(&format!("{CARDS}{PARTS}"));
    let state = wait_for(&mut start(fake.library()).subscribe(), driver).await;
    assert_eq!(ids(&state), ["GPU-aaaa", "MIG-one", "MIG-two", "GPU-bbbb"]);

    let card = find(&state, "GPU-aaaa");
    assert_eq!((card.modes.mig, &card.mig), (Some(true), &None));
    assert_eq!(card.temperature_c, Some(63));
    assert_eq!(card.utilisation_percent, None, "the driver does not tell it of a divided card");

    let one = find(&state, "MIG-one");
    assert_eq!((one.index, one.name.as_str()), (0, "NVIDIA H200 MIG 3g.71gb"));
    let part =
        MigPart { parent: "GPU-aaaa".into(), gpu_instance: Some(1), compute_instance: Some(0) };
    assert_eq!(one.mig, Some(part));
    assert_eq!((one.memory_total, one.memory_used), (Some(Bytes(50)), Some(Bytes(20))));
    assert_eq!((one.memory_free, one.memory_reserved), (Some(Bytes(29)), Some(Bytes(1))));
    let user = GpuProcess {
        pid: 4100,
        name: Some("python3".into()),
        memory: Some(Bytes(19)),
        utilisation_percent: None,
    };
    assert_eq!(one.processes, Some(vec![user]));
    assert_eq!(find(&state, "MIG-two").processes, Some(Vec::new()));
    assert_eq!(find(&state, "GPU-bbbb").modes.mig, Some(false));
    assert_eq!(find(&state, "GPU-bbbb").utilisation_percent, Some(9));
}

#[tokio::test]
async fn another_division_is_seen_in_the_next_round_of_the_same_session() {
    let fake = FakeNvml::new(&format!("{CARDS}{PARTS}"));
    let gpus = start(fake.library());
    let mut plane = gpus.subscribe();
    wait_for(&mut plane, driver).await;

    // The place of the first one has another device now.
    let other = PARTS.replace("MIG-one", "MIG-three").replace("gi=1 ", "gi=2 ");
    fake.set(&format!("{CARDS}{other}"));
    let changed = |state: &DriverState| ids(state).contains(&"MIG-three");
    let state = wait_for(&mut plane, |plane| driver(plane).filter(changed)).await;
    assert_eq!(ids(&state), ["GPU-aaaa", "MIG-three", "MIG-two", "GPU-bbbb"]);
    let part = find(&state, "MIG-three").mig.as_ref();
    assert_eq!(part.and_then(|part| part.gpu_instance), Some(2));

    // Whole again: the parts go, and the card tells what it could not tell before.
    fake.set(&CARDS.replace("mig=1", "mig=0"));
    let whole = |state: &DriverState| ids(state) == ["GPU-aaaa", "GPU-bbbb"];
    let state = wait_for(&mut plane, |plane| driver(plane).filter(whole)).await;
    assert_eq!(find(&state, "GPU-aaaa").utilisation_percent, Some(50));
    assert_eq!(state.session, 1);
}

#[tokio::test]
async fn a_lost_card_keeps_its_parts_listed_as_lost() {
    let fake = FakeNvml::new(&format!("{CARDS}{PARTS}"));
    let gpus = start(fake.library());
    let mut plane = gpus.subscribe();
    wait_for(&mut plane, driver).await;
    fake.set(&format!("{CARDS}{PARTS}lost 0\n"));
    let lost = |state: &DriverState| state.gpus[0].answering != Answering::Yes;
    let state = wait_for(&mut plane, |plane| driver(plane).filter(lost)).await;
    assert_eq!(ids(&state), ["GPU-aaaa", "MIG-one", "MIG-two", "GPU-bbbb"]);
    for id in ["GPU-aaaa", "MIG-one", "MIG-two"] {
        let gpu = find(&state, id);
        assert!(matches!(gpu.answering, Answering::Lost(_)), "{id}: {:?}", gpu.answering);
        assert_eq!((gpu.memory_used, &gpu.processes), (None, &None), "{id}");
    }
    assert_eq!(find(&state, "GPU-aaaa").pci_bus_id.as_deref(), Some("00000000:1B:00.0"));
    let part = find(&state, "MIG-one").mig.as_ref();
    assert_eq!(part.map(|part| part.parent.as_str()), Some("GPU-aaaa"));
    assert_eq!(find(&state, "GPU-bbbb").answering, Answering::Yes);

    // For many rounds, and whole again after.
    assert_eq!(ids(&rounds(&mut plane, 6).await).len(), 4);
    fake.set(&format!("{CARDS}{PARTS}"));
    let back = |state: &DriverState| state.gpus[0].answering == Answering::Yes;
    let state = wait_for(&mut plane, |plane| driver(plane).filter(back)).await;
    assert_eq!(find(&state, "MIG-one").memory_used, Some(Bytes(20)));
}

#[tokio::test]
async fn a_driver_that_will_not_list_the_parts_does_not_make_them_vanish() {
    let fake = FakeNvml::new(&format!("{CARDS}{PARTS}"));
    let gpus = start(fake.library());
    let mut plane = gpus.subscribe();
    wait_for(&mut plane, driver).await;
    fake.set(&format!("{CARDS}{PARTS}return nvmlDeviceGetMigDeviceHandleByIndex=999\n"));
    let failing = |state: &DriverState| find(state, "MIG-one").answering != Answering::Yes;
    let state = wait_for(&mut plane, |plane| driver(plane).filter(failing)).await;
    assert!(matches!(find(&state, "MIG-two").answering, Answering::No(_)));
    assert_eq!(find(&state, "GPU-aaaa").answering, Answering::Yes);
    assert_eq!(find(&state, "GPU-aaaa").temperature_c, Some(63));
}
