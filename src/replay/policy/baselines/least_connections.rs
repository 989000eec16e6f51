//! The fewest requests in flight: those that were sent there and have not ended. `least_conn` of NGINX
//! (nginx.org/en/docs/http/ngx_http_upstream_module.html): of equal servers each in turn.

use super::{
    ServerView,
    front::{Chooser, Load, Prompt, least},
};

/// Whose turn it is among equal ones.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct LeastConnections {
    next: usize,
}

impl Chooser for LeastConnections {
    fn choose(&mut self, _: &Prompt<'_>, loads: &[Load], _: &[ServerView]) -> Option<usize> {
        let first = self.next.checked_rem(loads.len())?;
        let server = least(loads, (first..loads.len()).chain(0..first))?;
        self.next = server + 1;
        Some(server)
    }
}

#[cfg(test)]
mod tests {
    use super::{
        super::samples::{loads, prompt},
        *,
    };

    #[test]
    fn the_fewest_win_and_equal_ones_take_turns() {
        let mut policy = LeastConnections::default();
        let mut choose = |requests| policy.choose(&prompt(&[]), &loads(requests), &[]);
        assert_eq!(choose([3, 1, 2]), Some(1));
        let row: Vec<_> = (0..4).map(|_| choose([2, 2, 2])).collect();
        assert_eq!(row, [2, 0, 1, 2].map(Some));
    }
}
