//! The longest known prefix while loads are balanced: `cache_aware` of SGLang's gateway
//! (sgl-project/sglang, sgl-model-gateway/src/policies/cache_aware.rs and its guide sgl_model_gateway.md).
//!
//! Loads are out of balance when the most and the fewest requests in flight are more than 64 apart and also
//! more than 1.5 times: then the fewest win. Else the server with the longest known prefix wins if that is more
//! than 0.3 of the prompt. If it is not, the fewest requests win (older versions: the smallest tree). Of servers
//! that know equally much the published tree names a fixed one; here it is the first.

use super::{
    Caches, ServerView,
    front::{Chooser, Load, Prompt, least},
};
use std::cmp::Reverse;

/// Share of the prompt that must be known, more than.
const KNOWN_SHARE: f64 = 0.3;
/// Requests that the most and the least loaded server may be apart.
const APART: usize = 64;
/// How many times the least the most may be.
const TIMES: f64 = 1.5;

/// What was sent where.
#[derive(Clone, Debug)]
pub(super) struct Sglang {
    caches: Caches,
}

// === impl Sglang ===

impl Sglang {
    /// Nothing sent yet.
    pub(super) const fn new(caches: Caches) -> Self {
        Self { caches }
    }

    /// The server that knows most of the prompt, if that is enough.
    fn knows(&self, prompt: &Prompt<'_>, servers: usize) -> Option<usize> {
        let uncached = |server: &usize| self.caches.uncached(*server, prompt);
        let best =
            (0..servers).max_by_key(|server| (Reverse(uncached(server)), Reverse(*server)))?;
        let known = prompt.input.saturating_sub(uncached(&best));
        (known as f64 > KNOWN_SHARE * prompt.input as f64).then_some(best)
    }
}

fn apart(loads: &[Load]) -> bool {
    let requests = || loads.iter().map(|load| load.requests);
    let (most, fewest) = (requests().max().unwrap_or(0), requests().min().unwrap_or(0));
    most - fewest > APART && most as f64 > fewest as f64 * TIMES
}

impl Chooser for Sglang {
    fn choose(&mut self, prompt: &Prompt<'_>, loads: &[Load], _: &[ServerView]) -> Option<usize> {
        let knows = if apart(loads) { None } else { self.knows(prompt, loads.len()) };
        knows.or_else(|| least(loads, 0..loads.len()))
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
    fn a_shared_prompt_goes_to_the_same_server_until_loads_are_out_of_balance() {
        let mut policy = Sglang::new(Caches::new(&setup(3)));
        policy.placed(&prompt(&[1, 2, 3]), 2);
        let mut choose = |blocks, requests| policy.choose(&prompt(blocks), &loads(requests), &[]);
        assert_eq!(choose(&[1, 2, 4], [0, 0, 64]), Some(2), "64 apart are still in balance");
        assert_eq!(choose(&[1, 2, 4], [1, 0, 65]), Some(1));
        assert_eq!(choose(&[1, 2, 4], [140, 130, 195]), Some(2), "not more than 1.5 times");
        assert_eq!(choose(&[1, 2, 4], [140, 130, 196]), Some(1));
    }

    #[test]
    fn a_prefix_that_is_too_short_does_not_count() {
        let mut policy = Sglang::new(Caches::new(&setup(3)));
        policy.placed(&prompt(&[1]), 2);
        let mut choose = |blocks| policy.choose(&prompt(blocks), &loads([1, 0, 2]), &[]);
        assert_eq!(choose(&[1, 5]), Some(2), "512 of 1124 tokens");
        assert_eq!(choose(&[1, 5, 6, 7]), Some(1), "512 of 2148 tokens");
    }
}
