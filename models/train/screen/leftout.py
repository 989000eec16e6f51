"""Sources and authors left out: short fits of A and B and n-grams on the rest,
measured on what they have not seen. Leaving thirty sources out one at a time
would be thirty fits of each; here they leave in six groups, so that every
figure is by a fit that saw neither that source nor its companions. Results stay
in the work folder as JSON, one entry a source, seed and scorer."""

import json

import numpy as np
import torch

import baseline
import data
import evaluate as ev
import fit
import nets
import rowset

# What one author wrote, by kind of text: families of composed rows.
KINDS = {"harmless, trigger words": ("benign_trigger", "benign_query", "operator_benign", "agent_benign", "overdefence"),
         "harmless, many languages": ("benign_multilingual",), "harmless, technical": ("benign_technical",),
         "harmless role-play and frames": ("benign_roleplay", "frame_hard_benign", "f_harmless", "benign_frame_goal"),
         "semantic jailbreak": ("f_harmful",),
         "direct attacks": ("d_attack_direct", "d_attack_leak", "d_attack_multilingual"),
         "attacks in carriers": ("c_attack_indirect", "c_attack_direct", "c_attack_leak", "c_attack_multilingual"),
         "clean twins": ("c_clean_twin", "d_two_questions"), "near misses": ("d_near_miss",)}
# Harmless sources, left out to see whether their texts are taken for attacks.
CALM = {"GPTeacher role-play": ("GPTeacher:Roleplay",), "GPTeacher code and tldr": ("GPTeacher:Codegen", "tldr-pages"),
        "translated documents": ("IoT-For-Beginners", "tensorflow/docs-l10n"), "Rust and Python documents": ("rust-lang", "python/peps")}


def fold_of(row):
    for name, marks in CALM.items():
        if any(m in row["source"] for m in marks):
            return name
    return data.group_of(row)


def thin(rows, count, rng):
    return rows if len(rows) <= count else [rows[i] for i in sorted(rng.choice(len(rows), count, replace=False))]


def fit_a(run, rows, tokenizer, seed, count):
    """A's short fit: two epochs on a sample of `count` rows."""
    _, pair = rowset.arrays(rows)
    drawn = rowset.Sampler(rows, pair, run.few(count), 1, 0.6)(0, np.random.default_rng(seed))
    rows = [rows[n] for n in drawn]
    y, pair = rowset.arrays(rows)
    pieces = fit.Pieces(rows, tokenizer, 256, 64, False)
    torch.manual_seed(seed)
    net = fit.train(nets.Cnn(), pieces, y, pair=pair, plan=lambda e, rng: rng.permutation(len(rows)) if e < 2 else None, rate=2e-3,
                    head_rate=2e-3, size=64, seed=seed, say=lambda line: None, average=0.99)
    return lambda texts: fit.score(net, fit.Pieces(texts, tokenizer, 256, 64, False))[:, 0]


def fit_b(run, rows, seed, count):
    """B's short fit: one epoch on a sample of `count` rows, from the taught layers."""
    import train
    net, tokenizer = train.b_from_base(run)
    y, pair = rowset.arrays(rows)
    pieces = fit.Pieces(rows, tokenizer, train.WINDOW, train.OVERLAP, True)
    torch.manual_seed(seed)
    fit.train(net, pieces, y, pair=pair, plan=rowset.Sampler(rows, pair, run.few(count), 1, 0.55), rate=8e-5, head_rate=1e-3, size=32, seed=seed,
              say=lambda line: None, average=0.99, blank=0.05)
    return lambda texts: fit.score(net, fit.Pieces(texts, tokenizer, train.WINDOW, train.OVERLAP, True))[:, 0]


def figures(test, test_scores, pool_scores):
    """Everything that is reported of one fold and one scorer. The threshold is the
    one with 1 % false positives on dev_ood's negatives."""
    y = np.array([r["label"] for r in test])
    limit = ev.threshold_at(pool_scores, 0.01)
    merged_y = np.concatenate([y, np.zeros(len(pool_scores))])
    merged = np.concatenate([test_scores, pool_scores])
    out = {"positive": int(y.sum()), "negative": int((y == 0).sum()), "auc": ev.auc(merged_y, merged), "recall": ev.recall_at(merged_y, merged, 0.01),
           "benign": float(np.mean(test_scores[y == 0] <= limit)) if (y == 0).any() else float("nan")}
    for kind, families in KINDS.items():
        pick = np.array([r["family"] in families for r in test])
        if pick.sum() >= 20:
            hit = test_scores[pick] > limit
            out[kind] = float(np.mean(hit if y[pick][0] == 1 else ~hit))
    return out


# What leaves together. The last group is everything that the data folder's own grammar made.
FOLDS = [["author a1", "author b6", "author b8", "PurpleLlama", "GPTeacher role-play"],
         ["author b1", "author a2", "jailbreak lists", "translated documents"],
         ["author b3", "author a4", "author b7", "spikee", "Rust and Python documents"],
         ["author b2", "author b4", "author a6", "BIPIA", "GPTeacher code and tldr"],
         ["author b5", "author a3", "round 1 synthetic"],
         ["own grammar in carriers", "own grammar plain", "harm frames", "questions turned"]]


def measure(run, seeds=(1, 2, 3), b_seeds=1, size=20000, size_b=8000):
    """Seeds of A first, then one of n-grams and `b_seeds` of B, as those cost most."""
    path = run.work / "leftout.json"
    done = json.loads(path.read_text()) if path.exists() else {}
    tokenizer = run.vocabularies()[0]
    everything = run.rows(7) + run.dev
    pool = [r for r in run.ood if r["label"] == 0]
    plan = [("A", seed) for seed in seeds[:1]] + [("n-grams", seeds[0])] + [("B", seed) for seed in seeds[:b_seeds]] + [("A", seed) for seed in seeds[1:]]
    for scorer, seed in plan:
        for out in FOLDS:
            keys = {name: f"{name}|{seed}|{scorer}" for name in out}
            if all(key in done for key in keys.values()):
                continue
            authors = {name.removeprefix("author ") for name in out if name.startswith("author ")}
            rest = rowset.training_rows(run.labelled, run.harm, run.seed + 7, without=authors, scale=0.05 if run.quick else 1.0,
                                        keep=lambda row: fold_of(row) not in out)
            rng = np.random.default_rng(seed)
            if scorer == "A":
                score = fit_a(run, rest, tokenizer, seed, size)
            elif scorer == "B":
                score = fit_b(run, rest, seed, size_b)
            else:
                score = baseline.Ngrams().fit(thin(rest, run.few(size), rng)).score
            rng = np.random.default_rng(5)   # the same texts for every scorer
            calm = thin(pool, 900, rng)
            calm_scores = score(calm)
            for name, key in keys.items():
                test = thin([r for r in everything if fold_of(r) == name], 600, rng)
                if test:
                    done[key] = figures(test, score(test), calm_scores)
                    run.say(f"without {name}, seed {seed}, {scorer}: AUC {done[key]['auc']:.3f} recall at 1 % {done[key]['recall']:.3f} "
                            f"benign {done[key]['benign']:.3f}")
            path.write_text(json.dumps(done, indent=1))
    return done


SCORERS = ("A", "B", "n-grams")


def tables(done):
    """Markdown: per source, and per kind of text for authors."""
    names = sorted({k.split("|")[0] for k in done})

    def spread(name, scorer, field):
        values = [v[field] for k, v in done.items() if k.startswith(name + "|") and k.endswith("|" + scorer) and field in v and not np.isnan(v[field])]
        if not values:
            return "-"
        text = f"{np.mean(values):.3f}" if field == "auc" else f"{100 * np.mean(values):.1f}"
        wide = f"{np.ptp(values):.3f}" if field == "auc" else f"{100 * np.ptp(values):.1f}"
        return f"{text} ±{wide}/{len(values)}" if len(values) > 1 else text
    rows, kinds = [], []
    for name in names:
        some = next(v for k, v in done.items() if k.startswith(name + "|"))
        rows.append([name, some["positive"], some["negative"]] + [spread(name, s, f) for f in ("auc", "recall", "benign") for s in SCORERS])
        for kind in KINDS:
            if name.startswith("author") and kind in some:
                kinds.append([name, kind] + [spread(name, s, kind) for s in SCORERS])
    head = ["left out", "positive", "negative"] + [f"{what} {s}" for what in ("AUC", "recall at 1 %", "benign right") for s in SCORERS]
    return ev.table(head, rows), ev.table(["left out", "texts"] + [f"right {s}, %" for s in SCORERS], kinds)
