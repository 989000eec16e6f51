//! Who holds what on the GPUs. Strangers are one series a card: their names are anybody's choice.

use super::IntGauge;
use crate::holding::{Holdings, Owner};
use prometheus_client::{
    encoding::EncodeLabelSet,
    metrics::family::Family,
    registry::{Registry, Unit},
};
use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, PoisonError},
};

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, EncodeLabelSet)]
struct HolderLabels {
    gpu: String,
    holder: &'static str,
    server: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OnGpu {
    server: String,
    gpu: String,
    how: &'static str,
}

/// The families, and what they are set from at the next page.
#[derive(Debug)]
pub(super) struct Holding {
    memory: Family<HolderLabels, IntGauge>,
    servers: Family<OnGpu, IntGauge>,
    /// Held for the copy of a pointer.
    latest: Mutex<Arc<Holdings>>,
}

impl Holding {
    pub(super) fn new(r: &mut Registry) -> Self {
        Self {
            memory: family!(
                r,
                "gpu_holder_memory",
                "GPU memory by whom it belongs to; all of a GPU's together are what is used and reserved",
                Unit::Bytes
            ),
            servers: family!(
                r,
                "server_gpu",
                "1 for each GPU that a server uses, and how that is known"
            ),
            latest: Mutex::default(),
        }
    }

    pub(super) fn keep(&self, holdings: Arc<Holdings>) {
        *self.latest.lock().unwrap_or_else(PoisonError::into_inner) = holdings;
    }

    /// Sets the gauges. Called by one page at a time.
    pub(super) fn set(&self) {
        let holdings = Arc::clone(&self.latest.lock().unwrap_or_else(PoisonError::into_inner));
        self.memory.clear();
        self.servers.clear();
        for (labels, bytes) in memory(&holdings) {
            self.memory.get_or_create(&labels).set(i64::try_from(bytes).unwrap_or(i64::MAX));
        }
        for (server, holding) in &holdings.servers {
            for gpu in holding.gpus.keys() {
                let (server, gpu) = (server.to_string(), gpu.to_string());
                let labels = OnGpu { server, gpu, how: holding.how.as_str() };
                self.servers.get_or_create(&labels).set(1);
            }
        }
    }
}

fn memory(holdings: &Holdings) -> BTreeMap<HolderLabels, u64> {
    let mut sums: BTreeMap<HolderLabels, u64> = BTreeMap::new();
    for gpu in &holdings.gpus {
        let mut add = |holder, server: &str, bytes: u64| {
            let (gpu, server) = (gpu.gpu.to_string(), server.to_owned());
            let sum = sums.entry(HolderLabels { gpu, holder, server }).or_default();
            *sum = sum.saturating_add(bytes);
        };
        for holder in &gpu.holders {
            let Some(memory) = holder.memory else { continue };
            match &holder.owner {
                Owner::Server { server } => add("server", server.as_str(), memory.get()),
                Owner::Shared { .. } => add("servers", "", memory.get()),
                Owner::Foreign { .. } => add("foreign", "", memory.get()),
                Owner::Driver => add("driver", "", memory.get()),
            }
        }
        if let Some(untold) = gpu.untold {
            add("untold", "", untold.get());
        }
    }
    sums
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        holding::{GpuHolding, Holder},
        units::Bytes,
    };

    #[test]
    fn strangers_are_one_series_and_nothing_is_left_out() {
        let holder = |owner, memory: Option<u64>| Holder {
            owner,
            memory: memory.map(Bytes),
            pids: Vec::new(),
        };
        let foreign =
            |name: &str| Owner::Foreign { name: name.to_owned(), unit: None, container: None };
        let holders = vec![
            holder(Owner::Server { server: "s".into() }, Some(50)),
            holder(foreign("a"), Some(7)),
            holder(foreign("b"), Some(8)),
            holder(foreign("c"), None),
            holder(Owner::Shared { servers: vec!["s".into(), "t".into()] }, Some(3)),
            holder(Owner::Driver, Some(2)),
        ];
        let gpu = GpuHolding { gpu: "GPU-a".into(), holders, untold: Some(Bytes(30)) };
        let sums = memory(&Holdings { gpus: vec![gpu], ..Default::default() });
        let told: Vec<(&str, &str, u64)> =
            sums.iter().map(|(of, bytes)| (of.holder, of.server.as_str(), *bytes)).collect();
        let wanted = [
            ("driver", "", 2),
            ("foreign", "", 15),
            ("server", "s", 50),
            ("servers", "", 3),
            ("untold", "", 30),
        ];
        assert_eq!(told, wanted);
    }
}
