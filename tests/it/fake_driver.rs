//! The fake NVML library, asked through the wrapper that the daemon uses: every kind of call, its value, and
//! what a card without it answers.

use crate::support::nvml::FakeNvml;
use nvml_wrapper::{
    Device, Nvml,
    bitmasks::{device::ThrottleReasons, event::EventTypes},
    enum_wrappers::{
        device::{
            Brand, Clock, ClockId, ComputeMode, EccCounter, MemoryError, MemoryLocation,
            PcieUtilCounter, PerformancePolicy, PerformanceState, RetirementCause,
            TemperatureSensor, TemperatureThreshold,
        },
        nv_link::{Capability, ErrorCounter},
    },
    enums::device::{DeviceArchitecture, SampleValue, UsedGpuMemory},
    error::NvmlError,
    structs::device::FieldId,
    sys_exports::field_id,
};
use std::thread;
use tokio::time::Instant;

const GIB: u64 = 1 << 30;

/// A card of which everything is known, and one of which nothing but its name is.
const CARDS: &str = "\
# a comment, and an empty line

driver=580.65.06
nvml=13.580.65.06
cuda=13.0
gpu 0 uuid=GPU-aaaa name=\"NVIDIA H200\" serial=165 pci=0000:1b:00.0 pci_device=0x233510DE minor=3 vbios=96.00 \
 compute=9.0 brand=14 arch=9 compute_mode=3 persistence=1 pstate=2 mem_total=150754820096 mem_used=98784247808 \
 mem_free=51436847104 mem_reserved=533725184 bar1_total=274877906944 bar1_used=1048576 util=87 mem_util=41 \
 enc_util=5 dec_util=6 power_mw=612345 power_instant_mw=620000 limit_mw=650000 limit_set_mw=660000 \
 limit_default_mw=700000 limit_min_mw=200000 limit_max_mw=700001 energy_mj=123456789012 temp=63 temp_memory=71 \
 temp_slowdown=87 temp_shutdown=92 temp_mem_max=95 temp_gpu_max=85 sm_mhz=1755 sm_max_mhz=1980 mem_mhz=3200 \
 mem_max_mhz=3201 throttle=0x44 violation_power_ns=17 violation_thermal_ns=18 ecc=1 ecc_pending=0 ecc_corrected=1 \
 ecc_uncorrected=2 ecc_corrected_total=3 ecc_uncorrected_total=4 retired_single=2 retired_double=1 \
 retired_pending=1 rows_correctable=5 rows_uncorrectable=6 rows_pending=1 rows_failed=0 rows_max=640 rows_high=1 \
 rows_partial=2 rows_low=3 rows_none=4 pcie_gen=4 pcie_width=8 pcie_gen_max=5 pcie_width_max=16 pcie_replays=7 \
 pcie_tx_kbps=100 pcie_rx_kbps=200 pcie_tx_bytes=8000000000 pcie_rx_bytes=9000000000 pcie_correctable=11 \
 pcie_fatal=12 recovery=4 events=0x800e
gpu 1 uuid=GPU-bbbb name=bare pci=00000000:C1:00.0
link 0 0 active=1 version=6 remote=0000:c1:00.0 crc_errors=1 replay_errors=2 recovery_errors=3 ecc_errors=4 \
 tx_kib=5 rx_kib=6
link 0 17 active=0 remote=0000:05:00.0 crc_errors=10 tx_kib=50
proc 0 pid=4100 mem=5 sm=61 mem_util=31 enc=1 dec=2 name=python3
proc 0 pid=4101 kind=mps mem=6
proc 0 pid=4102 kind=graphics
";

fn open(fake: &FakeNvml) -> Nvml {
    Nvml::builder().lib_path(fake.library().as_os_str()).init().expect("the fake library loads")
}

fn field(device: &Device<'_>, id: u32) -> Result<SampleValue, NvmlError> {
    let mut values = device.field_values_for(&[FieldId(id)]).unwrap();
    let sample = values.remove(0).unwrap();
    assert!(sample.timestamp > 1_700_000_000_000_000, "microseconds of our time");
    sample.value
}

fn unsupported<T: std::fmt::Debug>(result: Result<T, NvmlError>) -> bool {
    assert!(matches!(result, Err(NvmlError::NotSupported)), "{result:?}");
    true
}

#[test]
fn a_card_is_found_by_every_name_it_has() {
    let fake = FakeNvml::new(CARDS);
    let nvml = open(&fake);
    assert_eq!(nvml.sys_cuda_driver_version().unwrap(), 13_000);
    assert_eq!(nvml.device_count().unwrap(), 2);
    for device in [
        nvml.device_by_index(0),
        nvml.device_by_uuid("GPU-aaaa"),
        nvml.device_by_pci_bus_id("0000:1B:00.0"),
        nvml.device_by_pci_bus_id("1b:00.0"),
    ] {
        let device = device.unwrap();
        assert_eq!((device.index().unwrap(), device.uuid().unwrap().as_str()), (0, "GPU-aaaa"));
    }
    assert!(matches!(nvml.device_by_index(2), Err(NvmlError::InvalidArg)));
    assert!(matches!(nvml.device_by_uuid("GPU-cccc"), Err(NvmlError::NotFound)));
    assert!(matches!(nvml.device_by_pci_bus_id("0000:01:00.0"), Err(NvmlError::NotFound)));

    let card = nvml.device_by_index(0).unwrap();
    let pci = card.pci_info().unwrap();
    assert_eq!((pci.domain, pci.bus, pci.device), (0, 0x1b, 0));
    assert_eq!((pci.bus_id.as_str(), pci.pci_device_id), ("00000000:1B:00.0", 0x2335_10DE));
    assert_eq!(card.serial().unwrap(), "165");
    assert_eq!(card.minor_number().unwrap(), 3);
    assert_eq!(card.brand().unwrap(), Brand::Nvidia);
    assert_eq!(card.architecture().unwrap(), DeviceArchitecture::Hopper);
    assert_eq!(card.cuda_compute_capability().unwrap().major, 9);
    assert_eq!(card.compute_mode().unwrap(), ComputeMode::ExclusiveProcess);
    assert!(card.is_in_persistent_mode().unwrap());
    assert_eq!(card.performance_state().unwrap(), PerformanceState::Two);
}

#[test]
fn loads_power_heat_and_clocks_come_through() {
    let fake = FakeNvml::new(CARDS);
    let nvml = open(&fake);
    let card = nvml.device_by_index(0).unwrap();
    let bar1 = card.bar1_memory_info().unwrap();
    assert_eq!((bar1.total, bar1.used, bar1.free), (256 * GIB, 1 << 20, 256 * GIB - (1 << 20)));
    let memory = card.memory_info().unwrap();
    assert_eq!((memory.total, memory.reserved), (150_754_820_096, 533_725_184));
    assert_eq!((memory.used, memory.free), (98_784_247_808, 51_436_847_104));
    assert_eq!(card.encoder_utilization().unwrap().utilization, 5);
    assert_eq!(card.decoder_utilization().unwrap().utilization, 6);

    assert_eq!(card.power_usage().unwrap(), 612_345);
    assert_eq!(card.enforced_power_limit().unwrap(), 650_000);
    assert_eq!(card.power_management_limit().unwrap(), 660_000);
    assert_eq!(card.power_management_limit_default().unwrap(), 700_000);
    let limits = card.power_management_limit_constraints().unwrap();
    assert_eq!((limits.min_limit, limits.max_limit), (200_000, 700_001));
    assert_eq!(card.total_energy_consumption().unwrap(), 123_456_789_012);

    assert_eq!(card.temperature(TemperatureSensor::Gpu).unwrap(), 63);
    let thresholds = [
        (TemperatureThreshold::Shutdown, 92),
        (TemperatureThreshold::Slowdown, 87),
        (TemperatureThreshold::MemoryMax, 95),
        (TemperatureThreshold::GpuMax, 85),
    ];
    for (threshold, degrees) in thresholds {
        assert_eq!(card.temperature_threshold(threshold).unwrap(), degrees);
    }
    unsupported(card.temperature_threshold(TemperatureThreshold::AcousticMin));

    for (clock, now, most) in
        [(Clock::Graphics, 1755, 1980), (Clock::SM, 1755, 1980), (Clock::Memory, 3200, 3201)]
    {
        assert_eq!(card.clock_info(clock).unwrap(), now);
        assert_eq!(card.max_clock_info(clock).unwrap(), most);
        assert_eq!(card.clock(clock, ClockId::Current).unwrap(), now);
    }
    unsupported(card.clock_info(Clock::Video));
    assert_eq!(
        card.current_throttle_reasons_strict().unwrap(),
        ThrottleReasons::SW_POWER_CAP | ThrottleReasons::HW_THERMAL_SLOWDOWN
    );
    assert_eq!(card.supported_throttle_reasons_strict().unwrap(), ThrottleReasons::all());
    assert_eq!(card.violation_status(PerformancePolicy::Power).unwrap().violation_time, 17);
    assert_eq!(card.violation_status(PerformancePolicy::Thermal).unwrap().violation_time, 18);
}

#[test]
fn errors_of_memory_and_links_come_through() {
    let fake = FakeNvml::new(CARDS);
    let nvml = open(&fake);
    let card = nvml.device_by_index(0).unwrap();
    let ecc = card.is_ecc_enabled().unwrap();
    assert!(ecc.currently_enabled && !ecc.pending_enabled);
    let counters = [
        (MemoryError::Corrected, EccCounter::Volatile, 1),
        (MemoryError::Uncorrected, EccCounter::Volatile, 2),
        (MemoryError::Corrected, EccCounter::Aggregate, 3),
        (MemoryError::Uncorrected, EccCounter::Aggregate, 4),
    ];
    for (error, counter, count) in counters {
        assert_eq!(card.total_ecc_errors(error, counter).unwrap(), count);
        let in_memory = |place| card.memory_error_counter(error, counter, place);
        assert_eq!(in_memory(MemoryLocation::Device).unwrap(), count);
        assert_eq!(in_memory(MemoryLocation::L2Cache).unwrap(), 0);
    }
    let retired = |cause| card.retired_pages(cause).unwrap().len();
    assert_eq!(retired(RetirementCause::MultipleSingleBitEccErrors), 2);
    assert_eq!(retired(RetirementCause::DoubleBitEccError), 1);
    assert!(card.are_pages_pending_retired().unwrap());
    assert_eq!(remapped_rows(&card), Ok([5, 6, 1, 0]));
    assert_eq!(row_histogram(&card), Ok([640, 1, 2, 3, 4]));

    assert_eq!((card.current_pcie_link_gen().unwrap(), card.max_pcie_link_gen().unwrap()), (4, 5));
    assert_eq!(
        (card.current_pcie_link_width().unwrap(), card.max_pcie_link_width().unwrap()),
        (8, 16)
    );
    assert_eq!(card.pcie_replay_counter().unwrap(), 7);
    assert_eq!(card.pcie_throughput(PcieUtilCounter::Send).unwrap(), 100);
    assert_eq!(card.pcie_throughput(PcieUtilCounter::Receive).unwrap(), 200);

    let link = card.link_wrapper_for(0);
    assert!(link.is_active().unwrap());
    assert_eq!(link.version().unwrap(), 6);
    assert_eq!(link.remote_pci_info().unwrap().bus_id, "00000000:C1:00.0");
    assert!(link.has_capability(Capability::P2p).unwrap());
    assert!(!link.has_capability(Capability::SysMemAccess).unwrap());
    for (counter, count) in [
        (ErrorCounter::DlReplay, 2),
        (ErrorCounter::DlRecovery, 3),
        (ErrorCounter::DlCrcFlit, 1),
        (ErrorCounter::DlCrcData, 1),
    ] {
        assert_eq!(link.error_counter(counter).unwrap(), count);
    }
    assert!(!card.link_wrapper_for(17).is_active().unwrap());
    unsupported(card.link_wrapper_for(1).is_active());
    assert!(matches!(card.link_wrapper_for(18).is_active(), Err(NvmlError::InvalidArg)));
}

/// Correctable, uncorrectable, pending, failed; the wrapper has no call for it.
#[expect(unsafe_code, reason = "the wrapper has no call for it")]
fn remapped_rows(card: &Device<'_>) -> Result<[u32; 4], u32> {
    let [mut a, mut b, mut c, mut d] = [0; 4];
    let lib = card.nvml().lib();
    match unsafe { lib.nvmlDeviceGetRemappedRows(card.handle(), &mut a, &mut b, &mut c, &mut d) } {
        0 => Ok([a, b, c, d]),
        code => Err(code),
    }
}

#[expect(unsafe_code, reason = "the wrapper has no call for it")]
fn row_histogram(card: &Device<'_>) -> Result<[u32; 5], u32> {
    unsafe {
        let mut rows = std::mem::zeroed();
        match card.nvml().lib().nvmlDeviceGetRowRemapperHistogram(card.handle(), &mut rows) {
            0 => Ok([rows.max, rows.high, rows.partial, rows.low, rows.none]),
            code => Err(code),
        }
    }
}

#[test]
fn each_field_has_its_own_value_and_its_own_answer() {
    let fake = FakeNvml::new(CARDS);
    let nvml = open(&fake);
    let card = nvml.device_by_index(0).unwrap();
    let wide = [
        (field_id::NVML_FI_DEV_TOTAL_ENERGY_CONSUMPTION, 123_456_789_012),
        (field_id::NVML_FI_DEV_ECC_SBE_VOL_TOTAL, 1),
        (field_id::NVML_FI_DEV_ECC_DBE_VOL_TOTAL, 2),
        (field_id::NVML_FI_DEV_ECC_DBE_AGG_TOTAL, 4),
        (field_id::NVML_FI_DEV_NVLINK_CRC_FLIT_ERROR_COUNT_L0, 1),
        (field_id::NVML_FI_DEV_NVLINK_CRC_FLIT_ERROR_COUNT_TOTAL, 11),
        (field_id::NVML_FI_DEV_NVLINK_REPLAY_ERROR_COUNT_TOTAL, 2),
        (field_id::NVML_FI_DEV_NVLINK_THROUGHPUT_DATA_TX, 5),
        (field_id::NVML_FI_DEV_NVLINK_COUNT_RCV_BYTES, 6 * 1024),
        (field_id::NVML_FI_DEV_PCIE_COUNT_TX_BYTES, 8_000_000_000),
    ];
    for (id, value) in wide {
        let found = field(&card, id);
        assert!(matches!(found, Ok(SampleValue::U64(it)) if it == value), "{id}: {found:?}");
    }
    let narrow = [
        (field_id::NVML_FI_DEV_MEMORY_TEMP, 71),
        (field_id::NVML_FI_DEV_POWER_AVERAGE, 612_345),
        (field_id::NVML_FI_DEV_POWER_INSTANT, 620_000),
        (field_id::NVML_FI_DEV_PCIE_REPLAY_COUNTER, 7),
        (field_id::NVML_FI_DEV_PCIE_COUNT_CORRECTABLE_ERRORS, 11),
        (field_id::NVML_FI_DEV_NVLINK_LINK_COUNT, 2),
        (field_id::NVML_FI_DEV_REMAPPED_UNC, 6),
        (field_id::NVML_FI_DEV_GET_GPU_RECOVERY_ACTION, 4),
    ];
    for (id, value) in narrow {
        let found = field(&card, id);
        assert!(matches!(found, Ok(SampleValue::U32(it)) if it == value), "{id}: {found:?}");
    }
    // One that the card lacks does not spoil the others of the same call.
    let ids = [field_id::NVML_FI_DEV_PCIE_COUNT_NON_FATAL_ERROR, field_id::NVML_FI_DEV_MEMORY_TEMP];
    let both = card.field_values_for(&ids.map(FieldId)).unwrap();
    assert!(matches!(both[0].as_ref().unwrap().value, Err(NvmlError::NotSupported)));
    assert!(matches!(both[1].as_ref().unwrap().value, Ok(SampleValue::U32(71))));
}

#[test]
fn what_a_card_lacks_is_not_supported() {
    let fake = FakeNvml::new(CARDS);
    let nvml = open(&fake);
    let bare = nvml.device_by_index(1).unwrap();
    assert_eq!(bare.name().unwrap(), "bare");
    unsupported(bare.memory_info());
    unsupported(bare.bar1_memory_info());
    unsupported(bare.utilization_rates());
    unsupported(bare.total_energy_consumption());
    unsupported(bare.power_management_limit());
    unsupported(bare.current_throttle_reasons());
    unsupported(bare.is_ecc_enabled());
    unsupported(bare.total_ecc_errors(MemoryError::Corrected, EccCounter::Volatile));
    unsupported(bare.retired_pages(RetirementCause::DoubleBitEccError));
    unsupported(bare.mig_mode());
    unsupported(bare.compute_mode());
    unsupported(bare.serial());
    assert_eq!((remapped_rows(&bare), row_histogram(&bare)), (Err(3), Err(3)));
    for id in
        [field_id::NVML_FI_DEV_MEMORY_TEMP, field_id::NVML_FI_DEV_GET_GPU_RECOVERY_ACTION, 200]
    {
        unsupported(field(&bare, id));
    }
    assert_eq!(bare.running_compute_processes().unwrap(), []);
}

#[test]
fn processes_are_listed_by_kind_with_their_shares() {
    let fake = FakeNvml::new(CARDS);
    let nvml = open(&fake);
    let card = nvml.device_by_index(0).unwrap();
    let compute = card.running_compute_processes().unwrap();
    assert_eq!(compute.len(), 1);
    assert_eq!((compute[0].pid, &compute[0].used_gpu_memory), (4100, &UsedGpuMemory::Used(5)));
    assert_eq!(compute[0].gpu_instance_id, None);
    let graphics = card.running_graphics_processes_v2().unwrap();
    assert_eq!(graphics[0].used_gpu_memory, UsedGpuMemory::Unavailable);
    assert_eq!(card.mps_running_compute_processes().unwrap()[0].pid, 4101);

    let samples = card.process_utilization_stats(0).unwrap();
    assert_eq!(samples.len(), 1, "one has shares, the others were not seen at work");
    let sample = &samples[0];
    assert_eq!((sample.pid, sample.sm_util, sample.mem_util), (4100, 61, 31));
    assert_eq!((sample.enc_util, sample.dec_util), (1, 2));
    let later = card.process_utilization_stats(sample.timestamp + 3_600_000_000);
    assert!(matches!(later, Err(NvmlError::NotFound)), "nothing new: {later:?}");
}

#[test]
fn energy_follows_the_power_in_pieces() {
    let state = |power_mw: u64, epoch: u64| {
        format!("gpu 0 uuid=a energy=auto energy_mj=1000 energy_epoch={epoch} power_mw={power_mw}")
    };
    let before = Instant::now();
    let fake = FakeNvml::new(&state(1_000_000, 0));
    let nvml = open(&fake);
    let opened = Instant::now();
    let card = nvml.device_by_index(0).unwrap();
    let read = || card.total_energy_consumption().unwrap() - 1000;
    // A kilowatt gives as many millijoules as there are microseconds. A call lies between two looks at the clock.
    while read() < 20_000 {}
    let least = opened.elapsed().as_micros() as u64;
    let first = read();
    assert!((least..=before.elapsed().as_micros() as u64).contains(&first), "{first}");

    fake.set(&state(0, 0));
    let second = read();
    let most = before.elapsed().as_micros() as u64;
    assert!((first..=most).contains(&second), "{first} {second} {most}");
    for _ in 0..1000 {
        assert_eq!(read(), second, "without power nothing flows, and nothing is taken back");
    }

    fake.set(&state(0, 1));
    assert_eq!(read(), 0, "another epoch begins anew");
}

#[test]
fn two_threads_ask_while_the_state_changes_and_each_answer_is_of_one_state() {
    let state = |n: u64| format!("gpu 0 uuid=a mem_total={n} mem_used={n} mem_free={n}\n");
    let fake = FakeNvml::new(&state(0));
    let nvml = open(&fake);
    thread::scope(|scope| {
        let readers: Vec<_> = (0..2)
            .map(|_| {
                scope.spawn(|| {
                    let card = nvml.device_by_index(0).unwrap();
                    let mut last = 0;
                    while last < 300 {
                        let memory = card.memory_info().unwrap();
                        assert_eq!((memory.total, memory.total), (memory.used, memory.free));
                        assert!(memory.total >= last, "{} after {last}", memory.total);
                        last = memory.total;
                    }
                })
            })
            .collect();
        for n in 1..=300 {
            fake.set(&state(n));
        }
        for reader in readers {
            reader.join().unwrap();
        }
    });
}

#[test]
fn a_divided_card_has_devices_of_its_own() {
    let fake = FakeNvml::new(&format!(
        "gpu 0 uuid=GPU-a name=H200 util=5 mem_util=5 power_mw=1 mig=1 mem_total={0} mem_used=0 mem_free={0}\n\
mig 0 0 uuid=MIG-a name=\"H200 MIG 1g.18gb\" gi=9 ci=0 mem_total={1} mem_used=3 mem_free={2} sm_count=16 slices=1\n\
mig 0 3 uuid=MIG-b gi=11 ci=1 mem_total=5 mem_used=2 mem_free=3\n\
proc 0 pid=1 gi=9 ci=0 mem=3 sm=1\nproc 0 pid=2 gi=11 ci=1 mem=2\ngpu 1 uuid=GPU-b mig=0\n",
        141 * GIB,
        18 * GIB,
        18 * GIB - 3
    ));
    let nvml = open(&fake);
    let card = nvml.device_by_index(0).unwrap();
    assert_eq!(card.mig_mode().unwrap().current, 1);
    assert_eq!(card.mig_device_count().unwrap(), 7, "the places, not the devices");
    assert!(!card.mig_is_mig_device_handle().unwrap());
    let pids = |device: &Device<'_>| -> Vec<(u32, Option<u32>)> {
        let all = device.running_compute_processes().unwrap();
        all.iter().map(|process| (process.pid, process.gpu_instance_id)).collect()
    };
    assert_eq!(pids(&card), [(1, Some(9)), (2, Some(11))]);
    unsupported(card.utilization_rates());
    unsupported(card.process_utilization_stats(0));
    assert_eq!(card.power_usage().unwrap(), 1);

    let first = card.mig_device_by_index(0).unwrap();
    assert!(first.mig_is_mig_device_handle().unwrap());
    assert_eq!(first.uuid().unwrap(), "MIG-a");
    assert_eq!(first.mig_parent_device().unwrap().uuid().unwrap(), "GPU-a");
    assert_eq!(first.memory_info().unwrap().used, 3);
    assert_eq!(pids(&first), [(1, Some(9))]);
    let attributes = first.attributes().unwrap();
    assert_eq!((attributes.multiprocessor_count, attributes.memory_size_mb), (16, 18 << 10));
    unsupported(first.power_usage());
    assert_eq!(instances(&first), (Ok(9), Ok(0)));
    assert_eq!(instances(&card), (Err(3), Err(3)));

    let fourth = nvml.device_by_uuid("MIG-b").unwrap();
    assert_eq!((fourth.index().unwrap(), fourth.name().unwrap().as_str()), (3, "H200"));
    assert_eq!(pids(&fourth), [(2, Some(11))]);
    assert!(matches!(card.mig_device_by_index(1), Err(NvmlError::NotFound)));
    assert!(matches!(card.mig_device_by_index(7), Err(NvmlError::InvalidArg)));
    let whole = nvml.device_by_index(1).unwrap();
    assert_eq!(whole.mig_device_count().unwrap(), 0);
    assert!(matches!(whole.mig_device_by_index(0), Err(NvmlError::NotFound)));
}

#[expect(unsafe_code, reason = "the wrapper has no call for it")]
fn instances(device: &Device<'_>) -> (Result<u32, u32>, Result<u32, u32>) {
    let (mut gpu, mut compute) = (0, 0);
    let lib = device.nvml().lib();
    let codes = unsafe {
        (
            lib.nvmlDeviceGetGpuInstanceId(device.handle(), &mut gpu),
            lib.nvmlDeviceGetComputeInstanceId(device.handle(), &mut compute),
        )
    };
    let told = |code, id| if code == 0 { Ok(id) } else { Err(code) };
    (told(codes.0, gpu), told(codes.1, compute))
}

#[test]
fn a_card_tells_which_events_it_has() {
    let fake = FakeNvml::new(CARDS);
    let nvml = open(&fake);
    let card = nvml.device_by_index(0).unwrap();
    let supported = card.supported_event_types().unwrap();
    assert!(supported.contains(EventTypes::CRITICAL_XID_ERROR | EventTypes::PSTATE_CHANGE));
    assert!(!supported.contains(EventTypes::SINGLE_BIT_ECC_ERROR));
    let set = nvml.create_event_set().unwrap();
    let refused = card.register_events(EventTypes::SINGLE_BIT_ECC_ERROR, set);
    assert!(matches!(refused.unwrap_err().error, NvmlError::NotSupported));
}
