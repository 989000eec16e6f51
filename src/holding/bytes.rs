//! Every byte of one GPU's memory: what processes hold, and what is left for the driver.

use super::{GpuHolding, Holder, Owner};
use crate::{snapshot::GpuState, units::Bytes};
use std::collections::BTreeMap;

/// One process on a GPU, and whose it is.
#[derive(Clone, Debug)]
pub(super) struct Part {
    pub(super) owner: Owner,
    pub(super) pid: u32,
    pub(super) memory: Option<Bytes>,
}

/// Takes processes' figures down in proportion where they add up to more than is used: the driver reads
/// them a moment apart, and memory that processes share counts for each of them.
pub(super) fn fit(parts: &mut [Part], used: Option<Bytes>) {
    let sum: u128 =
        parts.iter().filter_map(|part| part.memory).map(|one| u128::from(one.get())).sum();
    let Some(used) = used.map(|used| u128::from(used.get())) else { return };
    if sum <= used {
        return;
    }
    // Each part ends where its share of the way ends, so that the parts add up to the whole.
    let (mut before, mut given) = (0, 0);
    for memory in parts.iter_mut().filter_map(|part| part.memory.as_mut()) {
        before += u128::from(memory.get());
        // The product is too large only for absurd figures; then some parts come out too small.
        let way = (before.saturating_mul(used) / sum).min(used);
        let until = if before == sum { used } else { way };
        *memory = Bytes(u64::try_from(until.saturating_sub(given)).unwrap_or(u64::MAX));
        given = until;
    }
}

/// One GPU's holders, each owner once.
pub(super) fn holding(gpu: &GpuState, parts: &[Part]) -> GpuHolding {
    let mut owners: BTreeMap<&Owner, (Option<Bytes>, Vec<u32>)> = BTreeMap::new();
    for part in parts {
        let (memory, pids) =
            owners.entry(&part.owner).or_insert_with(|| (Some(Bytes::ZERO), Vec::new()));
        *memory = memory.zip(part.memory).map(|(sum, one)| sum.plus(one));
        pids.push(part.pid);
    }
    let holder = |(owner, (memory, pids)): (&Owner, (Option<Bytes>, Vec<u32>))| Holder {
        owner: owner.clone(),
        memory,
        pids,
    };
    let mut holders: Vec<Holder> = owners.into_iter().map(holder).collect();
    let told = holders.iter().filter_map(|one| one.memory).fold(Bytes::ZERO, Bytes::plus);
    let rest = gpu.memory_used.map(|used| used.less(told));
    let reserved = gpu.memory_reserved.unwrap_or_default();
    let all_told = holders.iter().all(|one| one.memory.is_some());
    let (driver, untold) = match rest {
        Some(rest) if all_told => (reserved.plus(rest), None),
        rest => (reserved, rest.filter(|_| !all_told)),
    };
    if driver != Bytes::ZERO {
        holders.push(Holder { owner: Owner::Driver, memory: Some(driver), pids: Vec::new() });
    }
    holders.sort_by(|a, b| b.memory.cmp(&a.memory).then_with(|| a.owner.cmp(&b.owner)));
    GpuHolding { gpu: gpu.id.clone(), holders, untold }
}
