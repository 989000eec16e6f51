//! A classifier's files, loaded once: tokenizer, plan, thresholds, and weights where threads can share them.

use super::{
    Classifier, Cut, Failure, FolderError, Library, Plan, Runtime, Thresholds, cut,
    folder::onnx_file, strongest,
};
use crate::tokens::Encoder;
use std::{collections::BTreeMap, fmt, path::Path, path::PathBuf, sync::Arc};

/// What the operator said of a model.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Spec {
    /// Its folder: `config.json`, `tokenizer.json`, weights.
    pub folder: PathBuf,
    /// Which runtime.
    pub runtime: Runtime,
    /// The ONNX file inside the folder; `None` finds it.
    pub file: Option<PathBuf>,
    /// Which of its labels stand for which of ours.
    pub labels: BTreeMap<String, Vec<String>>,
    /// Tokens of a window; `None` takes the model's own.
    pub window_tokens: Option<usize>,
}

/// A loaded model. Shared by `Arc`; classifiers made from it belong to one thread each.
pub struct Model {
    plan: Plan,
    encoder: Encoder,
    thresholds: Thresholds,
    weights: Weights,
}

enum Weights {
    #[cfg(feature = "candle")]
    Candle(super::candle::Shared),
    Onnx(Library, PathBuf),
}

impl fmt::Debug for Model {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Model").field("plan", &self.plan).finish_non_exhaustive()
    }
}

impl Model {
    /// Loads a model. `library` is ONNX Runtime, or why it is not there.
    ///
    /// # Errors
    /// A file is missing or unusable, or the runtime that was asked for is not there.
    pub fn load(spec: &Spec, library: Result<&Library, &str>) -> Result<Self, FolderError> {
        let mut plan = Plan::read(&spec.folder, &spec.labels)?;
        if let Some(window) = spec.window_tokens {
            plan.overlap_tokens = plan.overlap_tokens.min(window / 4);
            plan.window_tokens = window;
        }
        let path = spec.folder.join("tokenizer.json");
        let encoder = Encoder::load(&path).map_err(|error| FolderError(error.to_string()))?;
        let thresholds = Thresholds::read(&spec.folder, &plan.labels)?;
        let weights = Self::weights(spec, &plan, library)?;
        let mut model = Self { plan, encoder, thresholds, weights };
        match model.try_out() {
            Err(why) if spec.runtime == Runtime::Auto && model.runtime() == Runtime::Onnx => {
                // What one runtime cannot run the other may.
                model.weights = in_rust(&spec.folder, &model.plan).map_err(|_| why.clone())?;
                tracing::warn!(%why, "a classifier's ONNX file cannot be run; candle runs it");
                model.try_out().map(|()| model)
            }
            tried => tried.map(|()| model),
        }
    }

    fn weights(
        spec: &Spec,
        plan: &Plan,
        library: Result<&Library, &str>,
    ) -> Result<Weights, FolderError> {
        let file = onnx_file(&spec.folder, spec.file.as_deref());
        match (spec.runtime, library, file) {
            (Runtime::Onnx, Err(why), _) => {
                Err(FolderError(format!("ONNX Runtime is not there: {why}")))
            }
            (Runtime::Onnx, Ok(_), None) => {
                Err(FolderError::file(&spec.folder, "has no ONNX file"))
            }
            (Runtime::Onnx | Runtime::Auto, Ok(library), Some(file)) => {
                Ok(Weights::Onnx(library.clone(), file))
            }
            (Runtime::Candle | Runtime::Auto, ..) => in_rust(&spec.folder, plan),
        }
    }

    /// Runs it once: files that load may still not run, and that should show at start.
    fn try_out(&self) -> Result<(), FolderError> {
        let tried = || {
            let mut classifier = self.classifier()?;
            self.score(&mut *classifier, "Is this text harmless?", 1)
                .map_err(|failure| failure.to_string())
        };
        let tried = std::panic::catch_unwind(std::panic::AssertUnwindSafe(tried));
        match tried {
            Ok(Ok(_)) => Ok(()),
            Ok(Err(why)) => Err(FolderError(why)),
            Err(_) => Err(FolderError("the runtime panicked over this model".to_owned())),
        }
    }

    /// What is known about it.
    pub const fn plan(&self) -> &Plan {
        &self.plan
    }

    /// Above which probability its labels count.
    pub const fn thresholds(&self) -> &Thresholds {
        &self.thresholds
    }

    /// Which runtime runs it.
    pub const fn runtime(&self) -> Runtime {
        match self.weights {
            #[cfg(feature = "candle")]
            Weights::Candle(_) => Runtime::Candle,
            Weights::Onnx(..) => Runtime::Onnx,
        }
    }

    /// A classifier for one thread.
    ///
    /// # Errors
    /// The runtime cannot load it, as text.
    pub fn classifier(&self) -> Result<Box<dyn Classifier>, String> {
        match &self.weights {
            #[cfg(feature = "candle")]
            Weights::Candle(shared) => Ok(shared.classifier()),
            Weights::Onnx(library, file) => {
                library.classifier(file, &self.plan).map_err(|error| error.to_string())
            }
        }
    }

    /// Cuts a text into at most `most` windows.
    ///
    /// # Errors
    /// The tokenizer failed.
    pub fn cut(&self, text: &str, most: usize) -> Result<Cut, Failure> {
        cut(&self.encoder, &self.plan, text, most)
    }

    /// Special tokens around each window.
    pub fn special_tokens(&self) -> usize {
        self.encoder.before().len() + self.encoder.after().len()
    }

    /// Tokens of a text, without special ones.
    ///
    /// # Errors
    /// The tokenizer failed.
    pub fn tokens(&self, text: &str) -> Result<usize, Failure> {
        let counted = self.encoder.with_ids(text, <[u32]>::len);
        counted.map_err(|error| Failure::Broken(error.to_string()))
    }

    /// Scores a text on this thread: the strongest probability of each label over at most `most` windows.
    ///
    /// # Errors
    /// Any of [`Failure`].
    pub fn score(
        &self,
        classifier: &mut dyn Classifier,
        text: &str,
        most: usize,
    ) -> Result<Vec<f32>, Failure> {
        /// Windows for each run: enough to fill the processor, little enough to stay in its cache.
        const BATCH: usize = 8;
        let cut = self.cut(text, most)?;
        let mut rows = Vec::with_capacity(cut.windows.len());
        for batch in cut.windows.chunks(BATCH) {
            let batch: Vec<&[u32]> = batch.iter().map(Vec::as_slice).collect();
            rows.extend(classifier.run(&batch).map_err(Failure::Broken)?);
        }
        strongest(&self.plan, &rows)
    }
}

/// The factory of a model's classifiers, for a pool.
pub(super) fn factory(model: &Arc<Model>) -> super::Factory {
    let model = Arc::clone(model);
    Arc::new(move || model.classifier())
}

#[cfg(feature = "candle")]
fn in_rust(folder: &Path, plan: &Plan) -> Result<Weights, FolderError> {
    super::candle::Shared::load(folder, plan).map(Weights::Candle)
}

#[cfg(not(feature = "candle"))]
fn in_rust(folder: &Path, _: &Plan) -> Result<Weights, FolderError> {
    Err(FolderError::file(folder, "this build has no candle, and ONNX Runtime is not there"))
}
