"""Windows, batches, losses, training and scoring of both network shapes."""

import time

import numpy as np
import torch
import torch.nn.functional as F

import fold
import nets

UNK, CLS, SEP = 1, 2, 3


class Pieces:
    """Token ids of many rows, with the token span of a payload where one is known."""

    def __init__(self, rows, tokenizer, window, overlap, wrap):
        self.wrap, self.overlap = wrap, overlap
        self.size = window - 2 * wrap
        self.ids, self.spans = [], []
        for at in range(0, len(rows), 2000):
            part = rows[at:at + 2000]
            for row, code in zip(part, tokenizer.encode_batch([r["text"] for r in part], add_special_tokens=False)):
                self.ids.append(np.asarray(code.ids, np.int32))
                span = row.get("payload_span")
                if span and len(code.ids) > self.size:
                    hit = [i for i, (a, b) in enumerate(code.offsets) if b > span[0] and a < span[1]]
                    self.spans.append((hit[0], hit[-1] + 1) if hit else None)
                else:
                    self.spans.append(None)

    def lengths(self):
        return np.array([min(len(i), self.size) for i in self.ids])

    def cut(self, number, start):
        ids = self.ids[number][start:start + self.size]
        return np.concatenate([[CLS], ids, [SEP]]) if self.wrap else (ids if len(ids) else ids)

    def draw(self, number, rng, hardest=None):
        """One training window: around the payload if known, else anywhere, with
        some weight on the start and, for mined rows, the worst window so far."""
        room = len(self.ids[number]) - self.size
        if room <= 0:
            return self.cut(number, 0)
        span = self.spans[number]
        if span:
            low, high = max(0, span[1] - self.size), min(span[0], room)
            start = int(rng.integers(low, high + 1)) if low <= high else min(span[0], room)
        elif hardest is not None and hardest[number] >= 0 and rng.random() < 0.6:
            start = int(hardest[number])
        else:
            start = 0 if rng.random() < 0.3 else int(rng.integers(0, room + 1))
        return self.cut(number, start)

    def all_windows(self, numbers):
        where, cuts, starts = [], [], []
        for n in numbers:
            for a, _ in fold.windows(len(self.ids[n]), self.size, self.overlap):
                where.append(n)
                starts.append(a)
                cuts.append(self.cut(n, a))
        return where, cuts, starts


def forward_many(net, cuts, tokens_per_batch=8192):
    """Logits of windows, in batches of like length."""
    order = np.argsort([len(c) for c in cuts], kind="stable")
    out = None
    net.eval()
    with torch.inference_mode():
        at = 0
        while at < len(order):
            count = max(1, tokens_per_batch // max(8, len(cuts[order[min(at + 63, len(order) - 1)]])))
            some = order[at:at + count]
            logits = net(*nets.padded([cuts[i] for i in some])).numpy()
            if out is None:
                out = np.zeros((len(cuts), logits.shape[1]), np.float32)
            out[some] = logits
            at += count
    return out


def score(net, pieces, numbers=None, want_hardest=False):
    """Largest logit over a row's windows, per label."""
    numbers = list(range(len(pieces.ids))) if numbers is None else list(numbers)
    where, cuts, starts = pieces.all_windows(numbers)
    logits = forward_many(net, cuts)
    spot = {n: i for i, n in enumerate(numbers)}
    best = np.full((len(numbers), logits.shape[1]), -np.inf, np.float32)
    hardest = np.zeros(len(numbers), np.int64)
    for n, row, start in zip(where, logits, starts):
        i = spot[n]
        if row[0] > best[i, 0]:
            hardest[i] = start
        best[i] = np.maximum(best[i], row)
    return (best, hardest) if want_hardest else best


def batches(chosen, pair, lengths, size, rng):
    """Batches of like length; the two halves of a twin pair travel together."""
    units = {}
    for n in chosen:
        units.setdefault(("p", pair[n]) if pair[n] >= 0 else ("s", n), []).append(n)
    units = list(units.values())
    keys = np.array([max(lengths[n] for n in u) for u in units]) * rng.uniform(0.85, 1.15, len(units))
    ready, batch = [], []
    for i in np.argsort(keys):
        batch += units[i]
        if len(batch) >= size:
            ready.append(batch)
            batch = []
    if batch:
        ready.append(batch)
    rng.shuffle(ready)
    return ready


def injection_loss(z, y, w, twin, soft, positive_weight=1.5, smoothing=0.02):
    """BCE with smoothing, a margin that pushes harmless logits below -3, a margin
    between twins, and soft labels of a teacher where there are any."""
    target = y * (1 - smoothing) + 0.5 * smoothing
    loss = F.binary_cross_entropy_with_logits(z, target, reduction="none", pos_weight=torch.tensor(positive_weight))
    if soft is not None:
        known = ~torch.isnan(soft)
        taught = F.binary_cross_entropy_with_logits(z, torch.sigmoid(torch.nan_to_num(soft)), reduction="none")
        loss = torch.where(known, 0.5 * loss + 1.0 * taught, loss)
    loss = (loss * w).mean()
    calm = y < 0.5
    if calm.any():
        loss = loss + 0.05 * (F.relu(z[calm] + 3) ** 2 * w[calm]).mean()
    if len(twin[0]):
        loss = loss + 0.1 * F.relu(3 - (z[twin[0]] - z[twin[1]])).mean()
    return loss


def heads_loss(z, y, w):
    """Masked BCE; each head's positives weigh `w` of that head."""
    known = ~torch.isnan(y)
    target = torch.nan_to_num(y)
    each = F.binary_cross_entropy_with_logits(z, target * 0.98 + 0.01, reduction="none", pos_weight=w)
    return (each * known).sum(dim=0).div(known.sum(dim=0).clamp(min=1)).sum()


def twins_of(batch, pair, y):
    place = {}
    for i, n in enumerate(batch):
        if pair[n] >= 0:
            place.setdefault(pair[n], [None, None])[int(y[n] > 0.5)] = i
    both = [p for p in place.values() if None not in p]
    return [p[1] for p in both], [p[0] for p in both]


def groups_of_parameters(net, rate, head_rate):
    head, rest = [], []
    for name, value in net.named_parameters():
        if not value.requires_grad:
            continue
        (head if name.startswith(("classifier", "head")) else rest).append(value)
    return [{"params": rest, "lr": rate, "base": rate}, {"params": head, "lr": head_rate, "base": head_rate}]


def train(net, pieces, y, *, weight=None, pair=None, soft=None, plan, rate, head_rate, size, seed, mine_at=(), say=print,
          tag="", warm=0.06, decay=0.01, average=0.0, blank=0.0):
    """`plan(epoch, rng)` yields the row numbers of an epoch and returns None to
    stop. y: [rows] or, for heads, [rows, labels] with NaN for unknown. `blank` is
    the share of pieces that are shown as unknown, so that no single word decides."""
    rng = np.random.default_rng(seed)
    torch.manual_seed(seed)
    heads = y.ndim == 2
    lengths = pieces.lengths()
    pair = np.full(len(y), -1) if pair is None else pair
    weight = np.ones(len(y), np.float32) if weight is None else weight
    if heads:
        counts = np.array([[np.sum(y[:, k] == 0), np.sum(y[:, k] == 1)] for k in range(y.shape[1])], float)
        head_weight = torch.tensor(np.clip(counts[:, 0] / np.maximum(counts[:, 1], 1), 1, 4), dtype=torch.float32)
    epochs = []
    while (chosen := plan(len(epochs), np.random.default_rng(seed * 1000 + len(epochs)))) is not None:
        epochs.append(chosen)
    total = sum(-(-len(c) // size) for c in epochs)
    optimiser = torch.optim.AdamW(groups_of_parameters(net, rate, head_rate), weight_decay=decay)
    smooth = {n: v.detach().clone() for n, v in net.state_dict().items()} if average else None
    hardest = None
    step, began, seen, drawn, running = 0, time.monotonic(), 0, 0, 0.0
    for number, chosen in enumerate(epochs):
        if number in mine_at:
            long = [n for n in np.unique(chosen) if len(pieces.ids[n]) > pieces.size and (heads or y[n] == 0)]
            hardest = np.full(len(y), -1)
            if long and not heads:
                hardest[long] = score(net, pieces, long, True)[1]
        for batch in batches(chosen, pair, lengths, size, rng):
            share = step / max(1, total)
            scale = min(1.0, share / warm) if share < warm else max(0.02, (1 - share) / (1 - warm))
            for group in optimiser.param_groups:
                group["lr"] = group["base"] * scale
            net.train()
            ids, mask = nets.padded([pieces.draw(n, rng, hardest) for n in batch])
            if blank:
                ids[(torch.rand(ids.shape) < blank) & (ids > SEP)] = UNK
            z = net(ids, mask)
            if heads:
                loss = heads_loss(z, torch.tensor(y[batch]), head_weight)
            else:
                loss = injection_loss(z[:, 0], torch.tensor(y[batch]), torch.tensor(weight[batch]), twins_of(batch, pair, y),
                                      None if soft is None else torch.tensor(soft[batch]))
            optimiser.zero_grad(set_to_none=True)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(net.parameters(), 1.0)
            optimiser.step()
            if smooth is not None:
                rate_now = min(average, (1 + step) / (10 + step))
                for n, v in net.state_dict().items():
                    smooth[n].lerp_(v, 1 - rate_now)
            step += 1
            seen, drawn = seen + ids.numel(), drawn + len(batch)
            running += float(loss.detach())
            if step % 200 == 0:
                say(f"{tag} epoch {number + 1}/{len(epochs)} step {step}/{total} loss {running / 200:.4f} "
                    f"{seen / (time.monotonic() - began):.0f} tokens/s {time.monotonic() - began:.0f} s")
                running = 0.0
    if smooth is not None:
        net.load_state_dict(smooth)
    net.eval()
    return net
