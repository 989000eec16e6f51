//! Whatever comes, in whatever order: nothing flaps, and only what may drain does.

use super::{
    Condition,
    machine_tests::{Desk, id},
    xid::{Class, Xid},
};
use crate::snapshot::{Answering, EccCounts, EventKind, NvLink, RecoveryAction, Throttle};
use proptest::prelude::*;
use std::{collections::VecDeque, time::Duration};
use tokio::time::Instant;

/// Most changes of a card's state in a minute. Each time it gets better takes at least ten seconds of
/// calm, and from Ok it can get worse four times; readings that grow old add two for each five seconds.
const CHANGES_MOST: usize = 6 * 5 + 12 * 2;
/// Most times in a minute that servers are taken out or let in again: one of each in half a minute.
const FLIPS_MOST: usize = 5;

#[derive(Clone, Debug)]
enum Step {
    Event(EventKind),
    Slow(bool, u32),
    Hot(u32),
    Uncorrected(u64),
    Answers(u8),
    Recovery(u8),
    Link(bool, u64),
    Session,
    Pass(u64),
    Silence(u32),
    Restarted,
}

/// A step that may, by the rules, take a card's servers out; repeated application faults are counted.
fn may_drain(step: &Step) -> bool {
    match step {
        Step::Event(EventKind::Xid(number)) => {
            matches!(Xid::of(*number).class, Class::Reboot | Class::Reset | Class::NvLink)
        }
        Step::Event(EventKind::EccDoubleBit | EventKind::FatalPoison | EventKind::Unavailable) => {
            true
        }
        Step::Uncorrected(_) | Step::Answers(1) => true,
        Step::Recovery(what) => (1..=4).contains(what),
        _ => false,
    }
}

fn harmless() -> impl Strategy<Value = Step> {
    let xid = prop_oneof![Just(43_u32), Just(45), Just(92), Just(154), 200..400_u32];
    let event = prop_oneof![
        Just(EventKind::EccSingleBit),
        Just(EventKind::NonFatalPoison),
        Just(EventKind::RecoveryAction),
        Just(EventKind::MigChanged),
    ];
    prop_oneof![
        xid.prop_map(|number| Step::Event(EventKind::Xid(number))),
        event.prop_map(Step::Event),
        (any::<bool>(), 0..2000_u32).prop_map(|(slow, mhz)| Step::Slow(slow, mhz)),
        (20..110_u32).prop_map(Step::Hot),
        (any::<bool>(), 0..10_000_u64).prop_map(|(up, errors)| Step::Link(up, errors)),
        Just(Step::Answers(0)),
        Just(Step::Answers(2)),
        Just(Step::Session),
        (1..3000_u64).prop_map(Step::Pass),
        (1..12_u32).prop_map(Step::Silence),
        Just(Step::Restarted),
    ]
}

fn any_step() -> impl Strategy<Value = Step> {
    prop_oneof![
        4 => harmless(),
        1 => (0..170_u32).prop_map(|number| Step::Event(EventKind::Xid(number))),
        1 => (0..4_u64).prop_map(Step::Uncorrected),
        1 => (0..3_u8).prop_map(Step::Answers),
        1 => (0..6_u8).prop_map(Step::Recovery),
        1 => prop_oneof![
            Just(EventKind::EccDoubleBit),
            Just(EventKind::FatalPoison),
            Just(EventKind::Unavailable),
        ].prop_map(Step::Event),
    ]
}

fn take(desk: &mut Desk, step: &Step) {
    let gpu = &mut desk.gpus[0];
    match *step {
        Step::Event(kind) => drop(desk.event(Some(id(0)), kind)),
        Step::Slow(slow, mhz) => {
            gpu.throttle = Some(Throttle(if slow { 0x48 } else { 0 }));
            (gpu.clocks.sm_mhz, gpu.clocks.sm_max_mhz) = (Some(mhz), Some(1980));
        }
        Step::Hot(celsius) => (gpu.temperature_c, gpu.slowdown_c) = (Some(celsius), Some(90)),
        Step::Uncorrected(count) => {
            gpu.ecc = Some(EccCounts { uncorrected_volatile: Some(count), ..EccCounts::default() });
        }
        Step::Answers(0) => gpu.answering = Answering::Yes,
        Step::Answers(1) => gpu.answering = Answering::Lost("lost".into()),
        Step::Answers(_) => gpu.answering = Answering::No("unknown error".into()),
        Step::Recovery(what) => {
            gpu.recovery = Some(match what {
                0 => RecoveryAction::None,
                1 => RecoveryAction::Reset,
                2 => RecoveryAction::Reboot,
                3 => RecoveryAction::DrainP2p,
                4 => RecoveryAction::DrainAndReset,
                _ => RecoveryAction::Other(9),
            });
        }
        Step::Link(active, errors) => {
            gpu.nvlinks = vec![NvLink {
                link: 0,
                active,
                crc_errors: Some(errors),
                replay_errors: None,
                recovery_errors: None,
                sent: None,
                received: None,
            }];
        }
        Step::Session => desk.session += 1,
        Step::Pass(milliseconds) => desk.now += Duration::from_millis(milliseconds),
        Step::Silence(seconds) => desk.silence(seconds),
        Step::Restarted => desk.faults.restarted(&id(0)),
    }
}

/// Runs the steps, with a round of readings after each, and gives the times of all changes.
fn run(steps: &[Step], mut look: impl FnMut(&Desk, &Step)) -> Vec<(Instant, bool)> {
    let mut desk = Desk::with(1);
    let (mut changes, mut told) = (Vec::new(), Condition::Ok);
    for step in steps {
        take(&mut desk, step);
        let mut note = |desk: &Desk| {
            let now = desk.health(&id(0)).condition;
            if now != told {
                changes.push((desk.now, now.stops() != told.stops()));
                told = now;
            }
        };
        note(&desk);
        desk.second();
        note(&desk);
        look(&desk, step);
    }
    changes
}

fn most_in_a_minute(times: impl Iterator<Item = Instant>) -> usize {
    let (mut window, mut most) = (VecDeque::new(), 0);
    for at in times {
        window.push_back(at);
        while window.front().is_some_and(|first| at - *first > Duration::from_secs(60)) {
            window.pop_front();
        }
        most = most.max(window.len());
    }
    most
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 96, ..ProptestConfig::default() })]

    #[test]
    fn nothing_flaps_and_only_listed_causes_drain(
        steps in proptest::collection::vec(any_step(), 1..250)
    ) {
        let (mut cause, mut faults) = (false, 0);
        let changes = run(&steps, |desk, step| {
            cause |= may_drain(step);
            if let Step::Event(EventKind::Xid(number)) = step {
                faults += usize::from(Xid::of(*number).class == Class::Application);
            }
            let health = desk.health(&id(0));
            assert!(!health.condition.stops() || cause || faults >= 3, "{health:?} without a cause");
            assert!(health.weight >= 0.1 && health.weight <= 1.0, "{health:?}");
            assert!(!health.condition.stops() || !health.reasons.is_empty(), "{health:?}");
            let ground = desk.faults.ground([&id(0)]).unwrap();
            assert_eq!(ground.stop.is_some(), health.condition.stops());
        });
        prop_assert!(most_in_a_minute(changes.iter().map(|(at, _)| *at)) <= CHANGES_MOST);
        let flips = changes.iter().filter(|(_, flip)| *flip).map(|(at, _)| *at);
        prop_assert!(most_in_a_minute(flips) <= FLIPS_MOST);
    }

    /// Throttling, heat, links, stale readings, notes, unknown Xids, reopened sessions: never a drain.
    #[test]
    fn what_is_harmless_never_drains(steps in proptest::collection::vec(harmless(), 1..250)) {
        run(&steps, |desk, step| {
            assert!(!desk.health(&id(0)).condition.stops(), "after {step:?}");
        });
    }
}
