//! `[gpu]` and `[energy]`: what is read of the GPUs, and what it is for.

use super::defaults;
use crate::units::Bytes;
use std::{path::PathBuf, time::Duration};

/// `[gpu]`
#[derive(Clone, Debug, PartialEq)]
pub struct Gpu {
    /// Read the GPUs at all.
    pub enabled: bool,
    /// The NVML library; `None` lets the system's loader find `libnvidia-ml.so.1`.
    pub nvml_library: Option<PathBuf>,
    /// Time between rounds of readings.
    pub period: Duration,
    /// Time between readings of utilisation and power alone; zero reads them with the others only.
    pub fast_period: Duration,
    /// Readings older than this count as unknown.
    pub stale_after: Duration,
    /// Sick cards take their servers out; else they are only told of.
    pub drain: bool,
    /// A server that works on requests, says nothing and leaves its GPUs idle for this long is hung; zero
    /// never says so.
    pub hung_after: Duration,
    /// Memory of a card that stays free: no request goes to a server whose memory grows if it could need
    /// this.
    pub memory_floor: Bytes,
    /// What becomes of model servers that are found by their process on a GPU.
    pub found: FoundOnGpu,
}

impl Default for Gpu {
    fn default() -> Self {
        Self {
            enabled: defaults::GPU_ENABLED,
            nvml_library: None,
            period: defaults::GPU_PERIOD,
            fast_period: defaults::GPU_FAST_PERIOD,
            stale_after: defaults::GPU_STALE_AFTER,
            drain: defaults::GPU_DRAIN,
            hung_after: defaults::HUNG_AFTER,
            memory_floor: defaults::MEMORY_FLOOR,
            found: defaults::FOUND_ON_GPU,
        }
    }
}

/// What becomes of model servers that nobody configured and that hold memory on a GPU.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FoundOnGpu {
    /// They are shown to the operator.
    Report,
    /// They get requests, as those found on default ports do.
    Adopt,
    /// Nobody looks.
    Off,
}

/// `[energy]`
#[derive(Clone, Debug, PartialEq)]
pub struct Energy {
    /// What a kilowatt-hour costs, in the operator's currency.
    pub price_per_kwh: f64,
    /// What an hour of one GPU costs beside its energy (purchase, room, people), in the same currency.
    pub price_per_gpu_hour: f64,
    /// How many input tokens cost as much as one output token, for splitting what a GPU used.
    pub output_weight: f64,
}

impl Default for Energy {
    fn default() -> Self {
        Self {
            price_per_kwh: defaults::PRICE_PER_KWH,
            price_per_gpu_hour: defaults::PRICE_PER_GPU_HOUR,
            output_weight: defaults::OUTPUT_WEIGHT,
        }
    }
}
