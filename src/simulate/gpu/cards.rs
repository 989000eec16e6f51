//! Cards to simulate, with the values that such a card typically has at rest.
//!
//! The figures are from the makers' data sheets and from what `nvidia-smi -q` prints for these cards. Which
//! readings a card has follows the NVML reference: the energy counter came with Volta, remapped rows with
//! Ampere, MIG is on the A100 and the H200.

use super::state::{Line, State};
use clap::ValueEnum;

/// Which card.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum CardName {
    /// NVIDIA H200, 141 GB, NVLink
    H200,
    /// NVIDIA A100 80 GB, NVLink
    A100,
    /// NVIDIA L4, 24 GB
    L4,
    /// Tesla T4, 16 GB: retired pages instead of remapped rows
    T4,
    /// Tesla P40, 24 GB: no energy counter
    P40,
}

/// What differs from card to card.
struct Model {
    name: &'static str,
    memory_mib: u64,
    reserved_mib: u64,
    bar1_mib: u64,
    idle_mw: u64,
    /// Least, most and usual power limit.
    limit_w: [u64; 3],
    sm_max_mhz: u64,
    mem_mhz: u64,
    pcie_gen: u64,
    arch: u64,
    compute: &'static str,
    brand: u64,
    pci_device: &'static str,
    /// NVLinks, and their version as NVML numbers it.
    links: Option<(usize, u64)>,
    /// How it tells of worn memory.
    health: &'static str,
    /// Keys that not every card has.
    more: &'static str,
}

const ROWS: &str =
    "rows_correctable=0 rows_uncorrectable=0 rows_pending=0 rows_failed=0 recovery=0";
const PAGES: &str = "retired_single=0 retired_double=0 retired_pending=0";

// === impl CardName ===

impl CardName {
    /// The card whose name, as NVML tells it, this is.
    pub(super) fn by_name(name: &str) -> Option<Self> {
        Self::value_variants().iter().copied().find(|card| card.model().name == name)
    }

    fn model(self) -> Model {
        match self {
            Self::H200 => Model {
                name: "NVIDIA H200",
                memory_mib: 143_771,
                reserved_mib: 608,
                bar1_mib: 262_144,
                idle_mw: 76_000,
                limit_w: [200, 700, 700],
                sm_max_mhz: 1980,
                mem_mhz: 3201,
                pcie_gen: 5,
                arch: 9,
                compute: "9.0",
                brand: 14,
                pci_device: "0x233510DE",
                links: Some((18, 6)),
                more: "mig=0 energy=auto energy_mj=0 temp_memory=32 temp_mem_max=95",
                health: ROWS,
            },
            Self::A100 => Model {
                name: "NVIDIA A100-SXM4-80GB",
                memory_mib: 81_920,
                reserved_mib: 620,
                bar1_mib: 131_072,
                idle_mw: 62_000,
                limit_w: [100, 400, 400],
                sm_max_mhz: 1410,
                mem_mhz: 1593,
                pcie_gen: 4,
                arch: 7,
                compute: "8.0",
                brand: 14,
                pci_device: "0x20B210DE",
                links: Some((12, 4)),
                more: "mig=0 energy=auto energy_mj=0 temp_memory=33 temp_mem_max=95",
                health: ROWS,
            },
            Self::L4 => Model {
                name: "NVIDIA L4",
                memory_mib: 23_034,
                reserved_mib: 505,
                bar1_mib: 32_768,
                idle_mw: 16_000,
                limit_w: [40, 72, 72],
                sm_max_mhz: 2040,
                mem_mhz: 6251,
                pcie_gen: 4,
                arch: 8,
                compute: "8.9",
                brand: 14,
                pci_device: "0x27B810DE",
                links: None,
                more: "energy=auto energy_mj=0",
                health: ROWS,
            },
            Self::T4 => Model {
                name: "Tesla T4",
                memory_mib: 15_360,
                reserved_mib: 266,
                bar1_mib: 256,
                idle_mw: 10_000,
                limit_w: [60, 70, 70],
                sm_max_mhz: 1590,
                mem_mhz: 5001,
                pcie_gen: 3,
                arch: 6,
                compute: "7.5",
                brand: 2,
                pci_device: "0x1EB810DE",
                links: None,
                more: "energy=auto energy_mj=0",
                health: PAGES,
            },
            Self::P40 => Model {
                name: "Tesla P40",
                memory_mib: 23_040,
                reserved_mib: 120,
                bar1_mib: 32_768,
                idle_mw: 10_000,
                limit_w: [125, 250, 250],
                sm_max_mhz: 1531,
                mem_mhz: 3615,
                pcie_gen: 3,
                arch: 4,
                compute: "6.1",
                brand: 2,
                pci_device: "0x1B3810DE",
                links: None,
                more: "",
                health: PAGES,
            },
        }
    }

    /// Adds one such card, idle, with its links.
    pub(super) fn add(self, gpu: usize, state: &mut State) {
        let model = self.model();
        let mib = |amount: u64| amount << 20;
        // Buses below are left for what stands between the cards.
        let bus = 0x10 + gpu;
        let line = format!(
            "gpu {gpu} uuid=GPU-be27d000-0000-4000-8000-{gpu:012x} name=\"{name}\" serial=16500000{gpu:05} \
             minor={gpu} pci=00000000:{bus:02X}:00.0 pci_device={device} arch={arch} brand={brand} compute={compute} \
             mem_total={total} mem_used=0 mem_free={free} mem_reserved={reserved} bar1_total={bar1} bar1_used=1048576 \
             util=0 mem_util=0 enc_util=0 dec_util=0 power_mw={idle} limit_mw={usual}000 limit_default_mw={usual}000 \
             limit_min_mw={least}000 limit_max_mw={most}000 temp=30 temp_slowdown=87 temp_shutdown=92 temp_gpu_max=85 \
             sm_mhz=345 sm_max_mhz={sm} mem_mhz={mem} mem_max_mhz={mem} throttle=0x1 violation_power_ns=0 \
             violation_thermal_ns=0 ecc=1 ecc_corrected=0 ecc_uncorrected=0 ecc_corrected_total=0 \
             ecc_uncorrected_total=0 {health} pcie_gen={gen} pcie_width=16 pcie_gen_max={gen} pcie_width_max=16 \
             pcie_replays=0 pcie_tx_kbps=0 pcie_rx_kbps=0 compute_mode=0 persistence=1 pstate=8 {more}",
            name = model.name,
            device = model.pci_device,
            arch = model.arch,
            brand = model.brand,
            compute = model.compute,
            total = mib(model.memory_mib),
            free = mib(model.memory_mib - model.reserved_mib),
            reserved = mib(model.reserved_mib),
            bar1 = mib(model.bar1_mib),
            idle = model.idle_mw,
            least = model.limit_w[0],
            most = model.limit_w[1],
            usual = model.limit_w[2],
            sm = model.sm_max_mhz,
            mem = model.mem_mhz,
            gen = model.pcie_gen,
            health = model.health,
            more = model.more,
        );
        State::parse(&line).lines().for_each(|line| state.push(line.clone()));
        let (count, version) = model.links.unwrap_or_default();
        for link in 0..count {
            let mut line = Line::new(format!("link {gpu} {link}"));
            line.set("active", 1);
            line.set("version", version);
            line.set("remote", "00000000:05:00.0");
            for key in
                ["crc_errors", "replay_errors", "recovery_errors", "ecc_errors", "tx_kib", "rx_kib"]
            {
                line.set(key, 0);
            }
            state.push(line);
        }
    }
}

/// A node at rest with so many cards of one kind.
pub(super) fn node(card: CardName, cards: usize) -> State {
    let mut state = State::parse("driver=580.65.06\nnvml=13.580.65.06\ncuda=13.0\n");
    for gpu in 0..cards {
        card.add(gpu, &mut state);
    }
    state
}
