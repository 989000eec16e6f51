//! BERT's encoder under a linear head, for windows of any length up to its positions.

use super::{
    curves::{gelu, softmax},
    matrix::{Matrix, Weights, numbers},
};
use crate::classify::FolderError;
use candle_core::{Device, Tensor};

/// The sizes of an encoder.
#[derive(Clone, Copy, Debug)]
pub(super) struct Sizes {
    pub hidden: usize,
    pub layers: usize,
    pub heads: usize,
    pub inner: usize,
    pub positions: usize,
    pub epsilon: f32,
    pub mean: bool,
}

/// A loaded encoder.
#[derive(Debug)]
pub(super) struct Bert {
    sizes: Sizes,
    words: Vec<f32>,
    places: Vec<f32>,
    kind: Vec<f32>,
    norm: Norm,
    layers: Vec<Layer>,
    pooler: Option<Matrix>,
    head: Matrix,
}

#[derive(Debug)]
struct Norm {
    weight: Vec<f32>,
    offset: Vec<f32>,
    epsilon: f32,
}

#[derive(Debug)]
struct Layer {
    query: Matrix,
    key: Matrix,
    value: Matrix,
    joined: Matrix,
    joined_norm: Norm,
    up: Matrix,
    down: Matrix,
    down_norm: Norm,
}

// === impl Bert ===

impl Bert {
    pub(super) fn load(
        weights: &mut Weights,
        sizes: Sizes,
        outputs: usize,
    ) -> Result<Self, FolderError> {
        let hidden = sizes.hidden;
        let mut kind = weights.table("embeddings.token_type_embeddings.weight", hidden)?;
        kind.truncate(hidden);
        let pooler = match sizes.mean {
            true => None,
            false => Some(weights.matrix("pooler.dense", hidden, hidden)?),
        };
        Ok(Self {
            sizes,
            words: weights.table("embeddings.word_embeddings.weight", hidden)?,
            places: weights.table("embeddings.position_embeddings.weight", hidden)?,
            kind,
            norm: Norm::load(weights, "embeddings.LayerNorm", sizes)?,
            layers: (0..sizes.layers)
                .map(|at| Layer::load(weights, &format!("encoder.layer.{at}"), sizes))
                .collect::<Result<_, _>>()?,
            pooler,
            head: weights.matrix("classifier", outputs, hidden)?,
        })
    }

    /// The windows' raw outputs. All windows go through each multiplication together, so that the weights
    /// are read once.
    pub(super) fn run(&self, windows: &[&[u32]]) -> candle_core::Result<Vec<Vec<f32>>> {
        let lengths: Vec<usize> = windows.iter().map(|window| window.len()).collect();
        if lengths.iter().any(|length| *length == 0 || *length > self.sizes.positions) {
            candle_core::bail!("windows have 1 to {} tokens", self.sizes.positions);
        }
        let mut rows = Vec::with_capacity(lengths.iter().sum::<usize>() * self.sizes.hidden);
        for window in windows {
            self.look_up(window, &mut rows)?;
        }
        self.norm.apply(&mut rows);
        for layer in &self.layers {
            layer.run(&mut rows, &lengths, self.sizes)?;
        }
        let mut pooled = Vec::with_capacity(windows.len() * self.sizes.hidden);
        let mut rest = rows.as_slice();
        for length in &lengths {
            let (own, others) =
                rest.split_at_checked(length * self.sizes.hidden).unwrap_or_default();
            rest = others;
            self.pool(own, &mut pooled);
        }
        if let Some(pooler) = &self.pooler {
            pooled = pooler.apply(pooled)?;
            pooled.iter_mut().for_each(|number| *number = number.tanh());
        }
        let out = self.head.apply(pooled)?;
        Ok(out.chunks((out.len() / windows.len().max(1)).max(1)).map(<[f32]>::to_vec).collect())
    }

    fn look_up(&self, window: &[u32], rows: &mut Vec<f32>) -> candle_core::Result<()> {
        let hidden = self.sizes.hidden;
        for (id, place) in window.iter().zip(self.places.chunks_exact(hidden)) {
            let at = (*id as usize).saturating_mul(hidden);
            let Some(word) = self.words.get(at..at + hidden) else {
                candle_core::bail!("token {id} is beyond the vocabulary");
            };
            rows.extend(
                word.iter()
                    .zip(place)
                    .zip(&self.kind)
                    .map(|((word, place), kind)| word + place + kind),
            );
        }
        Ok(())
    }

    fn pool(&self, own: &[f32], pooled: &mut Vec<f32>) {
        let hidden = self.sizes.hidden;
        if !self.sizes.mean {
            pooled.extend_from_slice(own.get(..hidden).unwrap_or_default());
            return;
        }
        let mut mean = vec![0.0_f32; hidden];
        for row in own.chunks_exact(hidden) {
            mean.iter_mut().zip(row).for_each(|(sum, number)| *sum += number);
        }
        let count = (own.len() / hidden.max(1)).max(1) as f32;
        pooled.extend(mean.iter().map(|sum| sum / count));
    }
}

// === impl Norm ===

impl Norm {
    fn load(weights: &mut Weights, name: &str, sizes: Sizes) -> Result<Self, FolderError> {
        Ok(Self {
            weight: weights.row(&format!("{name}.weight"), sizes.hidden)?,
            offset: weights.row(&format!("{name}.bias"), sizes.hidden)?,
            epsilon: sizes.epsilon,
        })
    }

    fn apply(&self, rows: &mut [f32]) {
        let width = self.weight.len().max(1);
        for row in rows.chunks_exact_mut(width) {
            let mean = row.iter().sum::<f32>() / width as f32;
            let variance =
                row.iter().map(|number| (number - mean).powi(2)).sum::<f32>() / width as f32;
            let factor = 1.0 / (variance + self.epsilon).sqrt();
            for ((number, weight), offset) in row.iter_mut().zip(&self.weight).zip(&self.offset) {
                *number = (*number - mean) * factor * weight + offset;
            }
        }
    }
}

// === impl Layer ===

impl Layer {
    fn load(weights: &mut Weights, at: &str, sizes: Sizes) -> Result<Self, FolderError> {
        let (hidden, inner) = (sizes.hidden, sizes.inner);
        let mut own =
            |name: &str| weights.matrix(&format!("{at}.attention.self.{name}"), hidden, hidden);
        Ok(Self {
            query: own("query")?,
            key: own("key")?,
            value: own("value")?,
            joined: weights.matrix(&format!("{at}.attention.output.dense"), hidden, hidden)?,
            joined_norm: Norm::load(weights, &format!("{at}.attention.output.LayerNorm"), sizes)?,
            up: weights.matrix(&format!("{at}.intermediate.dense"), inner, hidden)?,
            down: weights.matrix(&format!("{at}.output.dense"), hidden, inner)?,
            down_norm: Norm::load(weights, &format!("{at}.output.LayerNorm"), sizes)?,
        })
    }

    fn run(&self, rows: &mut [f32], lengths: &[usize], sizes: Sizes) -> candle_core::Result<()> {
        let query = self.query.apply(rows.to_vec())?;
        let key = self.key.apply(rows.to_vec())?;
        let value = self.value.apply(rows.to_vec())?;
        let mut mixed = Vec::with_capacity(rows.len());
        let mut from = 0;
        for length in lengths {
            let part = from..from + length * sizes.hidden;
            from = part.end;
            let part = |all: &[f32]| all.get(part.clone()).unwrap_or_default().to_vec();
            mixed.extend(attend(part(&query), part(&key), part(&value), *length, sizes)?);
        }
        let joined = self.joined.apply(mixed)?;
        rows.iter_mut().zip(joined).for_each(|(number, new)| *number += new);
        self.joined_norm.apply(rows);
        let mut inner = self.up.apply(rows.to_vec())?;
        gelu(&mut inner);
        let down = self.down.apply(inner)?;
        rows.iter_mut().zip(down).for_each(|(number, new)| *number += new);
        self.down_norm.apply(rows);
        Ok(())
    }
}

/// Attention of one window to itself, all heads.
fn attend(
    query: Vec<f32>,
    key: Vec<f32>,
    value: Vec<f32>,
    length: usize,
    sizes: Sizes,
) -> candle_core::Result<Vec<f32>> {
    let width = sizes.hidden / sizes.heads;
    let split = |rows: Vec<f32>| {
        Tensor::from_vec(rows, (length, sizes.heads, width), &Device::Cpu)?
            .transpose(0, 1)?
            .contiguous()
    };
    let (query, key, value) = (split(query)?, split(key)?, split(value)?);
    let scores = query.matmul(&key.t()?)?;
    let mut scores = numbers(&scores)?;
    softmax(&mut scores, length, 1.0 / (width as f32).sqrt());
    let shares = Tensor::from_vec(scores, (sizes.heads, length, length), &Device::Cpu)?;
    numbers(&shares.matmul(&value)?.transpose(0, 1)?.contiguous()?)
}
