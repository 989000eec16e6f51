//! Who uses a card: memory by process, and how much each computed where the driver tells.

use super::{
    errors::{Done, or_older},
    readings::{Reader, share},
};
use crate::{snapshot::GpuProcess, units::Bytes};
use nvml_wrapper::{
    Device, Nvml,
    enums::device::UsedGpuMemory,
    error::NvmlError,
    struct_wrappers::device::{ProcessInfo, ProcessUtilizationSample},
};
use std::{collections::BTreeMap, time::Duration};
use tokio::time::Instant;

/// Room for a process's name, in bytes. NVML cuts what is longer.
const PROCESS_NAME_MAX: usize = 1024;

/// Longest name that is kept, in letters.
const NAME_MAX: usize = 64;

/// Samples are asked for from so long before the newest one that was seen, microseconds: those of one period
/// do not carry one time.
const OVERLAP_US: u64 = 500_000;

/// A sample that the driver repeats for this long tells about the past.
const SAMPLE_AGE_MAX: Duration = Duration::from_secs(3);

/// Memory by process id; `None` where the driver does not know how much.
type Memory = BTreeMap<u32, Option<u64>>;

/// What is remembered about a card's processes: when each was last seen to compute.
#[derive(Default)]
pub(super) struct Users {
    /// The newest sample of each process that the last call told of.
    samples: BTreeMap<u32, Seen>,
}

/// A process's sample, and when we first saw it: the driver's time is on a clock of its own.
#[derive(Clone, Copy)]
struct Seen {
    timestamp_us: u64,
    percent: Option<u32>,
    first_seen: Instant,
}

impl Users {
    /// The processes with memory on the card; `None` when the driver would not say.
    pub(super) fn read(&mut self, reader: &mut Reader<'_, '_>) -> Done<Option<Vec<GpuProcess>>> {
        let Some(mut found) = reader.ask("processes", computing)? else { return Ok(None) };
        // A process may stand in several lists with the same memory, so that the larger entry counts and
        // not the sum. Not every card can draw, and not every driver tells of MPS.
        for (reading, list) in [
            ("drawing processes", drawing as fn(&Device<'_>) -> _),
            ("MPS processes", sharing as fn(&Device<'_>) -> _),
        ] {
            for (pid, memory) in reader.ask(reading, list)?.unwrap_or_default() {
                let entry = found.entry(pid).or_default();
                *entry = (*entry).max(memory);
            }
        }
        self.sample(reader)?;
        Ok(Some(self.describe(reader.nvml, found)))
    }

    /// Asks how much each computed.
    fn sample(&mut self, reader: &mut Reader<'_, '_>) -> Done {
        let newest = self.samples.values().map(|seen| seen.timestamp_us).max();
        let since = newest.map(|newest| newest.saturating_sub(OVERLAP_US));
        let samples = reader.ask("utilisation by process", |device| {
            match device.process_utilization_stats(since) {
                // How the driver says that nobody computed.
                Err(NvmlError::NotFound) => Ok(Vec::new()),
                told => told,
            }
        })?;
        self.take(samples, Instant::now());
        Ok(())
    }

    /// After a call that failed the last samples stand, and grow old: without them the driver would be asked
    /// for all that it has, and the past look new.
    fn take(&mut self, samples: Option<Vec<ProcessUtilizationSample>>, now: Instant) {
        let Some(samples) = samples else { return };
        let mut next: BTreeMap<u32, Seen> = BTreeMap::new();
        for ProcessUtilizationSample { pid, timestamp, sm_util, .. } in samples {
            if next.get(&pid).is_some_and(|seen| seen.timestamp_us >= timestamp) {
                continue;
            }
            let known = self.samples.get(&pid).filter(|seen| seen.timestamp_us == timestamp);
            let first_seen = known.map_or(now, |seen| seen.first_seen);
            let percent = share(sm_util);
            next.insert(pid, Seen { timestamp_us: timestamp, percent, first_seen });
        }
        self.samples = next;
    }

    fn utilisation(&self, pid: u32, now: Instant) -> Option<u32> {
        let seen = self.samples.get(&pid)?;
        let old = now.saturating_duration_since(seen.first_seen) > SAMPLE_AGE_MAX;
        if old { None } else { seen.percent }
    }

    /// Names are asked for anew in each round, because a process may change its own.
    fn describe(&self, nvml: &Nvml, found: Memory) -> Vec<GpuProcess> {
        let now = Instant::now();
        let process = |(pid, memory): (u32, Option<u64>)| GpuProcess {
            pid,
            name: nvml.sys_process_name(pid, PROCESS_NAME_MAX).ok().as_deref().and_then(program),
            memory: memory.map(Bytes),
            utilisation_percent: self.utilisation(pid, now),
        };
        found.into_iter().map(process).collect()
    }
}

fn computing(device: &Device<'_>) -> Result<Memory, NvmlError> {
    or_older(device.running_compute_processes(), || device.running_compute_processes_v2())
        .map(by_pid)
}

fn drawing(device: &Device<'_>) -> Result<Memory, NvmlError> {
    or_older(device.running_graphics_processes(), || device.running_graphics_processes_v2())
        .map(by_pid)
}

fn sharing(device: &Device<'_>) -> Result<Memory, NvmlError> {
    device.mps_running_compute_processes().map(by_pid)
}

/// One entry for each process of a list. A process may stand in it with its parts on several MIG
/// instances, which add up.
fn by_pid(list: Vec<ProcessInfo>) -> Memory {
    let mut found = Memory::new();
    for ProcessInfo { pid, used_gpu_memory, .. } in list {
        let entry = found.entry(pid).or_default();
        if let UsedGpuMemory::Used(bytes) = used_gpu_memory {
            *entry = Some(entry.unwrap_or(0).saturating_add(bytes));
        }
    }
    found
}

/// The program out of what NVML gives, which may be a whole command line. Its arguments can hold keys,
/// so they go no further than here. A program may call itself anything.
fn program(command: &str) -> Option<String> {
    let path = command.split_whitespace().next()?;
    let name = path.rsplit('/').next()?.chars().filter(|letter| !letter.is_control());
    Some(name.take(NAME_MAX).collect()).filter(|name: &String| !name.is_empty())
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
        assert_eq!(program("\u{1b}[2Jvllm\u{7} x").as_deref(), Some("[2Jvllm"));
        assert_eq!(program("\u{7f}"), None);
        assert_eq!(program(&"n".repeat(9999)).map(|name| name.len()), Some(NAME_MAX));
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
        assert_eq!(by_pid(list), Memory::from([(7, Some(7)), (8, None)]));
    }

    fn sample(pid: u32, timestamp: u64, sm_util: u32) -> ProcessUtilizationSample {
        ProcessUtilizationSample { pid, timestamp, sm_util, mem_util: 0, enc_util: 0, dec_util: 0 }
    }

    #[test]
    fn the_newest_sample_counts_until_the_driver_only_repeats_it() {
        let mut users = Users::default();
        let start = Instant::now();
        users.take(Some(vec![sample(7, 20, 60), sample(7, 10, 90), sample(8, 20, 101)]), start);
        assert_eq!(users.utilisation(7, start), Some(60));
        assert_eq!(users.utilisation(8, start), None, "a share that cannot be");
        assert_eq!(users.utilisation(9, start), None, "the driver does not tell");

        let later = start + SAMPLE_AGE_MAX + Duration::from_millis(1);
        users.take(None, later);
        users.take(Some(vec![sample(7, 20, 60)]), later);
        assert_eq!(users.utilisation(7, later), None, "it is over");
        users.take(Some(vec![sample(7, 30, 5)]), later);
        assert_eq!(users.utilisation(7, later), Some(5));
    }
}
