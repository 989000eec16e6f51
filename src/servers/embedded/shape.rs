//! The sizes of a model, from its `config.json`.
//!
//! What the decoder does not know is refused here, so that a model is never run as something it is not.

use super::LoadError;
use serde_json::Value;
use std::path::Path;

/// Sizes and constants of a Llama-shaped decoder.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Shape {
    pub(super) vocabulary: usize,
    pub(super) hidden: usize,
    pub(super) layers: usize,
    pub(super) heads: usize,
    pub(super) kv_heads: usize,
    pub(super) head_width: usize,
    /// Positions the model was made for: input and output together.
    pub(super) window: usize,
    pub(super) norm_epsilon: f32,
    /// The output layer is the embedding table.
    pub(super) tied: bool,
    /// How far each rotated pair turns from one position to the next, radians.
    pub(super) turns: Vec<f64>,
}

impl Shape {
    /// Reads a folder's `config.json`.
    pub(super) fn load(folder: &Path) -> Result<Self, LoadError> {
        let path = folder.join("config.json");
        let text = std::fs::read(&path).map_err(|error| LoadError::file(&path, error))?;
        let config: Value =
            serde_json::from_slice(&text).map_err(|error| LoadError::file(&path, error))?;
        Self::of(&config).map_err(LoadError::Unsupported)
    }

    fn of(config: &Value) -> Result<Self, String> {
        let architecture =
            config.pointer("/architectures/0").and_then(Value::as_str).unwrap_or("no architecture");
        if !matches!(architecture, "LlamaForCausalLM" | "Qwen2ForCausalLM" | "Qwen3ForCausalLM") {
            return Err(format!("{architecture} is not a Llama, Qwen2 or Qwen3 decoder"));
        }
        if let Some(key) = ["use_sliding_window", "mlp_bias"]
            .into_iter()
            .find(|key| config.get(*key).and_then(Value::as_bool).unwrap_or(false))
        {
            return Err(format!("{key} is not supported"));
        }
        let activation = config.get("hidden_act").and_then(Value::as_str).unwrap_or("silu");
        if activation != "silu" {
            return Err(format!("activation {activation} is not supported"));
        }
        let (hidden, heads) = (size(config, "hidden_size")?, size(config, "num_attention_heads")?);
        let kv_heads = optional(config, "num_key_value_heads")?.unwrap_or(heads);
        let head_width = optional(config, "head_dim")?.unwrap_or(hidden / heads);
        if heads % kv_heads != 0 || head_width == 0 || head_width % 2 != 0 {
            return Err(format!(
                "{heads} heads of width {head_width} do not divide over {kv_heads} key/value heads"
            ));
        }
        // The defaults are those of the reference configuration classes.
        let tied_unless_said = false;
        Ok(Self {
            vocabulary: size(config, "vocab_size")?,
            hidden,
            layers: size(config, "num_hidden_layers")?,
            heads,
            kv_heads,
            head_width,
            window: size(config, "max_position_embeddings")?,
            norm_epsilon: config.get("rms_norm_eps").and_then(Value::as_f64).unwrap_or(1e-6) as f32,
            tied: config
                .get("tie_word_embeddings")
                .and_then(Value::as_bool)
                .unwrap_or(tied_unless_said),
            turns: turns(config, head_width)?,
        })
    }

    /// Query heads that share one key/value head.
    pub(super) fn sharing(&self) -> usize {
        self.heads / self.kv_heads
    }

    /// Numbers in one position's keys (or values), all heads together.
    pub(super) fn kv_width(&self) -> usize {
        self.kv_heads * self.head_width
    }
}

fn optional(config: &Value, key: &str) -> Result<Option<usize>, String> {
    match config.get(key) {
        None | Some(Value::Null) => Ok(None),
        // The bound keeps sums of sizes far from overflow.
        Some(value) => match value.as_u64().filter(|&n| n > 0 && n <= 1 << 24) {
            Some(n) => Ok(Some(n as usize)),
            None => Err(format!("{key} is {value}")),
        },
    }
}

fn size(config: &Value, key: &str) -> Result<usize, String> {
    optional(config, key)?.ok_or_else(|| format!("{key} is missing"))
}

/// Rotary speeds, plain or stretched. Newer files keep the numbers under `rope_parameters`.
fn turns(config: &Value, head_width: usize) -> Result<Vec<f64>, String> {
    let scaling = ["rope_parameters", "rope_scaling"]
        .into_iter()
        .find_map(|key| config.get(key).filter(|value| value.is_object()))
        .unwrap_or(&Value::Null);
    let theta = config
        .get("rope_theta")
        .or(scaling.get("rope_theta"))
        .and_then(Value::as_f64)
        .unwrap_or(10_000.0);
    let plain = (0..head_width / 2).map(|pair| theta.powf(-2.0 * pair as f64 / head_width as f64));
    let kind = scaling
        .get("rope_type")
        .or(scaling.get("type"))
        .and_then(Value::as_str)
        .unwrap_or("default");
    let number = |key: &str| {
        let found = scaling.get(key).and_then(Value::as_f64).filter(|&n| n > 0.0);
        found.ok_or_else(|| format!("rope scaling lacks {key}"))
    };
    match kind {
        "default" => Ok(plain.collect()),
        "linear" => {
            let factor = number("factor")?;
            Ok(plain.map(|turn| turn / factor).collect())
        }
        "llama3" => {
            let (factor, original) =
                (number("factor")?, number("original_max_position_embeddings")?);
            let (low, high) = (number("low_freq_factor")?, number("high_freq_factor")?);
            Ok(plain
                .map(|turn| {
                    // Fast pairs stay, slow ones are stretched, those between go over smoothly.
                    let rounds = original * turn / std::f64::consts::TAU;
                    let keep = ((rounds - low) / (high - low)).clamp(0.0, 1.0);
                    keep * turn + (1.0 - keep) * turn / factor
                })
                .collect())
        }
        other => Err(format!("rope scaling {other} is not supported")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn plain() -> Value {
        json!({
            "architectures": ["LlamaForCausalLM"], "vocab_size": 32, "hidden_size": 8,
            "num_hidden_layers": 1, "num_attention_heads": 2, "max_position_embeddings": 64
        })
    }

    #[test]
    fn what_is_left_out_follows_from_the_rest() {
        let shape = Shape::of(&plain()).unwrap();
        assert_eq!((shape.kv_heads, shape.head_width, shape.sharing()), (2, 4, 1));
        assert_eq!(shape.turns, [1.0, 0.01]);
    }

    #[test]
    fn models_we_cannot_run_are_refused_by_name() {
        for (key, value) in [
            ("architectures", json!(["GemmaForCausalLM"])),
            ("hidden_act", json!("gelu")),
            ("use_sliding_window", json!(true)),
            ("num_key_value_heads", json!(3)),
            ("hidden_size", json!(0)),
            ("rope_scaling", json!({"type": "yarn", "factor": 2.0})),
        ] {
            let mut config = plain();
            config.as_object_mut().unwrap().insert(key.into(), value);
            assert!(Shape::of(&config).is_err(), "{key} went through");
        }
    }

    #[test]
    fn llama3_scaling_stretches_only_slow_pairs() {
        let mut config = plain();
        config.as_object_mut().unwrap().insert(
            "rope_scaling".into(),
            json!({"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0,
                   "high_freq_factor": 4.0, "original_max_position_embeddings": 64}),
        );
        let turns = Shape::of(&config).unwrap().turns;
        assert_eq!(turns, [1.0, 0.01 / 8.0]);
    }
}
