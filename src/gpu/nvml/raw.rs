//! Calls that the wrapper has no safe form of. All `unsafe` code of the GPU plane stands here.
//!
//! Every function takes the `Nvml` that handed out the device or the set, so that the library is loaded and
//! initialised for as long as the call runs.

use nvml_wrapper::{
    Device, EventSet, Nvml,
    enums::device::SampleValue,
    error::{NvmlError, nvml_sym, nvml_try},
    struct_wrappers::device::FieldValueSample,
};
use std::mem::MaybeUninit;

/// One field of `nvmlDeviceGetFieldValues`. Only numbers below 251 may be used: the driver renumbered
/// those above between its versions 12 and 13, which the wrapper accounts for and this does not.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Field {
    /// `NVML_FI_*`.
    pub(super) id: u32,
    /// The link that it is asked of; zero for fields of the whole card.
    pub(super) scope: u32,
}

/// What an event set told.
pub(super) struct RawEvent {
    /// The card's handle; `None` where the driver gave none.
    pub(super) card: Option<CardKey>,
    /// `nvmlEventType*`.
    pub(super) bits: u64,
    /// The Xid, if it is one.
    pub(super) data: u64,
}

/// A card's handle, only to be compared: NVML gives one card one handle while it stays initialised.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct CardKey(usize);

#[expect(unsafe_code, reason = "the wrapper hands out handles for unsafe use only")]
pub(super) fn key(device: &Device<'_>) -> CardKey {
    // SAFETY: the handle is turned into a number and never given back to NVML.
    CardKey(unsafe { device.handle() } as usize)
}

/// Memory in all, used and free, in the form before driver 510.
#[expect(unsafe_code, reason = "the wrapper has no safe form of version 1 of this call")]
pub(super) fn memory_v1(nvml: &Nvml, device: &Device<'_>) -> Result<(u64, u64, u64), NvmlError> {
    let call = nvml_sym(nvml.lib().nvmlDeviceGetMemoryInfo.as_ref())?;
    let mut memory = MaybeUninit::zeroed();
    // SAFETY: `device` was handed out by `nvml`, which is still open; the call writes one struct of the
    // type that the binding's signature gives to `memory`; and the struct is three integers, for which
    // zeroes are valid should the call write nothing.
    let memory = unsafe {
        nvml_try(call(device.handle(), memory.as_mut_ptr()))?;
        memory.assume_init()
    };
    Ok((memory.total, memory.used, memory.free))
}

/// Rows remapped after corrected and after uncorrected errors, whether some wait for a reset, and whether
/// one could not be remapped.
#[expect(unsafe_code, reason = "the wrapper lacks this call")]
pub(super) fn remapped_rows(
    nvml: &Nvml,
    device: &Device<'_>,
) -> Result<(u32, u32, bool, bool), NvmlError> {
    let call = nvml_sym(nvml.lib().nvmlDeviceGetRemappedRows.as_ref())?;
    let (mut corrected, mut uncorrected, mut pending, mut failed) = (0, 0, 0, 0);
    // SAFETY: `device` was handed out by `nvml`, which is still open; the four pointers are to integers of
    // the type in the binding's signature, which live through the call.
    nvml_try(unsafe {
        call(device.handle(), &mut corrected, &mut uncorrected, &mut pending, &mut failed)
    })?;
    Ok((corrected, uncorrected, pending != 0, failed != 0))
}

/// The GPU instance and the compute instance that a MIG device is, each as far as it is told.
#[expect(unsafe_code, reason = "the wrapper lacks these calls")]
pub(super) fn instances(nvml: &Nvml, device: &Device<'_>) -> (Option<u32>, Option<u32>) {
    let library = nvml.lib();
    let (mut gpu, mut compute) = (0, 0);
    let gpu_call = nvml_sym(library.nvmlDeviceGetGpuInstanceId.as_ref());
    let compute_call = nvml_sym(library.nvmlDeviceGetComputeInstanceId.as_ref());
    // SAFETY: `device` was handed out by `nvml`, which is still open; the pointer is to an integer of the
    // type in the binding's signature, which lives through the call.
    let gpu_told = gpu_call.and_then(|call| nvml_try(unsafe { call(device.handle(), &mut gpu) }));
    // SAFETY: as above.
    let compute_told =
        compute_call.and_then(|call| nvml_try(unsafe { call(device.handle(), &mut compute) }));
    (gpu_told.ok().map(|()| gpu), compute_told.ok().map(|()| compute))
}

/// Several fields in one call; each has an answer of its own. The wrapper's form cannot ask of one link.
#[expect(unsafe_code, reason = "the wrapper's form of this call has no scope")]
pub(super) fn field_values(
    nvml: &Nvml,
    device: &Device<'_>,
    fields: &[Field],
) -> Result<Vec<Result<u64, NvmlError>>, NvmlError> {
    let call = nvml_sym(nvml.lib().nvmlDeviceGetFieldValues.as_ref())?;
    let count = i32::try_from(fields.len()).map_err(|_| NvmlError::InvalidArg)?;
    // SAFETY: the struct is integers and a union of numbers, for all of which zeroes are valid.
    let blank = unsafe { element(*call).assume_init() };
    let ask = |field: &Field| {
        let mut value = blank;
        value.fieldId = field.id;
        value.scopeId = field.scope;
        value
    };
    let mut values: Vec<_> = fields.iter().map(ask).collect();
    // SAFETY: `device` was handed out by `nvml`, which is still open; the pointer is to `count` structs of
    // the type in the binding's signature, which the call reads and writes and does not keep.
    nvml_try(unsafe { call(device.handle(), count, values.as_mut_ptr()) })?;
    Ok(values.into_iter().map(|value| number(FieldValueSample::try_from(value)?.value?)).collect())
}

/// Zeroes for one element of the array that a call takes: the wrapper keeps the name of its type to itself.
fn element<D, T>(_: unsafe extern "C" fn(D, i32, *mut T) -> u32) -> MaybeUninit<T> {
    MaybeUninit::zeroed()
}

/// A field's value, whatever type the driver gives it in. What is below zero or no number is no reading.
fn number(value: SampleValue) -> Result<u64, NvmlError> {
    let whole = |number: f64| (0.0..1e18).contains(&number).then_some(number as u64);
    let told = match value {
        SampleValue::F64(value) => whole(value),
        SampleValue::U32(value) => Some(value.into()),
        SampleValue::U64(value) => Some(value),
        SampleValue::I64(value) => u64::try_from(value).ok(),
    };
    told.ok_or(NvmlError::NoData)
}

/// Every event that the card can report, `nvmlEventType*`; the wrapper drops those newer than itself.
#[expect(unsafe_code, reason = "the wrapper's form drops bits that it does not know")]
pub(super) fn supported_events(nvml: &Nvml, device: &Device<'_>) -> Result<u64, NvmlError> {
    let call = nvml_sym(nvml.lib().nvmlDeviceGetSupportedEventTypes.as_ref())?;
    let mut bits = 0;
    // SAFETY: `device` was handed out by `nvml`, which is still open; the pointer is to an integer of the
    // type in the binding's signature, which lives through the call.
    nvml_try(unsafe { call(device.handle(), &mut bits) })?;
    Ok(bits)
}

/// Adds a card's events to a set. The wrapper's form gives up the whole set when one card refuses.
#[expect(unsafe_code, reason = "the wrapper's form consumes the set on an error")]
pub(super) fn register(
    nvml: &Nvml,
    device: &Device<'_>,
    bits: u64,
    set: &EventSet<'_>,
) -> Result<(), NvmlError> {
    let call = nvml_sym(nvml.lib().nvmlDeviceRegisterEvents.as_ref())?;
    // SAFETY: `device` and `set` were handed out by `nvml`, which is still open; the set is freed only when
    // its owner drops it, and it is used by this thread alone.
    nvml_try(unsafe { call(device.handle(), bits, set.handle()) })
}

/// Waits for an event; `Timeout` when none came. Drivers before 450 have only the older form, which fills
/// in less of the same struct.
#[expect(unsafe_code, reason = "the wrapper's form drops bits that it does not know")]
pub(super) fn wait(nvml: &Nvml, set: &EventSet<'_>, limit_ms: u32) -> Result<RawEvent, NvmlError> {
    let library = nvml.lib();
    let call = nvml_sym(library.nvmlEventSetWait_v2.as_ref())
        .or_else(|_| nvml_sym(library.nvmlEventSetWait.as_ref()))?;
    let mut event = MaybeUninit::zeroed();
    // SAFETY: `set` was handed out by `nvml`, which is still open, and is used by this thread alone; the
    // call writes one struct of the type that the binding's signature gives to `event`, which is integers
    // and a pointer, for which zeroes are valid.
    let event = unsafe {
        nvml_try(call(set.handle(), event.as_mut_ptr(), limit_ms))?;
        event.assume_init()
    };
    let card = (!event.device.is_null()).then_some(CardKey(event.device as usize));
    Ok(RawEvent { card, bits: event.eventType, data: event.eventData })
}
