//! Which keys each kind of line may have. The library's own list is in `driver/state.h`.

/// The keys of one kind of line.
pub(super) struct Keys {
    pub(super) texts: &'static [&'static str],
    pub(super) numbers: &'static [&'static str],
}

#[rustfmt::skip]
pub(super) const GPU: Keys = Keys {
    texts: &["uuid", "name", "serial", "pci", "vbios", "compute", "energy"],
    numbers: &[
        "mem_total", "mem_used", "mem_free", "mem_reserved", "bar1_total", "bar1_used", "util", "mem_util",
        "enc_util", "dec_util", "power_mw", "power_instant_mw", "limit_mw", "limit_set_mw", "limit_default_mw",
        "limit_min_mw", "limit_max_mw", "energy_mj", "energy_epoch", "temp", "temp_memory", "temp_slowdown",
        "temp_shutdown", "temp_mem_max", "temp_gpu_max", "sm_mhz", "sm_max_mhz", "mem_mhz", "mem_max_mhz",
        "video_mhz", "video_max_mhz", "throttle", "throttle_supported", "violation_power_ns",
        "violation_thermal_ns", "ecc", "ecc_pending", "ecc_corrected", "ecc_uncorrected", "ecc_corrected_total",
        "ecc_uncorrected_total", "retired_single", "retired_double", "retired_pending", "rows_correctable",
        "rows_uncorrectable", "rows_pending", "rows_failed", "rows_max", "rows_high", "rows_partial", "rows_low",
        "rows_none", "pcie_gen", "pcie_width", "pcie_gen_max", "pcie_width_max", "pcie_replays", "pcie_tx_kbps",
        "pcie_rx_kbps", "pcie_tx_bytes", "pcie_rx_bytes", "pcie_correctable", "pcie_nonfatal", "pcie_fatal",
        "pci_device", "pci_subsystem", "minor", "compute_mode", "persistence", "pstate", "brand", "arch",
        "recovery", "events", "mig", "mig_pending", "mig_max",
    ],
};

pub(super) const LINK: Keys = Keys {
    texts: &["remote"],
    numbers: &[
        "active",
        "version",
        "crc_errors",
        "replay_errors",
        "recovery_errors",
        "ecc_errors",
        "tx_kib",
        "rx_kib",
        "speed_mbps",
    ],
};

pub(super) const PROC: Keys = Keys {
    texts: &["name", "kind"],
    numbers: &["pid", "mem", "gi", "ci", "sm", "mem_util", "enc", "dec"],
};

pub(super) const EVENT: Keys = Keys { texts: &[], numbers: &["data", "gi", "ci"] };

/// The types of events.
pub(super) const EVENTS: [&str; 14] = [
    "sbe",
    "dbe",
    "pstate",
    "xid",
    "clock",
    "power",
    "mig",
    "storm",
    "retired",
    "retire_failed",
    "nonfatal",
    "poison",
    "unavailable",
    "recovery",
];

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    /// What stands in brackets behind a letter: `N(mem_total)`.
    fn listed(mark: &str) -> BTreeSet<&'static str> {
        let header = include_str!("../driver/state.h");
        let found = header.split(mark).skip(1).filter_map(|rest| rest.split(')').next());
        found.filter(|name| !name.is_empty()).collect()
    }

    #[test]
    fn the_keys_are_those_of_the_library() {
        // MIG devices are made by the command `mig`, which knows their keys.
        let mig = [
            "sm_count",
            "slices",
            "ci_slices",
            "copy_engines",
            "decoders",
            "encoders",
            "jpegs",
            "ofas",
        ];
        let lists = [GPU, LINK, PROC, EVENT];
        let numbers: BTreeSet<&str> =
            lists.iter().flat_map(|keys| keys.numbers).copied().chain(mig).collect();
        let library: BTreeSet<&str> =
            listed(" N(").into_iter().filter(|name| *name != "name").collect();
        assert!(library.len() > 90, "the header was read: {library:?}");
        assert_eq!(numbers, library);

        let texts: BTreeSet<&str> = lists.iter().flat_map(|keys| keys.texts).copied().collect();
        let others = ["type", "gpu"];
        let library: BTreeSet<&str> =
            listed(" T(").into_iter().filter(|name| !others.contains(name)).collect();
        assert_eq!(texts, library);
    }

    #[test]
    fn the_events_are_those_of_the_library() {
        let source = include_str!("../driver/events.c");
        for kind in EVENTS {
            assert!(source.contains(&format!("{{\"{kind}\", 0x")), "{kind}");
        }
    }
}
