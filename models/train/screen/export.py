"""Writes a model folder: weights, ONNX, tokenizer, configuration. Checks that
ONNX Runtime agrees with PyTorch and that padding changes nothing."""

import json
import tempfile
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import torch
from onnx import helper, numpy_helper
from safetensors.torch import load_file, save_file

import fold
import nets

OPSET = 17
GELU_LEAST = -0.17


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


def calibration_rows(tokenizer, limit=240):
    """First windows of seed texts, without every third line, which is left for
    measuring."""
    texts = []
    for name in ("attacks_a1", "frames_a2", "benign_a3", "languages_a4"):
        lines = (Path(__file__).with_name("seeds") / f"{name}.jsonl").read_text(encoding="utf-8").splitlines()
        texts += [json.loads(line)["text"] for line in lines if line.strip()]
    texts = [text for i, text in enumerate(texts) if i % 3]
    texts = texts[::max(1, len(texts) // limit)]
    pieces = [e.ids[:126] for e in tokenizer.encode_batch([fold.fold(t) for t in texts], add_special_tokens=False)]
    return [[2, *ids, 3] for ids in pieces]


def activations(model, names, rows):
    """What flows into each named tensor of an ONNX model: {name: [tokens, width]}."""
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    copy.graph.output.extend(helper.make_tensor_value_info(n, onnx.TensorProto.FLOAT, None) for n in names)
    sess = session(copy.SerializeToString())
    seen = {n: [] for n in names}
    for row in rows:
        ids, mask = nets.padded([row])
        for n, value in zip(names, sess.run(names, {"input_ids": ids.numpy(), "attention_mask": mask.numpy()})):
            seen[n].append(value.reshape(-1, value.shape[-1]))
    return {n: np.concatenate(v) for n, v in seen.items()}


def rounded(weight, inputs):
    """int8 weight and one scale per column. Rows are rounded one by one, and
    the rows still to come make up for each error on typical inputs (GPTQ)."""
    scale = np.maximum(np.abs(weight).max(axis=0) / 127, 1e-12)
    square = inputs.T @ inputs / len(inputs)
    square += np.eye(len(square)) * 0.01 * np.trace(square) / len(square)
    upper = np.linalg.cholesky(np.linalg.inv(square)).T
    left, out = weight.astype(np.float64), np.zeros(weight.shape, np.int8)
    for k in range(len(left)):
        out[k] = np.clip(np.rint(left[k] / scale), -127, 127)
        left[k + 1:] -= np.outer(upper[k, k + 1:], (left[k] - out[k] * scale) / upper[k, k])
    return out, scale.astype(np.float32)


class Int8:
    """Rewrites an ONNX graph of nets.Bert. Weights of MatMul become int8 with a
    scale per column. Activations become 8 bits when they arrive, with a scale per
    token, after a shift and a scale per channel that even out their ranges; the
    shift comes back through the bias. Word pieces are int8 with a 16-bit scale
    per 32 numbers, positions 16 bits (as exact as the weights are)."""

    def __init__(self, model, rows):
        self.model, self.nodes, self.added, self.gone, self.done = model, [], {}, set(), {}
        self.weights = {i.name: numpy_helper.to_array(i) for i in model.graph.initializer}
        self.users = {}
        for node in model.graph.node:
            for name in node.input:
                self.users.setdefault(name, []).append(node)
        self.products = [n for n in model.graph.node if n.op_type == "MatMul" and n.input[1] in self.weights]
        self.gelu = {n.input[0] for n in self.products if self.weights[n.input[1]].shape[0] > self.weights[n.input[1]].shape[1]}
        self.inputs = activations(model, list(dict.fromkeys(n.input[0] for n in self.products)), rows)

    def node(self, kind, inputs, output, **rest):
        self.nodes.append(helper.make_node(kind, inputs, [output], **rest))
        return output

    def const(self, name, value):
        self.added[name] = numpy_helper.from_array(np.ascontiguousarray(value), name)
        return name

    def even(self, name):
        """Shift and scale per channel for what flows into `name`. GELU's output
        is never below -0.17, so with that shift it has no sign."""
        x = self.inputs[name].astype(np.float64)
        weight = np.max([np.abs(self.weights[n.input[1]]).max(axis=1) for n in self.users[name] if n in self.products], axis=0)
        shift = np.full(x.shape[1], GELU_LEAST) if name in self.gelu else x.mean(axis=0)
        size = ((x - shift) ** 6).mean(axis=0) ** (1 / 6)  # between the usual and the largest
        scale = np.sqrt(np.maximum(size, 1e-3) / np.maximum(weight, 1e-3))
        return shift.astype(np.float32), (scale / np.exp(np.log(scale).mean())).astype(np.float32)

    def quantised(self, name):
        """(8-bit tensor, its zero, its scales [batch, seq, 1], shift, scale per channel)."""
        if name in self.done:
            return self.done[name]
        shift, scale = self.even(name)
        top, zero = (255, 0) if name in self.gelu else (127, 128)
        x = self.node("Sub", [name, self.const(f"{name}.shift", shift)], f"{name}.centred")
        x = self.node("Mul", [x, self.const(f"{name}.even", 1 / scale)], f"{name}.evened")
        x = self.node("Reshape", [x, self.const(f"flat.{len(scale)}", np.array([-1, len(scale)]))], f"{name}.flat")
        size = x if name in self.gelu else self.node("Abs", [x], f"{name}.abs")
        size = self.node("ReduceMax", [size], f"{name}.max", axes=[1], keepdims=0)
        size = self.node("Mul", [size, self.const(f"per.{top}", np.float32(1 / top))], f"{name}.step")
        size = self.node("Max", [size, self.const("least", np.float32(1e-12))], f"{name}.scale")
        zeros = self.node("ConstantOfShape", [self.node("Shape", [size], f"{name}.count")], f"{name}.zeros",
                          value=helper.make_tensor("value", onnx.TensorProto.UINT8, [1], [zero]))
        x = self.node("QuantizeLinear", [x, size, zeros], f"{name}.q", axis=0)
        shape = self.node("Shape", [name], f"{name}.shape")
        x = self.node("Reshape", [x, shape], f"{name}.q8")
        front = self.node("Slice", [shape, self.const("zero", np.array([0])), self.const("two", np.array([2]))], f"{name}.front")
        front = self.node("Concat", [front, self.const("last", np.array([1]))], f"{name}.one", axis=0)
        size = self.node("Reshape", [size, front], f"{name}.scales")
        self.done[name] = x, self.const(f"zero.{zero}", np.uint8(zero)), size, shift, scale
        return self.done[name]

    def product(self, node):
        name, weight = node.input
        x, zero, size, shift, scale = self.quantised(name)
        evened = (self.inputs[name] - shift) / scale
        small, columns = rounded(self.weights[weight] * scale[:, None], evened.astype(np.float64))
        y = self.node("MatMulIntegerToFloat", [x, self.const(f"{weight}.q", small), self.const("unit", np.float32(1)),
                      self.const(f"{weight}.scale", columns), zero, self.const("zero.w", np.int8(0))],
                      f"{node.output[0]}.product", domain="com.microsoft")
        self.node("Mul", [y, size], node.output[0])
        self.gone.add(weight)
        add, = self.users[node.output[0]]
        bias, = (n for n in add.input if n in self.weights)
        whole = (shift / scale).astype(np.float64) @ (small * columns.astype(np.float64))
        self.const(bias, (self.weights[bias] + whole).astype(np.float32))
        self.gone.add(bias)

    def pieces(self, node, block=32):
        table = self.weights[node.input[0]]
        cut = table.reshape(len(table), -1, block)
        scale = np.maximum(np.abs(cut).max(axis=2, keepdims=True) / 127, 1e-6).astype(np.float16)
        small = np.clip(np.rint(cut / scale.astype(np.float32)), -127, 127).astype(np.int8)
        x = self.looked_up("pieces.q", small, node.input[1])
        x = self.node("Mul", [x, self.looked_up("pieces.scale", scale, node.input[1])], "pieces.cut")
        self.node("Reshape", [x, self.const("pieces.width", np.array([0, 0, table.shape[1]]))], node.output[0])
        self.gone.add(node.input[0])

    def looked_up(self, name, table, ids):
        x = self.node("Gather", [self.const(name, table), ids], f"{name}.at")
        return self.node("Cast", [x], f"{name}.wide", to=onnx.TensorProto.FLOAT)

    def positions(self, node):
        wide = self.looked_up("positions", self.weights[node.input[0]].astype(np.float16), node.input[1])
        self.node("Identity", [wide], node.output[0])
        self.gone.add(node.input[0])

    def write(self, path):
        for node in self.model.graph.node:
            table = self.weights.get(node.input[0]) if node.op_type == "Gather" else None
            if node in self.products:
                self.product(node)
            elif table is not None and table.size > 1_000_000:
                self.pieces(node)
            elif table is not None and table.ndim == 2:
                self.positions(node)
            else:
                self.nodes.append(node)
        graph = self.model.graph
        kept = [i for i in graph.initializer if i.name not in self.gone] + list(self.added.values())
        graph.ClearField("initializer")
        graph.initializer.extend(kept)
        nodes = self.nodes
        graph.ClearField("node")
        graph.node.extend(nodes)
        self.model.opset_import.append(helper.make_opsetid("com.microsoft", 1))
        onnx.save(self.model, str(path))


def to_int8(source, path, tokenizer=None):
    """A BERT in 8 bits. The tokenizer is for calibration on the seeds; without
    it, tokenizer.json beside `path` is taken."""
    tokenizer = tokenizer or fold.Tokenizer.from_file(str(Path(path).with_name("tokenizer.json")))
    Int8(onnx.load(str(source)), calibration_rows(tokenizer)).write(path)


def session(path, threads=1):
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = threads
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(path if isinstance(path, bytes) else str(path), options, providers=["CPUExecutionProvider"])


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
        to_int8(whole, folder / "model.int8.onnx", tokenizer)
    check(net, folder / "model.int8.onnx", 0.5)  # random ids, further off than real texts


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
