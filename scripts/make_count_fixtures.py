#!/usr/bin/env python3
"""Makes tests/fixtures/counts: small tokenizers, chat templates, requests and their reference counts.

    python3 -m venv .venv-fixtures
    .venv-fixtures/bin/pip install -r scripts/requirements-fixtures.txt
    .venv-fixtures/bin/python scripts/make_count_fixtures.py

The templates (scripts/count_templates) and all texts are our own, written in the style of the families in
circulation. The counts are what transformers' apply_chat_template and tokenizer say. `requests.jsonl` and
`texts.jsonl` are shared by all families; a family's `expected.jsonl` has a line for each of them:

    ["request", 12, SHA-256 of the text, tokens, SHA-256 of the ids]    hashes cut to 16 digits
    ["request", 13, {"raises": "words of the template"}]
    ["request", 14, {"fails": "TypeError"}]    Python itself gave up, so we must not give a text
    ["vllm", 12, ...]    the same as that kind of server prepares it: `sglang` and `llama.cpp` too
    ["text", 3, tokens, SHA-256 of the ids]

Training breaks ties in no fixed order, so tokenizers that exist are kept, and running the script again
changes nothing; `--train` makes new ones.
"""

import hashlib
import json
import os
import shutil
import struct
import sys
from datetime import datetime
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import jinja2
from count_conversations import ODD_TEXTS, SENTENCES, conversations
from count_families import TEMPLATES, families
from count_servers import KINDS, prepared
from tokenizers import Tokenizer
from transformers import AutoTokenizer
from transformers.utils import chat_template_utils

# Families whose templates want text, and whose requests are also tried as servers prepare them.
SERVED = ("merge", "bars", "clauses")
OUT = Path(__file__).resolve().parent.parent / "tests" / "fixtures" / "counts"


class Clock(datetime):
    """The time that templates are told."""

    @classmethod
    def now(cls, zone=None):
        return cls(2024, 7, 6, 15, 4, 5)


def write_folder(name, tokenizer, config, place):
    folder = OUT / name
    folder.mkdir(parents=True)
    tokenizer.save(str(folder / "tokenizer.json"), pretty=False)
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "clean_up_tokenization_spaces": False,
              "model_max_length": 4096, **{key: value for key, value in config.items() if value is not None}}
    template = (TEMPLATES / f"{name}.jinja").read_text(encoding="utf-8") if place else None
    if place is None:
        pass
    elif place == "config":
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


def digest(data):
    return hashlib.sha256(data).hexdigest()[:16]


def ids_of(tokenizer, text, add_special_tokens):
    return tokenizer(text, add_special_tokens=add_special_tokens, truncation=False, padding=False)["input_ids"]


def counted(ids):
    return [len(ids), digest(struct.pack(f"<{len(ids)}I", *ids))]


def rendered(tokenizer, request):
    """The prompt's text as the library makes it from a request."""
    given = {key: value for key, value in request.items() if key in ("tools", "documents", "continue_final_message")}
    given.update(request.get("chat_template_kwargs", {}))
    prompt = request.get("add_generation_prompt", not request.get("continue_final_message", False))
    return tokenizer.apply_chat_template(
        request["messages"], tokenize=False, add_generation_prompt=prompt, **given)


def served(tokenizer, kind, request):
    """What a kind of server counts, or nothing where that is not documented."""
    found = prepared(kind, tokenizer.chat_template, request)
    if found is None:
        return None
    made, behind, apart = found
    result = outcome(tokenizer, made, behind)
    if not isinstance(result[0], str):
        return result
    text = rendered(tokenizer, made) + behind
    ids = ids_of(tokenizer, text, False)
    if kind == "llama.cpp" and tokenizer.init_kwargs.get("add_bos_token"):
        # The template's own is cut, lest it come twice.
        ids = [tokenizer.bos_token_id, *ids_of(tokenizer, text.removeprefix(tokenizer.bos_token), False)]
    if apart:
        ids += ids_of(tokenizer, apart, False)
    return [digest((text + apart).encode()), *counted(ids)]


def outcome(tokenizer, request, behind=""):
    try:
        text = rendered(tokenizer, request) + behind
    except jinja2.exceptions.TemplateError as error:
        if type(error) is jinja2.exceptions.TemplateError:
            return [{"raises": str(error)}]
        return [{"fails": type(error).__name__}]
    except (TypeError, ValueError, KeyError, AttributeError) as error:
        return [{"fails": type(error).__name__}]
    return [digest(text.encode()), *counted(ids_of(tokenizer, text, False))]


def write_lines(path, lines):
    with path.open("w", encoding="utf-8") as file:
        for line in lines:
            # ASCII keeps control characters and marks visible to reviewers.
            file.write(json.dumps(line) + "\n")


def main():
    chat_template_utils.datetime = Clock
    kept = {}
    if "--train" not in sys.argv[1:]:
        kept = {path.parent.name: Tokenizer.from_file(str(path)) for path in OUT.glob("*/tokenizer.json")}
    shutil.rmtree(OUT, ignore_errors=True)
    requests, texts = conversations(), ODD_TEXTS + SENTENCES
    for name, trained, config, place in families():
        folder = write_folder(name, kept.get(name, trained), config, place)
        tokenizer = AutoTokenizer.from_pretrained(folder)
        if place == "json":
            tokenizer.chat_template = json.loads((folder / "chat_template.json").read_text("utf-8"))["chat_template"]
        lines = []
        if place:
            lines = [["request", at, *outcome(tokenizer, request)] for at, request in enumerate(requests)]
        for kind in KINDS if name in SERVED else ():
            found = ((at, served(tokenizer, kind, request)) for at, request in enumerate(requests))
            lines += [[kind, at, *result] for at, result in found if result]
        lines += [["text", at, *counted(ids_of(tokenizer, text, True))] for at, text in enumerate(texts)]
        write_lines(folder / "expected.jsonl", lines)
        kinds = [next(iter(line[2])) if isinstance(line[2], dict) else line[0] for line in lines]
        print(f"{name:10} {kinds.count('request')} rendered, {kinds.count('raises')} refused by the template, "
              f"{kinds.count('fails')} failed in Python, {kinds.count('text')} texts, "
              f"{sum(kinds.count(kind) for kind in KINDS)} as servers prepare them")
    write_lines(OUT / "requests.jsonl", requests)
    write_lines(OUT / "texts.jsonl", texts)


if __name__ == "__main__":
    main()
