#!/usr/bin/env python3
"""Renders chat templates with the conversations of the count fixtures, for tests/it/real_templates.rs.

    render_templates.py FOLDER OUT

For each NAME.jinja in FOLDER one line is written to OUT: a JSON list of the name and an outcome for each
conversation: the text, {"raises": words of the template} or {"fails": class of another error}. Runs in the
environment of make_count_fixtures.py. Nothing of it is kept.
"""

import json
import sys
from pathlib import Path

import jinja2
from count_conversations import conversations
from make_count_fixtures import OUT, Clock, rendered
from transformers import PreTrainedTokenizerFast
from transformers.utils import chat_template_utils

NAMED = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "pad_token": "<pad>"}


def outcome(tokenizer, request):
    try:
        return rendered(tokenizer, request)
    except jinja2.exceptions.TemplateError as error:
        kind = "raises" if type(error) is jinja2.exceptions.TemplateError else "fails"
        return {kind: str(error) if kind == "raises" else f"{type(error).__name__}: {error}"}
    except Exception as error:
        return {"fails": f"{type(error).__name__}: {error}"}


def main():
    folder, out = map(Path, sys.argv[1:3])
    chat_template_utils.datetime = Clock
    tokenizer = PreTrainedTokenizerFast(tokenizer_file=str(OUT / "chatml" / "tokenizer.json"), **NAMED)
    requests = conversations()
    with out.open("w", encoding="utf-8") as file:
        for path in sorted(folder.glob("*.jinja")):
            tokenizer.chat_template = path.read_text(encoding="utf-8")
            file.write(json.dumps([path.stem, *(outcome(tokenizer, request) for request in requests)]) + "\n")


if __name__ == "__main__":
    main()
