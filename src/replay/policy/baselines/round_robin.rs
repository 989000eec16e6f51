//! Each server in turn, whatever it has to do. The default of NGINX
//! (nginx.org/en/docs/http/load_balancing.html) and of most proxies.

use super::{
    ServerView,
    front::{Chooser, Load, Prompt},
};

/// Whose turn it is.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct RoundRobin {
    next: usize,
}

impl Chooser for RoundRobin {
    fn choose(&mut self, _: &Prompt<'_>, loads: &[Load], _: &[ServerView]) -> Option<usize> {
        let server = self.next.checked_rem(loads.len())?;
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
    fn each_in_turn_whatever_its_load() {
        let mut policy = RoundRobin::default();
        let loads = loads([9, 0, 5]);
        let row: Vec<_> = (0..5).map(|_| policy.choose(&prompt(&[]), &loads, &[])).collect();
        assert_eq!(row, [0, 1, 2, 0, 1].map(Some));
        assert_eq!(policy.choose(&prompt(&[]), &[], &[]), None);
    }
}
