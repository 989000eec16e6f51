"""Trains, measures and writes the screening models.

    python models/train/screen/train.py --data FOLDER --out models --stage all

Finished fits stay in the folder `--work`, so that a stopped run goes on after
its last finished step; delete a file there to have it made again.
"""

import argparse
import json
import tempfile
import time
from pathlib import Path

import numpy as np
import torch

import answers
import base
import compose
import data
import fit
import fold
import nets
import overdefence
import rowset

WINDOW_A, OVERLAP_A, WINDOW, OVERLAP = 256, 64, 128, 32
HEADS = ["toxic", "unsafe", "refusal", "lowq"]
VOCAB_A, VOCAB_B = 16384, 8128


class Run:
    """Paths, rows and what is already in the work folder."""

    def __init__(self, given):
        self.data, self.out, self.work, self.seed, self.quick = given.data, given.out, given.work, given.seed, given.quick
        self.taught = given.taught
        self.work.mkdir(parents=True, exist_ok=True)
        self.began = time.monotonic()
        self.dev = data.injection(self.data, "dev")
        self.ood = data.injection(self.data, "dev_ood")
        self.labelled = data.injection(self.data, "train")
        harm = data.input_harm(self.data, "train")
        self.harm = compose.harm_goals(harm, [r for r in self.ood if r["family"] in ("frame_ood", "harmful_plain")])
        if self.quick:
            self.labelled, self.harm = self.labelled[::25], self.harm[::25]
            self.dev, self.ood = self.dev[::20], self.ood[::20]
        self.say(f"{len(self.labelled)} labelled rows; {len(harm) - len(self.harm)} of {len(harm)} requests left out as they occur in dev_ood; "
                 f"{len(compose.seeds())} seeds")

    def say(self, line):
        print(f"[{time.monotonic() - self.began:6.0f} s] {line}", flush=True)

    def few(self, count):
        return max(150, count // 200) if self.quick else count

    def rows(self, seed_shift=0):
        return rowset.training_rows(self.labelled, self.harm, self.seed + seed_shift, scale=0.05 if self.quick else 1.0)

    def vocabularies(self):
        a, b, old = self.work / "a.json", self.work / "b.json", self.work / "b_old.json"
        if not (a.exists() and b.exists() and old.exists()):
            own = [r["text"] for r in compose.seeds()]
            outputs = data.output_safety(self.data, "train")[::4]
            fold.train_wordpiece(data.language_balanced(self.labelled, 250, 1) + own + [r["text"] for r in outputs], VOCAB_A).save(str(a))
            tokenizer, ids = fold.prune_wordpiece([r["text"] for r in self.labelled[::2]] + own * 3, VOCAB_B)
            tokenizer.save(str(b))
            old.write_text(json.dumps(ids))
            self.say("vocabularies made")
        load = fold.Tokenizer.from_file
        return load(str(a)), load(str(b)), json.loads(old.read_text())

    def kept(self, name, net, make):
        """`make(net)` trains; the weights are kept under `name`."""
        path = self.work / f"{name}.pt"
        if path.exists():
            net.load_state_dict(torch.load(path))
            self.say(f"{name}: taken from the work folder")
        else:
            make(net)
            torch.save(net.state_dict(), path)
            self.say(f"{name}: trained")
        return net.eval()


def b_from_base(run):
    """B before fine-tuning: the taught layers, the kept pieces' embeddings as they are."""
    _, tokenizer, old = run.vocabularies()
    path = run.work / "base.pt"
    if not path.exists():
        texts = [r["text"] for r in run.labelled]
        torch.save(base.teach(texts, run.few(60000), run.seed, run.say), path)
        run.say("base: taught")
    net = nets.from_minilm(old)
    net.load_state_dict(torch.load(path), strict=False)
    for part in (net.embeddings.word_embeddings, net.embeddings.position_embeddings):
        part.weight.requires_grad_(False)
    return net, tokenizer


def fit_b(run, epochs=3, count=48000, rate=8e-5):
    net, tokenizer = b_from_base(run)

    def make(net):
        rows = run.rows()
        y, pair = rowset.arrays(rows)
        pieces = fit.Pieces(rows, tokenizer, WINDOW, OVERLAP, True)
        run.say(f"B: {len(rows)} rows, mean window {pieces.lengths().mean() + 2:.0f} pieces")
        fit.train(net, pieces, y, pair=pair, plan=rowset.Sampler(rows, pair, run.few(count), epochs, 0.55), rate=rate, head_rate=1e-3,
                  size=32, seed=run.seed, say=run.say, tag="B", average=0.998, blank=0.05)
    torch.manual_seed(run.seed)
    return run.kept("b", net, make), tokenizer


def fit_a_first(run, epochs=1):
    """A short fit: finds the words to be calm about."""
    tokenizer = run.vocabularies()[0]

    def make(net):
        rows = run.rows()
        y, pair = rowset.arrays(rows)
        pieces = fit.Pieces(rows, tokenizer, WINDOW_A, OVERLAP_A, False)
        fit.train(net, pieces, y, pair=pair, plan=rowset.Sampler(rows, pair, run.few(40000), epochs, 0.7), rate=2e-3, head_rate=2e-3,
                  size=64, seed=run.seed + 1, say=run.say, tag="A first")
    torch.manual_seed(run.seed)
    return run.kept("a_first", nets.Cnn(VOCAB_A), make), tokenizer


def teacher_chunks(run, net_b, tokenizer_b, rows, count, seed):
    """Pieces of text of about 400 characters with B's logit: rows for A to learn
    from beside the true labels. Payloads are inside their piece."""
    rng = np.random.default_rng(seed)
    chosen = rng.choice(len(rows), min(count, len(rows)), replace=False)
    chunks = []
    for n in chosen:
        row, text = rows[n], rows[n]["text"]
        if len(text) > 420:
            span = row.get("payload_span") or None
            start = int(rng.integers(0, len(text) - 400))
            if span:
                low, high = max(0, span[1] - 400), min(span[0], len(text) - 400)
                start = int(rng.integers(low, high + 1)) if low <= high else max(0, span[0] - 10)
            elif row["label"]:
                start = 0
            text = text[start:start + 400]
        chunks.append(dict(row, text=text, payload_span=None, pair=None))
    pieces = fit.Pieces(chunks, tokenizer_b, WINDOW, OVERLAP, True)
    logits = fit.score(net_b, pieces)[:, 0]
    run.say(f"teacher: {len(chunks)} pieces scored")
    return chunks, logits


def fit_a(run):
    """Legs, each going on from the one before: all rows; then with calm texts and
    mined windows; then drawn anew at half the rate, with B as a teacher."""
    first, _ = fit_a_first(run)
    middle, _ = fit_a_leg(run, "a", first, first, 1, 2e-3, 4, 80000)
    return fit_a_leg(run, "a_last", middle, middle, 2, 1e-3, 1, 110000, run.taught)


def fit_a_leg(run, name, before, shy, shift, rate, epochs, count, taught=0):
    tokenizer = run.vocabularies()[0]

    def make(net):
        net.load_state_dict(before.state_dict())
        rows = run.rows(shift)
        queries = [r["text"] for r in run.labelled if r["family"] == "r1_benign_query" and len(r["text"]) < 200]
        words = overdefence.shy_words(shy, tokenizer)
        run.say("most suspicious words: " + " ".join(words[:40]))
        rows += overdefence.texts(words, queries, run.few(2500), run.seed)
        soft = np.full(len(rows), np.nan, np.float32)
        if taught:
            net_b, tokenizer_b = fit_b(run)
            chunks, logits = teacher_chunks(run, net_b, tokenizer_b, rows, run.few(taught), run.seed)
            rows, soft = rows + chunks, np.concatenate([soft, logits])
        y, pair = rowset.arrays(rows)
        pieces = fit.Pieces(rows, tokenizer, WINDOW_A, OVERLAP_A, False)
        run.say(f"A: {len(rows)} rows, mean window {pieces.lengths().mean():.0f} pieces")
        fit.train(net, pieces, y, pair=pair, soft=soft, plan=rowset.Sampler(rows, pair, run.few(count), epochs, 0.7), rate=rate,
                  head_rate=rate, size=64, seed=run.seed + shift - 1, mine_at=(0,), say=run.say, tag="A", average=0.998)
    torch.manual_seed(run.seed)
    return run.kept(name, nets.Cnn(VOCAB_A), make), tokenizer


def head_labels(rows):
    return np.array([[r["labels"].get(h, np.nan) for h in HEADS] for r in rows], np.float32)


def output_rows(run):
    rows = data.output_safety(run.data, "train")
    calm = [r["text"] for r in rows if r["kind"] in ("answer", "technical", "code_answer")]
    goals = [[r["text"] for r in run.harm if r["label"] == label] for label in (1, 0)]
    rows = rows[::25] if run.quick else rows
    return rows + answers.rows(*goals, calm, run.seed, 0.05 if run.quick else 1.0)


def fit_output(run, name="output", epochs=4, rows=None):
    tokenizer = run.vocabularies()[0]

    def make(net):
        own = output_rows(run) if rows is None else rows
        pieces = fit.Pieces(own, tokenizer, WINDOW_A, OVERLAP_A, False)
        run.say(f"{name}: {len(own)} rows")
        fit.train(net, pieces, head_labels(own), plan=lambda e, rng: rng.permutation(len(own)) if e < epochs else None, rate=2e-3,
                  head_rate=2e-3, size=64, seed=run.seed, say=run.say, tag=name, average=0.998)
    torch.manual_seed(run.seed)
    return run.kept(name, nets.Cnn(VOCAB_A, labels=len(HEADS)), make), tokenizer


def main():
    words = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    words.add_argument("--data", type=Path, required=True, help="folder with injection/, output-safety/, input-harm/")
    words.add_argument("--out", type=Path, default=Path(__file__).resolve().parents[2])
    words.add_argument("--work", type=Path, default=Path(tempfile.gettempdir()) / "berthd-screen")
    words.add_argument("--stage", choices=["all", "a", "b", "output", "left-out", "ship", "report"], default="all")
    words.add_argument("--seed", type=int, default=1)
    words.add_argument("--threads", type=int, default=2)
    words.add_argument("--taught", type=int, default=25000, help="pieces of text that B teaches A in A's last leg; 0 for none")
    words.add_argument("--quick", action="store_true", help="tiny fits, to see that everything runs")
    given = words.parse_args()
    torch.set_num_threads(given.threads)
    if given.stage == "report":   # the same figures, written anew
        import ship
        return ship.report(given.work, given.out, given.seed)
    run = Run(given)
    run.vocabularies()
    if given.stage in ("all", "b"):
        fit_b(run)
    if given.stage in ("all", "a"):
        fit_a(run)
    if given.stage in ("all", "output"):
        fit_output(run)
    if given.stage in ("all", "left-out"):
        import leftout
        leftout.measure(run)
    if given.stage in ("all", "ship"):
        import ship
        ship.write(run)


if __name__ == "__main__":
    main()
