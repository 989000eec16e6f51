"""What model servers do to a request before their template sees it, written down a second time.

An independent reading of the rules in src/tokens/profile.rs, for templates that want text as content. A request
whose treatment is not documented is left out (`None`).
"""

import json

KNOWN = ("role", "content", "name", "tool_calls", "tool_call_id", "reasoning", "reasoning_content", "thinking")
KINDS = ("vllm", "sglang", "llama.cpp")


def texts(content):
    return [part["text"] for part in content]


def joined(kind, content):
    """Content as one text."""
    if content is None:
        return ""
    if isinstance(content, str):
        return content
    if kind != "llama.cpp":
        return {"vllm": "\n", "sglang": " "}[kind].join(texts(content))
    # The line end stands only behind text.
    whole = ""
    for text in texts(content):
        whole += ("\n" if whole else "") + text
    return whole


def with_parsed_arguments(calls):
    made = []
    for call in calls:
        function = dict(call["function"])
        if isinstance(function["arguments"], str):
            function["arguments"] = json.loads(function["arguments"])
        made.append({**call, "function": function})
    return made


def message(kind, sent):
    keeps_nulls = kind == "llama.cpp"
    made = {key: sent[key] for key in sent if key in KNOWN and (keeps_nulls or sent[key] is not None)}
    made["content"] = joined(kind, sent.get("content"))
    if not made.get("tool_calls", True):
        del made["tool_calls"]
    if "tool_calls" in made:
        made["tool_calls"] = with_parsed_arguments(made["tool_calls"])
    reasoning = next((sent[key] for key in ("reasoning_content", "thinking", "reasoning") if sent.get(key) is not None), None)
    if reasoning is not None:
        made["reasoning_content"] = reasoning
        if kind == "vllm":
            made.setdefault("reasoning", reasoning)
    return made


def tool(kind, sent):
    function, names = sent["function"], ("name", "description", "parameters")
    if kind == "llama.cpp":
        empty = {"name": "", "description": "", "parameters": {}}
        return {"type": "function", "function": {name: function.get(name, empty[name]) for name in names}}
    made = {}
    if kind == "sglang":
        made = {key: function[key] for key in function if key in (*names, "strict")}
    for name in names:
        made.setdefault(name, function.get(name))
    if function.get("strict") is not None:
        made.setdefault("strict", function["strict"])
    return {"type": "function", "function": made}


def without_developer(kind, template, messages):
    if all(one["role"] != "developer" for one in messages) or kind == "sglang":
        return messages
    if kind == "llama.cpp":
        return [{**one, "role": "system"} if one["role"] == "developer" else one for one in messages]
    if "developer" in template:
        return messages
    systems = [one["content"] for one in messages if one["role"] in ("system", "developer")]
    others = [one for one in messages if one["role"] not in ("system", "developer")]
    return [{"role": "system", "content": "\n\n".join(systems)}, *others]


def prepared(kind, template, request):
    """The request for the library, and the text that follows the prompt: encoded with it, and apart from it."""
    sent, last = request["messages"], request["messages"][-1]
    parts = [part for one in sent if isinstance(one.get("content"), list) for part in one["content"]]
    continued = request.get("continue_final_message", False)
    if any(part.get("type") != "text" for part in parts):
        return None
    if kind != "vllm":
        asks = continued and last["role"] != "assistant"
        if asks or "add_generation_prompt" in request or "documents" in request or last.get("tool_calls"):
            return None
    messages = without_developer(kind, template, [message(kind, one) for one in sent])
    made = {key: request[key] for key in ("documents", "add_generation_prompt") if key in request}
    made["chat_template_kwargs"] = dict(request.get("chat_template_kwargs", {}))
    if request.get("tools"):
        made["tools"] = [tool(kind, one) for one in request["tools"]]
    if kind == "llama.cpp":
        made["chat_template_kwargs"].setdefault("enable_thinking", True)
    behind = apart = ""
    if kind == "vllm":
        made["continue_final_message"] = continued
    elif last["role"] == "assistant" and kind == "sglang":
        *messages, answer = messages
        if continued:
            apart = "".join(texts(last["content"])) if isinstance(last["content"], list) else last["content"]
        else:
            messages = [*messages, {**answer, "role": "user"}]
    elif last["role"] == "assistant":
        messages = messages[:-1]
        if not messages:
            return None
        content = last.get("content") or ""
        behind = "\n\n".join(texts(content)) if isinstance(content, list) else content
        # An answer begun with nothing is not begun.
        made["add_generation_prompt"] = bool(behind)
    return {**made, "messages": messages}, behind, apart
