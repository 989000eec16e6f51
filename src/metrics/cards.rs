//! What the cards say, one row for each reading: under our own names in base units, and under the names
//! that dashboards made for dcgm-exporter ask for, where the meaning is the same.
//!
//! Rows are made from the newest snapshot when a page is made; a reading that a card lacks is absent.
//! Names and units of the second kind: dcgm-exporter, `etc/default-counters.csv`.

use crate::snapshot::{DriverState, EccCounts, GpuPlane, GpuState, NvLink};
use arc_swap::ArcSwap;
use prometheus_client::{
    collector::Collector,
    encoding::{DescriptorEncoder, EncodeLabelSet, NoLabelSet},
    metrics::MetricType,
};
use std::{fmt, sync::Arc};

/// One reading of a card.
struct Row {
    name: &'static str,
    help: &'static str,
    /// It only grows, but for the driver's or the card's new start.
    counter: bool,
    of: fn(&GpuState) -> Option<f64>,
}

const fn gauge(name: &'static str, help: &'static str, of: fn(&GpuState) -> Option<f64>) -> Row {
    Row { name, help, counter: false, of }
}

const fn counter(name: &'static str, help: &'static str, of: fn(&GpuState) -> Option<f64>) -> Row {
    Row { name, help, counter: true, of }
}

/// Under our own names: seconds, bytes, watts, joules, ratios.
const OWN: [Row; 34] = [
    gauge("gpu_memory_used_bytes", "GPU memory in use", |gpu| bytes(gpu.memory_used)),
    gauge("gpu_memory_free_bytes", "GPU memory that nobody holds", |gpu| bytes(gpu.memory_free)),
    gauge("gpu_memory_reserved_bytes", "GPU memory that the driver keeps for itself", |gpu| {
        bytes(gpu.memory_reserved)
    }),
    gauge("gpu_memory_total_bytes", "GPU memory in all", |gpu| bytes(gpu.memory_total)),
    gauge("gpu_bar1_used_bytes", "Window into GPU memory in use", |gpu| bytes(gpu.bar1_used)),
    gauge("gpu_bar1_total_bytes", "Window into GPU memory in all", |gpu| bytes(gpu.bar1_total)),
    gauge("gpu_utilisation_ratio", "Share of time with a kernel running", |gpu| {
        gpu.utilisation_percent.map(|percent| f64::from(percent) / 100.0)
    }),
    gauge("gpu_memory_utilisation_ratio", "Share of time with memory being used", |gpu| {
        gpu.memory_utilisation_percent.map(|percent| f64::from(percent) / 100.0)
    }),
    gauge("gpu_power_watts", "Power drawn", |gpu| gpu.power_w),
    gauge("gpu_power_limit_watts", "Power limit in force", |gpu| gpu.power_limit_w),
    counter("gpu_driver_energy_joules", "Energy since the driver was loaded", |gpu| {
        gpu.energy_mj.map(|millijoules| millijoules as f64 / 1e3)
    }),
    gauge("gpu_temperature_celsius", "Core temperature", |gpu| whole(gpu.temperature_c)),
    gauge("gpu_memory_temperature_celsius", "Memory temperature", |gpu| {
        whole(gpu.memory_temperature_c)
    }),
    gauge("gpu_slowdown_celsius", "Temperature from which on the card slows down", |gpu| {
        whole(gpu.slowdown_c)
    }),
    gauge("gpu_sm_clock_hertz", "Clock of the multiprocessors", |gpu| hertz(gpu.clocks.sm_mhz)),
    gauge("gpu_sm_clock_max_hertz", "Clock of the multiprocessors at most", |gpu| {
        hertz(gpu.clocks.sm_max_mhz)
    }),
    gauge("gpu_memory_clock_hertz", "Clock of the memory", |gpu| hertz(gpu.clocks.memory_mhz)),
    gauge("gpu_throttled", "1 while the card slows down to protect itself", |gpu| {
        gpu.throttle.map(|why| f64::from(u8::from(why.is_slowdown())))
    }),
    counter(
        "gpu_ecc_corrected_errors",
        "Memory errors corrected since the driver's start",
        |gpu| ecc(gpu, |ecc| ecc.corrected_volatile),
    ),
    counter(
        "gpu_ecc_uncorrected_errors",
        "Memory errors not correctable since the driver's start",
        |gpu| ecc(gpu, |ecc| ecc.uncorrected_volatile),
    ),
    counter("gpu_ecc_corrected_lifetime_errors", "Memory errors corrected in all", |gpu| {
        ecc(gpu, |ecc| ecc.corrected_aggregate)
    }),
    counter("gpu_ecc_uncorrected_lifetime_errors", "Memory errors not correctable in all", |gpu| {
        ecc(gpu, |ecc| ecc.uncorrected_aggregate)
    }),
    gauge("gpu_retired_pages", "Memory pages that are no longer used", |gpu| {
        let retired = gpu.retired_pages?;
        Some(
            f64::from(retired.single_bit.unwrap_or(0)) + f64::from(retired.double_bit.unwrap_or(0)),
        )
    }),
    gauge("gpu_retired_pages_pending", "1 while pages wait for a reset to be retired", |gpu| {
        truth(gpu.retired_pages?.pending)
    }),
    gauge("gpu_remapped_rows", "Memory rows replaced by spare ones", |gpu| {
        let rows = gpu.remapped_rows?;
        Some(f64::from(rows.correctable) + f64::from(rows.uncorrectable))
    }),
    gauge("gpu_remapped_rows_pending", "1 while rows wait for a reset to be replaced", |gpu| {
        truth(Some(gpu.remapped_rows?.pending))
    }),
    gauge("gpu_row_remapping_failed", "1 when no spare row was left", |gpu| {
        truth(Some(gpu.remapped_rows?.failed))
    }),
    gauge("gpu_pcie_generation", "PCIe generation now", |gpu| whole(gpu.pcie.generation)),
    gauge("gpu_pcie_lanes", "PCIe lanes now", |gpu| whole(gpu.pcie.width)),
    counter("gpu_pcie_replays", "PCIe packets sent again", |gpu| {
        gpu.pcie.replays.map(|replays| replays as f64)
    }),
    gauge("gpu_nvlinks_active", "NVLinks that are up", |gpu| {
        let up = gpu.nvlinks.iter().filter(|link| link.active).count();
        (!gpu.nvlinks.is_empty()).then_some(up as f64)
    }),
    counter("gpu_nvlink_errors", "NVLink errors: CRC, packets sent again, new trainings", |gpu| {
        nvlink(gpu, |link| {
            let all = [link.crc_errors, link.replay_errors, link.recovery_errors];
            all.iter().any(Option::is_some).then(|| all.into_iter().flatten().sum())
        })
    }),
    gauge("gpu_processes", "Processes that hold memory on the GPU", |gpu| {
        gpu.processes.as_ref().map(|processes| processes.len() as f64)
    }),
    gauge("gpu_answering", "1 when the card answered the newest round of readings", |gpu| {
        truth(Some(gpu.answering == crate::snapshot::Answering::Yes))
    }),
];

/// Under dcgm-exporter's names, in its units: percent, MiB, MHz, millijoules.
const DCGM: [Row; 24] = [
    gauge("DCGM_FI_DEV_SM_CLOCK", "SM clock frequency (in MHz).", |gpu| whole(gpu.clocks.sm_mhz)),
    gauge("DCGM_FI_DEV_MEM_CLOCK", "Memory clock frequency (in MHz).", |gpu| {
        whole(gpu.clocks.memory_mhz)
    }),
    gauge("DCGM_FI_DEV_GPU_TEMP", "GPU temperature (in C).", |gpu| whole(gpu.temperature_c)),
    gauge("DCGM_FI_DEV_MEMORY_TEMP", "Memory temperature (in C).", |gpu| {
        whole(gpu.memory_temperature_c)
    }),
    gauge("DCGM_FI_DEV_POWER_USAGE", "Power draw (in W).", |gpu| gpu.power_w),
    gauge("DCGM_FI_DEV_TOTAL_ENERGY_CONSUMPTION", "Total energy since boot (in mJ).", |gpu| {
        gpu.energy_mj.map(|millijoules| millijoules as f64)
    }),
    gauge("DCGM_FI_DEV_GPU_UTIL", "GPU utilization (in %).", |gpu| whole(gpu.utilisation_percent)),
    gauge("DCGM_FI_DEV_MEM_COPY_UTIL", "Memory utilization (in %).", |gpu| {
        whole(gpu.memory_utilisation_percent)
    }),
    gauge("DCGM_FI_DEV_FB_FREE", "Framebuffer memory free (in MiB).", |gpu| mib(gpu.memory_free)),
    gauge("DCGM_FI_DEV_FB_USED", "Framebuffer memory used (in MiB).", |gpu| mib(gpu.memory_used)),
    gauge("DCGM_FI_DEV_FB_RESERVED", "Framebuffer memory reserved (in MiB).", |gpu| {
        mib(gpu.memory_reserved)
    }),
    gauge("DCGM_FI_DEV_FB_TOTAL", "Framebuffer memory in all (in MiB).", |gpu| {
        mib(gpu.memory_total)
    }),
    gauge("DCGM_FI_DEV_CLOCK_THROTTLE_REASONS", "Clock throttle reasons (bits).", |gpu| {
        gpu.throttle.map(|why| why.0 as f64)
    }),
    gauge("DCGM_FI_DEV_ECC_SBE_VOL_TOTAL", "Single-bit volatile ECC errors.", |gpu| {
        ecc(gpu, |ecc| ecc.corrected_volatile)
    }),
    gauge("DCGM_FI_DEV_ECC_DBE_VOL_TOTAL", "Double-bit volatile ECC errors.", |gpu| {
        ecc(gpu, |ecc| ecc.uncorrected_volatile)
    }),
    gauge("DCGM_FI_DEV_ECC_SBE_AGG_TOTAL", "Single-bit persistent ECC errors.", |gpu| {
        ecc(gpu, |ecc| ecc.corrected_aggregate)
    }),
    gauge("DCGM_FI_DEV_ECC_DBE_AGG_TOTAL", "Double-bit persistent ECC errors.", |gpu| {
        ecc(gpu, |ecc| ecc.uncorrected_aggregate)
    }),
    gauge("DCGM_FI_DEV_RETIRED_SBE", "Pages retired due to single-bit errors.", |gpu| {
        whole(gpu.retired_pages?.single_bit)
    }),
    gauge("DCGM_FI_DEV_RETIRED_DBE", "Pages retired due to double-bit errors.", |gpu| {
        whole(gpu.retired_pages?.double_bit)
    }),
    gauge(
        "DCGM_FI_DEV_CORRECTABLE_REMAPPED_ROWS",
        "Rows remapped for correctable errors.",
        |gpu| Some(f64::from(gpu.remapped_rows?.correctable)),
    ),
    gauge(
        "DCGM_FI_DEV_UNCORRECTABLE_REMAPPED_ROWS",
        "Rows remapped for uncorrectable errors.",
        |gpu| Some(f64::from(gpu.remapped_rows?.uncorrectable)),
    ),
    gauge("DCGM_FI_DEV_ROW_REMAP_FAILURE", "Whether remapping of rows has failed.", |gpu| {
        truth(Some(gpu.remapped_rows?.failed))
    }),
    gauge("DCGM_FI_DEV_PCIE_REPLAY_COUNTER", "PCIe retries.", |gpu| {
        gpu.pcie.replays.map(|replays| replays as f64)
    }),
    gauge(
        "DCGM_FI_DEV_NVLINK_CRC_FLIT_ERROR_COUNT_TOTAL",
        "NVLink flow-control CRC errors.",
        |gpu| nvlink(gpu, |link| link.crc_errors),
    ),
];

fn bytes(bytes: Option<crate::units::Bytes>) -> Option<f64> {
    bytes.map(|bytes| bytes.get() as f64)
}

fn mib(bytes: Option<crate::units::Bytes>) -> Option<f64> {
    bytes.map(|bytes| (bytes.get() >> 20) as f64)
}

fn whole(number: Option<u32>) -> Option<f64> {
    number.map(f64::from)
}

fn hertz(megahertz: Option<u32>) -> Option<f64> {
    megahertz.map(|megahertz| f64::from(megahertz) * 1e6)
}

fn truth(flag: Option<bool>) -> Option<f64> {
    flag.map(|flag| f64::from(u8::from(flag)))
}

fn ecc(gpu: &GpuState, of: impl Fn(&EccCounts) -> Option<u64>) -> Option<f64> {
    of(gpu.ecc.as_ref()?).map(|errors| errors as f64)
}

/// The sum over all links that tell it.
fn nvlink(gpu: &GpuState, of: impl Fn(&NvLink) -> Option<u64>) -> Option<f64> {
    let told: Vec<u64> = gpu.nvlinks.iter().filter_map(of).collect();
    (!told.is_empty()).then(|| told.iter().sum::<u64>() as f64)
}

/// Our own labels of a card.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OwnLabels {
    gpu: String,
    index: u32,
    name: String,
}

/// dcgm-exporter's labels of a card.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct DcgmLabels {
    gpu: u32,
    #[prometheus(flatten)]
    who: DcgmWho,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct DcgmWho {
    uuid: String,
    pci_bus_id: String,
    index: u32,
    model: String,
    instance: Option<u32>,
}

impl EncodeLabelSet for DcgmWho {
    fn encode(
        &self,
        encoder: &mut prometheus_client::encoding::LabelSetEncoder<'_>,
    ) -> Result<(), fmt::Error> {
        use prometheus_client::encoding::EncodeLabel;
        ("UUID", self.uuid.as_str()).encode(encoder.encode_label())?;
        ("pci_bus_id", self.pci_bus_id.as_str()).encode(encoder.encode_label())?;
        ("device", format!("nvidia{}", self.index)).encode(encoder.encode_label())?;
        ("modelName", self.model.as_str()).encode(encoder.encode_label())?;
        match self.instance {
            Some(instance) => ("GPU_I_ID", instance).encode(encoder.encode_label()),
            None => Ok(()),
        }
    }
}

/// The newest readings, shared by the two collectors below.
#[derive(Clone, Debug, Default)]
pub(super) struct Cards(Arc<ArcSwap<GpuPlane>>);

impl Cards {
    /// Takes the readings that the next page is made from.
    pub(super) fn set(&self, plane: &GpuPlane) {
        self.0.store(Arc::new(plane.clone()));
    }
}

/// Rows under our own names.
#[derive(Debug)]
pub(super) struct Own(pub(super) Cards);

/// Rows under dcgm-exporter's names.
#[derive(Debug)]
pub(super) struct Dcgm(pub(super) Cards);

impl Collector for Own {
    fn encode(&self, encoder: DescriptorEncoder<'_>) -> Result<(), fmt::Error> {
        let labels = |gpu: &GpuState| OwnLabels {
            gpu: gpu.id.to_string(),
            index: gpu.index,
            name: gpu.name.clone(),
        };
        rows(&self.0, encoder, &OWN, labels)
    }
}

impl Collector for Dcgm {
    fn encode(&self, encoder: DescriptorEncoder<'_>) -> Result<(), fmt::Error> {
        let labels = |gpu: &GpuState| DcgmLabels {
            gpu: gpu.index,
            who: DcgmWho {
                uuid: gpu.id.to_string(),
                pci_bus_id: gpu.pci_bus_id.clone().unwrap_or_default(),
                index: gpu.index,
                model: gpu.name.clone(),
                instance: gpu.mig.as_ref().and_then(|part| part.gpu_instance),
            },
        };
        rows(&self.0, encoder, &DCGM, labels)
    }
}

fn rows<L: EncodeLabelSet>(
    cards: &Cards,
    mut encoder: DescriptorEncoder<'_>,
    rows: &[Row],
    labels: impl Fn(&GpuState) -> L,
) -> Result<(), fmt::Error> {
    let plane = cards.0.load_full();
    let GpuPlane::Driver(DriverState { gpus, .. }) = &*plane else { return Ok(()) };
    for row in rows {
        let told: Vec<(&GpuState, f64)> =
            gpus.iter().filter_map(|gpu| Some((gpu, (row.of)(gpu)?))).collect();
        if told.is_empty() {
            continue;
        }
        let kind = if row.counter { MetricType::Counter } else { MetricType::Gauge };
        let mut family = encoder.encode_descriptor(row.name, row.help, None, kind)?;
        for (gpu, value) in told {
            let labels = labels(gpu);
            let mut one = family.encode_family(&labels)?;
            // Bytes and counts read better without a fraction; none of them reaches 2^53.
            let whole = (value.fract() == 0.0).then_some(value as i64);
            match (row.counter, whole.and_then(|whole| u64::try_from(whole).ok())) {
                (true, Some(whole)) => {
                    one.encode_counter::<NoLabelSet, u64, u64>(&whole, None)?;
                }
                (true, None) => one.encode_counter::<NoLabelSet, f64, u64>(&value, None)?,
                (false, Some(whole)) => one.encode_gauge(&whole.cast_signed())?,
                (false, None) => one.encode_gauge(&value)?,
            }
        }
    }
    Ok(())
}
