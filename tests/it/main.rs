//! The integration tests, in one binary so that they link once.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::string_slice,
    reason = "a test fails by panicking; the lints' own exception covers test functions only"
)]

#[path = "../support/mod.rs"]
mod support;

mod counts;
mod gpu;
mod scripted;
mod simulate;
mod vocabularies;
