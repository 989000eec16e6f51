"""Turns a Hugging Face folder of a Llama-shaped model into one GGUF file.

    python to_gguf.py FOLDER OUT.gguf [--f16]

Expects a byte-level BPE tokenizer whose cut is the one llama.cpp calls
`llama-bpe`; nothing here can check that, so compare counts after a change.
"""

import argparse
import json
from pathlib import Path

import gguf
import numpy as np
from safetensors.numpy import load_file

LAYER_NAMES = {
    "input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm",
    "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v", "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up", "mlp.down_proj": "ffn_down",
}
TOP_NAMES = {"model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output"}


def read_json(path):
    return json.loads(path.read_text()) if path.exists() else {}


def interleave(weight, heads):
    """Reorders the rows of a query or key projection, head by head.

    Hugging Face rotates entry i of a head with entry i + half; llama.cpp's Llama
    rotates neighbours 2i and 2i + 1. Moving the rows makes both the same turn.
    """
    rows, columns = weight.shape
    return weight.reshape(heads, 2, rows // heads // 2, columns).swapaxes(1, 2).reshape(rows, columns)


def gguf_name(name):
    stem, _, _ = name.rpartition(".weight")
    if stem in TOP_NAMES:
        return TOP_NAMES[stem] + ".weight"
    _, _, layer, part = stem.split(".", 3)
    return f"blk.{layer}.{LAYER_NAMES[part]}.weight"


def add_shape(out, config, name):
    heads = config["num_attention_heads"]
    head_dim = config.get("head_dim") or config["hidden_size"] // heads
    out.add_name(name)
    out.add_context_length(config["max_position_embeddings"])
    out.add_embedding_length(config["hidden_size"])
    out.add_block_count(config["num_hidden_layers"])
    out.add_feed_forward_length(config["intermediate_size"])
    out.add_head_count(heads)
    out.add_head_count_kv(config.get("num_key_value_heads", heads))
    out.add_key_length(head_dim)
    out.add_value_length(head_dim)
    out.add_rope_dimension_count(head_dim)
    out.add_rope_freq_base(config.get("rope_theta", 10000.0))
    out.add_layer_norm_rms_eps(config["rms_norm_eps"])
    out.add_vocab_size(config["vocab_size"])


def add_tokenizer(out, folder, config):
    spec = read_json(folder / "tokenizer.json")
    settings = read_json(folder / "tokenizer_config.json")
    names = {index: name for name, index in spec["model"]["vocab"].items()}
    kinds = {index: gguf.TokenType.NORMAL for index in names}
    for token in spec["added_tokens"]:
        names[token["id"]] = token["content"]
        kinds[token["id"]] = gguf.TokenType.CONTROL if token["special"] else gguf.TokenType.USER_DEFINED
    # Embedding rows without a token still need a name that nothing can spell.
    for index in range(config["vocab_size"]):
        names.setdefault(index, f"[PAD{index}]")
        kinds.setdefault(index, gguf.TokenType.UNUSED)
    order = range(config["vocab_size"])
    merges = [m if isinstance(m, str) else " ".join(m) for m in spec["model"]["merges"]]

    out.add_tokenizer_model("gpt2")
    out.add_tokenizer_pre("llama-bpe")
    out.add_token_list([names[i] for i in order])
    out.add_token_types([kinds[i] for i in order])
    out.add_token_merges(merges)
    out.add_bos_token_id(config["bos_token_id"])
    out.add_eos_token_id(config["eos_token_id"])
    if config.get("pad_token_id") is not None:
        out.add_pad_token_id(config["pad_token_id"])
    # The chat template writes the begin mark itself; a second one would make
    # llama.cpp's count differ from everybody else's.
    out.add_add_bos_token(False)
    out.add_add_eos_token(False)
    template = folder / "chat_template.jinja"
    text = template.read_text() if template.exists() else settings.get("chat_template")
    if text:
        out.add_chat_template(text)


def add_weights(out, folder, config, dtype):
    heads = config["num_attention_heads"]
    weights = {}
    for part in sorted(folder.glob("*.safetensors")):
        weights.update(load_file(str(part)))
    if config.get("tie_word_embeddings"):
        weights.pop("lm_head.weight", None)  # llama.cpp reuses the embedding
    for name, value in sorted(weights.items()):
        value = value.astype(np.float32)
        if name.endswith("q_proj.weight"):
            value = interleave(value, heads)
        elif name.endswith("k_proj.weight"):
            value = interleave(value, config.get("num_key_value_heads", heads))
        # Norm weights stay 32 bit: llama.cpp wants them so.
        out.add_tensor(gguf_name(name), np.ascontiguousarray(value if value.ndim == 1 else value.astype(dtype)))


def convert(folder, path, dtype=np.float32):
    config = read_json(folder / "config.json")
    if config.get("model_type") != "llama":
        raise SystemExit(f"{folder}: model_type is {config.get('model_type')!r}, only llama is known")
    out = gguf.GGUFWriter(str(path), "llama")
    add_shape(out, config, folder.resolve().name)
    out.add_file_type(gguf.LlamaFileType.ALL_F32 if dtype == np.float32 else gguf.LlamaFileType.MOSTLY_F16)
    add_tokenizer(out, folder, config)
    add_weights(out, folder, config, dtype)
    out.write_header_to_file()
    out.write_kv_data_to_file()
    out.write_tensors_to_file()
    out.close()


def main():
    words = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    words.add_argument("folder", type=Path)
    words.add_argument("out", type=Path)
    words.add_argument("--f16", action="store_true", help="16-bit matrices instead of 32-bit ones")
    given = words.parse_args()
    convert(given.folder, given.out, np.float16 if given.f16 else np.float32)
    print(f"{given.out}: {given.out.stat().st_size} bytes")


if __name__ == "__main__":
    main()
