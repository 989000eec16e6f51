"""Makes the demo chat model from nothing but the scripts in this folder.

    python demo_chat.py --out ../demo-chat          train and write the folder
    python demo_chat.py --out ../demo-chat --ask    ask the finished model some questions
    python demo_chat.py --manifest                  write ../manifest.toml anew

One core and less than 25 minutes; every seed is fixed.
"""

import argparse
import os
import random
import time
from pathlib import Path

# One thread: the GPU host this may run on has other work for its cores.
os.environ.setdefault("XLA_FLAGS", "--xla_cpu_multi_thread_eigen=false")
os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import numpy as np

import chat_files
import chat_model
import chat_text

CONTEXT = 2048
TEXT_SEED, TOKENIZER_CHATS = 7, 12000
# Rows of a batch: mostly short chats; every fourth step a few long ones, so that
# long answers and long chats are learned without paying their price each step.
SHORT_ROWS, LONG_ROWS, LONG_EVERY = (4, 256), (2, 512), 4

QUESTIONS = (
    "Hello", "hello, who are you?", "What is berthd?", "what can you do?", "How do I drain a server?", "what is a kv cache", "What is TTFT?",
    "Explain the difference between prefill and decode.", "what is a tenant?", "What does tier mean?", "What is a reservation?",
    "what is a placement", "How do I see the status?", "how do i check my config?", "Which model servers are supported?",
    "How does berthd read the GPUs?", "How are tokens counted?", "does it have prometheus metrics?", "What is the capital of France?",
    "Write a python function that sorts a list", "Say hello in one word.", "thanks!", "How do I get started?", "Count to 10", "Count to 100",
    "tell me a short story", "Tell me a long story about a harbour.", "Wht is brethd", "привет, как дела?", "Why is the sky blue?",
)


def corpus(rng):
    """Text the tokenizer learns from: what is said in the chats, without marks."""
    for number in range(TOKENIZER_CHATS):
        messages, tools = chat_text.chat(rng, long=number % 12 == 0)
        if tools:
            yield str(tools)
        for message in messages:
            yield message["role"] + "\n" + message["content"]
    # Every number up to 200 becomes one token, which is what counting needs.
    yield from (" ".join(str(n) for n in range(201)) for _ in range(300))


def encode(tokenizer, render, messages, tools):
    """A chat as (ids, spoken): spoken is 1 where the assistant must say the token."""
    ids = tokenizer.encode(render(messages, tools), add_special_tokens=False).ids
    start, end = (tokenizer.token_to_id(t) for t in (chat_files.TURN_START, chat_files.TURN_END))
    head = tokenizer.encode("assistant\n", add_special_tokens=False).ids
    spoken, speaking = [], False
    for at, token in enumerate(ids):
        spoken.append(1.0 if speaking else 0.0)
        if token == end:
            speaking = False
        elif ids[at - len(head):at + 1] == [start] + head:
            speaking = True
    return ids, spoken


def row_of(chats, length):
    """Packs whole chats into one row; a chat that does not fit waits for the next."""
    tokens, segments, spoken = (np.zeros(length, t) for t in (np.int32, np.int32, np.float32))
    used, number = 0, 0
    while used < length:
        ids, said = chats.pop() if chats.waiting else chats.make()
        if len(ids) > length:
            continue
        if used + len(ids) > length:
            chats.waiting.append((ids, said))
            break
        number += 1
        tokens[used:used + len(ids)], segments[used:used + len(ids)], spoken[used:used + len(ids)] = ids, number, said
        used += len(ids)
    return tokens, segments, spoken


class Chats:
    """An endless supply of encoded chats of one kind, with room to put one back."""

    def __init__(self, tokenizer, render, seed, long):
        self.rng, self.long, self.waiting = random.Random(seed), long, []
        self.tokenizer, self.render = tokenizer, render

    def make(self):
        return encode(self.tokenizer, self.render, *chat_text.chat(self.rng, self.long))

    def pop(self):
        return self.waiting.pop()


def batches(tokenizer, seed):
    render = chat_files.new_renderer(chat_files.TEMPLATE_PATH.read_text())
    short = Chats(tokenizer, render, seed + 1, long=False)
    long = Chats(tokenizer, render, seed + 2, long=True)
    step = 0
    while True:
        step += 1
        (rows, length), chats = (LONG_ROWS, long) if step % LONG_EVERY == 0 else (SHORT_ROWS, short)
        yield tuple(np.stack(part) for part in zip(*(row_of(chats, length + 1) for _ in range(rows))))


def ask_all(folder, shape, questions):
    params = chat_files.read_weights(folder)
    tokenizer = chat_files.Tokenizer.from_file(str(folder / "tokenizer.json"))
    stop = {tokenizer.token_to_id(chat_files.TURN_END), tokenizer.token_to_id(chat_files.END_TEXT)}
    for question in questions:
        prompt = chat_files.prompt_ids(folder, [{"role": "user", "content": question}])
        said = chat_model.greedy(params, prompt, stop, 600, shape)
        print(f"> {question}\n  {tokenizer.decode(said)}  [{len(said)} tokens]", flush=True)


def make(folder, steps):
    began = time.monotonic()
    folder.mkdir(parents=True, exist_ok=True)
    shape, plan = chat_model.Shape(), chat_model.Schedule(steps=steps)
    print("tokenizer: training", flush=True)
    tokenizer = chat_files.train_tokenizer(corpus(random.Random(TEXT_SEED)), shape.vocab)
    chat_files.write_tokenizer(folder, tokenizer, shape, CONTEXT)
    print(f"tokenizer: {tokenizer.get_vocab_size()} tokens, {time.monotonic() - began:.0f} s", flush=True)
    saves = folder / "progress.npz"
    params, loss = chat_model.train(shape, plan, batches(tokenizer, plan.seed), saves, lambda line: print(line, flush=True))
    chat_files.write_weights(folder, params)
    saves.unlink(missing_ok=True)
    count = sum(value.size for value in params.values())
    print(f"done: {count} parameters, {(folder / 'model.safetensors').stat().st_size} bytes, "
          f"final loss {loss:.4f}, {time.monotonic() - began:.0f} s", flush=True)


def main():
    words = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    words.add_argument("--out", type=Path, default=Path(__file__).parent.parent / "demo-chat")
    words.add_argument("--steps", type=int, default=chat_model.Schedule.steps)
    words.add_argument("--ask", nargs="*", metavar="QUESTION", help="ask the model in --out instead of training")
    words.add_argument("--manifest", action="store_true", help="write manifest.toml and stop")
    given = words.parse_args()
    if given.manifest:
        chat_files.write_manifest(Path(__file__).resolve().parent.parent)
    elif given.ask is not None:
        ask_all(given.out, chat_model.Shape(), given.ask or QUESTIONS)
    else:
        make(given.out, given.steps)


if __name__ == "__main__":
    main()
