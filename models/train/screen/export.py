"""Writes a model folder: weights, ONNX, tokenizer, configuration. Checks that
ONNX Runtime agrees with PyTorch and that padding changes nothing."""

import json
import tempfile
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import torch
from onnxruntime.quantization import QuantType, quantize_dynamic
from safetensors.torch import load_file, save_file

import fold
import nets

OPSET = 17


def write_json(path, value):
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def config_of(net, labels, window, overlap, temperature, bias):
    common = {"window_tokens": window, "window_overlap": overlap, "temperature": temperature, "bias": bias}
    if isinstance(net, nets.Cnn):
        vocab, hidden = net.embedding.weight.shape
        return {"berthd_model": 1, "architecture": "cnn", "labels": labels, "vocab_size": vocab,
                "hidden_size": hidden, "filters": net.conv3.out_channels, "kernels": [3, 5],
                "second_kernel": 3, "pooling": "max_mean"} | common
    vocab, hidden = net.embeddings.word_embeddings.weight.shape
    return {"berthd_model": 1, "architecture": "bert", "labels": labels, "vocab_size": vocab,
            "hidden_size": hidden, "pooling": "mean", "num_hidden_layers": len(net.encoder.layer),
            "num_attention_heads": net.encoder.layer[0].heads, "intermediate_size": 1536,
            "layer_norm_eps": 1e-12, "max_position_embeddings": 128, "hidden_act": "gelu"} | common


def to_onnx(net, path):
    ids = torch.randint(4, 100, (2, 16))
    mask = torch.ones_like(ids)
    mask[1, 10:] = 0
    axes = {0: "batch", 1: "seq"}
    with torch.no_grad():
        torch.onnx.export(net, (ids, mask), str(path), dynamo=False, opset_version=OPSET,
                          input_names=["input_ids", "attention_mask"], output_names=["logits"],
                          dynamic_axes={"input_ids": axes, "attention_mask": axes, "logits": {0: "batch"}})


def to_int8(source, path):
    """Dynamic int8: weights of MatMul and Gather. Positions stay out of it only
    if ONNX Runtime cannot quantise them; they are small."""
    with tempfile.TemporaryDirectory() as scratch:
        ready = Path(scratch) / "ready.onnx"
        onnx.save(onnx.shape_inference.infer_shapes(onnx.load(str(source))), str(ready))
        quantize_dynamic(str(ready), str(path), op_types_to_quantize=["MatMul", "Gather"],
                         per_channel=True, weight_type=QuantType.QInt8)


def session(path, threads=1):
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = threads
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def run(sess, rows, width=1):
    ids, mask = nets.padded(rows, width)
    return sess.run(["logits"], {"input_ids": ids.numpy(), "attention_mask": mask.numpy()})[0]


def check(net, path, tolerance):
    """Worst difference to PyTorch over odd lengths, in a batch, alone, and padded."""
    rng = np.random.default_rng(5)
    vocab = (net.embedding if isinstance(net, nets.Cnn) else net.embeddings.word_embeddings).weight.shape[0]
    rows = [rng.integers(4, vocab, n).tolist() for n in (1, 2, 3, 17, 64, 128, 5)]
    sess = session(path)
    with torch.no_grad():
        alone = np.concatenate([net(*nets.padded([r])).numpy() for r in rows])
        together = net(*nets.padded(rows)).numpy()
    pad_gap = float(np.abs(alone - together).max())
    assert pad_gap < 2e-4, f"padding changes logits by {pad_gap}"
    gaps = [np.abs(run(sess, rows) - alone).max()]
    gaps += [np.abs(run(sess, [r]) - a).max() for r, a in zip(rows, alone)]
    worst = float(max(gaps))
    assert worst < tolerance, f"{path.name} differs from PyTorch by {worst}"
    print(f"  {path.name}: {path.stat().st_size} bytes, worst difference {worst:.5f}, padding {pad_gap:.6f}", flush=True)


def write_folder(folder, net, tokenizer, labels, window, overlap, temperature, bias):
    """Everything but thresholds, card and notice. A BERT is rounded to 16 bits
    first, so that every file in the folder holds the same weights."""
    folder.mkdir(parents=True, exist_ok=True)
    net.eval()
    state = {name: value.detach().clone().contiguous() for name, value in net.state_dict().items()}
    if isinstance(net, nets.Bert):
        state = {name: value.half() for name, value in state.items()}
        net.load_state_dict({name: value.float() for name, value in state.items()})
    save_file(state, str(folder / "model.safetensors"), metadata={"format": "pt"})
    (folder / "model.safetensors").chmod(0o644)
    tokenizer.save(str(folder / "tokenizer.json"))
    write_json(folder / "config.json", config_of(net, labels, window, overlap, temperature, bias))
    if isinstance(net, nets.Cnn):
        to_onnx(net, folder / "model.onnx")
        check(net, folder / "model.onnx", 1e-3)
        return
    with tempfile.TemporaryDirectory() as scratch:
        whole = Path(scratch) / "model.onnx"
        to_onnx(net, whole)
        check(net, whole, 1e-3)
        to_int8(whole, folder / "model.int8.onnx")
    check(net, folder / "model.int8.onnx", 3.0)  # random ids; RESULTS.md has the cost on real texts


def read_folder(folder):
    """(net, tokenizer, config) of a shipped folder."""
    folder = Path(folder)
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    if config["architecture"] == "cnn":
        net = nets.Cnn(config["vocab_size"], config["hidden_size"], config["filters"], len(config["labels"]))
    else:
        net = nets.Bert(config["vocab_size"], config["hidden_size"], config["num_hidden_layers"],
                        config["num_attention_heads"], config["intermediate_size"],
                        config["max_position_embeddings"], len(config["labels"]))
    net.load_state_dict({n: v.float() for n, v in load_file(str(folder / "model.safetensors")).items()})
    return net.eval(), fold.Tokenizer.from_file(str(folder / "tokenizer.json")), config
