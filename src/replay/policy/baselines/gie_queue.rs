//! The scores of [`super::gie`] behind a gate: flow control of the Gateway API Inference Extension and llm-d
//! (pkg/epp/saturationdetector of kubernetes-sigs/gateway-api-inference-extension; llm-d.ai, "Flow Control").
//!
//! A request goes only to a server whose metrics page showed fewer than 5 waiting and less than 0.8 of its KV
//! cache in use. If there is none, all wait in one line, first come first served. Pages are up to 50 ms old, and
//! what was sent since does not count: the published loop too sends on as long as the page says so, and a whole
//! line may pass a gate that should have closed. The published gate looks at the mean of all servers and then
//! leaves the full ones out; here each server is looked at alone.

use super::{
    ServerView,
    front::{Chooser, Load, Prompt},
    gie::{Gie, kv_share},
};

/// Sequences that wait on a server must be fewer.
const WAITING: usize = 5;
/// The share of its KV cache in use must be less.
const KV_SHARE: f64 = 0.8;

/// The gate.
#[derive(Clone, Debug)]
pub(super) struct GieQueue {
    gie: Gie,
}

// === impl GieQueue ===

impl GieQueue {
    /// Before these scores.
    pub(super) const fn new(gie: Gie) -> Self {
        Self { gie }
    }
}

fn open(server: &ServerView) -> bool {
    server.waiting < WAITING && kv_share(server) < KV_SHARE
}

impl Chooser for GieQueue {
    fn choose(&mut self, prompt: &Prompt<'_>, _: &[Load], seen: &[ServerView]) -> Option<usize> {
        let servers = seen.iter().copied().enumerate();
        let candidates: Vec<_> = servers.filter(|(_, server)| open(server)).collect();
        self.gie.best(prompt, &candidates)
    }

    fn placed(&mut self, prompt: &Prompt<'_>, server: usize) -> u64 {
        self.gie.placed(prompt, server)
    }
}

#[cfg(test)]
mod tests {
    use super::{
        super::{
            Baseline, Caches, Chance, Order, View, make,
            samples::{arrival, prompt, setup},
        },
        *,
    };

    fn server(waiting: usize, used: u64) -> ServerView {
        ServerView { running: 0, waiting, used, capacity: 100 }
    }

    #[test]
    fn closed_servers_are_never_taken_even_for_a_known_prompt() {
        let mut policy = GieQueue::new(Gie::new(Caches::new(&setup(2)), Chance::new(1)));
        policy.placed(&prompt(&[1]), 0);
        let mut choose = |one, other| policy.choose(&prompt(&[1]), &[], &[one, other]);
        assert_eq!(choose(server(4, 40), server(4, 0)), Some(0), "3.0 against 0.8");
        assert_eq!(choose(server(5, 0), server(0, 70)), Some(1));
        assert_eq!(choose(server(0, 80), server(0, 70)), Some(1));
        assert_eq!(choose(server(0, 80), server(5, 0)), None);
    }

    #[test]
    fn the_gate_holds_and_releases_in_order() {
        let arrivals = vec![arrival(); 2];
        let (mut policy, mut orders) = (make(Baseline::GieQueue, &setup(1)), Vec::new());
        let busy = View { arrivals: &arrivals, seen: &[server(5, 0)] };
        policy.arrives(0, &busy, 0.0, &mut orders);
        policy.arrives(1, &busy, 0.0, &mut orders);
        policy.decide(&busy, 0.0, &mut orders);
        assert_eq!(orders, []);
        let free = View { arrivals: &arrivals, seen: &[server(4, 0)] };
        policy.decide(&free, 0.05, &mut orders);
        let place = |request| Order::Place { request, server: 0, priority: 0 };
        assert_eq!(orders, [place(0), place(1)], "the page is old: both pass");
    }
}
