//! berthd, the inference broker daemon for GPU hosts.
//!
//! The folder list is the architecture. Floors are listed bottom-up; a file may `use crate::` only from
//! lower floors, and from its own folder. A request climbs down `pipeline` in one straight line.

// Floor 0: words everyone shares.
pub mod error;
pub mod ids;
pub mod units;

// Floor 1: what the operator said; what callers say.
pub mod api;
pub mod config;

// Floor 2: what the node looks like right now; what text costs.
pub mod snapshot;
pub mod tokens;

// Floor 3: rules. They decide and never do I/O.
pub mod admit;
pub mod energy;
pub mod fault;
pub mod holding;
pub mod ledger;
pub mod queue;
pub mod schedule;
pub mod screen;

// Floor 4: edges: hardware, processes, sockets, model servers, classifiers.
pub mod classify;
pub mod gpu;
pub mod processes;
pub mod servers;

// Floor 5: what happens to a request; what operators see.
pub mod control;
pub mod metrics;
pub mod pipeline;
pub mod report;

// Floor 6: assembly.
pub mod cli;
pub mod daemon;
pub mod log;
pub mod systemd;

// Beside the floors: a model server to test against, and the rules played against many of them.
pub mod replay;
pub mod simulate;
