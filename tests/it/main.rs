//! Tests of the whole from outside, in one binary.

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

mod scripted;
mod simulate;
