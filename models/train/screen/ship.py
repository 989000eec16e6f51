"""From finished fits to shipped folders: calibration, thresholds, tables, files."""

import json
from pathlib import Path

import numpy as np
import torch

import baseline
import cards
import data
import evaluate as ev
import export
import fit
import leftout
import train as steps

VERSION = "1"
DATA_REVISION = "2026-11-22"
GREY_SHARE = 0.15   # of harmless held-out texts that A passes on to B
B_WEIGHT = 0.6


def toml(path, lines):
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


def head_lines(name, window, overlap, seed):
    return [f"# Written by models/train/screen/ship.py. Probabilities are after calibration: sigmoid(logit / temperature + bias).",
            f'model = "{name}"', f'version = "{VERSION}"', f'data_revision = "{DATA_REVISION}"', f"training_seed = {seed}",
            f"window_tokens = {window}", f"window_overlap = {overlap}"]


def cut_points(p_ood, p_dev, y_ood, y_dev):
    """Thresholds at 1 % (dev_ood alone) and 0.1 % (dev_ood and dev together: one
    file has too few harmless rows for that), never the second below the first."""
    calm = p_ood[y_ood == 0]
    one = ev.threshold_at(calm, 0.01)
    both = np.concatenate([calm, p_dev[y_dev == 0]])
    return {"fpr_1_percent": one, "fpr_01_percent": max(one, ev.threshold_at(both, 0.001))}


def unseen():
    """Texts of authors whose every row was kept for measuring."""
    rows = []
    for path in sorted(Path(__file__).with_name("unseen").glob("*.jsonl")):
        rows += [data.folded(json.loads(line)) for line in path.read_text(encoding="utf-8").split("\n") if line.strip()]
    return rows


def held_out_scores(run, parts, net_a, tok_a, net_b, tok_b):
    """Largest logits of the held-out rows by both stages, kept in the work folder."""
    path = run.work / "scores.npz"
    if path.exists():
        kept = np.load(path)
        return {(m, part): kept[f"{m}_{part}"] for m in "AB" for part in parts}
    z = {}
    for part, rows in parts.items():
        z["A", part] = fit.score(net_a, fit.Pieces(rows, tok_a, steps.WINDOW_A, steps.OVERLAP_A, False))[:, 0]
        z["B", part] = fit.score(net_b, fit.Pieces(rows, tok_b, steps.WINDOW, steps.OVERLAP, True))[:, 0]
        run.say(f"{part} scored")
    np.savez(path, **{f"{m}_{part}": v for (m, part), v in z.items()})
    return z


def injection(run):
    run.dev = run.dev[::2]   # every other row: B takes minutes for them all
    net_a, tok_a = steps.fit_a(run)
    net_b, tok_b = steps.fit_b(run)
    net_b.load_state_dict({n: v.half().float() for n, v in net_b.state_dict().items()})
    parts = {"ood": run.ood, "dev": run.dev, "unseen": unseen()}
    y = {part: np.array([r["label"] for r in rows]) for part, rows in parts.items()}
    z = held_out_scores(run, parts, net_a, tok_a, net_b, tok_b)
    calibration = {m: ev.platt(y["ood"], z[m, "ood"]) for m in "AB"}
    p = {(m, part): ev.probability(z[m, part], *calibration[m]) for m in "AB" for part in parts}
    low, high = ev.threshold_at(p["A", "ood"][y["ood"] == 0], GREY_SHARE), 1.0
    for part in parts:
        p["A+B", part] = ev.combine(p["A", part], p["B", part], low, high, B_WEIGHT)
        p["A+B strict", part] = ev.combine(p["A", part], p["B", part], 0.0, 1.0, B_WEIGHT)
    limits = {m: cut_points(p[m, "ood"], p[m, "dev"], y["ood"], y["dev"]) for m in ("A", "B", "A+B", "A+B strict")}
    grey = {"low": low, "high": high, "dev": float(np.mean(p["A", "dev"][y["dev"] == 0] >= low)),
            "ood": float(np.mean(p["A", "ood"][y["ood"] == 0] >= low))}
    model = baseline.Ngrams().fit(run.rows()[::3])   # a third is enough for a yardstick
    for part, rows in parts.items():
        p["n-grams", part] = model.score(rows)
    limits["n-grams"] = cut_points(p["n-grams", "ood"], p["n-grams", "dev"], y["ood"], y["dev"])

    text = []
    names = ["A", "B", "A+B", "A+B strict", "n-grams"]
    titles = {"ood": "dev_ood", "unseen": "texts of authors kept for measuring", "dev": "dev, every other row"}
    for part, title in titles.items():
        rows = parts[part]
        scores = {n: p[n, part] for n in names}
        text += [f"### {title}: pooled", "", ev.table(["scorer", "AUC", "recall at 1 % FPR", "recall at 5 % FPR"], ev.pooled(y[part], scores)), ""]
        one = {n: limits[n]["fpr_1_percent"] for n in names}
        text += [f"### {title}: recall per family at the shipped 1 % threshold", "", ev.table(["family", "rows", *names], ev.by_family(rows, scores, one, 1)), ""]
        text += [f"### {title}: harmless texts left alone, per family, at the shipped 1 % threshold", "",
                 ev.table(["family", "rows", *names], ev.by_family(rows, scores, one, 0)), ""]
    pooled = {part: {n: (ev.auc(y[part], p[n, part]), ev.recall_at(y[part], p[n, part], .01), ev.recall_at(y[part], p[n, part], .05)) for n in names}
              for part in parts}

    folder = run.out / "injection-a"
    t, b = calibration["A"]
    export.write_folder(folder, net_a, tok_a, ["injection"], steps.WINDOW_A, steps.OVERLAP_A, [t], [b])
    toml(folder / "thresholds.toml", head_lines("injection-a", steps.WINDOW_A, steps.OVERLAP_A, run.seed) + [
        "", "[injection]", *(f"{k} = {v:.6f}" for k, v in limits["A"].items()), "",
        "# A score in [grey_low, grey_high] goes to stage B.", "[grey]", f"grey_low = {low:.6f}", f"grey_high = {high:.6f}",
        f"harmless_share_dev_ood = {grey['ood']:.4f}", f"harmless_share_dev = {grey['dev']:.4f}", "",
        "# Outside the band the combined score is A's probability. Inside it is",
        "# sigmoid((1 - b_weight) * logit(pA) + b_weight * logit(pB)); logit(p) is the calibrated logit.",
        "[combined]", 'formula = "mean_logit_in_band"', f"b_weight = {B_WEIGHT}",
        *(f"combined_{k} = {v:.6f}" for k, v in limits["A+B"].items()), "",
        "# Where B runs on every text (a tenant asks for strict), the same formula without a band.",
        "[strict]", *(f"strict_{k} = {v:.6f}" for k, v in limits["A+B strict"].items())])
    folder = run.out / "injection-b"
    t, b = calibration["B"]
    export.write_folder(folder, net_b, tok_b, ["injection"], steps.WINDOW, steps.OVERLAP, [t], [b])
    toml(folder / "thresholds.toml", head_lines("injection-b", steps.WINDOW, steps.OVERLAP, run.seed) + [
        "", "[injection]", *(f"{k} = {v:.6f}" for k, v in limits["B"].items())])
    quantised(run, net_b, tok_b, text)
    return text, pooled, grey


def quantised(run, net_b, tok_b, text):
    """What int8 costs: B's shipped ONNX against float32 on a slice of dev_ood."""
    some = run.ood[::4]
    pieces = fit.Pieces(some, tok_b, steps.WINDOW, steps.OVERLAP, True)
    where, cuts, _ = pieces.all_windows(range(len(some)))
    sess = export.session(run.out / "injection-b" / "model.int8.onnx")
    small = np.array([export.run(sess, [c])[0, 0] for c in cuts])
    whole = fit.forward_many(net_b, cuts)[:, 0]
    y = np.array([r["label"] for r in some])
    best = {}
    for name, values in (("float32", whole), ("int8", small)):
        best[name] = np.full(len(some), -np.inf)
        np.maximum.at(best[name], where, values)
    gap = np.abs(small - whole)
    text += ["### B in int8 against float32, every fourth row of dev_ood", "",
             ev.table(["scorer", "AUC", "recall at 1 % FPR", "recall at 5 % FPR"], ev.pooled(y, best)), "",
             f"Logit difference per window: mean {gap.mean():.3f}, 99th percentile {np.quantile(gap, .99):.3f}, worst {gap.max():.3f}.", ""]


REFUSAL_SOURCES = {"GPTFuzz responses": lambda r: "GPTFuzz" in r["source"],
                   "templates in 17 languages": lambda r: r["kind"].startswith("refusal_"), "author a5": lambda r: r["source"] == "seeds a5", "author c1": lambda r: r["source"] == "seeds c1"}


def outputs(run):
    net, tokenizer = steps.fit_output(run)
    rows = data.output_safety(run.data, "dev")
    y = steps.head_labels(rows)
    z = fit.score(net, fit.Pieces(rows, tokenizer, steps.WINDOW_A, steps.OVERLAP_A, False))
    calibration, limits, lines, figures = [], [], [], {}
    for k, head in enumerate(steps.HEADS):
        known = ~np.isnan(y[:, k])
        calibration.append(ev.platt(y[known, k], z[known, k]))
        p, t = ev.probability(z[known, k], *calibration[-1]), y[known, k]
        cuts = {"fpr_1_percent": ev.threshold_at(p[t == 0], .01), "fpr_01_percent": ev.threshold_at(p[t == 0], .001)}
        limits.append(cuts)
        figures[head] = (ev.auc(t, p), ev.recall_at(t, p, .01))
        lines.append([head, int(t.sum()), int((t == 0).sum()), ev.fixed(ev.auc(t, p)), ev.pct(ev.recall_at(t, p, .01)), ev.pct(ev.recall_at(t, p, .05))])
    text = ["### dev", "", ev.table(["head", "positive", "negative", "AUC", "recall at 1 % FPR", "recall at 5 % FPR"], lines), ""]

    everything = steps.output_rows(run)
    k, left = steps.HEADS.index("refusal"), []
    calm = [r for r in rows if r["labels"].get("refusal") == 0]
    for name, inside in REFUSAL_SOURCES.items():
        test = [r for r in everything + rows if inside(r) and "refusal" in r["labels"]]
        rest = [r for r in everything if not inside(r)][::3]
        fitted, _ = steps.fit_output(run, f"output_without_{name.replace(' ', '_')}", 2, rest)
        test = test + [r for r in calm if not inside(r)]
        labels = np.array([r["labels"]["refusal"] for r in test])
        s = fit.score(fitted, fit.Pieces(test, tokenizer, steps.WINDOW_A, steps.OVERLAP_A, False))[:, k]
        left.append([name, int(labels.sum()), int((labels == 0).sum()), ev.fixed(ev.auc(labels, s)), ev.pct(ev.recall_at(labels, s, .01))])
    text += ["### refusal, one source left out (2 epochs on a third of the rows; negatives are the source's own and dev's)", "",
             ev.table(["left out", "positive", "negative", "AUC", "recall at 1 % FPR"], left), ""]
    folder = run.out / "output"
    export.write_folder(folder, net, tokenizer, steps.HEADS, steps.WINDOW_A, steps.OVERLAP_A, [c[0] for c in calibration], [c[1] for c in calibration])
    per_head = []
    for head, cuts in zip(steps.HEADS, limits):
        per_head += ["", f"[{head}]", *(f"{n} = {v:.6f}" for n, v in cuts.items())]
    toml(folder / "thresholds.toml", head_lines("output", steps.WINDOW_A, steps.OVERLAP_A, run.seed) + per_head)
    return text, figures, left


def write(run):
    screening, pooled, grey = injection(run)
    scoring, heads, refusal = outputs(run)
    (run.work / "figures.json").write_text(json.dumps({"screening": screening, "pooled": pooled, "grey": grey, "scoring": scoring, "heads": heads,
                                                       "refusal": refusal}))
    report(run.work, run.out, run.seed)
    run.say("shipped")


def report(work, out, seed):
    """RESULTS.md and the cards, from figures kept in the work folder."""
    kept = json.loads((work / "figures.json").read_text())
    grey = kept["grey"]
    path, notes = work / "leftout.json", Path(__file__).with_name("notes.md")
    by_source = by_author = "Not measured in this run."
    if path.exists():
        by_source, by_author = leftout.tables(json.loads(path.read_text()))
    text = ["# Results of the last run", "",
            f"Printed by `ship.py` (seed {seed}, data revision {DATA_REVISION}); nothing but the notes at the end is typed in by hand.", "",
            "## Injection screening", "",
            f"A+B is the band (A's probability from {grey['low']:.3f} up goes to B: {100 * grey['ood']:.1f} % of dev_ood's and "
            f"{100 * grey['dev']:.1f} % of dev's harmless rows); A+B strict runs B on everything. Thresholds come from dev_ood's harmless rows. "
            "n-grams: hashed, 2^18 characters 3-5 and 2^18 words 1-3, logistic regression on a third of the training rows, windows of 350 characters.", "",
            *kept["screening"], "### Sources and authors left out", "",
            "Every figure is by a fit that saw neither the source nor its companions: the sources leave in six groups (`leftout.py` lists them). The fits "
            "are short (A: 2 epochs on 20,000 sampled rows; B: 1 epoch on 8,000; n-grams: 20,000 rows), so the shipped ones are stronger. "
            "`±x/n` is the range over n seeds. Negatives are the source's own and 900 of dev_ood's; the threshold of `benign right` has 1 % false "
            "positives on those 900. What an author wrote as harmless are near misses of the attacks beside them, mostly.", "",
            by_source, "", "### The left-out author's texts by kind, at that threshold", "", by_author, "",
            "## Output scoring", "", *kept["scoring"]]
    if notes.exists():
        text += ["## Notes", "", notes.read_text(encoding="utf-8").strip()]
    folder = out / "train" / "screen"
    ((folder if folder.exists() else out) / "RESULTS.md").write_text("\n".join(text) + "\n", encoding="utf-8")
    cards.write(out, kept["pooled"], kept["heads"], kept["refusal"], grey, VERSION, DATA_REVISION)
    print("\n".join(text), flush=True)
