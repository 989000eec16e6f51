//! What a request costs a server, in seconds, and how that is learned from first tokens.

use crate::units::Tokens;

/// Steps of decoding that a new request is taken to slow down, in the expected cost. A few would be what it
/// slows; more keep servers evenly filled, which found more good requests in every replay.
const HARMED_STEPS: f64 = 80.0;
/// Share of the past that a new observation leaves.
const MEMORY: f64 = 0.995;
/// How many observations the starting figures are worth.
const PRIOR: f64 = 8.0;
/// What is left of what was learned once it is doubted.
const DOUBTED: f64 = 0.05;
/// How many times what it started from a prompt may cost beside its tokens: some steps.
const PROMPT_MOST: f64 = 5.0;
/// Rounds of solving; each starts where the last one ended.
const ROUNDS: usize = 8;
/// Times below this differ for no reason of their own, seconds.
const STEP_S: f64 = 0.05;
/// How far from where they started figures are believed.
const RANGE: f64 = 50.0;

/// What work costs on one server. Seconds.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Costs {
    /// A prompt, however short: the step that is under way when it comes, and its own.
    pub prompt_s: f64,
    /// Computing one token of a prompt.
    pub token_s: f64,
    /// Attention, per token of a prompt and token before it.
    pub attention_s: f64,
    /// One step of decoding, however small.
    pub step_s: f64,
    /// Reading one token of the KV cache in a step.
    pub context_s: f64,
}

impl Default for Costs {
    /// An 8-billion-parameter model on a large card (docs/scheduling.md): where learning starts if nobody says
    /// better.
    fn default() -> Self {
        Self {
            prompt_s: 0.02,
            token_s: 29.4e-6,
            attention_s: 1.3e-9,
            step_s: 7.5e-3,
            context_s: 4.9e-8,
        }
    }
}

impl Costs {
    /// Seconds of prefill for a prompt of which the first `cached` tokens are in the server's cache.
    pub fn prefill_s(&self, input: Tokens, cached: Tokens) -> f64 {
        let (new, products) = shape(input, cached);
        self.prompt_s + self.token_s * new + self.attention_s * products
    }

    /// A step in which a server only decodes, at this much context, seconds.
    pub fn quiet_step_s(&self, placed: Tokens) -> f64 {
        self.step_s + self.context_s * placed.get() as f64
    }

    /// What a server's decoding is slowed by at this much context beside an empty one's, for the comparison of
    /// servers, seconds.
    pub fn harm_s(&self, placed: Tokens) -> f64 {
        HARMED_STEPS * self.context_s * placed.get() as f64
    }

    /// The same figures, all times `factor`.
    #[must_use]
    pub fn times(self, factor: f64) -> Self {
        Self {
            prompt_s: self.prompt_s * factor,
            token_s: self.token_s * factor,
            attention_s: self.attention_s * factor,
            step_s: self.step_s * factor,
            context_s: self.context_s * factor,
        }
    }
}

/// New tokens, and the sum over them of the tokens before each.
fn shape(input: Tokens, cached: Tokens) -> (f64, f64) {
    let new = input.less(cached).get() as f64;
    (new, new * (input.get() as f64 - new / 2.0))
}

/// Learns the costs of prefill by least squares with a fading memory, from what first tokens took.
#[derive(Clone, Debug)]
pub struct Learned {
    start: Costs,
    now: Costs,
    /// The normal equations: the products of what a prompt consists of, and what they come to.
    products: [[f64; PARTS]; PARTS],
    times: [f64; PARTS],
    seen: u64,
}

/// What the time of a prompt is made of: once, for each new token, for each pair of a new token and one before.
const PARTS: usize = 3;
/// In these units, so that the figures are of one size.
const UNITS: [f64; PARTS] = [1.0, 1e-3, 1e-7];

impl Learned {
    /// Starts from these figures.
    pub fn new(start: Costs) -> Self {
        let mut learned = Self {
            start,
            now: start,
            products: [[0.0; PARTS]; PARTS],
            times: [0.0; PARTS],
            seen: 0,
        };
        // The prior: requests of several sizes that took what the starting figures say.
        for input in [100, 1_000, 8_000, 30_000] {
            let took_s = start.prefill_s(Tokens(input), Tokens::ZERO);
            learned.add(shape(Tokens(input), Tokens::ZERO), took_s, PRIOR / 4.0);
        }
        learned
    }

    /// The figures that it started from.
    pub const fn start(&self) -> &Costs {
        &self.start
    }

    /// The figures as they are known now.
    pub const fn costs(&self) -> &Costs {
        &self.now
    }

    /// Observations taken in.
    pub const fn seen(&self) -> u64 {
        self.seen
    }

    /// What was learned counts for little from now on.
    pub fn doubt(&mut self) {
        for product in self.products.as_flattened_mut().iter_mut().chain(&mut self.times) {
            *product *= DOUBTED;
        }
        self.seen = 0;
    }

    /// A prompt of which the first `cached` tokens were taken to be cached was computed in `took_s`, with
    /// nothing else before it.
    pub fn observe(&mut self, input: Tokens, cached: Tokens, took_s: f64) {
        let (new, pairs) = shape(input, cached);
        if new < 1.0 || !took_s.is_finite() || took_s <= 0.0 {
            return;
        }
        // What took many times longer than anything like it says something else than what prefill costs.
        let took_s = took_s.min(self.now.prefill_s(input, cached) * 8.0 + 0.5);
        for product in self.products.as_flattened_mut().iter_mut().chain(&mut self.times) {
            *product *= MEMORY;
        }
        self.add((new, pairs), took_s, 1.0);
        self.seen += 1;
        self.solve();
    }

    fn add(&mut self, (new, pairs): (f64, f64), took_s: f64, weight: f64) {
        let mut parts = [1.0, new, pairs];
        for (part, unit) in parts.iter_mut().zip(UNITS) {
            *part *= unit;
        }
        // Between relative and absolute errors: prompts differ a thousandfold, and the time of the smallest is
        // mostly that of a step that was under way.
        let weight = weight / (took_s + STEP_S).powi(2);
        for ((row, time), a) in self.products.iter_mut().zip(&mut self.times).zip(parts) {
            *time += weight * a * took_s;
            for (product, b) in row.iter_mut().zip(parts) {
                *product += weight * a * b;
            }
        }
    }

    /// Finds the figures that fit best, none of them negative, near where they started.
    fn solve(&mut self) {
        let bounds = |start: f64| (start / RANGE, start * RANGE);
        let start = [self.start.prompt_s, self.start.token_s, self.start.attention_s];
        let start_prompt = self.start.prompt_s;
        let now = [self.now.prompt_s, self.now.token_s, self.now.attention_s];
        let mut found = [0.0; PARTS];
        for (at, value) in found.iter_mut().enumerate() {
            *value = now.get(at).zip(UNITS.get(at)).map_or(0.0, |(now, unit)| now / unit);
        }
        // Each in turn with the others held (Gauss and Seidel), within its bounds: it converges for sums of
        // squares, and never leaves what makes sense.
        for _ in 0..ROUNDS {
            for at in 0..PARTS {
                let (Some(row), Some(time)) = (self.products.get(at), self.times.get(at)) else {
                    return;
                };
                let own = row.get(at).copied().unwrap_or(0.0);
                if own <= 0.0 {
                    continue;
                }
                let all: f64 = row.iter().zip(found).map(|(product, value)| product * value).sum();
                let (low, high) = bounds(start.get(at).copied().unwrap_or(0.0));
                let unit = UNITS.get(at).copied().unwrap_or(1.0);
                // Where all prompts are of one size, what they cost is that of their tokens.
                let (low, high) =
                    if at == 0 { (0.0, start_prompt * PROMPT_MOST) } else { (low, high) };
                if let Some(value) = found.get_mut(at) {
                    *value = (*value + (time - all) / own).clamp(low / unit, high / unit);
                }
            }
        }
        let [prompt, token, attention] = found;
        let [once, each, pair] = UNITS;
        self.now.prompt_s = prompt * once;
        self.now.token_s = token * each;
        self.now.attention_s = attention * pair;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Prompts of mixed sizes, a third of each cached.
    fn teach(learned: &mut Learned, truth: Costs, rounds: u64) {
        for round in 0..rounds {
            let input = Tokens(200 + (round * 7_919) % 30_000);
            let cached = Tokens(input.get() / 3);
            learned.observe(input, cached, truth.prefill_s(input, cached));
        }
    }

    #[test]
    fn figures_that_were_off_are_learned() {
        for off in [0.7, 1.3, 5.0, 0.25] {
            let truth = Costs::default();
            let mut learned = Learned::new(truth.times(off));
            teach(&mut learned, truth, 600);
            let costs = learned.costs();
            assert!((costs.token_s / truth.token_s - 1.0).abs() < 0.1, "{off}: {costs:?}");
            for input in [500, 5_000, 50_000] {
                let (said, is) = (
                    costs.prefill_s(Tokens(input), Tokens::ZERO),
                    truth.prefill_s(Tokens(input), Tokens::ZERO),
                );
                assert!((said / is - 1.0).abs() < 0.1, "{off}, {input}: {said} for {is}");
            }
        }
    }

    #[test]
    fn one_size_alone_moves_both_figures_together() {
        let truth = Costs::default().times(2.0);
        let mut learned = Learned::new(Costs::default());
        for _ in 0..2_000 {
            let input = Tokens(4_000);
            learned.observe(input, Tokens::ZERO, truth.prefill_s(input, Tokens::ZERO));
        }
        let said = learned.costs().prefill_s(Tokens(4_000), Tokens::ZERO);
        assert!((said / truth.prefill_s(Tokens(4_000), Tokens::ZERO) - 1.0).abs() < 0.05);
        assert!(learned.costs().token_s > 0.0 && learned.costs().attention_s > 0.0);
    }

    #[test]
    fn a_stall_does_not_teach() {
        let mut learned = Learned::new(Costs::default());
        teach(&mut learned, Costs::default(), 200);
        let before = learned.costs().prefill_s(Tokens(1_000), Tokens::ZERO);
        learned.observe(Tokens(1_000), Tokens::ZERO, 3_600.0);
        let after = learned.costs().prefill_s(Tokens(1_000), Tokens::ZERO);
        assert!(after < before * 1.5, "{before} -> {after}");
        learned.observe(Tokens(0), Tokens::ZERO, 1.0);
        learned.observe(Tokens(10), Tokens::ZERO, f64::NAN);
        assert!(learned.costs().token_s.is_finite());
    }
}
