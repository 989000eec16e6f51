"""Hashed n-grams with logistic regression on windows: what a network must beat."""

import numpy as np
from scipy.sparse import hstack
from sklearn.feature_extraction.text import HashingVectorizer
from sklearn.linear_model import SGDClassifier

import fold

SIZE, STEP = 350, 250


def cuts(text):
    return [text[a:b] for a, b in fold.windows(len(text), SIZE, SIZE - STEP)]


def window_with(row):
    text, span = row["text"], row.get("payload_span")
    if len(text) <= SIZE:
        return text
    if span:
        start = max(0, min(span[0] - (SIZE - min(SIZE, span[1] - span[0])) // 2, len(text) - SIZE))
        return text[start:start + SIZE]
    return text[:SIZE]


class Ngrams:
    def __init__(self, bits=18):
        self.parts = [HashingVectorizer(analyzer="char_wb", ngram_range=(3, 5), n_features=2 ** bits, alternate_sign=False, dtype=np.float32),
                      HashingVectorizer(analyzer="word", ngram_range=(1, 3), n_features=2 ** bits, alternate_sign=False, dtype=np.float32)]
        self.model = SGDClassifier(loss="log_loss", alpha=3e-6, max_iter=12, tol=1e-3, random_state=0, class_weight="balanced")

    def features(self, texts):
        return hstack([p.transform(texts) for p in self.parts]).tocsr()

    def fit(self, rows):
        self.model.fit(self.features([window_with(r) for r in rows]), [r["label"] for r in rows])
        return self

    def score(self, rows):
        texts, where = [], []
        for i, row in enumerate(rows):
            some = cuts(row["text"])
            texts += some
            where += [i] * len(some)
        values = np.concatenate([self.model.decision_function(self.features(texts[a:a + 4000])) for a in range(0, len(texts), 4000)])
        best = np.full(len(rows), -np.inf)
        np.maximum.at(best, where, values)
        return best
