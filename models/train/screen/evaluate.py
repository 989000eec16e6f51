"""Figures: areas, recall at a false-positive rate, calibration, thresholds, tables."""

import numpy as np
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score


def auc(y, s):
    y = np.asarray(y)
    return float("nan") if len(set(y.tolist())) < 2 else float(roc_auc_score(y, s))


def threshold_at(benign, rate):
    """The smallest threshold with at most `rate` of `benign` above it (score > t)."""
    ordered = np.sort(np.asarray(benign))[::-1]
    allowed = int(np.floor(rate * len(ordered)))
    return float(ordered[min(allowed, len(ordered) - 1)])


def recall_at(y, s, rate):
    y, s = np.asarray(y), np.asarray(s)
    if not (y == 1).any() or not (y == 0).any():
        return float("nan")
    return float(np.mean(s[y == 1] > threshold_at(s[y == 0], rate)))


def platt(y, z):
    """(temperature, bias) so that sigmoid(z / temperature + bias) fits y with both
    labels weighing the same: traffic's share of attacks is not known."""
    fit = LogisticRegression(C=1e6, class_weight="balanced").fit(np.asarray(z)[:, None], np.asarray(y))
    slope = max(float(fit.coef_[0, 0]), 1e-3)
    return 1.0 / slope, float(fit.intercept_[0])


def probability(z, temperature, bias):
    return 1.0 / (1.0 + np.exp(-(np.asarray(z, np.float64) / temperature + bias)))


def logit(p):
    p = np.clip(p, 1e-9, 1 - 1e-9)
    return np.log(p / (1 - p))


def combine(pa, pb, low, high, weight):
    """A outside [low, high]; inside, the mean of both calibrated logits with
    `weight` on B."""
    mixed = 1 / (1 + np.exp(-((1 - weight) * logit(pa) + weight * logit(pb))))
    return np.where((pa >= low) & (pa <= high), mixed, pa)


def pct(x):
    return "-" if x is None or np.isnan(x) else f"{100 * x:.1f}"


def fixed(x):
    return "-" if x is None or np.isnan(x) else f"{x:.3f}"


def table(head, rows):
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    return "\n".join(lines + ["| " + " | ".join(str(c) for c in row) + " |" for row in rows])


def pooled(y, scores, rates=(0.01, 0.05)):
    """Rows of (name, AUC, recall at each rate)."""
    return [[name, fixed(auc(y, s))] + [pct(recall_at(y, s, r)) for r in rates] for name, s in scores.items()]


def by_family(rows, scores, thresholds, label, least=10):
    """Share above (positives) or not above (negatives) each score's threshold."""
    families = sorted({r["family"] for r in rows if r["label"] == label})
    out = []
    for family in families:
        pick = np.array([i for i, r in enumerate(rows) if r["family"] == family and r["label"] == label])
        if len(pick) < least:
            continue
        shares = [np.mean(s[pick] > thresholds[n]) for n, s in scores.items()]
        out.append([family, len(pick)] + [pct(x if label else 1 - x) for x in shares])
    return out
