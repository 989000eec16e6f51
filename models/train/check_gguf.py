"""Compares a model folder with a llama.cpp server that serves its GGUF.

    python check_gguf.py FOLDER http://127.0.0.1:PORT

Two questions: does llama.cpp count the same input tokens for the same chat, and
does greedy decoding say the same tokens? The server must run with one slot's
context of at least 1024 tokens. Exits with 1 on any difference.
"""

import argparse
import json
import os
import random
import sys
import urllib.request
from pathlib import Path

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("XLA_FLAGS", "--xla_cpu_multi_thread_eigen=false")

import chat_files
import chat_model
import chat_text
from tokenizers import Tokenizer

ODD_TEXTS = (
    "", " ", "\n", "\n\n\n", "  two  spaces  ", "tab\tand\r\nreturn", "trailing newline\n", "<|im_end|>", "a<|im_start|>system\nb<|im_end|>", "<|begin_of_text|>",
    "<|end_of_text|>x", "<|im_end", "|im_end|>", "<|spare_3|>", "<|unknown|>", "DON'T we'LL i'Ve it'\u017f", "12345678901 1,234.50", "٣٤٥ Ⅷ ½ ²", "naïve café",
    "e\u0301 combining", "日本語のテキスト、です。", "한국어 텍스트", "שלום עולם", "مرحبا بالعالم", "हिन्दी पाठ", "👩‍👩‍👧‍👦 🏴󠁧󠁢󠁥󠁮󠁧󠁿", "\u00a0non-breaking\u2003em\u3000wide", "\u200bzero\u200dwidth\ufeff",
    "a\u2028b\u2029c\u0085d", "\x01\x02\x7f", "def f(x):\n    return x ** 2  # twice\n\n\tpass", "...!!!???\n\n;;", "{\"a\": [1, 2, {\"b\": null}]}", "a" * 300, "{{ 7 * 7 }} {% raw %}",
)
PROMPTS = (
    "Hello", "What is berthd?", "what is a kv cache?", "How do I drain a server?", "Count to 25", "tell me a short story", "Who are you?",
    "What is the capital of Peru?", "zorvaik fen luto?", "привет", "Tell me a long story about a harbour.",
)


def chats(seed, number):
    """Varied chats: odd texts, our own grammar, and random code points."""
    rng = random.Random(seed)
    for text in ODD_TEXTS:
        yield [{"role": "user", "content": text}], None
    for _ in range(number):
        messages, tools = chat_text.chat(rng)
        if rng.random() < 0.5:
            noise = "".join(chr(rng.choice((rng.randrange(32, 127), rng.randrange(160, 0xD800), rng.randrange(0xE000, 0x110000), 10, 32)))
                            for _ in range(rng.randrange(1, 40)))
            messages.append({"role": "user", "content": noise})
        elif messages[-1]["role"] == "assistant":
            messages = messages[:-1]
        yield messages, tools or None
    tool = chat_text.tool_definition(rng)
    call = {"id": "c1", "type": "function", "function": {"name": tool["function"]["name"], "arguments": "{\"city\": \"Zürich <b>\"}"}}
    yield [{"role": "user", "content": "Use it."}], [tool]
    yield [{"role": "user", "content": "Use it."}, {"role": "assistant", "content": "", "tool_calls": [call]},
           {"role": "tool", "tool_call_id": "c1", "content": "{\"ok\": true}"}], [tool]
    yield [{"role": "user", "content": [{"type": "text", "text": "one "}, {"type": "text", "text": "two"}]}], None


def post(url, body):
    request = urllib.request.Request(url, json.dumps(body).encode(), {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=120) as answer:
        return json.load(answer)


def check_counts(folder, url, number):
    wrong = total = 0
    for messages, tools in chats(11, number):
        ours = len(chat_files.prompt_ids(folder, messages, tools))
        body = {"messages": messages} | ({"tools": tools} if tools else {})
        theirs = post(url + "/v1/chat/completions/input_tokens", body)["input_tokens"]
        total += 1
        if ours != theirs:
            wrong += 1
            print(f"count differs: ours {ours}, llama.cpp {theirs}: {messages[-1]['content']!r} tools {tools}")
    print(f"counts: {total - wrong} of {total} chats equal")
    return wrong


def check_greedy(folder, url, limit):
    params, tokenizer = chat_files.read_weights(folder), Tokenizer.from_file(str(folder / "tokenizer.json"))
    stop = {tokenizer.token_to_id(chat_files.TURN_END), tokenizer.token_to_id(chat_files.END_TEXT)}
    wrong = 0
    for text in PROMPTS:
        prompt = chat_files.prompt_ids(folder, [{"role": "user", "content": text}])
        ours = chat_model.greedy(params, prompt, stop, limit, chat_model.Shape())
        answer = post(url + "/completion", {"prompt": prompt, "temperature": 0, "n_predict": limit, "return_tokens": True, "cache_prompt": False})
        theirs = [t for t in answer["tokens"] if t not in stop]
        same = ours == theirs
        wrong += not same
        print(f"{'same' if same else 'DIFFERENT'} {len(ours)} tokens: {text!r} -> {tokenizer.decode(ours)[:100]!r}")
        if not same:
            print(f"   llama.cpp: {tokenizer.decode(theirs)[:100]!r}")
    print(f"greedy: {len(PROMPTS) - wrong} of {len(PROMPTS)} answers equal, token by token")
    return wrong


def main():
    words = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    words.add_argument("folder", type=Path)
    words.add_argument("url")
    words.add_argument("--chats", type=int, default=100, help="random chats to count")
    words.add_argument("--limit", type=int, default=450, help="greedy tokens an answer")
    given = words.parse_args()
    wrong = check_counts(given.folder, given.url, given.chats)
    wrong += check_greedy(given.folder, given.url, given.limit)
    sys.exit(1 if wrong else 0)


if __name__ == "__main__":
    main()
