//! The board: address, heat, clocks, power limit, modes, and what the driver says it needs.

use super::{super::raw::Field, Fixed, Reader, meter::watts};
use crate::{
    gpu::nvml::errors::Done,
    snapshot::{GpuState, Modes, RecoveryAction, Throttle},
};
use nvml_wrapper::{
    enum_wrappers::device::{Clock, ComputeMode, TemperatureSensor, TemperatureThreshold},
    sys_exports::field_id::{NVML_FI_DEV_GET_GPU_RECOVERY_ACTION, NVML_FI_DEV_MEMORY_TEMP},
};

/// Fields of the whole card that are asked for in each round.
const FIELDS: [(&str, Field); 2] = [
    ("memory temperature", Field { id: NVML_FI_DEV_MEMORY_TEMP, scope: 0 }),
    ("recovery action", Field { id: NVML_FI_DEV_GET_GPU_RECOVERY_ACTION, scope: 0 }),
];

pub(super) fn steady(reader: &mut Reader<'_, '_>, fixed: &mut Fixed) -> Done {
    reader.learn(&mut fixed.pci_bus_id, "PCI address", |device| {
        device.pci_info().map(|info| info.bus_id)
    })?;
    reader.learn(&mut fixed.slowdown_c, "slowdown temperature", |device| {
        device.temperature_threshold(TemperatureThreshold::Slowdown)
    })?;
    reader.learn(&mut fixed.shutdown_c, "shutdown temperature", |device| {
        device.temperature_threshold(TemperatureThreshold::Shutdown)
    })?;
    reader.learn(&mut fixed.sm_max_mhz, "highest SM clock", |device| {
        device.max_clock_info(Clock::SM)
    })?;
    reader.learn(&mut fixed.memory_max_mhz, "highest memory clock", |device| {
        device.max_clock_info(Clock::Memory)
    })
}

pub(super) fn each_round(reader: &mut Reader<'_, '_>, state: &mut GpuState) -> Done {
    state.power_limit_w = reader
        .ask("power limit", |device| device.enforced_power_limit())?
        .map(|limit| watts(limit.into()));
    state.temperature_c =
        reader.ask("temperature", |device| device.temperature(TemperatureSensor::Gpu))?;
    state.clocks.sm_mhz = reader.ask("SM clock", |device| device.clock_info(Clock::SM))?;
    state.clocks.memory_mhz =
        reader.ask("memory clock", |device| device.clock_info(Clock::Memory))?;
    state.throttle = reader
        .ask("throttle reasons", |device| device.current_throttle_reasons())?
        .map(|reasons| Throttle(reasons.bits()));
    if let [heat, action] = reader.fields(&FIELDS)?[..] {
        state.memory_temperature_c = heat.and_then(|heat| u32::try_from(heat).ok());
        state.recovery = action.map(recovery);
    }
    Ok(())
}

/// All but the MIG mode, which is followed closely.
pub(super) fn modes(reader: &mut Reader<'_, '_>) -> Done<Modes> {
    let compute = reader.ask("compute mode", |device| device.compute_mode())?;
    Ok(Modes {
        compute: compute.map(|mode| match mode {
            ComputeMode::Default => "default",
            ComputeMode::ExclusiveThread => "exclusive_thread",
            ComputeMode::Prohibited => "prohibited",
            ComputeMode::ExclusiveProcess => "exclusive_process",
        }),
        persistence: reader.ask("persistence", |device| device.is_in_persistent_mode())?,
        mig: None,
    })
}

/// `nvmlDeviceGpuRecoveryAction_t` in NVML's header.
fn recovery(action: u64) -> RecoveryAction {
    match action {
        0 => RecoveryAction::None,
        1 => RecoveryAction::Reset,
        2 => RecoveryAction::Reboot,
        3 => RecoveryAction::DrainP2p,
        4 => RecoveryAction::DrainAndReset,
        other => RecoveryAction::Other(u32::try_from(other).unwrap_or(u32::MAX)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_recovery_action_of_a_newer_driver_keeps_its_number() {
        assert_eq!(recovery(0), RecoveryAction::None);
        assert_eq!(recovery(4), RecoveryAction::DrainAndReset);
        assert_eq!(recovery(5), RecoveryAction::Other(5));
        assert_eq!(recovery(u64::MAX), RecoveryAction::Other(u32::MAX));
    }
}
