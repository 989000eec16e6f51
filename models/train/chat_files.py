"""Files of the demo model: tokenizer, chat template, configuration, weights.

Everything is written in the Hugging Face layout, so that any reader of Llama
models takes the folder as it is.
"""

import hashlib
import json
from pathlib import Path

import jinja2
import numpy as np
from jinja2.sandbox import ImmutableSandboxedEnvironment
from safetensors.numpy import load_file, save_file
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

BEGIN, END_TEXT, TURN_START, TURN_END = "<|begin_of_text|>", "<|end_of_text|>", "<|im_start|>", "<|im_end|>"
# Specials close the vocabulary; the spare ones round it up to 2048.
SPECIALS = (BEGIN, END_TEXT, TURN_START, TURN_END) + tuple(f"<|spare_{i}|>" for i in range(12))

# How text is cut before pairs are merged: the pattern of Llama 3, character for
# character, since fast tokenizers know it by sight and llama.cpp calls it
# `llama-bpe`. (Case-blind, it also takes the long s U+017F in a contraction,
# which llama.cpp does not: the two differ on that one letter.)
CUT = (r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
       r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+")

TEMPLATE_PATH = Path(__file__).with_name("chat_template.jinja")


def train_tokenizer(texts, vocab):
    """Byte-level BPE over `texts`; all 256 bytes are in, so no text is unknown."""
    tokenizer = Tokenizer(models.BPE(ignore_merges=True))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([
        pre_tokenizers.Split(Regex(CUT), behavior="isolated"),
        pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.train_from_iterator(texts, trainers.BpeTrainer(
        vocab_size=vocab - len(SPECIALS), initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        min_frequency=2, show_progress=False))
    # The trainer drops the flag; it says that a whole piece found in the
    # vocabulary is taken as it is, which is what llama.cpp does for llama-bpe.
    tokenizer.model.ignore_merges = True
    tokenizer.add_special_tokens([AddedToken(name, special=True, normalized=False) for name in SPECIALS])
    assert tokenizer.get_vocab_size() == vocab, tokenizer.get_vocab_size()
    return tokenizer


def new_renderer(template_text, bos_token=BEGIN):
    """Returns render(messages, tools, add_generation_prompt) -> prompt text, with
    the Jinja settings that Hugging Face uses for chat templates."""
    def refuse(message):
        raise jinja2.exceptions.TemplateError(message)

    jinja = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)
    jinja.filters["tojson"] = lambda value, indent=None: json.dumps(value, ensure_ascii=False, indent=indent)
    jinja.globals["raise_exception"] = refuse
    template = jinja.from_string(template_text)

    def render(messages, tools=None, add_generation_prompt=False):
        return template.render(messages=messages, tools=tools or None, bos_token=bos_token,
                               add_generation_prompt=add_generation_prompt)
    return render


def prompt_ids(folder, messages, tools=None):
    """Token ids of a chat that waits for the assistant, from a model folder."""
    folder = Path(folder)
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    render = new_renderer((folder / "chat_template.jinja").read_text())
    return tokenizer.encode(render(messages, tools, True), add_special_tokens=False).ids


def write_json(path, value):
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def write_tokenizer(folder, tokenizer, shape, context):
    tokenizer.save(str(folder / "tokenizer.json"))
    template = TEMPLATE_PATH.read_text()
    (folder / "chat_template.jinja").write_text(template)
    write_json(folder / "tokenizer_config.json", {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": BEGIN, "eos_token": TURN_END, "pad_token": END_TEXT,
        "add_bos_token": False, "add_eos_token": False,
        "clean_up_tokenization_spaces": False,
        "model_max_length": context,
        "chat_template": template,
    })
    ids = {name: tokenizer.token_to_id(name) for name in SPECIALS}
    write_json(folder / "config.json", {
        "architectures": ["LlamaForCausalLM"], "model_type": "llama",
        "vocab_size": shape.vocab, "hidden_size": shape.hidden, "intermediate_size": shape.intermediate,
        "num_hidden_layers": shape.layers, "num_attention_heads": shape.heads,
        "num_key_value_heads": shape.kv_heads, "head_dim": shape.head_dim,
        "hidden_act": "silu", "rms_norm_eps": shape.norm_eps,
        "rope_theta": shape.rope_theta, "rope_scaling": None,
        "max_position_embeddings": context, "tie_word_embeddings": True,
        "attention_bias": False, "mlp_bias": False, "attention_dropout": 0.0, "initializer_range": 0.02,
        "bos_token_id": ids[BEGIN], "eos_token_id": ids[TURN_END], "pad_token_id": ids[END_TEXT],
        "torch_dtype": "float16", "use_cache": True,
    })
    write_json(folder / "generation_config.json", {
        "bos_token_id": ids[BEGIN], "eos_token_id": [ids[TURN_END], ids[END_TEXT]],
        "pad_token_id": ids[END_TEXT], "do_sample": False,
    })


def write_weights(folder, params):
    path = folder / "model.safetensors"
    save_file({name: np.ascontiguousarray(value, np.float16) for name, value in sorted(params.items())},
              str(path), metadata={"format": "pt"})
    path.chmod(0o644)  # the library writes it for its owner only


def read_weights(folder):
    """The weights as shipped (rounded to 16 bits), widened to float32."""
    return {name: value.astype(np.float32) for name, value in load_file(str(Path(folder) / "model.safetensors")).items()}


def write_manifest(models_folder):
    """`manifest.toml`: size and SHA-256 of every file of every shipped model."""
    lines = ["# Checksums of the shipped models. Written by models/train/demo_chat.py --manifest.", ""]
    for folder in sorted(p for p in models_folder.iterdir() if (p / "MODEL_CARD.md").exists()):
        for path in sorted(p for p in folder.iterdir() if p.is_file()):
            data = path.read_bytes()
            lines += ["[[file]]", f'path = "{folder.name}/{path.name}"', f"bytes = {len(data)}",
                      f'sha256 = "{hashlib.sha256(data).hexdigest()}"', ""]
    (models_folder / "manifest.toml").write_text("\n".join(lines))
