//! New prefill tokens times batch size: LMetric (Zhang et al., "Simple is Better: Multiplication May Be All You
//! Need for LLM Request Scheduling", arXiv 2603.15202).
//!
//! The first factor is what the server would have to compute before this request's first token: tokens that
//! wait for prefill there and the prompt's uncached ones. The second is the batch size with this request, which
//! keeps an idle server from costing nothing whatever it caches (so does the port in SGLang's gateway,
//! lmetric.rs). The smallest product wins, of equal ones the fewest requests, then the first.

use super::{
    Caches, ServerView,
    front::{Chooser, Load, Prompt},
};

/// What was sent where.
#[derive(Clone, Debug)]
pub(super) struct Lmetric {
    caches: Caches,
}

// === impl Lmetric ===

impl Lmetric {
    /// Nothing sent yet.
    pub(super) const fn new(caches: Caches) -> Self {
        Self { caches }
    }
}

impl Chooser for Lmetric {
    fn choose(&mut self, prompt: &Prompt<'_>, loads: &[Load], _: &[ServerView]) -> Option<usize> {
        let score = |(server, load): &(usize, &Load)| {
            let new = load.prefill.saturating_add(self.caches.uncached(*server, prompt));
            (new.saturating_mul(load.requests as u64 + 1), load.requests)
        };
        loads.iter().enumerate().min_by_key(score).map(|(server, _)| server)
    }

    fn placed(&mut self, prompt: &Prompt<'_>, server: usize) -> u64 {
        self.caches.touch(server, prompt)
    }
}

#[cfg(test)]
mod tests {
    use super::{
        super::samples::{loads, prompt, setup},
        *,
    };

    #[test]
    fn the_product_decides() {
        let mut policy = Lmetric::new(Caches::new(&setup(2)));
        policy.placed(&prompt(&[1, 2, 3]), 1);
        // 612 tokens against 2148: worth up to 3.5 times the batch.
        let mut choose = |loads: &[Load]| policy.choose(&prompt(&[1, 2, 3, 4]), loads, &[]);
        assert_eq!(choose(&loads([1, 6])), Some(1), "2148 * 2 against 612 * 7");
        assert_eq!(choose(&loads([1, 7])), Some(0));
        let waits = [Load { requests: 3, prefill: 0 }, Load { requests: 3, prefill: 1537 }];
        assert_eq!(choose(&waits), Some(0), "what waits there is added: 2149");
    }

    #[test]
    fn of_equal_products_the_fewest_requests_win() {
        let mut policy = Lmetric::new(Caches::new(&setup(2)));
        let loads = [Load { requests: 1, prefill: 0 }, Load { requests: 0, prefill: 100 }];
        assert_eq!(policy.choose(&prompt(&[]), &loads, &[]), Some(1), "100 * 2 and 200 * 1");
    }
}
