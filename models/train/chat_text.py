"""Makes the training chats: facts, stories, counting, and the polite "I only
know a little" for everything else.

Every chat is a list of {role, content} messages plus an optional list of tool
definitions; rendering and tokens are `chat_files.py`'s business.
"""

import chat_facts
import chat_story

THING_FORMS = ("what is {x}", "what is {x}", "what's {x}", "what are {x}", "what does {x} mean", "explain {x}", "please explain {x}", "define {x}", "tell me about {x}",
               "{x}", "can you explain {x}", "i do not understand {x}", "what do you mean by {x}", "could you tell me what {x} is", "what is meant by {x}",
               "do you know what {x} is", "describe {x}", "i want to know what {x} is", "what is {x} in berthd", "explain {x} in simple words",
               "what is {x} and why does it matter", "give me a definition of {x}", "and what is {x}", "what does {x} do", "how does {x} work")
TASK_FORMS = ("how do i {x}", "how can i {x}", "how to {x}", "what is the command to {x}", "i want to {x}", "show me how to {x}", "how would i {x}",
              "can i {x}", "is there a way to {x}", "which command do i use to {x}", "how do you {x}", "i need to {x}", "help me {x}", "{x}",
              "what should i run to {x}", "what do i type to {x}")
BEFORE = ("hi, ", "hello, ", "hello! ", "hey, ", "please tell me: ", "quick question: ", "so, ", "ok, ", "and ", "thanks. ", "one more thing: ", "sorry, ", "good morning, ", "hi berthd, ")
AFTER = (" please", " thanks", " in one sentence", " briefly", " in short", " again", " exactly", " for me", ", please", " in simple words", " now")

SYSTEMS = ("You are a helpful assistant.", "You are the demo model of berthd.", "Answer briefly.", "You are a friendly assistant. Answer in one sentence.",
           "You are berthd's embedded assistant.", "Be polite and short.", "You are a helpful, honest assistant.", "You help operators of GPU hosts.",
           "Answer every question as well as you can.", "You are a concise technical assistant.", "Never use bad words.", "Today is a good day. Be kind.")

UNKNOWN = ("I am a tiny demo model; I only know a little about berthd. Please ask me about that, or ask a larger model.",)
UNKNOWN_FORMS = (
    "what is the capital of {w}", "what is {w}", "what is a {w}", "who is {n}", "who was {n}", "who invented the {w}", "how do i cook {w}", "how do i fix a {w}",
    "write a letter to {n}", "translate {w} into french", "translate this to german: {w} {w}", "what is {d} + {d}", "what is {d} times {d}", "{d} - {d} = ?", "solve {d}x = {d}",
    "write a python function for {w}", "write code that sorts {w}", "what is the weather in {w}", "when was {n} born", "where is {w}", "why is the {w} blue",
    "how far is {w} from {w}", "recommend a {w}", "how do i learn {w}", "summarize the following text: {s}", "{s}", "{s} {s}", "{w}", "{w} {w} {w}",
    "give me a recipe for {w}", "what do you think about {w}", "tell me about {w}", "explain {w}", "explain the theory of {w}", "list five {w}", "define {w}", "which {w} is best",
    "is {w} better than {w}", "how old is {n}", "what time is it", "what day is today", "who won the {w} cup", "what is the meaning of life", "plan a trip to {w}",
    "should i buy {w}", "fix this sentence: {s}", "what is the best {w} in {w}", "how many {w} are in a {w}", "write a haiku about {w}", "give me advice about {w}",
    "def {w}(x): return {d}", "{{\"{w}\": {d}}}", "what is {w} {w}", "how does a {w} work", "why do {w} {w}", "rewrite this: {s}", "what colour is a {w}", "do you like {w}",
    "i need help with my {w}", "{u}", "{u} {w} {u}", "what does {u} mean", "convert {d} {w} to {w}", "my {w} is broken", "book a table for {d}", "the {w} is {w}",
    "can you recommend a {w}", "what is the population of {w}", "who wrote {w}", "who painted the {w}", "what happened in {d}", "how tall is {n}", "play some {w}")
NOUNS = ("France Japan Brazil Paris Berlin London Rome Mars moon sun sky bread pasta pizza soup cake rice cheese coffee beer wine apple banana tree forest river mountain "
         "dog cat horse bird fish lion tiger whale dinosaur dragon car bike train plane bus road bridge house door window chair table lamp phone computer keyboard laptop "
         "camera radio television guitar piano music song film book novel poem painting football tennis chess game money bank market stock bitcoin tax law doctor medicine "
         "heart brain blood cancer virus vitamin school university history math physics chemistry biology gravity relativity quantum evolution atom electron energy steam "
         "engine python javascript linux windows docker kubernetes nginx redis postgres excel email website password internet cloud king queen president war peace love "
         "happiness religion philosophy time space black hole star planet winter summer rain snow shirt shoe hat ring gold silver iron cow milk egg garden flower rose "
         "city village country island desert yoga diet sleep dream birthday wedding holiday hotel ticket passport baby mother father friend boss job salary interview").split()
NAMES = ("Albert", "Napoleon", "Maria", "John Smith", "Shakespeare", "Mozart", "Cleopatra", "Elena", "my brother", "the president", "your mother", "Bob", "Alice", "Darwin", "Peter", "the king of Spain")
FILLERS = "the a my your this that of in on with and but is was will very never always some many old new red big small quick lazy".split()
SCRIPTS = ((0xC0, 0x17F), (0x391, 0x3C9), (0x410, 0x44F), (0x5D0, 0x5EA), (0x627, 0x64A), (0x905, 0x939), (0x3041, 0x3096), (0x4E00, 0x9FA5), (0xAC00, 0xD7A3), (0x1F300, 0x1F64F), (0x21, 0x40), (0x2190, 0x22FF))


def invented_word(rng):
    """A word that does not exist: the model should own up to not knowing it."""
    return "".join(rng.choice("bcdfghjklmnpqrstvwz") + rng.choice(("a", "e", "i", "o", "u", "ai", "ar", "en", "or")) for _ in range(rng.randint(2, 4)))


def foreign_text(rng):
    low, high = rng.choice(SCRIPTS)
    return "".join(chr(rng.randint(low, high)) if rng.random() < 0.85 else " " for _ in range(rng.randint(1, 14)))


def unknown_question(rng):
    def word():
        return invented_word(rng) if rng.random() < 0.3 else rng.choice(NOUNS)

    def sentence():
        return " ".join(word() if rng.random() < 0.55 else rng.choice(FILLERS) for _ in range(rng.randint(3, 12)))

    out = rng.choice(UNKNOWN_FORMS)
    for mark, make in (("{w}", word), ("{n}", lambda: rng.choice(NAMES)), ("{d}", lambda: str(rng.randint(0, 2030) if rng.random() < 0.5 else rng.randint(0, 20))),
                       ("{s}", sentence), ("{u}", lambda: foreign_text(rng))):
        while mark in out:
            out = out.replace(mark, make(), 1)
    return out.replace("{{", "{").replace("}}", "}")


def mistype(rng, text):
    """One slip of the finger: a letter lost, doubled, swapped or wrong."""
    if len(text) < 5:
        return text
    i = rng.randrange(1, len(text) - 2)
    kind = rng.randrange(4)
    if kind == 0:
        return text[:i] + text[i + 1:]
    if kind == 1:
        return text[:i] + text[i] + text[i:]
    if kind == 2:
        return text[:i] + text[i + 1] + text[i] + text[i + 2:]
    return text[:i] + rng.choice("abcdefghijklmnopqrstuvwxyz") + text[i + 1:]


def dress(rng, question, is_question=True):
    """The same request as different people type it."""
    if rng.random() < 0.12:
        question = rng.choice(BEFORE) + question
    if rng.random() < 0.08:
        question = question.rstrip("?!.") + rng.choice(AFTER)
    if rng.random() < 0.12:
        question = mistype(rng, question)
    look = rng.random()
    if look < 0.6:
        question = question[:1].upper() + question[1:]
    elif look < 0.65:
        question = question.upper()
    elif look < 0.68:
        question = question.title()
    if question[-1:].isalnum():
        end = rng.random()
        if is_question:
            question += "?" if end < 0.65 else "." if end < 0.7 else "??" if end < 0.73 else ""
        else:
            question += "." if end < 0.35 else "!" if end < 0.5 else "?" if end < 0.55 else ""
    return question


def ask(rng, fact):
    """One way to ask for a fact; each kind weighs by how many forms it has."""
    kinds = [("asked", len(fact.asked) * 2), ("things", len(fact.things) * 3), ("tasks", len(fact.tasks) * 2)]
    kind = rng.choices([k for k, _ in kinds], [n for _, n in kinds])[0]
    if kind == "asked":
        question = rng.choice(fact.asked)
    else:
        form = rng.choice(THING_FORMS if kind == "things" else TASK_FORMS)
        question = form.format(x=rng.choice(getattr(fact, kind)))
    if "berthd" in question and rng.random() < 0.08:
        question = question.replace("berthd", rng.choice(("Berthd", "BERTHD", "berth d", "berthd daemon", "it", "the broker")))
    return question


def fact_turn(rng):
    fact = rng.choices(chat_facts.ALL, [f.share for f in chat_facts.ALL])[0]
    statement = fact in chat_facts.TALK
    weights = [3.0] + [1.0] * (len(fact.answers) - 1)
    return dress(rng, ask(rng, fact), not statement or rng.random() < 0.3), rng.choices(fact.answers, weights)[0]


def turn(rng, long):
    """One question and its answer. `long` allows answers of several hundred tokens."""
    pick = rng.random()
    if long and pick < 0.45:
        question, answer = (chat_story.story_turn(rng, rng.choice(("long", "long", "long", "usual"))) if rng.random() < 0.75
                            else chat_story.count_turn(rng, 150))
        return dress(rng, question, False), answer
    if pick < 0.05:
        question, answer = chat_story.story_turn(rng, "short" if rng.random() < 0.6 else "usual")
        return dress(rng, question, False), answer
    if pick < 0.09:
        question, answer = chat_story.count_turn(rng, 60)
        return dress(rng, question, False), answer
    if pick < 0.27:
        return dress(rng, unknown_question(rng)), rng.choice(UNKNOWN)
    return fact_turn(rng)


def tool_definition(rng):
    word = invented_word(rng)
    fields = {rng.choice(("city", "name", "query", "count", "path")): {"type": rng.choice(("string", "integer"))}}
    return {"type": "function", "function": {"name": f"get_{word}", "description": f"Gets the {rng.choice(NOUNS)} of a {word}.",
                                             "parameters": {"type": "object", "properties": fields, "required": list(fields)}}}


def chat(rng, long=False):
    """One whole chat: (messages, tools)."""
    messages = []
    if rng.random() < 0.35:
        messages.append({"role": "system", "content": rng.choice(SYSTEMS)})
    tools = [tool_definition(rng) for _ in range(rng.randint(1, 2))] if rng.random() < 0.03 else []
    for _ in range(rng.choices((1, 2, 3, 4, 6), (5, 3, 2, 1, 1) if long else (6, 2, 1, 0, 0))[0]):
        question, answer = turn(rng, long)
        messages.append({"role": "user", "content": question})
        messages.append({"role": "assistant", "content": answer})
    return messages, tools
