//! Named servers whose speed is known well enough to compare policies on.
//!
//! Public data sheets' rooflines times estimated efficiencies (compute 0.55, bandwidth 0.8, attention 0.4).
//! They rank policies; they do not predict absolute numbers.

use super::clock::Profile;
use crate::units::Tokens;
use clap::ValueEnum;

/// Which server is played.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum ProfileName {
    /// An 8-billion-parameter model in 16 bits on one H100.
    #[value(name = "8b-h100")]
    Small8bH100,
    /// The same model on one H200.
    #[value(name = "8b-h200")]
    Small8bH200,
    /// A 70-billion-parameter model in 16 bits on four H100.
    #[value(name = "70b-4h100")]
    Large70b4H100,
    /// An 8-billion-parameter model in 4 bits on a 24 GB card.
    #[value(name = "8b4-24g")]
    Small8b4On24g,
    /// No delay at all: to measure what stands in front of it.
    #[value(name = "instant")]
    Instant,
}

// === impl ProfileName ===

impl ProfileName {
    /// The server's costs; `None` for the one that takes no time.
    pub fn profile(self) -> Option<Profile> {
        let (weights_s, fix_s, token_s, context_s, attention_s, kv, chunk) = match self {
            Self::Small8bH100 => (6.0e-3, 1.5e-3, 29.4e-6, 4.9e-8, 1.3e-9, 400_000, 2048),
            Self::Small8bH200 => (4.2e-3, 1.5e-3, 29.4e-6, 3.4e-8, 1.3e-9, 820_000, 2048),
            Self::Large70b4H100 => (13.0e-3, 6.0e-3, 71.0e-6, 3.1e-8, 1.65e-9, 400_000, 2048),
            Self::Small8b4On24g => (6.9e-3, 2.0e-3, 200.0e-6, 1.64e-7, 6.6e-9, 100_000, 512),
            Self::Instant => return None,
        };
        Some(Profile {
            weights_s,
            fix_s,
            token_s,
            context_s,
            attention_s,
            kv: Tokens(kv),
            chunk: Tokens(chunk),
            max_running: 256,
        })
    }
}
