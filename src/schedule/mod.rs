//! Turns: which request goes next, and to which server.
//!
//! A server takes a request when its KV cache has room for what the prompt does not share with others there and
//! for the expected output, when it may run as many more sequences as the request has, when its GPUs have the
//! memory (`memory`), and when it does not owe more prefill than it can take in soon (`flow`). Of those that
//! take it, the one with the least expected cost does (`room`): prefill that is not in its cache (`prefix`),
//! prefill that it owes, and harm to what decodes there. What costs how much is learned (`cost`).
//! [`Scheduler`] joins these with the queue; `estimate` says what a request may expect, and refuses early.

mod bias;
pub mod breaker;
pub mod catalog;
mod choice;
pub mod cost;
mod estimate;
pub mod flow;
pub mod hung;
pub mod memory;
pub mod outputs;
pub mod pace;
pub mod prefix;
mod request;
mod room;
mod rules;
mod running;
mod scheduler;
mod seat;

pub use bias::Foreseen;
pub use choice::{Choice, choose, enough};
pub use cost::Costs;
pub use estimate::{Late, Outlook};
pub use request::{Grant, Offer, Request, Turn};
pub use room::{Bar, FlowView, Need, RUNNING_UNKNOWN, Room, Weighed, block_tokens};
pub use rules::Rules;
pub use scheduler::{Asking, Scheduler};
pub use seat::{Blocks, Known, Progress, SeatId};

#[cfg(test)]
mod tests;
