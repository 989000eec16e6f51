//! What one card was asked and does not tell.
//!
//! What a card lacks, it lacks for the whole session: it is asked once, and said once at debug level. An
//! error that may pass is asked again.

use super::{
    errors::{Done, is_for_good, reaches_further, whole},
    raw::{self, Field},
};
use nvml_wrapper::{Device, Nvml, error::NvmlError};
use std::collections::BTreeSet;

/// The memory of one card, or of one MIG device.
pub(super) struct Asks {
    /// The card's position, for the log.
    index: u32,
    /// Readings that the card lacks, of itself or of one link.
    absent: BTreeSet<(&'static str, Part)>,
    /// Fields that the card lacks.
    absent_fields: BTreeSet<Field>,
    /// Readings that failed and were logged: once whether for good, and once if not.
    said: BTreeSet<(&'static str, bool)>,
}

/// What of the card is asked: itself, or one of its links. What one link lacks another may have.
type Part = Option<u32>;

/// A field, and the name of the reading that it is.
pub(super) type Wanted = (&'static str, Field);

impl Asks {
    pub(super) fn new(index: u32) -> Self {
        Self {
            index,
            absent: BTreeSet::new(),
            absent_fields: BTreeSet::new(),
            said: BTreeSet::new(),
        }
    }

    /// Makes the call unless the card lacks this reading. A reading that failed is `None`, unless its error
    /// says more about the card or the driver. After such an error no further call should be made: each
    /// may block for long on a failing card.
    pub(super) fn ask<T>(
        &mut self,
        reading: &'static str,
        call: impl FnOnce() -> Result<T, NvmlError>,
    ) -> Done<Option<T>> {
        self.ask_of(None, reading, call)
    }

    /// The same of one link.
    pub(super) fn ask_of<T>(
        &mut self,
        part: Part,
        reading: &'static str,
        call: impl FnOnce() -> Result<T, NvmlError>,
    ) -> Done<Option<T>> {
        if self.absent.contains(&(reading, part)) {
            return Ok(None);
        }
        match call() {
            Ok(value) => Ok(Some(value)),
            Err(error) if reaches_further(&error) => Err(whole(error)),
            Err(error) => {
                let for_good = is_for_good(&error);
                if for_good {
                    self.absent.insert((reading, part));
                }
                self.say_once(reading, &error, for_good);
                Ok(None)
            }
        }
    }

    /// Whether the card said that it lacks this reading.
    pub(super) fn lacks(&self, reading: &'static str) -> bool {
        self.absent.contains(&(reading, None))
    }

    /// Asks for several fields in one call. The answers stand in the order of `wanted`.
    pub(super) fn fields(
        &mut self,
        nvml: &Nvml,
        device: &Device<'_>,
        wanted: &[Wanted],
    ) -> Done<Vec<Option<u64>>> {
        let open: Vec<Wanted> = wanted
            .iter()
            .filter(|(_, field)| !self.absent_fields.contains(field))
            .copied()
            .collect();
        if open.is_empty() {
            return Ok(vec![None; wanted.len()]);
        }
        let fields: Vec<Field> = open.iter().map(|(_, field)| *field).collect();
        let answers = match raw::field_values(nvml, device, &fields) {
            Ok(answers) => answers,
            Err(error) if reaches_further(&error) => return Err(whole(error)),
            Err(error) => {
                for wanted in &open {
                    self.lacking(wanted, &error, is_for_good(&error));
                }
                return Ok(vec![None; wanted.len()]);
            }
        };
        let mut told = Vec::with_capacity(open.len());
        for (wanted, answer) in open.iter().zip(answers) {
            match answer {
                Ok(value) => told.push((wanted.1, value)),
                Err(error) if reaches_further(&error) => return Err(whole(error)),
                // A driver says this of the number of a field that is newer than itself.
                Err(error @ NvmlError::InvalidArg) => self.lacking(wanted, &error, true),
                Err(error) => self.lacking(wanted, &error, is_for_good(&error)),
            }
        }
        let value = |(_, field): &Wanted| {
            told.iter().find(|(here, _)| here == field).map(|(_, value)| *value)
        };
        Ok(wanted.iter().map(value).collect())
    }

    fn lacking(&mut self, (reading, field): &Wanted, error: &NvmlError, for_good: bool) {
        if for_good {
            self.absent_fields.insert(*field);
        }
        self.say_once(reading, error, for_good);
    }

    /// One line for each reading, however many links it was asked of.
    fn say_once(&mut self, reading: &'static str, error: &NvmlError, for_good: bool) {
        if !self.said.insert((reading, for_good)) {
            return;
        }
        let index = self.index;
        if for_good {
            tracing::debug!(index, reading, %error, "this GPU has no such reading");
        } else {
            tracing::debug!(index, reading, %error, "a reading of this GPU failed");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gpu::nvml::errors::Fault;

    /// Asks three times for a reading that answers so, and counts the calls.
    fn calls(answer: impl Fn() -> NvmlError) -> usize {
        let mut asks = Asks::new(0);
        let mut calls = 0;
        for _ in 0..3 {
            let told = asks.ask("temperature", || {
                calls += 1;
                Err::<u32, _>(answer())
            });
            assert!(matches!(told, Ok(None)));
        }
        calls
    }

    #[test]
    fn what_a_card_lacks_is_asked_once_and_what_failed_again() {
        assert_eq!(calls(|| NvmlError::NotSupported), 1);
        assert_eq!(calls(|| NvmlError::FailedToLoadSymbol("x".into())), 1);
        assert_eq!(calls(|| NvmlError::Unknown), 3);
        assert_eq!(calls(|| NvmlError::NoPermission), 3);
    }

    #[test]
    fn what_one_link_lacks_is_asked_of_another() {
        let mut asks = Asks::new(0);
        let lacks = asks.ask_of(Some(1), "replays", || Err::<u64, _>(NvmlError::NotSupported));
        assert!(matches!(lacks, Ok(None)));
        assert!(matches!(asks.ask_of(Some(0), "replays", || Ok(7)), Ok(Some(7))));
        assert!(matches!(asks.ask_of(Some(1), "replays", || Ok(7)), Ok(None)));
    }

    #[test]
    fn a_reading_that_finds_the_card_lost_ends_the_round() {
        let mut asks = Asks::new(0);
        let lost = asks.ask("power", || Err::<u32, _>(NvmlError::GpuLost));
        assert!(matches!(lost, Err(Fault::Card(NvmlError::GpuLost))));
        let gone = asks.ask("power", || Err::<u32, _>(NvmlError::DriverNotLoaded));
        assert!(matches!(gone, Err(Fault::Driver(NvmlError::DriverNotLoaded))));
        assert!(matches!(asks.ask("power", || Ok(7)), Ok(Some(7))), "it may come back");
    }
}
