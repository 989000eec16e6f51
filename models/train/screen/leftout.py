"""Leave one source, or one author, out: short CNN fits and n-grams on the rest,
measured on the source they have not seen. Results stay in the work folder as
JSON, one entry a fold and seed."""

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
         "clean twins": ("c_clean_twin", "d_two_questions")}
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


def one(run, tokenizer, name, rows, test, pool, seed, count):
    """(A's scores, scores of the threshold pool) after a short fit without `name`."""
    _, pair = rowset.arrays(rows)
    drawn = rowset.Sampler(rows, pair, run.few(count), 1, 0.6)(0, np.random.default_rng(seed))
    rows = [rows[n] for n in drawn]
    y, pair = rowset.arrays(rows)
    pieces = fit.Pieces(rows, tokenizer, 256, 64, False)
    torch.manual_seed(seed)
    net = fit.train(nets.Cnn(), pieces, y, pair=pair, plan=lambda e, rng: rng.permutation(len(rows)) if e < 2 else None, rate=2e-3,
                    head_rate=2e-3, size=64, seed=seed, say=lambda line: None, average=0.99)
    return [fit.score(net, fit.Pieces(part, tokenizer, 256, 64, False))[:, 0] for part in (test, pool)]


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


# Most telling first, as a run may be stopped: what is done stays.
ORDER = ["author a1", "author a2", "author a3", "author a4", "jailbreak lists", "spikee", "PurpleLlama", "BIPIA", "harm frames", "GPTeacher role-play",
         "own grammar in carriers", "own grammar plain", "round 1 synthetic", "Rust and Python documents", "translated documents",
         "GPTeacher code and tldr", "questions turned", "author a6"]


def measure(run, count=10000, seeds=(1, 2, 3)):
    path = run.work / "leftout.json"
    done = json.loads(path.read_text()) if path.exists() else {}
    tokenizer = run.vocabularies()[0]
    everything = run.rows(7)
    pool = [r for r in run.ood if r["label"] == 0]
    names = sorted({fold_of(r) for r in everything if r["label"] == 1 or fold_of(r) in CALM or r.get("author")} - {"benign sources"},
                   key=lambda n: (ORDER.index(n) if n in ORDER else len(ORDER), n))
    run.say(f"left out in turn: {', '.join(names)}")
    for seed in seeds:
        for name in names:
            key = f"{name}|{seed}"
            rng = np.random.default_rng(5)
            if name.startswith("author "):
                author = name.removeprefix("author ")
                rest = None
                test = thin([r for r in everything if r.get("author") == author], 1500, rng)
            else:
                test = thin([r for r in everything + run.dev if fold_of(r) == name], 1500, rng)
            for scorer in ("A", "n-grams"):
                if f"{key}|{scorer}" in done or (scorer == "n-grams" and seed != seeds[0]):
                    continue
                if name.startswith("author "):
                    rest = rowset.training_rows(run.labelled, run.harm, run.seed + 7, without=author) if rest is None else rest
                else:
                    rest = [r for r in everything if fold_of(r) != name]
                if scorer == "A":
                    scores = one(run, tokenizer, name, rest, test, pool, seed, count)
                else:
                    some = thin(rest, run.few(20000), rng)
                    model = baseline.Ngrams().fit(some)
                    scores = [model.score(test), model.score(pool)]
                done[f"{key}|{scorer}"] = figures(test, *scores)
                path.write_text(json.dumps(done, indent=1))
                run.say(f"without {name}, seed {seed}, {scorer}: AUC {done[f'{key}|{scorer}']['auc']:.3f} "
                        f"recall at 1 % {done[f'{key}|{scorer}']['recall']:.3f} benign {done[f'{key}|{scorer}']['benign']:.3f}")
    return done


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
        rows.append([name, some["positive"], some["negative"]] + [spread(name, s, f) for f in ("auc", "recall", "benign") for s in ("A", "n-grams")])
        for kind in KINDS:
            if name.startswith("author") and kind in some:
                kinds.append([name, kind, spread(name, "A", kind), spread(name, "n-grams", kind)])
    head = ["left out", "positive", "negative", "AUC A", "AUC n-grams", "recall at 1 % A", "recall at 1 % n-grams", "benign right A", "benign right n-grams"]
    return ev.table(head, rows), ev.table(["left out", "texts", "right A, %", "right n-grams, %"], kinds)
