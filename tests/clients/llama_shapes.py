"""Requests of other APIs, counted by berthd and by the real llama.cpp server: the same numbers.

    python llama_shapes.py

Messages and Responses requests, and chats with tools, made by chance (always the same ones) go to the server's own counting
endpoints and to `berthd tokens`, which has only the GGUF file.
"""

import json
import random
import subprocess
import tempfile
import urllib.error
import urllib.request
from pathlib import Path

from checks import Checks, Failed, same, true
from llama_cpp import CONTEXT, MODEL, SLOTS, convert
from processes import LlamaServer, program

REQUESTS = 300
SEED = 20260
TEXTS = ("a", "hello there", " spaced ", "naïve 🏗", "line\nbreak", "<|im_end|>", "")
SCHEMAS = ({}, {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]})
HEADER = "x-anthropic-billing-header: cc_version=2.1; cch=a1b2c;You are an agent."


class Maker:
    """Requests by chance."""

    def __init__(self):
        self.random = random.Random(SEED)

    def text(self):
        return self.random.choice(TEXTS)

    def some(self, make, least=0, most=3):
        return [make() for _ in range(self.random.randint(least, most))]

    def block(self):
        return {"type": "text", "text": self.text()}

    def result(self):
        block = {"type": "tool_result", "tool_use_id": "t1"}
        content = self.random.choice(("none", "text", "blocks"))
        if content == "text":
            block["content"] = self.text()
        elif content == "blocks":
            block["content"] = self.some(self.block)
        return block

    def use(self):
        given = self.random.choice(({}, {"city": "Zürich"}, {"a": [1, 2.5, None], "b": {"c": True}}))
        return {"type": "tool_use", "id": "t1", "name": "weather", "input": given}

    def thinking(self):
        return self.random.choice(
            ({"type": "thinking", "thinking": "hm, " + self.text(), "signature": "s"}, {"type": "redacted_thinking", "data": "z"})
        )

    def message(self, role):
        if self.random.random() < 0.3:
            return {"role": role, "content": self.text()}
        blocks = self.some(self.block, 1)
        other = {"user": self.result, "assistant": self.random.choice((self.use, self.thinking))}[role]
        for _ in range(self.random.randint(0, 2)):
            blocks.insert(self.random.randint(0, len(blocks)), other())
        return {"role": role, "content": blocks}

    def messages(self):
        body = {"model": MODEL, "max_tokens": 10, "messages": []}
        # Most end with the user: an answer that ends in a call or in thinking is not to be continued.
        for turn in range(self.random.choice((1, 2, 3, 3, 4, 5, 5, 7))):
            body["messages"].append(self.message(("user", "assistant")[turn % 2]))
        system = self.random.choice((None, "text", "blocks", "header"))
        if system:
            body["system"] = {"text": self.text(), "blocks": self.some(self.block), "header": HEADER}[system]
        if self.random.random() < 0.4:
            tool = {"name": "weather", "input_schema": self.random.choice(SCHEMAS)}
            if self.random.random() < 0.5:
                tool["description"] = self.text()
            body["tools"] = [tool]
        return body

    def turns(self):
        """A conversation in chat form: a system message or none, turns in text or parts, a question at the end."""
        turns = [{"role": "system", "content": self.text()}] if self.random.random() < 0.4 else []
        for _ in range(self.random.choice((0, 0, 1, 2, 4))):
            turns.append({"role": "user", "content": self.text()})
            turns.append({"role": "assistant", "content": self.text() or "so"})
        parts = [{"type": "text", "text": self.text()} for _ in range(self.random.randint(1, 3))]
        return [*turns, {"role": "user", "content": self.random.choice((self.text(), parts))}]

    def chat(self):
        """Tools as callers write them: keys in any order, some missing, some of their own."""
        if self.random.random() < 0.5:
            return {"model": MODEL, "messages": self.turns()}
        tools = []
        for name in ("weather", "time")[: self.random.randint(1, 2)]:
            function = {"name": name}
            more = {"description": self.text(), "parameters": self.random.choice(SCHEMAS), "strict": True, "own": [1]}
            function |= {key: value for key, value in more.items() if self.random.random() < 0.6}
            keys = list(function)
            self.random.shuffle(keys)
            tools.append({"type": "function", "function": {key: function[key] for key in keys}})
        return {"model": MODEL, "messages": self.turns(), "tools": tools}

    def part(self):
        return {"type": "input_text", "text": self.text()}

    def items(self):
        kind = self.random.choice(("user", "user", "system", "assistant", "call", "reasoning"))
        if kind in ("user", "system"):
            content = self.text() if self.random.random() < 0.5 else self.some(self.part, 1)
            return [{"role": kind, "content": content}]
        if kind == "assistant":
            return [{"type": "message", "role": kind, "content": [{"type": "output_text", "text": self.text()}]}]
        if kind == "reasoning":
            told = [{"type": "reasoning_text", "text": "hm " + self.text()}]
            return [{"type": "reasoning", "summary": [], "content": told}]
        call = {"type": "function_call", "call_id": "c1", "name": "weather", "arguments": '{"city": "Zürich"}'}
        output = self.text() if self.random.random() < 0.5 else self.some(self.part, 1)
        return [call, {"type": "function_call_output", "call_id": "c1", "output": output}]

    def responses(self):
        body = {"model": MODEL, "input": [{"role": "user", "content": self.text()}]}
        for _ in range(self.random.randint(0, 4)):
            body["input"] += self.items()
        if self.random.random() < 0.3:
            body["input"] = self.text() or "x"
        if self.random.random() < 0.5:
            body["instructions"] = self.text()
        if self.random.random() < 0.4:
            tool = {"type": "function", "name": "weather", "parameters": self.random.choice(SCHEMAS)}
            body["tools"] = [tool | self.random.choice(({}, {"strict": True}, {"description": "Tells it."})), {"type": "web_search"}]
        return body


def asked(url, body, read=lambda answer: answer["input_tokens"]):
    """The server's own count; None where it refuses the request."""
    head = {"Content-Type": "application/json"}
    request = urllib.request.Request(url, json.dumps(body).encode(), head)
    try:
        with urllib.request.urlopen(request, timeout=30) as answer:
            return read(json.load(answer))
    except urllib.error.HTTPError as error:
        error.read()
        return None


def compare(llama, path, shape, route, bodies):
    command = [program(), "tokens", "--model-dir", path, "--server-kind", "llamacpp", "--shape", shape, "--jsonl"]
    lines = "".join(json.dumps(body) + "\n" for body in bodies)
    said = subprocess.run([str(word) for word in command], input=lines, capture_output=True, text=True, timeout=120)
    ours = [json.loads(line) for line in said.stdout.splitlines()]
    same("answers", len(ours), len(bodies))
    wrong, refused, passed_on = [], 0, 0
    for body, answer in zip(bodies, ours):
        theirs = asked(llama.url + route, body)
        if shape == "chat" and theirs is not None:
            # What it bills when it runs.
            run = {**body, "max_tokens": 1}
            billed = asked(llama.url + "/v1/chat/completions", run, lambda told: told["usage"]["prompt_tokens"])
            if billed is not None and billed != theirs:
                raise Failed(f"the server bills {billed} and says {theirs}: {json.dumps(body)[:600]}")
        if theirs is None:
            refused += 1
        elif answer.get("source") != "exact":
            passed_on += 1
        elif answer["input_tokens"] != theirs:
            wrong.append(f"{json.dumps(body, ensure_ascii=False)[:600]}: {answer['input_tokens']}, the server {theirs}")
    counted = len(bodies) - refused - passed_on
    if wrong:
        raise Failed(f"{len(wrong)} of {counted} differ: " + "\n".join(wrong[:3]))
    true(f"most were counted exactly: {counted} of {len(bodies)}", counted > len(bodies) * 0.8)
    return f"{counted} of {counted} equal; {refused} refused by the server, {passed_on} not counted here"


def main():
    checks, make = Checks(), Maker()
    with tempfile.TemporaryDirectory(prefix="berthd-gguf-") as folder:
        path = Path(folder) / f"{MODEL}.gguf"
        convert(path)
        with LlamaServer(path, MODEL, SLOTS, CONTEXT) as llama:
            for shape, route, one in (
                ("chat", "/v1/chat/completions/input_tokens", make.chat),
                ("messages", "/v1/messages/count_tokens", make.messages),
                ("responses", "/v1/responses/input_tokens", make.responses),
            ):
                bodies = [one() for _ in range(REQUESTS)]
                what = " and bills" if shape == "chat" else ""
                checks.check(f"llama.cpp counts{what} {shape}", compare, llama, path, shape, route, bodies)
    checks.end("llama.cpp, other shapes")


if __name__ == "__main__":
    main()
