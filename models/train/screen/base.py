"""Teaches the three kept layers of MiniLM to stand for all six before they are
fine-tuned: last hidden states and their mean are pulled towards those of the
whole network, over windows of the training texts, labels unused. Sanh et al.,
"DistilBERT" (2019), and Jiao et al., "TinyBERT" (2020), are where the idea is from.
"""

import time

import numpy as np
import torch
import torch.nn.functional as F

import fold
import nets

SIZE = 94   # pieces of a window without [CLS] and [SEP]


def windows(texts, tokenizer, count, rng):
    """`count` random windows, sorted into batches of like length by the caller."""
    cuts = []
    for n in rng.choice(len(texts), min(count, len(texts)), replace=False):
        text = texts[n]
        if len(text) > 1200:   # a piece is some four characters; tokenising books for a window would be waste
            at = int(rng.integers(0, len(text) - 1100))
            text = text[at:at + 1100]
        ids = tokenizer.encode(text, add_special_tokens=False).ids
        start = int(rng.integers(0, max(1, len(ids) - SIZE + 1)))
        if ids:
            cuts.append([101] + ids[start:start + SIZE] + [102])   # BERT's own [CLS] and [SEP]
    return cuts


def states(net, ids, mask):
    """Hidden states after the last layer, before pooling."""
    kept = {}
    handle = net.encoder.layer[-1].register_forward_hook(lambda module, given, out: kept.update(out=out))
    pooled = net.features(ids, mask)
    handle.remove()
    return kept["out"], pooled


def teach(texts, count, seed, say, chosen=(0, 2, 5), size=32, rate=4e-4):
    """The taught encoder's weights, without embeddings of words and places."""
    rng = np.random.default_rng(seed)
    torch.manual_seed(seed)
    tokenizer = fold.minilm_tokenizer()
    every = list(range(tokenizer.get_vocab_size()))
    whole, student = nets.from_minilm(every, tuple(range(6))).eval(), nets.from_minilm(every, chosen).train()
    for part in (student.embeddings.word_embeddings, student.embeddings.position_embeddings, student.classifier):
        for value in part.parameters():
            value.requires_grad_(False)
    for layer in student.encoder.layer:
        layer.dropout.p = 0.0
    cuts = sorted(windows(texts, tokenizer, count, rng), key=lambda c: len(c) + rng.uniform(0, 8))
    groups = [cuts[i:i + size] for i in range(0, len(cuts), size)]
    rng.shuffle(groups)
    optimiser = torch.optim.AdamW([p for p in student.parameters() if p.requires_grad], lr=rate, weight_decay=0.01)
    began, total = time.monotonic(), 0.0
    for step, group in enumerate(groups):
        share = step / len(groups)
        for part in optimiser.param_groups:
            part["lr"] = rate * min(1.0, share / 0.05, (1.02 - share) / 0.95)
        ids, mask = nets.padded(group)
        with torch.no_grad():
            aim, aim_mean = states(whole, ids, mask)
        out, mean = states(student, ids, mask)
        real = mask.unsqueeze(2).to(out.dtype)
        loss = ((out - aim) ** 2 * real).sum() / real.sum() / out.shape[2]
        near = 1 - F.cosine_similarity(mean, aim_mean).mean()
        optimiser.zero_grad(set_to_none=True)
        (loss + near).backward()
        torch.nn.utils.clip_grad_norm_(student.parameters(), 1.0)
        optimiser.step()
        total += float(near.detach())
        if step % 100 == 99:
            say(f"base step {step + 1}/{len(groups)} error {float(loss.detach()):.4f} 1 - cosine {total / 100:.4f} {time.monotonic() - began:.0f} s")
            total = 0.0
    return {n: v.detach().clone() for n, v in student.state_dict().items()
            if not n.startswith(("embeddings.word", "embeddings.position", "classifier"))}
