//! The GPU part of the report: every reading, how each card is, and who holds its memory.

use crate::{
    config,
    fault::{Condition, GpuHealth, Needs},
    holding::Holder,
    ids::{GpuId, ServerId},
    pipeline::{Broker, device::Offer},
    snapshot::{
        Answering, Clocks, DriverState, EccCounts, GpuPlane, GpuProcess, GpuState, MigPart, Modes,
        NvLink, Pcie, RecoveryAction, RemappedRows, RetiredPages,
    },
    units::Bytes,
};
use serde::Serialize;
use tokio::time::Instant;

/// What is known of the GPUs.
#[derive(Debug, Serialize)]
pub struct Gpus {
    /// `ok`, `stale`, `no_driver` or `off`.
    pub state: &'static str,
    /// Why there is nothing to show, or nothing new.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub why: Option<String>,
    /// Driver version.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub driver_version: Option<String>,
    /// NVML version.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub nvml_version: Option<String>,
    /// Age of the readings, seconds.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub age_s: Option<f64>,
    /// Each GPU; MIG devices behind their card.
    pub list: Vec<Gpu>,
    /// Model servers that were found by their process on a GPU and that nobody configured.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub found_servers: Vec<Offer>,
}

/// One GPU or MIG device. Names are those of the metrics where both exist.
#[derive(Debug, Serialize)]
pub struct Gpu {
    /// NVML UUID.
    pub uuid: String,
    /// Position in the driver's list, or the last one it had there; `None` if it was never listed.
    pub index: Option<u32>,
    /// Product name; empty where the driver does not list it.
    pub name: String,
    /// What a MIG device is a part of.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mig: Option<MigPart>,
    /// Address on the PCI bus.
    pub pci_bus_id: Option<String>,
    /// How it is: `ok`, `degraded`, `suspect`, `draining`, `lost` or `unknown`.
    pub condition: Condition,
    /// Why, in words, the gravest first.
    pub reasons: Vec<String>,
    /// What the operator must do.
    pub needs: Option<Needs>,
    /// Seconds since its condition changed.
    pub condition_age_s: Option<f64>,
    /// Share of its full work that it is good for.
    pub weight: f64,
    /// Memory in all, bytes.
    pub memory_total_bytes: Option<Bytes>,
    /// Memory in use, bytes.
    pub memory_used_bytes: Option<Bytes>,
    /// Memory free, bytes.
    pub memory_free_bytes: Option<Bytes>,
    /// Memory that the driver keeps, bytes.
    pub memory_reserved_bytes: Option<Bytes>,
    /// The host's window into the memory, in all, bytes.
    pub bar1_total_bytes: Option<Bytes>,
    /// The part of it in use, bytes.
    pub bar1_used_bytes: Option<Bytes>,
    /// Share of time with a kernel running, percent.
    pub utilisation_percent: Option<u32>,
    /// Share of time with memory access, percent.
    pub memory_utilisation_percent: Option<u32>,
    /// Power, watts.
    pub power_w: Option<f64>,
    /// Power limit, watts.
    pub power_limit_w: Option<f64>,
    /// Energy since the driver was loaded, joules.
    pub energy_j: Option<f64>,
    /// Temperature, degrees Celsius.
    pub temperature_c: Option<u32>,
    /// Memory temperature, degrees Celsius.
    pub memory_temperature_c: Option<u32>,
    /// It slows down from here on, degrees Celsius.
    pub slowdown_c: Option<u32>,
    /// It switches off from here on, degrees Celsius.
    pub shutdown_c: Option<u32>,
    /// Clocks.
    pub clocks: Clocks,
    /// Why the clocks are lower than they could be; absent where the card does not tell.
    pub throttle: Option<Vec<&'static str>>,
    /// Errors that ECC saw.
    pub ecc: Option<EccCounts>,
    /// Pages retired after errors.
    pub retired_pages: Option<RetiredPages>,
    /// Rows remapped after errors.
    pub remapped_rows: Option<RemappedRows>,
    /// The connection to the host.
    pub pcie: Pcie,
    /// Connections to other cards.
    pub nvlinks: Vec<NvLink>,
    /// Modes that an operator set.
    pub modes: Modes,
    /// What the driver says the card needs.
    pub recovery: Option<RecoveryAction>,
    /// Processes that hold memory on it, as the driver lists them.
    pub processes: Option<Vec<GpuProcess>>,
    /// Who holds its memory, the largest first; `None` when that is not known.
    pub holders: Option<Vec<Holder>>,
    /// Memory of those holders whose own share the driver does not tell, together, bytes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub untold_bytes: Option<Bytes>,
    /// The model servers that use it.
    pub servers: Vec<ServerId>,
}

/// The GPU part of a daemon's report.
pub fn gpus(broker: &Broker, plane: &GpuPlane) -> Gpus {
    let live = broker.live.load();
    let (health, holdings) = (broker.devices.health(), broker.devices.holdings());
    let mut gpus = readings(plane, &live.settings.gpu);
    gpus.found_servers = broker.devices.offers().to_vec();
    let unlisted = health.iter().filter_map(|health| unlisted(&gpus, health));
    gpus.list.extend(unlisted.collect::<Vec<_>>());
    for gpu in &mut gpus.list {
        let id = GpuId::from(gpu.uuid.as_str());
        if let Some(health) = health.iter().find(|health| health.gpu == id) {
            judge(gpu, health);
        }
        let held = holdings.gpus.iter().find(|holding| holding.gpu == id);
        gpu.holders = held.map(|holding| holding.holders.clone());
        gpu.untold_bytes = held.and_then(|holding| holding.untold);
        let using = holdings.servers.iter().filter(|(_, on)| on.gpus.contains_key(&id));
        gpu.servers = using.map(|(server, _)| server.clone()).collect();
    }
    gpus
}

/// The readings alone, as a reader without a daemon has them.
pub fn readings(plane: &GpuPlane, rules: &config::Gpu) -> Gpus {
    let nothing = |state, why| Gpus {
        state,
        why,
        driver_version: None,
        nvml_version: None,
        age_s: None,
        list: Vec::new(),
        found_servers: Vec::new(),
    };
    match plane {
        GpuPlane::Off => nothing("off", None),
        GpuPlane::NoDriver(why) => nothing("no_driver", Some(why.clone())),
        GpuPlane::Driver(DriverState { driver_version, nvml_version, gpus, read_at, .. }) => {
            let age = read_at.elapsed();
            let stale = age > rules.stale_after;
            Gpus {
                state: if stale { "stale" } else { "ok" },
                why: stale.then(|| {
                    "the driver has not answered since; what is shown is what it said last"
                        .to_owned()
                }),
                driver_version: Some(driver_version.clone()),
                nvml_version: Some(nvml_version.clone()),
                age_s: Some(age.as_secs_f64()),
                list: gpus.iter().map(|state| gpu(state, stale)).collect(),
                found_servers: Vec::new(),
            }
        }
    }
}

/// A card that the driver does not list, of which something is known all the same: it is gone, or was sick
/// when the driver went. Whoever mends the host must see it.
fn unlisted(gpus: &Gpus, health: &GpuHealth) -> Option<Gpu> {
    let is_listed = gpus.list.iter().any(|gpu| gpu.uuid == health.gpu.as_str());
    (!is_listed && gpus.state != "off").then(|| {
        let blank = GpuState::blank(health.gpu.clone(), health.index.unwrap_or(0), String::new());
        Gpu { index: health.index, ..gpu(&blank, true) }
    })
}

fn judge(gpu: &mut Gpu, health: &GpuHealth) {
    gpu.condition = health.condition;
    gpu.reasons.clone_from(&health.reasons);
    gpu.needs = health.needs;
    let age = Instant::now().saturating_duration_since(health.since);
    gpu.condition_age_s = Some(age.as_secs_f64());
    gpu.weight = health.weight;
}

fn gpu(state: &GpuState, stale: bool) -> Gpu {
    let (condition, reasons) = match &state.answering {
        _ if stale => (Condition::Unknown, Vec::new()),
        Answering::Yes => (Condition::Ok, Vec::new()),
        Answering::Lost(why) => (Condition::Lost, vec![why.clone()]),
        Answering::No(why) => (Condition::Unknown, vec![why.clone()]),
    };
    Gpu {
        uuid: state.id.to_string(),
        index: Some(state.index),
        name: state.name.clone(),
        mig: state.mig.clone(),
        pci_bus_id: state.pci_bus_id.clone(),
        condition,
        reasons,
        needs: None,
        condition_age_s: None,
        weight: 1.0,
        memory_total_bytes: state.memory_total,
        memory_used_bytes: state.memory_used,
        memory_free_bytes: state.memory_free,
        memory_reserved_bytes: state.memory_reserved,
        bar1_total_bytes: state.bar1_total,
        bar1_used_bytes: state.bar1_used,
        utilisation_percent: state.utilisation_percent,
        memory_utilisation_percent: state.memory_utilisation_percent,
        power_w: state.power_w,
        power_limit_w: state.power_limit_w,
        energy_j: state.energy_mj.map(|millijoules| millijoules as f64 / 1e3),
        temperature_c: state.temperature_c,
        memory_temperature_c: state.memory_temperature_c,
        slowdown_c: state.slowdown_c,
        shutdown_c: state.shutdown_c,
        clocks: state.clocks,
        throttle: state.throttle.map(|why| why.names().collect()),
        ecc: state.ecc,
        retired_pages: state.retired_pages,
        remapped_rows: state.remapped_rows,
        pcie: state.pcie,
        nvlinks: state.nvlinks.clone(),
        modes: state.modes.clone(),
        recovery: state.recovery,
        processes: state.processes.clone(),
        holders: None,
        untold_bytes: None,
        servers: Vec::new(),
    }
}
