//! Quantities that everyone shares: tokens, bytes, energy, time of GPUs, money.
//!
//! Arithmetic saturates: a count that went wrong must refuse work, never wrap round and admit it.

use serde::Serialize;
use std::fmt;

macro_rules! quantity {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
        #[serde(transparent)]
        pub struct $name(pub u64);

        impl $name {
            /// Nothing of it.
            pub const ZERO: Self = Self(0);

            /// The bare number, for metrics and text.
            pub const fn get(self) -> u64 {
                self.0
            }

            /// The sum, stopping at the largest value.
            #[must_use]
            pub const fn plus(self, other: Self) -> Self {
                Self(self.0.saturating_add(other.0))
            }

            /// The difference, stopping at zero.
            #[must_use]
            pub const fn less(self, other: Self) -> Self {
                Self(self.0.saturating_sub(other.0))
            }

            /// This as a share of `whole`, 0.0 when `whole` is zero.
            pub fn share_of(self, whole: Self) -> f64 {
                if whole.0 == 0 { 0.0 } else { self.0 as f64 / whole.0 as f64 }
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }
    };
}

quantity! {
    /// A number of tokens of one model's vocabulary.
    Tokens
}

quantity! {
    /// A number of bytes.
    Bytes
}

quantity! {
    /// Energy, millionths of a joule (watt-second). Whole numbers, so that shares add up to what was split.
    Microjoules
}

quantity! {
    /// Time of one GPU at work, microseconds. An hour of two busy GPUs is two GPU-hours.
    GpuMicros
}

quantity! {
    /// Money, millionths of the operator's currency.
    Cost
}

impl Microjoules {
    /// The same in joules.
    pub fn joules(self) -> f64 {
        self.0 as f64 / 1e6
    }
}

impl GpuMicros {
    /// The same in seconds.
    pub fn seconds(self) -> f64 {
        self.0 as f64 / 1e6
    }
}

impl Cost {
    /// The same in units of the currency.
    pub fn units(self) -> f64 {
        self.0 as f64 / 1e6
    }
}

impl Bytes {
    /// `n` mebibytes (2^20 bytes).
    pub const fn mib(n: u64) -> Self {
        Self(n.saturating_mul(1 << 20))
    }

    /// Text for people: `812 MiB`, `139.0 GiB`.
    pub fn human(self) -> String {
        const GIB: f64 = (1u64 << 30) as f64;
        const MIB: f64 = (1u64 << 20) as f64;
        let bytes = self.0 as f64;
        if bytes >= GIB {
            format!("{:.1} GiB", bytes / GIB)
        } else {
            format!("{:.0} MiB", bytes / MIB)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn arithmetic_saturates_instead_of_wrapping() {
        assert_eq!(Tokens(3).less(Tokens(5)), Tokens::ZERO);
        assert_eq!(Tokens(u64::MAX).plus(Tokens(1)), Tokens(u64::MAX));
        assert_eq!(Tokens(1).share_of(Tokens::ZERO), 0.0);
    }

    #[test]
    fn bytes_read_like_a_person_writes_them() {
        assert_eq!(Bytes::mib(812).human(), "812 MiB");
        assert_eq!(Bytes::mib(1536).human(), "1.5 GiB");
    }
}
