"""The tokenizers of the count fixtures: trained on our own text, made of the parts that real ones are made of."""

import json
import random
from pathlib import Path

from count_conversations import BARE, ODD_TEXTS, SEARCH, SEED, SENTENCES, WEATHER
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers
from tokenizers import pre_tokenizers, processors, trainers

TEMPLATES = Path(__file__).resolve().parent / "count_templates"

# The split of the newer byte-level families: contractions, words with one leading mark, digits by threes.
SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
# The same with each digit by itself.
ONE_DIGIT = SPLIT.replace(r"\p{N}{1,3}", r"\p{N}")
# Words are cut where small letters are followed by capitals.
UPPER, LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
MARK, REST = r"[^\r\n\p{L}\p{N}]?", r"| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
CASED = rf"{MARK}{UPPER}*{LOWER}+|{MARK}{UPPER}+{LOWER}*|\p{{N}}{REST}"
# The same, with contractions as endings of words and digits by threes.
ENDINGS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
CASED_ENDINGS = rf"{MARK}{UPPER}*{LOWER}+{ENDINGS}|{MARK}{UPPER}+{LOWER}*{ENDINGS}|\p{{N}}{{1,3}}{REST}"
# Comes after digits and Chinese were cut off.
WORDS = (
    r"[!\"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+"
    r"| ?[\p{P}\p{S}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def corpus():
    rng = random.Random(SEED)
    words = sorted({word for text in SENTENCES for word in text.split()})
    lines = SENTENCES * 6 + [text for text in ODD_TEXTS if text.strip()]
    lines += [path.read_text(encoding="utf-8") for path in sorted(TEMPLATES.glob("*.jinja"))] * 3
    lines += [json.dumps(tool, ensure_ascii=False) for tool in (WEATHER, SEARCH, BARE)] * 3
    lines += [" ".join(rng.choices(words, k=rng.randint(4, 20))) for _ in range(400)]
    return lines


def special(text, **flags):
    return AddedToken(text, special=True, normalized=False, **flags)


def byte_level(specials, pre_tokenizer, size, normalizer=None):
    tokenizer = Tokenizer(models.BPE())
    if normalizer:
        tokenizer.normalizer = normalizer
    tokenizer.pre_tokenizer = pre_tokenizer
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=size, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False)
    tokenizer.train_from_iterator(corpus(), trainer)
    tokenizer.add_special_tokens([special(text) for text in specials])
    return tokenizer


def sentence_piece(specials, size, prefix):
    """`prefix`: where a space is put in front: by the pre-tokenizer, before the first text only (`first`); by
    the normalizer, before every text between specials, as older files do (`every`); or nowhere (`none`)."""
    tokenizer = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>", fuse_unk=True))
    if prefix == "first":
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
        first = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    elif prefix == "every":
        tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
        first = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    else:
        tokenizer.normalizer = normalizers.Replace(" ", "▁")
        first = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    tokenizer.decoder = decoders.Sequence(first)
    bytes_ = [f"<0x{byte:02X}>" for byte in range(256)]
    trainer = trainers.BpeTrainer(
        vocab_size=size, special_tokens=["<unk>", *specials, *bytes_], show_progress=False, limit_alphabet=150)
    # Training sees words, as SentencePiece does; the finished tokenizer merges over the whole text.
    keep = tokenizer.normalizer, tokenizer.pre_tokenizer
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.normalizer = normalizers.Sequence([])
    tokenizer.train_from_iterator((line.replace(" ", " ▁") for line in corpus()), trainer)
    text = json.loads(tokenizer.to_str())
    # The trainer stores byte tokens as specials; they are ordinary members of the vocabulary.
    text["added_tokens"] = [token for token in text["added_tokens"] if not token["content"].startswith("<0x")]
    tokenizer = Tokenizer.from_str(json.dumps(text))
    tokenizer.normalizer, tokenizer.pre_tokenizer = keep
    return tokenizer


def unigram(specials, size):
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.normalizer = normalizers.Sequence([normalizers.Nmt(), normalizers.NFKC(),
                                                 normalizers.Replace(Regex(" {2,}"), " ")])
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always")
    tokenizer.decoder = decoders.Metaspace(prepend_scheme="always")
    trainer = trainers.UnigramTrainer(
        vocab_size=size, unk_token="<unk>", special_tokens=["<unk>", *specials], show_progress=False)
    tokenizer.train_from_iterator(corpus(), trainer)
    return tokenizer


def wordpiece(size):
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]", max_input_chars_per_word=100))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    trainer = trainers.WordPieceTrainer(
        vocab_size=size, special_tokens=["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"], show_progress=False)
    tokenizer.train_from_iterator(corpus(), trainer)
    around(tokenizer, "[CLS]", "[SEP]")
    return tokenizer


def splitting(*patterns):
    """A pre-tokenizer that cuts by one pattern after the other, then turns to bytes."""
    parts = [pre_tokenizers.Split(Regex(pattern), behavior="isolated") for pattern in patterns]
    return pre_tokenizers.Sequence([*parts, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])


def whole_words(tokenizer):
    """Takes words that are tokens as they are, without merging, as files made from tiktoken's do."""
    text = json.loads(tokenizer.to_str())
    text["model"]["ignore_merges"] = True
    return Tokenizer.from_str(json.dumps(text))


def plain(*texts, **flags):
    """Tokens that are added to the vocabulary but not special."""
    return [AddedToken(text, special=False, normalized=False, **flags) for text in texts]


def around(tokenizer, bos, eos=None):
    """A post-processor that puts `bos` in front of every text, and `eos` behind."""
    single = f"{bos}:0 $A:0" + (f" {eos}:0" if eos else "")
    specials = [(token, tokenizer.token_to_id(token)) for token in (bos, eos) if token]
    tokenizer.post_processor = processors.TemplateProcessing(
        single=single, pair=f"{single} $B:1", special_tokens=specials)


def families():
    """Name -> (tokenizer, tokenizer_config, where the template goes)."""
    split = pre_tokenizers.Sequence([
        pre_tokenizers.Split(Regex(SPLIT), behavior="isolated"),
        pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])
    chatml = byte_level(["<|endoftext|>", "<|im_start|>", "<|im_end|>"], split, 1200, normalizers.NFC())
    # Stored as files of embedding models store them; a count must neither pad nor cut.
    chatml.enable_truncation(64)
    chatml.enable_padding(length=16, pad_id=1200, pad_token="<|endoftext|>")
    yield "chatml", chatml, {"eos_token": "<|im_end|>", "pad_token": "<|endoftext|>", "bos_token": None}, "config"

    header = byte_level(["<|begin|>", "<|end|>", "<|start_header|>", "<|end_header|>", "<|eot|>"], split, 1000)
    around(header, "<|begin|>")
    yield "header", header, {"bos_token": "<|begin|>", "eos_token": "<|eot|>"}, "jinja"

    inst = sentence_piece(["<s>", "</s>", "[INST]", "[/INST]", "[TOOLS]", "[/TOOLS]", "[CALLS]", "[RESULT]",
                           "[/RESULT]"], 1100, "first")
    yield "inst", inst, {
        "bos_token": {"__type": "AddedToken", "content": "<s>", "lstrip": False, "normalized": False,
                      "rstrip": False, "single_word": False, "special": True},
        "eos_token": "</s>", "unk_token": "<unk>", "add_bos_token": True, "add_eos_token": False}, "named"

    turn = sentence_piece(["<pad>", "<eos>", "<bos>", "<turn>", "</turn>"], 900, "none")
    yield "turn", turn, {"bos_token": "<bos>", "eos_token": "<eos>", "unk_token": "<unk>",
                         "add_bos_token": True, "add_eos_token": True}, "json"

    think = byte_level(["<|endoftext|>", "<|im_start|>", "<|im_end|>"],
                       pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True), 900)
    size = think.get_vocab_size()
    # Only the configuration knows these three.
    listed = {str(size + at): {"content": text, "lstrip": at == 2, "normalized": False, "rstrip": False,
                               "single_word": False, "special": at == 2}
              for at, text in enumerate(["<think>", "</think>", "<|image|>"])}
    yield "think", think, {"eos_token": "<|im_end|>", "added_tokens_decoder": listed}, "jinja"

    sections = unigram(["<|begin|>", "<|end|>", "<|user|>", "<|assistant|>", "<|call|>", "<|result|>"], 700)
    around(sections, "<|begin|>", "<|end|>")
    yield "sections", sections, {"bos_token": "<|begin|>", "eos_token": "<|end|>", "unk_token": "<unk>"}, "config"
    yield from more_families()


def more_families():
    names = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    chatml = {"eos_token": "<|im_end|>", "pad_token": "<|endoftext|>", "bos_token": None}
    merge = byte_level(names, splitting(ONE_DIGIT), 1300, normalizers.NFC())
    merge.add_tokens(plain("<tool_call>", "</tool_call>"))
    yield "merge", merge, chatml, "config"

    query = byte_level([*names, "<|vision_start|>", "<|vision_end|>", "<|image_pad|>"], splitting(ONE_DIGIT), 1400,
                       normalizers.NFC())
    query.add_tokens(plain("<think>", "</think>", "<tool_call>", "</tool_call>", "<tool_response>", "</tool_response>"))
    yield "query", query, chatml, "jinja"

    brackets = ["<unk>", "<s>", "</s>", "[INST]", "[/INST]", "[AVAILABLE_TOOLS]", "[/AVAILABLE_TOOLS]", "[TOOL_RESULTS]",
                "[/TOOL_RESULTS]", "[TOOL_CALLS]", "[IMG]", "[SYSTEM_PROMPT]", "[/SYSTEM_PROMPT]", "[TOOL_CONTENT]",
                "[THINK]", "[/THINK]", "[CALL_ID]", "[ARGS]"]
    made = whole_words(byte_level(brackets, splitting(CASED), 1300))
    around(made, "<s>")
    yield "brackets", made, {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}, "jinja"

    bars = byte_level(["<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>", "<｜▁pad▁｜>"],
                      splitting(r"\p{N}{1,3}", "[一-龥぀-ゟ゠-ヿ]+", WORDS), 1300, normalizers.Sequence([]))
    bars.add_tokens(plain("<｜User｜>", "<｜Assistant｜>", "<think>", "</think>", "<｜calls▁begin｜>", "<｜calls▁end｜>",
                          "<｜call▁begin｜>", "<｜call▁end｜>", "<｜sep｜>", "<｜output▁begin｜>", "<｜output▁end｜>"))
    yield "bars", bars, {"bos_token": "<｜begin▁of▁sentence｜>", "eos_token": "<｜end▁of▁sentence｜>",
                         "pad_token": "<｜▁pad▁｜>", "add_bos_token": True}, "config"

    trail = sentence_piece(["<s>", "</s>"], 1000, "every")
    trail.add_special_tokens([special("<|endoftext|>")])
    trail.add_special_tokens([special(text, rstrip=True) for text in
                              ("<|assistant|>", "<|system|>", "<|end|>", "<|user|>", "<|tool|>", "<|/tool|>")])
    yield "trail", trail, {"bos_token": "<s>", "eos_token": "<|endoftext|>", "unk_token": "<unk>",
                           "add_bos_token": False}, "config"

    channel = whole_words(byte_level(["<|startoftext|>", "<|endoftext|>", "<|return|>", "<|constrain|>", "<|channel|>",
                                      "<|start|>", "<|end|>", "<|message|>", "<|call|>"], splitting(CASED_ENDINGS), 1500))
    yield "channel", channel, {"bos_token": "<|startoftext|>", "eos_token": "<|return|>",
                               "pad_token": "<|endoftext|>"}, "jinja"

    pieces = sentence_piece(["<s>", "</s>"], 1000, "every")
    around(pieces, "<s>")
    yield "pieces", pieces, {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "add_bos_token": True,
                             "add_eos_token": False}, "config"

    records = byte_level(["<|end_text|>", "<|role_start|>", "<|role_end|>", "<|tool_call|>"], pre_tokenizers.Sequence([
        pre_tokenizers.Digits(individual_digits=True),
        pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)]), 1200)
    yield "records", records, {"bos_token": "<|end_text|>", "eos_token": "<|end_text|>"}, "jinja"

    clauses = byte_level(["<|endoftext|>", "[gMASK]", "<sop>", "<|system|>", "<|observation|>"], splitting(SPLIT), 1200)
    clauses.add_special_tokens([special("<|user|>", lstrip=True), special("<|assistant|>", lstrip=True, rstrip=True)])
    clauses.add_tokens([*plain("<think>", "</think>", "<tool_call>", "</tool_call>"),
                        AddedToken("<arg_key>", special=False, normalized=True), *plain("<arg_value>", single_word=True)])
    clauses.post_processor = processors.ByteLevel(trim_offsets=False)
    yield "clauses", clauses, {"bos_token": "[gMASK]", "eos_token": "<|endoftext|>"}, "jinja"

    yield "words", wordpiece(900), {"unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]",
                                    "pad_token": "[PAD]", "mask_token": "[MASK]", "eos_token": "[SEP]"}, None
