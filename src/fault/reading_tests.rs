//! Readings and what follows: slowing down, links, memory, silence.

use super::{
    Condition::{Degraded, Draining, Ok, Suspect},
    Needs::{ResetGpu, Service},
    machine_tests::{Desk, id},
};
use crate::snapshot::{
    Answering, EccCounts, GpuState, NvLink, RecoveryAction, RemappedRows, RetiredPages, Throttle,
};

fn link(number: u32, active: bool) -> NvLink {
    NvLink {
        link: number,
        active,
        crc_errors: Some(0),
        replay_errors: Some(0),
        recovery_errors: Some(0),
        sent: None,
        received: None,
    }
}

/// A card under load with everything well.
fn desk() -> Desk {
    let mut desk = Desk::with(1);
    let gpu = &mut desk.gpus[0];
    gpu.utilisation_percent = Some(95);
    (gpu.clocks.sm_mhz, gpu.clocks.sm_max_mhz) = (Some(1980), Some(1980));
    gpu.throttle = Some(Throttle(0));
    (gpu.temperature_c, gpu.slowdown_c) = (Some(60), Some(90));
    (gpu.pcie.generation, gpu.pcie.width, gpu.pcie.replays) = (Some(5), Some(16), Some(100));
    gpu.nvlinks = vec![link(0, true), link(1, true), link(2, false)];
    gpu.ecc = Some(EccCounts {
        corrected_volatile: Some(7),
        uncorrected_volatile: Some(1),
        ..EccCounts::default()
    });
    desk.seconds(10);
    assert_eq!(desk.is(0), (Ok, None), "errors of the past and unused links are no faults");
    desk
}

fn change(desk: &mut Desk, change: impl FnOnce(&mut GpuState)) {
    change(&mut desk.gpus[0]);
}

#[test]
fn slowing_down_lowers_the_weight_once_it_lasts_and_until_it_stays_away() {
    let mut desk = desk();
    change(&mut desk, |gpu| (gpu.throttle, gpu.clocks.sm_mhz) = (Some(Throttle(0x40)), Some(990)));
    desk.seconds(3);
    assert_eq!(desk.is(0).0, Ok, "a moment is nothing");
    desk.seconds(1);
    let health = desk.health(&id(0));
    assert_eq!((health.condition, health.weight), (Degraded, 0.5));
    assert!(health.reasons[0].contains("hw_thermal"), "{health:?}");
    assert!(health.reasons[0].contains("50 %"), "{health:?}");
    // It trembles on and off: one state all the while.
    for second in 0..200 {
        let slow = second % 7 == 0;
        change(&mut desk, |gpu| gpu.throttle = Some(Throttle(if slow { 0x40 } else { 0 })));
        assert!(desk.second().is_empty());
    }
    assert_eq!(desk.health(&id(0)).weight, 0.5);
    change(&mut desk, |gpu| gpu.throttle = Some(Throttle(0)));
    desk.seconds(41);
    let health = desk.health(&id(0));
    assert_eq!((health.condition, health.weight), (Ok, 1.0));
}

#[test]
fn the_weight_has_a_floor_and_an_idle_cards_clock_says_nothing() {
    let mut desk = desk();
    change(&mut desk, |gpu| (gpu.throttle, gpu.clocks.sm_mhz) = (Some(Throttle(0x8)), Some(30)));
    desk.seconds(5);
    assert_eq!(desk.health(&id(0)).weight, 0.1);
    let mut desk = self::desk();
    change(&mut desk, |gpu| {
        gpu.utilisation_percent = Some(0);
        (gpu.throttle, gpu.clocks.sm_mhz) = (Some(Throttle(0x21)), Some(210));
    });
    desk.seconds(5);
    assert_eq!(desk.health(&id(0)).weight, 0.8);
}

#[test]
fn a_power_cap_low_clocks_and_corrected_errors_are_no_faults() {
    let mut desk = desk();
    for second in 0..120 {
        change(&mut desk, |gpu| {
            gpu.throttle = Some(Throttle(0x4 | 0x1 | 0x2));
            gpu.clocks.sm_mhz = Some(345);
            gpu.ecc = Some(EccCounts {
                corrected_volatile: Some(1000 * second),
                uncorrected_volatile: Some(1),
                ..EccCounts::default()
            });
        });
        assert!(desk.second().is_empty());
    }
    assert_eq!(desk.is(0), (Ok, None));
    assert_eq!(desk.health(&id(0)).weight, 1.0);
}

#[test]
fn heat_counts_while_it_lasts() {
    let mut desk = desk();
    change(&mut desk, |gpu| gpu.temperature_c = Some(90));
    desk.seconds(4);
    assert_eq!(desk.is(0), (Degraded, None));
    change(&mut desk, |gpu| gpu.temperature_c = Some(80));
    desk.seconds(4);
    let reasons = desk.health(&desk.gpus[0].id).reasons;
    assert_eq!(reasons, ["it is at 90 °C; from 90 °C on it slows down"], "80 were no reason");
    desk.seconds(37);
    assert_eq!(desk.is(0), (Ok, None));
}

#[test]
fn one_more_error_that_cannot_be_corrected_drains() {
    let mut desk = desk();
    change(&mut desk, |gpu| {
        gpu.ecc = Some(EccCounts { uncorrected_volatile: Some(2), ..EccCounts::default() });
    });
    desk.second();
    assert_eq!(desk.is(0), (Draining, Some(ResetGpu)));
    desk.seconds(300);
    assert_eq!(desk.is(0).0, Draining, "until it is reset");
}

#[test]
fn memory_that_waits_for_a_reset_degrades_and_memory_without_spares_drains() {
    let mut desk = desk();
    let rows = RemappedRows { pending: true, ..RemappedRows::default() };
    change(&mut desk, |gpu| gpu.remapped_rows = Some(rows));
    desk.second();
    assert_eq!(desk.is(0), (Degraded, Some(ResetGpu)));
    change(&mut desk, |gpu| {
        gpu.remapped_rows = Some(RemappedRows { pending: false, ..rows });
        gpu.retired_pages = Some(RetiredPages { pending: Some(true), ..RetiredPages::default() });
    });
    desk.second();
    assert_eq!(desk.is(0), (Degraded, Some(ResetGpu)), "older cards say it of pages");
    change(&mut desk, |gpu| {
        gpu.remapped_rows = Some(RemappedRows { failed: true, ..RemappedRows::default() });
    });
    desk.second();
    assert_eq!(desk.is(0), (Draining, Some(Service)));
    change(&mut desk, |gpu| (gpu.remapped_rows, gpu.retired_pages) = (None, None));
    desk.seconds(100);
    assert_eq!(desk.is(0), (Draining, Some(Service)), "a reading that fails takes nothing back");
}

#[test]
fn a_link_that_goes_down_and_one_that_errs_degrade() {
    let mut desk = desk();
    change(&mut desk, |gpu| gpu.nvlinks[1].active = false);
    desk.seconds(4);
    assert_eq!(desk.is(0), (Degraded, Some(ResetGpu)));
    assert_eq!(desk.health(&id(0)).reasons, ["NVLink 1 was up and is down"]);
    let mut desk = self::desk();
    for _ in 0..60 {
        change(&mut desk, |gpu| {
            gpu.nvlinks[0].crc_errors = gpu.nvlinks[0].crc_errors.map(|count| count + 50);
        });
        desk.second();
    }
    assert_eq!(desk.is(0), (Ok, None), "a few CRC errors are ordinary");
    // A counter that could not be read for a round is no growth.
    change(&mut desk, |gpu| gpu.nvlinks[0].crc_errors = None);
    desk.second();
    change(&mut desk, |gpu| gpu.nvlinks[0].crc_errors = Some(3_050));
    desk.second();
    assert_eq!(desk.is(0), (Ok, None));
    change(&mut desk, |gpu| gpu.nvlinks[1].recovery_errors = Some(1));
    desk.second();
    assert_eq!(desk.is(0), (Degraded, Some(Service)));
}

#[test]
fn a_narrower_connection_is_seen_under_load_only() {
    let mut desk = desk();
    change(&mut desk, |gpu| {
        gpu.utilisation_percent = Some(0);
        gpu.pcie.generation = Some(1);
    });
    desk.seconds(60);
    assert_eq!(desk.is(0), (Ok, None), "idle cards save power");
    change(&mut desk, |gpu| {
        gpu.utilisation_percent = Some(90);
        (gpu.pcie.generation, gpu.pcie.width) = (Some(5), Some(8));
    });
    desk.seconds(6);
    assert_eq!(desk.is(0), (Degraded, Some(Service)));
    let mut desk = self::desk();
    change(&mut desk, |gpu| gpu.pcie.replays = Some(108));
    desk.second();
    assert_eq!(desk.is(0), (Ok, None));
    change(&mut desk, |gpu| gpu.pcie.replays = Some(109));
    desk.second();
    assert_eq!(desk.is(0), (Degraded, Some(Service)));
}

#[test]
fn a_card_whose_readings_fail_is_suspect_and_no_more() {
    let mut desk = desk();
    change(&mut desk, |gpu| gpu.answering = Answering::No("unknown error".into()));
    desk.seconds(2);
    assert_eq!(desk.is(0).0, Ok);
    desk.seconds(600);
    assert_eq!(desk.is(0), (Suspect, None));
    change(&mut desk, |gpu| gpu.answering = Answering::Yes);
    desk.seconds(11);
    assert_eq!(desk.is(0), (Ok, None));
}

#[test]
fn each_recovery_action_has_its_order() {
    for (action, condition, needs) in [
        (RecoveryAction::None, Ok, None),
        (RecoveryAction::Reset, Draining, Some(ResetGpu)),
        (RecoveryAction::Reboot, Draining, Some(super::Needs::RebootHost)),
        (RecoveryAction::DrainP2p, Draining, Some(ResetGpu)),
        (RecoveryAction::DrainAndReset, Draining, Some(ResetGpu)),
        (RecoveryAction::Other(9), Degraded, Some(Service)),
    ] {
        let mut desk = desk();
        change(&mut desk, |gpu| gpu.recovery = Some(action));
        desk.second();
        assert_eq!(desk.is(0), (condition, needs), "{action:?}");
    }
}
