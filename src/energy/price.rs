//! What energy and time of GPUs cost: `price = energy + amortisation`.

use super::Spent;
use crate::{config, units::Cost};

/// Prices on own hardware, in millionths of the operator's currency.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Prices {
    kwh: u64,
    gpu_hour: u64,
}

/// A cost in millionths of a [`Cost`]'s unit: what a second costs is far below a millionth, and rounding
/// it each time would lose a tenant's bill.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct FineCost(u128);

/// Microjoules in a kilowatt-hour, and GPU microseconds in an hour, each over a million: a price for them
/// in millionths, times a quantity, divided by this, is in millionths of millionths.
const KWH: u128 = 3_600_000_000_000 / 1_000_000;
const HOUR: u128 = 3_600_000_000 / 1_000_000;

impl Prices {
    /// Those that are configured.
    pub fn of(energy: &config::Energy) -> Self {
        // Up to 1e9 in the configuration: far within the range.
        let micro = |price: f64| (price * 1e6).round().max(0.0) as u64;
        Self { kwh: micro(energy.price_per_kwh), gpu_hour: micro(energy.price_per_gpu_hour) }
    }

    /// Whether anything has a price.
    pub const fn are_set(self) -> bool {
        self.kwh > 0 || self.gpu_hour > 0
    }

    /// What this cost, for adding up.
    pub fn fine(self, spent: Spent) -> FineCost {
        let energy = u128::from(spent.energy.get()).saturating_mul(u128::from(self.kwh)) / KWH;
        let time = u128::from(spent.time.get()).saturating_mul(u128::from(self.gpu_hour)) / HOUR;
        FineCost(energy.saturating_add(time))
    }

    /// What this cost.
    pub fn cost(self, spent: Spent) -> Cost {
        self.fine(spent).rounded()
    }
}

impl FineCost {
    /// The sum.
    #[must_use]
    pub const fn plus(self, other: Self) -> Self {
        Self(self.0.saturating_add(other.0))
    }

    /// The same in units of the currency, for counters.
    pub fn units(self) -> f64 {
        self.0 as f64 / 1e12
    }

    /// To the next millionth of the currency.
    pub fn rounded(self) -> Cost {
        Cost(u64::try_from(self.0.saturating_add(500_000) / 1_000_000).unwrap_or(u64::MAX))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::units::{GpuMicros, Microjoules};

    fn prices(price_per_kwh: f64, price_per_gpu_hour: f64) -> Prices {
        Prices::of(&config::Energy {
            price_per_kwh,
            price_per_gpu_hour,
            ..config::Energy::default()
        })
    }

    #[test]
    fn a_kilowatt_hour_and_a_gpu_hour_cost_what_was_said() {
        let kwh = Spent { energy: Microjoules(3_600_000_000_000), ..Spent::default() };
        let hour = Spent { time: GpuMicros(3_600_000_000), ..Spent::default() };
        assert_eq!(prices(0.31, 2.0).cost(kwh), Cost(310_000));
        assert_eq!(prices(0.31, 2.0).cost(hour), Cost(2_000_000));
        assert_eq!(prices(0.31, 2.0).cost(kwh.plus(hour)), Cost(2_310_000));
        assert!(!prices(0.0, 0.0).are_set());
        assert!(prices(0.0, 0.1).are_set());
    }

    /// Rounded to millionths each time, a bill of many small parts was nothing.
    #[test]
    fn many_small_parts_cost_what_the_whole_costs() {
        let prices = prices(0.3, 1.5);
        let small = Spent { energy: Microjoules(3_000), time: GpuMicros(40) };
        assert_eq!(prices.cost(small), Cost(0));
        let all = (0..1_000_000).fold(FineCost::default(), |sum, _| sum.plus(prices.fine(small)));
        let whole = Spent { energy: Microjoules(3_000_000_000), time: GpuMicros(40_000_000) };
        let (all, whole) = (all.rounded().get(), prices.cost(whole).get());
        assert!(whole > 16_000 && all.abs_diff(whole) <= 1, "{all} {whole}");
    }
}
