//! A running request, as its room remembers it.

use super::{bias::Foreseen, memory::Promise, outputs::Lengths, room::Room, rules::Rules};
use crate::{
    ids::{ModelName, TenantId, Tier},
    queue::Ticket,
    units::Tokens,
};
use std::sync::{
    Arc,
    atomic::{AtomicBool, AtomicU32, Ordering},
};
use tokio::time::Instant;

/// Blocks that a prompt begins with: their hashes, and the tokens in each.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Blocks {
    /// One hash for each full block, in order; each stands for all before it.
    pub hashes: Arc<[u64]>,
    /// Tokens in a block; 0 if there are none.
    pub tokens: u32,
}

/// What was found out about a prompt's blocks on each server, as long as it holds.
#[derive(Clone, Debug, Default)]
pub struct Known(Vec<Found>);

#[derive(Clone, Copy, Debug)]
struct Found {
    serial: u64,
    version: u64,
    cached: u32,
    pinned: u32,
}

impl Known {
    /// Blocks of a prompt that a server has, and those of them that are in use, in tokens.
    pub(super) fn of(&mut self, room: &Room, blocks: &Blocks) -> (Tokens, Tokens) {
        let blocks = room.blocks_of(blocks);
        if blocks.is_empty() {
            return (Tokens::ZERO, Tokens::ZERO);
        }
        let version = room.prefix.version();
        let size = u64::from(room.block_tokens());
        let tokens = |found: &Found| {
            (Tokens(u64::from(found.cached) * size), Tokens(u64::from(found.pinned) * size))
        };
        let at = self.0.iter().position(|found| found.serial == room.serial);
        if let Some(found) = at.and_then(|at| self.0.get(at))
            && found.version == version
        {
            return tokens(found);
        }
        // Bounded by what a body can hold.
        let count = |blocks: usize| u32::try_from(blocks).unwrap_or(u32::MAX);
        let found = Found {
            serial: room.serial,
            version,
            cached: count(room.prefix.known(blocks)),
            pinned: count(room.prefix.pinned_of(blocks)),
        };
        match at.and_then(|at| self.0.get_mut(at)) {
            Some(place) => *place = found,
            None => self.0.push(found),
        }
        tokens(&found)
    }
}

/// Output of a running request, told without any lock.
#[derive(Debug, Default)]
pub struct Progress {
    produced: AtomicU32,
    called_back: AtomicBool,
}

impl Progress {
    /// So many tokens came so far, all its sequences together.
    pub fn set(&self, produced: Tokens) {
        let produced = u32::try_from(produced.get()).unwrap_or(u32::MAX);
        self.produced.store(produced, Ordering::Relaxed);
    }

    /// Tokens that came so far.
    pub fn produced(&self) -> Tokens {
        Tokens(u64::from(self.produced.load(Ordering::Relaxed)))
    }

    /// It must give its room to somebody more urgent.
    pub fn call_back(&self) {
        self.called_back.store(true, Ordering::Release);
    }

    /// Whether it must.
    pub fn is_called_back(&self) -> bool {
        self.called_back.load(Ordering::Acquire)
    }
}

/// Room that a request was given, until it is taken back.
#[derive(Debug)]
pub(super) struct Seat {
    pub model: ModelName,
    pub tenant: TenantId,
    pub weight: f64,
    /// The tier whose order it was charged in.
    pub tier: Tier,
    /// Expected output when it was placed.
    pub output: Tokens,
    pub sequences: u32,
    pub blocks: Blocks,
    /// KV tokens beside those of its blocks.
    pub claim: Tokens,
    pub promise: Promise,
    /// Tokens that its tenant was charged.
    pub charged: f64,
    pub progress: Arc<Progress>,
    /// Its first token will be seen.
    pub watched: bool,
    /// Times that it gave its room to others.
    pub preempted: u32,
    /// What was foreseen when it came.
    pub foreseen: Option<Foreseen>,
    /// When it was placed.
    pub placed_at: Instant,
    /// When its first token came.
    pub first: Option<Instant>,
}

/// How a running request fares.
#[derive(Clone, Copy, Debug)]
pub(super) struct Pulse {
    /// Its tokens come slower than the objective, or will if it ends soon.
    pub at_risk: bool,
    /// It has not got ahead of the objective by as much as a stall may take.
    pub fragile: bool,
}

/// Of the output that was expected, the share after which a request is taken to end when its risk is judged: short
/// answers have little time to make up for a stall.
const ENDS_AT: f64 = 0.2;
/// Nearer to the objective than this share of it is at risk.
const NEAR: f64 = 0.95;
/// How far ahead of the objective a request must be to bear a stall, seconds.
const AHEAD_S: f64 = 1.5;

impl Seat {
    /// How it fares, `first` being when its first token came and `quiet_s` a step that only decodes.
    pub(super) fn pulse(&self, first: Instant, quiet_s: f64, rules: &Rules, now: Instant) -> Pulse {
        let age_s = now.saturating_duration_since(first).as_secs_f64();
        let made = self.progress.produced().get() as f64 / f64::from(self.sequences.max(1));
        let output = self.output.get() as f64 / f64::from(self.sequences.max(1));
        let whole = (ENDS_AT * output).max(made).max(1.0);
        let mean_s = (age_s + (whole - made) * quiet_s) / whole;
        Pulse {
            at_risk: mean_s > NEAR * rules.token_gap_s,
            fragile: rules.token_gap_s * made - age_s < AHEAD_S,
        }
    }

    /// Takes in that its answer is longer than expected; gives the room that it needs beyond what it has.
    pub(super) fn outgrown(&mut self, lengths: Option<&Lengths>) -> Tokens {
        let produced = self.progress.produced();
        if produced <= self.output || self.sequences > 1 {
            return Tokens::ZERO;
        }
        let expected = lengths.map_or(produced, |lengths| lengths.expect_of(produced));
        let extra = expected.less(self.output);
        self.output = self.output.plus(extra);
        self.claim = self.claim.plus(extra);
        extra
    }
}

/// Where a running request sits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SeatId(pub(super) Ticket);

impl SeatId {
    /// A number that no other running request on the server has.
    pub(super) const fn number(self) -> u64 {
        self.0.number()
    }
}
