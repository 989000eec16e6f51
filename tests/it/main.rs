//! The integration tests, in one binary so that they link once.

#![allow(clippy::expect_used, clippy::panic, reason = "a test that cannot go on must say where")]

#[path = "../support/mod.rs"]
mod support;

mod gpu;
