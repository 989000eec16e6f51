//! berthd, the inference broker daemon for GPU hosts.
//!
//! The folder list is the architecture. Floors are listed bottom-up; a file may `use crate::` only from
//! lower floors, and from its own folder. A request climbs down `pipeline` in one straight line.

// Floor 0: words everyone shares.
pub mod error;
pub mod ids;
pub mod units;

// Floor 1: what the operator said; what callers say.
pub mod config;

// Floor 2: what the node looks like right now; what text costs.
pub mod snapshot;
pub mod tokens;

// Floor 4: edges.
pub mod servers;
