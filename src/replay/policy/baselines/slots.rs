//! A fixed number of requests per server and one queue before them: the limiter that proxies offer (`maxconn`
//! of HAProxy's servers, docs.haproxy.org, with `balance leastconn`).
//!
//! The server with the fewest used slots is taken, the first of equal ones. If all slots are used, requests wait
//! first come first served.

use super::{
    ServerView,
    front::{Chooser, Load, Prompt, least},
};

/// Requests that a server may have at a time.
pub(super) const SLOTS: usize = 32;

/// The limit.
#[derive(Clone, Copy, Debug)]
pub(super) struct Slots {
    /// Requests of each server.
    slots: usize,
}

// === impl Slots ===

impl Default for Slots {
    fn default() -> Self {
        Self { slots: SLOTS }
    }
}

impl Chooser for Slots {
    fn choose(&mut self, _: &Prompt<'_>, loads: &[Load], _: &[ServerView]) -> Option<usize> {
        let server = least(loads, 0..loads.len())?;
        loads.get(server).is_some_and(|load| load.requests < self.slots).then_some(server)
    }
}

#[cfg(test)]
mod tests {
    use super::{
        super::samples::{loads, prompt},
        *,
    };

    #[test]
    fn the_fewest_used_slots_win_and_without_a_free_one_all_wait() {
        let mut policy = Slots::default();
        let mut choose = |requests| policy.choose(&prompt(&[]), &loads(requests), &[]);
        assert_eq!(choose([32, 31, 30]), Some(2));
        assert_eq!(choose([32, 31, 33]), Some(1));
        assert_eq!(choose([32, 32, 32]), None);
        assert_eq!(choose([0, 0, 0]), Some(0));
    }
}
