//! The fake NVML library when things go wrong: events, hangs, lost cards and drivers that go away.

use crate::support::nvml::FakeNvml;
use nvml_wrapper::{
    EventSet, Nvml, bitmasks::event::EventTypes, enum_wrappers::device::TemperatureSensor,
    enums::event::XidError, error::NvmlError,
};
use std::{thread, time::Duration};
use tokio::time::{Instant, timeout};

const LIMIT: Duration = Duration::from_secs(20);
const LIMIT_MS: u32 = 20_000;

const CARDS: &str = "driver=580.65.06\n\
    gpu 0 uuid=GPU-a temp=30 power_mw=5\ngpu 1 uuid=GPU-b temp=31\n";

fn open(fake: &FakeNvml) -> Nvml {
    init(fake).expect("the fake library loads")
}

fn init(fake: &FakeNvml) -> Result<Nvml, NvmlError> {
    Nvml::builder().lib_path(fake.library().as_os_str()).init()
}

fn registered<'nvml>(nvml: &'nvml Nvml, gpus: &[u32], types: EventTypes) -> EventSet<'nvml> {
    let mut set = nvml.create_event_set().unwrap();
    for gpu in gpus {
        set = nvml.device_by_index(*gpu).unwrap().register_events(types, set).unwrap();
    }
    set
}

/// The next event: the card's index, the type, the Xid if it is one.
fn next(set: &EventSet<'_>) -> (u32, EventTypes, Option<u64>) {
    let event = set.wait(LIMIT_MS).expect("an event");
    let xid = event.event_data.map(|data| match data {
        XidError::Value(xid) => xid,
        XidError::Unknown => 999,
    });
    (event.device.index().unwrap(), event.event_type, xid)
}

fn nothing(set: &EventSet<'_>) {
    let event = set.wait(0);
    assert!(matches!(event, Err(NvmlError::Timeout)), "{event:?}");
}

#[test]
fn each_set_gets_its_events_once_and_in_order() {
    const XID: EventTypes = EventTypes::CRITICAL_XID_ERROR;
    const DBE: EventTypes = EventTypes::DOUBLE_BIT_ECC_ERROR;
    let old = format!("{CARDS}event 1 gpu=0 type=xid data=13\n");
    let fake = FakeNvml::new(&old);
    let nvml = open(&fake);
    let narrow = registered(&nvml, &[0], XID);
    let broad = registered(&nvml, &[0, 1], XID | DBE);
    nothing(&narrow);
    nothing(&broad);

    let now = format!(
        "{old}event 5 gpu=1 type=dbe\nevent 3 gpu=0 type=xid data=79\nevent 2 gpu=0 type=xid data=48\n\
         event 4 gpu=0 type=pstate\n"
    );
    fake.set(&now);
    assert_eq!(next(&narrow), (0, XID, Some(48)), "not what happened before it was registered");
    assert_eq!(next(&narrow), (0, XID, Some(79)));
    nothing(&narrow);
    assert_eq!(next(&broad), (0, XID, Some(48)));
    let late = registered(&nvml, &[0, 1], XID | DBE);
    assert_eq!(next(&broad), (0, XID, Some(79)));
    assert_eq!(next(&broad), (1, DBE, None));
    nothing(&broad);
    nothing(&late);

    fake.set(&format!("{now}event 6 gpu=1 type=xid data=31\n"));
    assert_eq!(next(&late), (1, XID, Some(31)));
    assert_eq!(next(&broad), (1, XID, Some(31)));
    nothing(&narrow);
}

#[test]
fn a_waiting_set_wakes_when_the_event_comes() {
    let fake = FakeNvml::new(CARDS);
    let nvml = open(&fake);
    let set = registered(&nvml, &[0], EventTypes::CRITICAL_XID_ERROR);
    let before = Instant::now();
    thread::scope(|scope| {
        let waiter = scope.spawn(move || next(&set).2);
        fake.set(&format!("{CARDS}event 1 gpu=0 type=xid data=74 gi=3 ci=0\n"));
        assert_eq!(waiter.join().unwrap(), Some(74));
    });
    assert!(before.elapsed() < LIMIT, "it did not wait for its time to pass");
}

/// The wrapper drops types it does not know and the instances, and has no events without a card.
#[test]
#[expect(unsafe_code, reason = "the wrapper hides what is looked at")]
fn events_carry_new_types_and_instances_and_may_be_about_no_card() {
    let fake = FakeNvml::new(CARDS);
    let nvml = open(&fake);
    let lib = nvml.lib();
    let card = nvml.device_by_index(0).unwrap();
    let set = nvml.create_event_set().unwrap();
    unsafe {
        assert_eq!(lib.nvmlDeviceRegisterEvents(card.handle(), 0x8000 | 0x4000, set.handle()), 0);
        fake.set(&format!(
            "{CARDS}event 1 gpu=0 type=recovery data=2 gi=3 ci=1\nevent 2 gpu=none type=other:0x4000\n"
        ));
        let mut event = std::mem::zeroed();
        assert_eq!(lib.nvmlEventSetWait_v2(set.handle(), &mut event, 0), 0);
        assert_eq!((event.eventType, event.eventData), (0x8000, 2));
        assert_eq!((event.gpuInstanceId, event.computeInstanceId), (3, 1));
        assert_eq!(event.device, card.handle());
        // The first version of the call ends before the instances.
        event.gpuInstanceId = 77;
        assert_eq!(lib.nvmlEventSetWait(set.handle(), &mut event, 0), 0);
        assert_eq!((event.eventType, event.gpuInstanceId), (0x4000, 77));
        assert!(event.device.is_null());
        assert_eq!(lib.nvmlEventSetWait_v2(set.handle(), &mut event, 1), 10);
    }
}

#[test]
fn waiting_for_events_fails_when_it_is_told_to() {
    let fake = FakeNvml::new(CARDS);
    let nvml = open(&fake);
    let set = registered(&nvml, &[0], EventTypes::CRITICAL_XID_ERROR);
    let set = thread::scope(|scope| {
        let waiter = scope.spawn(move || {
            let event = set.wait(LIMIT_MS);
            assert!(matches!(event, Err(NvmlError::GpuLost)), "{event:?}");
            set
        });
        fake.set(&format!("{CARDS}lost_events\n"));
        waiter.join().unwrap()
    });
    fake.set(&format!("{CARDS}return nvmlEventSetWait_v2=999\n"));
    assert!(matches!(set.wait(0), Err(NvmlError::Unknown)));
    fake.set(&format!("{CARDS}unloaded\n"));
    assert!(matches!(set.wait(0), Err(NvmlError::DriverNotLoaded)));
    fake.set(CARDS);
    nothing(&set);
}

#[test]
fn a_lost_card_takes_no_other_with_it() {
    let fake = FakeNvml::new(&format!("{CARDS}lost 0\n"));
    let nvml = open(&fake);
    assert!(matches!(nvml.device_by_index(0), Err(NvmlError::GpuLost)));
    assert!(matches!(nvml.device_by_uuid("GPU-a"), Err(NvmlError::GpuLost)));
    assert_eq!(nvml.device_count().unwrap(), 2);
    let other = nvml.device_by_index(1).unwrap();
    assert_eq!(other.temperature(TemperatureSensor::Gpu).unwrap(), 31);
    fake.set(CARDS);
    let found = nvml.device_by_index(0).unwrap();
    assert_eq!(found.temperature(TemperatureSensor::Gpu).unwrap(), 30);
    fake.set(&format!("{CARDS}lost 0\n"));
    let lost = found.temperature(TemperatureSensor::Gpu);
    assert!(matches!(lost, Err(NvmlError::GpuLost)), "{lost:?}");
}

#[test]
fn a_driver_that_goes_away_or_is_replaced_fails_every_call() {
    let fake = FakeNvml::new(CARDS);
    let nvml = open(&fake);
    let card = nvml.device_by_index(0).unwrap();
    fake.set(&format!("{CARDS}unloaded\n"));
    assert!(matches!(init(&fake), Err(NvmlError::DriverNotLoaded)));
    assert!(matches!(nvml.device_count(), Err(NvmlError::DriverNotLoaded)));
    assert!(matches!(card.power_usage(), Err(NvmlError::DriverNotLoaded)));
    fake.set(&format!("{CARDS}mismatch\n"));
    assert!(matches!(init(&fake), Err(NvmlError::LibRmVersionMismatch)));
    assert!(matches!(card.power_usage(), Err(NvmlError::LibRmVersionMismatch)));
    fake.set(CARDS);
    assert_eq!(card.power_usage().unwrap(), 5);
    fake.set(&format!("{CARDS}return nvmlShutdown=999\n"));
    assert!(matches!(nvml.shutdown(), Err(NvmlError::Unknown)));
}

#[tokio::test]
async fn a_hang_ends_with_its_line_and_two_may_hang_at_once() {
    let hangs = format!("{CARDS}hang nvmlInit_v2=60s\nhang nvmlDeviceGetPowerUsage@0=60s\n");
    let fake = FakeNvml::new(CARDS);
    let library = fake.library();
    let nvml = open(&fake);
    let before = Instant::now();
    fake.set(&hangs);
    let again = thread::spawn(move || Nvml::builder().lib_path(library.as_os_str()).init().is_ok());
    let asked = thread::spawn(move || {
        let other = nvml.device_by_index(1).unwrap();
        assert_eq!(other.temperature(TemperatureSensor::Gpu).unwrap(), 31, "only GPU 0 hangs");
        nvml.device_by_index(0).unwrap().power_usage().unwrap()
    });
    timeout(LIMIT, fake.hanging()).await.expect("the driver hangs");
    assert!(!asked.is_finished() || !again.is_finished());
    fake.set(CARDS);
    assert_eq!(asked.join().unwrap(), 5);
    assert!(again.join().unwrap());
    assert!(before.elapsed() < Duration::from_secs(60));
    let mark = fake.library().with_file_name("hanging");
    assert!(!mark.exists(), "nobody hangs any more");
}

#[test]
fn a_slow_call_takes_its_time_and_no_other_does() {
    let fake = FakeNvml::new(&format!(
        "{CARDS}slow nvmlDeviceGetPowerUsage=30ms\nslow nvmlDeviceGetTemperature@1=20000us\n"
    ));
    let nvml = open(&fake);
    let card = nvml.device_by_index(0).unwrap();
    let timed = |call: &dyn Fn()| {
        let before = Instant::now();
        call();
        before.elapsed()
    };
    let power = timed(&|| assert_eq!(card.power_usage().unwrap(), 5));
    assert!(power >= Duration::from_millis(30), "{power:?}");
    let other = nvml.device_by_index(1).unwrap();
    let heat = timed(&|| assert_eq!(other.temperature(TemperatureSensor::Gpu).unwrap(), 31));
    assert!(heat >= Duration::from_millis(20), "{heat:?}");
    let quick = || card.temperature(TemperatureSensor::Gpu).unwrap();
    assert!((0..100).any(|_| timed(&|| assert_eq!(quick(), 30)) < Duration::from_millis(20)));
    assert!(!fake.library().with_file_name("hanging").exists());
}
