//! One server as the rules see it, and what it would mean to give it a request.

use super::{
    flow::Flow,
    memory::MemoryRoom,
    prefix::PrefixIndex,
    rules::Rules,
    seat::{Blocks, Known, Seat},
};
use crate::{
    ids::{ModelName, ServerId, Tier},
    queue::Slab,
    snapshot::{Capacity, ServedModel},
    units::Tokens,
};
use std::{
    collections::BTreeMap,
    sync::atomic::{AtomicU64, Ordering as AtomicOrdering},
};
use tokio::time::Instant;

/// Sequences at once on a server that tells no limit and has none configured.
pub const RUNNING_UNKNOWN: u32 = 256;
/// Blocks that are remembered of a server that does not tell the size of its cache.
const BLOCKS_UNKNOWN: usize = 1 << 16;
/// The most that are remembered of any server: some 20 MiB.
const BLOCKS_MAX: usize = 1 << 19;
/// Tokens in a block where the server tells nothing: vLLM's own default.
const BLOCK_USUAL: u32 = 16;
/// Numbers of rooms.
static SERIALS: AtomicU64 = AtomicU64::new(1);
/// How much prefill counts beside what is owed: computing what another server has also pushes out what this one
/// has.
const AFFINITY: f64 = 1.5;
/// How much a second of stall for one request counts.
const STALLED: f64 = 0.5;
/// The least weight that counts: a card may be slow, but it does not become infinitely full by that.
const WEIGHT_LEAST: f64 = 0.05;

/// Tokens in a block by which prompts are compared, for a server that divides its cache into blocks of this size:
/// where that is less than is worth a hash, the next multiple.
pub fn block_tokens(told: Option<u32>) -> u32 {
    let told = told.unwrap_or(BLOCK_USUAL).max(1);
    told.saturating_mul(BLOCK_USUAL.div_ceil(told))
}

/// What one server holds for us and can hold.
#[derive(Debug)]
pub struct Room {
    /// Which server.
    pub id: ServerId,
    /// A number that no other room ever has.
    pub(super) serial: u64,
    /// It is up, its breaker is closed, it is not drained.
    pub usable: bool,
    /// Share of its full work that it is good for, above 0.0 up to 1.0: a card that runs slower counts as
    /// fuller than it is.
    pub weight: f64,
    /// Models it serves.
    pub models: Vec<ServedModel>,
    /// What it can hold.
    pub capacity: Capacity,
    /// KV tokens of the requests that we placed there, beside the blocks that they share.
    pub(super) claimed: Tokens,
    /// Sequences of the requests that we placed there.
    pub placed: u32,
    /// Requests that we placed there.
    pub requests: u32,
    /// What it may still use of its GPUs' memory, where that grows with its work and can be told.
    pub memory: Option<MemoryRoom>,
    /// Readings of its memory since start.
    pub readings: u64,
    /// Requests that we placed there, by model, of models that are loaded when they are asked for.
    pub busy: BTreeMap<ModelName, u32>,
    /// Requests placed there since start; spreads work over idle servers.
    pub placed_ever: u64,
    /// Prefill on its way through it.
    pub flow: Flow,
    /// Beginnings of prompts in its cache.
    pub prefix: PrefixIndex,
    pub(super) seats: Slab<Seat>,
    /// Running requests that have not got ahead of the objective yet: a stall makes them miss it.
    pub(super) fragile: u32,
}

/// How prefill goes through a server, for operators.
#[derive(Clone, Copy, Debug, PartialEq, serde::Serialize)]
pub struct FlowView {
    /// Prefill and rest that it owes, seconds.
    pub debt_s: f64,
    /// Prompts that it has and has not computed yet.
    pub prompts: u32,
    /// The gap between tokens that is aimed at, over the objective.
    pub aim: f64,
    /// What work costs there was learned, and is gone by.
    pub costs_known: bool,
    /// What a prompt costs, however short, seconds.
    pub prompt_s: f64,
    /// What each of its tokens costs, seconds.
    pub token_s: f64,
    /// What each pair of a token and one before it costs, seconds.
    pub attention_s: f64,
    /// Blocks of prompts that are taken to be in its cache.
    pub prefix_blocks: usize,
}

/// What a request needs.
#[derive(Clone, Copy, Debug)]
pub struct Need<'a> {
    /// The model.
    pub model: &'a ModelName,
    /// Input plus expected output, in tokens.
    pub tokens: Tokens,
    /// Input alone.
    pub input: Tokens,
    /// What one sequence of it must have room for in the context window.
    pub span: Tokens,
    /// Answers that it makes at once: `n` times its prompts.
    pub sequences: u32,
    /// How urgent it is now.
    pub tier: Tier,
    /// What its prompt begins with.
    pub blocks: &'a Blocks,
    /// Servers that had it already.
    pub tried: &'a [ServerId],
}

/// Why a server does not take a request now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Bar {
    /// It takes nothing now.
    Down,
    /// Its GPUs have not the memory, and will not have it when all our requests have ended.
    Memory,
    /// It is too small, and a larger one is there.
    Small,
    /// Its KV cache, its sequences or its GPUs' memory are taken by others' requests.
    Full,
    /// It owes too much prefill.
    Owing,
}

impl Bar {
    /// In words, for operators.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Down => "takes no requests now",
            Self::Memory => "its GPUs are short of memory",
            Self::Small => "too small, a larger one is there",
            Self::Full => "full",
            Self::Owing => "owes too much prefill",
        }
    }
}

/// What it would mean to give a request to a server.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Weighed {
    /// Why not now; `None`: it would take it.
    pub bar: Option<Bar>,
    /// Expected cost, seconds: prefill owed and added, and harm to what decodes there, over its weight.
    pub cost_s: f64,
    /// Prefill that it owes, seconds.
    pub debt_s: f64,
    /// Prefill that the request would add, seconds.
    pub prefill_s: f64,
    /// Tokens of the prompt that it has.
    pub cached: Tokens,
}

impl Room {
    /// An empty room.
    pub fn new(id: ServerId, rules: &Rules) -> Self {
        Self {
            id,
            serial: SERIALS.fetch_add(1, AtomicOrdering::Relaxed),
            usable: false,
            weight: 1.0,
            models: Vec::new(),
            capacity: Capacity::default(),
            claimed: Tokens::ZERO,
            placed: 0,
            requests: 0,
            memory: None,
            readings: 0,
            busy: BTreeMap::new(),
            placed_ever: 0,
            flow: Flow::new(rules),
            prefix: PrefixIndex::new(BLOCKS_UNKNOWN),
            seats: Slab::new(),
            fragile: 0,
        }
    }

    /// Another process has its name now: nothing is known of its cache, and what work costs may have changed.
    pub fn starts_anew(&mut self) {
        self.prefix.clear();
        self.flow.doubt();
    }

    /// For operators.
    pub fn flow_view(&self, now: Instant) -> FlowView {
        let costs = self.flow.costs();
        FlowView {
            debt_s: self.flow.debt_s(now),
            prompts: self.flow.waiting(),
            aim: self.flow.aim(),
            costs_known: self.flow.is_known(),
            prompt_s: costs.prompt_s,
            token_s: costs.token_s,
            attention_s: costs.attention_s,
            prefix_blocks: self.prefix.len(),
        }
    }

    /// Takes over what the server tells of itself.
    pub fn adopt(&mut self, models: &[ServedModel], capacity: &Capacity) {
        models.clone_into(&mut self.models);
        self.capacity = capacity.clone();
        let limit = capacity.kv_tokens.map_or(BLOCKS_UNKNOWN, |kv| {
            usize::try_from(kv.get() / u64::from(self.block_tokens())).unwrap_or(BLOCKS_MAX)
        });
        self.prefix.set_limit(limit.min(BLOCKS_MAX));
    }

    /// Fits what is remembered of its cache to what its running requests leave of it.
    pub(super) fn fit_prefix(&mut self) {
        if let Some(kv) = self.capacity.kv_tokens {
            let left = kv.less(self.claimed).get() / u64::from(self.block_tokens());
            self.prefix.set_limit(usize::try_from(left).unwrap_or(BLOCKS_MAX).min(BLOCKS_MAX));
        }
    }

    /// Tokens in one block of its cache.
    pub fn block_tokens(&self) -> u32 {
        block_tokens(self.capacity.block_tokens)
    }

    /// KV tokens of the requests that we placed there; what several share counts once.
    pub fn placed_tokens(&self) -> Tokens {
        let shared = (self.prefix.pinned() as u64).saturating_mul(u64::from(self.block_tokens()));
        self.claimed.plus(Tokens(shared))
    }

    /// It serves the model with a window that is wide enough, and did not have the request yet; usable
    /// or not.
    pub fn may_take(&self, need: Need<'_>) -> bool {
        let served = self.models.iter().find(|served| served.name == *need.model);
        let wide = |window: Option<Tokens>| window.is_none_or(|window| need.span <= window);
        served.is_some_and(|served| wide(served.context_window)) && !need.tried.contains(&self.id)
    }

    fn max_running(&self) -> u32 {
        self.capacity.max_running.unwrap_or(RUNNING_UNKNOWN)
    }

    /// KV room that a request takes up here, what it may share with others included. One that needs more than
    /// the whole server takes the whole server: it runs alone or never.
    pub fn claim(&self, need: Tokens) -> Tokens {
        self.capacity.kv_tokens.map_or(need, |all| need.min(all))
    }

    /// Sequences that a request takes up here, by the same rule.
    pub fn claim_sequences(&self, sequences: u32) -> u32 {
        sequences.clamp(1, self.max_running().max(1))
    }

    /// The blocks of a request that count here: none if the server divides its cache otherwise, or if they are
    /// more than it holds.
    pub(super) fn blocks_of<'a>(&self, blocks: &'a Blocks) -> &'a [u64] {
        let all = blocks.hashes.len() as u64 * u64::from(blocks.tokens);
        let fits = self.capacity.kv_tokens.is_none_or(|kv| all <= kv.get());
        if blocks.tokens == self.block_tokens() && fits { &blocks.hashes } else { &[] }
    }

    /// KV room in all; a server that tells none is taken to have enough.
    pub(super) fn size(&self) -> Tokens {
        self.capacity.kv_tokens.unwrap_or(Tokens(u64::MAX))
    }

    /// Room is there, by tokens, sequences and memory.
    fn fits(&self, need: Need<'_>, shared: Tokens, rules: &Rules) -> bool {
        self.has_sequences(need, rules)
            && self.tokens_fit(need, shared, rules)
            && self.memory_fits(need)
    }

    /// It is full now, and would take a request if another were not there.
    pub(super) fn fits_without(&self, need: Need<'_>, seat: &Seat, rules: &Rules) -> bool {
        if self.fits(need, Tokens::ZERO, rules) {
            return false;
        }
        let placed = self.placed.saturating_sub(seat.sequences);
        let sequences = placed.saturating_add(self.claim_sequences(need.sequences));
        let tokens = self.capacity.kv_tokens.is_none_or(|all| {
            let left = self.placed_tokens().less(seat.claim).plus(self.claim(need.tokens));
            self.requests <= 1 || left.get() as f64 <= all.get() as f64 * rules.kv_share
        });
        sequences <= self.max_running() && tokens && self.memory_could_fit(need)
    }

    /// It may run as many sequences more.
    pub(super) fn has_sequences(&self, need: Need<'_>, rules: &Rules) -> bool {
        let placed = self.placed.saturating_add(self.claim_sequences(need.sequences));
        self.requests == 0 || placed <= self.sequences_for(need.tier, rules)
    }

    /// Sequences that requests of a tier may take up; the batch tier leaves some.
    fn sequences_for(&self, tier: Tier, rules: &Rules) -> u32 {
        let all = self.max_running();
        let left = (f64::from(all) * (1.0 - rules.batch_leaves)) as u32;
        match tier {
            Tier::Batch if rules.batch_leaves > 0.0 => left.clamp(1, all.saturating_sub(1).max(1)),
            _ => all,
        }
    }

    fn tokens_fit(&self, need: Need<'_>, shared: Tokens, rules: &Rules) -> bool {
        let Some(all) = self.capacity.kv_tokens else { return true };
        // One that is alone may have it all.
        if self.requests == 0 {
            return true;
        }
        let left = if need.tier == Tier::Batch { 1.0 - rules.batch_leaves } else { 1.0 };
        let limit = all.get() as f64 * rules.kv_share * left;
        let more = self.claim(need.tokens).less(shared);
        self.placed_tokens().plus(more).get() as f64 <= limit
    }

    /// What it would mean to give it a request. `enough`: a server must be as large as this.
    pub fn weigh(
        &self,
        need: Need<'_>,
        known: &mut Known,
        enough: Tokens,
        rules: &Rules,
        now: Instant,
    ) -> Weighed {
        let (cached, shared) = known.of(self, need.blocks);
        // One token at least is computed.
        let cached = cached.min(need.input.less(Tokens(1)));
        let costs = self.flow.costs();
        let prefill_s = costs.prefill_s(need.input, cached);
        // While nobody knows what work costs there, who has less to do is the better choice.
        let debt_s = if self.flow.is_known() { self.flow.debt_s(now) } else { 0.0 };
        let harm_s = costs.harm_s(self.placed_tokens())
            + self.stalls_s(need.input.less(cached), prefill_s, rules);
        let weight = self.weight.clamp(WEIGHT_LEAST, 1.0);
        let cost_s = (debt_s + AFFINITY * prefill_s + harm_s) / weight;
        let bar = if !self.usable {
            Some(Bar::Down)
        } else if !self.memory_could_fit(need) {
            Some(Bar::Memory)
        } else if self.size() < enough {
            Some(Bar::Small)
        } else if !self.fits(need, shared, rules) {
            Some(Bar::Full)
        } else if self.flow.is_known() && debt_s > rules.debt_limit_s(need.tier) {
            Some(Bar::Owing)
        } else {
            None
        };
        Weighed { bar, cost_s, debt_s, prefill_s, cached }
    }

    /// Harm of a prompt whose steps are longer than the gap between tokens should be, to those here who have not
    /// had tokens for long enough to bear it.
    fn stalls_s(&self, new: Tokens, prefill_s: f64, rules: &Rules) -> f64 {
        let over_s = prefill_s - rules.steps(new) * rules.token_gap_s;
        STALLED * over_s.max(0.0) * f64::from(self.fragile + self.flow.waiting())
    }

    /// Share of this server that is taken, by sequences or by tokens, whichever is scarcer: decides between
    /// servers of equal cost.
    ///
    /// A weaker server counts as fuller than it is; an idle one is passed over by no more than one sequence of load.
    pub(super) fn load(&self) -> f64 {
        let weight = self.weight.clamp(WEIGHT_LEAST, 1.0);
        let sequences = f64::from(self.placed) / f64::from(self.max_running().max(1));
        let tokens = self.capacity.kv_tokens.map_or(0.0, |all| self.placed_tokens().share_of(all));
        let handicap = (1.0 / weight - 1.0) / f64::from(self.max_running().max(1));
        sequences.max(tokens) / weight + handicap
    }
}

impl Rules {
    /// Prefill that a server may owe when it is given a request of this tier, seconds.
    pub fn debt_limit_s(&self, tier: Tier) -> f64 {
        match tier {
            Tier::System | Tier::Interactive => self.debt_max_s * self.debt_urgent,
            Tier::Standard | Tier::Batch => self.debt_max_s,
        }
    }
}
