//! Choosing the next token from the model's scores.

use std::collections::HashMap;

/// How a caller wants tokens chosen.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Choosing {
    /// 0 takes the best token always.
    pub(super) temperature: f32,
    /// Keep the likeliest tokens that together reach this share.
    pub(super) top_p: f32,
    /// Keep this many tokens, 0 for all.
    pub(super) top_k: usize,
    /// Taken off a token's score once it was said.
    pub(super) presence_penalty: f32,
    /// Taken off a token's score for each time it was said.
    pub(super) frequency_penalty: f32,
    /// Added to the scores of tokens.
    pub(super) bias: Vec<(u32, f32)>,
}

/// Chooses the tokens of one sequence. The same seed and scores give the same tokens.
#[derive(Debug)]
pub(super) struct Sampler {
    choosing: Choosing,
    random: Random,
    said: HashMap<u32, u32>,
}

/// A token's log probability, and those of the likeliest tokens at its place.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Odds {
    pub(super) logprob: f32,
    pub(super) top: Vec<(u32, f32)>,
}

// === impl Sampler ===

impl Sampler {
    pub(super) fn new(choosing: Choosing, seed: u64) -> Self {
        Self { choosing, random: Random(seed), said: HashMap::new() }
    }

    /// The next token. `None` when no score is a number.
    pub(super) fn choose(&mut self, scores: &[f32]) -> Option<u32> {
        let changed = self.change(scores);
        let scores = changed.as_deref().unwrap_or(scores);
        let token =
            if self.choosing.temperature <= 0.0 { best(scores) } else { self.draw(scores) }?;
        *self.said.entry(token).or_default() += 1;
        Some(token)
    }

    /// The scores after penalties and bias; `None` when there are none, which spares a copy.
    fn change(&self, scores: &[f32]) -> Option<Vec<f32>> {
        let Choosing { presence_penalty, frequency_penalty, bias, .. } = &self.choosing;
        let penalties = *presence_penalty != 0.0 || *frequency_penalty != 0.0;
        if !penalties && bias.is_empty() {
            return None;
        }
        let mut changed = scores.to_vec();
        for (token, more) in bias {
            if let Some(score) = changed.get_mut(*token as usize) {
                *score += more;
            }
        }
        for (token, times) in self.said.iter().filter(|_| penalties) {
            if let Some(score) = changed.get_mut(*token as usize) {
                *score -= presence_penalty + frequency_penalty * *times as f32;
            }
        }
        Some(changed)
    }

    fn draw(&mut self, scores: &[f32]) -> Option<u32> {
        let highest = scores.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        let weigh = |score: f32| ((score - highest) / self.choosing.temperature).exp();
        let mut tokens: Vec<(u32, f32)> = (0..)
            .zip(scores)
            .filter(|(_, s)| !s.is_nan())
            .map(|(token, &s)| (token, weigh(s)))
            .collect();
        let Choosing { top_k, top_p, .. } = self.choosing;
        if (top_k > 0 && top_k < tokens.len()) || top_p < 1.0 {
            // Stable, so that ties fall the same way on every run.
            tokens.sort_by(|left, right| right.1.total_cmp(&left.1));
            if top_k > 0 {
                tokens.truncate(top_k);
            }
            let enough = top_p * tokens.iter().map(|(_, weight)| weight).sum::<f32>();
            let mut sum = 0.0;
            let fewer = tokens.iter().take_while(|(_, weight)| {
                let short = sum < enough;
                sum += weight;
                short
            });
            let kept = fewer.count().max(1);
            tokens.truncate(kept);
        }
        let total: f32 = tokens.iter().map(|(_, weight)| weight).sum();
        let mut left = self.random.share() * total;
        for &(token, weight) in &tokens {
            left -= weight;
            if left < 0.0 {
                return Some(token);
            }
        }
        // Rounding may leave a crumb over.
        tokens.iter().rfind(|(_, weight)| *weight > 0.0).map(|(token, _)| *token)
    }
}

/// The highest score, the first of equals.
fn best(scores: &[f32]) -> Option<u32> {
    let mut best: Option<(u32, f32)> = None;
    for (token, &score) in (0..).zip(scores) {
        if best.map_or(!score.is_nan(), |(_, high)| score > high) {
            best = Some((token, score));
        }
    }
    best.map(|(token, _)| token)
}

/// How likely the model itself found a token, before temperature and penalties, and which `top` tokens it
/// found likeliest.
pub(super) fn odds(scores: &[f32], token: u32, top: usize) -> Odds {
    let highest = scores.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let sum: f32 = scores.iter().map(|score| (score - highest).exp()).sum();
    let base = highest + sum.ln();
    let logprob = scores.get(token as usize).map_or(f32::MIN, |score| score - base);
    let mut likeliest: Vec<(u32, f32)> = Vec::new();
    if top > 0 {
        likeliest = (0..).zip(scores.iter().map(|score| score - base)).collect();
        likeliest.sort_by(|left, right| right.1.total_cmp(&left.1));
        likeliest.truncate(top);
    }
    Odds { logprob, top: likeliest }
}

/// A small generator (SplitMix64): repeatable from its seed; not for secrets.
#[derive(Debug)]
struct Random(u64);

impl Random {
    /// A number from 0 up to, but not, 1.
    fn share(&mut self) -> f32 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        mixed ^= mixed >> 31;
        (mixed >> 40) as f32 / (1u64 << 24) as f32
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plain() -> Choosing {
        Choosing {
            temperature: 1.0,
            top_p: 1.0,
            top_k: 0,
            presence_penalty: 0.0,
            frequency_penalty: 0.0,
            bias: Vec::new(),
        }
    }

    fn draws(choosing: Choosing, seed: u64, scores: &[f32]) -> Vec<u32> {
        let mut sampler = Sampler::new(choosing, seed);
        (0..200).map(|_| sampler.choose(scores).unwrap()).collect()
    }

    #[test]
    fn zero_temperature_takes_the_first_of_the_best() {
        let choosing = Choosing { temperature: 0.0, ..plain() };
        assert_eq!(Sampler::new(choosing.clone(), 1).choose(&[f32::NAN, 2.0, 5.0, 5.0]), Some(2));
        assert_eq!(Sampler::new(choosing, 1).choose(&[f32::NAN]), None);
    }

    #[test]
    fn draws_follow_the_odds_and_the_seed() {
        let scores = [0.0, 3.0f32.ln()];
        let one = draws(plain(), 7, &scores);
        assert_eq!(one, draws(plain(), 7, &scores));
        assert_ne!(one, draws(plain(), 8, &scores));
        let second = one.iter().filter(|&&token| token == 1).count();
        assert!((120..=180).contains(&second), "150 of 200 expected, got {second}");
    }

    #[test]
    fn cuts_keep_only_the_likeliest() {
        let scores = [1.0, 4.0, 3.0, 0.0];
        let two = draws(Choosing { top_k: 2, ..plain() }, 3, &scores);
        assert!(two.contains(&1) && two.contains(&2) && !two.contains(&0) && !two.contains(&3));
        let one = draws(Choosing { top_p: 0.3, ..plain() }, 3, &scores);
        assert!(one.iter().all(|&token| token == 1));
    }

    #[test]
    fn penalties_and_bias_move_the_choice() {
        let greedy = Choosing { temperature: 0.0, ..plain() };
        let mut sampler = Sampler::new(Choosing { frequency_penalty: 0.6, ..greedy.clone() }, 0);
        let said: Vec<_> = (0..4).map(|_| sampler.choose(&[1.0, 0.5]).unwrap()).collect();
        assert_eq!(said, [0, 1, 0, 1]);
        let mut sampler = Sampler::new(Choosing { bias: vec![(1, 9.0)], ..greedy }, 0);
        assert_eq!(sampler.choose(&[1.0, 0.5]), Some(1));
    }

    #[test]
    fn odds_are_those_of_the_model() {
        let odds = odds(&[1.0f32.ln(), 3.0f32.ln()], 0, 1);
        assert!((odds.logprob - 0.25f32.ln()).abs() < 1e-6);
        assert_eq!(odds.top.len(), 1);
        assert_eq!(odds.top[0].0, 1);
    }
}
