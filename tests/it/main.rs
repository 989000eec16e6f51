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
mod attach;
mod cancel;
mod control;
mod counts;
mod docs;
mod drift;
mod energy;
mod explain;
mod fair_shares;
mod fake_driver;
mod fake_faults;
mod faults;
mod floors;
mod gpu;
mod gpu_events;
mod gpu_faults;
mod gpu_fields;
mod gpu_hang;
mod gpu_mig;
mod gpu_sessions;
mod hangup;
mod holding;
mod holding_unprivileged;
mod hung;
mod hung_signs;
mod judged;
mod kv_events;
mod memo;
mod memory_guard;
mod metrics_page;
mod overcontext;
mod overload;
mod preempt;
mod quickstart;
mod real_templates;
mod refusals;
mod screening;
mod screening_faults;
mod screening_hostile;
mod screening_streams;
mod scripted;
mod service;
mod simulate;
mod simulate_gpu;
mod special_tokens;
mod streams;
mod token_ids;
mod tokenize;
mod tokens_command;
mod trailing;
mod vocabularies;
