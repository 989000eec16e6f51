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

mod answers;
mod cancel;
mod control;
mod counts;
mod docs;
mod faults;
mod floors;
mod gpu;
mod hangup;
mod judged;
mod memo;
mod metrics_page;
mod overload;
mod quickstart;
mod refusals;
mod scripted;
mod service;
mod simulate;
mod special_tokens;
mod streams;
mod token_ids;
mod trailing;
mod vocabularies;
