//! NVML calls, what their errors mean, and what is missing on which card.
//!
//! Only the GPU thread may use this. Nothing here waits, retries or publishes.

use super::Probe;
use crate::{
    ids::GpuId,
    snapshot::{DriverState, GpuPlane, GpuProcess, GpuState},
    units::Bytes,
};
use nvml_wrapper::{
    Device, Nvml,
    enum_wrappers::device::TemperatureSensor,
    enums::device::UsedGpuMemory,
    error::{NvmlError, nvml_sym, nvml_try},
    struct_wrappers::device::ProcessInfo,
};
use std::{
    collections::{BTreeMap, BTreeSet},
    mem::MaybeUninit,
    path::{Path, PathBuf},
};
use tokio::time::Instant;

/// The library the system's loader is asked for when none is configured.
const LIBRARY: &str = "libnvidia-ml.so.1";

/// More cards than any node has; a larger count is a broken driver, not a node.
const CARDS_MAX: u32 = 256;

/// Room for a process's name, in bytes. NVML cuts what is longer.
const PROCESS_NAME_MAX: usize = 1024;

/// `NVML_ERROR_ARGUMENT_VERSION_MISMATCH`, which the wrapper has no variant for.
const VERSION_MISMATCH: u32 = 25;

/// Reads GPUs through the driver's own library, which is opened at the first round and again after the
/// driver was lost.
pub(super) struct NvmlProbe {
    library: PathBuf,
    session: Option<Session>,
}

/// NVML, initialised. Dropping it shuts NVML down, which may block.
struct Session {
    nvml: Nvml,
    driver_version: String,
    nvml_version: String,
    /// One for each index. NVML keeps its order for as long as it is initialised.
    cards: Vec<Card>,
}

/// What is remembered about one card between rounds.
struct Card {
    index: u32,
    identity: Option<Identity>,
    /// The driver gave it up in the round before.
    lost: bool,
    /// Readings that failed once and were logged. A card that lacks one would fill the log otherwise.
    logged: BTreeSet<&'static str>,
}

/// What never changes about a card, and what names it when it no longer answers.
#[derive(Clone)]
struct Identity {
    id: GpuId,
    name: String,
}

struct Memory {
    total: u64,
    used: u64,
    free: u64,
}

/// How far a failed call reaches.
enum Fault {
    /// The session is worth nothing any more.
    Driver(NvmlError),
    /// This card does not answer; others may.
    Card(NvmlError),
}

// === impl NvmlProbe ===

impl NvmlProbe {
    /// Nothing is opened yet. `None` lets the system's loader find the library.
    pub(super) fn new(library: Option<PathBuf>) -> Self {
        Self { library: library.unwrap_or_else(|| LIBRARY.into()), session: None }
    }

    fn round(&mut self) -> Result<DriverState, NvmlError> {
        // Taken out, so that a session that failed is shut down and not asked again.
        let mut session = match self.session.take() {
            Some(session) => session,
            None => Session::open(&self.library)?,
        };
        let state = session.round()?;
        self.session = Some(session);
        Ok(state)
    }
}

impl Probe for NvmlProbe {
    fn read(&mut self) -> GpuPlane {
        match self.round() {
            Ok(state) => GpuPlane::Driver(state),
            Err(error) => GpuPlane::NoDriver(explain(&error, &self.library)),
        }
    }
}

/// Why there is no driver, for the person who has to mend it.
fn explain(error: &NvmlError, library: &Path) -> String {
    let library = library.display();
    match error {
        NvmlError::LibloadingError(error) => {
            let said = error.to_string();
            // The file itself, not one that it needs in turn.
            if said.contains("No such file") && said.contains(&library.to_string()) {
                format!("no NVIDIA driver: {library} not found")
            } else {
                format!("no NVIDIA driver: {library} does not load: {said}")
            }
        }
        NvmlError::FailedToLoadSymbol(_) => {
            format!("no NVIDIA driver: {library} is not an NVML library ({error})")
        }
        NvmlError::DriverNotLoaded => {
            format!("no NVIDIA driver: {library} is there, but the kernel module is not loaded")
        }
        NvmlError::LibRmVersionMismatch => format!(
            "the NVIDIA driver was replaced: {library} and the loaded kernel module differ in version; \
             reload the module or reboot"
        ),
        NvmlError::NoPermission => {
            "no permission to use the NVIDIA driver: let this user open /dev/nvidiactl and /dev/nvidia*"
                .into()
        }
        error => format!("the NVIDIA driver does not answer: {error}"),
    }
}

// === impl Session ===

impl Session {
    fn open(library: &Path) -> Result<Self, NvmlError> {
        let nvml = Nvml::builder().lib_path(library.as_os_str()).init()?;
        let or_unknown =
            |text: Result<String, NvmlError>| text.unwrap_or_else(|_| "unknown".into());
        Ok(Self {
            driver_version: or_unknown(nvml.sys_driver_version()),
            nvml_version: or_unknown(nvml.sys_nvml_version()),
            cards: Vec::new(),
            nvml,
        })
    }

    /// Asks every card. An error means that the driver is gone, not a card.
    fn round(&mut self) -> Result<DriverState, NvmlError> {
        let count = self.nvml.device_count()?.min(CARDS_MAX);
        if self.cards.len() != count as usize {
            self.cards = (0..count).map(Card::new).collect();
        }
        let mut gpus = Vec::with_capacity(self.cards.len());
        let mut answered = self.cards.is_empty();
        let mut refusal = None;
        for card in &mut self.cards {
            match card.read(&self.nvml) {
                Ok(state) => {
                    answered = true;
                    gpus.push(state);
                }
                Err(Fault::Driver(error)) => return Err(error),
                Err(Fault::Card(error)) => {
                    answered |= is_lost(&error);
                    card.give_up(&error);
                    gpus.extend(card.unread());
                    refusal = Some(error);
                }
            }
        }
        match refusal {
            // No card answers, and none of them is said to be lost: it is the driver that fails.
            Some(error) if !answered => Err(error),
            _ => Ok(DriverState {
                driver_version: self.driver_version.clone(),
                nvml_version: self.nvml_version.clone(),
                session: 1,
                gpus,
                read_at: Instant::now(),
            }),
        }
    }
}

// === impl Card ===

impl Card {
    fn new(index: u32) -> Self {
        Self { index, identity: None, lost: false, logged: BTreeSet::new() }
    }

    fn read(&mut self, nvml: &Nvml) -> Result<GpuState, Fault> {
        let device = nvml.device_by_index(self.index).map_err(whole)?;
        let identity = match &self.identity {
            Some(identity) => identity.clone(),
            None => self.identity.insert(identify(&device)?).clone(),
        };
        let mut state = blank(self.index, identity);

        if let Some(memory) = self.keep("memory", memory(nvml, &device))? {
            state.memory_total = Some(Bytes(memory.total));
            state.memory_used = Some(Bytes(memory.used));
            state.memory_free = Some(Bytes(memory.free));
        }
        if let Some(busy) = self.keep("utilisation", device.utilization_rates())? {
            // Drivers have been seen to report shares that cannot be; no reading is better.
            state.utilisation_percent = Some(busy.gpu).filter(|percent| *percent <= 100);
            state.memory_utilisation_percent = Some(busy.memory).filter(|percent| *percent <= 100);
        }
        state.power_w = self.keep("power", device.power_usage())?.map(watts);
        state.power_limit_w = self.keep("power limit", device.enforced_power_limit())?.map(watts);
        state.temperature_c =
            self.keep("temperature", device.temperature(TemperatureSensor::Gpu))?;
        state.processes =
            self.keep("processes", processes(&device))?.map(|found| name_all(nvml, found));

        if self.lost {
            self.lost = false;
            tracing::info!(gpu = %state.id, index = self.index, "the GPU answers again");
        }
        Ok(state)
    }

    /// A reading that failed is `None`, unless its error says more about the card or the driver. After
    /// such an error no further call is made: each may block for long on a failing card.
    fn keep<T>(
        &mut self,
        reading: &'static str,
        result: Result<T, NvmlError>,
    ) -> Result<Option<T>, Fault> {
        match result {
            Ok(value) => Ok(Some(value)),
            Err(error) if is_lost(&error) || is_driver_gone(&error) => Err(whole(error)),
            Err(error) => {
                if self.logged.insert(reading) {
                    tracing::debug!(index = self.index, reading, %error, "no such reading from this GPU");
                }
                Ok(None)
            }
        }
    }

    /// Says once that the card does not answer. NVML stays open: a card that was lost comes back only by
    /// a reset or a reboot, and a reset needs every user of the card stopped, this daemon among them.
    fn give_up(&mut self, error: &NvmlError) {
        if !self.lost {
            self.lost = true;
            let gpu = self.identity.as_ref().map_or("unknown", |identity| identity.id.as_str());
            tracing::warn!(gpu, index = self.index, %error, "the GPU does not answer");
        }
    }

    /// The card without readings; nothing when it never told its name.
    fn unread(&self) -> Option<GpuState> {
        self.identity.clone().map(|identity| blank(self.index, identity))
    }
}

fn identify(device: &Device<'_>) -> Result<Identity, Fault> {
    let id = device.uuid().map_err(whole)?.into();
    match device.name() {
        Ok(name) => Ok(Identity { id, name }),
        Err(error) if is_lost(&error) || is_driver_gone(&error) => Err(whole(error)),
        Err(_) => Ok(Identity { id, name: "unknown".into() }),
    }
}

fn blank(index: u32, Identity { id, name }: Identity) -> GpuState {
    GpuState::blank(id, index, name)
}

fn watts(milliwatts: u32) -> f64 {
    f64::from(milliwatts) / 1000.0
}

// === What errors mean ===

/// A fault of more than one reading.
fn whole(error: NvmlError) -> Fault {
    if is_driver_gone(&error) { Fault::Driver(error) } else { Fault::Card(error) }
}

fn is_driver_gone(error: &NvmlError) -> bool {
    matches!(
        error,
        NvmlError::DriverNotLoaded | NvmlError::Uninitialized | NvmlError::LibRmVersionMismatch
    )
}

fn is_lost(error: &NvmlError) -> bool {
    matches!(error, NvmlError::GpuLost | NvmlError::ResetRequired)
}

/// Whether a call is newer than the driver: absent from the library, from the driver behind it, or
/// there in another version.
fn is_too_new(error: &NvmlError) -> bool {
    matches!(
        error,
        NvmlError::FailedToLoadSymbol(_)
            | NvmlError::FunctionNotFound
            | NvmlError::UnexpectedVariant(VERSION_MISMATCH)
    )
}

// === Memory ===

/// Version 2 keeps the driver's own reserve apart from what is used; version 1, before driver 510,
/// counts it as used.
fn memory(nvml: &Nvml, device: &Device<'_>) -> Result<Memory, NvmlError> {
    match device.memory_info() {
        Ok(memory) => Ok(Memory { total: memory.total, used: memory.used, free: memory.free }),
        Err(error) if is_too_new(&error) => memory_v1(nvml, device),
        Err(error) => Err(error),
    }
}

#[expect(unsafe_code, reason = "the wrapper has no safe form of version 1 of this call")]
fn memory_v1(nvml: &Nvml, device: &Device<'_>) -> Result<Memory, NvmlError> {
    let call = nvml_sym(nvml.lib().nvmlDeviceGetMemoryInfo.as_ref())?;
    let mut memory = MaybeUninit::zeroed();
    // SAFETY: `device` was handed out by `nvml`, which is still open; the call writes one struct of the
    // type that the binding's signature gives to `memory`; and the struct is three integers, for which
    // zeroes are valid should the call write nothing.
    let memory = unsafe {
        nvml_try(call(device.handle(), memory.as_mut_ptr()))?;
        memory.assume_init()
    };
    Ok(Memory { total: memory.total, used: memory.used, free: memory.free })
}

// === Processes ===

/// Memory by process. A process that computes and draws stands in both lists with the same memory, so
/// the larger entry counts and not the sum. Cards that cannot draw have no second list.
fn processes(device: &Device<'_>) -> Result<BTreeMap<u32, Option<u64>>, NvmlError> {
    let computing =
        or_older(device.running_compute_processes(), || device.running_compute_processes_v2())?;
    let drawing =
        or_older(device.running_graphics_processes(), || device.running_graphics_processes_v2());
    let drawing = match drawing {
        Err(error) if is_lost(&error) || is_driver_gone(&error) => return Err(error),
        other => other.unwrap_or_default(),
    };
    let mut found = by_pid(computing);
    for (pid, memory) in by_pid(drawing) {
        let entry = found.entry(pid).or_default();
        *entry = (*entry).max(memory);
    }
    Ok(found)
}

fn or_older<T>(
    newest: Result<T, NvmlError>,
    older: impl FnOnce() -> Result<T, NvmlError>,
) -> Result<T, NvmlError> {
    match newest {
        Err(error) if is_too_new(&error) => older(),
        other => other,
    }
}

/// One list by process. Within a list a process stands more than once only for its parts on several MIG
/// instances, which add up.
fn by_pid(list: Vec<ProcessInfo>) -> BTreeMap<u32, Option<u64>> {
    let mut found: BTreeMap<u32, Option<u64>> = BTreeMap::new();
    for ProcessInfo { pid, used_gpu_memory, .. } in list {
        let entry = found.entry(pid).or_default();
        if let UsedGpuMemory::Used(bytes) = used_gpu_memory {
            *entry = Some(entry.unwrap_or(0).saturating_add(bytes));
        }
    }
    found
}

/// Names are asked for anew in each round, because a process may change its own.
fn name_all(nvml: &Nvml, found: BTreeMap<u32, Option<u64>>) -> Vec<GpuProcess> {
    let process = |(pid, memory): (u32, Option<u64>)| GpuProcess {
        pid,
        name: nvml.sys_process_name(pid, PROCESS_NAME_MAX).ok().as_deref().and_then(program),
        memory: memory.map(Bytes),
        utilisation_percent: None,
    };
    found.into_iter().map(process).collect()
}

/// The program out of what NVML gives, which may be a whole command line. Its arguments can hold keys,
/// so they go no further than here.
fn program(command: &str) -> Option<String> {
    let path = command.split_whitespace().next()?;
    path.rsplit('/').next().filter(|name| !name.is_empty()).map(Into::into)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_is_named_by_its_program_never_by_its_arguments() {
        assert_eq!(
            program("/usr/bin/python3 -m vllm --api-key s3cret").as_deref(),
            Some("python3")
        );
        assert_eq!(program("VLLM::EngineCore").as_deref(), Some("VLLM::EngineCore"));
        assert_eq!(program(""), None);
        assert_eq!(program("/"), None);
    }

    fn info(pid: u32, used_gpu_memory: UsedGpuMemory) -> ProcessInfo {
        ProcessInfo { pid, used_gpu_memory, gpu_instance_id: None, compute_instance_id: None }
    }

    #[test]
    fn parts_of_one_process_add_up_and_unknown_memory_stays_unknown() {
        let list = vec![
            info(7, UsedGpuMemory::Used(3)),
            info(8, UsedGpuMemory::Unavailable),
            info(7, UsedGpuMemory::Used(4)),
        ];
        assert_eq!(by_pid(list), BTreeMap::from([(7, Some(7)), (8, None)]));
    }

    #[test]
    fn an_explanation_says_what_to_mend() {
        let library = Path::new(LIBRARY);
        for (error, part) in [
            (NvmlError::DriverNotLoaded, "kernel module is not loaded"),
            (NvmlError::LibRmVersionMismatch, "differ in version"),
            (NvmlError::NoPermission, "/dev/nvidiactl"),
            (NvmlError::Unknown, "does not answer"),
        ] {
            let text = explain(&error, library);
            assert!(text.contains(part), "{error:?}: {text}");
        }
    }
}
