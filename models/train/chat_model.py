"""The demo chat model: a Llama-shaped decoder in JAX, and its training loop.

Parameters live in one flat dictionary under the names that Hugging Face uses
for Llama weights, so export is a plain save and any Llama reader can load it.
Knows nothing about what the text says.
"""

import functools
import time
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np


@dataclass(frozen=True)
class Shape:
    """Sizes of the network. `head_dim` is fixed by hidden / heads."""

    vocab: int = 2048
    hidden: int = 192
    layers: int = 5
    heads: int = 6
    kv_heads: int = 2
    intermediate: int = 512
    rope_theta: float = 10000.0
    norm_eps: float = 1e-5

    @property
    def head_dim(self):
        return self.hidden // self.heads


@dataclass(frozen=True)
class Schedule:
    """How long and how fast to learn. A step sees one batch, about 1,000 tokens."""

    steps: int = 2200
    peak_rate: float = 2e-3
    warmup: int = 100
    fall: float = 0.3  # the part of the steps, at the end, in which the rate falls to zero
    weight_decay: float = 0.05
    clip_norm: float = 1.0
    seed: int = 20


def new_params(shape, seed):
    """Fresh float32 weights. Projections that write into the residual stream
    start smaller, so that depth does not blow the stream up at step one."""
    rng = np.random.default_rng(seed)

    def matrix(rows, columns, scale=1.0):
        spread = scale / np.sqrt(columns)
        return rng.normal(0.0, spread, (rows, columns)).astype(np.float32)

    residual = 1.0 / np.sqrt(2 * shape.layers)
    kv_width = shape.kv_heads * shape.head_dim
    ones = np.ones(shape.hidden, np.float32)
    params = {
        "model.embed_tokens.weight": rng.normal(0.0, 0.02, (shape.vocab, shape.hidden)).astype(np.float32),
        "model.norm.weight": ones,
    }
    for layer in range(shape.layers):
        at = f"model.layers.{layer}."
        params[at + "input_layernorm.weight"] = ones
        params[at + "self_attn.q_proj.weight"] = matrix(shape.hidden, shape.hidden)
        params[at + "self_attn.k_proj.weight"] = matrix(kv_width, shape.hidden)
        params[at + "self_attn.v_proj.weight"] = matrix(kv_width, shape.hidden)
        params[at + "self_attn.o_proj.weight"] = matrix(shape.hidden, shape.hidden, residual)
        params[at + "post_attention_layernorm.weight"] = ones
        params[at + "mlp.gate_proj.weight"] = matrix(shape.intermediate, shape.hidden)
        params[at + "mlp.up_proj.weight"] = matrix(shape.intermediate, shape.hidden)
        params[at + "mlp.down_proj.weight"] = matrix(shape.hidden, shape.intermediate, residual)
    return params


def rms_norm(x, weight, eps):
    return x * jax.lax.rsqrt(jnp.mean(x * x, axis=-1, keepdims=True) + eps) * weight


def rope_tables(length, shape):
    """Cosines and sines, one row a position, one column a rotated pair."""
    half = shape.head_dim // 2
    speeds = 1.0 / shape.rope_theta ** (np.arange(half) / half)
    angles = np.arange(length)[:, None] * speeds[None, :]
    return jnp.asarray(np.cos(angles), jnp.float32), jnp.asarray(np.sin(angles), jnp.float32)


def rotate(x, tables):
    """Rotary positions, Hugging Face pairing: entry i turns with entry i + half."""
    cos, sin = (t[None, :, None, :] for t in tables)
    first, second = jnp.split(x, 2, axis=-1)
    return jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)


def attention(params, at, x, tables, visible, shape):
    rows, length, _ = x.shape

    def project(name, heads):
        out = x @ params[f"{at}self_attn.{name}_proj.weight"].T
        return out.reshape(rows, length, heads, shape.head_dim)

    query = rotate(project("q", shape.heads), tables)
    key = rotate(project("k", shape.kv_heads), tables)
    value = project("v", shape.kv_heads)
    # Each key/value head serves a run of neighbouring query heads.
    shared = shape.heads // shape.kv_heads
    query = query.reshape(rows, length, shape.kv_heads, shared, shape.head_dim)
    scores = jnp.einsum("bqgsd,bkgd->bgsqk", query, key) / np.sqrt(shape.head_dim)
    scores = jnp.where(visible[:, None, None], scores, -1e9)
    mixed = jnp.einsum("bgsqk,bkgd->bqgsd", jax.nn.softmax(scores, axis=-1), value)
    return mixed.reshape(rows, length, shape.hidden) @ params[at + "self_attn.o_proj.weight"].T


def mlp(params, at, x):
    gate = jax.nn.silu(x @ params[at + "mlp.gate_proj.weight"].T)
    return (gate * (x @ params[at + "mlp.up_proj.weight"].T)) @ params[at + "mlp.down_proj.weight"].T


def forward(params, tokens, segments, shape):
    """Logits for every position. `segments` numbers the chats packed into one
    row; a token sees only earlier tokens of its own chat."""
    length = tokens.shape[1]
    causal = jnp.tril(jnp.ones((length, length), bool))
    visible = causal[None] & (segments[:, :, None] == segments[:, None, :])
    tables = rope_tables(length, shape)
    x = params["model.embed_tokens.weight"][tokens]
    for layer in range(shape.layers):
        at = f"model.layers.{layer}."
        normed = rms_norm(x, params[at + "input_layernorm.weight"], shape.norm_eps)
        x = x + attention(params, at, normed, tables, visible, shape)
        normed = rms_norm(x, params[at + "post_attention_layernorm.weight"], shape.norm_eps)
        x = x + mlp(params, at, normed)
    x = rms_norm(x, params["model.norm.weight"], shape.norm_eps)
    return x @ params["model.embed_tokens.weight"].T  # tied output


def mean_loss(params, batch, shape):
    """Cross-entropy over the tokens the assistant must say, and only those."""
    tokens, segments, spoken = batch
    logits = forward(params, tokens[:, :-1], segments[:, :-1], shape)
    picked = jnp.take_along_axis(jax.nn.log_softmax(logits), tokens[:, 1:, None], axis=-1)[..., 0]
    weight = spoken[:, 1:]
    return -(picked * weight).sum() / jnp.maximum(weight.sum(), 1.0)


def learning_rate(step, plan):
    """Rises, stays, then falls in a straight line to zero. The long level part
    does not depend on the number of steps, so a run that was stopped can go on
    from its last save with another number and still equal a run from scratch."""
    rise = step / plan.warmup
    fall = (plan.steps - step) / (plan.steps * plan.fall)
    return plan.peak_rate * min(rise, fall, 1.0)


@functools.partial(jax.jit, static_argnames=("shape", "plan"), donate_argnums=(0, 1, 2))
def adamw_step(params, first, second, batch, step, rate, shape, plan):
    """One AdamW update with the gradient clipped by its global norm."""
    loss, grads = jax.value_and_grad(mean_loss)(params, batch, shape)
    norm = jnp.sqrt(sum(jnp.sum(g * g) for g in grads.values()))
    scale = jnp.minimum(1.0, plan.clip_norm / (norm + 1e-9))
    fix1, fix2 = 1.0 - 0.9**step, 1.0 - 0.98**step
    for name, grad in grads.items():
        grad = grad * scale
        first[name] = 0.9 * first[name] + 0.1 * grad
        second[name] = 0.98 * second[name] + 0.02 * grad * grad
        move = (first[name] / fix1) / (jnp.sqrt(second[name] / fix2) + 1e-8)
        if params[name].ndim == 2:  # norms are not decayed
            move = move + plan.weight_decay * params[name]
        params[name] = params[name] - rate * move
    return params, first, second, loss


def save_progress(path, step, sets):
    """Weights and both moments, under their set's name; written, then renamed."""
    flat = {f"{kind}/{name}": np.asarray(v) for kind, group in sets.items() for name, v in group.items()}
    np.savez(path.with_suffix(".part.npz"), step=step, **flat)
    path.with_suffix(".part.npz").rename(path)


def load_progress(path, sets):
    """The step reached, or 0 with `sets` untouched when nothing was saved."""
    if not path.exists():
        return 0
    with np.load(path) as saved:
        for kind, group in sets.items():
            for name in group:
                group[name] = jnp.asarray(saved[f"{kind}/{name}"])
        return int(saved["step"])


def train(shape, plan, batches, saves, log=print):
    """Runs the schedule, saving to the file `saves` now and then and going on
    from it if it exists; returns (weights, mean loss of the last 100 steps)."""
    fresh = new_params(shape, plan.seed)
    sets = {"weight": {k: jnp.asarray(v) for k, v in fresh.items()},
            "first": {k: jnp.zeros_like(v) for k, v in fresh.items()},
            "second": {k: jnp.zeros_like(v) for k, v in fresh.items()}}
    done, losses, began = load_progress(saves, sets), [], time.monotonic()
    for step in range(1, plan.steps + 1):
        batch = next(batches)
        if step <= done:  # the text was seen before the stop
            continue
        *state, loss = adamw_step(*sets.values(), tuple(jnp.asarray(part) for part in batch), jnp.float32(step),
                                  jnp.float32(learning_rate(step, plan)), shape, Schedule())
        sets = dict(zip(sets, state))
        losses.append(float(loss))
        if step % 50 == 0 or step == 1:
            log(f"step {step}/{plan.steps}  loss {np.mean(losses[-100:]):.4f}  "
                f"{time.monotonic() - began:.0f} s")
        if step % 100 == 0:
            save_progress(saves, step, sets)
    return {k: np.asarray(v) for k, v in sets["weight"].items()}, float(np.mean(losses[-100:]))


@functools.partial(jax.jit, static_argnames=("shape",))
def _logits_at(params, tokens, last, shape):
    return forward(params, tokens[None], jnp.zeros_like(tokens)[None], shape)[0, last]


def greedy(params, prompt, stop_ids, limit, shape, window=1024):
    """Greedy continuation of `prompt` (token ids), without a cache: slow and
    plain, meant as the yardstick other runtimes are compared with."""
    said = []
    while len(said) < limit:
        ids = list(prompt) + said
        size = min(window, -(-len(ids) // 64) * 64)  # few shapes, few compilations
        padded = jnp.asarray(ids + [0] * (size - len(ids)), jnp.int32)
        token = int(jnp.argmax(_logits_at(params, padded, len(ids) - 1, shape)))
        if token in stop_ids:
            break
        said.append(token)
    return said
