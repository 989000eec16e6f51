//! `berthd simulate --gpu`: cards that are not there, for a real driver library's callers.
//!
//! The program carries a stand-in for `libnvidia-ml.so.1` (`src/simulate/driver`, C), which tells what a text
//! file beside it says. This module writes both files and changes the text on command.

/// The stand-in for `libnvidia-ml.so.1`, as a file's bytes. Empty where the program was built without a C
/// compiler.
pub const LIBRARY: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/libnvidia-ml.so.1"));
