//! A request as the rules know it, and what can become of it.

use super::{
    bias::Foreseen,
    choice::Choice,
    estimate::{Late, Outlook},
    room::{Need, Weighed},
    seat::{Blocks, Progress, SeatId},
};
use crate::{
    ids::{ModelName, ServerId, TenantId, Tier},
    queue::{Full, Ticket},
    units::Tokens,
};
use std::{sync::Arc, time::Duration};
use tokio::time::Instant;

/// What the rules know of a request.
#[derive(Clone, Debug)]
pub struct Request {
    /// The model, by the name that servers know.
    pub model: ModelName,
    /// Who pays.
    pub tenant: TenantId,
    /// Share of its tier that the tenant is due, relative to others'.
    pub weight: f64,
    /// How urgent.
    pub tier: Tier,
    /// Input, all prompts together.
    pub input: Tokens,
    /// Expected output, all answers together.
    pub output: Tokens,
    /// Answers that it makes at once.
    pub sequences: u32,
    /// What one sequence must have room for in the context window.
    pub span: Tokens,
    /// What its prompt begins with.
    pub blocks: Blocks,
    /// Servers that had it already.
    pub tried: Vec<ServerId>,
    /// When it is of use no more.
    pub due: Instant,
    /// Until then its first token must have come: one that cannot make it is refused early. Else only its turn
    /// must.
    pub strict: bool,
    /// The first token of its answer will be seen.
    pub watched: bool,
    /// It was refused before, and comes again as it was told to.
    pub returned: bool,
    /// Times that it gave its room to somebody more urgent.
    pub preempted: u32,
    /// What was foreseen when it came, to be compared with what comes true.
    pub foreseen: Option<Foreseen>,
    /// Its first place in the queue, kept over attempts.
    pub arrival: Option<u64>,
    /// When it came first.
    pub entered: Instant,
    /// Its output, as it comes.
    pub progress: Arc<Progress>,
}

impl Request {
    /// A request of the standard tier, with ten minutes to wait, that asks for nothing but its input.
    pub fn plain(model: ModelName, tenant: TenantId, input: Tokens, now: Instant) -> Self {
        Self {
            model,
            tenant,
            weight: 1.0,
            tier: Tier::Standard,
            input,
            output: Tokens::ZERO,
            sequences: 1,
            span: Tokens::ZERO,
            blocks: Blocks::default(),
            tried: Vec::new(),
            due: now + Duration::from_secs(600),
            strict: false,
            watched: false,
            returned: false,
            preempted: 0,
            foreseen: None,
            arrival: None,
            entered: now,
            progress: Arc::default(),
        }
    }

    /// What it needs, in the tier that it came with.
    pub fn need(&self) -> Need<'_> {
        need(self, self.tier)
    }
}

pub(super) fn need(request: &Request, tier: Tier) -> Need<'_> {
    Need {
        model: &request.model,
        tokens: request.input.plus(request.output),
        input: request.input,
        span: request.span,
        sequences: request.sequences,
        tier,
        blocks: &request.blocks,
        tried: &request.tried,
    }
}

/// A turn: room on one server, until it is given back.
#[derive(Debug)]
pub struct Grant {
    /// Which server.
    pub server: ServerId,
    /// Where it sits there.
    pub seat: SeatId,
    /// What was expected of that server.
    pub weighed: Weighed,
}

/// What became of a request that came.
#[derive(Debug)]
pub enum Offer<T> {
    /// It has its turn, and what to expect.
    Placed(Grant, T, Outlook),
    /// It waits, what to expect, and what could be done for it at once.
    Waits(Ticket, Outlook, Choice),
    /// There is no place for it to wait.
    Full(Full, Outlook),
    /// It would be too late.
    Late(Late, Outlook),
    /// No server is left for it.
    Nobody,
}

/// What becomes of somebody who waited.
#[derive(Debug)]
pub enum Turn<T> {
    /// It has its turn.
    Granted(T, Grant, Request),
    /// It would be too late by now.
    Late(T, Late, Request),
    /// It makes place for somebody who has less.
    Displaced(T, Request),
    /// No server is left for it.
    Nobody(T),
    /// A running batch request that has shown nothing yet must give its room to somebody more urgent: its turn is
    /// to be taken back, and it is to wait again.
    Preempt(ServerId, Arc<Progress>),
}
