#!/usr/bin/env python3
"""Writes random snippets and what jinja2 makes of them, in the form of make_snippet_fixtures.py.

    random_snippets.py COUNT SEED OUT
    BERTHD_SNIPPET_FILE=OUT cargo test --lib random_snippets

To be run by hand after a change to the interpreter. Where Python renders, we must render the same text or fail;
where Python fails, we must fail.
"""

import json
import random
import sys
from pathlib import Path

from make_snippet_fixtures import VARIABLES, Clock, chat_template_utils, outcome

FILTERS = """abs attr:name batch:number capitalize center:number count default:any default:any,flag dictsort e first
float float:any forceescape format:any groupby:attribute indent indent:number,flag int int:any items join join:text
join:text,attribute= last length list lower map:filter map:attribute= max min reject:test rejectattr:attribute
rejectattr:attribute,test replace:text,text replace:text,text,number reverse round round:number safe select:test
selectattr:attribute selectattr:attribute,test,any slice:number sort sort:flag sort:attribute= string sum sum:attribute=
title tojson tojson:indent= trim trim:text truncate:number unique upper wordcount escape dictsort:flag d:any xmlattr""".split()
METHODS = """capitalize casefold center:number count:text endswith:text find:text get:text get:text,any index:any isalnum
isalpha isascii isdecimal isdigit islower isnumeric isspace istitle isupper items join:list keys ljust:number lower
lstrip lstrip:text partition:text removeprefix:text removesuffix:text replace:text,text rfind:text rindex:text
rjust:number,char rpartition:text rsplit rsplit:text rsplit:text,number rstrip rstrip:text split split:text
split:text,number splitlines splitlines:flag startswith:text strip strip:text swapcase title upper values zfill:number
copy append:any pop update:any format:any format:any,any expandtabs:number find:text,number count:text,number nope""".split()
TESTS = """defined undefined none boolean true false integer float number string mapping sequence iterable callable odd even
lower upper escaped divisibleby:number eq:any ne:any lt:any gt:any in:list sameas:any""".split()
TEXTS = ["", " ", "a", "x", "l", ",", "-", "\n", "Ab", "é", "<", "&", "the", "%s", "{}", "%d-%s", "{0}", "aXbXc", " a b ",
         "日本", "\t", "0", "12", "-3", "1.5", "'", '"', "\\", "one two"]


class Maker:
    def __init__(self, seed):
        self.rng = random.Random(seed)

    def pick(self, *choices):
        return self.rng.choice(choices)

    def text(self):
        return json.dumps(self.rng.choice(TEXTS), ensure_ascii=False)

    def number(self):
        return str(self.rng.choice([0, 1, 2, 3, -1, -2, 5, 9, 12]))

    def given(self, kind, depth):
        if kind.endswith("="):
            value = {"attribute=": self.attribute, "indent=": lambda: self.pick("2", "none", "0", "4")}[kind]()
            return kind + value
        return {
            "any": lambda: self.value(depth - 1), "text": self.text, "number": self.number,
            "flag": lambda: self.pick("true", "false"), "char": lambda: self.pick('"*"', '"é"'),
            "attribute": self.attribute, "name": lambda: self.pick('"name"', '"upper"', '"items"'),
            "filter": lambda: json.dumps(self.rng.choice(FILTERS).split(":")[0]),
            "test": lambda: json.dumps(self.rng.choice(TESTS).split(":")[0]),
            "list": lambda: self.pick("items", "words", "[1, 'a']", "'abc'", "schema", "(1, 2)"),
        }[kind]()

    def attribute(self):
        return json.dumps(self.pick("name", "age", "team.name", "tags", "0", "1", "nope", "type", "tags.0"))

    def arguments(self, spec, depth):
        name, _, kinds = spec.partition(":")
        kinds = kinds.split(",") if kinds else []
        return name, ", ".join(self.given(kind, depth) for kind in kinds)

    def value(self, depth):
        if depth <= 0 or self.rng.random() < 0.2:
            return self.rng.choice([*VARIABLES, *VARIABLES, "missing", "users[0]", "users", "schema.properties", self.number(),
                                    self.text(), self.text(), "true", "none", "1.5", "[]", "{}", "(1, 'b')", "[1, 2, 3]",
                                    "{'a': 1, 'b': [2]}", "range(3)", "'abc'|safe", "words[0]", "call.arguments"])
        shape = self.rng.random()
        if shape < 0.3:
            name, given = self.arguments(self.rng.choice(FILTERS), depth)
            return f"({self.value(depth - 1)})|{name}" + (f"({given})" if given else "")
        if shape < 0.5:
            name, given = self.arguments(self.rng.choice(METHODS), depth)
            return f"({self.value(depth - 1)}).{name}({given})"
        if shape < 0.6:
            name, given = self.arguments(self.rng.choice(TESTS), depth)
            return f"({self.value(depth - 1)}) is {self.pick('', 'not ')}{name}" + (f"({given})" if given else "")
        if shape < 0.8:
            op = self.pick("+", "-", "*", "/", "//", "%", "~", "~", "+", "==", "!=", "<", ">=", "in", "not in", "and", "or", "%", "**")
            if op == "**":
                return f"({self.value(depth - 1)}) ** {self.pick('2', '0', '1', '-1')}"
            return f"({self.value(depth - 1)}) {op} ({self.value(depth - 1)})"
        if shape < 0.9:
            key = self.pick("0", "-1", "1:", ":2", "::-1", "-2:", "1:-1", "::2", "'name'", "'items'", "'type'", "5", ":-1", "none")
            return f"({self.value(depth - 1)})[{key}]"
        if shape < 0.94:
            return f"({self.value(depth - 1)} if {self.value(depth - 1)}{self.pick('', ' else ' + self.value(depth - 1))})"
        return self.pick(f"not {self.value(depth - 1)}", f"-({self.value(depth - 1)})",
                         f"[{self.value(depth - 1)}, {self.value(depth - 1)}]", f"{{'k': {self.value(depth - 1)}}}",
                         f"({self.value(depth - 1)}).{self.pick('name', 'items', 'x', 'type', 'upper')}")

    def tag(self, inside):
        return "{%" + self.pick("", "", "-", "+") + f" {inside} " + self.pick("", "", "-", "+") + "%}"

    def gap(self):
        return self.pick("", " ", "\n", "\n  ", " \n", "a", "\n\n", "\t")

    def statement(self, depth):
        if depth <= 0:
            return "{{" + self.pick("", "-") + f" {self.value(2)} " + self.pick("", "-") + "}}"
        body, more = self.gap() + self.statement(depth - 1) + self.gap(), self.gap() + self.statement(depth - 1)
        shape = self.rng.randrange(9)
        if shape == 0:
            return f"{self.tag('if ' + self.value(2))}{body}{self.tag('else')}{more}{self.tag('endif')}"
        if shape in (1, 2):
            state = self.pick("", "{{ loop.index }}", "{{ ',' if not loop.last }}", "{{ loop.previtem }}", "{{ loop.revindex0 }}")
            test = self.pick("", "", f" if {self.value(1)}", " if x")
            return (f"{self.tag('for x in ' + self.value(1) + test)}{{{{ x }}}}{state}{body}"
                    f"{self.pick('', self.tag('else') + more)}{self.tag('endfor')}")
        if shape == 3:
            return f"{self.tag('set y = ' + self.value(2))}{body}{{{{ y }}}}"
        if shape == 4:
            return f"{self.tag('set y')}{body}{self.tag('endset')}[{{{{ y }}}}]"
        if shape == 5:
            return f"{self.tag('macro m(a, b=1)')}{body}{{{{ a }}}}{{{{ b }}}}{self.tag('endmacro')}{{{{ m({self.value(1)}) }}}}"
        if shape == 6:
            return f"{self.tag('with y = ' + self.value(1))}{body}{{{{ y }}}}{self.tag('endwith')}{{{{ y }}}}"
        if shape == 7:
            return f"{self.tag('filter ' + self.pick('upper', 'trim', 'indent', 'title'))}{body}{self.tag('endfilter')}"
        return f"{{#{self.pick('', '-', '+')} note {self.pick('', '-', '+')}#}}{body}"


def main():
    count, seed, out = int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3])
    chat_template_utils.datetime = Clock
    maker = Maker(seed)
    with out.open("w", encoding="utf-8") as file:
        file.write(json.dumps({"variables": VARIABLES}) + "\n")
        for number in range(count):
            source = "{{ " + maker.value(3) + " }}" if number % 3 else maker.gap() + maker.statement(2) + maker.gap()
            line = {"source": source, **outcome(source)}
            if " at 0x" in line.get("text", "") or len(line.get("text", "")) > 100_000:
                continue
            file.write(json.dumps(line) + "\n")


if __name__ == "__main__":
    main()
