//! What the kernel says about a process and its children: CPU time, memory, and which core they run on.

use std::{
    collections::BTreeMap,
    fs,
    path::Path,
    process::{Child, Command, Stdio},
    time::Duration,
};

/// A child process with everything it started. Killed when dropped.
pub struct Tree {
    child: Child,
}

/// Unit of the times in `/proc/PID/stat`; the kernel shows it as 100 to every program (proc(5), USER_HZ).
const TICKS_PER_S: f64 = 100.0;

impl Tree {
    /// Starts `command` on one core, its output going to `log`.
    pub fn start(core: usize, command: &[String], log: &Path) -> Result<Self, String> {
        let file = fs::File::create(log).map_err(|e| e.to_string())?;
        let again = file.try_clone().map_err(|e| e.to_string())?;
        let child = Command::new("taskset")
            .args(["-c", &core.to_string()])
            .args(command)
            .stdin(Stdio::null())
            .stdout(file)
            .stderr(again)
            .spawn()
            .map_err(|e| format!("{command:?}: {e}"))?;
        Ok(Self { child })
    }

    /// All processes of the tree that live now.
    fn pids(&self) -> Vec<u32> {
        let mut parents = BTreeMap::new();
        for entry in fs::read_dir("/proc").into_iter().flatten().flatten() {
            let pid = entry.file_name().to_str().and_then(|name| name.parse::<u32>().ok());
            if let Some(pid) = pid
                && let Some(fields) = stat(pid)
                && let Some(parent) = fields.get(1).and_then(|field| field.parse::<u32>().ok())
            {
                parents.insert(pid, parent);
            }
        }
        let mut tree = vec![self.child.id()];
        let mut at = 0;
        while let Some(parent) = tree.get(at).copied() {
            tree.extend(parents.iter().filter(|(_, p)| **p == parent).map(|(pid, _)| *pid));
            at += 1;
        }
        tree
    }

    /// CPU time that the tree has used, user and system.
    pub fn cpu(&self) -> Duration {
        let ticks: u64 = self
            .pids()
            .into_iter()
            .filter_map(stat)
            // utime and stime are fields 14 and 15 of proc(5); the list here begins with field 3.
            .flat_map(|fields| [11, 12].map(|i| fields.get(i).and_then(|f| f.parse::<u64>().ok())))
            .flatten()
            .sum();
        Duration::from_secs_f64(ticks as f64 / TICKS_PER_S)
    }

    /// Resident memory of the tree in KiB. Pages that its processes share count for each.
    pub fn rss_kib(&self) -> u64 {
        let of = |pid: u32| -> Option<u64> {
            let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
            let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
            line.trim().strip_suffix(" kB")?.trim().parse().ok()
        };
        self.pids().into_iter().filter_map(of).sum()
    }
}

impl Drop for Tree {
    fn drop(&mut self) {
        for pid in self.pids() {
            if let Some(pid) = i32::try_from(pid).ok().and_then(rustix::process::Pid::from_raw) {
                // It may be gone already.
                let _ = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
            }
        }
        let _ = self.child.wait();
    }
}

/// The fields of `/proc/PID/stat` behind the command's name.
fn stat(pid: u32) -> Option<Vec<String>> {
    let text = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let (_, rest) = text.rsplit_once(") ")?;
    Some(rest.split(' ').map(str::to_owned).collect())
}

/// Keeps this process and its threads on one core.
pub fn pin(core: usize) -> Result<(), String> {
    let pid = std::process::id().to_string();
    let done = Command::new("taskset")
        .args(["-a", "-c", "-p", &core.to_string(), &pid])
        .stdout(Stdio::null())
        .status()
        .map_err(|e| format!("taskset: {e}"))?;
    done.success().then_some(()).ok_or_else(|| "taskset failed".to_owned())
}
