//! Fakes at the edges, for tests that run the real code between them.

pub mod counted;
pub mod house;
pub mod nvml;
pub mod plane;
pub mod process;
pub mod raw;
pub mod scripted;
