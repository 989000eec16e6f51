//! One card: what is remembered about it between rounds, and the order in which it is asked.

use super::{
    asks::Asks,
    errors::{Done, is_lost, reaches_further, whole},
    mig::MigDevices,
    processes::Users,
    readings::{self, Fixed, Reader, Slow},
};
use crate::{
    ids::GpuId,
    snapshot::{Answering, GpuState},
};
use nvml_wrapper::{Device, Nvml, error::NvmlError};

/// What changes slowly is asked in every so many rounds. It is most of the calls, and each takes time of a
/// driver that the model servers need too. The cards take turns.
const SLOW_ROUNDS: u64 = 5;

/// What is remembered about one card between rounds.
pub(super) struct Card {
    index: u32,
    identity: Option<Identity>,
    /// The driver gave it up in the round before.
    lost: bool,
    /// It answers again, and nobody has taken note yet.
    returned: bool,
    asks: Asks,
    fixed: Fixed,
    /// As last read; `None` asks for it in the next round.
    slow: Option<Slow>,
    users: Users,
    /// Cut into MIG devices? `None` before the first answer.
    cut: Option<bool>,
    mig: MigDevices,
}

/// What never changes about a card, and what names it when it no longer answers.
#[derive(Clone)]
pub(super) struct Identity {
    pub(super) id: GpuId,
    pub(super) name: String,
}

impl Card {
    pub(super) fn new(index: u32) -> Self {
        Self {
            index,
            identity: None,
            lost: false,
            returned: false,
            asks: Asks::new(index),
            fixed: Fixed::default(),
            slow: None,
            users: Users::default(),
            cut: None,
            mig: MigDevices::default(),
        }
    }

    /// Whether this is the card that a state speaks of, and it answered then.
    pub(super) fn is(&self, gpu: &GpuState) -> bool {
        gpu.mig.is_none()
            && gpu.answering == Answering::Yes
            && self.identity.as_ref().is_some_and(|identity| identity.id == gpu.id)
    }

    /// Whether it came back since the last call.
    pub(super) fn take_returned(&mut self) -> bool {
        std::mem::take(&mut self.returned)
    }

    /// Asks everything that is due, and adds the card and its MIG devices to `found`; nothing is added on an
    /// error.
    pub(super) fn read(
        &mut self,
        nvml: &Nvml,
        round: u64,
        all: bool,
        found: &mut Vec<GpuState>,
    ) -> Done {
        let device = nvml.device_by_index(self.index).map_err(whole)?;
        let identity = match &self.identity {
            Some(identity) => identity.clone(),
            None => self.identity.insert(identify(&device)?).clone(),
        };
        let mut state = GpuState::blank(identity.id, self.index, identity.name);
        self.follow_mig_mode(&device, &mut state)?;

        let mut reader = Reader { nvml, device: &device, asks: &mut self.asks };
        readings::steady(&mut reader, &mut self.fixed)?;
        readings::meters(&mut reader, &mut state)?;
        readings::each_round(&mut reader, &self.fixed, &mut state)?;
        let due = round.wrapping_add(self.index.into()) % SLOW_ROUNDS == 0;
        if due || all || self.slow.is_none() {
            self.slow = Some(readings::slow(&mut reader, &self.fixed)?);
        }
        state.processes = self.users.read(&mut reader)?;
        let children = if self.cut == Some(true) {
            self.mig.read(nvml, &device, &state)?
        } else {
            self.mig.forget();
            Vec::new()
        };

        self.fixed.put_into(&mut state);
        if let Some(slow) = &self.slow {
            slow.put_into(&mut state);
        }
        if self.lost {
            self.lost = false;
            self.returned = true;
            tracing::info!(gpu = %state.id, index = self.index, "the GPU answers again");
        }
        found.push(state);
        found.extend(children);
        Ok(())
    }

    /// What a card can tell differs with and without MIG, so a change of mode makes it unknown again.
    fn follow_mig_mode(&mut self, device: &Device<'_>, state: &mut GpuState) -> Done {
        let mode = self.asks.ask("MIG mode", || device.mig_mode())?;
        state.modes.mig = mode.map(|mode| mode.current == 1);
        if self.cut.is_some() && state.modes.mig.is_some() && self.cut != state.modes.mig {
            tracing::info!(gpu = %state.id, on = state.modes.mig, "the GPU's MIG mode changed");
            self.asks = Asks::new(self.index);
            self.slow = None;
        }
        self.cut = state.modes.mig.or(self.cut);
        Ok(())
    }

    /// Utilisation, power and energy alone.
    pub(super) fn meter(&mut self, nvml: &Nvml, state: &mut GpuState) -> Done {
        let device = nvml.device_by_index(self.index).map_err(whole)?;
        let mut reader = Reader { nvml, device: &device, asks: &mut self.asks };
        readings::meters(&mut reader, state)
    }

    /// Says once that the card does not answer, and adds it and its MIG devices without readings; nothing
    /// when it never told its name. NVML stays open: a card that was lost comes back only by a reset or a
    /// reboot, and a reset needs every user of the card stopped, this daemon among them.
    pub(super) fn give_up(&mut self, error: &NvmlError, found: &mut Vec<GpuState>) {
        if !self.lost {
            self.lost = true;
            let gpu = self.identity.as_ref().map_or("unknown", |identity| identity.id.as_str());
            tracing::warn!(gpu, index = self.index, %error, "the GPU does not answer");
        }
        // Whatever comes back was reset.
        self.slow = None;
        let Some(Identity { id, name }) = self.identity.clone() else { return };
        let mut state = GpuState::blank(id, self.index, name);
        state.answering = not_answering(error);
        state.pci_bus_id.clone_from(&self.fixed.pci_bus_id);
        found.push(state);
        found.extend(self.mig.unread(self.index, error));
    }
}

/// How a state says that its card did not answer.
pub(super) fn not_answering(error: &NvmlError) -> Answering {
    if is_lost(error) {
        Answering::Lost(error.to_string())
    } else {
        Answering::No(error.to_string())
    }
}

/// A card without a name still has readings; without a UUID nobody could tell whose.
pub(super) fn identify(device: &Device<'_>) -> Done<Identity> {
    let id = device.uuid().map_err(whole)?.into();
    match device.name() {
        Ok(name) => Ok(Identity { id, name }),
        Err(error) if reaches_further(&error) => Err(whole(error)),
        Err(_) => Ok(Identity { id, name: "unknown".into() }),
    }
}
