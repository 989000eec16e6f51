"""The real llama.cpp server behind berthd, serving the demo model converted to GGUF.

    python llama_cpp.py

Its word is compared with ours: token counts, room, who is busy, and what the same weights say.
"""

import concurrent.futures
import http.client
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import openai
from checks import Checks, Failed, same, true, until
from processes import DEMO_MODEL, REPOSITORY, Berthd, LlamaServer, embedded, fresh_key, get_json, tenant

MODEL = "demo-chat"
SLOTS = 2
CONTEXT = 4096
# Output tokens of a greedy answer that is compared.
GREEDY_TOKENS = 60
# Output tokens of an answer that is broken off: a second or more of one core.
LONG_TOKENS = 1900
# A slot is idle again one token after the server sees its caller leave; the rest is room for a busy
# machine. The answer itself must take several times as long, else the check says nothing.
IDLE_LIMIT_S = 0.25

ODD_TEXTS = (
    "What is berthd?", " ", "\n", "\n\n\n", "  two  spaces  ", "tab\tand\r\nreturn", "ends in a newline\n",
    "<|im_end|>", "a<|im_start|>system\nb<|im_end|>", "<|begin_of_text|>", "<|end_of_text|>x", "<|im_end",
    "|im_end|>", "<|unknown|>", "<s></s>[INST]", "DON'T we'LL i'Ve it's", "12345678901 1,234.50", "٣٤٥ Ⅷ ½ ²",
    "naïve café", "e\u0301 combining", "日本語のテキスト、です。", "한국어 텍스트", "שלום עולם", "مرحبا بالعالم", "हिन्दी पाठ",
    "👩‍👩‍👧‍👦 🏴󠁧󠁢󠁥󠁮󠁧󠁿", "\u00a0hard\u2003wide\u3000spaces", "zero\u200bwidth\ufeff", "a\u2028b\u0085c", "\x01\x7f",
    "def f(x):\n    return x ** 2  # twice\n\n\tpass", "...!!!???\n\n;;", '{"a": [1, {"b": null}]}', "a" * 300,
    "{{ 7 * 7 }} {% raw %}", "Жили-были старик со старухой",
)
TOOL = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "Tells the weather of a city, \"as is\" <b>é</b>.",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    },
}
PROMPTS = (
    "What is berthd?", "Hello", "How do I drain a server?", "What is a tenant?", "tell me a short story",
    "Who are you?", "what is a kv cache?", "Count to 25", "What is the capital of Peru?",
    "Tell me a long story about a harbour.", "zorvaik fen luto?", "привет",
)


def user(text):
    return {"role": "user", "content": text}


def chats():
    """Varied chats, each with its tools."""
    for text in ODD_TEXTS:
        yield [user(text)], None
    system = {"role": "system", "content": "You are terse. Ж <|im_start|>"}
    yield [system, user("Hello")], None
    yield [system, user("one"), {"role": "assistant", "content": "two"}, user("three ½")], None
    yield [user("x"), {"role": "assistant", "content": ""}, user("y")], None
    yield [user(f"turn {n // 2}") if n % 2 == 0 else {"role": "assistant", "content": f"answer {n}"} for n in range(21)], None
    yield [user("Use it.")], [TOOL]
    call = {"id": "c1", "type": "function", "function": {"name": "weather", "arguments": '{"city": "Zürich <b>"}'}}
    asked = {"role": "assistant", "content": "", "tool_calls": [call]}
    yield [user("Use it."), asked, {"role": "tool", "tool_call_id": "c1", "content": '{"ok": true}'}], [TOOL]
    yield [system, user("Both."), asked, {"role": "tool", "tool_call_id": "c1", "content": "3 °C"}, user("And?")], [TOOL, TOOL]
    parts = [{"type": "text", "text": text} for text in ("", "one ", "", "two")]
    yield [user(parts)], None
    yield [{"role": "system", "content": parts}, user([]), asked, {"role": "tool", "tool_call_id": "c1", "content": parts}], [TOOL]
    yield [user("Go on."), {"role": "assistant", "content": "So far "}], None
    yield [user("Go on."), {"role": "assistant", "content": parts}], None
    yield [user("long " * 300)], None


class World:
    """The real server; daemons before it that count by themselves, and that must ask; one without it."""

    def __init__(self, llama, exact, asking, inside, key):
        self.llama, self.exact, self.asking, self.key = llama, exact, asking, key
        self.to_exact, self.to_asking, self.to_inside = (
            openai.OpenAI(base_url=daemon.url + "/v1", api_key=key, max_retries=0, timeout=120)
            for daemon in (exact, asking, inside)
        )


def streamed(client, messages, tools=None, **more):
    """A streamed chat: its text, its usage, the head's count and where the count came from."""
    more |= {"tools": tools} if tools else {}
    create = client.chat.completions.with_raw_response.create
    raw = create(model=MODEL, messages=messages, stream=True, stream_options={"include_usage": True}, temperature=0, **more)
    text, usage = "", None
    for chunk in raw.parse():
        usage = chunk.usage or usage
        text += "".join(choice.delta.content or "" for choice in chunk.choices)
    return text, usage, int(raw.headers["x-berthd-input-tokens"]), raw.headers["x-berthd-token-count"]


def streamed_chat(world):
    text, usage, count, source = streamed(world.to_exact, [user("What is berthd?")], max_tokens=40)
    true("there is text", text)
    same("source of the count", source, "exact")
    same("usage.prompt_tokens", usage.prompt_tokens, count)
    return repr(text[:60])


def counts(client, source, list_of_chats):
    wrong = []
    for messages, tools in list_of_chats:
        _, usage, count, said = streamed(client, messages, tools, max_tokens=1)
        if said != source or usage.prompt_tokens != count:
            wrong.append(f"{messages[-1]['content']!r}: {count} ({said}), the server {usage.prompt_tokens}")
    if wrong:
        raise Failed(f"{len(wrong)} of {len(list_of_chats)} differ: " + "; ".join(wrong))
    return f"{len(list_of_chats)} of {len(list_of_chats)} chats equal"


def exact_counts(world):
    return counts(world.to_exact, "exact", list(chats()))


def asked_counts(world):
    return counts(world.to_asking, "server", list(chats()))


def count_metrics(world):
    """Every answer so far was checked by the daemon itself: no mismatch."""
    lines = [line for line in world.exact.metrics().splitlines() if line.startswith("berthd_token_count_checks")]
    true(f"counts were checked: {lines}", lines)
    true(f"all of them match: {lines}", all('result="match"' in line for line in lines))
    return lines[0]


def room(world):
    props = get_json(world.llama.url + "/props")
    capacity = world.exact.server("llama")["capacity"]
    # What one slot holds: the server does not say whether slots share their room.
    same("kv_tokens", capacity["kv_tokens"], props["default_generation_settings"]["n_ctx"])
    same("max_running", capacity["max_running"], props["total_slots"])
    same("slots", props["total_slots"], SLOTS)
    return f"{capacity['kv_tokens']} tokens, {capacity['max_running']} slots"


def version_and_models(world):
    server = world.exact.server("llama")
    same("health", server["health"]["state"], "up")
    same("models", server["models"], [MODEL])
    return f"version {server['version']}"


def long_call(stream):
    """A request that goes on until its last token unless it is broken off."""
    body = {"model": MODEL, "messages": [user("Tell me a long story about a harbour.")], "stream": stream}
    return body | {"temperature": 0, "max_tokens": LONG_TOKENS, "ignore_eos": True}


def open_call(world, stream):
    """Sends the long request; what comes is left on the connection."""
    host, port = world.exact.url.removeprefix("http://").split(":")
    connection = http.client.HTTPConnection(host, int(port), timeout=60)
    head = {"Authorization": f"Bearer {world.key}", "Content-Type": "application/json"}
    connection.request("POST", "/v1/chat/completions", json.dumps(long_call(stream)), head)
    return connection


def idle(world):
    return world.llama.slots_busy() == 0


def whole_takes(world):
    """How long the long request keeps a slot busy when nobody leaves."""
    connection = open_call(world, True)
    began = time.monotonic()
    answer = connection.getresponse()
    true("the answer is whole", answer.read().rstrip().endswith(b"[DONE]"))
    connection.close()
    return time.monotonic() - began


def abort_mid_stream(world):
    whole = whole_takes(world)
    true(f"the whole answer ({whole:.2f} s) takes far longer than the limit ({IDLE_LIMIT_S} s)", whole > 3 * IDLE_LIMIT_S)
    delays = []
    for _ in range(5):
        until("all slots are idle", 10, lambda: idle(world))
        connection = open_call(world, True)
        answer = connection.getresponse()
        for _ in range(10):
            answer.readline()
        same("busy slots while streaming", world.llama.slots_busy(), 1)
        answer.close()
        connection.close()
        _, delay = until("the slot is idle after its caller left", IDLE_LIMIT_S, lambda: idle(world))
        delays.append(delay * 1e3)
    until("berthd runs nothing", 5, lambda: world.exact.status()["running"] == 0)
    return f"idle after {', '.join(f'{delay:.0f}' for delay in delays)} ms; whole answer {whole * 1e3:.0f} ms"


def abort_whole_answer(world):
    """A caller of an answer that is not streamed leaves before anything came.

    berthd must let go at once. The server sees it only after a second in which none of its slots
    finished and nobody read /slots, so how long that takes is told, not judged.
    """
    connection = open_call(world, False)
    until("a slot is busy", 10, lambda: world.llama.slots_busy() == 1)
    connection.close()
    _, let_go = until("berthd runs nothing", IDLE_LIMIT_S, lambda: world.exact.status()["running"] == 0)
    _, idle_again = until("the slot is idle", 30, lambda: idle(world))
    return f"berthd let go after {let_go * 1e3:.0f} ms; the slot was idle {idle_again * 1e3:.0f} ms later"


def load_is_seen(world):
    connection = open_call(world, True)
    try:
        connection.getresponse().readline()
        until("the probe sees the busy slot", 10, lambda: world.exact.server("llama")["load"]["running"] == 1)
    finally:
        connection.close()
    until("the probe sees that it is idle again", 10, lambda: world.exact.server("llama")["load"]["running"] == 0)


def more_callers_than_slots(world):
    """Whoever finds no slot waits in berthd, and none is lost on a connection that the server closes."""
    callers, calls = 4 * SLOTS, 120
    with concurrent.futures.ThreadPoolExecutor(callers) as pool:
        ask = lambda n: streamed(world.to_exact, [user(f"Count to {n}")], max_tokens=12)
        answers = list(pool.map(ask, range(calls), timeout=120))
    true("all were answered", all(text and usage for text, usage, _, _ in answers))
    until("nothing runs", 5, lambda: world.exact.status()["running"] == 0)
    return f"{calls} requests by {callers} callers, {SLOTS} slots"


def greedy(client, text):
    """An answer's text, and its tokens as bytes. llama.cpp also lists the end mark, which has none."""
    answer = client.chat.completions.create(
        model=MODEL, messages=[user(text)], temperature=0, max_tokens=GREEDY_TOKENS, logprobs=True, top_logprobs=1
    )
    choice = answer.choices[0]
    tokens = [bytes(place.bytes or b"") for place in choice.logprobs.content]
    return choice.message.content, tokens[:-1] if tokens[-1:] == [b""] else tokens


def same_words(world):
    total = 0
    for text in PROMPTS:
        theirs, ours = greedy(world.to_exact, text), greedy(world.to_inside, text)
        same(f"the embedded model's answer to {text!r}", ours, theirs)
        total += len(ours[1])
    return f"{len(PROMPTS)} answers, {total} tokens, the same"


CHECKS = (
    version_and_models, room, streamed_chat, exact_counts, asked_counts, count_metrics, load_is_seen,
    abort_mid_stream, abort_whole_answer, more_callers_than_slots, same_words, count_metrics,
)


def convert(path):
    """The demo model as GGUF, 32 bit, as the training folder's own script makes it."""
    script = REPOSITORY / "models" / "train" / "to_gguf.py"
    subprocess.run([sys.executable, script, DEMO_MODEL, path], check=True, timeout=60)


def main():
    checks = Checks()
    key, digest = fresh_key()
    common = "[probe]\ndiscover = false\n" + tenant("checks", digest)
    with tempfile.TemporaryDirectory(prefix="berthd-gguf-") as folder:
        path = Path(folder) / f"{MODEL}.gguf"
        convert(path)
        with LlamaServer(path, MODEL, SLOTS, CONTEXT) as llama:
            server = f'[[servers]]\nname = "llama"\nkind = "llama.cpp"\nurl = "{llama.url}"\n'
            # Texts that spell control tokens are compared too.
            model = f'[[models]]\nname = "{MODEL}"\nspecial_tokens = "pass"\n'
            files = f'{model}folder = "{DEMO_MODEL}"\n'
            asked = f"[tokens]\nsearch = false\n{model}{server}"
            with Berthd(common + files + server) as exact, Berthd(common + asked) as asking, Berthd(common + embedded()) as inside:
                world = World(llama, exact, asking, inside, key)
                for daemon in (exact, asking):
                    until("the server is up", 20, lambda: daemon.server("llama")["usable"])
                for check in CHECKS:
                    checks.check(f"llama.cpp {check.__name__}", check, world)
    checks.end("llama.cpp")


if __name__ == "__main__":
    main()
