//! What was decided about requests of late, and why: for `berthd explain`, and for callers who ask.

use crate::{
    ids::{ModelName, RequestId, ServerId, TenantId, Tier},
    schedule::{Bar, Outlook, Request, Weighed},
    units::Tokens,
};
use http::HeaderValue;
use serde::Serialize;
use std::collections::VecDeque;
use tokio::time::Instant;

/// Decisions kept. One takes about 300 bytes, and 100 more for each server.
const KEPT: usize = 2048;
/// Servers told of one decision.
const SERVERS_MAX: usize = 32;

/// The decisions, oldest first.
#[derive(Debug, Default)]
pub struct Decisions {
    ring: VecDeque<Decision>,
    /// The number of the oldest.
    first: u64,
}

/// Which decision.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DecisionId(u64);

/// What was decided about one request. Times are seconds.
#[derive(Clone, Debug, Serialize)]
pub struct Decision {
    /// Which request.
    pub request: RequestId,
    /// Who pays.
    pub tenant: TenantId,
    /// The model.
    pub model: ModelName,
    /// The tier that it came with.
    pub tier: Tier,
    /// Input tokens.
    pub input_tokens: Tokens,
    /// Output tokens that were expected.
    pub expected_output_tokens: Tokens,
    /// How many blocks of its prompt could be looked up in caches.
    pub prefix_blocks: usize,
    /// What was left of its deadline when it asked for its turn; for the first token if `strict`, else for the turn.
    pub deadline_s: f64,
    /// The deadline is one for the first token.
    pub strict: bool,
    /// What was expected when it came.
    pub outlook: Option<Foreseen>,
    /// Servers as they were when it came.
    pub considered: Vec<Considered>,
    /// What became of it.
    pub verdict: Verdict,
    /// When it came.
    #[serde(skip)]
    pub at: Instant,
    /// How long ago that was, when it is told.
    pub age_s: f64,
}

/// What was expected when a request came.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Foreseen {
    /// Wait for its turn.
    pub wait_s: f64,
    /// Time to its first token, the wait included.
    pub ttft_s: f64,
    /// Requests before it.
    pub ahead: usize,
}

/// One server in the choice.
#[derive(Clone, Debug, Serialize)]
pub struct Considered {
    /// Which.
    pub server: ServerId,
    /// Why it did not take the request at once; `None`: it could.
    pub bar: Option<&'static str>,
    /// Expected cost: the smallest takes it.
    pub cost_s: f64,
    /// Prefill that it owed.
    pub debt_s: f64,
    /// Prefill that the request adds.
    pub prefill_s: f64,
    /// Tokens of the prompt in its cache.
    pub cached_tokens: Tokens,
    /// KV tokens placed there, and what it holds.
    pub placed_tokens: Tokens,
    /// What it holds, where that is known.
    pub kv_tokens: Option<Tokens>,
}

/// What became of a request.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "snake_case", tag = "what")]
pub enum Verdict {
    /// It waits for its turn.
    Waits {
        /// Why it did not go at once.
        why: &'static str,
    },
    /// It went to a server.
    Placed {
        /// Which.
        server: ServerId,
        /// Why this one, in words.
        why: String,
        /// Wait for the turn.
        waited_s: f64,
        /// Why it had to wait, if it did.
        waited_for: Option<&'static str>,
        /// Turns that it had before.
        earlier: u32,
    },
    /// It was refused before it had a turn.
    Refused {
        /// The reason's code.
        why: &'static str,
        /// Wait before that.
        waited_s: f64,
    },
}

impl Decisions {
    /// A request came.
    pub(super) fn came(
        &mut self,
        id: &RequestId,
        known: Option<DecisionId>,
        request: &Request,
        considered: Vec<Considered>,
        now: Instant,
    ) -> DecisionId {
        // A second turn of the same request stands where its first one does, if that is not forgotten.
        if let Some(known) = known.filter(|known| self.get_mut(*known).is_some()) {
            return known;
        }
        if self.ring.len() >= KEPT {
            self.ring.pop_front();
            self.first += 1;
        }
        self.ring.push_back(Decision {
            request: id.clone(),
            tenant: request.tenant.clone(),
            model: request.model.clone(),
            tier: request.tier,
            input_tokens: request.input,
            expected_output_tokens: request.output,
            prefix_blocks: request.blocks.hashes.len(),
            deadline_s: request.due.saturating_duration_since(now).as_secs_f64(),
            strict: request.strict,
            outlook: None,
            considered,
            verdict: Verdict::Waits { why: JUST_CAME },
            at: now,
            age_s: 0.0,
        });
        DecisionId(self.first + (self.ring.len() - 1) as u64)
    }

    /// What it may expect. That of its first turn stays.
    pub(super) fn foreseen(&mut self, id: DecisionId, outlook: Outlook) {
        let (wait_s, ttft_s, ahead) = (outlook.wait_s, outlook.ttft_s(), outlook.ahead);
        // Of servers whose costs nobody knows yet, nothing is foreseen.
        if ttft_s <= 0.0 {
            return;
        }
        if let Some(decision) = self.get_mut(id) {
            decision.outlook.get_or_insert(Foreseen { wait_s, ttft_s, ahead });
        }
    }

    /// It waits.
    pub(super) fn waits(&mut self, id: DecisionId, why: &'static str) {
        if let Some(decision) = self.get_mut(id) {
            decision.verdict = Verdict::Waits { why };
        }
    }

    /// It has its turn.
    pub(super) fn placed(
        &mut self,
        id: DecisionId,
        server: &ServerId,
        weighed: &Weighed,
        now: Instant,
    ) {
        let Some(decision) = self.get_mut(id) else { return };
        let (earlier, waited_for) = match &decision.verdict {
            Verdict::Waits { why } if *why == JUST_CAME => (0, None),
            Verdict::Waits { why } => (0, Some(*why)),
            Verdict::Placed { earlier, waited_for, .. } => (earlier + 1, *waited_for),
            Verdict::Refused { .. } => (0, None),
        };
        let why = format!(
            "least expected cost, {:.3} s: {:.3} s owed, {:.3} s of prefill, {} of {} tokens in its cache",
            weighed.cost_s,
            weighed.debt_s,
            weighed.prefill_s,
            weighed.cached,
            decision.input_tokens
        );
        decision.verdict = Verdict::Placed {
            server: server.clone(),
            why,
            waited_s: now.saturating_duration_since(decision.at).as_secs_f64(),
            waited_for,
            earlier,
        };
    }

    /// It was refused.
    pub(super) fn refused(&mut self, id: DecisionId, why: &'static str, now: Instant) {
        if let Some(decision) = self.get_mut(id) {
            let waited_s = now.saturating_duration_since(decision.at).as_secs_f64();
            decision.verdict = Verdict::Refused { why, waited_s };
        }
    }

    /// Its caller left while it waited.
    pub(super) fn left(&mut self, id: DecisionId, now: Instant) {
        self.refused(id, "its caller left", now);
    }

    /// What was decided about a request, if that is not forgotten.
    pub(super) fn find(&self, request: &str, now: Instant) -> Option<Decision> {
        let found = self.ring.iter().rev().find(|decision| decision.request.as_str() == request)?;
        let age_s = now.saturating_duration_since(found.at).as_secs_f64();
        Some(Decision { age_s, ..found.clone() })
    }

    /// The newest ones, newest first.
    pub(super) fn newest(&self, most: usize, now: Instant) -> Vec<Decision> {
        let aged = |decision: &Decision| Decision {
            age_s: now.saturating_duration_since(decision.at).as_secs_f64(),
            ..decision.clone()
        };
        self.ring.iter().rev().take(most).map(aged).collect()
    }

    fn get_mut(&mut self, id: DecisionId) -> Option<&mut Decision> {
        let at = usize::try_from(id.0.checked_sub(self.first)?).ok()?;
        self.ring.get_mut(at)
    }
}

impl Decision {
    /// The same as a header: one line of JSON. `None` if a name in it cannot stand in a header.
    pub fn header(&self) -> Option<HeaderValue> {
        let mut text = serde_json::to_string(self).ok()?;
        // Names may hold any letter; JSON can write each in ASCII.
        if !text.is_ascii() {
            text = text.chars().map(ascii).collect();
        }
        HeaderValue::from_str(&text).ok()
    }
}

/// A letter as JSON writes it in ASCII.
fn ascii(letter: char) -> String {
    if letter.is_ascii() {
        return letter.to_string();
    }
    let mut units = [0; 2];
    letter.encode_utf16(&mut units).iter().map(|unit| format!("\\u{unit:04x}")).collect()
}

/// The verdict of a request that nothing was decided about yet.
const JUST_CAME: &str = "it has just come";

impl Considered {
    /// As a server was weighed.
    pub(super) fn new(
        server: &ServerId,
        weighed: &Weighed,
        placed: Tokens,
        kv: Option<Tokens>,
    ) -> Self {
        Self {
            server: server.clone(),
            bar: weighed.bar.map(Bar::as_str),
            cost_s: weighed.cost_s,
            debt_s: weighed.debt_s,
            prefill_s: weighed.prefill_s,
            cached_tokens: weighed.cached,
            placed_tokens: placed,
            kv_tokens: kv,
        }
    }

    /// The most that are told of one decision.
    pub(super) const fn most() -> usize {
        SERVERS_MAX
    }
}
