//! The policies that ours is compared with, each as its authors publish it.
//!
//! Each file names its source. All are driven by `front`: a chooser names a server for a request, or none for
//! now, and then the request waits in one line. What they know of caches is what they sent there themselves.
//! Given the same requests and the same seed, each decides the same.

mod blocks;
mod chance;
mod dynamo;
mod front;
mod gie;
mod gie_queue;
mod least_connections;
mod lmetric;
mod power_of_two;
mod prefix_hash;
mod round_robin;
#[cfg(test)]
mod samples;
mod sglang;
mod slots;

use self::{
    blocks::Caches, chance::Chance, dynamo::Dynamo, front::Front, gie::Gie, gie_queue::GieQueue,
    least_connections::LeastConnections, lmetric::Lmetric, power_of_two::PowerOfTwo,
    prefix_hash::PrefixHash, round_robin::RoundRobin, sglang::Sglang, slots::Slots,
};
use super::{Order, Policy, ServerView, View};

/// A policy that ours is compared with.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Baseline {
    /// Each server in turn.
    RoundRobin,
    /// The fewest requests in flight.
    LeastConnections,
    /// The less loaded of two random servers.
    PowerOfTwo,
    /// Consistent hashing of the prompt's beginning, bounded by load.
    PrefixHash,
    /// The longest known prefix while loads are balanced, as SGLang's gateway does.
    Sglang,
    /// Blocks to compute plus blocks in use, as NVIDIA Dynamo's KV router does.
    Dynamo,
    /// Weighted scores, as the Gateway API Inference Extension does.
    Gie,
    /// New prefill tokens times batch size.
    Lmetric,
    /// The scores of `gie` behind a gate with a queue.
    GieQueue,
    /// A fixed number of slots per server and a queue.
    Slots,
}

/// How a baseline is set up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BaselineSetup {
    /// Servers.
    pub servers: usize,
    /// KV tokens of each.
    pub kv_tokens: u64,
    /// Tokens in a block.
    pub block_tokens: u64,
    /// What chance starts from.
    pub seed: u64,
    /// Places in the queue, for those that have one.
    pub queue_max: usize,
}

// === impl Baseline ===

impl Baseline {
    /// All of them.
    pub const ALL: [Self; 10] = [
        Self::RoundRobin,
        Self::LeastConnections,
        Self::PowerOfTwo,
        Self::PrefixHash,
        Self::Sglang,
        Self::Dynamo,
        Self::Gie,
        Self::Lmetric,
        Self::GieQueue,
        Self::Slots,
    ];
}

/// Makes one.
pub fn make(which: Baseline, setup: &BaselineSetup) -> Box<dyn Policy> {
    let caches = || Caches::new(setup);
    let chance = || Chance::new(setup.seed);
    match which {
        Baseline::RoundRobin => Front::boxed(RoundRobin::default(), setup),
        Baseline::LeastConnections => Front::boxed(LeastConnections::default(), setup),
        Baseline::PowerOfTwo => Front::boxed(PowerOfTwo::new(chance()), setup),
        Baseline::PrefixHash => Front::boxed(PrefixHash::new(setup.servers), setup),
        Baseline::Sglang => Front::boxed(Sglang::new(caches()), setup),
        Baseline::Dynamo => Front::boxed(Dynamo::new(caches(), chance(), setup), setup),
        Baseline::Gie => Front::boxed(Gie::new(caches(), chance()), setup),
        Baseline::Lmetric => Front::boxed(Lmetric::new(caches()), setup),
        Baseline::GieQueue => Front::boxed(GieQueue::new(Gie::new(caches(), chance())), setup),
        Baseline::Slots => Front::boxed(Slots::default(), setup),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::replay::world::Arrival;
    use clap::ValueEnum;

    #[test]
    fn all_are_there_under_their_names() {
        assert_eq!(Baseline::value_variants(), Baseline::ALL);
        let name = |which: &Baseline| which.to_possible_value().unwrap().get_name().to_owned();
        let names: Vec<String> = Baseline::ALL.iter().map(name).collect();
        let expected = "round-robin least-connections power-of-two prefix-hash sglang dynamo gie \
                        lmetric gie-queue slots";
        assert_eq!(names.join(" "), expected);
    }

    #[test]
    fn each_places_every_request_once_and_the_same_way_again() {
        let setup = BaselineSetup {
            servers: 4,
            kv_tokens: 100_000,
            block_tokens: 512,
            seed: 7,
            queue_max: 100,
        };
        let arrivals: Vec<Arrival> = (0..100_u32)
            .map(|at| Arrival {
                at_s: f64::from(at),
                input: 600 + 512 * u64::from(at % 5),
                output: 10,
                blocks: (0..=u64::from(at % 5)).map(|block| block * 10 + block).collect(),
                tenant: 0,
                ttft_s: 2.0,
            })
            .collect();
        let seen = [ServerView { capacity: 100_000, ..ServerView::default() }; 4];
        let view = View { arrivals: &arrivals, seen: &seen };
        for which in Baseline::ALL {
            let play = || {
                let (mut policy, mut orders) = (make(which, &setup), Vec::new());
                for request in 0..arrivals.len() {
                    policy.arrives(request, &view, 0.0, &mut orders);
                    policy.decide(&view, 0.0, &mut orders);
                }
                orders
            };
            let orders = play();
            assert_eq!(orders, play(), "{which:?}");
            for (at, order) in orders.iter().enumerate() {
                let Order::Place { request, server, priority } = *order else {
                    panic!("{which:?}: {order:?}")
                };
                assert!(request == at && server < 4 && priority == 0, "{which:?}: {order:?}");
            }
            assert_eq!(orders.len(), arrivals.len(), "{which:?}");
        }
    }
}
