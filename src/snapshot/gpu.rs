//! What the driver says about the GPUs.

use crate::{ids::GpuId, units::Bytes};
use serde::Serialize;
use std::time::Duration;
use tokio::time::Instant;

/// What NVML says, or why it says nothing.
#[derive(Clone, Debug, Default)]
pub enum GpuPlane {
    /// Not asked yet, or switched off in the configuration.
    #[default]
    Off,
    /// There is no usable driver; the text says what was tried and what the system answered.
    NoDriver(String),
    /// The driver answers.
    Driver(DriverState),
}

/// One round of readings over all GPUs.
#[derive(Clone, Debug)]
pub struct DriverState {
    /// Kernel driver version, for example `580.65.06`.
    pub driver_version: String,
    /// NVML library version.
    pub nvml_version: String,
    /// How often NVML was opened since the daemon's start. It changes when the driver went and came back.
    pub session: u64,
    /// Every GPU that the driver lists, in its order; MIG devices follow their parent.
    pub gpus: Vec<GpuState>,
    /// When this round ended.
    pub read_at: Instant,
}

impl DriverState {
    /// Whether these readings are too old to decide by. The age is that of the round: what is read between
    /// rounds does not make the rest younger.
    pub fn is_stale(&self, now: Instant, stale_after: Duration) -> bool {
        now.saturating_duration_since(self.read_at) > stale_after
    }
}

/// One GPU, or one MIG device. A reading that the card lacks, or that failed this time, is `None`.
#[derive(Clone, Debug)]
pub struct GpuState {
    /// NVML UUID.
    pub id: GpuId,
    /// Position in the driver's list, for people only. A MIG device has its parent's.
    pub index: u32,
    /// Product name.
    pub name: String,
    /// For a MIG device: what it is a part of.
    pub mig: Option<MigPart>,
    /// Whether the card answered this round.
    pub answering: Answering,
    /// Address on the PCI bus, for example `00000000:3B:00.0`, as the kernel's log names it.
    pub pci_bus_id: Option<String>,
    /// Memory in all.
    pub memory_total: Option<Bytes>,
    /// Memory in use by processes.
    pub memory_used: Option<Bytes>,
    /// Memory nobody holds.
    pub memory_free: Option<Bytes>,
    /// Memory that the driver and the firmware keep for themselves.
    pub memory_reserved: Option<Bytes>,
    /// Window of the card's memory that the host can map, in all.
    pub bar1_total: Option<Bytes>,
    /// Part of that window in use.
    pub bar1_used: Option<Bytes>,
    /// Share of the last sample period with a kernel running, 0 to 100.
    pub utilisation_percent: Option<u32>,
    /// Share of the last sample period with memory being read or written, 0 to 100.
    pub memory_utilisation_percent: Option<u32>,
    /// Power drawn now, watts.
    pub power_w: Option<f64>,
    /// Enforced power limit, watts.
    pub power_limit_w: Option<f64>,
    /// Energy since the driver was loaded, millijoules. It starts again from zero with the driver.
    pub energy_mj: Option<u64>,
    /// When utilisation, power and energy were read: in the round, or later where they are read more often.
    /// `None` for what has none of these.
    pub metered_at: Option<Instant>,
    /// Core temperature, degrees Celsius.
    pub temperature_c: Option<u32>,
    /// Memory temperature, degrees Celsius.
    pub memory_temperature_c: Option<u32>,
    /// The card slows down from here on, degrees Celsius.
    pub slowdown_c: Option<u32>,
    /// The card switches off from here on, degrees Celsius.
    pub shutdown_c: Option<u32>,
    /// Clocks.
    pub clocks: Clocks,
    /// Why the clocks are lower than they could be.
    pub throttle: Option<Throttle>,
    /// Errors that ECC saw; `None` where the card has no ECC or it is off.
    pub ecc: Option<EccCounts>,
    /// Pages retired after errors (cards before Ampere).
    pub retired_pages: Option<RetiredPages>,
    /// Rows remapped after errors (Ampere and later).
    pub remapped_rows: Option<RemappedRows>,
    /// The connection to the host.
    pub pcie: Pcie,
    /// Connections to other cards.
    pub nvlinks: Vec<NvLink>,
    /// Modes that an operator set.
    pub modes: Modes,
    /// What the driver says the card needs to work again.
    pub recovery: Option<RecoveryAction>,
    /// Processes that hold memory on the card; `None` when the driver would not say.
    pub processes: Option<Vec<GpuProcess>>,
}

/// Whether a card answered.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Answering {
    /// It did.
    #[default]
    Yes,
    /// The driver says that it is lost, or must be reset before anything else.
    Lost(String),
    /// It failed in another way; the text is the driver's.
    No(String),
}

/// What a MIG device is a part of.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct MigPart {
    /// The whole card.
    pub parent: GpuId,
    /// GPU instance.
    pub gpu_instance: Option<u32>,
    /// Compute instance.
    pub compute_instance: Option<u32>,
}

/// Clocks, megahertz.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Clocks {
    /// Streaming multiprocessors, now.
    pub sm_mhz: Option<u32>,
    /// Streaming multiprocessors, at most.
    pub sm_max_mhz: Option<u32>,
    /// Memory, now.
    pub memory_mhz: Option<u32>,
    /// Memory, at most.
    pub memory_max_mhz: Option<u32>,
}

/// Why clocks are lower than they could be: NVML's bits (`nvmlClocksEventReasons`, formerly throttle
/// reasons).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Throttle(pub u64);

impl Throttle {
    const NAMES: [(u64, &str); 9] = [
        (0x1, "gpu_idle"),
        (0x2, "applications_clocks"),
        (0x4, "sw_power_cap"),
        (0x8, "hw_slowdown"),
        (0x10, "sync_boost"),
        (0x20, "sw_thermal"),
        (0x40, "hw_thermal"),
        (0x80, "hw_power_brake"),
        (0x100, "display_clocks"),
    ];

    /// The reasons' names, as NVML's header has them.
    pub fn names(self) -> impl Iterator<Item = &'static str> {
        Self::NAMES.into_iter().filter(move |(bit, _)| self.0 & bit != 0).map(|(_, name)| name)
    }

    /// The card protects itself from heat or a bad supply. A power cap that an operator set, an idle card
    /// and clocks that somebody chose are no faults.
    pub const fn is_slowdown(self) -> bool {
        self.0 & (0x8 | 0x20 | 0x40 | 0x80) != 0
    }
}

/// Errors in memory that ECC saw.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct EccCounts {
    /// Corrected, since the driver was loaded or the card reset.
    pub corrected_volatile: Option<u64>,
    /// Not correctable, since the driver was loaded or the card reset.
    pub uncorrected_volatile: Option<u64>,
    /// Corrected, in the card's life.
    pub corrected_aggregate: Option<u64>,
    /// Not correctable, in the card's life.
    pub uncorrected_aggregate: Option<u64>,
}

/// Pages of memory that are no longer used.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct RetiredPages {
    /// After several errors of one bit.
    pub single_bit: Option<u32>,
    /// After an error of two bits.
    pub double_bit: Option<u32>,
    /// Some are retired only after the next reset.
    pub pending: Option<bool>,
}

/// Rows of memory that were replaced by spare ones.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct RemappedRows {
    /// After corrected errors.
    pub correctable: u32,
    /// After errors that could not be corrected.
    pub uncorrectable: u32,
    /// Some are replaced only after the next reset.
    pub pending: bool,
    /// A row could not be replaced: the card belongs back to its maker.
    pub failed: bool,
}

/// The connection to the host.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Pcie {
    /// Generation now. Idle cards save power by a lower one.
    pub generation: Option<u32>,
    /// Generation at most.
    pub generation_max: Option<u32>,
    /// Lanes now.
    pub width: Option<u32>,
    /// Lanes at most.
    pub width_max: Option<u32>,
    /// Packets sent again since the driver was loaded.
    pub replays: Option<u64>,
    /// Bytes sent to the host, where the driver counts them.
    pub sent: Option<Bytes>,
    /// Bytes received from the host, where the driver counts them.
    pub received: Option<Bytes>,
}

/// One NVLink of a card.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct NvLink {
    /// Its number on this card.
    pub link: u32,
    /// It is up.
    pub active: bool,
    /// CRC errors, of data and flow control together.
    pub crc_errors: Option<u64>,
    /// Packets sent again.
    pub replay_errors: Option<u64>,
    /// Times it had to be trained anew.
    pub recovery_errors: Option<u64>,
    /// Bytes sent.
    pub sent: Option<Bytes>,
    /// Bytes received.
    pub received: Option<Bytes>,
}

/// Modes that an operator set.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Modes {
    /// Who may compute: `default`, `exclusive_thread`, `prohibited`, `exclusive_process`.
    pub compute: Option<&'static str>,
    /// The driver stays loaded without users.
    pub persistence: Option<bool>,
    /// The card is cut into MIG devices.
    pub mig: Option<bool>,
}

/// What the driver says a card needs (NVML field `GPU_RECOVERY_ACTION`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum RecoveryAction {
    /// Nothing.
    None,
    /// A reset of the card.
    Reset,
    /// A reboot of the host.
    Reboot,
    /// An end to all traffic between cards, then a reset of the links.
    DrainP2p,
    /// An end to all work, then a reset of the card.
    DrainAndReset,
    /// An action of a newer driver, by its number.
    Other(u32),
}

/// A process on a GPU.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct GpuProcess {
    /// Process id as the driver reports it: in the daemon's own PID namespace.
    pub pid: u32,
    /// The program's name, where the driver gives it.
    pub name: Option<String>,
    /// Memory it holds; the driver does not always know.
    pub memory: Option<Bytes>,
    /// Share of the last sample period in which it computed, 0 to 100, where the driver tells it by process.
    pub utilisation_percent: Option<u32>,
}

/// Something that happened to a card, as the driver told it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GpuEvent {
    /// Which card; `None` when the driver could not say.
    pub gpu: Option<GpuId>,
    /// What.
    pub kind: EventKind,
    /// When we heard of it.
    pub at: Instant,
}

/// What happened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EventKind {
    /// An Xid, by its number.
    Xid(u32),
    /// ECC corrected errors of one bit.
    EccSingleBit,
    /// ECC found an error that it could not correct.
    EccDoubleBit,
    /// Poisoned data was used: the driver calls it fatal.
    FatalPoison,
    /// Poisoned data was found and kept away.
    NonFatalPoison,
    /// The card cannot be used any more.
    Unavailable,
    /// What the card needs changed; the next reading tells to what.
    RecoveryAction,
    /// MIG devices were made or removed.
    MigChanged,
    /// Another event, by NVML's bit.
    Other(u64),
}

impl GpuState {
    /// A card about which nothing is known but who it is.
    pub fn blank(id: GpuId, index: u32, name: String) -> Self {
        Self {
            id,
            index,
            name,
            mig: None,
            answering: Answering::Yes,
            pci_bus_id: None,
            memory_total: None,
            memory_used: None,
            memory_free: None,
            memory_reserved: None,
            bar1_total: None,
            bar1_used: None,
            utilisation_percent: None,
            memory_utilisation_percent: None,
            power_w: None,
            power_limit_w: None,
            energy_mj: None,
            metered_at: None,
            temperature_c: None,
            memory_temperature_c: None,
            slowdown_c: None,
            shutdown_c: None,
            clocks: Clocks::default(),
            throttle: None,
            ecc: None,
            retired_pages: None,
            remapped_rows: None,
            pcie: Pcie::default(),
            nvlinks: Vec::new(),
            modes: Modes::default(),
            recovery: None,
            processes: None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn readings_grow_stale_by_their_age_alone() {
        let read_at = Instant::now();
        let state = DriverState {
            driver_version: String::new(),
            nvml_version: String::new(),
            session: 1,
            gpus: Vec::new(),
            read_at,
        };
        let limit = Duration::from_secs(5);
        assert!(!state.is_stale(read_at, limit));
        assert!(!state.is_stale(read_at + limit, limit));
        assert!(state.is_stale(read_at + limit + Duration::from_nanos(1), limit));
    }

    #[test]
    fn protection_is_told_from_choice() {
        let power_cap = Throttle(0x4 | 0x1);
        assert!(!power_cap.is_slowdown());
        assert_eq!(power_cap.names().collect::<Vec<_>>(), ["gpu_idle", "sw_power_cap"]);
        assert!(Throttle(0x40).is_slowdown());
    }
}
