//! The GPUs' condition: a state set, what they need, and what happened to them.

use super::{FloatGauge, IntGauge};
use crate::{
    fault::{Condition, GpuHealth, Needs, xid::Xid},
    ids::GpuId,
};
use prometheus_client::{
    encoding::EncodeLabelSet,
    metrics::{counter::Counter, family::Family},
    registry::Registry,
};
use std::sync::{Mutex, PoisonError};

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct InCondition {
    gpu: String,
    condition: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct WithNeed {
    gpu: String,
    needs: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OfGpu {
    gpu: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct XidLabels {
    gpu: String,
    class: &'static str,
    xid: String,
}

/// The families.
#[derive(Debug)]
pub(super) struct Faults {
    /// Guards what the next page tells; held for a copy.
    health: Mutex<Vec<GpuHealth>>,
    condition: Family<InCondition, IntGauge>,
    needs: Family<WithNeed, IntGauge>,
    weight: Family<OfGpu, FloatGauge>,
    xids: Family<XidLabels, Counter>,
    drains: Family<OfGpu, Counter>,
}

impl Faults {
    pub(super) fn new(r: &mut Registry) -> Self {
        Self {
            health: Mutex::default(),
            condition: family!(r, "gpu_condition", "1 at the GPU's condition, 0 at the others"),
            needs: family!(r, "gpu_needs", "1 at what an operator must do for the GPU"),
            weight: family!(
                r,
                "gpu_weight_ratio",
                "Share of its full work that the GPU is good for"
            ),
            xids: family!(r, "gpu_xids", "Xids that the driver told, by class and number"),
            drains: family!(r, "gpu_drains", "Times that the GPU's servers were taken out"),
        }
    }

    /// Sets the gauges of a page anew: devices that are gone must not stay on it. One page is made at a time.
    pub(super) fn set(&self) {
        let health = self.health.lock().unwrap_or_else(PoisonError::into_inner).clone();
        self.condition.clear();
        self.needs.clear();
        self.weight.clear();
        for one in &health {
            let gpu = one.gpu.to_string();
            for condition in Condition::ALL {
                let labels = InCondition { gpu: gpu.clone(), condition: condition.as_str() };
                let here = i64::from(condition == one.condition);
                self.condition.get_or_create(&labels).set(here);
            }
            for needs in Needs::ALL {
                let labels = WithNeed { gpu: gpu.clone(), needs: needs.as_str() };
                self.needs.get_or_create(&labels).set(i64::from(one.needs == Some(needs)));
            }
            self.weight.get_or_create(&OfGpu { gpu }).set(one.weight);
        }
    }
}

impl super::Metrics {
    /// How each GPU is by now.
    pub fn gpus_judged(&self, health: &[GpuHealth]) {
        let mut told = self.faults.health.lock().unwrap_or_else(PoisonError::into_inner);
        *told = health.to_vec();
    }

    /// An Xid came. Only numbers of our table become labels.
    pub fn gpu_xid(&self, card: Option<&GpuId>, xid: Xid) {
        let labels = XidLabels {
            gpu: card.map_or("unknown", GpuId::as_str).to_owned(),
            class: xid.class.as_str(),
            xid: xid.name.map_or_else(|| "other".to_owned(), |_| xid.number.to_string()),
        };
        self.faults.xids.get_or_create(&labels).inc();
    }

    /// A GPU's servers were taken out.
    pub fn gpu_drained(&self, gpu: &GpuId) {
        self.faults.drains.get_or_create(&OfGpu { gpu: gpu.to_string() }).inc();
    }
}
