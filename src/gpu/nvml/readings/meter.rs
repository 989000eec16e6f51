//! What is read most often: utilisation, power and energy.

use super::{super::raw::Field, Reader};
use crate::{gpu::nvml::errors::Done, snapshot::GpuState};
use nvml_wrapper::sys_exports::field_id::{NVML_FI_DEV_POWER_AVERAGE, NVML_FI_DEV_POWER_INSTANT};
use tokio::time::Instant;

/// Power as a field, for cards that lack the plain call. The power of this moment goes first: its average
/// was measured to take the driver milliseconds.
const POWER: [(&str, Field); 2] = [
    ("power now, as a field", Field { id: NVML_FI_DEV_POWER_INSTANT, scope: 0 }),
    ("average power, as a field", Field { id: NVML_FI_DEV_POWER_AVERAGE, scope: 0 }),
];

/// Reads them into `state` and says when.
pub(crate) fn meters(reader: &mut Reader<'_, '_>, state: &mut GpuState) -> Done {
    let busy = reader.ask("utilisation", |device| device.utilization_rates())?;
    state.utilisation_percent = busy.as_ref().and_then(|busy| share(busy.gpu));
    state.memory_utilisation_percent = busy.as_ref().and_then(|busy| share(busy.memory));
    state.power_w = power(reader)?;
    state.energy_mj = reader.ask("energy", |device| device.total_energy_consumption())?;
    state.metered_at = Some(Instant::now());
    Ok(())
}

fn power(reader: &mut Reader<'_, '_>) -> Done<Option<f64>> {
    if let Some(power) = reader.ask("power", |device| device.power_usage())? {
        return Ok(Some(watts(power.into())));
    }
    if !reader.asks.lacks("power") {
        return Ok(None);
    }
    for field in POWER {
        if let Some(Some(power)) = reader.fields(&[field])?.first() {
            return Ok(Some(watts(*power)));
        }
    }
    Ok(None)
}

/// Drivers have been seen to report shares that cannot be; no reading is better.
pub(crate) fn share(percent: u32) -> Option<u32> {
    Some(percent).filter(|percent| *percent <= 100)
}

/// Exact: no card draws more than 2^32 milliwatts.
pub(super) fn watts(milliwatts: u64) -> f64 {
    f64::from(u32::try_from(milliwatts).unwrap_or(u32::MAX)) / 1000.0
}
