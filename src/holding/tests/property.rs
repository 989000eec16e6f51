//! Whatever is listed, no byte is lost and none counts twice.

use super::*;
use proptest::prelude::*;

proptest! {
    /// Whatever the driver lists: the holders and the driver together are what is used and reserved.
    #[test]
    fn no_byte_is_unassigned_and_none_counts_twice(
        used in any::<u64>().prop_map(|bytes| bytes >> 2),
        reserved in prop::option::of(any::<u64>().prop_map(|bytes| bytes >> 2)),
        list in prop::collection::vec((2..40u32, prop::option::weighted(0.8, any::<u64>())), 0..12),
        trees in prop::collection::vec((2..40u32, 1..40u32, 0..3usize), 0..30),
        sockets in prop::collection::vec((8000..8004u16, 2..40u32), 0..6),
    ) {
        let mut card = gpu("GPU-a", 0, 0, &[]);
        card.memory_used = Some(Bytes(used));
        card.memory_reserved = reserved.map(Bytes);
        let mut pids = BTreeSet::new();
        let list = list.into_iter().filter(|(pid, _)| pids.insert(*pid));
        let list = list.map(|(pid, memory)| GpuProcess {
            pid, memory: memory.map(Bytes), ..Default::default()
        });
        card.processes = Some(list.collect());
        let mut node = Node::new(vec![card]);
        for (pid, parent, unit) in trees {
            node.process(pid, parent, "p", ["", "a.service", "b.scope"][unit]);
        }
        for (port, holder) in sockets {
            node.listen("0.0.0.0", port, &[holder]);
        }
        for port in 8000..8004 {
            node.server(&format!("s{port}"), "127.0.0.1", port);
        }
        let joined = node.join();
        let of = &joined.holdings.gpus[0];
        let sum: u128 = of.holders.iter().filter_map(|one| one.memory).map(|one| u128::from(one.get())).sum();
        let untold = of.untold.map_or(0, |one| u128::from(one.get()));
        prop_assert_eq!(sum + untold, u128::from(used) + u128::from(reserved.unwrap_or(0)));
        let mut named: Vec<u32> = of.holders.iter().flat_map(|one| one.pids.clone()).collect();
        named.sort_unstable();
        prop_assert_eq!(named, pids.into_iter().collect::<Vec<_>>(), "each process once");
        let servers: u128 = joined.holdings.servers.values()
            .flat_map(|one| one.gpus.values().flatten()).map(|one| u128::from(one.get())).sum();
        prop_assert!(servers <= u128::from(used));
    }
}
