//! ONNX Runtime: its library is found and loaded while the program runs, and its absence is no fault.

use super::{Classifier, FolderError, Plan};
use ort::{
    environment::Environment,
    logging::LogLevel,
    session::{Session, builder::GraphOptimizationLevel},
    value::Tensor,
};
use std::{
    error::Error,
    path::{Path, PathBuf},
    sync::{Mutex, PoisonError},
};

/// The library, loaded. A process loads one, and keeps it.
#[derive(Clone, Debug)]
pub struct Library {
    path: PathBuf,
    environment: Environment,
}

/// Why the library is not there. Another path may be tried.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct LibraryError(pub String);

/// The one that was loaded, whoever asked for it. Guards a load, which happens at start and at reload only.
static LOADED: Mutex<Option<Library>> = Mutex::new(None);

impl Library {
    /// Loads the library from the path that is given, else from where packages put it.
    ///
    /// # Errors
    /// It is not there, is no such library, or is too old; the text says which.
    pub fn find(given: Option<&Path>) -> Result<Self, LibraryError> {
        match given {
            Some(path) => Self::load(path),
            None => {
                let place = places().into_iter().find(|path| path.exists());
                let none = || {
                    LibraryError("not installed; set screen.onnx_library to its file".to_owned())
                };
                Self::load(&place.ok_or_else(none)?)
            }
        }
    }

    fn load(path: &Path) -> Result<Self, LibraryError> {
        let mut loaded = LOADED.lock().unwrap_or_else(PoisonError::into_inner);
        let failed = |what: String| LibraryError(format!("{}: {what}", path.display()));
        let path = path.canonicalize().map_err(|error| failed(error.to_string()))?;
        if let Some(before) = &*loaded {
            return match before.path == path {
                true => Ok(before.clone()),
                false => Err(failed(format!(
                    "{} is loaded already, and a process has one; restart to change it",
                    before.path.display()
                ))),
            };
        }
        // What is no library at all would be loaded for its side effects first.
        let builder = ort::init_from(&path).map_err(|error| failed(whole(&error)))?;
        let environment = builder.with_name("berthd").with_telemetry(false).build();
        let environment = environment.map_err(|error| failed(whole(&error)))?;
        // It tells of every buffer otherwise.
        environment.set_log_level(LogLevel::Warning);
        let library = Self { path, environment };
        *loaded = Some(library.clone());
        Ok(library)
    }

    /// Its file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Loads a model from an ONNX file.
    ///
    /// # Errors
    /// The file is not there, is damaged, or uses what this library does not know.
    pub(super) fn classifier(
        &self,
        file: &Path,
        plan: &Plan,
    ) -> Result<Box<dyn Classifier>, FolderError> {
        let failed = |error: &dyn Error| FolderError::file(file, whole(error));
        if !file.exists() {
            return Err(FolderError::file(file, "does not exist"));
        }
        let builder = Session::builder(&self.environment).map_err(|error| failed(&error))?;
        let builder = builder.with_optimization_level(GraphOptimizationLevel::All);
        let builder = builder.and_then(|builder| builder.with_intra_threads(1));
        let builder = builder.and_then(|builder| builder.with_inter_threads(1));
        let builder = builder.and_then(|builder| builder.with_intra_op_spinning(false));
        let mut builder = builder.map_err(|error| failed(&error))?;
        let session = builder.commit_from_file(file).map_err(|error| failed(&error))?;
        let names: Vec<&str> = session.inputs().iter().map(|input| input.name()).collect();
        if !names.contains(&"input_ids") {
            let what = format!("takes {}; a classifier takes input_ids", names.join(", "));
            return Err(FolderError::file(file, what));
        }
        let inputs = names.into_iter().map(str::to_owned).collect();
        Ok(Box::new(Onnx { session, inputs, outputs: plan.outputs }))
    }
}

/// Where packages put the library.
fn places() -> Vec<PathBuf> {
    const NAMED: [&str; 5] = [
        "/usr/lib/berthd/libonnxruntime.so",
        "/usr/local/lib/libonnxruntime.so",
        "/usr/lib/libonnxruntime.so",
        "/usr/lib/x86_64-linux-gnu/libonnxruntime.so",
        "/usr/lib/aarch64-linux-gnu/libonnxruntime.so",
    ];
    let asked =
        std::env::var_os("ORT_DYLIB_PATH").map(PathBuf::from).filter(|path| path.is_absolute());
    asked.into_iter().chain(NAMED.into_iter().map(PathBuf::from)).collect()
}

/// An error with its causes: the outer text hides what the system said.
fn whole(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut inner = error.source();
    while let Some(cause) = inner {
        text = format!("{text}: {cause}");
        inner = cause.source();
    }
    text
}

struct Onnx {
    session: Session,
    inputs: Vec<String>,
    outputs: usize,
}

impl Classifier for Onnx {
    fn run(&mut self, windows: &[&[u32]]) -> Result<Vec<Vec<f32>>, String> {
        let width = windows.iter().map(|window| window.len()).max().unwrap_or(0).max(1);
        let (mut ids, mut mask) = (Vec::new(), Vec::new());
        for window in windows {
            let blank = width - window.len();
            ids.extend(window.iter().map(|id| i64::from(*id)).chain(std::iter::repeat_n(0, blank)));
            mask.extend(
                std::iter::repeat_n(1_i64, window.len()).chain(std::iter::repeat_n(0, blank)),
            );
        }
        let kinds = vec![0_i64; ids.len()];
        let tensor = |numbers: &[i64]| {
            Tensor::from_array(([windows.len(), width], numbers.to_vec()))
                .map_err(|error| error.to_string())
        };
        let mut given = Vec::with_capacity(self.inputs.len());
        for name in &self.inputs {
            let numbers = match name.as_str() {
                "input_ids" => &ids,
                "attention_mask" => &mask,
                "token_type_ids" => &kinds,
                other => {
                    return Err(format!(
                        "the model wants an input {other:?} that is not known here"
                    ));
                }
            };
            given.push((name.clone(), tensor(numbers)?));
        }
        let out = self.session.run(given).map_err(|error| error.to_string())?;
        let (_, first) = out.iter().next().ok_or("the model gives nothing")?;
        let (_, numbers) = first.try_extract_tensor::<f32>().map_err(|error| error.to_string())?;
        if numbers.len() != windows.len() * self.outputs {
            let (got, wanted) = (numbers.len(), windows.len() * self.outputs);
            return Err(format!("the model gives {got} numbers instead of {wanted}"));
        }
        Ok(numbers.chunks_exact(self.outputs.max(1)).map(<[f32]>::to_vec).collect())
    }
}
