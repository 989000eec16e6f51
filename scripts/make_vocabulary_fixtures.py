#!/usr/bin/env python3
"""Makes tests/fixtures/vocabularies: small vocabularies of every form, texts, and their reference ids.

    python3 -m venv .venv-vocab
    .venv-vocab/bin/pip install -r scripts/requirements-vocabularies.txt
    .venv-vocab/bin/python scripts/make_vocabulary_fixtures.py [PART ...]

All texts are our own. The ids are what llama.cpp, tiktoken, mistral_common and sentencepiece say.
"""

import json
import random
import sys
from pathlib import Path

import llama_cpp_ids

HERE = Path(__file__).resolve().parent
OUT = HERE.parent / "tests" / "fixtures" / "vocabularies"
SEED = 20250607

TEXTS = [
    "Hello, it's 2 o'clock; we'll see. I'VE said THEY'RE done, DON'T worry, he'D go",
    "  leading and trailing   spaces   ", "\n\n two\r\nlines\r\n\r\n\tand a tab\t\n ", "1234567 12 3.14159 1,000,000 2024-01-31",
    "", " ", "   ", "\n", "\t\t", "a", "\u00a0a\u00a0 b\u2003c\u3000d", "x \u0085y\u2028z",
    "CamelCaseWords and ALLCAPS and mixedCASEwords, HTTPServer2go, iPhone15Pro", "snake_case_name __init__ $HOME ~/x/y.rs",
    "if (a <= b && c != d) { return x->y[3] ^ ~z | `q`; } // done\n\n\n", "!!!???...---===<<<>>>+++|||^^^", "«Ça va?» — oui… ¿no? ¡sí!",
    "Schrödinger's naïve café, São Tomé, Ærøskøbing, ŁÓDŹ Ǆ ǅ ǆ", "İstanbul'da KIRMIZI ışık; Ankara'nın 3'üncü",
    "Привет, мир! Это предложение. ЩУКА Щука", "Καλημέρα κόσμε, ΑΒΓ αβγ", "今天天气很好，我们去公园吧。2024年12月31日", "これは日本語の文です。カタカナ、ひらがな！ｶﾀｶﾅ",
    "안녕하세요, 세계! ㄱㄴㄷ 각각", "ภาษาไทยไม่มีช่องว่าง ๑๒๓", "यह हिन्दी वाक्य है। क्षत्रिय १२३४", "مرحبا بالعالم، كيف الحال؟ ١٢٣ ۴۵۶", "שלום עולם, מה שלומך?",
    "ລາວ ខ្មែរ မြန်မာ བོད་ཡིག", "ㄅㄆㄇ 〈引用〉「鉤」﹏︰", "emoji 😀😃 👩‍👩‍👧‍👦 ❤️ 🇵🇹 ☕ ✈️ ©®™", "e\u0301 a\u0308b n\u0303o \u0301x \u200bzero\u200dwidth\ufeff",
    "① ② ½ ¾ ⅷ ² ³ x₁ ٪ ‰ € £ ¥ ₹ № ∑ ≠ →", "㐀㐁 𠀀𠀁 豈 ⺀ ⼀ 〇 々", "mixed中文English日本語한국어русский 123中456",
    "\u0000\u0001\u001f\u007f control", "𝒳𝓎 𝟘𝟙𝟚𝟛 𐐀𐐨 ꙀꙁꜢꜣ Ꭰꭰ Აა", "a/b/c http://x.y/z?q=1&r=2#f C:\\path\\to", "'s 't 're 've 'm 'll 'd 'S 'Re 'LL ' x' ''s", "the 'quick' \"brown\" `fox`",
    "word\nword\r\nword \n word\t\nword  \n\n  word", ".\n,\n!\n\n;\r\n/\n//\n", "1 22 333 4444 55555 666666 7777777 88888888 999999999", "12a34b 5.6.7 8,9 0x1F 1e-9 ½½½½ ١٢٣٤٥",
    "            twelve  spaces     five\t\ttabs\n\n\n\nlines", "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa", "A" * 40, "=" * 30 + "-" * 30, "\u2581low \u2581\u2581bar\u2581 <0x0A> <s> </s> <unk>",
    "IMGIMGABCZ <sentinel:12> IMGIMGIZ", "der Ärger’s ist groß‘n ‚so‘ “q” — –", "\ufffd \U000e0001 \ue000 \u0378 \u2e7f", "don’t I’m we’LL", "ﬀ ﬁ ﬓ Ａｂｃ １２３ ！？～",
    "\u1100\u1161\u11a8 \u1112\u1161\u11ab", "x\u0300\u0301\u0302y \u0915\u093c\u094d", "ⅠⅡⅢ ªº ʰʲ ˈaˑ ٱ ـ ", "fn main() {\n\tlet x: u32 = 42;\n    println!(\"{x:?}\");\n}\n",
]

# Letters, digits, marks, spaces and signs that patterns tell apart.
ALPHABET = (
    list("abzABZ019 \n\r\t'\".,!?-_/\\$+<=>^~|`(){}[]#%&*@;:") + ["  ", "   ", "\r\n", "'s", "'LL", "12", "1234", "ab", "Ab", "AB"]
    + list("éÉßİıǅаЯαΩ中文々〇のカ가ㄱไ่हि्مא١४½²Ⅷ⅓㊿,。，、।؟。…—’“€©∑→\u00a0\u2003\u3000\u2028\u0085\u200b\u0301\u0308\ufeff😀❤\ufe0f𝟘𠀀ﬁＡ１ｶ\u0000\u2581")
)


def mixed(count, seed=SEED):
    """Texts that nobody would write."""
    dice = random.Random(seed)
    return ["".join(dice.choice(ALPHABET) for _ in range(dice.randint(1, 24))) for _ in range(count)]


TAGS = """
default llama3 llama-v3 llama-bpe falcon3 falcon-h1 pixtral midm-2.0 lfm2 jina-v5-nano minicpm5 deepseek-llm deepseek-coder deepseek-v3
spark2_5 youtu falcon mpt starcoder gpt-2 phi-2 jina-es jina-de gigachat jina-v2-es jina-v2-de a.x-4.0 mellum modern-bert jais-2
jina-v1-en jina-v2-code roberta-bpe refact command-r qwen2 deepseek-r1-qwen kormo f2llmv2 qwen35 stablelm2 olmo dbrx smaug-bpe poro-chat
glm4 chatglm-bpe viking jais tekken smollm codeshell bloom gpt3-finnish exaone exaone4 exaone-moe chameleon minerva-7b megrez gpt-4o llama4
kanana2 talkie granite-embed-multi-97m tiny_aya cohere2moe superbpe trillion granite-docling bailingmoe bailingmoe2 llada-moe seed-coder
hunyuan hunyuan-dense hy_v4 joyai-llm kimi-k2 ufakzeka grok-2 afmoe laguna minimax-m2 solar-open mellum2
""".split()


def save(name, value):
    OUT.mkdir(parents=True, exist_ok=True)
    text = json.dumps(value, ensure_ascii=True, separators=(",", ":"))
    # A line for each entry of the outermost level, so that differences can be read.
    for key in value:
        text = text.replace(f',"{key}":', f',\n"{key}":', 1)
    (OUT / name).write_text(text + "\n")
    print(f"{name}: {len(text)} bytes")


# So common that they are merged, and every cut through them shows.
OFTEN = ["don't we'll they've I'm he'd it's you're", "DON'T WE'LL THEY'VE I'M HE'D IT'S", "a\n\n\nb", "a \n \n b", "12345678", "x'y'z"]


def byte_level(size=1000):
    """A byte-level vocabulary whose merges go across words, so that every cut shows."""
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    trainer = trainers.BpeTrainer(
        vocab_size=size, initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()), show_progress=False
    )
    # Each character twice in a row, too, or none of the rare ones would be merged.
    pairs = ["".join(pair) for pair in zip(mixed(3000), mixed(3000, 1))]
    tokenizer.train_from_iterator(OFTEN * 400 + TEXTS * 40 + pairs, trainer)
    model = json.loads(tokenizer.to_str())["model"]
    tokens = sorted(model["vocab"], key=model["vocab"].get)
    merges = [merge if isinstance(merge, str) else " ".join(merge) for merge in model["merges"]]
    return tokens, merges


def kept(name, make):
    """What an earlier run made: training breaks ties in no fixed order."""
    path = OUT / name
    return json.loads(path.read_text()) if path.exists() else make()


def splits():
    """Cuts of each pre-tokenizer tag, as llama.cpp makes them."""
    def make():
        tokens, merges = byte_level()
        return {"tokens": tokens, "merges": merges}

    made = kept("splits.json", make)
    tokens, merges = made["tokens"], made["merges"]
    texts = TEXTS + mixed(30, 2)
    # U+FFFD and the like come through JSON; lone surrogates would not.
    kinds = [(text, "normal", 0.0) for text in tokens]
    for text in ["<|bos|>", "<|eos|>"]:
        kinds.append((text, "control", 0.0))
    groups = {}
    for tag in TAGS:
        entries = {"tokenizer.ggml.pre": tag, "tokenizer.ggml.bos_token_id": len(tokens), "tokenizer.ggml.eos_token_id": len(tokens) + 1}
        if tag in ("jina-v1-en", "jina-v2-code", "roberta-bpe"):
            entries["tokenizer.ggml.seperator_token_id"] = len(tokens) + 1
        try:
            found = llama_cpp_ids.ids(texts, "gpt2", kinds, entries, merges)
        except RuntimeError as error:
            print(f"{tag}: llama.cpp refuses it: {str(error).strip().splitlines()[-1]}")
            continue
        add_bos = found["around"][0] == len(tokens)
        groups.setdefault(json.dumps([add_bos, found["ids"]]), []).append(tag)
    cuts = [{"tags": tags, "add_bos": json.loads(key)[0], "ids": json.loads(key)[1]} for key, tags in groups.items()]
    save("splits.json", {"tokens": tokens, "merges": merges, "texts": texts, "cuts": cuts})


def pieces(kind, size, **more):
    """A SentencePiece model over our texts: its file, and its pieces as (text, kind, score)."""
    import io
    import sentencepiece

    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter([line for text in TEXTS for line in text.split("\n") if line.strip()] * 4), model_writer=model, model_type=kind,
        vocab_size=size, minloglevel=2, hard_vocab_limit=False, user_defined_symbols=["<tool>"], control_symbols=["<|user|>", "<|end|>"], **more,
    )
    processor = sentencepiece.SentencePieceProcessor(model_proto=model.getvalue())
    kinds = [(processor.is_unknown, "unknown"), (processor.is_control, "control"), (processor.is_byte, "byte"), (processor.is_unused, "unused")]
    found = []
    for index in range(processor.vocab_size()):
        text = processor.id_to_piece(index)
        kind = next((name for ask, name in kinds if ask(index)), "added" if text == "<tool>" else "normal")
        found.append((text, kind, processor.get_score(index)))
    return model.getvalue(), found


# What the small character map makes of characters, written as SentencePiece wants it.
CHARACTERS = {"\t": " ", "\n": " ", "\u3000": " ", "\u00a0": " ", "ﬁ": "fi", "Ａ": "A", "１": "1", "㊿": "50", "½": "1/2", "…": "...", "\u200b": ""}


def all_cuts(tokens):
    """Merges as they are made for a file from scores: each cut of each token, the best token first."""
    plain = {text: score for text, kind, score in tokens if kind == "normal"}
    merges = []
    for text in sorted(plain, key=plain.get, reverse=True):
        merges += [f"{text[:at]} {text[at:]}" for at in range(1, len(text)) if text[:at] in plain and text[at:] in plain]
    return merges


def models():
    """Vocabularies of the other tokenizer models, and ids by llama.cpp."""
    import base64
    import tempfile

    with tempfile.NamedTemporaryFile("w", suffix=".tsv") as rules:
        for before, after in CHARACTERS.items():
            rules.write(" ".join(f"{ord(c):X}" for c in before) + "\t" + " ".join(f"{ord(c):X}" for c in after) + "\n")
        rules.flush()
        t5, unigram = pieces("unigram", 900, normalization_rule_tsv=rules.name, unk_id=2, eos_id=1, bos_id=-1, pad_id=0)
    from sentencepiece import sentencepiece_model_pb2

    proto = sentencepiece_model_pb2.ModelProto.FromString(t5)
    charsmap = proto.normalizer_spec.precompiled_charsmap
    raw, bpe = pieces("bpe", 900, byte_fallback=True, add_dummy_prefix=False, normalization_rule_name="identity", remove_extra_whitespaces=False)
    lines = [("\n" * count, "normal", -9000.0 - count) for count in range(1, 9)]
    words = sorted({word for text in TEXTS for word in text.lower().split()})
    letters = sorted({c for text in TEXTS for c in text.lower() if c.strip() and c.isprintable() and c != "\u2581"})
    bert = [("[UNK]", "unknown", 0.0), ("[CLS]", "control", 0.0), ("[SEP]", "control", 0.0)]
    bert += [(f"\u2581{word}", "normal", 0.0) for word in dict.fromkeys([*letters[::2], *words[::5]]) if word.isalpha()]
    bert += [(text, "normal", 0.0) for text in dict.fromkeys([*letters[1::2], *(word[-3:] for word in words[::4] if len(word) > 5)])]
    texts = [text for text in TEXTS + mixed(20, 3) if "\0" not in text]
    texts += ["a<|user|> b<tool>c <|end|>", " <tool>  x", "<|user|>  ", "<s></s><unk>"]
    made = []
    for model, tokens, entries, merges in [
        ("t5", unigram, {"remove_extra_whitespaces": True, "add_space_prefix": True, "precompiled_charsmap": charsmap}, None),
        ("t5", unigram, {"add_space_prefix": True}, None),
        ("llama", bpe, {}, None),
        ("llama", bpe, {"add_space_prefix": False}, None),
        ("gemma4", bpe + lines, {"bos_token_id": 1}, all_cuts(bpe + lines)),
        ("gpt2", bpe + lines, {"pre": "sarvam-moe", "bos_token_id": 1}, all_cuts(bpe + lines)),
        ("bert", bert, {"bos_token_id": 1, "eos_token_id": 2, "seperator_token_id": 2, "unknown_token_id": 0, "padding_token_id": 0}, None),
    ]:
        keys = {f"tokenizer.ggml.{name}": value for name, value in entries.items()}
        found = llama_cpp_ids.ids(texts, model, tokens, keys, merges)
        shown = {name: base64.b64encode(value).decode() if isinstance(value, bytes) else value for name, value in entries.items()}
        made.append({"model": model, "entries": shown, "tokens": tokens, "merges": merges, "ids": found["ids"], "around": found["around"]})
    save("models.json", {"texts": texts, "models": made})


TEKKEN = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*"
    r"|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
CL100K = r"""'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}++|\p{N}{1,3}+| ?[^\s\p{L}\p{N}]++[\r\n]*+|\s++$|\s*[\r\n]|\s+(?!\S)|\s"""
LLAMA_3 = r"""(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"""
QWEN = r"""(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"""
O200K = "|".join([
    r"""[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?""",
    r"""[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?""",
    r"""\p{N}{1,3}""", r""" ?[^\s\p{L}\p{N}]+[\r\n/]*""", r"""\s*[\r\n]+""", r"""\s+(?!\S)""", r"""\s+""",
])
KIMI = "|".join([
    r"""[\p{Han}]+""",
    r"""[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}&&[^\p{Han}]]*[\p{Ll}\p{Lm}\p{Lo}\p{M}&&[^\p{Han}]]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?""",
    r"""[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}&&[^\p{Han}]]+[\p{Ll}\p{Lm}\p{Lo}\p{M}&&[^\p{Han}]]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?""",
    r"""\p{N}{1,3}""", r""" ?[^\s\p{L}\p{N}]+[\r\n]*""", r"""\s*[\r\n]+""", r"""\s+(?!\S)""", r"""\s+""",
])


def ranked():
    """Vocabularies by rank: tekken.json by mistral_common, tiktoken files by tiktoken."""
    import base64
    import tempfile
    import unicodedata

    import tiktoken
    from mistral_common.tokens.tokenizers.tekken import Tekkenizer

    alphabet = {}
    spare = 256
    for byte in range(256):
        shown = 33 <= byte <= 126 or 161 <= byte <= 172 or 174 <= byte
        alphabet[chr(byte if shown else spare)] = byte
        spare += not shown
    tokens, _ = byte_level(700)
    # The first 256 ranks are the bytes in order: mistral_common wants it so.
    joined = [bytes(alphabet[c] for c in token) for token in tokens]
    ranks = [bytes([byte]) for byte in range(256)] + [token for token in joined if len(token) > 1]
    texts = TEXTS + mixed(40, 4)
    families = []
    for name, class_, kind, pattern, composed in [
        ("tiktoken.model", "TikTokenTokenizer", "kimi_k2", KIMI, False), ("qwen.tiktoken", "QWenTokenizer", "qwen", QWEN, True),
        ("tokenizer.model", "ChatGLM4Tokenizer", "chatglm", LLAMA_3, False), ("cl100k_base.tiktoken", "", "", CL100K, False), ("o200k_base.tiktoken", "", "", O200K, False),
    ]:
        # Of the first the folder lists them, with a gap.
        gap = 4 if name == "tiktoken.model" else 0
        named = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"] if name == "qwen.tiktoken" else ["[BOS]", "<|im_end|>", "[EOT]"]
        specials = {text: len(ranks) + gap + at for at, text in enumerate(named)} if class_ else {}
        encoding = tiktoken.Encoding(name, pat_str=pattern, mergeable_ranks={token: rank for rank, token in enumerate(ranks)}, special_tokens=specials)
        asked = [*texts, *[f"a{one} b{other}\n" for one in specials for other in specials]]
        put = [unicodedata.normalize("NFC", text) if composed else text for text in asked]
        families.append({
            "file": name, "class": class_, "model_type": kind, "texts": asked[len(texts):],
            "listed": {} if name == "qwen.tiktoken" else {str(index): text for text, index in specials.items()},
            "ids": [encoding.encode(text, allowed_special="all") for text in put],
        })
    tekkens = []
    for size, named in [(40, None), (30, [("<unk>", True), ("<s>", True), ("</s>", True), ("[INST]", True), ("[/INST]", True), ("<tool>", False)])]:
        file = {
            "config": {"pattern": TEKKEN, "num_vocab_tokens": len(ranks), "default_vocab_size": len(ranks) - 50 + size, "default_num_special_tokens": size, "version": "v3" if named is None else "v7"},
            "vocab": [{"rank": rank, "token_bytes": base64.b64encode(token).decode(), "token_str": None} for rank, token in enumerate(ranks)],
        }
        if named:
            file["special_tokens"] = [{"rank": rank, "token_str": text, "is_control": control} for rank, (text, control) in enumerate(named)]
        with tempfile.NamedTemporaryFile("w", suffix="tekken.json") as written:
            json.dump(file, written)
            written.flush()
            tokenizer = Tekkenizer.from_file(written.name)
        tekkens.append({
            "config": file["config"], "special_tokens": file.get("special_tokens"), "begins": tokenizer.encode("a", bos=True, eos=False),
            "inst": tokenizer.get_special_token("[INST]"), "ids": [tokenizer.encode(text, bos=False, eos=False) for text in texts],
        })
    tokens = [base64.b64encode(token).decode() for token in ranks]
    save("ranked.json", {"tokens": tokens, "texts": texts, "families": families, "tekkens": tekkens})


def sentencepiece_files():
    """SentencePiece models alone, and ids by sentencepiece."""
    import base64
    import tempfile

    import sentencepiece

    with tempfile.NamedTemporaryFile("w", suffix=".tsv") as rules:
        for before, after in CHARACTERS.items():
            rules.write(" ".join(f"{ord(c):X}" for c in before) + "\t" + " ".join(f"{ord(c):X}" for c in after) + "\n")
        rules.flush()
        models = [
            pieces("bpe", 700, byte_fallback=True, normalization_rule_name="identity", remove_extra_whitespaces=False)[0],
            pieces("bpe", 700, add_dummy_prefix=False, normalization_rule_name="identity")[0],
            pieces("unigram", 600, normalization_rule_tsv=rules.name)[0],
        ]
    # It finds no control piece in a text, where a template writes them; and puts a space before the whole text
    # only, not behind each piece that is cut out.
    texts = [text for text in TEXTS + mixed(40, 6) if "<s>" not in text and "\0" not in text]
    made = []
    for model in models:
        processor = sentencepiece.SentencePieceProcessor(model_proto=model)
        made.append({"file": base64.b64encode(model).decode(), "ids": processor.encode(texts), "user": processor.piece_to_id("<|user|>")})
    save("sentencepiece.json", {"texts": texts, "models": made})


PARTS = {"splits": splits, "models": models, "ranked": ranked, "sentencepiece": sentencepiece_files}


if __name__ == "__main__":
    for part in sys.argv[1:] or PARTS:
        PARTS[part]()
