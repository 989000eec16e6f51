//! NVML, initialised: one round over all cards.

use super::{
    card::Card,
    errors::{Fault, is_lost},
};
use crate::{
    gpu::Meters,
    snapshot::{Answering, DriverState, GpuState},
};
use nvml_wrapper::{Nvml, error::NvmlError};
use std::{path::Path, sync::Arc};
use tokio::time::Instant;

/// More cards than any node has; a larger count is a broken driver, not a node.
pub(super) const CARDS_MAX: u32 = 256;

/// One opening of NVML. With the last holder of `nvml` NVML is shut down, which may block, and the library
/// is let go.
pub(super) struct Session {
    nvml: Arc<Nvml>,
    number: u64,
    driver_version: String,
    nvml_version: String,
    /// One for each index. NVML keeps its order for as long as it is initialised. `None` before the first
    /// round.
    cards: Option<Vec<Card>>,
    rounds: u64,
}

impl Session {
    /// Opens the library and initialises it.
    pub(super) fn open(library: &Path, number: u64) -> Result<Self, NvmlError> {
        let nvml = Nvml::builder().lib_path(library.as_os_str()).init()?;
        let or_unknown =
            |text: Result<String, NvmlError>| text.unwrap_or_else(|_| "unknown".into());
        Ok(Self {
            number,
            driver_version: or_unknown(nvml.sys_driver_version()),
            nvml_version: or_unknown(nvml.sys_nvml_version()),
            cards: None,
            rounds: 0,
            nvml: Arc::new(nvml),
        })
    }

    /// Which opening since the daemon's start it is, from 1.
    pub(super) const fn number(&self) -> u64 {
        self.number
    }

    /// For the thread that waits for events.
    pub(super) fn nvml(&self) -> Arc<Nvml> {
        Arc::clone(&self.nvml)
    }

    /// Asks every card; with `all` also for what is otherwise asked in every fifth round only. `None` when
    /// the number of cards is no longer that of the first round. An error means that the driver is gone, not
    /// a card.
    pub(super) fn round(&mut self, all: bool) -> Result<Option<DriverState>, NvmlError> {
        let count = self.nvml.device_count()?.min(CARDS_MAX);
        let cards = self.cards.get_or_insert_with(|| (0..count).map(Card::new).collect());
        if cards.len() != count as usize {
            return Ok(None);
        }
        self.rounds = self.rounds.wrapping_add(1);
        let mut gpus = Vec::with_capacity(cards.len());
        let mut answered = cards.is_empty();
        let mut refusal = None;
        for card in cards {
            match card.read(&self.nvml, self.rounds, all, &mut gpus) {
                Ok(()) => answered = true,
                Err(Fault::Driver(error)) => return Err(error),
                Err(Fault::Card(error)) => {
                    answered |= is_lost(&error);
                    card.give_up(&error, &mut gpus);
                    refusal = Some(error);
                }
            }
        }
        match refusal {
            // No card answers, and none of them is said to be lost: it is the driver that fails.
            Some(error) if !answered => Err(error),
            _ => Ok(Some(DriverState {
                driver_version: self.driver_version.clone(),
                nvml_version: self.nvml_version.clone(),
                session: self.number,
                gpus,
                read_at: Instant::now(),
            })),
        }
    }

    /// Whether a card came back since the last call.
    pub(super) fn take_returned(&mut self) -> bool {
        let mut returned = false;
        for card in self.cards.iter_mut().flatten() {
            returned |= card.take_returned();
        }
        returned
    }

    /// The last round with utilisation, power and energy read again. What it means that a card fails now is
    /// for a whole round to say; one that failed in the last round is not asked between rounds, since each
    /// call to it may take long.
    pub(super) fn meter(&mut self, last: &DriverState) -> Meters {
        let listed = self.cards.as_ref().map(Vec::len);
        if self.nvml.device_count().ok().map(|count| count.min(CARDS_MAX) as usize) != listed {
            return Meters::Changed;
        }
        let mut state = last.clone();
        for card in self.cards.iter_mut().flatten() {
            let answers = |gpu: &&mut GpuState| card.is(gpu) && gpu.answering == Answering::Yes;
            let Some(gpu) = state.gpus.iter_mut().find(answers) else { continue };
            if card.meter(&self.nvml, gpu).is_err() {
                return Meters::Changed;
            }
        }
        Meters::Read(state)
    }
}
