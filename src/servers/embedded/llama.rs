//! The decoder: tokens in, scores for the next token out.
//!
//! Llama's layer, with the offsets of Qwen2 and the head norms of Qwen3 where the weights have them.
//! Rows of numbers are plain vectors; only the large multiplications go through candle.

use super::{
    LoadError,
    shape::Shape,
    weights::{Matrix, Weights, add, dot},
};
use candle_core::Result;
use std::path::Path;

/// A loaded model. Shared by all sequences; never changes.
#[derive(Debug)]
pub(super) struct Llama {
    shape: Shape,
    embedding: Matrix,
    layers: Vec<Layer>,
    norm: Vec<f32>,
    /// `None`: the embedding table serves.
    output: Option<Matrix>,
}

/// Keys and values of one sequence so far. A clone starts a second continuation of the same text.
#[derive(Clone, Debug, Default)]
pub(super) struct Cache {
    layers: Vec<KeysValues>,
    length: usize,
}

/// One layer's part of a cache: a row a position, all key/value heads side by side. The vectors grow by
/// doubling, so a step copies nothing but its own row.
#[derive(Clone, Debug, Default)]
struct KeysValues {
    keys: Vec<f32>,
    values: Vec<f32>,
}

#[derive(Debug)]
struct Layer {
    attention_norm: Vec<f32>,
    query: Matrix,
    key: Matrix,
    value: Matrix,
    query_norm: Option<Vec<f32>>,
    key_norm: Option<Vec<f32>>,
    joined: Matrix,
    mlp_norm: Vec<f32>,
    gate: Matrix,
    up: Matrix,
    down: Matrix,
}

// === impl Llama ===

impl Llama {
    /// Reads `config.json` and the weights of a folder.
    pub(super) fn load(folder: &Path) -> std::result::Result<Self, LoadError> {
        let shape = Shape::load(folder)?;
        let mut weights = Weights::load(folder)?;
        let embedding = weights.matrix("model.embed_tokens", shape.vocabulary, shape.hidden)?;
        let layers = (0..shape.layers)
            .map(|at| Layer::load(&mut weights, &format!("model.layers.{at}"), &shape))
            .collect::<std::result::Result<_, _>>()?;
        let norm = weights.row("model.norm.weight", shape.hidden)?;
        let output = match shape.tied {
            true => None,
            false => Some(weights.matrix("lm_head", shape.vocabulary, shape.hidden)?),
        };
        Ok(Self { shape, embedding, layers, norm, output })
    }

    /// The model's sizes.
    pub(super) fn shape(&self) -> &Shape {
        &self.shape
    }

    /// Appends tokens to a sequence and scores what may follow the last of them.
    pub(super) fn forward(&self, tokens: &[u32], cache: &mut Cache) -> Result<Vec<f32>> {
        let rows = self.run(tokens, cache)?;
        let Some(last) = rows.rchunks_exact(self.shape.hidden).next() else {
            candle_core::bail!("no tokens to score");
        };
        let last = norm(last, &self.norm, self.shape.norm_epsilon);
        self.output.as_ref().unwrap_or(&self.embedding).apply(&last)
    }

    /// Appends tokens to a sequence and gives the final hidden state of each, `hidden` numbers a row.
    pub(super) fn hidden(&self, tokens: &[u32], cache: &mut Cache) -> Result<Vec<f32>> {
        let rows = self.run(tokens, cache)?;
        Ok(norm(&rows, &self.norm, self.shape.norm_epsilon))
    }

    fn run(&self, tokens: &[u32], cache: &mut Cache) -> Result<Vec<f32>> {
        if cache.length + tokens.len() > self.shape.window {
            candle_core::bail!("the sequence left the window of {} tokens", self.shape.window);
        }
        cache.layers.resize_with(self.layers.len(), KeysValues::default);
        let turns: Vec<Vec<(f32, f32)>> =
            (cache.length..).take(tokens.len()).map(|position| self.turn_to(position)).collect();
        let mut rows = self.embedding.look_up(tokens)?;
        for (layer, seen) in self.layers.iter().zip(&mut cache.layers) {
            layer.run(&mut rows, seen, cache.length, &turns, &self.shape)?;
        }
        cache.length += tokens.len();
        Ok(rows)
    }

    /// Sine and cosine of every rotated pair at a position.
    fn turn_to(&self, position: usize) -> Vec<(f32, f32)> {
        let angles = self.shape.turns.iter().map(|turn| (turn * position as f64).sin_cos());
        angles.map(|(sine, cosine)| (sine as f32, cosine as f32)).collect()
    }
}

// === impl Layer ===

impl Layer {
    fn load(
        weights: &mut Weights,
        at: &str,
        shape: &Shape,
    ) -> std::result::Result<Self, LoadError> {
        let (hidden, head) = (shape.hidden, shape.head_width);
        let (query_width, kv_width) = (shape.heads * head, shape.kv_width());
        let gate = weights.rows_of(&format!("{at}.mlp.gate_proj.weight"))?;
        Ok(Self {
            attention_norm: weights.row(&format!("{at}.input_layernorm.weight"), hidden)?,
            query: weights.matrix(&format!("{at}.self_attn.q_proj"), query_width, hidden)?,
            key: weights.matrix(&format!("{at}.self_attn.k_proj"), kv_width, hidden)?,
            value: weights.matrix(&format!("{at}.self_attn.v_proj"), kv_width, hidden)?,
            query_norm: weights.optional_row(&format!("{at}.self_attn.q_norm.weight"), head)?,
            key_norm: weights.optional_row(&format!("{at}.self_attn.k_norm.weight"), head)?,
            joined: weights.matrix(&format!("{at}.self_attn.o_proj"), hidden, query_width)?,
            mlp_norm: weights.row(&format!("{at}.post_attention_layernorm.weight"), hidden)?,
            gate: weights.matrix(&format!("{at}.mlp.gate_proj"), gate, hidden)?,
            up: weights.matrix(&format!("{at}.mlp.up_proj"), gate, hidden)?,
            down: weights.matrix(&format!("{at}.mlp.down_proj"), hidden, gate)?,
        })
    }

    /// Adds what this layer has to say to each row of the residual stream.
    fn run(
        &self,
        rows: &mut [f32],
        seen: &mut KeysValues,
        start: usize,
        turns: &[Vec<(f32, f32)>],
        shape: &Shape,
    ) -> Result<()> {
        let normed = norm(rows, &self.attention_norm, shape.norm_epsilon);
        let mut query = self.query.apply(&normed)?;
        let mut key = self.key.apply(&normed)?;
        if let Some(weight) = &self.query_norm {
            query = norm(&query, weight, shape.norm_epsilon);
        }
        if let Some(weight) = &self.key_norm {
            key = norm(&key, weight, shape.norm_epsilon);
        }
        rotate(&mut query, shape.heads * shape.head_width, shape.head_width, turns);
        rotate(&mut key, shape.kv_width(), shape.head_width, turns);
        seen.keys.extend_from_slice(&key);
        seen.values.extend_from_slice(&self.value.apply(&normed)?);
        add(rows, &self.joined.apply(&attend(&query, seen, start, shape))?);

        let normed = norm(rows, &self.mlp_norm, shape.norm_epsilon);
        let mut inner = self.gate.apply(&normed)?;
        for (gate, up) in inner.iter_mut().zip(self.up.apply(&normed)?) {
            *gate = *gate / (1.0 + (-*gate).exp()) * up;
        }
        add(rows, &self.down.apply(&inner)?);
        Ok(())
    }
}

/// Root-mean-square norm of each run of numbers as long as `weight`.
fn norm(rows: &[f32], weight: &[f32], epsilon: f32) -> Vec<f32> {
    let mut out = Vec::with_capacity(rows.len());
    for row in rows.chunks_exact(weight.len()) {
        let scale = 1.0 / (dot(row, row) / row.len() as f32 + epsilon).sqrt();
        out.extend(row.iter().zip(weight).map(|(number, weight)| number * scale * weight));
    }
    out
}

/// Turns every head of every row to its position. Entry `i` pairs with entry `i + half`, as the files of
/// this family are laid out.
fn rotate(rows: &mut [f32], width: usize, head_width: usize, turns: &[Vec<(f32, f32)>]) {
    for (row, turns) in rows.chunks_exact_mut(width).zip(turns) {
        for head in row.chunks_exact_mut(head_width) {
            let (first, second) = head.split_at_mut(head_width / 2);
            for ((first, second), (sine, cosine)) in first.iter_mut().zip(second).zip(turns) {
                (*first, *second) =
                    (*first * cosine - *second * sine, *second * cosine + *first * sine);
            }
        }
    }
}

/// Each query head mixes the values of the positions up to its own. `start` is the first query's position.
fn attend(query: &[f32], seen: &KeysValues, start: usize, shape: &Shape) -> Vec<f32> {
    let (head_width, kv_width) = (shape.head_width, shape.kv_width());
    let scale = 1.0 / (head_width as f32).sqrt();
    let mut out = vec![0.0; query.len()];
    let mut shares = Vec::with_capacity(seen.keys.len() / kv_width);
    let heads = query.chunks_exact(head_width).zip(out.chunks_exact_mut(head_width));
    for (at, (query, out)) in heads.enumerate() {
        let (row, head) = (at / shape.heads, at % shape.heads);
        let from = head / shape.sharing() * head_width;
        // One head's part of every position up to this row's.
        let part = |all| head_parts(all, kv_width, from, head_width).take(start + row + 1);
        shares.clear();
        shares.extend(part(&seen.keys).map(|key| dot(query, key) * scale));
        soften(&mut shares);
        for (share, value) in shares.iter().zip(part(&seen.values)) {
            for (to, value) in out.iter_mut().zip(value) {
                *to += share * value;
            }
        }
    }
    out
}

fn head_parts(
    all: &[f32],
    width: usize,
    from: usize,
    length: usize,
) -> impl Iterator<Item = &[f32]> {
    all.chunks_exact(width).filter_map(move |position| position.get(from..from + length))
}

/// Softmax in place.
fn soften(scores: &mut [f32]) {
    let highest = scores.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let mut sum = 0.0;
    for score in scores.iter_mut() {
        *score = (*score - highest).exp();
        sum += *score;
    }
    for score in scores {
        *score /= sum;
    }
}

#[cfg(test)]
mod tests {
    use super::{super::tiny::Tiny, *};

    fn load(tiny: &Tiny) -> Llama {
        let folder = tempfile::tempdir().unwrap();
        tiny.write(folder.path());
        Llama::load(folder.path()).unwrap()
    }

    fn assert_close(left: &[f32], right: &[f32]) {
        assert_eq!(left.len(), right.len());
        for (at, (left, right)) in left.iter().zip(right).enumerate() {
            assert!((left - right).abs() < 1e-4, "number {at}: {left} against {right}");
        }
    }

    /// The same maths once more, position by position and head by head, with nothing shared.
    fn by_hand(tiny: &Tiny, tokens: &[u32]) -> Vec<f32> {
        let (hidden, heads, kv_heads, head, inner) = (16, 4, 2, 4, 24);
        let at = |name: &str| tiny.numbers(&format!("model.layers.0.{name}"));
        let has = |name: &str| tiny.weights.contains_key(&format!("model.layers.0.{name}"));
        let times = |weight: &[f32], x: &[f32], outputs: usize| -> Vec<f32> {
            (0..outputs)
                .map(|o| (0..x.len()).map(|i| weight[o * x.len() + i] * x[i]).sum())
                .collect()
        };
        let rms = |x: &[f32], weight: &[f32]| -> Vec<f32> {
            let mean = x.iter().map(|v| v * v).sum::<f32>() / x.len() as f32;
            x.iter().zip(weight).map(|(v, w)| v / (mean + 1e-5).sqrt() * w).collect()
        };
        let turn = |x: &mut [f32], position: usize| {
            for i in 0..head / 2 {
                let angle = position as f32 / 10000f32.powf(2.0 * i as f32 / head as f32);
                let (a, b) = (x[i], x[i + head / 2]);
                x[i] = a * angle.cos() - b * angle.sin();
                x[i + head / 2] = a * angle.sin() + b * angle.cos();
            }
        };
        let table = tiny.numbers("model.embed_tokens.weight");
        let stream: Vec<Vec<f32>> = tokens
            .iter()
            .map(|&t| table[t as usize * hidden..(t as usize + 1) * hidden].to_vec())
            .collect();
        let part =
            |name: &str, x: &[f32], count: usize, position: Option<usize>| -> Vec<Vec<f32>> {
                let x = rms(x, &at("input_layernorm.weight"));
                let mut out =
                    times(&at(&format!("self_attn.{name}_proj.weight")), &x, count * head);
                if has(&format!("self_attn.{name}_proj.bias")) {
                    out = out
                        .iter()
                        .zip(at(&format!("self_attn.{name}_proj.bias")))
                        .map(|(a, b)| a + b)
                        .collect();
                }
                out.chunks(head)
                    .map(|one| {
                        let mut one = one.to_vec();
                        if has(&format!("self_attn.{name}_norm.weight")) {
                            one = rms(&one, &at(&format!("self_attn.{name}_norm.weight")));
                        }
                        position.into_iter().for_each(|position| turn(&mut one, position));
                        one
                    })
                    .collect()
            };
        let last = tokens.len() - 1;
        let query = part("q", &stream[last], heads, Some(last));
        let mut mixed = Vec::new();
        for (h, query) in query.iter().enumerate() {
            let kv = h / (heads / kv_heads);
            let weights: Vec<f32> = (0..=last)
                .map(|p| {
                    let key = &part("k", &stream[p], kv_heads, Some(p))[kv];
                    (query.iter().zip(key).map(|(q, k)| q * k).sum::<f32>() / (head as f32).sqrt())
                        .exp()
                })
                .collect();
            let sum: f32 = weights.iter().sum();
            for d in 0..head {
                let value = |p: usize| part("v", &stream[p], kv_heads, None)[kv][d];
                mixed.push((0..=last).map(|p| weights[p] / sum * value(p)).sum());
            }
        }
        let attended = times(&at("self_attn.o_proj.weight"), &mixed, hidden);
        let x: Vec<f32> = stream[last].iter().zip(attended).map(|(a, b)| a + b).collect();
        let normed = rms(&x, &at("post_attention_layernorm.weight"));
        let gate = times(&at("mlp.gate_proj.weight"), &normed, inner);
        let up = times(&at("mlp.up_proj.weight"), &normed, inner);
        let acted: Vec<f32> =
            gate.iter().zip(up).map(|(g, u)| g / (1.0 + (-g).exp()) * u).collect();
        let down = times(&at("mlp.down_proj.weight"), &acted, hidden);
        let x: Vec<f32> = x.iter().zip(down).map(|(a, b)| a + b).collect();
        times(&table, &rms(&x, &tiny.numbers("model.norm.weight")), table.len() / hidden)
    }

    const TOKENS: [u32; 7] = [12, 200, 3, 3, 77, 256, 9];

    #[test]
    fn scores_are_those_of_the_formula() {
        let tiny = Tiny::llama(1, 32, 5);
        let scores = load(&tiny).forward(&TOKENS, &mut Cache::default()).unwrap();
        assert_close(&scores, &by_hand(&tiny, &TOKENS));
    }

    #[test]
    fn offsets_and_head_norms_of_qwen_are_used() {
        let mut tiny = Tiny::llama(1, 32, 6);
        let plain = load(&tiny).forward(&TOKENS, &mut Cache::default()).unwrap();
        for (name, length) in [
            ("q_proj.bias", 16),
            ("k_proj.bias", 8),
            ("v_proj.bias", 8),
            ("q_norm.weight", 4),
            ("k_norm.weight", 4),
        ] {
            tiny.add(&format!("model.layers.0.self_attn.{name}"), length);
        }
        let scores = load(&tiny).forward(&TOKENS, &mut Cache::default()).unwrap();
        assert_close(&scores, &by_hand(&tiny, &TOKENS));
        assert!(scores.iter().zip(&plain).any(|(a, b)| (a - b).abs() > 1e-3));
    }

    /// However a sequence is fed, its scores are the same.
    #[test]
    fn cached_steps_equal_one_full_pass() {
        let model = load(&Tiny::llama(3, 32, 7));
        let full = model.forward(&TOKENS, &mut Cache::default()).unwrap();
        for first in 1..TOKENS.len() {
            let mut cache = Cache::default();
            let (head, tail) = TOKENS.split_at(first);
            let mut scores = model.forward(head, &mut cache).unwrap();
            for token in tail {
                scores = model.forward(&[*token], &mut cache).unwrap();
            }
            assert_close(&scores, &full);
        }
    }

    #[test]
    fn a_sequence_cannot_leave_its_window_or_vocabulary() {
        let model = load(&Tiny::llama(1, 4, 8));
        let mut cache = Cache::default();
        model.forward(&[1, 2, 3, 4], &mut cache).unwrap();
        assert!(model.forward(&[5], &mut cache).is_err());
        assert!(model.forward(&[9999], &mut Cache::default()).is_err());
    }

    #[test]
    fn folders_that_do_not_fit_are_refused() {
        let folder = tempfile::tempdir().unwrap();
        let mut tiny = Tiny::llama(1, 32, 9);
        tiny.weights.remove("model.layers.0.self_attn.k_proj.weight");
        tiny.write(folder.path());
        assert!(matches!(Llama::load(folder.path()), Err(LoadError::Weights(_))));
        std::fs::write(folder.path().join("model.safetensors"), b"not weights").unwrap();
        assert!(matches!(Llama::load(folder.path()), Err(LoadError::File { .. })));
    }

    #[test]
    fn weights_may_be_split_over_files() {
        let folder = tempfile::tempdir().unwrap();
        let tiny = Tiny::llama(1, 32, 10);
        tiny.write(folder.path());
        let whole =
            Llama::load(folder.path()).unwrap().forward(&TOKENS, &mut Cache::default()).unwrap();
        std::fs::remove_file(folder.path().join("model.safetensors")).unwrap();
        let mut map = serde_json::Map::new();
        for (at, (name, tensor)) in tiny.weights.iter().enumerate() {
            let file = format!("part-{at}.safetensors");
            tensor.save_safetensors(name, folder.path().join(&file)).unwrap();
            map.insert(name.clone(), file.into());
        }
        let index = serde_json::json!({"weight_map": map}).to_string();
        std::fs::write(folder.path().join("model.safetensors.index.json"), index).unwrap();
        let split =
            Llama::load(folder.path()).unwrap().forward(&TOKENS, &mut Cache::default()).unwrap();
        assert_eq!(whole, split);
    }
}
