"""Harmless texts made of the words a first model shies at. Every vocabulary item
is scored alone; the highest become the material (the idea is PIGuard's)."""

import random

import fit

SHAPES = ["What does the word {} mean?", "The {} was late again on Tuesday.", "Please check the spelling of {}, {} and {}.", "My notes say: {}, {}, {}.",
          "How do you translate {} into Spanish?", "In the museum we saw a sign with the words {} and {}.", "{} and {} are the answers to 4 and 7 across.",
          "A short poem about {} for my niece, please.", "List of tags: {}, {}, {}, {}", "Is {} an adjective or a noun?", "The chapter on {} comes before the one on {}.",
          "She named her boat {}.", "Our glossary explains {} and {} on page 12.", "Use {} in a sentence.", "the {} {} {} report is attached", "[{}] ({})",
          "Compare {} with {} in two lines.", "error in module {}: {} not found", "| {} | {} | {} |", "Lunch today: {} with {}", "def {}({}): pass",
          "Why do people say {} so often?", "Synonyms of {}?", "# {}\n\nThis page is about {} and {}."]


def shy_words(net, tokenizer, count=200):
    """The whole words the model finds most suspicious on their own."""
    vocab = sorted((i, p) for p, i in tokenizer.get_vocab().items() if not p.startswith(("[", "##")) and len(p) > 1)
    scores = fit.forward_many(net, [[i] for i, _ in vocab])[:, 0]
    return [vocab[k][1] for k in (-scores).argsort()[:count]]


def texts(words, queries, count, seed):
    rng = random.Random(seed)
    rows = []
    for _ in range(count):
        shape = rng.choice(SHAPES)
        text = shape.format(*rng.sample(words, shape.count("{}")))
        if rng.random() < 0.4:
            text = rng.choice([text + " " + rng.choice(queries), rng.choice(queries) + "\n" + text])
        if rng.random() < 0.3:
            parts = rng.choice(queries).split(" ")
            for word in rng.sample(words, 2):
                parts.insert(rng.randint(0, len(parts)), word)
            text = " ".join(parts)
        rows.append({"text": text, "label": 0, "family": "overdefence", "author": None, "lang": "en", "carrier": "plain",
                     "source": "own templates", "payload_span": None, "pair": None})
    return rows
