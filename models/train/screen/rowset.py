"""Rows ready for training: labelled and composed rows with their twin pairs, and
the sampler that draws an epoch from them."""

from collections import Counter

import numpy as np

import compose
import data


def link_twins(rows):
    """Marks neighbours that are an attacked document and its clean twin."""
    for a, b in zip(rows, rows[1:]):
        if a.get("pair") is None and b.get("pair") is None and {a["label"], b["label"]} == {0, 1} and a["carrier"] == b["carrier"]:
            bad, good = (a, b) if a["label"] else (b, a)
            if good["family"] == "clean_twin" and bad["source"].startswith(good["source"]):
                a["pair"] = b["pair"] = "t" + bad["id"]
    return rows


def training_rows(labelled, harm, seed, without=(), scale=1.0, keep=lambda row: True):
    rows = [dict(r) for r in labelled if keep(r)]
    link_twins(rows)
    return rows + [r for r in compose.compose(rows, harm, seed, without, scale) if keep(r)]


def arrays(rows):
    """(labels, pair numbers) as the trainer wants them."""
    numbers = {}
    pair = np.array([-1 if r.get("pair") is None else numbers.setdefault(r["pair"], len(numbers)) for r in rows])
    return np.array([r["label"] for r in rows], np.float32), pair


# How much a family counts beside its size: what the models must learn most, and
# what is mostly a matter for the decoder or is of weak quality.
WEIGHT = {"encoded": 0.4, "r1_obfuscated": 0.4, "adv_suffix": 0.7, "bare_harmful": 0.7, "bare_harmless": 0.7, "f_harmful": 1.6, "f_harmless": 1.6,
          "benign_roleplay": 1.5, "r1_benign_roleplay": 1.3, "benign_trigger": 1.5, "r1_jailbreak_template": 2.0, "jailbreak_list": 2.0,
          "deepinception": 1.5, "benign_frame": 1.3, "operator_prompt": 1.2, "d_near_miss": 1.3, "frame_hard_benign": 1.5, "d_attack_direct": 1.5,
          "d_attack_leak": 1.3, "d_attack_multilingual": 1.5, "d_attack_indirect": 1.2, "c_attack_indirect": 1.8, "c_attack_multilingual": 1.5,
          "c_attack_direct": 1.3, "benign_technical": 1.2, "benign_multilingual": 1.2}


class Sampler:
    """Epochs of `count` rows without repeats; a family's share grows with its size
    to the power `power`. Twins come along."""

    def __init__(self, rows, pair, count, epochs, power):
        sizes = Counter(r["family"] for r in rows)
        weight = np.array([sizes[r["family"]] ** (power - 1.0) * WEIGHT.get(r["family"], 1.0) for r in rows])
        self.share, self.count, self.epochs = weight / weight.sum(), min(count, len(rows)), epochs
        self.other = np.full(len(rows), -1)
        first = {}
        for n, p in enumerate(pair):
            if p < 0:
                continue
            if p in first:
                self.other[n], self.other[first[p]] = first[p], n
            first[p] = n

    def __call__(self, epoch, rng):
        if epoch >= self.epochs:
            return None
        need = self.count
        # Gumbel keys draw without repeats in proportion to the shares.
        keys = np.log(self.share) + rng.gumbel(size=len(self.share))
        chosen, out = set(), []
        for n in np.argsort(-keys):
            if len(out) >= need:
                break
            for m in (n, self.other[n]):
                if m >= 0 and m not in chosen:
                    chosen.add(m)
                    out.append(int(m))
        return np.array(out)


def group_names(rows):
    return np.array([data.group_of(r) for r in rows])
