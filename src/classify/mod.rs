//! Small classifiers inside the process: texts in, scores out. Two runtimes stand behind one trait; worker
//! threads with a bound run them. Knows no request, no tenant and no policy.

#[cfg(feature = "candle")]
mod candle;
mod folder;
mod model;
#[cfg(test)]
mod model_tests;
mod onnx;
mod pool;
#[cfg(test)]
mod pool_tests;
mod score;
mod thresholds;
mod turns;

pub use folder::{Activation, Architecture, FolderError, Plan, Runtime};
pub use model::{Model, Spec};
pub use onnx::{Library, LibraryError};
pub use pool::{Asked, Factory, Limits, Pool, Pulse};
pub use score::{Cut, cut, strongest};
pub use thresholds::{Band, Bars, Thresholds};
pub use turns::Owner;

/// One window of token ids, special tokens and all.
pub type Window = Vec<u32>;

/// A loaded model that gives one number for each of its labels and each window. Belongs to one thread.
pub trait Classifier: Send {
    /// Raw outputs (logits), one row for each window, one number for each label.
    ///
    /// # Errors
    /// The runtime failed. The classifier may be used again.
    fn run(&mut self, windows: &[&[u32]]) -> Result<Vec<Vec<f32>>, String>;
}

/// Why there is no score. Nothing is left behind; another try is safe.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Failure {
    /// The model could not be loaded.
    #[error("the model is not loaded: {0}")]
    Absent(String),
    /// Too many texts wait for the model already.
    #[error("too many texts wait for the model")]
    Full,
    /// The time budget ended first.
    #[error("the time budget ended before the model answered")]
    Late,
    /// It failed too often of late, and rests.
    #[error("the model failed too often and rests")]
    Resting,
    /// The runtime failed or panicked.
    #[error("the runtime failed: {0}")]
    Broken(String),
    /// It gave something that is no score.
    #[error("the model gave a score that is no number")]
    NotANumber,
}

impl Failure {
    /// Its label in metrics.
    pub const fn as_str(&self) -> &'static str {
        match self {
            Self::Absent(_) => "absent",
            Self::Full => "full",
            Self::Late => "late",
            Self::Resting => "resting",
            Self::Broken(_) => "broken",
            Self::NotANumber => "not_a_number",
        }
    }
}
