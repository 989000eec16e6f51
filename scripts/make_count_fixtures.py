#!/usr/bin/env python3
"""Makes tests/fixtures/counts: small tokenizers, chat templates, requests and their reference counts.

    python3 -m venv .venv-fixtures
    .venv-fixtures/bin/pip install -r scripts/requirements-fixtures.txt
    .venv-fixtures/bin/python scripts/make_count_fixtures.py

The templates (scripts/count_templates) and all texts are our own, written in the style of the families
in circulation. The counts are what transformers' apply_chat_template and tokenizer say.

Training breaks ties in no fixed order, so tokenizers that exist are kept, and running the script again
changes nothing; `--train` makes new ones.
"""

import hashlib
import json
import os
import random
import shutil
import struct
import sys
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import jinja2
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers
from tokenizers import pre_tokenizers, processors, trainers
from transformers import AutoTokenizer

HERE = Path(__file__).resolve().parent
OUT = HERE.parent / "tests" / "fixtures" / "counts"
TEMPLATES = HERE / "count_templates"
SEED = 20250301

# The split of the newer byte-level families: contractions, words with one leading mark, digits by threes.
SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)

SENTENCES = [
    "The broker weighs every request before it lets one through to a card.",
    "How many tokens does this sentence cost, and who pays for them?",
    "Please write a short function that sorts the numbers and returns the largest.",
    "It's raining in Lisbon today; they'll cancel the walk, won't they?",
    "A queue without a bound is only a slow way of failing.",
    "Les requêtes arrivent en rafale, mais la mémoire ne grandit pas.",
    "Wie viele Anfragen dürfen gleichzeitig laufen, ohne dass es stockt?",
    "Сколько стоит один вопрос, если ответ уже известен?",
    "今日はとても寒いので、暖かいお茶を飲みましょう。",
    "模型服务器正在运行，请稍后再试。",
    "서버가 다시 시작될 때까지 기다려 주세요.",
    "مرحبا، كم عدد الرموز في هذه الجملة؟",
    "שלום, כמה עולה התשובה הזאת?",
    "นี่คือประโยคที่ไม่มีช่องว่าง",
    "यह वाक्य हिन्दी में लिखा गया है।",
    "for index in range(10):\n    total += values[index]\n    print(f\"{index}: {total}\")\n",
    "fn main() {\n\tlet x: u32 = 42;\n\tprintln!(\"{x:?}\");\n}\n",
    "{\"name\": \"lookup\", \"arguments\": {\"city\": \"Porto\", \"days\": 3, \"metric\": true}}",
    "SELECT id, name FROM tenants WHERE budget > 1000 ORDER BY name;",
    "https://example.org/path?query=1&other=two#part",
    "1 22 333 4444 55555 3.14159 -17 1e-6 1,000,000 0x1F",
    "   spaces   before,  between   and after   ",
    "Line one\nLine two\r\nLine three\n\n\nLine six\tand a tab",
]

ODD_TEXTS = [
    "",
    " ",
    "\n",
    "\n\n  \n",
    "ends in a unit separator\x1f",
    "\x1f\x1c starts with separators",
    "zero\u200bwidth\u200djoiner\ufeffmark\u2060",
    "👩‍👩‍👧‍👦 family, 🇵🇹 flag, 👍🏽 thumb, 🏴\U000e0067\U000e0062\U000e007f",
    "e\u0301 o\u0308 n\u0303 combining, é ö ñ composed, \u1e9b\u0323",
    "עברית and العربية mixed \u202bwith\u202c marks",
    "ﬁ ligature, Ⅷ numeral, ① circled, ｆｕｌｌｗｉｄｔｈ",
    "line\u2028separator and paragraph\u2029separator and \x85 next line",
    "\u00a0no-break\u00a0spaces\u3000ideographic\u2003em",
    "a\tb\x0bc\x0cd\x00e\x7ff",
    "𝕄𝕒𝕥𝕙 𓀀 hieroglyph 𠜎 rare 🜁",
    "<|im_start|>system\nignore<|im_end|>",
    "<|start_header|>user<|end_header|>\n\nhello<|eot|><|begin|>",
    "<s>[INST] hello [/INST]</s><bos><eos><turn>model\n</turn>",
    "<|user|>x<|assistant|>y<|end|><|call|>",
    "<think>\nhidden\n</think>\n\nvisible",
    "{{ not.a.template }} {% raw %} {# no comment #}",
    "quotes \" ' ` and \\ backslashes \\n \\u00e9 and < > & amp;",
    "ÀÉÎÕÜ İıŞş ẞß Ǆǆ ﬀ Σσς",
    "▁low▁bar <0x0A> <unk>",
    "x" * 300,
    " " * 120 + "deep",
    "na" * 100 + " " + "?!" * 50,
]

FLOATS = [1e-6, 0.1, 100.0, 1e16, 1.5e-7, -0.25, 3.0, 123456789.125, 1e22, 5e-324]

WEATHER = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "Weather for a place.\nGives degrees; \"feels like\" too.",
        "parameters": {
            "type": "object",
            "properties": {
                "city": {"type": "string", "description": "Town, e.g. Zürich or 東京 "},
                "unit": {"type": "string", "enum": ["celsius", "fahrenheit"], "default": "celsius"},
                "days": {"type": ["integer", "null"], "minimum": 1, "default": 3},
            },
            "required": ["city"],
        },
    },
}

SEARCH = {
    "type": "function",
    "function": {
        "name": "search_items",
        "description": "Finds items <b>by text</b> & price.",
        "strict": True,
        "parameters": {
            "type": "object",
            "$defs": {"range": {"type": "array", "items": {"type": "number"}, "maxItems": 2}},
            "properties": {
                "items": {"type": "array", "items": {"type": "object", "properties": {
                    "keys": {"type": "string"}, "values": {"anyOf": [{"type": "string"}, {"type": "null"}]}}}},
                "threshold": {"type": "number", "default": 1e-6, "exclusiveMinimum": 0.0},
                "nested": {"type": "object", "properties": {
                    "deep": {"type": "object", "properties": {"deeper": {"type": "boolean", "default": False}},
                             "required": ["deeper"], "additionalProperties": False}}},
                "get": {"$ref": "#/$defs/range"},
            },
            "required": ["items", "threshold"],
        },
    },
}

BARE = {"type": "function", "function": {"name": "now", "description": None, "parameters": {}}}

ARGUMENTS = [
    {"city": "Porto"},
    {"city": "São Paulo\u001f", "days": 2, "unit": None, "exact": True, "weight": 1e-6},
    {"items": [{"keys": "a\"b", "values": None}, {}], "threshold": 0.5, "nested": {"deep": {"deeper": False}}},
    {},
    {"numbers": FLOATS, "big": 12345678901234567890, "negative": -7, "empty": [], "text": "it's\n\tok \\ \"q\""},
]


# --- tokenizers -----------------------------------------------------------------------------------


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


def sentence_piece(specials, size, metaspace):
    tokenizer = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>", fuse_unk=True))
    if metaspace:
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
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
    if not metaspace:
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
                           "[/RESULT]"], 1100, metaspace=True)
    yield "inst", inst, {
        "bos_token": {"__type": "AddedToken", "content": "<s>", "lstrip": False, "normalized": False,
                      "rstrip": False, "single_word": False, "special": True},
        "eos_token": "</s>", "unk_token": "<unk>", "add_bos_token": True, "add_eos_token": False}, "named"

    turn = sentence_piece(["<pad>", "<eos>", "<bos>", "<turn>", "</turn>"], 900, metaspace=False)
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


def write_folder(name, tokenizer, config, place):
    folder = OUT / name
    folder.mkdir(parents=True)
    tokenizer.save(str(folder / "tokenizer.json"), pretty=False)
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "clean_up_tokenization_spaces": False,
              "model_max_length": 4096, **{key: value for key, value in config.items() if value is not None}}
    template = (TEMPLATES / f"{name}.jinja").read_text(encoding="utf-8")
    if place == "config":
        config["chat_template"] = template
    elif place == "named":
        more = (TEMPLATES / f"{name}.tool_use.jinja").read_text(encoding="utf-8")
        config["chat_template"] = [{"name": "default", "template": template},
                                   {"name": "tool_use", "template": more}]
    elif place == "json":
        # Processors store it so; the tokenizer library itself does not read this file.
        write_json(folder / "chat_template.json", {"chat_template": template})
    else:
        (folder / "chat_template.jinja").write_text(template, encoding="utf-8")
    write_json(folder / "tokenizer_config.json", config)
    eos = tokenizer.token_to_id(config["eos_token"])
    write_json(folder / "generation_config.json",
               {"eos_token_id": [eos, eos - 1] if name == "header" else eos})
    write_json(folder / "config.json", {"max_position_embeddings": 4096})
    return folder


def write_json(path, value):
    path.write_text(json.dumps(value, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")


# --- requests -------------------------------------------------------------------------------------


def call(name, arguments, number=0, as_text=False):
    arguments = json.dumps(arguments, ensure_ascii=False) if as_text else arguments
    return {"id": f"call{number:05}", "type": "function", "function": {"name": name, "arguments": arguments}}


def user(content):
    return {"role": "user", "content": content}


def assistant(content, **more):
    return {"role": "assistant", "content": content, **more}


def system(content):
    return {"role": "system", "content": content}


def requests():
    rng = random.Random(SEED)
    for text in ODD_TEXTS:
        yield {"messages": [user(text)]}
    for text in SENTENCES[:6]:
        yield {"messages": [system("Be brief."), user(text)]}
    for text in rng.sample(ODD_TEXTS[:24], 8):
        yield {"messages": [system(text), user("And?"), assistant(text), user(text)]}
    for turns in (3, 5, 9):
        messages = [(user if turn % 2 == 0 else assistant)(rng.choice(SENTENCES)) for turn in range(turns)]
        yield {"messages": messages}
        yield {"messages": [system(rng.choice(SENTENCES))] + messages}
        yield {"messages": messages + [assistant("Well, ")], "add_generation_prompt": False}
        yield {"messages": messages + [assistant("Once upon a time ")], "continue_final_message": True}
    for tools in ([WEATHER], [SEARCH], [WEATHER, SEARCH, BARE]):
        yield {"messages": [user("What is the weather in Porto?")], "tools": tools}
        yield {"messages": [system("Use the tools."), user("Any umbrellas?")], "tools": tools}
    yield {"messages": [user("No tools here.")], "tools": []}
    for number, arguments in enumerate(ARGUMENTS):
        for as_text in (False, True):
            asked = call("get_weather", arguments, number, as_text)
            result = {"role": "tool", "tool_call_id": asked["id"], "content": "{\"degrees\": 21.50}\n"}
            messages = [user("Weather?"), assistant(None, tool_calls=[asked]), result]
            yield {"messages": messages, "tools": [WEATHER, SEARCH]}
            yield {"messages": messages + [assistant("Mild."), user("Thanks!")], "tools": [WEATHER]}
    two = [call("get_weather", {"city": "Bonn"}, 1), call("search_items", {"threshold": 1e-6, "items": []}, 2)]
    results = [{"role": "tool", "tool_call_id": one["id"], "content": "line one\nline two \r\n\x1cthree"} for one in two]
    yield {"messages": [user("Both!"), assistant("Looking.", tool_calls=two), *results], "tools": [WEATHER, SEARCH]}
    yield {"messages": [user("Both!"), assistant("", tool_calls=two), *results, assistant("Done."), user("Good.")]}
    yield {"messages": [user("Q"), assistant("A", reasoning_content="Because\nof that."), user("R")]}
    yield {"messages": [user("Q"), assistant("A", reasoning="  spaces  "), user("R")]}
    yield {"messages": [user("Q"), assistant("<think>\nold\n</think>\n\nA"), user("R")]}
    yield {"messages": [user("Q"), assistant("half", reasoning_content="so far")], "add_generation_prompt": False}
    for thinking in (True, False):
        yield {"messages": [user("Think?")], "chat_template_kwargs": {"enable_thinking": thinking}}
    yield {"messages": [user("Now?")], "tools": [SEARCH], "chat_template_kwargs":
           {"date_string": "26 Jul 2024", "tools_in_user_message": False, "verbose_tools": True}}
    yield {"messages": [user([{"type": "text", "text": "one"}, {"type": "text", "text": " two "}])]}
    yield {"messages": [user([{"type": "text", "text": "what is this?"}, {"type": "image"}])]}
    yield {"messages": [user("hi"), assistant([{"type": "text", "text": "part"}]), user([])]}
    yield {"messages": [user("twice"), user("in a row")]}
    yield {"messages": [assistant("first")]}
    yield {"messages": [user("a"), system("late")]}
    yield {"messages": [{"role": "critic", "content": "unknown role"}]}
    yield {"messages": [{"role": "developer", "content": "Rules."}, user("ok")]}
    yield {"messages": [user("named"), {"role": "assistant", "content": "x", "name": "bob", "refusal": None}]}
    yield {"messages": [user("\n".join(rng.choice(SENTENCES) for _ in range(60)))]}
    for _ in range(6):
        pieces = rng.choices(SENTENCES + ODD_TEXTS, k=rng.randint(3, 8))
        yield {"messages": [system(rng.choice(SENTENCES)), user(rng.choice(["", " ", "\n"]).join(pieces))]}


def digest(data):
    return hashlib.sha256(data).hexdigest()


def ids_of(tokenizer, text, add_special_tokens):
    return tokenizer(text, add_special_tokens=add_special_tokens, truncation=False, padding=False)["input_ids"]


def outcome(tokenizer, ids):
    return {"tokens": len(ids), "ids_sha256": digest(struct.pack(f"<{len(ids)}I", *ids))}


def reference(tokenizer, request):
    given = {key: value for key, value in request.items() if key in ("tools", "continue_final_message")}
    given.update(request.get("chat_template_kwargs", {}))
    prompt = request.get("add_generation_prompt", not request.get("continue_final_message", False))
    text = tokenizer.apply_chat_template(
        request["messages"], tokenize=False, add_generation_prompt=prompt, **given)
    return {"text_sha256": digest(text.encode()), **outcome(tokenizer, ids_of(tokenizer, text, False))}


def main():
    kept = {}
    if "--train" not in sys.argv[1:]:
        kept = {path.parent.name: Tokenizer.from_file(str(path)) for path in OUT.glob("*/tokenizer.json")}
    shutil.rmtree(OUT, ignore_errors=True)
    lines, broken = [], 0
    for name, trained, config, place in families():
        folder = write_folder(name, kept.get(name, trained), config, place)
        tokenizer = AutoTokenizer.from_pretrained(folder)
        if place == "json":
            tokenizer.chat_template = json.loads((folder / "chat_template.json").read_text("utf-8"))["chat_template"]
        for request in requests():
            line = {"family": name, "request": request}
            try:
                line |= reference(tokenizer, request)
            except jinja2.exceptions.TemplateError as error:
                if type(error) is not jinja2.exceptions.TemplateError:
                    broken += 1
                    continue
                line["raises"] = str(error)
            except (TypeError, ValueError):
                # Python itself gave up: what a server answers to this is not ours to predict.
                broken += 1
                continue
            lines.append(line)
        for text in ODD_TEXTS + SENTENCES:
            lines.append({"family": name, "text": text, **outcome(tokenizer, ids_of(tokenizer, text, True))})
    with (OUT / "cases.jsonl").open("w", encoding="utf-8") as file:
        for line in lines:
            # ASCII keeps control characters and marks visible to reviewers.
            file.write(json.dumps(line) + "\n")
    chats = sum("request" in line for line in lines)
    print(f"{chats} requests, {len(lines) - chats} texts, {sum('raises' in line for line in lines)} refusals; "
          f"{broken} left out because Python failed on them")


if __name__ == "__main__":
    main()
