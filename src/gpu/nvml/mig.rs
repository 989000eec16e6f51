//! MIG devices: parts of a card that are units of their own, listed behind their parent.

use super::{
    asks::Asks,
    card::{Identity, identify, not_answering},
    errors::{Done, Fault, reaches_further, whole},
    processes::Users,
    raw,
    readings::{self, Reader},
};
use crate::{
    ids::GpuId,
    snapshot::{GpuState, MigPart},
};
use nvml_wrapper::{Device, Nvml, error::NvmlError};

/// More parts than any card can be cut into; a larger number is a broken driver.
const PARTS_MAX: u32 = 64;

/// The MIG devices that a card was seen to have, in the driver's order.
#[derive(Default)]
pub(super) struct MigDevices {
    devices: Vec<MigDevice>,
}

struct MigDevice {
    identity: Identity,
    part: MigPart,
    asks: Asks,
    users: Users,
}

impl MigDevices {
    /// Asks which there are now, and what each holds. Devices come and go while NVML is open, so their
    /// UUIDs are asked for in each round; the rest of what names one is remembered.
    pub(super) fn read(
        &mut self,
        nvml: &Nvml,
        card: &Device<'_>,
        parent: &GpuState,
    ) -> Done<Vec<GpuState>> {
        let most = match card.mig_device_count() {
            Ok(most) => most.min(PARTS_MAX),
            Err(error) => return self.untold(parent, error),
        };
        let mut states = Vec::new();
        let mut seen = Vec::new();
        for position in 0..most {
            let device = match card.mig_device_by_index(position) {
                Ok(device) => device,
                // Nothing in this place.
                Err(NvmlError::NotFound | NvmlError::InvalidArg) => continue,
                Err(error) => return self.untold(parent, error),
            };
            let (place, known) = match self.recognise(nvml, &device, parent) {
                Ok(known) => known,
                // It went between the two calls.
                Err(Fault::Card(NvmlError::NotFound | NvmlError::InvalidArg)) => continue,
                Err(Fault::Card(error)) => return self.untold(parent, error),
                Err(fault) => return Err(fault),
            };
            let mut state = known.blank(parent.index);
            let mut reader = Reader { nvml, device: &device, asks: &mut known.asks };
            readings::memory(&mut reader, &mut state)?;
            state.processes = known.users.read(&mut reader)?;
            states.push(state);
            seen.push(place);
        }
        // Only now: those of a card that fails in the middle are not gone.
        let mut all: Vec<_> = std::mem::take(&mut self.devices).into_iter().map(Some).collect();
        let device = |place: usize| all.get_mut(place).and_then(Option::take);
        self.devices = seen.into_iter().filter_map(device).collect();
        Ok(states)
    }

    /// The card is whole.
    pub(super) fn forget(&mut self) {
        self.devices.clear();
    }

    /// Those that were last seen, without readings.
    pub(super) fn unread(&self, index: u32, error: &NvmlError) -> Vec<GpuState> {
        let state = |device: &MigDevice| {
            let mut state = device.blank(index);
            state.answering = not_answering(error);
            state
        };
        self.devices.iter().map(state).collect()
    }

    /// The driver would not say which there are. They are not gone for that.
    fn untold(&self, parent: &GpuState, error: NvmlError) -> Done<Vec<GpuState>> {
        if reaches_further(&error) {
            return Err(whole(error));
        }
        Ok(self.unread(parent.index, &error))
    }

    /// What is known of a device, and its place in the list; a new one is asked and added.
    fn recognise(
        &mut self,
        nvml: &Nvml,
        device: &Device<'_>,
        parent: &GpuState,
    ) -> Done<(usize, &mut MigDevice)> {
        let id: GpuId = device.uuid().map_err(whole)?.into();
        let place = match self.devices.iter().position(|known| known.identity.id == id) {
            Some(place) => place,
            None => {
                let identity = identify(device)?;
                let (gpu_instance, compute_instance) = raw::instances(nvml, device);
                let part = MigPart { parent: parent.id.clone(), gpu_instance, compute_instance };
                tracing::info!(gpu = %id, parent = %parent.id, "a MIG device");
                let asks = Asks::new(parent.index);
                self.devices.push(MigDevice { identity, part, asks, users: Users::default() });
                self.devices.len().saturating_sub(1)
            }
        };
        let known = self.devices.get_mut(place).ok_or(Fault::Card(NvmlError::NotFound))?;
        Ok((place, known))
    }
}

impl MigDevice {
    fn blank(&self, index: u32) -> GpuState {
        let Identity { id, name } = self.identity.clone();
        let mut state = GpuState::blank(id, index, name);
        state.mig = Some(self.part.clone());
        state
    }
}
