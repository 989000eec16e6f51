//! What a request took of the GPUs: energy and time, split over those who ran.
//!
//! It is an attribution. A card measures itself, not requests; what it measured is split by rules that
//! `docs/energy.md` tells, with their errors. What is certain is the sum: shares of requests, idle share
//! and share of others are, card by card, exactly what was measured.
//!
//! Rules only: `now` and readings come in, shares go out. It knows no driver and no task.

pub mod gauge;
#[cfg(test)]
mod hour_tests;
pub mod idle;
pub mod meter;
#[cfg(test)]
mod meter_tests;
pub mod places;
pub mod price;
mod shares;
mod split;
pub mod work;
pub mod works;

pub use meter::{CardView, Meter, Round};
pub use places::Places;
pub use price::Prices;
pub use split::split;
pub use work::{Facts, Work};
pub use works::Works;

use crate::{
    ids::{ModelName, ServerId, TenantId, Tier},
    units::{GpuMicros, Microjoules},
};

/// For whom something was used. All four come from the configuration and from servers, never from
/// callers, so maps by it are bounded.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Key {
    /// The server that worked.
    pub server: ServerId,
    /// The model.
    pub model: ModelName,
    /// Who pays.
    pub tenant: TenantId,
    /// How urgent it was.
    pub tier: Tier,
}

/// What was used of GPUs, over all cards.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Spent {
    /// Energy above the cards' idle share.
    pub energy: Microjoules,
    /// Time of GPUs at work.
    pub time: GpuMicros,
}

impl Spent {
    /// Both together.
    #[must_use]
    pub const fn plus(self, other: Self) -> Self {
        Self { energy: self.energy.plus(other.energy), time: self.time.plus(other.time) }
    }
}
