//! Who decides: ours, and those that ours is compared with.

pub mod baselines;
mod ours;

pub use ours::{Ours, OursSetup};

use super::world::Arrival;

/// What a policy may see.
#[derive(Clone, Copy, Debug)]
pub struct View<'a> {
    /// All requests; only those that came, and never their output.
    pub arrivals: &'a [Arrival],
    /// What servers' metrics pages said last, at most 50 ms ago.
    pub seen: &'a [ServerView],
}

/// What a server's metrics page says.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ServerView {
    /// Sequences in its batch.
    pub running: usize,
    /// Sequences in its line.
    pub waiting: usize,
    /// KV tokens in use.
    pub used: u64,
    /// KV tokens in all.
    pub capacity: u64,
}

/// What is to be done.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Order {
    /// A request goes to a server.
    Place {
        /// Which.
        request: usize,
        /// Where.
        server: usize,
        /// For servers that honour it: lower goes first.
        priority: i64,
    },
    /// A request is taken back from its server; it may be placed again.
    TakeBack {
        /// Which.
        request: usize,
    },
    /// A request was admitted, and its first token is expected so much later.
    Promise {
        /// Which.
        request: usize,
        /// Seconds.
        ttft_s: f64,
    },
    /// A request is refused.
    Refuse {
        /// Which.
        request: usize,
        /// When its caller is told to come again, seconds from now.
        retry_s: Option<f64>,
    },
}

/// Who decides. Times are seconds of the simulation.
pub trait Policy {
    /// A request came.
    fn arrives(&mut self, request: usize, view: &View<'_>, now: f64, orders: &mut Vec<Order>);
    /// Something happened, or [`Policy::wakes`] said so: who waits may go.
    fn decide(&mut self, _view: &View<'_>, _now: f64, _orders: &mut Vec<Order>) {}
    /// A request's first token came.
    fn first_token(&mut self, _request: usize, _server: usize, _now: f64) {}
    /// A request has so many tokens.
    fn token(&mut self, _request: usize, _generated: u64) {}
    /// A request's last token came; 0 tokens: the server refused it.
    fn finished(&mut self, _request: usize, _server: usize, _generated: u64, _now: f64) {}
    /// When it wants to decide though nothing happened.
    fn wakes(&self, _now: f64) -> Option<f64> {
        None
    }
}
