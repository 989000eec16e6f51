//! Every reading of a card, from the library's ABI to the published value; what a card lacks, and how often
//! it is asked.

use crate::support::{
    nvml::FakeNvml,
    plane::{LIMIT, driver, rounds, settings, start, until_first, wait_for},
};
use berthd::{
    gpu,
    snapshot::{
        Clocks, EccCounts, GpuPlane, GpuProcess, GpuState, Modes, NvLink, Pcie, RecoveryAction,
        RemappedRows, RetiredPages, Throttle,
    },
    units::Bytes,
};
use std::time::Duration;
use tokio::time::Instant;

/// A card of which everything is known.
const RICH: &str = "driver=580.65.06
nvml=13.580.65.06
gpu 0 uuid=GPU-aaaa name=\"NVIDIA H200\" pci=0000:1b:00.0 compute_mode=3 persistence=1 mig=0 \
 mem_total=150754820096 mem_used=98784247808 mem_free=51436847104 mem_reserved=533725184 \
 bar1_total=274877906944 bar1_used=1048576 util=87 mem_util=41 power_mw=612345 power_instant_mw=1 \
 limit_mw=650000 energy_mj=123456789012 temp=63 temp_memory=71 temp_slowdown=87 temp_shutdown=92 sm_mhz=1755 \
 sm_max_mhz=1980 mem_mhz=3200 mem_max_mhz=3201 throttle=0x44 ecc=1 ecc_corrected=1 ecc_uncorrected=2 \
 ecc_corrected_total=3 ecc_uncorrected_total=4 retired_single=2 retired_double=1 retired_pending=1 \
 rows_correctable=5 rows_uncorrectable=6 rows_pending=1 rows_failed=0 pcie_gen=4 pcie_width=8 pcie_gen_max=5 \
 pcie_width_max=16 pcie_replays=7 pcie_tx_bytes=8000000000 pcie_rx_bytes=9000000000 recovery=4
link 0 0 active=1 crc_errors=10 replay_errors=2 recovery_errors=3 tx_kib=5 rx_kib=6
link 0 17 active=0 tx_kib=50 rx_kib=60
proc 0 pid=4100 mem=5 sm=61 name=python3
proc 0 pid=4101 kind=mps mem=6
";

/// A card that tells its name and nothing else.
const BARE: &str = "gpu 1 uuid=GPU-bbbb name=bare\n";

fn rich() -> GpuState {
    GpuState {
        pci_bus_id: Some("00000000:1B:00.0".into()),
        memory_total: Some(Bytes(150_754_820_096)),
        memory_used: Some(Bytes(98_784_247_808)),
        memory_free: Some(Bytes(51_436_847_104)),
        memory_reserved: Some(Bytes(533_725_184)),
        bar1_total: Some(Bytes(274_877_906_944)),
        bar1_used: Some(Bytes(1_048_576)),
        utilisation_percent: Some(87),
        memory_utilisation_percent: Some(41),
        power_w: Some(612.345),
        power_limit_w: Some(650.0),
        energy_mj: Some(123_456_789_012),
        temperature_c: Some(63),
        memory_temperature_c: Some(71),
        slowdown_c: Some(87),
        shutdown_c: Some(92),
        clocks: Clocks {
            sm_mhz: Some(1755),
            sm_max_mhz: Some(1980),
            memory_mhz: Some(3200),
            memory_max_mhz: Some(3201),
        },
        throttle: Some(Throttle(0x44)),
        ecc: Some(EccCounts {
            corrected_volatile: Some(1),
            uncorrected_volatile: Some(2),
            corrected_aggregate: Some(3),
            uncorrected_aggregate: Some(4),
        }),
        retired_pages: Some(RetiredPages {
            single_bit: Some(2),
            double_bit: Some(1),
            pending: Some(true),
        }),
        remapped_rows: Some(RemappedRows {
            correctable: 5,
            uncorrectable: 6,
            pending: true,
            failed: false,
        }),
        pcie: Pcie {
            generation: Some(4),
            generation_max: Some(5),
            width: Some(8),
            width_max: Some(16),
            replays: Some(7),
            sent: Some(Bytes(8_000_000_000)),
            received: Some(Bytes(9_000_000_000)),
        },
        nvlinks: vec![
            NvLink {
                link: 0,
                active: true,
                // The fake gives both kinds of CRC errors the same number.
                crc_errors: Some(20),
                replay_errors: Some(2),
                recovery_errors: Some(3),
                sent: Some(Bytes(5 * 1024)),
                received: Some(Bytes(6 * 1024)),
            },
            NvLink {
                link: 17,
                active: false,
                crc_errors: None,
                replay_errors: None,
                recovery_errors: None,
                sent: None,
                received: None,
            },
        ],
        modes: Modes {
            compute: Some("exclusive_process"),
            persistence: Some(true),
            mig: Some(false),
        },
        recovery: Some(RecoveryAction::DrainAndReset),
        processes: Some(vec![
            GpuProcess {
                pid: 4100,
                name: Some("python3".into()),
                memory: Some(Bytes(5)),
                utilisation_percent: Some(61),
            },
            GpuProcess { pid: 4101, name: None, memory: Some(Bytes(6)), utilisation_percent: None },
        ]),
        ..GpuState::blank("GPU-aaaa".into(), 0, "NVIDIA H200".into())
    }
}

/// All fields but the time, to be compared.
fn fields(state: &GpuState) -> String {
    format!("{:#?}", GpuState { metered_at: None, ..state.clone() })
}

#[tokio::test]
async fn every_field_comes_through_exactly_and_stays() {
    let fake = FakeNvml::new(&format!("{RICH}{BARE}"));
    let gpus = start(fake.library());
    let mut plane = gpus.subscribe();
    let first = wait_for(&mut plane, driver).await;
    // What is read now and then is there in between too.
    let later = rounds(&mut plane, 7).await;
    for state in [&first, &later] {
        assert_eq!(fields(&state.gpus[0]), fields(&rich()));
        let bare = GpuState {
            processes: Some(Vec::new()),
            ..GpuState::blank("GPU-bbbb".into(), 1, "bare".into())
        };
        assert_eq!(fields(&state.gpus[1]), fields(&bare));
    }
    assert!(later.gpus[0].metered_at > first.gpus[0].metered_at);
}

#[test]
fn one_reading_without_a_daemon_tells_as_much() {
    let fake = FakeNvml::new(RICH);
    let GpuPlane::Driver(state) = gpu::read_once(Some(fake.library())) else {
        panic!("the library is there");
    };
    assert_eq!(fields(&state.gpus[0]), fields(&rich()));
    let nowhere = gpu::read_once(Some("/nonexistent/libnvidia-ml.so.1".into()));
    assert!(matches!(nowhere, GpuPlane::NoDriver(why) if why.contains("not found")));
}

#[tokio::test]
async fn what_a_card_lacks_is_asked_once_in_a_session() {
    let fake = FakeNvml::new(&format!("log_calls\n{RICH}{BARE}"));
    let gpus = start(fake.library());
    let mut plane = gpus.subscribe();
    wait_for(&mut plane, driver).await;
    let asked = |call: &str| fake.calls(&format!("nvmlDeviceGet{call}@1"));
    let fields_at_first = asked("FieldValues");
    rounds(&mut plane, 12).await;

    for call in [
        "MemoryInfo_v2",
        "BAR1MemoryInfo",
        "UtilizationRates",
        "PowerUsage",
        "TotalEnergyConsumption",
        "EnforcedPowerLimit",
        "Temperature",
        "CurrentClocksThrottleReasons",
        "EccMode",
        "RemappedRows",
        "RetiredPagesPendingStatus",
        "PcieReplayCounter",
        "CurrPcieLinkWidth",
        "ComputeMode",
        "PersistenceMode",
        "MigMode",
        "PciInfo_v3",
    ] {
        assert_eq!(asked(call), 1, "{call} of a card that lacks it");
    }
    assert_eq!(asked("TotalEccErrors"), 0, "without ECC there are no errors to ask for");
    assert_eq!(asked("NvLinkState"), 18, "each link once");
    assert_eq!(asked("FieldValues"), fields_at_first, "no field is there to be asked for again");

    // The other card is asked in each round, and for what never changes once.
    let asked = |call: &str| fake.calls(&format!("nvmlDeviceGet{call}@0"));
    assert!(asked("Temperature") >= 12, "{}", asked("Temperature"));
    let of_two_clocks = 2;
    assert_eq!(asked("MaxClockInfo"), of_two_clocks);
    assert_eq!(asked("PciInfo_v3"), 1);
    assert_eq!(asked("UUID"), 2, "once for the readings, once for the events");
    // Rounds may have passed unseen; there are as many as readings of the temperature.
    let (slow, all) = (asked("RemappedRows"), asked("Temperature"));
    assert!(slow >= 2 && slow <= 2 + all / 5, "in every fifth round: {slow} of {all}");
    assert_eq!(fake.calls("nvmlDeviceGetPcieThroughput"), 0, "it would block");
}

#[tokio::test]
async fn an_error_that_may_pass_is_asked_again() {
    let fake = FakeNvml::new(&format!("{RICH}return nvmlDeviceGetTotalEnergyConsumption=999\n"));
    let gpus = start(fake.library());
    let mut plane = gpus.subscribe();
    let state = wait_for(&mut plane, driver).await;
    assert_eq!(state.gpus[0].energy_mj, None);
    assert_eq!(state.gpus[0].power_w, Some(612.345));
    fake.set(RICH);
    until_first(&mut plane, |gpu| gpu.energy_mj == Some(123_456_789_012)).await;
}

#[tokio::test]
async fn what_changes_slowly_follows_within_a_few_rounds() {
    let fake = FakeNvml::new(RICH);
    let gpus = start(fake.library());
    let mut plane = gpus.subscribe();
    wait_for(&mut plane, driver).await;
    fake.set(&RICH.replace("rows_pending=1", "rows_pending=0").replace("tx_kib=5 ", "tx_kib=9 "));
    // The round in which the file changed may have been under way.
    let state = rounds(&mut plane, 7).await;
    assert_eq!(state.gpus[0].remapped_rows.map(|rows| rows.pending), Some(false));
    assert_eq!(state.gpus[0].nvlinks[0].sent, Some(Bytes(9 * 1024)));
}

#[tokio::test]
async fn a_link_that_comes_up_has_its_counters_and_newer_ones_stand_in_for_older() {
    let down = RICH.replace("active=1", "active=0");
    let fake = FakeNvml::new(&down);
    let gpus = start(fake.library());
    let mut plane = gpus.subscribe();
    let state = wait_for(&mut plane, driver).await;
    assert_eq!((state.gpus[0].nvlinks[0].active, state.gpus[0].nvlinks[0].sent), (false, None));
    // The newest cards have no such call any more.
    fake.set(&format!("{RICH}return nvmlDeviceGetNvLinkErrorCounter=3\n"));
    let state = until_first(&mut plane, |gpu| gpu.nvlinks[0].active).await;
    let link = state.gpus[0].nvlinks[0];
    assert_eq!((link.crc_errors, link.replay_errors), (None, None));
    assert_eq!(link.recovery_errors, Some(3));
    assert_eq!(link.sent, Some(Bytes(5 * 1024)));
}

#[tokio::test]
async fn power_that_only_a_field_tells_is_read_there_and_energy_is_not_made_up() {
    // Not every old card counts its energy.
    let old = RICH.replace(" energy_mj=123456789012", "");
    let fake = FakeNvml::new(&format!("{old}return nvmlDeviceGetPowerUsage=3\n"));
    let state = wait_for(&mut start(fake.library()).subscribe(), driver).await;
    assert_eq!(state.gpus[0].power_w, Some(0.001), "the power of this moment");
    assert_eq!(state.gpus[0].energy_mj, None);

    let averaged = old.replace(" power_instant_mw=1", "");
    let fake = FakeNvml::new(&format!("{averaged}return nvmlDeviceGetPowerUsage=3\n"));
    let state = wait_for(&mut start(fake.library()).subscribe(), driver).await;
    assert_eq!(state.gpus[0].power_w, Some(612.345), "the average");
}

#[tokio::test]
async fn ecc_that_is_off_counts_nothing() {
    let fake = FakeNvml::new(&RICH.replace("ecc=1", "ecc=0"));
    let state = wait_for(&mut start(fake.library()).subscribe(), driver).await;
    assert_eq!(state.gpus[0].ecc, None, "its zeroes would look like health");
}

#[tokio::test]
async fn values_that_cannot_be_are_no_readings() {
    let unknown = RICH
        .replace("mem_used=98784247808", "mem_used=18446744073709551615")
        .replace("bar1_used=1048576", "bar1_used=18446744073709551615")
        .replace("sm=61", "sm=101");
    let fake = FakeNvml::new(&unknown);
    let state = wait_for(&mut start(fake.library()).subscribe(), driver).await;
    let gpu = &state.gpus[0];
    assert_eq!((gpu.memory_used, gpu.bar1_used), (None, None));
    assert_eq!(gpu.memory_free, Some(Bytes(51_436_847_104)));
    assert_eq!(gpu.processes.as_ref().map(|list| list[0].utilisation_percent), Some(None));
}

#[tokio::test]
async fn energy_that_goes_back_is_published_as_it_is() {
    let fake = FakeNvml::new(RICH);
    let gpus = start(fake.library());
    let mut plane = gpus.subscribe();
    wait_for(&mut plane, driver).await;
    fake.set(&RICH.replace("energy_mj=123456789012", "energy_mj=5"));
    until_first(&mut plane, |gpu| gpu.energy_mj == Some(5)).await;
}

#[tokio::test]
async fn between_rounds_only_the_meters_are_read() {
    let fake = FakeNvml::new(RICH);
    let settings = berthd::config::Gpu {
        period: LIMIT * 3,
        fast_period: Duration::from_millis(10),
        ..settings(fake.library())
    };
    let gpus = gpu::start(&settings).expect("a thread");
    let mut plane = gpus.subscribe();
    let round = wait_for(&mut plane, driver).await;
    fake.set(
        &RICH
            .replace("util=87 mem_util=41 power_mw=612345", "util=5 mem_util=4 power_mw=90000")
            .replace("energy_mj=123456789012", "energy_mj=123456790000")
            .replace("temp=63", "temp=99"),
    );
    let next = until_first(&mut plane, |gpu| gpu.utilisation_percent == Some(5)).await;
    let gpu = &next.gpus[0];
    assert_eq!(gpu.memory_utilisation_percent, Some(4));
    assert_eq!((gpu.power_w, gpu.energy_mj), (Some(90.0), Some(123_456_790_000)));
    assert_eq!(gpu.temperature_c, Some(63), "that was read by the round, a minute ago or not");
    assert_eq!(next.read_at, round.read_at, "and the round is no younger for it");
    let metered = gpu.metered_at.expect("it was metered");
    assert!(metered > round.read_at && metered <= Instant::now());
}
