//! Energy and time of GPUs: by whom they were used, and how each card's were split.

use crate::{
    energy::{Key, Spent, meter::Shares, price::FineCost},
    ids::GpuId,
};
use prometheus_client::{
    encoding::EncodeLabelSet,
    metrics::{counter::Counter, family::Family},
    registry::Registry,
};
use std::sync::atomic::AtomicU64;

type FloatCounter = Counter<f64, AtomicU64>;

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Whose {
    server: String,
    model: String,
    tenant: String,
    tier: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ShareOf {
    gpu: String,
    share: &'static str,
}

/// The families. Labels come from servers and the configuration.
#[derive(Debug)]
pub(super) struct Energy {
    joules: Family<Whose, FloatCounter>,
    seconds: Family<Whose, FloatCounter>,
    cost: Family<Whose, FloatCounter>,
    gpu_joules: Family<ShareOf, FloatCounter>,
    gpu_seconds: Family<ShareOf, FloatCounter>,
}

impl Energy {
    pub(super) fn new(r: &mut Registry) -> Self {
        Self {
            joules: family!(
                r,
                "energy_joules",
                "Energy attributed to requests, above the cards' idle power"
            ),
            seconds: family!(r, "gpu_busy_seconds", "Time of GPUs at work, attributed to requests"),
            cost: family!(r, "energy_cost", "What both cost at the configured prices"),
            gpu_joules: family!(
                r,
                "gpu_energy_joules",
                "Energy of the GPU, by who it was attributed to"
            ),
            gpu_seconds: family!(
                r,
                "gpu_time_seconds",
                "Time of the GPU, by who it was attributed to"
            ),
        }
    }
}

impl super::Metrics {
    /// Requests took this much. `cost` only where prices are set.
    pub fn spent(&self, key: &Key, spent: Spent, cost: Option<FineCost>) {
        let whose = Whose {
            server: key.server.to_string(),
            model: key.model.to_string(),
            tenant: key.tenant.to_string(),
            tier: key.tier.as_str(),
        };
        self.energy.joules.get_or_create(&whose).inc_by(spent.energy.joules());
        self.energy.seconds.get_or_create(&whose).inc_by(spent.time.seconds());
        if let Some(cost) = cost {
            self.energy.cost.get_or_create(&whose).inc_by(cost.units());
        }
    }

    /// A card's energy and time were split so.
    pub fn gpu_shares(&self, gpu: &GpuId, shares: &Shares) {
        for (share, spent) in
            [("requests", shares.requests), ("idle", shares.idle), ("foreign", shares.foreign)]
        {
            let of = ShareOf { gpu: gpu.to_string(), share };
            self.energy.gpu_joules.get_or_create(&of).inc_by(spent.energy.joules());
            self.energy.gpu_seconds.get_or_create(&of).inc_by(spent.time.seconds());
        }
    }
}
