"""Asks a real llama.cpp for token ids: writes a GGUF file of random numbers around a vocabulary and serves it.

    python llama_cpp_ids.py MODEL.gguf < TEXTS.json > IDS.json

One process a file, because llama.cpp ends its process when it does not like a vocabulary.
"""

import json
import subprocess
import sys
import tempfile
import urllib.request
from pathlib import Path

KINDS = {"normal": 1, "unknown": 2, "control": 3, "added": 4, "unused": 5, "byte": 6}
WIDTH = 32


def write(path, model, tokens, entries, merges=None, name="tiny", architecture="llama"):
    """Writes a model of one layer. Tokens are (text, kind, score)."""
    import gguf
    import numpy

    out = gguf.GGUFWriter(path, architecture)
    out.add_name(name)
    out.add_context_length(512)
    out.add_embedding_length(WIDTH)
    out.add_block_count(1)
    out.add_feed_forward_length(WIDTH)
    out.add_head_count(1)
    out.add_head_count_kv(1)
    out.add_rope_dimension_count(WIDTH)
    out.add_layer_norm_rms_eps(1e-5)
    out.add_vocab_size(len(tokens))
    out.add_tokenizer_model(model)
    out.add_token_list([text for text, _, _ in tokens])
    out.add_token_types([KINDS[kind] for _, kind, _ in tokens])
    out.add_token_scores([score for _, _, score in tokens])
    if merges is not None:
        out.add_token_merges(merges)
    for key, value in entries.items():
        if isinstance(value, bool):
            out.add_bool(key, value)
        elif isinstance(value, int):
            out.add_uint32(key, value)
        elif isinstance(value, bytes):
            out.add_array(key, value)
        else:
            out.add_string(key, value)
    random = numpy.random.default_rng(1)
    square = {"attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down"}
    for part in sorted(square):
        out.add_tensor(f"blk.0.{part}.weight", random.random((WIDTH, WIDTH), dtype=numpy.float32))
    for part in ["blk.0.attn_norm", "blk.0.ffn_norm", "output_norm"]:
        out.add_tensor(f"{part}.weight", numpy.ones(WIDTH, dtype=numpy.float32))
    out.add_tensor("token_embd.weight", random.random((len(tokens), WIDTH), dtype=numpy.float32))
    out.write_header_to_file()
    out.write_kv_data_to_file()
    out.write_tensors_to_file()
    out.close()


def ids(texts, *model, **more):
    """Ids of texts, each without and the first with what is put around every text."""
    with tempfile.TemporaryDirectory(prefix="berthd-ids-") as folder:
        path = Path(folder) / "model.gguf"
        write(path, *model, **more)
        done = subprocess.run(
            [sys.executable, __file__, path], input=json.dumps(texts), capture_output=True, text=True, timeout=120
        )
        if done.returncode:
            raise RuntimeError("\n".join(line for line in done.stderr.splitlines() if "rror" in line or "ASSERT" in line)[:1500])
        return json.loads(done.stdout)


def serve(path):
    from xllamacpp import CommonParams, Server

    wanted = CommonParams()
    wanted.model.path = path
    wanted.hostnames = ["127.0.0.1"]
    wanted.port = 0
    wanted.n_ctx = 64
    wanted.n_parallel = 1
    wanted.warmup = False
    wanted.chat_template = "chatml"
    return Server(wanted)


def main():
    texts = json.load(sys.stdin)
    server = serve(sys.argv[1])

    def ask(text, around):
        body = json.dumps({"content": text, "add_special": around, "parse_special": True}).encode()
        url = f"{server.listening_address}/tokenize"
        request = urllib.request.Request(url, body, {"Content-Type": "application/json"})
        return json.load(urllib.request.urlopen(request, timeout=60))["tokens"]

    json.dump({"ids": [ask(text, False) for text in texts], "around": ask(texts[0], True)}, sys.stdout)


if __name__ == "__main__":
    main()
