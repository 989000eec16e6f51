//! Weight matrices: read from safetensors files with candle, applied to rows of numbers.

use super::LoadError;
use candle_core::{DType, Device, Storage, Tensor, safetensors};
use std::{
    collections::{BTreeSet, HashMap},
    path::{Path, PathBuf},
};

/// Whether this few rows are better multiplied with the plain loop of [`dot`] than with candle, which for
/// one row spends longer asking the system for its core count than multiplying. Unoptimised builds always
/// use candle, whose own code is optimised there.
const fn is_few(rows: usize) -> bool {
    rows <= 3 && !cfg!(debug_assertions)
}

/// Tensors of a model that nobody has taken yet.
pub(super) struct Weights {
    left: HashMap<String, Tensor>,
}

/// A weight matrix, one row an output, with its optional offset.
#[derive(Debug)]
pub(super) struct Matrix {
    weight: Tensor,
    offset: Option<Vec<f32>>,
    inputs: usize,
    outputs: usize,
}

// === impl Weights ===

impl Weights {
    /// Reads every weight of a folder as 32-bit floats.
    pub(super) fn load(folder: &Path) -> Result<Self, LoadError> {
        let mut left = HashMap::new();
        for path in files(folder)? {
            let tensors = safetensors::load(&path, &Device::Cpu)
                .map_err(|error| LoadError::file(&path, error))?;
            for (name, tensor) in tensors {
                let tensor = tensor
                    .to_dtype(DType::F32)
                    .and_then(|tensor| tensor.contiguous())
                    .map_err(|error| LoadError::file(&path, error))?;
                left.insert(name, tensor);
            }
        }
        Ok(Self { left })
    }

    /// The matrix `name.weight`, and `name.bias` where there is one.
    pub(super) fn matrix(
        &mut self,
        name: &str,
        outputs: usize,
        inputs: usize,
    ) -> Result<Matrix, LoadError> {
        let weight = self.take(&format!("{name}.weight"), &[outputs, inputs])?;
        let offset = self.optional_row(&format!("{name}.bias"), outputs)?;
        Ok(Matrix { weight, offset, inputs, outputs })
    }

    /// A row of numbers.
    pub(super) fn row(&mut self, name: &str, length: usize) -> Result<Vec<f32>, LoadError> {
        self.take(name, &[length])?.to_vec1().map_err(|error| LoadError::Weights(error.to_string()))
    }

    /// A row of numbers that not every architecture has.
    pub(super) fn optional_row(
        &mut self,
        name: &str,
        length: usize,
    ) -> Result<Option<Vec<f32>>, LoadError> {
        if self.left.contains_key(name) { self.row(name, length).map(Some) } else { Ok(None) }
    }

    /// How many rows a matrix has that nobody has taken yet.
    pub(super) fn rows_of(&self, name: &str) -> Result<usize, LoadError> {
        let rows = self.left.get(name).and_then(|tensor| tensor.dims().first().copied());
        rows.filter(|&rows| rows > 0)
            .ok_or_else(|| LoadError::Weights(format!("{name} is missing")))
    }

    fn take(&mut self, name: &str, dimensions: &[usize]) -> Result<Tensor, LoadError> {
        let Some(tensor) = self.left.remove(name) else {
            return Err(LoadError::Weights(format!("{name} is missing")));
        };
        if tensor.dims() != dimensions {
            let found = tensor.dims();
            return Err(LoadError::Weights(format!("{name} is {found:?}, not {dimensions:?}")));
        }
        Ok(tensor)
    }
}

/// One file, or those that the index of a split model names.
fn files(folder: &Path) -> Result<Vec<PathBuf>, LoadError> {
    let index = folder.join("model.safetensors.index.json");
    if !index.exists() {
        return Ok(vec![folder.join("model.safetensors")]);
    }
    let text = std::fs::read(&index).map_err(|error| LoadError::file(&index, error))?;
    let parsed: serde_json::Value =
        serde_json::from_slice(&text).map_err(|error| LoadError::file(&index, error))?;
    let map = parsed.get("weight_map").and_then(|map| map.as_object());
    let names: BTreeSet<&str> =
        map.into_iter().flat_map(|map| map.values()).filter_map(|name| name.as_str()).collect();
    // A name with a path in it could point out of the folder.
    if names.is_empty() || names.iter().any(|name| name.contains(['/', '\\'])) {
        return Err(LoadError::file(&index, "names no weight files of this folder"));
    }
    Ok(names.into_iter().map(|name| folder.join(name)).collect())
}

// === impl Matrix ===

impl Matrix {
    /// Multiplies rows of inputs, giving as many rows of outputs.
    pub(super) fn apply(&self, rows: &[f32]) -> candle_core::Result<Vec<f32>> {
        let mut out = if is_few(rows.len() / self.inputs) {
            self.with_numbers(|weight| {
                let mut out = Vec::with_capacity(rows.len() / self.inputs * self.outputs);
                for row in rows.chunks_exact(self.inputs) {
                    out.extend(weight.chunks_exact(self.inputs).map(|weight| dot(weight, row)));
                }
                out
            })?
        } else {
            let rows =
                Tensor::from_slice(rows, (rows.len() / self.inputs, self.inputs), &Device::Cpu)?;
            rows.matmul(&self.weight.t()?)?.flatten_all()?.to_vec1()?
        };
        if let Some(offset) = &self.offset {
            for row in out.chunks_exact_mut(self.outputs) {
                add(row, offset);
            }
        }
        Ok(out)
    }

    /// The matrix's own rows with these numbers, one after the other.
    pub(super) fn look_up(&self, ids: &[u32]) -> candle_core::Result<Vec<f32>> {
        self.with_numbers(|weight| {
            let mut out = Vec::with_capacity(ids.len() * self.inputs);
            for &id in ids {
                let from = id as usize * self.inputs;
                match weight.get(from..from + self.inputs) {
                    Some(row) => out.extend_from_slice(row),
                    None => candle_core::bail!("token {id} is outside the vocabulary"),
                }
            }
            Ok(out)
        })?
    }

    fn with_numbers<T>(&self, read: impl FnOnce(&[f32]) -> T) -> candle_core::Result<T> {
        // candle's lock on the weights: only ever read-locked after loading, so it never waits.
        let (storage, _) = self.weight.storage_and_layout();
        match &*storage {
            Storage::Cpu(numbers) => Ok(read(numbers.as_slice()?)),
            _ => candle_core::bail!("weights are not in main memory"),
        }
    }
}

/// The sum of products. Sixteen sums at once, which compilers turn into vector instructions.
pub(super) fn dot(left: &[f32], right: &[f32]) -> f32 {
    let (left, left_rest) = left.as_chunks::<16>();
    let (right, right_rest) = right.as_chunks::<16>();
    let mut sums = [0.0f32; 16];
    for (left, right) in left.iter().zip(right) {
        for ((sum, left), right) in sums.iter_mut().zip(left).zip(right) {
            *sum += left * right;
        }
    }
    let rest: f32 = left_rest.iter().zip(right_rest).map(|(left, right)| left * right).sum();
    sums.iter().sum::<f32>() + rest
}

/// Adds `more` to `row`, number by number.
pub(super) fn add(row: &mut [f32], more: &[f32]) {
    for (to, from) in row.iter_mut().zip(more) {
        *to += from;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ramp(length: usize) -> Vec<f32> {
        (0..length).map(|n| ((n * 37 % 19) as f32 - 9.0) / 7.0).collect()
    }

    /// The two ways to multiply must agree, or a decoded token would differ from a prefilled one.
    #[test]
    fn plain_loop_and_candle_multiply_alike() {
        let (outputs, inputs) = (5, 37);
        let numbers = ramp(outputs * inputs);
        let weight = Tensor::from_slice(&numbers, (outputs, inputs), &Device::Cpu).unwrap();
        let offset = Some(vec![1.0, 2.0, 3.0, 4.0, 5.0]);
        let matrix = Matrix { weight, offset, inputs, outputs };
        let rows = ramp(8 * inputs);
        let got = matrix.apply(&rows).unwrap();
        assert_eq!(got.len(), 8 * outputs);
        for (row, got) in rows.chunks(inputs).zip(got.chunks(outputs)) {
            for (at, (weight, got)) in numbers.chunks(inputs).zip(got).enumerate() {
                let want = dot(weight, row) + (at + 1) as f32;
                assert!((want - got).abs() < 1e-4, "{want} against {got}");
            }
        }
    }

    #[test]
    fn dot_takes_every_number() {
        for length in [0, 1, 15, 16, 17, 40] {
            assert_eq!(dot(&vec![2.0; length], &vec![0.5; length]), length as f32);
        }
    }
}
