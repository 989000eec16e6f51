//! Weights from a safetensors file, and the large multiplications, which candle does.

use crate::classify::FolderError;
use candle_core::{DType, Device, Storage, Tensor, safetensors};
use std::{collections::HashMap, path::Path};

/// Tensors that nobody has taken yet.
pub(super) struct Weights {
    left: HashMap<String, Tensor>,
}

/// A weight matrix with its optional offset, applied to rows of numbers.
#[derive(Clone, Debug)]
pub(super) struct Matrix {
    /// Turned: one row for each input.
    weight: Tensor,
    offset: Option<Vec<f32>>,
    inputs: usize,
}

impl Weights {
    /// Reads a file, whatever the precision of its numbers, without `prefix` in front of names.
    pub(super) fn load(path: &Path, prefixes: &[&str]) -> Result<Self, FolderError> {
        let failed = |error: candle_core::Error| FolderError::file(path, error);
        if !path.exists() {
            return Err(FolderError::file(path, "does not exist"));
        }
        let mut left = HashMap::new();
        for (name, tensor) in safetensors::load(path, &Device::Cpu).map_err(failed)? {
            let bare = prefixes.iter().find_map(|prefix| name.strip_prefix(prefix));
            let tensor = tensor.to_dtype(DType::F32).and_then(|tensor| tensor.contiguous());
            left.insert(bare.unwrap_or(&name).to_owned(), tensor.map_err(failed)?);
        }
        Ok(Self { left })
    }

    pub(super) fn has(&self, name: &str) -> bool {
        self.left.contains_key(name)
    }

    fn take(&mut self, name: &str, dimensions: &[usize]) -> Result<Tensor, FolderError> {
        let missing = || FolderError(format!("the weights have no {name}"));
        let tensor = self.left.remove(name).ok_or_else(missing)?;
        if tensor.dims() == dimensions {
            return Ok(tensor);
        }
        Err(FolderError(format!("{name} is {:?}, not {dimensions:?}", tensor.dims())))
    }

    /// A row of numbers.
    pub(super) fn row(&mut self, name: &str, length: usize) -> Result<Vec<f32>, FolderError> {
        let tensor = self.take(name, &[length])?;
        tensor.to_vec1().map_err(|error| FolderError(format!("{name}: {error}")))
    }

    /// A table, row after row, of as many rows as the file has.
    pub(super) fn table(&mut self, name: &str, width: usize) -> Result<Vec<f32>, FolderError> {
        let rows = self.left.get(name).and_then(|tensor| tensor.dims().first().copied());
        let tensor = self.take(name, &[rows.unwrap_or(0), width])?;
        let flat = tensor.flatten_all().and_then(|flat| flat.to_vec1());
        flat.map_err(|error| FolderError(format!("{name}: {error}")))
    }

    /// The matrix `name.weight` with `name.bias`.
    pub(super) fn matrix(
        &mut self,
        name: &str,
        outputs: usize,
        inputs: usize,
    ) -> Result<Matrix, FolderError> {
        let weight = self.take(&format!("{name}.weight"), &[outputs, inputs])?;
        self.turned(name, weight, outputs, inputs)
    }

    /// The matrix of a convolution: its inputs are the rows around a place side by side, the earliest first.
    pub(super) fn convolution(
        &mut self,
        name: &str,
        outputs: usize,
        inputs: usize,
        kernel: usize,
    ) -> Result<Matrix, FolderError> {
        let weight = self.take(&format!("{name}.weight"), &[outputs, inputs, kernel])?;
        let flat =
            weight.transpose(1, 2).and_then(|weight| weight.reshape((outputs, kernel * inputs)));
        let flat = flat.map_err(|error| FolderError(format!("{name}: {error}")))?;
        self.turned(name, flat, outputs, kernel * inputs)
    }

    fn turned(
        &mut self,
        name: &str,
        weight: Tensor,
        outputs: usize,
        inputs: usize,
    ) -> Result<Matrix, FolderError> {
        let offset = format!("{name}.bias");
        let offset = match self.has(&offset) {
            true => Some(self.row(&offset, outputs)?),
            false => None,
        };
        let weight = weight.t().and_then(|weight| weight.contiguous());
        let weight = weight.map_err(|error| FolderError(format!("{name}: {error}")))?;
        Ok(Matrix { weight, offset, inputs })
    }
}

impl Matrix {
    /// Multiplies rows of inputs, giving as many rows of outputs.
    pub(super) fn apply(&self, rows: Vec<f32>) -> candle_core::Result<Vec<f32>> {
        let count = rows.len() / self.inputs.max(1);
        let rows = Tensor::from_vec(rows, (count, self.inputs), &Device::Cpu)?;
        let mut out = numbers(&rows.matmul(&self.weight)?)?;
        if let Some(offset) = &self.offset {
            for row in out.chunks_exact_mut(offset.len().max(1)) {
                row.iter_mut().zip(offset).for_each(|(number, offset)| *number += offset);
            }
        }
        Ok(out)
    }
}

/// The numbers of a tensor that lies in memory row after row.
pub(super) fn numbers(tensor: &Tensor) -> candle_core::Result<Vec<f32>> {
    let (storage, layout) = tensor.storage_and_layout();
    match (&*storage, layout.contiguous_offsets()) {
        (Storage::Cpu(numbers), Some((from, to))) => {
            Ok(numbers.as_slice::<f32>()?.get(from..to).unwrap_or_default().to_vec())
        }
        _ => tensor.flatten_all()?.to_vec1(),
    }
}
