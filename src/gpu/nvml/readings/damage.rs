//! Errors in a card's memory, and what was done about them.

use super::{super::raw, Fixed, Reader};
use crate::{
    gpu::nvml::errors::Done,
    snapshot::{EccCounts, RemappedRows, RetiredPages},
};
use nvml_wrapper::enum_wrappers::device::{
    EccCounter::{Aggregate, Volatile},
    MemoryError::{Corrected, Uncorrected},
    RetirementCause,
};

pub(super) fn steady(reader: &mut Reader<'_, '_>, fixed: &mut Fixed) -> Done {
    reader.learn(&mut fixed.ecc, "ECC mode", |device| {
        device.is_ecc_enabled().map(|mode| mode.currently_enabled)
    })
}

/// Where ECC is off the driver's zeroes mean nothing.
pub(super) fn ecc(reader: &mut Reader<'_, '_>, fixed: &Fixed) -> Done<Option<EccCounts>> {
    if fixed.ecc != Some(true) {
        return Ok(None);
    }
    Ok(Some(EccCounts {
        corrected_volatile: reader
            .ask("corrected ECC errors", |device| device.total_ecc_errors(Corrected, Volatile))?,
        uncorrected_volatile: reader.ask("uncorrected ECC errors", |device| {
            device.total_ecc_errors(Uncorrected, Volatile)
        })?,
        corrected_aggregate: reader.ask("corrected ECC errors in all", |device| {
            device.total_ecc_errors(Corrected, Aggregate)
        })?,
        uncorrected_aggregate: reader.ask("uncorrected ECC errors in all", |device| {
            device.total_ecc_errors(Uncorrected, Aggregate)
        })?,
    }))
}

/// Cards before Ampere retire pages.
pub(super) fn retired_pages(reader: &mut Reader<'_, '_>) -> Done<Option<RetiredPages>> {
    let single = reader.ask("pages retired for single-bit errors", |device| {
        device.retired_pages(RetirementCause::MultipleSingleBitEccErrors)
    })?;
    let double = reader.ask("pages retired for double-bit errors", |device| {
        device.retired_pages(RetirementCause::DoubleBitEccError)
    })?;
    let pending = reader.ask("pages to be retired", |device| device.are_pages_pending_retired())?;
    let pages = RetiredPages {
        single_bit: single.map(|pages| count(pages.len())),
        double_bit: double.map(|pages| count(pages.len())),
        pending,
    };
    Ok((pages != RetiredPages::default()).then_some(pages))
}

/// Those from Ampere on remap rows.
pub(super) fn remapped_rows(reader: &mut Reader<'_, '_>) -> Done<Option<RemappedRows>> {
    let nvml = reader.nvml;
    let rows = reader.ask("remapped rows", |device| raw::remapped_rows(nvml, device))?;
    Ok(rows.map(|(correctable, uncorrectable, pending, failed)| RemappedRows {
        correctable,
        uncorrectable,
        pending,
        failed,
    }))
}

fn count(pages: usize) -> u32 {
    u32::try_from(pages).unwrap_or(u32::MAX)
}
