//! What an error of NVML means: for one reading, for a card, for the driver, and for the person who has
//! to mend it.

use nvml_wrapper::error::NvmlError;
use std::path::Path;

/// `NVML_ERROR_ARGUMENT_VERSION_MISMATCH`, which the wrapper has no variant for.
const VERSION_MISMATCH: u32 = 25;

/// How far a failed call reaches, if further than one reading.
pub(super) enum Fault {
    /// The session is worth nothing any more.
    Driver(NvmlError),
    /// This card does not answer; others may.
    Card(NvmlError),
}

/// What a round over one card, or a part of it, comes to.
pub(super) type Done<T = ()> = Result<T, Fault>;

/// A fault of more than one reading.
pub(super) fn whole(error: NvmlError) -> Fault {
    if is_driver_gone(&error) { Fault::Driver(error) } else { Fault::Card(error) }
}

/// Whether an error says more than that one reading failed.
pub(super) fn reaches_further(error: &NvmlError) -> bool {
    is_lost(error) || is_driver_gone(error)
}

pub(super) fn is_driver_gone(error: &NvmlError) -> bool {
    matches!(
        error,
        NvmlError::DriverNotLoaded | NvmlError::Uninitialized | NvmlError::LibRmVersionMismatch
    )
}

pub(super) fn is_lost(error: &NvmlError) -> bool {
    matches!(error, NvmlError::GpuLost | NvmlError::ResetRequired)
}

/// Whether a call is newer than the driver: absent from the library, from the driver behind it, or
/// there in another version.
pub(super) fn is_too_new(error: &NvmlError) -> bool {
    matches!(
        error,
        NvmlError::FailedToLoadSymbol(_)
            | NvmlError::FunctionNotFound
            | NvmlError::UnexpectedVariant(VERSION_MISMATCH)
    )
}

/// Whether asking again in this session is of no use.
pub(super) fn is_for_good(error: &NvmlError) -> bool {
    is_too_new(error) || matches!(error, NvmlError::NotSupported)
}

/// The newest form of a call, or an older one where the driver lacks it.
pub(super) fn or_older<T>(
    newest: Result<T, NvmlError>,
    older: impl FnOnce() -> Result<T, NvmlError>,
) -> Result<T, NvmlError> {
    match newest {
        Err(error) if is_too_new(&error) => older(),
        other => other,
    }
}

/// Why there is no driver, for the person who has to mend it.
pub(super) fn explain(error: &NvmlError, library: &Path) -> String {
    let library = library.display();
    match error {
        NvmlError::LibloadingError(error) => {
            let said = error.to_string();
            // The file itself, not one that it needs in turn.
            if said.contains("No such file") && said.contains(&library.to_string()) {
                format!("no NVIDIA driver: {library} not found")
            } else {
                format!("no NVIDIA driver: {library} does not load: {said}")
            }
        }
        NvmlError::FailedToLoadSymbol(_) => {
            format!("no NVIDIA driver: {library} is not an NVML library ({error})")
        }
        NvmlError::DriverNotLoaded => {
            format!("no NVIDIA driver: {library} is there, but the kernel module is not loaded")
        }
        NvmlError::LibRmVersionMismatch => format!(
            "the NVIDIA driver was replaced: {library} and the loaded kernel module differ in version; \
             reload the module or reboot"
        ),
        NvmlError::NoPermission => {
            "no permission to use the NVIDIA driver: let this user open /dev/nvidiactl and /dev/nvidia*"
                .into()
        }
        error => format!("the NVIDIA driver does not answer: {error}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_explanation_says_what_to_mend() {
        let library = Path::new("libnvidia-ml.so.1");
        for (error, part) in [
            (NvmlError::DriverNotLoaded, "kernel module is not loaded"),
            (NvmlError::LibRmVersionMismatch, "differ in version"),
            (NvmlError::NoPermission, "/dev/nvidiactl"),
            (NvmlError::Unknown, "does not answer"),
        ] {
            let text = explain(&error, library);
            assert!(text.contains(part), "{error:?}: {text}");
        }
    }

    #[test]
    fn only_what_the_card_or_driver_lacks_is_for_good() {
        for error in [NvmlError::NotSupported, NvmlError::UnexpectedVariant(VERSION_MISMATCH)] {
            assert!(is_for_good(&error), "{error}");
        }
        for error in [NvmlError::Unknown, NvmlError::NoPermission, NvmlError::GpuLost] {
            assert!(!is_for_good(&error), "{error}");
        }
    }
}
