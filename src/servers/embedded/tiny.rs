//! A tiny model with random weights, for tests: written to a folder like any other model.

use candle_core::{Device, Tensor, safetensors};
use serde_json::{Value, json};
use std::{collections::HashMap, path::Path};

/// Token ids are bytes; then the two marks of a message.
pub(super) const VOCABULARY: usize = 258;
pub(super) const START: u32 = 256;
pub(super) const END: u32 = 257;

/// A model of one layer or more, with weights from `seed`.
pub(super) struct Tiny {
    pub(super) config: Value,
    pub(super) weights: HashMap<String, Tensor>,
}

impl Tiny {
    /// Llama's shape: four query heads over two key/value heads.
    pub(super) fn llama(layers: usize, window: usize, seed: u64) -> Self {
        let (hidden, heads, kv_heads, head, inner) = (16, 4, 2, 4, 24);
        let config = json!({
            "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_act": "silu",
            "vocab_size": VOCABULARY, "hidden_size": hidden, "num_hidden_layers": layers,
            "num_attention_heads": heads, "num_key_value_heads": kv_heads, "head_dim": head,
            "intermediate_size": inner, "max_position_embeddings": window, "rms_norm_eps": 1e-5,
            "rope_theta": 10000.0, "tie_word_embeddings": true, "eos_token_id": END
        });
        let mut tiny = Self { config, weights: HashMap::new() };
        let mut state = seed;
        let mut put = |name: String, dimensions: &[usize]| {
            let count = dimensions.iter().product();
            let numbers: Vec<f32> = (0..count).map(|_| uneven(&mut state)).collect();
            tiny.weights.insert(name, Tensor::from_vec(numbers, dimensions, &Device::Cpu).unwrap());
        };
        put("model.embed_tokens.weight".into(), &[VOCABULARY, hidden]);
        put("model.norm.weight".into(), &[hidden]);
        for layer in 0..layers {
            let at = |name: &str| format!("model.layers.{layer}.{name}.weight");
            put(at("input_layernorm"), &[hidden]);
            put(at("self_attn.q_proj"), &[heads * head, hidden]);
            put(at("self_attn.k_proj"), &[kv_heads * head, hidden]);
            put(at("self_attn.v_proj"), &[kv_heads * head, hidden]);
            put(at("self_attn.o_proj"), &[hidden, heads * head]);
            put(at("post_attention_layernorm"), &[hidden]);
            put(at("mlp.gate_proj"), &[inner, hidden]);
            put(at("mlp.up_proj"), &[inner, hidden]);
            put(at("mlp.down_proj"), &[hidden, inner]);
        }
        tiny
    }

    /// Adds a weight of uneven numbers.
    pub(super) fn add(&mut self, name: &str, length: usize) {
        let mut state = length as u64;
        let numbers: Vec<f32> = (0..length).map(|_| uneven(&mut state)).collect();
        self.weights
            .insert(name.to_owned(), Tensor::from_vec(numbers, length, &Device::Cpu).unwrap());
    }

    /// The numbers of a weight.
    pub(super) fn numbers(&self, name: &str) -> Vec<f32> {
        self.weights[name].flatten_all().unwrap().to_vec1().unwrap()
    }

    /// Writes config, weights, tokenizer and chat template.
    pub(super) fn write(&self, folder: &Path) {
        let put = |name: &str, value: &Value| {
            std::fs::write(folder.join(name), value.to_string()).unwrap()
        };
        put("config.json", &self.config);
        put("tokenizer.json", &tokenizer());
        put("tokenizer_config.json", &tokenizer_config());
        safetensors::save(&self.weights, folder.join("model.safetensors")).unwrap();
    }
}

/// A number from -0.5 to 0.5 (a linear congruential generator).
fn uneven(state: &mut u64) -> f32 {
    *state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
    (*state >> 40) as f32 / (1u64 << 24) as f32 - 0.5
}

/// Byte-level BPE without merges, each byte's id being the byte.
fn tokenizer() -> Value {
    let printable = |byte: u32| matches!(byte, 33..=126 | 161..=172 | 174..=255);
    let mut spare = 256;
    let mut vocabulary = serde_json::Map::new();
    for byte in 0..256u32 {
        let sign = if printable(byte) { byte } else { spare };
        spare += u32::from(!printable(byte));
        vocabulary.insert(char::from_u32(sign).unwrap().to_string(), byte.into());
    }
    let mark = |id: u32, text: &str| {
        json!({"id": id, "content": text, "single_word": false, "lstrip": false, "rstrip": false,
               "normalized": false, "special": true})
    };
    let bytes = json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true,
                       "use_regex": false});
    json!({
        "version": "1.0", "truncation": null, "padding": null, "normalizer": null,
        "added_tokens": [mark(START, "<|im_start|>"), mark(END, "<|im_end|>")],
        "pre_tokenizer": bytes, "post_processor": null, "decoder": bytes,
        "model": {"type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": null,
                  "end_of_word_suffix": null, "fuse_unk": false, "byte_fallback": false,
                  "ignore_merges": false, "vocab": vocabulary, "merges": []}
    })
}

fn tokenizer_config() -> Value {
    json!({
        "eos_token": "<|im_end|>", "tokenizer_class": "PreTrainedTokenizerFast",
        "chat_template": "{% for message in messages %}\
            {% if message.role == 'forbidden' %}{{ raise_exception('bad role') }}{% endif %}\
            <|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n{% endfor %}\
            {% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    })
}
