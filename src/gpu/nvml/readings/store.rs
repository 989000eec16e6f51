//! Memory of a card, or of a MIG device.

use super::{super::raw, Reader};
use crate::{
    gpu::nvml::errors::{Done, or_older},
    snapshot::GpuState,
    units::Bytes,
};

/// How the driver writes that it does not know.
const UNKNOWN: u64 = u64::MAX;

/// In all, used, free and reserved. Version 2 of the call keeps the driver's own reserve apart from what is
/// used; version 1, before driver 510, counts it as used.
pub(crate) fn memory(reader: &mut Reader<'_, '_>, state: &mut GpuState) -> Done {
    let nvml = reader.nvml;
    let told = reader.ask("memory", |device| {
        let newest = device
            .memory_info()
            .map(|memory| (memory.total, memory.used, memory.free, Some(memory.reserved)));
        or_older(newest, || {
            raw::memory_v1(nvml, device).map(|(total, used, free)| (total, used, free, None))
        })
    })?;
    if let Some((total, used, free, reserved)) = told {
        state.memory_total = known(total);
        state.memory_used = known(used);
        state.memory_free = known(free);
        state.memory_reserved = reserved.and_then(known);
    }
    Ok(())
}

/// The window that the host can map: in all, and used.
pub(super) fn bar1(reader: &mut Reader<'_, '_>) -> Done<Option<(Bytes, Bytes)>> {
    let told = reader.ask("BAR1 memory", |device| device.bar1_memory_info())?;
    Ok(told.and_then(|window| Some((known(window.total)?, known(window.used)?))))
}

fn known(bytes: u64) -> Option<Bytes> {
    (bytes != UNKNOWN).then_some(Bytes(bytes))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_that_the_driver_does_not_know_is_no_reading() {
        assert_eq!(known(u64::MAX), None);
        assert_eq!(known(0), Some(Bytes(0)));
    }
}
