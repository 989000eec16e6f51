//! Events and what follows: the states, their ends, and who is drawn in.

use super::*;
use crate::snapshot::{
    Answering, DriverState, EccCounts, EventKind, GpuEvent, GpuPlane, GpuState, MigPart,
    RecoveryAction,
};
use std::time::Duration;

/// A host on the desk: its cards, its clock, and the rule.
pub(super) struct Desk {
    pub faults: Faults,
    pub now: Instant,
    pub session: u64,
    pub gpus: Vec<GpuState>,
    /// The GPUs of each server.
    pub together: Vec<Vec<GpuId>>,
}

const SECOND: Duration = Duration::from_secs(1);

pub(super) fn id(number: usize) -> GpuId {
    GpuId::from(format!("GPU-{number}"))
}

impl Desk {
    /// A host with some cards that were read once.
    pub(super) fn with(cards: usize) -> Self {
        let card = |number| GpuState::blank(id(number), number as u32, "card".into());
        let mut desk = Self {
            faults: Faults::new(SECOND * 5),
            now: Instant::now(),
            session: 1,
            gpus: (0..cards).map(card).collect(),
            together: Vec::new(),
        };
        desk.second();
        desk
    }

    /// A second passes and the cards are read.
    pub(super) fn second(&mut self) -> Vec<Change> {
        self.now += SECOND;
        let plane = GpuPlane::Driver(DriverState {
            driver_version: "1".into(),
            nvml_version: "1".into(),
            session: self.session,
            gpus: self.gpus.clone(),
            read_at: self.now,
        });
        self.faults.read(&plane, self.now);
        self.faults.settle(self.now)
    }

    pub(super) fn seconds(&mut self, count: u32) {
        (0..count).for_each(|_| drop(self.second()));
    }

    /// Time passes in which the driver hangs.
    pub(super) fn silence(&mut self, seconds: u32) {
        self.now += SECOND * seconds;
        self.faults.settle(self.now);
    }

    /// Something happens to a card.
    pub(super) fn event(&mut self, gpu: Option<GpuId>, kind: EventKind) -> Heard {
        let event = GpuEvent { gpu, kind, at: self.now };
        let heard = self.faults.hear(&event, self.together.iter().map(Vec::as_slice), self.now);
        self.faults.settle(self.now);
        heard
    }

    pub(super) fn xid(&mut self, number: usize, xid: u32) -> Heard {
        self.event(Some(id(number)), EventKind::Xid(xid))
    }

    pub(super) fn health(&self, gpu: &GpuId) -> GpuHealth {
        self.faults.health().into_iter().find(|health| health.gpu == *gpu).unwrap()
    }

    pub(super) fn is(&self, number: usize) -> (Condition, Option<Needs>) {
        let health = self.health(&id(number));
        (health.condition, health.needs)
    }

    /// The seconds until a card is as it should be.
    fn seconds_until(&mut self, number: usize, condition: Condition) -> u32 {
        for seconds in 0..4_000 {
            if self.is(number).0 == condition {
                return seconds;
            }
            self.second();
        }
        panic!("never {condition:?}: {:?}", self.health(&id(number)));
    }
}

use Condition::{Degraded, Draining, Lost, Ok, Suspect, Unknown};
use Needs::{RebootHost, ResetGpu, RestartServer, Service};

#[test]
fn each_kind_of_event_has_its_state() {
    let cases = [
        (EventKind::Xid(79), Lost, Some(RebootHost)),
        (EventKind::Xid(160), Draining, Some(RebootHost)),
        (EventKind::Xid(48), Draining, Some(ResetGpu)),
        (EventKind::Xid(119), Draining, Some(ResetGpu)),
        (EventKind::Xid(74), Draining, Some(ResetGpu)),
        (EventKind::Xid(31), Suspect, None),
        (EventKind::Xid(5), Suspect, None),
        (EventKind::Xid(45), Ok, None),
        (EventKind::Xid(92), Ok, None),
        (EventKind::Xid(154), Ok, None),
        (EventKind::EccSingleBit, Ok, None),
        (EventKind::EccDoubleBit, Draining, Some(ResetGpu)),
        (EventKind::FatalPoison, Draining, Some(ResetGpu)),
        (EventKind::NonFatalPoison, Suspect, None),
        (EventKind::Unavailable, Lost, Some(ResetGpu)),
        (EventKind::RecoveryAction, Ok, None),
        (EventKind::MigChanged, Ok, None),
        (EventKind::Other(0x8000), Ok, None),
    ];
    for (kind, condition, needs) in cases {
        let mut desk = Desk::with(2);
        let heard = desk.event(Some(id(0)), kind);
        assert_eq!(desk.is(0), (condition, needs), "{kind:?}");
        assert_eq!(desk.is(1), (Ok, None), "{kind:?} is one card's");
        assert_eq!(!heard.probe.is_empty(), condition == Suspect, "{kind:?}");
        assert_eq!(desk.health(&id(0)).reasons.is_empty(), condition == Ok, "{kind:?}");
    }
}

#[test]
fn an_application_fault_passes_by_itself_and_never_drains() {
    let mut desk = Desk::with(1);
    // One crash is told by many lines.
    for _ in 0..20 {
        desk.xid(0, 13);
        desk.now += Duration::from_millis(10);
    }
    assert_eq!(desk.is(0), (Suspect, None));
    assert_eq!(desk.faults.ground([&id(0)]), Some(Ground { stop: None, lost: false, weight: 1.0 }));
    // A minute, and a moment of calm.
    assert_eq!(desk.seconds_until(0, Ok), 70);
}

#[test]
fn three_application_faults_in_ten_minutes_drain_until_the_server_is_restarted() {
    let mut desk = Desk::with(1);
    for _ in 0..2 {
        desk.xid(0, 31);
        desk.seconds(280);
    }
    assert!(!desk.is(0).0.stops());
    let at = desk.now;
    desk.xid(0, 94);
    assert_eq!(desk.is(0), (Draining, Some(RestartServer)));
    let stop = desk.faults.ground([&id(0)]).unwrap().stop.unwrap();
    assert_eq!(
        stop,
        "GPU 0 is draining: 3 application faults within 10 minutes, the last one Xid 94 (contained memory error); restart the server"
    );
    assert_eq!(desk.faults.await_restart(), [(id(0), at)]);
    desk.faults.restarted(&id(0));
    assert_eq!(desk.seconds_until(0, Ok), 31);
    assert_eq!(desk.faults.await_restart(), []);
    desk.xid(0, 31);
    assert_eq!(desk.is(0), (Suspect, None), "the new processes begin with nothing against them");
}

#[test]
fn a_quiet_window_ends_a_drain_for_application_faults_too() {
    let mut desk = Desk::with(1);
    for _ in 0..3 {
        desk.xid(0, 31);
        desk.seconds(2);
    }
    let waited = desk.seconds_until(0, Ok);
    assert!((600..=640).contains(&waited), "{waited}");
}

#[test]
fn an_nvlink_fault_takes_all_gpus_of_its_servers() {
    let mut desk = Desk::with(4);
    desk.together = vec![vec![id(0), id(1)], vec![id(2)], vec![id(1), id(3)]];
    desk.xid(0, 145);
    let conditions: Vec<Condition> = (0..4).map(|number| desk.is(number).0).collect();
    assert_eq!(conditions, [Draining, Draining, Ok, Ok]);
    assert!(desk.health(&id(1)).reasons[0].contains("GPU 0"));
    // The cards were reset: one energy counter begins anew.
    desk.gpus[0].energy_mj = Some(1_000_000);
    desk.second();
    desk.gpus[0].energy_mj = Some(5);
    desk.seconds(32);
    assert_eq!((desk.is(0).0, desk.is(1).0), (Ok, Ok));
}

#[test]
fn a_reset_shows_by_counters_and_by_the_drivers_word() {
    let reset: [fn(&mut Desk); 4] = [
        |desk| desk.gpus[0].energy_mj = Some(3),
        |desk| {
            desk.gpus[0].ecc =
                Some(EccCounts { uncorrected_volatile: Some(0), ..EccCounts::default() })
        },
        |desk| {
            desk.gpus[0].recovery = Some(RecoveryAction::Reset);
            desk.second();
            desk.gpus[0].recovery = Some(RecoveryAction::None);
        },
        |desk| assert!(desk.faults.clear(&id(0))),
    ];
    for (number, reset) in reset.into_iter().enumerate() {
        let mut desk = Desk::with(1);
        desk.gpus[0].energy_mj = Some(1_000_000);
        desk.gpus[0].ecc =
            Some(EccCounts { uncorrected_volatile: Some(2), ..EccCounts::default() });
        desk.second();
        desk.xid(0, 95);
        desk.seconds(100);
        assert_eq!(desk.is(0), (Draining, Some(ResetGpu)), "it does not pass by itself");
        reset(&mut desk);
        desk.seconds(32);
        assert_eq!(desk.is(0), (Ok, None), "way {number}");
    }
}

#[test]
fn a_new_session_clears_what_a_reset_clears_unless_counters_or_the_driver_say_otherwise() {
    for (energy, after, recovery, condition) in [
        (None, None, None, Ok),
        (Some(900), Some(5), None, Ok),
        // Only we opened the library again: the driver went on.
        (Some(900), Some(950), None, Draining),
        (None, None, Some(RecoveryAction::Reset), Draining),
    ] {
        let mut desk = Desk::with(1);
        desk.gpus[0].energy_mj = energy;
        desk.second();
        desk.xid(0, 62);
        desk.faults.read(&GpuPlane::NoDriver("gone".into()), desk.now);
        desk.silence(3);
        assert_eq!(desk.is(0).0, Draining, "a drain outlives the driver");
        desk.session = 2;
        desk.gpus[0].energy_mj = after;
        desk.gpus[0].recovery = recovery;
        desk.seconds(40);
        assert_eq!(desk.is(0).0, condition, "{energy:?} {after:?} {recovery:?}");
    }
}

#[test]
fn the_drivers_word_goes_before_the_table() {
    let mut desk = Desk::with(1);
    desk.xid(0, 48);
    desk.xid(0, 154);
    desk.gpus[0].recovery = Some(RecoveryAction::Reboot);
    desk.second();
    assert_eq!(desk.is(0), (Draining, Some(RebootHost)));
    // Another fault for which it wants nothing. A round that was under way does not count.
    let mut desk = Desk::with(1);
    desk.gpus[0].recovery = Some(RecoveryAction::None);
    desk.second();
    desk.xid(0, 145);
    desk.xid(0, 154);
    desk.second();
    assert_eq!(desk.is(0), (Draining, Some(ResetGpu)));
    desk.seconds(32);
    assert_eq!(desk.is(0), (Ok, None));
    // Without such a word a card that always said "none" stays drained.
    desk.xid(0, 145);
    desk.seconds(300);
    assert_eq!(desk.is(0).0, Draining);
}

#[test]
fn a_lost_card_comes_back_after_some_rounds_and_a_calm() {
    let mut desk = Desk::with(2);
    desk.xid(0, 79);
    desk.gpus[0].answering = Answering::Lost("GPU is lost".into());
    desk.second();
    assert_eq!(desk.is(0), (Lost, Some(RebootHost)));
    desk.seconds(600);
    assert_eq!(desk.is(0).0, Lost);
    desk.gpus[0].answering = Answering::Yes;
    desk.seconds(2);
    desk.gpus[0].answering = Answering::Lost("the GPU requires a reset".into());
    desk.second();
    assert_eq!(desk.is(0), (Lost, Some(RebootHost)), "the Xid asks for more than the reading");
    desk.gpus[0].answering = Answering::Yes;
    assert_eq!(desk.seconds_until(0, Ok), 33);
    assert_eq!(desk.is(1), (Ok, None));
}

#[test]
fn a_card_that_is_not_listed_is_lost_until_it_is_listed_or_cleared() {
    let mut desk = Desk::with(2);
    let card = desk.gpus.remove(1);
    desk.second();
    assert_eq!((desk.is(0).0, desk.is(1)), (Ok, (Lost, Some(RebootHost))));
    desk.gpus.push(card);
    assert_eq!(desk.seconds_until(1, Ok), 33);
    desk.gpus.pop();
    desk.second();
    assert!(desk.faults.clear(&id(1)), "it was taken out for good");
    desk.seconds(3);
    assert_eq!(desk.faults.health().len(), 1);
    assert!(!desk.faults.clear(&id(1)), "there is no such card");
}

#[test]
fn old_readings_make_unknown_what_is_not_drained() {
    let mut desk = Desk::with(2);
    desk.xid(1, 48);
    desk.silence(6);
    assert_eq!((desk.is(0).0, desk.is(1).0), (Unknown, Draining));
    assert_eq!(desk.faults.ground([&id(0)]).unwrap().stop, None, "nothing follows from silence");
    desk.xid(0, 119);
    assert_eq!(desk.is(0).0, Draining, "an event is heard while the driver hangs");
    desk.seconds(1);
    assert_eq!((desk.is(0).0, desk.is(1).0), (Draining, Draining));
}

#[test]
fn no_driver_is_no_fault_of_a_card() {
    let mut desk = Desk::with(1);
    desk.faults.read(&GpuPlane::NoDriver("gone".into()), desk.now);
    let changes = desk.faults.settle(desk.now);
    assert_eq!(changes.len(), 1);
    assert_eq!((changes[0].from, changes[0].now.condition), (Ok, Unknown));
    desk.session = 2;
    desk.second();
    assert_eq!(desk.is(0).0, Ok, "known again at once");
}

#[test]
fn a_mig_device_has_its_cards_faults_and_keeps_its_own() {
    let mut desk = Desk::with(1);
    for number in [7, 8] {
        let mut device = GpuState::blank(id(number), 0, "device".into());
        device.mig =
            Some(MigPart { parent: id(0), gpu_instance: Some(1), compute_instance: Some(0) });
        desk.gpus.push(device);
    }
    desk.second();
    let heard = desk.xid(7, 31);
    assert_eq!(heard, Heard { card: Some(id(0)), probe: vec![id(7)] });
    assert_eq!((desk.is(0).0, desk.is(7).0, desk.is(8).0), (Ok, Suspect, Ok));
    // The driver does not always tell the device.
    assert_eq!(desk.xid(0, 31).probe, [id(0), id(7), id(8)]);
    desk.xid(7, 48);
    assert_eq!((desk.is(0).0, desk.is(7).0, desk.is(8).0), (Draining, Draining, Draining));
    assert!(desk.faults.ground([&id(8)]).unwrap().stop.is_some());
    // Cut anew: the devices are gone, and that is no fault.
    desk.gpus.truncate(1);
    desk.second();
    assert_eq!(desk.faults.health().len(), 1);
    assert_eq!(desk.faults.ground([&id(8)]), None);
}

#[test]
fn an_event_without_a_card_is_the_only_cards() {
    let mut desk = Desk::with(1);
    assert_eq!(desk.event(None, EventKind::Xid(79)).card, Some(id(0)));
    assert_eq!(desk.is(0).0, Lost);
    let mut desk = Desk::with(2);
    assert_eq!(desk.event(None, EventKind::Xid(79)).card, None);
    assert_eq!((desk.is(0).0, desk.is(1).0), (Ok, Ok));
}

#[test]
fn many_signs_of_wear_want_a_person() {
    let mut desk = Desk::with(1);
    for _ in 0..9 {
        desk.xid(0, 92);
        desk.seconds(10);
    }
    assert_eq!(desk.is(0), (Ok, None));
    desk.xid(0, 63);
    assert_eq!(desk.is(0), (Degraded, Some(Service)));
    let waited = desk.seconds_until(0, Ok);
    assert!((3600..=3620).contains(&waited), "{waited}");
}

#[test]
fn the_weakest_gpu_is_the_servers() {
    let mut desk = Desk::with(3);
    (0..10).for_each(|_| drop(desk.xid(1, 92)));
    let two = [id(0), id(1)];
    assert_eq!(desk.faults.ground(&two), Some(Ground { stop: None, lost: false, weight: 0.8 }));
    desk.xid(0, 48);
    desk.xid(1, 79);
    let stop = desk.faults.ground(&two).unwrap().stop.unwrap();
    assert!(stop.starts_with("GPU 1 is lost: Xid 79"), "the gravest first: {stop}");
    assert_eq!(desk.faults.ground(&[id(9)]), None, "an unknown GPU says nothing");
}

/// A card whose list of devices never ends must not take memory without end.
#[test]
fn what_is_followed_is_bounded() {
    let mut desk = Desk::with(1);
    for number in 0..2_000 {
        desk.xid(number, 31);
    }
    assert!(desk.faults.health().len() <= 512);
}
