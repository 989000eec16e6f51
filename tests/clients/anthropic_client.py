"""The official Anthropic client counts tokens with a running daemon.

    python anthropic_client.py

Counts must be those of the chat request that the same conversation is, and errors the client's own kinds.
"""

import anthropic
import openai
from checks import Checks, raises, same, true
from processes import Berthd, embedded, fresh_key, tenant

MODEL = "demo-chat"
ALIAS = "claude-small"
HELLO = [{"role": "user", "content": "Hello"}]
TOOL = {"name": "weather", "description": "Tells it.", "input_schema": {"type": "object", "properties": {}}}


class World:
    """The daemon and its callers."""

    def __init__(self, daemon, keys):
        self.url = daemon.url
        common = {"base_url": daemon.url, "max_retries": 0, "timeout": 30}
        self.client, self.limited, self.wrong = (anthropic.Anthropic(api_key=key, **common) for key in keys)
        self.bearer = anthropic.Anthropic(auth_token=keys[0], **common)
        self.chat = openai.OpenAI(base_url=daemon.url + "/v1", api_key=keys[0], max_retries=0, timeout=30)

    def count(self, messages=HELLO, model=MODEL, **more):
        return self.client.messages.count_tokens(model=model, messages=messages, **more).input_tokens

    def billed(self, messages, **more):
        """What the embedded model says that the same chat had."""
        answer = self.chat.chat.completions.create(model=MODEL, messages=messages, max_tokens=1, **more)
        return answer.usage.prompt_tokens


def plain(world):
    same("input_tokens", world.count(), world.billed(HELLO))
    return f"{world.count()} tokens"


def system_and_blocks(world):
    blocks = [{"role": "user", "content": [{"type": "text", "text": "Hello"}]}]
    system = [{"type": "text", "text": "Be "}, {"type": "text", "text": "brief."}]
    chat = [{"role": "system", "content": "Be brief."}] + HELLO
    same("input_tokens", world.count(blocks, system=system), world.billed(chat))


def tools_and_results(world):
    use = {"type": "tool_use", "id": "t1", "name": "weather", "input": {"city": "Zürich"}}
    result = {"type": "tool_result", "tool_use_id": "t1", "content": "rain"}
    messages = HELLO + [{"role": "assistant", "content": [use]}, {"role": "user", "content": [result]}]
    call = {"id": "t1", "type": "function", "function": {"name": "weather", "arguments": '{"city": "Zürich"}'}}
    chat = HELLO + [
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "t1", "content": "rain"},
    ]
    function = {"name": TOOL["name"], "description": TOOL["description"], "parameters": TOOL["input_schema"]}
    counted = world.count(messages, tools=[TOOL])
    same("input_tokens", counted, world.billed(chat, tools=[{"type": "function", "function": function}]))
    return f"{counted} tokens"


def aliases_and_tokens_as_keys(world):
    same("by alias", world.count(model=ALIAS), world.count())
    counted = world.bearer.messages.count_tokens(model=MODEL, messages=HELLO)
    same("with auth_token", counted.input_tokens, world.count())


def source_is_told(world):
    raw = world.client.messages.with_raw_response.count_tokens(model=MODEL, messages=HELLO)
    same("source", raw.headers["x-berthd-token-count"], "exact")
    true("the request has an id", raw.headers["x-request-id"].startswith("req_"))


def errors_are_the_clients_own(world):
    error = raises(anthropic.BadRequestError, lambda: world.count([]))
    same("type", error.body["error"]["type"], "invalid_request_error")
    true("the message names the field", "messages" in error.body["error"]["message"])
    raises(anthropic.NotFoundError, lambda: world.count(model="nobody"))
    wrong = lambda client: lambda: client.messages.count_tokens(model=MODEL, messages=HELLO)
    raises(anthropic.AuthenticationError, wrong(world.wrong))
    world.limited.messages.count_tokens(model=MODEL, messages=HELLO)
    limited = raises(anthropic.RateLimitError, wrong(world.limited))
    true("it says how long to wait", float(limited.response.headers["retry-after"]) > 0)


CHECKS = (
    plain, system_and_blocks, tools_and_results, aliases_and_tokens_as_keys, source_is_told,
    errors_are_the_clients_own,
)


def main():
    checks = Checks()
    keys = [fresh_key() for _ in range(2)]
    tenants = tenant("all", keys[0][1]) + tenant("limited", keys[1][1], "requests_per_minute = 1")
    model = f'[[models]]\nname = "{MODEL}"\naliases = ["{ALIAS}"]\n'
    with Berthd("[probe]\ndiscover = false\n" + tenants + model + embedded()) as daemon:
        world = World(daemon, [key for key, _ in keys] + ["sk-berthd-nobody"])
        for check in CHECKS:
            checks.check(f"anthropic {check.__name__}", check, world)
    checks.end(f"anthropic {anthropic.__version__}")


if __name__ == "__main__":
    main()
