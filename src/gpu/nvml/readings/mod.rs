//! The readings of one card, by subject and by how often they are asked for.

mod board;
mod damage;
mod links;
mod meter;
mod store;

use super::{
    asks::{Asks, Wanted},
    errors::Done,
};
use crate::snapshot::{GpuState, Modes, NvLink, Pcie, RemappedRows, RetiredPages};
use crate::units::Bytes;
use nvml_wrapper::{Device, Nvml, error::NvmlError};

pub(super) use meter::{meters, share};
pub(super) use store::memory;

/// One card, while it is asked.
pub(super) struct Reader<'a, 'nvml> {
    pub(super) nvml: &'nvml Nvml,
    pub(super) device: &'a Device<'nvml>,
    pub(super) asks: &'a mut Asks,
}

/// What does not change in a session, as far as it is known.
#[derive(Default)]
pub(super) struct Fixed {
    pub(super) pci_bus_id: Option<String>,
    slowdown_c: Option<u32>,
    shutdown_c: Option<u32>,
    sm_max_mhz: Option<u32>,
    memory_max_mhz: Option<u32>,
    pcie_generation_max: Option<u32>,
    pcie_width_max: Option<u32>,
    /// ECC can be switched only with a reset.
    ecc: Option<bool>,
    /// The links that the card has; `None` until it was asked for all.
    links: Option<Vec<u32>>,
}

/// What changes slowly.
pub(super) struct Slow {
    bar1: Option<(Bytes, Bytes)>,
    retired_pages: Option<RetiredPages>,
    remapped_rows: Option<RemappedRows>,
    pcie: Pcie,
    nvlinks: Vec<NvLink>,
    modes: Modes,
}

/// What is asked until it is known.
pub(super) fn steady(reader: &mut Reader<'_, '_>, fixed: &mut Fixed) -> Done {
    board::steady(reader, fixed)?;
    links::steady(reader, fixed)?;
    damage::steady(reader, fixed)
}

/// What is asked in each round, beside the meters and the processes.
pub(super) fn each_round(reader: &mut Reader<'_, '_>, fixed: &Fixed, state: &mut GpuState) -> Done {
    store::memory(reader, state)?;
    board::each_round(reader, state)?;
    state.ecc = damage::ecc(reader, fixed)?;
    Ok(())
}

/// What is asked now and then.
pub(super) fn slow(reader: &mut Reader<'_, '_>, fixed: &Fixed) -> Done<Slow> {
    Ok(Slow {
        bar1: store::bar1(reader)?,
        retired_pages: damage::retired_pages(reader)?,
        remapped_rows: damage::remapped_rows(reader)?,
        pcie: links::pcie(reader)?,
        nvlinks: links::nvlinks(reader, fixed)?,
        modes: board::modes(reader)?,
    })
}

// === impl Reader ===

impl Reader<'_, '_> {
    /// See [`Asks::ask`].
    pub(super) fn ask<T>(
        &mut self,
        reading: &'static str,
        call: impl FnOnce(&Device<'_>) -> Result<T, NvmlError>,
    ) -> Done<Option<T>> {
        let device = self.device;
        self.asks.ask(reading, || call(device))
    }

    /// See [`Asks::fields`].
    fn fields(&mut self, wanted: &[Wanted]) -> Done<Vec<Option<u64>>> {
        self.asks.fields(self.nvml, self.device, wanted)
    }

    /// Asks for what is not known yet.
    fn learn<T>(
        &mut self,
        known: &mut Option<T>,
        reading: &'static str,
        call: impl FnOnce(&Device<'_>) -> Result<T, NvmlError>,
    ) -> Done {
        if known.is_none() {
            *known = self.ask(reading, call)?;
        }
        Ok(())
    }
}

// === impl Fixed ===

impl Fixed {
    pub(super) fn put_into(&self, state: &mut GpuState) {
        state.pci_bus_id.clone_from(&self.pci_bus_id);
        state.slowdown_c = self.slowdown_c;
        state.shutdown_c = self.shutdown_c;
        state.clocks.sm_max_mhz = self.sm_max_mhz;
        state.clocks.memory_max_mhz = self.memory_max_mhz;
        state.pcie.generation_max = self.pcie_generation_max;
        state.pcie.width_max = self.pcie_width_max;
    }
}

// === impl Slow ===

impl Slow {
    /// Keeps what the state has of its own: the most that the link can, and the MIG mode.
    pub(super) fn put_into(&self, state: &mut GpuState) {
        state.bar1_total = self.bar1.map(|(total, _)| total);
        state.bar1_used = self.bar1.map(|(_, used)| used);
        state.retired_pages = self.retired_pages;
        state.remapped_rows = self.remapped_rows;
        let Pcie { generation_max, width_max, .. } = state.pcie;
        state.pcie = Pcie { generation_max, width_max, ..self.pcie };
        state.nvlinks.clone_from(&self.nvlinks);
        state.modes = Modes { mig: state.modes.mig, ..self.modes.clone() };
    }
}
