//! Samples for the tests of baselines.

use super::{
    BaselineSetup,
    front::{Load, Prompt},
};
use crate::replay::world::Arrival;

/// Servers with room for a hundred blocks of 512 tokens.
pub(super) fn setup(servers: usize) -> BaselineSetup {
    let kv_tokens = 100 * 512;
    BaselineSetup { servers, kv_tokens, block_tokens: 512, seed: 1, queue_max: 2 }
}

/// A prompt that ends a hundred tokens behind its last full block.
pub(super) fn prompt(blocks: &[u64]) -> Prompt<'_> {
    Prompt { request: 0, input: blocks.len() as u64 * 512 + 100, blocks }
}

/// Servers with so many requests each.
pub(super) fn loads<const N: usize>(requests: [usize; N]) -> [Load; N] {
    requests.map(|requests| Load { requests, prefill: 0 })
}

/// A request of a hundred tokens.
pub(super) fn arrival() -> Arrival {
    let blocks = [].into();
    Arrival { at_s: 0.0, input: 100, output: 9, blocks, tenant: 0, ttft_s: 2.0 }
}
