//! What all baselines share: they count what they sent, and who cannot go waits in one line.

use super::{BaselineSetup, Order, Policy, ServerView, View};
use std::collections::{HashMap, VecDeque};

/// Who waits is looked at again after this, seconds, though nothing happened: metrics pages are that old.
const LOOK_AGAIN_S: f64 = 0.05;

/// What a baseline may know of a request.
#[derive(Clone, Copy, Debug)]
pub(super) struct Prompt<'a> {
    /// Its number.
    pub request: usize,
    /// Input tokens.
    pub input: u64,
    /// Blocks that it begins with.
    pub blocks: &'a [u64],
}

/// What was sent to a server and has not ended.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Load {
    /// Requests.
    pub requests: usize,
    /// Tokens to compute of requests whose first token has not come.
    pub prefill: u64,
}

/// Who names the server.
pub(super) trait Chooser {
    /// The server for a request; none: it waits.
    fn choose(&mut self, prompt: &Prompt<'_>, loads: &[Load], seen: &[ServerView])
    -> Option<usize>;
    /// It went there. How many tokens of it must be computed?
    fn placed(&mut self, prompt: &Prompt<'_>, _server: usize) -> u64 {
        prompt.input
    }
    /// It ended there.
    fn ended(&mut self, _request: usize, _server: usize) {}
}

/// A chooser as a policy.
pub(super) struct Front<C> {
    chooser: C,
    loads: Vec<Load>,
    /// Tokens to compute until the first token, of each request that was sent.
    prefill: HashMap<usize, u64>,
    line: VecDeque<usize>,
    line_max: usize,
}

/// The server with the fewest requests among some, the first of equal ones.
pub(super) fn least(loads: &[Load], among: impl Iterator<Item = usize>) -> Option<usize> {
    let requests = |at: &usize| loads.get(*at).map_or(usize::MAX, |load| load.requests);
    among.min_by_key(requests)
}

// === impl Front ===

impl<C: Chooser + 'static> Front<C> {
    /// Nobody there yet.
    pub(super) fn boxed(chooser: C, setup: &BaselineSetup) -> Box<dyn Policy> {
        Box::new(Self {
            chooser,
            loads: vec![Load::default(); setup.servers],
            prefill: HashMap::new(),
            line: VecDeque::new(),
            line_max: setup.queue_max,
        })
    }

    /// Places a request if it may go now.
    fn goes(&mut self, request: usize, view: &View<'_>, orders: &mut Vec<Order>) -> bool {
        let Some(arrival) = view.arrivals.get(request) else { return true };
        let prompt = Prompt { request, input: arrival.input, blocks: &arrival.blocks };
        let Some(server) = self.chooser.choose(&prompt, &self.loads, view.seen) else {
            return false;
        };
        let prefill = self.chooser.placed(&prompt, server);
        if let Some(load) = self.loads.get_mut(server) {
            load.requests += 1;
            load.prefill += prefill;
        }
        self.prefill.insert(request, prefill);
        orders.push(Order::Place { request, server, priority: 0 });
        true
    }

    /// Its prompt is computed.
    fn computed(&mut self, request: usize, server: usize) {
        let prefill = self.prefill.remove(&request).unwrap_or(0);
        if let Some(load) = self.loads.get_mut(server) {
            load.prefill = load.prefill.saturating_sub(prefill);
        }
    }
}

impl<C: Chooser + 'static> Policy for Front<C> {
    fn arrives(&mut self, request: usize, view: &View<'_>, _now: f64, orders: &mut Vec<Order>) {
        if self.line.is_empty() && self.goes(request, view, orders) {
            return;
        }
        if self.line.len() < self.line_max {
            self.line.push_back(request);
        } else {
            orders.push(Order::Refuse { request, retry_s: None });
        }
    }

    fn decide(&mut self, view: &View<'_>, _now: f64, orders: &mut Vec<Order>) {
        while let Some(request) = self.line.front().copied() {
            if !self.goes(request, view, orders) {
                return;
            }
            self.line.pop_front();
        }
    }

    fn first_token(&mut self, request: usize, server: usize, _now: f64) {
        self.computed(request, server);
    }

    fn finished(&mut self, request: usize, server: usize, _generated: u64, _now: f64) {
        self.computed(request, server);
        if let Some(load) = self.loads.get_mut(server) {
            load.requests = load.requests.saturating_sub(1);
        }
        self.chooser.ended(request, server);
    }

    fn wakes(&self, now: f64) -> Option<f64> {
        (!self.line.is_empty()).then_some(now + LOOK_AGAIN_S)
    }
}

#[cfg(test)]
mod tests {
    use super::{
        super::samples::{arrival, loads, setup},
        *,
    };

    /// One request at a time.
    struct One;

    impl Chooser for One {
        fn choose(&mut self, _: &Prompt<'_>, loads: &[Load], _: &[ServerView]) -> Option<usize> {
            (loads[0].requests == 0).then_some(0)
        }
    }

    #[test]
    fn who_cannot_go_waits_in_order_and_past_the_line_is_refused() {
        let arrivals = vec![arrival(); 4];
        let view = View { arrivals: &arrivals, seen: &[] };
        let (mut policy, mut orders) = (Front::boxed(One, &setup(1)), Vec::new());
        for request in 0..4 {
            policy.arrives(request, &view, 0.0, &mut orders);
        }
        let place = |request| Order::Place { request, server: 0, priority: 0 };
        assert_eq!(orders, [place(0), Order::Refuse { request: 3, retry_s: None }]);
        assert_eq!(policy.wakes(1.0), Some(1.05));
        orders.clear();
        policy.decide(&view, 1.0, &mut orders);
        assert_eq!(orders, []);
        for (ended, next) in [(0, Some(1)), (1, Some(2)), (2, None)] {
            policy.finished(ended, 0, 1, 1.0);
            policy.decide(&view, 1.0, &mut orders);
            assert_eq!(orders.drain(..).next(), next.map(place));
        }
        assert_eq!(policy.wakes(1.0), None);
    }

    #[test]
    fn tokens_to_compute_count_until_the_first_token() {
        let mut front = Front {
            chooser: One,
            loads: loads([0]).to_vec(),
            prefill: HashMap::new(),
            line: VecDeque::new(),
            line_max: 0,
        };
        let arrivals = [arrival()];
        let view = View { arrivals: &arrivals, seen: &[] };
        assert!(front.goes(0, &view, &mut Vec::new()));
        assert_eq!(front.loads, [Load { requests: 1, prefill: 100 }]);
        front.first_token(0, 0, 1.0);
        assert_eq!(front.loads, [Load { requests: 1, prefill: 0 }]);
        front.finished(0, 0, 9, 2.0);
        assert_eq!(front.loads, [Load::default()]);
    }
}
