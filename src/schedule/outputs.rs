//! How long answers are, by tenant and model: to keep room for what they will need, and no more.

use crate::{
    ids::{ModelName, TenantId},
    units::Tokens,
};
use std::collections::HashMap;

/// Weight of the newest answer.
const NEWEST: f64 = 0.02;
/// Answers that the first guess is worth.
const FIRST: f64 = 8.0;
/// Pairs of tenant and model that are told apart; all further ones share their model's figures.
const PAIRS_MAX: usize = 4096;
/// Models that are told apart.
const MODELS_MAX: usize = 1024;
/// Buckets, each 2^(1/4) times as wide as the one before: up to 2^17 tokens.
const BUCKETS: usize = 69;

/// The lengths of answers, fading into the past.
#[derive(Clone, Debug)]
pub struct Lengths {
    mean: f64,
    seen: f64,
    /// Answers in each bucket, and their tokens.
    buckets: [(f32, f32); BUCKETS],
}

/// The lengths of all answers that matter.
#[derive(Clone, Debug, Default)]
pub struct Outputs {
    models: HashMap<ModelName, Lengths>,
    tenants: HashMap<ModelName, HashMap<TenantId, Lengths>>,
    pairs: usize,
}

impl Lengths {
    /// Starts from a guess.
    pub fn new(guess: Tokens) -> Self {
        Self { mean: guess.get().max(1) as f64, seen: 0.0, buckets: [(0.0, 0.0); BUCKETS] }
    }

    /// An answer was this long.
    pub fn observe(&mut self, output: Tokens) {
        let output = output.get() as f64;
        self.seen += 1.0;
        // A true mean at first, a fading one later.
        let weight = (1.0 / (self.seen + FIRST)).max(NEWEST);
        self.mean += weight * (output - self.mean);
        let keep = 1.0 - NEWEST as f32;
        for (count, tokens) in &mut self.buckets {
            *count *= keep;
            *tokens *= keep;
        }
        if let Some((count, tokens)) = self.buckets.get_mut(bucket(output)) {
            *count += 1.0;
            *tokens += output as f32;
        }
    }

    /// What to expect of the next one, tokens, at least 1.
    pub fn expect(&self) -> Tokens {
        Tokens(self.mean.ceil().max(1.0) as u64)
    }

    /// What to expect of one that has `produced` tokens already and goes on: at least that.
    pub fn expect_of(&self, produced: Tokens) -> Tokens {
        let at = produced.get();
        if at == 0 {
            return self.expect();
        }
        let longer = self.buckets.get(bucket(at as f64) + 1..).unwrap_or_default();
        let (count, tokens) =
            longer.iter().fold((0.0, 0.0), |sum, bucket| (sum.0 + bucket.0, sum.1 + bucket.1));
        // Longer than nearly all: nobody knows, so a part more of what it has.
        let mean = if count > 0.2 { tokens / count } else { at as f32 * 1.25 };
        Tokens((mean.ceil() as u64).max(at + 1)).max(self.expect())
    }
}

fn bucket(output: f64) -> usize {
    let at = (output.max(1.0).log2() * 4.0) as usize;
    at.min(BUCKETS - 1)
}

impl Outputs {
    /// The lengths of a tenant's answers by a model; of the model's, while too few of the tenant's are known.
    pub fn of(&self, tenant: &TenantId, model: &ModelName) -> Option<&Lengths> {
        let own = self.tenants.get(model).and_then(|of| of.get(tenant));
        own.filter(|lengths| lengths.seen >= FIRST).or_else(|| self.models.get(model))
    }

    /// An answer was this long. `guess` is where an unknown model starts.
    pub fn observe(&mut self, tenant: &TenantId, model: &ModelName, output: Tokens, guess: Tokens) {
        if !self.models.contains_key(model) {
            if self.models.len() >= MODELS_MAX {
                return;
            }
            self.models.insert(model.clone(), Lengths::new(guess));
        }
        let Some(of_model) = self.models.get_mut(model) else { return };
        of_model.observe(output);
        let start = of_model.expect();
        let of = match self.tenants.get_mut(model) {
            Some(of) => of,
            None => self.tenants.entry(model.clone()).or_default(),
        };
        if let Some(lengths) = of.get_mut(tenant) {
            lengths.observe(output);
        } else if self.pairs < PAIRS_MAX {
            self.pairs += 1;
            let mut lengths = Lengths::new(start);
            lengths.observe(output);
            of.insert(tenant.clone(), lengths);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_expectation_moves_towards_what_is_seen() {
        let mut lengths = Lengths::new(Tokens(256));
        assert_eq!(lengths.expect(), Tokens(256));
        for _ in 0..400 {
            lengths.observe(Tokens(20));
        }
        assert!(lengths.expect() <= Tokens(21), "{:?}", lengths.expect());
    }

    #[test]
    fn one_that_is_long_already_is_expected_to_be_one_of_the_long_ones() {
        let mut lengths = Lengths::new(Tokens(100));
        for round in 0..500 {
            lengths.observe(Tokens(if round % 4 == 0 { 800 } else { 20 }));
        }
        let at_first = lengths.expect().get();
        assert!((150..300).contains(&at_first), "{at_first}");
        let later = lengths.expect_of(Tokens(100)).get();
        assert!((780..820).contains(&later), "{later}");
        assert!(lengths.expect_of(Tokens(5_000)) > Tokens(5_000), "beyond all that was seen");
    }

    #[test]
    fn tenants_have_their_own_lengths_once_they_are_known() {
        let mut outputs = Outputs::default();
        let (model, short, long) = ("m".into(), TenantId::from("short"), TenantId::from("long"));
        assert!(outputs.of(&short, &model).is_none());
        for _ in 0..200 {
            outputs.observe(&short, &model, Tokens(10), Tokens(256));
            outputs.observe(&long, &model, Tokens(1_000), Tokens(256));
        }
        assert!(outputs.of(&short, &model).unwrap().expect() < Tokens(60));
        assert!(outputs.of(&long, &model).unwrap().expect() > Tokens(900));
        let stranger = outputs.of(&"new".into(), &model).unwrap().expect().get();
        assert!((300..700).contains(&stranger), "the model's: {stranger}");
    }
}
