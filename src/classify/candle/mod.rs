//! Networks in pure Rust: always there, whatever is installed. Rows of numbers are plain vectors; only the
//! large multiplications go through candle, on the thread that asks.

mod bert;
mod cnn;
mod curves;
mod matrix;

use super::{Architecture, Classifier, FolderError, Plan};
use bert::{Bert, Sizes};
use cnn::Cnn;
use matrix::Weights;
use std::{path::Path, sync::Arc};

/// A loaded network. Shared: it never changes.
#[derive(Debug)]
enum Network {
    Cnn(Cnn),
    Bert(Box<Bert>),
}

/// Weights that any number of classifiers share.
#[derive(Clone, Debug)]
pub(super) struct Shared(Arc<Network>);

impl Shared {
    /// Reads `model.safetensors` of a folder.
    pub(super) fn load(folder: &Path, plan: &Plan) -> Result<Self, FolderError> {
        if let Architecture::Other(what) = &plan.architecture {
            return Err(FolderError(format!(
                "candle runs BERT-class models, not {what}; give an ONNX file and set runtime = \"onnx\""
            )));
        }
        let mut weights = Weights::load(&folder.join("model.safetensors"), &["bert."])?;
        let network = match &plan.architecture {
            Architecture::Cnn { hidden, filters } => {
                Network::Cnn(Cnn::load(&mut weights, *hidden, *filters, plan.outputs)?)
            }
            Architecture::Bert { hidden, layers, heads, inner, positions, epsilon, mean } => {
                let sizes = Sizes {
                    hidden: *hidden,
                    layers: *layers,
                    heads: *heads,
                    inner: *inner,
                    positions: *positions,
                    epsilon: *epsilon,
                    mean: *mean,
                };
                Network::Bert(Box::new(Bert::load(&mut weights, sizes, plan.outputs)?))
            }
            Architecture::Other(what) => return Err(FolderError(what.clone())),
        };
        Ok(Self(Arc::new(network)))
    }

    /// A classifier.
    pub(super) fn classifier(&self) -> Box<dyn Classifier> {
        Box::new(Candle(Arc::clone(&self.0)))
    }
}

struct Candle(Arc<Network>);

thread_local! {
    /// candle would spread each multiplication over all cores, and those belong to the model servers. It asks
    /// the pool that its thread belongs to, and this pool is the thread itself.
    static ALONE: Option<rayon::ThreadPool> = {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(1).use_current_thread().build();
        if let Err(error) = &pool {
            tracing::debug!(%error, "a classifier may use every core");
        }
        pool.ok()
    };
}

impl Classifier for Candle {
    fn run(&mut self, windows: &[&[u32]]) -> Result<Vec<Vec<f32>>, String> {
        let run = || match &*self.0 {
            Network::Cnn(cnn) => windows.iter().map(|window| cnn.run(window)).collect(),
            Network::Bert(bert) => bert.run(windows),
        };
        let rows = ALONE.with(|alone| match alone {
            Some(alone) => alone.install(run),
            None => run(),
        });
        rows.map_err(|error: candle_core::Error| error.to_string())
    }
}
