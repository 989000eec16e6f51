#!/usr/bin/env python3
"""Makes tests/fixtures/snippets.jsonl: small templates and what jinja2 makes of them.

Runs in the environment of make_count_fixtures.py. Each snippet is rendered as transformers renders chat
templates, with the variables of the first line. A line holds the source and the text, or the words that the
template raised, or the class of any other error. Snippets in GAPS are those that we answer with an error
although Python does not; each group names the cause.
"""

import copy
import json
import os
import warnings
from datetime import datetime
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")
warnings.simplefilter("ignore")

import jinja2
from transformers.utils import chat_template_utils

HERE = Path(__file__).resolve().parent
OUT = HERE.parent / "tests" / "fixtures" / "snippets.jsonl"
# One snippet a line; those with line ends are below.
SNIPPETS = HERE / "template_snippets.txt"

VARIABLES = {
    "name": "world",
    "empty": "",
    "spaced": "  a b\tc \n",
    "odd": "\x1c\x1f\x85 x \xa0\u2028\u3000",
    "accents": "héllo wörld ÉÈ",
    "cjk": "今日は世界",
    "emoji": "a👩‍👩‍👧b",
    "html": "<a href=\"x\">'&'</a>",
    "lines": "one\ntwo\r\nthree\x0bfour\u2028five\n",
    "number": 7,
    "negative": -7,
    "zero": 0,
    "big": 12345678901234567890,
    "real": 2.5,
    "tiny": 1e-06,
    "huge": 1e16,
    "whole": 3.0,
    "yes": True,
    "no": False,
    "nothing": None,
    "items": [3, 1, 2],
    "words": ["pear", "Apple", "fig", "apple"],
    "mixed": [1, "a", None, True, 2.5, [1], {"k": 1}],
    "pairs": [["a", 1], ["b", 2]],
    "users": [
        {"name": "Zoe", "age": 30, "tags": ["x", "y"], "team": {"name": "red"}},
        {"name": "adam", "age": 25, "tags": [], "team": {"name": "blue"}},
        {"name": "Bob", "age": 30, "team": {"name": "Red"}},
    ],
    "schema": {
        "type": "object",
        "properties": {"items": {"type": "array"}, "keys": {"type": ["string", "null"]}, "get": {"default": 1e-7}},
        "required": ["items"],
        "update": "hidden",
        "copy": 1,
    },
    "call": {"name": "f", "arguments": {"a": 1, "b": [True, None], "c": "é<'\"\\\n"}},
}

MULTILINE = [
    "  {% if yes %}\n    indented\n  {% endif %}\nend",
    "  {%+ if yes %}\n    kept\n  {%+ endif +%}\nend",
    "a\n{%- if yes -%}\n  b\n{%- endif -%}\nc",
    "{{ \"a\" -}}   \n  b",
    "{% for i in items -%}\n  {{ i }}\n{%- endfor %}\n",
    "{% for i in items %}\n  * {{ i }}\n{% endfor %}\ndone\n",
    "  {# a comment line #}\nafter\n\n",
    "\t{% set x = 1 %}\ntab",
    "{% if yes +%}\nnewline kept\n{% endif %}",
    "a\r\nb{{ 1 }}\r\n{% if yes %}\r\nc\r{% endif %}\r\n",
    "x\n   {{ name }}\n   {%- set y = 1 %}\n   z",
    "\n\n{{ name }}\n\n",
    "{{ name }}\n",
    "{% raw %}\n  {{ x }}\n{% endraw %}\nend",
    "  {% raw %} a {% endraw %}  \nend",
    "a \u00a0\u2028{%- if yes %} b{% endif -%}\x1c\x85 c",
    "{% set x %}\n  text\n{% endset %}[{{ x }}]",
    "{% macro m(a) %}\n  <{{ a }}>\n{% endmacro %}\n[{{ m(1) }}]",
    "{% macro m(a) -%}\n  <{{ a }}>\n{%- endmacro %}\n[{{ m(1) }}]",
    "{{ '\n' }}|{{ 'a\nb' }}|{{ \"x\\\ny\" }}",
    "{%- for m in users -%}\n{{ m.name }}\n{% endfor -%}\n\n  tail",
    "{{- name }}\n{{ name -}}\n x",
    "line {% if yes %} inline {% endif %} rest\n  {% if no %}\n x\n  {% else %}\n y\n  {% endif %}\n",
    "{#- a -#}\n\n {#+ b +#}\n c {# d #}\n e",
    "{% generation %}\n  a\n{% endgeneration %}\nb",
    "{%if yes%}x{%endif%}{{name}}{{-name-}}{%-if yes-%} y {%-endif-%}",
    "{%- set a = [\n  1,\n  2,\n] -%}\n{{ a }}",
    "{{\n  name\n  | upper\n}}",
    "{% if yes %}{{ 'x' }}\n{% endif %}\n{% if no %}\n{% endif %}z",
    "  {{ name }}  \n  {% if yes %}  a  {% endif %}  \n",
]

# Sources that we answer with an error although Python renders them, by cause.
GAPS = {
    "filters that no chat template uses are not written": [
        "| urlencode", "| filesizeformat", "| wordwrap", "| striptags", "| urlize", "| pprint",
    ],
    "attributes of numbers are not written": ["number.real", "real.is_integer"],
    "integers are bounded": ["10 ** 50"],
    "there are no bytes": [".encode()"],
    "macros do not print themselves": ["{{ m }}"],
}


class Clock(datetime):
    @classmethod
    def now(cls, zone=None):
        return cls(2024, 7, 6, 15, 4, 5)


def sources():
    lines = SNIPPETS.read_text(encoding="utf-8").split("\n")
    seen = set()
    for line in [*lines, *MULTILINE]:
        if line and line not in seen:
            seen.add(line)
            yield line


def outcome(source):
    try:
        template = chat_template_utils._compile_jinja_template(source)
        # Some filters change a list that they then refuse.
        return {"text": template.render(**copy.deepcopy(VARIABLES))}
    except jinja2.exceptions.TemplateError as error:
        if type(error) is jinja2.exceptions.TemplateError:
            return {"raises": str(error)}
        return {"error": type(error).__name__}
    except Exception as error:
        return {"error": type(error).__name__}


def main():
    chat_template_utils.datetime = Clock
    lines = [{"variables": VARIABLES}]
    for source in sources():
        line = {"source": source, **outcome(source)}
        if " at 0x" in line.get("text", ""):
            # Addresses differ from run to run; to us this is an error.
            line = {"source": source, "error": "Address"}
        for cause, parts in GAPS.items():
            if any(part in source for part in parts) and "text" in line:
                line["gap"] = cause
        lines.append(line)
    with OUT.open("w", encoding="utf-8") as file:
        for line in lines:
            file.write(json.dumps(line) + "\n")
    texts = sum("text" in line for line in lines)
    print(f"{len(lines) - 1} snippets, {texts} texts, {sum('gap' in line for line in lines)} gaps")


if __name__ == "__main__":
    main()
