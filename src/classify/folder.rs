//! What a model folder says of its model: `config.json`, ours or Hugging Face's.

use serde::Deserialize;
use serde_json::Value;
use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
};

/// Which runtime runs a model.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Runtime {
    /// ONNX Runtime where it is here and the folder has a file for it, else candle.
    #[default]
    Auto,
    /// Pure Rust, from safetensors.
    Candle,
    /// ONNX Runtime, from an ONNX file.
    Onnx,
}

impl Runtime {
    /// Its name in configuration and status.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Auto => "auto",
            Self::Candle => "candle",
            Self::Onnx => "onnx",
        }
    }
}

/// The shape of a network, as far as candle can run it.
#[derive(Clone, Debug, PartialEq)]
pub enum Architecture {
    /// Embedding, two convolutions side by side, a third, maximum and mean. Defined in
    /// `models/train/screen/README.md`.
    Cnn {
        /// Numbers for each token.
        hidden: usize,
        /// Numbers that each convolution gives.
        filters: usize,
    },
    /// The encoder of BERT (Devlin et al. 2018) under a linear head.
    Bert {
        /// Numbers for each token.
        hidden: usize,
        /// Layers.
        layers: usize,
        /// Attention heads.
        heads: usize,
        /// Numbers in the middle of the feed-forward part.
        inner: usize,
        /// Longest sequence.
        positions: usize,
        /// Added to variances.
        epsilon: f32,
        /// The head reads the mean over all tokens; else the first token through the pooler.
        mean: bool,
    },
    /// Something else: only ONNX Runtime can run it.
    Other(String),
}

/// How raw outputs become probabilities of the labels.
#[derive(Clone, Debug, PartialEq)]
pub enum Activation {
    /// Each output for itself: the logistic function of `output * factor + offset`.
    Sigmoid(Vec<(f32, f32)>),
    /// Each output for itself, unscaled; each label takes the strongest of the outputs that are listed for it.
    Strongest(Vec<Vec<usize>>),
    /// All outputs together; each label sums the outputs that are listed for it.
    Softmax(Vec<Vec<usize>>),
}

/// Everything about a model but its weights.
#[derive(Clone, Debug, PartialEq)]
pub struct Plan {
    /// The network.
    pub architecture: Architecture,
    /// The labels that scores are given for.
    pub labels: Vec<String>,
    /// Raw outputs of the network.
    pub outputs: usize,
    /// From these to the labels.
    pub activation: Activation,
    /// Tokens of a window, special tokens counted.
    pub window_tokens: usize,
    /// Tokens that a window shares with the one before.
    pub overlap_tokens: usize,
    /// Entries of the vocabulary, where the folder says it.
    pub vocabulary: Option<usize>,
}

/// Why a folder is no model. The text names the file and what to do.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct FolderError(pub String);

impl FolderError {
    /// A fault of a file.
    pub(super) fn file(path: &Path, what: impl std::fmt::Display) -> Self {
        Self(format!("{}: {what}", path.display()))
    }
}

/// Largest number of labels that a model may have.
const OUTPUTS_MAX: usize = 1000;

#[derive(Deserialize)]
struct Config {
    berthd_model: Option<u32>,
    architecture: Option<String>,
    labels: Option<Vec<String>>,
    hidden_size: Option<usize>,
    filters: Option<usize>,
    num_hidden_layers: Option<usize>,
    num_attention_heads: Option<usize>,
    intermediate_size: Option<usize>,
    max_position_embeddings: Option<usize>,
    layer_norm_eps: Option<f32>,
    vocab_size: Option<usize>,
    window_tokens: Option<usize>,
    window_overlap: Option<usize>,
    temperature: Option<Value>,
    bias: Option<Value>,
    model_type: Option<String>,
    id2label: Option<BTreeMap<String, String>>,
    problem_type: Option<String>,
    hidden_act: Option<String>,
    position_embedding_type: Option<String>,
}

impl Plan {
    /// Reads a folder's `config.json`. `labels` says which of a foreign model's labels stand for which of
    /// ours; empty takes every label that does not say that all is well.
    ///
    /// # Errors
    /// The file is not there or says nothing usable.
    pub fn read(
        folder: &Path,
        labels: &BTreeMap<String, Vec<String>>,
    ) -> Result<Self, FolderError> {
        let path = folder.join("config.json");
        let bytes = std::fs::read(&path).map_err(|error| FolderError::file(&path, error))?;
        let config: Config =
            serde_json::from_slice(&bytes).map_err(|error| FolderError::file(&path, error))?;
        let plan = match config.berthd_model {
            Some(1) => own(config),
            Some(other) => Err(format!("version {other} is newer than this program")),
            None => foreign(config, labels),
        };
        let plan = plan.map_err(|what| FolderError::file(&path, what))?;
        if plan.window_tokens < 4 || plan.overlap_tokens >= plan.window_tokens {
            return Err(FolderError::file(&path, "its window has no room for text"));
        }
        Ok(plan)
    }
}

fn own(config: Config) -> Result<Plan, String> {
    let labels = config.labels.clone().filter(|labels| !labels.is_empty());
    let labels = labels.ok_or("labels is missing")?;
    let architecture = match config.architecture.as_deref() {
        Some("cnn") => Architecture::Cnn {
            hidden: config.hidden_size.ok_or("hidden_size is missing")?,
            filters: config.filters.ok_or("filters is missing")?,
        },
        Some("bert") => bert(&config, true)?,
        other => return Err(format!("unknown architecture {other:?}")),
    };
    let factors = numbers(config.temperature.as_ref(), 1.0, labels.len())?;
    let offsets = numbers(config.bias.as_ref(), 0.0, labels.len())?;
    if factors.contains(&0.0) {
        return Err("a temperature is zero".to_owned());
    }
    let scales = factors.iter().zip(offsets).map(|(divisor, offset)| (1.0 / divisor, offset));
    Ok(Plan {
        architecture,
        outputs: labels.len(),
        activation: Activation::Sigmoid(scales.collect()),
        labels,
        window_tokens: config.window_tokens.unwrap_or(128),
        overlap_tokens: config.window_overlap.unwrap_or(32),
        vocabulary: config.vocab_size,
    })
}

/// One number for all labels, or one for each.
fn numbers(value: Option<&Value>, default: f32, count: usize) -> Result<Vec<f32>, String> {
    let number = |value: &Value| value.as_f64().map(|number| number as f32);
    let list = match value {
        None | Some(Value::Null) => Some(vec![default; count]),
        Some(Value::Array(list)) => list.iter().map(number).collect(),
        Some(value) => number(value).map(|number| vec![number; count]),
    };
    let list = list.filter(|list| list.len() == count && list.iter().all(|one| one.is_finite()));
    list.ok_or_else(|| "temperature and bias are a number, or one for each label".to_owned())
}

fn bert(config: &Config, mean: bool) -> Result<Architecture, String> {
    let needed = |value: Option<usize>, name: &str| {
        value.filter(|value| *value > 0).ok_or_else(|| format!("{name} is missing"))
    };
    let hidden = needed(config.hidden_size, "hidden_size")?;
    let heads = needed(config.num_attention_heads, "num_attention_heads")?;
    if hidden % heads != 0 {
        return Err("hidden_size is no multiple of num_attention_heads".to_owned());
    }
    if config.hidden_act.as_deref().is_some_and(|act| act != "gelu") {
        return Err(format!("hidden_act {:?} is not known here, only gelu", config.hidden_act));
    }
    Ok(Architecture::Bert {
        hidden,
        layers: needed(config.num_hidden_layers, "num_hidden_layers")?,
        heads,
        inner: needed(config.intermediate_size, "intermediate_size")?,
        positions: needed(config.max_position_embeddings, "max_position_embeddings")?,
        epsilon: config.layer_norm_eps.unwrap_or(1e-12),
        mean,
    })
}

/// Longest window for a foreign model: longer ones cost more than in proportion.
const FOREIGN_WINDOW_MAX: usize = 512;

fn foreign(config: Config, wanted: &BTreeMap<String, Vec<String>>) -> Result<Plan, String> {
    let names = config.id2label.clone().unwrap_or_default();
    let mut own: Vec<(usize, String)> = Vec::new();
    for (id, name) in names {
        own.push((id.parse().map_err(|_| format!("id2label has the odd id {id:?}"))?, name));
    }
    own.sort();
    if own.is_empty()
        || own.len() > OUTPUTS_MAX
        || own.iter().enumerate().any(|(at, (id, _))| at != *id)
    {
        return Err(
            "id2label is missing or has gaps; a classifier names its labels there".to_owned()
        );
    }
    let names: Vec<String> = own.into_iter().map(|(_, name)| name).collect();
    let groups = groups(&names, wanted)?;
    let multi = config.problem_type.as_deref() == Some("multi_label_classification");
    let (labels, members) = groups.into_iter().unzip();
    let activation = match multi || names.len() == 1 {
        true => Activation::Strongest(members),
        false => Activation::Softmax(members),
    };
    let architecture = match config.model_type.as_deref() {
        Some("bert") => match config.position_embedding_type.as_deref() {
            None | Some("absolute") => bert(&config, false)?,
            Some(other) => Architecture::Other(format!("bert with {other} positions")),
        },
        other => Architecture::Other(other.unwrap_or("no model_type").to_owned()),
    };
    let most = config.max_position_embeddings.unwrap_or(FOREIGN_WINDOW_MAX);
    let window = config.window_tokens.unwrap_or(FOREIGN_WINDOW_MAX).min(most);
    Ok(Plan {
        architecture,
        outputs: names.len(),
        labels,
        activation,
        window_tokens: window,
        overlap_tokens: config.window_overlap.unwrap_or(window / 8),
        vocabulary: config.vocab_size,
    })
}

/// Which outputs stand for which label of ours.
fn groups(
    names: &[String],
    wanted: &BTreeMap<String, Vec<String>>,
) -> Result<Vec<(String, Vec<usize>)>, String> {
    const FINE: [&str; 10] = [
        "safe",
        "benign",
        "legit",
        "legitimate",
        "ok",
        "negative",
        "label_0",
        "no_injection",
        "normal",
        "clean",
    ];
    let position = |name: &String| {
        let same = |one: &String| one.eq_ignore_ascii_case(name);
        names
            .iter()
            .position(same)
            .ok_or_else(|| format!("it has no label {name:?}, only {}", names.join(", ")))
    };
    if wanted.is_empty() && names.len() == 1 {
        // Whatever it is called, it is what the model is for.
        return Ok(names.iter().map(|name| (name.clone(), vec![0])).collect());
    }
    if wanted.is_empty() {
        let bad = |name: &&String| !FINE.contains(&name.to_ascii_lowercase().as_str());
        let all: Vec<(String, Vec<usize>)> = names
            .iter()
            .filter(bad)
            .map(|name| Ok((name.clone(), vec![position(name)?])))
            .collect::<Result<_, String>>()?;
        return if all.is_empty() {
            Err("every label says that all is well; set labels".to_owned())
        } else {
            Ok(all)
        };
    }
    let members = |list: &Vec<String>| list.iter().map(position).collect::<Result<Vec<_>, _>>();
    wanted.iter().map(|(ours, list)| Ok((ours.clone(), members(list)?))).collect()
}

/// The ONNX file of a folder: the one that is named, else the usual ones, the quantised first.
pub(super) fn onnx_file(folder: &Path, named: Option<&Path>) -> Option<PathBuf> {
    const USUAL: [&str; 5] = [
        "model.int8.onnx",
        "model_quantized.onnx",
        "model.onnx",
        "onnx/model_quantized.onnx",
        "onnx/model.onnx",
    ];
    match named {
        Some(named) => Some(folder.join(named)),
        None => USUAL.iter().map(|name| folder.join(name)).find(|path| path.exists()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(config: Value, labels: &[(&str, &[&str])]) -> Result<Plan, FolderError> {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("config.json"), config.to_string()).unwrap();
        let labels = labels.iter().map(|(ours, theirs)| {
            ((*ours).to_owned(), theirs.iter().map(|one| (*one).to_owned()).collect())
        });
        Plan::read(folder.path(), &labels.collect())
    }

    fn guard(labels: Value) -> Value {
        serde_json::json!({"model_type": "deberta-v2", "id2label": labels, "max_position_embeddings": 512})
    }

    #[test]
    fn labels_that_say_all_is_well_do_not_count() {
        let plan = read(guard(serde_json::json!({"0": "BENIGN", "1": "MALICIOUS"})), &[]).unwrap();
        assert_eq!(plan.labels, ["MALICIOUS"]);
        assert_eq!(plan.activation, Activation::Softmax(vec![vec![1]]));
        assert_eq!(plan.architecture, Architecture::Other("deberta-v2".to_owned()));
    }

    #[test]
    fn a_label_map_joins_labels() {
        let labels = serde_json::json!({"0": "ok", "1": "INJECTION", "2": "JAILBREAK"});
        let plan =
            read(guard(labels.clone()), &[("injection", &["injection", "JAILBREAK"])]).unwrap();
        assert_eq!(plan.labels, ["injection"]);
        assert_eq!(plan.activation, Activation::Softmax(vec![vec![1, 2]]));
        let wrong = read(guard(labels), &[("injection", &["attack"])]).unwrap_err();
        assert!(wrong.0.contains("it has no label \"attack\", only ok, INJECTION"), "{wrong}");
    }

    #[test]
    fn labels_of_a_model_with_several_at_once_are_joined_by_the_strongest() {
        let mut config = guard(serde_json::json!({"0": "toxicity", "1": "threat", "2": "safe"}));
        config["problem_type"] = "multi_label_classification".into();
        let plan = read(config.clone(), &[("toxic", &["toxicity", "THREAT"])]).unwrap();
        assert_eq!((plan.outputs, plan.labels.as_slice()), (3, ["toxic".to_owned()].as_slice()));
        let row = [vec![-1.0, 2.0, 9.0]];
        let score = crate::classify::strongest(&plan, &row).unwrap();
        assert!((score[0] - 0.880_797).abs() < 1e-5, "{score:?}");
        let plan = read(config, &[]).unwrap();
        assert_eq!(plan.labels, ["toxicity", "threat"]);
        let score = crate::classify::strongest(&plan, &row).unwrap();
        assert!((score[0] - 0.268_941).abs() < 1e-5, "{score:?}");
        let one = read(guard(serde_json::json!({"0": "LABEL_0"})), &[]).unwrap();
        assert_eq!(one.labels, ["LABEL_0"]);
    }

    #[test]
    fn folders_that_say_nothing_usable_are_refused() {
        for (config, what) in [
            (serde_json::json!({}), "id2label"),
            (serde_json::json!({"id2label": {"0": "a", "2": "b"}}), "gaps"),
            (serde_json::json!({"berthd_model": 9}), "newer"),
            (
                serde_json::json!({"berthd_model": 1, "labels": ["a"], "architecture": "cnn"}),
                "hidden_size",
            ),
            (
                serde_json::json!({"berthd_model": 1, "labels": ["a"], "architecture": "cnn", "hidden_size": 8,
                "filters": 8, "window_tokens": 8, "window_overlap": 8}),
                "no room",
            ),
            (guard(serde_json::json!({"0": "safe", "1": "OK"})), "set labels"),
        ] {
            let error = read(config.clone(), &[]).unwrap_err();
            assert!(error.0.contains(what), "{config}: {error}");
        }
    }
}
