"""The two network shapes. README.md in this folder defines the forward pass in
words; keep both in step, because another implementation follows that text.

Only Embedding, Conv1d, Linear, LayerNorm, GELU/ReLU, softmax, max and mean are
used, and padding is multiplied away, so a row's logits do not depend on what it
is batched with.
"""

import math

import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import nn

import fold


class Cnn(nn.Module):
    """Token CNN: embedding, kernels 3 and 5 side by side, kernel 3, max + mean."""

    def __init__(self, vocab=16384, hidden=96, filters=128, labels=1, dropout=0.3):
        super().__init__()
        self.embedding = nn.Embedding(vocab, hidden)
        nn.init.normal_(self.embedding.weight, std=0.1)
        self.conv3 = nn.Conv1d(hidden, filters, 3, padding=1)
        self.conv5 = nn.Conv1d(hidden, filters, 5, padding=2)
        self.second = nn.Conv1d(2 * filters, filters, 3, padding=1)
        self.head = nn.Linear(2 * filters, labels)
        self.dropout = nn.Dropout(dropout)
        self.word_dropout = 0.05

    def features(self, ids, mask):
        keep = mask.to(torch.float32).unsqueeze(1)                      # [batch, 1, seq]
        x = self.embedding(ids)
        if self.training:
            x = x * (torch.rand(ids.shape + (1,)) > self.word_dropout)
        x = x.transpose(1, 2) * keep                                   # [batch, hidden, seq]
        x = torch.cat([F.relu(self.conv3(x)), F.relu(self.conv5(x))], dim=1) * keep
        x = F.relu(self.second(self.dropout(x))) * keep                # >= 0, so the mask is neutral for max
        top = x.amax(dim=2)
        mean = x.sum(dim=2) / keep.sum(dim=2).clamp(min=1.0)
        return torch.cat([top, mean], dim=1)

    def forward(self, ids, mask):
        return self.head(self.dropout(self.features(ids, mask)))


class Layer(nn.Module):
    """One BERT encoder layer, named as in Hugging Face's files."""

    def __init__(self, width, heads, inner, eps, dropout):
        super().__init__()
        self.heads, self.size = heads, width // heads
        self.attention = nn.Module()
        self.attention.self = nn.Module()
        for name in ("query", "key", "value"):
            setattr(self.attention.self, name, nn.Linear(width, width))
        self.attention.output = nn.Module()
        self.attention.output.dense = nn.Linear(width, width)
        self.attention.output.LayerNorm = nn.LayerNorm(width, eps=eps)
        self.intermediate = nn.Module()
        self.intermediate.dense = nn.Linear(width, inner)
        self.output = nn.Module()
        self.output.dense = nn.Linear(inner, width)
        self.output.LayerNorm = nn.LayerNorm(width, eps=eps)
        self.dropout = nn.Dropout(dropout)

    def split(self, x):
        return x.reshape(x.shape[0], -1, self.heads, self.size).transpose(1, 2)

    def forward(self, x, bias):
        own = self.attention.self
        q, k, v = self.split(own.query(x)), self.split(own.key(x)), self.split(own.value(x))
        weights = torch.softmax(q @ k.transpose(2, 3) / math.sqrt(self.size) + bias, dim=-1)
        mixed = (weights @ v).transpose(1, 2).reshape(x.shape[0], -1, self.heads * self.size)
        x = self.attention.output.LayerNorm(x + self.dropout(self.attention.output.dense(mixed)))
        inner = F.gelu(self.intermediate.dense(x))                     # the erf form
        return self.output.LayerNorm(x + self.dropout(self.output.dense(inner)))


class Bert(nn.Module):
    """Three layers of all-MiniLM with mean pooling and one linear head."""

    def __init__(self, vocab=8192, width=384, layers=3, heads=12, inner=1536, positions=128,
                 labels=1, eps=1e-12, dropout=0.1):
        super().__init__()
        self.embeddings = nn.Module()
        self.embeddings.word_embeddings = nn.Embedding(vocab, width)
        self.embeddings.position_embeddings = nn.Embedding(positions, width)
        self.embeddings.token_type_embeddings = nn.Embedding(2, width)
        self.embeddings.LayerNorm = nn.LayerNorm(width, eps=eps)
        self.encoder = nn.Module()
        self.encoder.layer = nn.ModuleList(Layer(width, heads, inner, eps, dropout) for _ in range(layers))
        self.classifier = nn.Linear(width, labels)
        self.dropout = nn.Dropout(dropout)

    def features(self, ids, mask):
        part = self.embeddings
        place = torch.cumsum(torch.ones_like(ids[:1]), dim=1) - 1      # 0, 1, 2, ... for any length
        x = part.word_embeddings(ids) + part.position_embeddings(place) + part.token_type_embeddings.weight[0]
        x = part.LayerNorm(x)
        keep = mask.to(torch.float32)
        bias = (1.0 - keep)[:, None, None, :] * -10000.0
        for layer in self.encoder.layer:
            x = layer(x, bias)
        keep = keep.unsqueeze(2)
        return (x * keep).sum(dim=1) / keep.sum(dim=1).clamp(min=1.0)

    def forward(self, ids, mask):
        return self.classifier(self.dropout(self.features(ids, mask)))


def from_minilm(old_ids, chosen=(0, 2, 5), positions=128):
    """all-MiniLM's weights in a `Bert`: the kept pieces and the chosen layers."""
    source = load_file(str(fold.minilm_folder() / "model.safetensors"))
    source = {name.removeprefix("bert."): value.float() for name, value in source.items()}
    net = Bert(vocab=len(old_ids), layers=len(chosen), positions=positions)
    state = net.state_dict()
    for name in state:
        if name.startswith("classifier"):
            continue
        if name.startswith("encoder.layer."):
            _, _, number, rest = name.split(".", 3)
            value = source[f"encoder.layer.{chosen[int(number)]}.{rest}"]
        else:
            value = source[name]
            if name == "embeddings.word_embeddings.weight":
                value = value[torch.tensor(old_ids)]
            elif name == "embeddings.position_embeddings.weight":
                value = value[:positions]
        state[name] = value.clone()
    net.load_state_dict(state)
    return net


def padded(rows, width=1):
    """(ids, mask) tensors of equally long rows; zero is [PAD]."""
    longest = max(width, max(len(r) for r in rows))
    ids = torch.zeros(len(rows), longest, dtype=torch.int64)
    mask = torch.zeros(len(rows), longest, dtype=torch.int64)
    for i, row in enumerate(rows):
        ids[i, :len(row)] = torch.as_tensor(row, dtype=torch.int64)
        mask[i, :len(row)] = 1
    return ids, mask
