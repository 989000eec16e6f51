//! The convolutional network: embedding, kernels of three and five side by side, a kernel of three, then
//! maximum and mean over all places.

use super::matrix::{Matrix, Weights};
use crate::classify::FolderError;

/// A loaded network.
#[derive(Debug)]
pub(super) struct Cnn {
    hidden: usize,
    filters: usize,
    embedding: Vec<f32>,
    narrow: Matrix,
    wide: Matrix,
    second: Matrix,
    head: Matrix,
}

impl Cnn {
    pub(super) fn load(
        weights: &mut Weights,
        hidden: usize,
        filters: usize,
        outputs: usize,
    ) -> Result<Self, FolderError> {
        Ok(Self {
            hidden,
            filters,
            embedding: weights.table("embedding.weight", hidden)?,
            narrow: weights.convolution("conv3", filters, hidden, 3)?,
            wide: weights.convolution("conv5", filters, hidden, 5)?,
            second: weights.convolution("second", filters, 2 * filters, 3)?,
            head: weights.matrix("head", outputs, 2 * filters)?,
        })
    }

    /// One window's raw outputs.
    pub(super) fn run(&self, ids: &[u32]) -> candle_core::Result<Vec<f32>> {
        let mut rows = Vec::with_capacity(ids.len() * self.hidden);
        for id in ids {
            let at = (*id as usize).saturating_mul(self.hidden);
            let Some(row) = self.embedding.get(at..at + self.hidden) else {
                candle_core::bail!("token {id} is beyond the vocabulary");
            };
            rows.extend_from_slice(row);
        }
        // A network over nothing has no maximum; its mean is zero.
        if ids.is_empty() {
            return self.head.apply(vec![0.0; 2 * self.filters]);
        }
        let narrow = self.narrow.apply(around(&rows, self.hidden, 1))?;
        let wide = self.wide.apply(around(&rows, self.hidden, 2))?;
        let mut both = Vec::with_capacity(narrow.len() + wide.len());
        for (one, other) in narrow.chunks_exact(self.filters).zip(wide.chunks_exact(self.filters)) {
            both.extend(one.iter().chain(other).map(|number| number.max(0.0)));
        }
        let last = self.second.apply(around(&both, 2 * self.filters, 1))?;
        let mut pooled = vec![0.0_f32; 2 * self.filters];
        let (most, mean) = pooled.split_at_mut(self.filters);
        for row in last.chunks_exact(self.filters) {
            for ((most, mean), number) in most.iter_mut().zip(&mut *mean).zip(row) {
                let number = number.max(0.0);
                *most = most.max(number);
                *mean += number;
            }
        }
        mean.iter_mut().for_each(|sum| *sum /= ids.len() as f32);
        self.head.apply(pooled)
    }
}

/// For each row the rows from `reach` before it to `reach` behind it side by side; beyond the ends are zeros.
fn around(rows: &[f32], width: usize, reach: usize) -> Vec<f32> {
    let count = rows.len() / width.max(1);
    let mut out = Vec::with_capacity(count * width * (2 * reach + 1));
    for at in 0..count {
        let before = reach.saturating_sub(at);
        let behind = (at + reach + 1).saturating_sub(count);
        out.extend(std::iter::repeat_n(0.0, before * width));
        let (from, to) = (at.saturating_sub(reach), (at + reach + 1).min(count));
        out.extend_from_slice(rows.get(from * width..to * width).unwrap_or_default());
        out.extend(std::iter::repeat_n(0.0, behind * width));
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn neighbours_stand_side_by_side() {
        assert_eq!(around(&[1.0, 2.0, 3.0], 1, 1), [0.0, 1.0, 2.0, 1.0, 2.0, 3.0, 2.0, 3.0, 0.0]);
        assert_eq!(around(&[1.0, 2.0], 2, 2), [0.0, 0.0, 0.0, 0.0, 1.0, 2.0, 0.0, 0.0, 0.0, 0.0]);
    }
}
