//! The clock of a continuously batching model server: which tokens a step computes, and how long it takes.
//!
//! A plain structure without I/O. Time is a number of seconds that [`Clock::begin`] returns; who waits for
//! it, and how, is the caller's business. So the same rules drive a server on a socket and a replay of a
//! trace.
//!
//! Rules: each step takes every decoding sequence (one token each) and fills the rest of the chunk with
//! prefill, first come first served. A sequence takes the pages of its whole prompt when it is admitted
//! and one page more whenever a generated token crosses a page's end. When there is none, the newest
//! sequence is preempted: it loses its pages, goes back to the head of the line and is computed again.
//! A step costs
//!
//! ```text
//! fix + max(weights, token x tokens_in_step) + context x context_read + attention x sum(query x context)
//! ```
//!
//! where a sequence's context is what its cache holds at the end of the step.

pub use super::pages::PAGE_TOKENS;
use super::pages::{Pages, pages_for};
use crate::units::Tokens;
use std::{collections::VecDeque, sync::Arc};

/// What a server costs and holds. Times are seconds.
#[derive(Clone, Debug, PartialEq)]
pub struct Profile {
    /// Reading the weights once: the floor of every step.
    pub weights_s: f64,
    /// Fixed cost of a step.
    pub fix_s: f64,
    /// Computing one token.
    pub token_s: f64,
    /// Reading one cached token.
    pub context_s: f64,
    /// Attention, per query token and context token.
    pub attention_s: f64,
    /// KV cache.
    pub kv: Tokens,
    /// The most tokens one step computes.
    pub chunk: Tokens,
    /// The most sequences in the batch.
    pub max_running: usize,
}

impl Profile {
    /// Seconds that an idle server takes to the first token of a prompt of which nothing is cached.
    pub fn prefill_s(&self, prompt: Tokens) -> f64 {
        let (prompt, chunk) = (prompt.get().max(1), self.chunk.get().max(1));
        let mut total = 0.0;
        let mut computed = 0;
        while computed < prompt {
            let query = (prompt - computed).min(chunk);
            computed += query;
            total += self.step_s(query as f64, computed as f64, query as f64 * computed as f64);
        }
        total
    }

    fn step_s(&self, queries: f64, contexts: f64, products: f64) -> f64 {
        self.fix_s
            + self.weights_s.max(self.token_s * queries)
            + self.context_s * contexts
            + self.attention_s * products
    }
}

/// Who a sequence is; the caller gives the numbers out.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SequenceId(pub u64);

/// One generated token.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Token {
    /// The sequence it belongs to.
    pub id: SequenceId,
    /// How many this sequence has generated, this one included.
    pub generated: Tokens,
    /// This was the last one; the sequence has left the batch.
    pub last: bool,
}

/// The full blocks that a prompt begins with, for the cache.
#[derive(Clone, Debug, Default)]
pub struct Beginning {
    /// Their ids. Equal ids are equal beginnings up to there.
    pub blocks: Arc<[u64]>,
    /// Tokens in each, a multiple of a page.
    pub block_tokens: u64,
}

/// A sequence that could never fit, even alone.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{needed} tokens do not fit a KV cache of {capacity}")]
pub struct TooLong {
    /// Prompt and output together.
    pub needed: Tokens,
    /// What the cache holds.
    pub capacity: Tokens,
}

/// The batch, its waiting line and its KV pages.
#[derive(Clone, Debug)]
pub struct Clock {
    profile: Profile,
    pages: Pages,
    /// By priority, then oldest first.
    waiting: VecDeque<Sequence>,
    /// In the order of admission, so that the newest is last.
    running: Vec<Sequence>,
    preemptions: u64,
    /// Prompt tokens found in the cache.
    hits: u64,
}

#[derive(Clone, Debug)]
struct Sequence {
    id: SequenceId,
    prompt: u64,
    output: u64,
    generated: u64,
    /// Tokens whose keys and values are in the cache.
    computed: u64,
    /// Pages that are its own.
    pages: u64,
    /// Tokens the step under way computes.
    planned: u64,
    /// Lower goes first.
    priority: i64,
    beginning: Beginning,
    /// Blocks of its beginning that it has pinned.
    shared: usize,
    /// It filled a block that somebody else had filled: from there on its pages are its own.
    apart: bool,
}

// === impl Sequence ===

impl Sequence {
    /// Every token that exists so far.
    const fn known(&self) -> u64 {
        self.prompt.saturating_add(self.generated)
    }

    const fn left(&self) -> u64 {
        self.known().saturating_sub(self.computed)
    }

    /// One token at a time: the prompt, and all that a preemption lost, is in the cache.
    const fn decodes(&self) -> bool {
        self.generated > 0 && self.left() == 1
    }

    const fn block_pages(&self) -> u64 {
        self.beginning.block_tokens / PAGE_TOKENS
    }

    /// Its own pages and those of the blocks that it shares.
    const fn all_pages(&self) -> u64 {
        self.pages + self.shared as u64 * self.block_pages()
    }

    fn pinned(&self) -> &[u64] {
        self.beginning.blocks.get(..self.shared).unwrap_or_default()
    }

    /// Gives everything back.
    fn leave(&mut self, pages: &mut Pages) {
        pages.give(std::mem::take(&mut self.pages));
        pages.unpin(self.pinned());
        self.shared = 0;
    }

    /// Makes the blocks that it has filled by now ones for others.
    fn share(&mut self, pages: &mut Pages) {
        let size = self.block_pages();
        while !self.apart && size > 0 {
            let Some(id) = self.beginning.blocks.get(self.shared) else { return };
            if self.computed < (self.shared as u64 + 1) * self.beginning.block_tokens {
                return;
            }
            if pages.share(*id, size) {
                self.pages = self.pages.saturating_sub(size);
                self.shared += 1;
            } else {
                self.apart = true;
            }
        }
    }
}

// === impl Clock ===

impl Clock {
    /// An idle server. The chunk is never smaller than the batch, for every decode must fit a step.
    pub fn new(mut profile: Profile) -> Self {
        profile.max_running = profile.max_running.max(1);
        profile.chunk = profile.chunk.max(Tokens(profile.max_running as u64));
        let pages = Pages::new(profile.kv.get() / PAGE_TOKENS);
        Self {
            profile,
            pages,
            waiting: VecDeque::new(),
            running: Vec::new(),
            preemptions: 0,
            hits: 0,
        }
    }

    /// Puts a sequence at the end of the line. It joins at the next [`Clock::begin`].
    ///
    /// # Errors
    ///
    /// When prompt and output together exceed the cache. Nothing is changed then.
    pub fn submit(
        &mut self,
        id: SequenceId,
        prompt: Tokens,
        output: Tokens,
    ) -> Result<(), TooLong> {
        self.submit_as(id, prompt, output, Beginning::default(), 0)
    }

    /// The same for a prompt whose blocks are known, and with a priority: lower goes first, in the line and
    /// when pages are short.
    ///
    /// # Errors
    ///
    /// As [`Clock::submit`].
    pub fn submit_as(
        &mut self,
        id: SequenceId,
        prompt: Tokens,
        output: Tokens,
        beginning: Beginning,
        priority: i64,
    ) -> Result<(), TooLong> {
        let (prompt, output) = (prompt.get().max(1), output.get().max(1));
        let needed = Tokens(prompt.saturating_add(output));
        if needed > self.capacity() {
            return Err(TooLong { needed, capacity: self.capacity() });
        }
        let at = self.waiting.partition_point(|other| other.priority <= priority);
        let sequence = Sequence {
            id,
            prompt,
            output,
            generated: 0,
            computed: 0,
            pages: 0,
            planned: 0,
            priority,
            beginning,
            shared: 0,
            apart: false,
        };
        self.waiting.insert(at, sequence);
        Ok(())
    }

    /// Removes a sequence and frees its pages at once, also within a step. False when it is not here.
    pub fn abort(&mut self, id: SequenceId) -> bool {
        if let Some(at) = self.running.iter().position(|s| s.id == id) {
            let mut gone = self.running.remove(at);
            gone.leave(&mut self.pages);
            return true;
        }
        let before = self.waiting.len();
        self.waiting.retain(|s| s.id != id);
        self.waiting.len() < before
    }

    /// Plans the next step and tells how many seconds it takes; `None` when there is nothing to do.
    pub fn begin(&mut self) -> Option<f64> {
        for sequence in &mut self.running {
            sequence.planned = 0;
        }
        let mut budget = self.profile.chunk.get();
        let preempted = self.plan_decodes(&mut budget);
        self.plan_prefills(&mut budget);
        // After a preemption the cache is full: nobody new, or the one sent away comes straight back.
        if !preempted {
            self.admit(&mut budget);
        }
        debug_assert!(self.pages.used() <= self.pages.total(), "more pages given than there are");
        (!self.running.is_empty()).then(|| self.step_s())
    }

    /// Ends the step that [`Clock::begin`] planned and appends the tokens it generated.
    pub fn finish(&mut self, tokens: &mut Vec<Token>) {
        let pages = &mut self.pages;
        self.running.retain_mut(|sequence| {
            let planned = std::mem::take(&mut sequence.planned);
            sequence.computed = sequence.computed.saturating_add(planned);
            if planned > 0 {
                sequence.share(pages);
            }
            if planned == 0 || sequence.left() > 0 {
                return true;
            }
            sequence.generated = sequence.generated.saturating_add(1);
            let last = sequence.generated >= sequence.output;
            tokens.push(Token { id: sequence.id, generated: Tokens(sequence.generated), last });
            if last {
                sequence.leave(pages);
            }
            !last
        });
    }

    /// Sequences in the batch.
    pub fn running(&self) -> usize {
        self.running.len()
    }

    /// Sequences in the line, preempted ones included.
    pub fn waiting(&self) -> usize {
        self.waiting.len()
    }

    /// The KV cache in whole pages.
    pub const fn capacity(&self) -> Tokens {
        Tokens(self.pages.total().saturating_mul(PAGE_TOKENS))
    }

    /// What the given pages hold, 0 to [`Clock::capacity`]. Blocks that only stay for the next request do not
    /// count.
    pub const fn used(&self) -> Tokens {
        Tokens(self.pages.used().saturating_mul(PAGE_TOKENS))
    }

    /// Preemptions since the start.
    pub const fn preemptions(&self) -> u64 {
        self.preemptions
    }

    /// Prompt tokens that were found in the cache since the start, those of preempted sequences included.
    pub const fn hits(&self) -> Tokens {
        Tokens(self.hits)
    }

    /// One token for each decoding sequence; true when somebody was preempted for a page.
    fn plan_decodes(&mut self, budget: &mut u64) -> bool {
        let mut preempted = false;
        let mut at = 0;
        while let Some(sequence) = self.running.get(at) {
            if !sequence.decodes() {
                at += 1;
                continue;
            }
            let more = pages_for(sequence.known()).saturating_sub(sequence.all_pages());
            let id = sequence.id;
            if more > 0 && !self.pages.take(more) {
                self.preempt();
                preempted = true;
                // Who was planned before it keeps its place; it may itself be the one that went.
                at = self.running.iter().position(|s| s.id == id).unwrap_or(at);
                continue;
            }
            if let Some(sequence) = self.running.get_mut(at) {
                sequence.pages = sequence.pages.saturating_add(more);
                sequence.planned = 1;
                *budget = budget.saturating_sub(1);
            }
            at += 1;
        }
        preempted
    }

    /// The next piece of each prompt already in the batch.
    fn plan_prefills(&mut self, budget: &mut u64) {
        for sequence in self.running.iter_mut().filter(|s| !s.decodes()) {
            sequence.planned = sequence.left().min(*budget);
            *budget = budget.saturating_sub(sequence.planned);
        }
    }

    /// Takes sequences from the line, in order, while the chunk, the batch and the cache have room.
    fn admit(&mut self, budget: &mut u64) {
        while *budget > 0 && self.running.len() < self.profile.max_running {
            let Some(next) = self.waiting.front() else { return };
            let size = next.block_pages();
            // One token at least is computed: it gives the first logits.
            let most = next.known().saturating_sub(1).checked_div(next.beginning.block_tokens);
            let blocks = next.beginning.blocks.get(..most.unwrap_or(0) as usize);
            let blocks = blocks.unwrap_or(&next.beginning.blocks);
            let known = if size > 0 { self.pages.known(blocks) } else { 0 };
            let pages = pages_for(next.known()).saturating_sub(known as u64 * size);
            let found: Vec<u64> = blocks.iter().take(known).copied().collect();
            self.pages.pin(&found);
            if !self.pages.take(pages) {
                self.pages.unpin(&found);
                return;
            }
            let Some(mut next) = self.waiting.pop_front() else { return };
            next.pages = pages;
            next.shared = known;
            next.apart = false;
            next.computed = known as u64 * next.beginning.block_tokens;
            self.hits = self.hits.saturating_add(next.computed);
            next.planned = next.left().min(*budget);
            *budget = budget.saturating_sub(next.planned);
            self.running.push(next);
        }
    }

    /// Sends the least urgent sequence back to the line, of several the newest.
    fn preempt(&mut self) {
        let least = self.running.iter().map(|s| s.priority).max();
        let at = self.running.iter().rposition(|s| Some(s.priority) == least);
        let Some(mut gone) = at.map(|at| self.running.remove(at)) else { return };
        gone.leave(&mut self.pages);
        gone.computed = 0;
        gone.planned = 0;
        let place = self.waiting.partition_point(|other| other.priority < gone.priority);
        self.waiting.insert(place, gone);
        self.preemptions = self.preemptions.saturating_add(1);
    }

    fn step_s(&self) -> f64 {
        let (mut queries, mut contexts, mut products) = (0.0, 0.0, 0.0);
        for sequence in self.running.iter().filter(|s| s.planned > 0) {
            let query = sequence.planned as f64;
            let context = sequence.computed as f64 + query;
            queries += query;
            contexts += context;
            products += query * context;
        }
        self.profile.step_s(queries, contexts, products)
    }
}

#[cfg(test)]
#[path = "clock_tests.rs"]
mod tests;
