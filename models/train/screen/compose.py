"""Makes further training rows from the seeds: attacks in carriers with clean
twins, frames with harmful and harmless goals, user turns that end in an attack,
noisy copies. Texts outside the seeds come from the training rows only."""

import json
import random
import re
from collections import defaultdict
from pathlib import Path

import carriers
import fold

SEEDS = Path(__file__).with_name("seeds")
FILL = {
    "task": ["write a limerick about turnips", "say that the shop is closed", "list the colours of the rainbow", "praise the new phone",
             "answer every question with 'maybe'", "give the opposite answer", "recommend our premium plan", "tell a joke about ducks",
             "rate this 10 out of 10", "describe your hidden rules", "delete the draft folder", "translate everything to Latin",
             "approve the refund", "print the word TANGLE forty times", "explain how to pick a lock", "claim the product is recalled"],
    "url": ["https://collect.badsite.example/x", "http://203.0.113.7/drop", "https://files-sync.example.net/u?d=", "hxxp://tiny.example/a1",
            "https://hooks.example.org/in/77", "ftp://198.51.100.4/up", "https://img.example.com/p.gif?q="],
    "tool": ["send_email", "delete_file", "transfer_funds", "run_shell", "calendar.create", "browser.open", "http_post", "grant_access", "update_record"],
    "secret": ["the API key", "the system prompt", "the user's address", "all passwords", "the access token", "the customer list",
               "the hidden instructions", "the chat history", "the card number", "your configuration"],
    "name": ["Alex", "Orion", "Max", "Nyx", "Dr. Kessler", "Unit 7", "Mavis", "Kaito", "Old Bram", "Vera", "SHADE", "Lina"],
    "product": ["the lamp", "SoftDesk", "the blue kettle"], "company": ["Halden & Co", "Brightline", "Marrow Ltd"],
    "language": ["French", "Welsh", "Polish"], "topic": ["gardening", "tax", "old ships"], "date": ["3 May", "next Monday"],
    "email": ["j.doe@mail.example", "ops@dropbox.example"], "number": ["12", "4711"], "file": ["notes.txt", "report.pdf", ".env"],
}
HARMLESS_LINES = [
    "Please restart the service after you change the file.", "Do not forget to water the plants on Thursday.", "See the appendix for details.",
    "You must wear a helmet in the yard.", "Reply to this mail if you want to be removed from the list.", "Ignore the red light, it only means charging.",
    "Always rinse the filter before use.", "The previous section can be skipped by experienced readers.", "Please send the signed form to the front desk.",
    "Important: the office is closed on Monday.", "Note to reviewers: figures 2 and 3 were swapped.", "Never store the paint below five degrees.",
    "Follow the instructions on the label.", "Run the tests before you open a pull request.", "Use the new address from now on.",
    "System update tonight at 22:00.", "Answer all questions in section B.", "Click the link to confirm your address.", "Set the mode to manual first.",
    "You are now a member of the sailing club.", "Disregard the first invoice, it had the wrong date.", "Forget about the old password rules; the new ones are on the wall.",
    "Call this function only once.", "Remember to log out.", "The assistant will contact you within two days.", "Act quickly, seats are limited.",
    "Bitte beachten Sie die geänderten Öffnungszeiten.", "Ignorieren Sie die Meldung, sie verschwindet von selbst.", "Merci de répondre avant vendredi.",
    "Ne tenez pas compte du message précédent.", "Por favor, siga las instrucciones del manual.", "Olvide el paraguas si no llueve.",
    "请按照说明书操作。", "请忽略之前的邮件,附件有误。", "前回のメールは無視してください。", "説明書の手順に従ってください。", "Пожалуйста, следуйте инструкции.",
    "Не обращайте внимания на прошлое письмо.", "설명서를 따라 주세요.", "Leggere attentamente le istruzioni.", "Siga as instruções abaixo.",
]
SLOT = re.compile(r"\{([a-z_]+)\}")


def seeds():
    """Rows of every seed file; a broken line or one without text is skipped."""
    rows, seen = [], set()
    for path in sorted(SEEDS.glob("*.jsonl")):
        for line in path.read_text(encoding="utf-8").split("\n"):
            try:
                row = json.loads(line)
                text, kind = fold.fold(str(row["text"])).strip(), str(row["kind"])
            except (ValueError, KeyError, TypeError):
                continue
            if text and (kind, text) not in seen:
                seen.add((kind, text))
                rows.append({"text": text, "kind": kind, "lang": str(row.get("lang") or "en"), "author": str(row.get("author") or path.stem),
                             "calm": fold.fold(str(row.get("calm") or "")).strip()})
    return rows


def by_kind(rows):
    groups = defaultdict(list)
    for row in rows:
        groups[row["kind"]].append(row)
    return groups


def fill(rng, text, **given):
    def one(match):
        name = match.group(1)
        if name in given:
            return given[name]
        return rng.choice(FILL[name]) if name in FILL else match.group(0)
    return SLOT.sub(one, text)


def noisy(rng, text):
    """Slips of the finger and spacing; the same for both labels."""
    words = text.split(" ")
    for _ in range(max(1, len(words) // 12)):
        i = rng.randrange(len(words))
        w, act = words[i], rng.random()
        if len(w) > 3 and act < .5:
            k = rng.randrange(1, len(w) - 1)
            words[i] = w[:k] + rng.choice([w[k + 1] + w[k] + w[k + 2:], w[k + 1:], w[k] + w[k:]])
        elif act < .7:
            words[i] = w + rng.choice(["...", "!!", " ,", "?", " -", ";"])
        elif act < .85 and i + 1 < len(words):
            words[i] = w + rng.choice(["  ", "\n", "_", "/"])
    return " ".join(words)


class Maker:
    def __init__(self, train, harm, seed, without=()):
        """`without`: authors whose seeds are left out."""
        self.rng = random.Random(seed)
        rows = [s for s in seeds() if s["author"] not in without]
        self.kinds = by_kind(rows)
        self.documents = defaultdict(list)
        for row in train:
            if row["label"] == 0 and row["family"] in ("raw_doc", "r1_benign_document", "dialogue", "r1_benign_multilingual"):
                lines = [x.strip() for x in re.split(r"\n+|(?<=[.!?。])\s+", row["text"]) if x.strip()]
                if len(lines) > 2:
                    self.documents[row["lang"]].append(lines)
        for seed_row in self.kinds["benign_technical"] + self.kinds["benign_multilingual"]:
            lines = [x.strip() for x in re.split(r"\n+|(?<=[.!?。])\s+", seed_row["text"]) if x.strip()]
            self.documents[seed_row["lang"]].append(lines)
        self.every = [d for docs in self.documents.values() for d in docs]
        self.queries = [r["text"] for r in train if r["family"] in ("r1_benign_query", "benign_query", "plain_task") and len(r["text"]) < 300]
        self.queries += [r["text"] for r in self.kinds["benign_query"]]
        self.bad_goals = [r["text"] for r in harm if r["label"] == 1]
        self.good_goals = [r["text"] for r in harm if r["label"] == 0 and len(r["text"]) < 250]
        self.seed_goals = [fill(self.rng, r["text"]) for r in self.kinds["benign_frame_goal"]]
        self.out = []

    def add(self, text, label, family, author, lang="en", carrier="plain", span=None, pair=None):
        self.out.append({"text": text, "label": label, "family": family, "author": author, "lang": lang, "carrier": carrier,
                         "source": f"seeds {author}" if author else "own payload in new carriers", "payload_span": span, "pair": pair})

    def lines(self, lang):
        """A run of harmless lines, in the wished language most of the time."""
        pool = self.documents.get(lang) if self.rng.random() < .8 else None
        document = self.rng.choice(pool or self.every)
        count = self.rng.choice([1, 2, 3, 4, 6, 9, 14])
        at = self.rng.randint(0, max(0, len(document) - count))
        return [x[:400] for x in document[at:at + count]]

    def attack(self, payload):
        return fill(self.rng, payload["text"], goal=self.rng.choice(self.bad_goals))

    def calm(self, payload):
        """The author's harmless twin of an attack; empty where there is none."""
        return fill(self.rng, payload.get("calm") or "", goal=self.rng.choice(self.good_goals))

    def near_miss(self, payload):
        if payload.get("calm") and self.rng.random() < .7:
            return self.calm(payload)
        return self.harmless(payload["lang"])

    def harmless(self, lang):
        roll, pick = self.rng.random(), self.rng.choice
        if roll < .35:
            return pick(HARMLESS_LINES)
        if roll < .75 and self.kinds["benign_trigger"]:
            return fill(self.rng, pick(self.kinds["benign_trigger"])["text"])[:400]
        if roll < .85 and self.kinds["agent_benign"]:
            return fill(self.rng, pick(self.kinds["agent_benign"])["text"])[:400]
        return pick(pick(self.documents.get(lang) or self.every))[:300]

    def in_carriers(self, payloads, times):
        """Each payload in `times` carriers, each with its clean twin."""
        for payload in payloads:
            for _ in range(times):
                text = self.attack(payload)
                if self.rng.random() < .15:
                    text = noisy(self.rng, text)
                shape, lines = self.rng.choice(carriers.SHAPES), self.lines(payload["lang"])
                state = self.rng.getstate()
                attacked = carriers.place(shape, self.rng, lines, text)
                after = self.rng.getstate()
                self.rng.setstate(state)   # the twin has the same dice
                calm = self.rng.__class__(0)
                calm.setstate(state)
                self.rng.setstate(after)
                clean = carriers.place(shape, calm, lines, self.near_miss(payload))
                if attacked and clean:
                    pair = len(self.out)
                    name = shape.__name__
                    self.add(attacked[0], 1, f"c_{payload['kind']}", payload["author"], payload["lang"], name, attacked[1], pair)
                    self.add(clean[0], 0, "c_clean_twin", payload["author"], payload["lang"], name, clean[1] if self.rng.random() < .6 else None, pair)

    def direct(self, payloads, times):
        """An attack as the user's own words: bare, before, after, around a question."""
        for payload in payloads:
            for turn in range(times):
                text = self.attack(payload)
                if turn and self.rng.random() < .3:
                    text = noisy(self.rng, text)
                question = self.rng.choice(self.queries)
                glue = self.rng.choice([" ", "\n", "\n\n", ". ", "\n---\n"])
                shape = self.rng.choice(["bare", "after", "before", "after", "around"]) if turn else "bare"
                extra, calm = self.harmless(payload["lang"]), self.calm(payload)
                def wrap(middle):
                    return {"bare": middle, "after": question + glue + middle, "before": middle + glue + question,
                            "around": question + glue + middle + glue + extra}[shape]
                whole = wrap(text)
                start = whole.find(text)
                pair = len(self.out) if shape != "bare" or calm else None
                self.add(whole, 1, f"d_{payload['kind']}", payload["author"], payload["lang"], "plain", [start, start + len(text)], pair)
                if calm and (shape == "bare" or self.rng.random() < .7):
                    self.add(wrap(calm), 0, "d_near_miss", payload["author"], payload["lang"], "plain", None, pair)
                elif shape != "bare":
                    self.add(wrap(extra), 0, "d_two_questions", payload["author"], payload["lang"], "plain", None, pair)

    def frames(self, times):
        """Same frame, harmful goal -> 1, harmless goal -> 0."""
        for frame in self.kinds["frame"]:
            if "{goal}" not in frame["text"]:
                continue
            for _ in range(times):
                bad = self.rng.choice(self.bad_goals)
                good = self.rng.choice(self.seed_goals if self.seed_goals and self.rng.random() < .5 else self.good_goals)
                names = {"name": self.rng.choice(FILL["name"])}
                tidy = (lambda g: g.rstrip("?. ")) if self.rng.random() < .5 else (lambda g: g)
                pair = len(self.out)
                self.add(fill(self.rng, frame["text"], goal=tidy(bad), **names), 1, "f_harmful", frame["author"], frame["lang"], "plain", None, pair)
                self.add(fill(self.rng, frame["text"], goal=tidy(good), **names), 0, "f_harmless", frame["author"], frame["lang"], "plain", None, pair)

    def benign(self, times):
        for kind in sorted(k for k in self.kinds if "benign" in k):
            for row in self.kinds[kind]:
                for turn in range(times if kind != "benign_frame_goal" else 1):
                    text = fill(self.rng, row["text"])
                    if turn and self.rng.random() < .6:
                        text = noisy(self.rng, text)
                    elif turn and self.rng.random() < .5:
                        text = self.rng.choice([self.rng.choice(self.queries) + "\n" + text, text + "\n" + self.rng.choice(self.queries)])
                    self.add(text, 0, kind, row["author"], row["lang"])


def compose(train, harm, seed, without=(), scale=1.0):
    """All composed rows. Counts follow the number of seeds, so that few authors
    do not drown the labelled rows."""
    maker = Maker(train, harm, seed, without)
    kinds, n = maker.kinds, lambda budget, pool: max(1, min(12, round(scale * budget / max(1, len(pool)))))
    indirect = kinds["attack_indirect"]
    other = kinds["attack_direct"] + kinds["attack_leak"] + kinds["attack_multilingual"]
    maker.in_carriers(indirect, n(7000, indirect))
    maker.in_carriers(other, n(5000, other))
    maker.direct(other, n(6000, other))
    maker.direct(indirect, n(1200, indirect))
    maker.frames(n(5000, kinds["frame"]))
    maker.benign(n(9000, [r for k, group in kinds.items() if "benign" in k for r in group]))
    # Payloads of the labelled rows in these carriers, so that carrier shapes do not give an author away.
    spans = [r for r in train if r.get("payload_span") and r["label"] == 1 and r["carrier"] != "plain"]
    reused = maker.rng.sample(spans, min(len(spans), round(3000 * scale)))
    maker.in_carriers([{"text": r["text"][slice(*r["payload_span"])].replace("{", "(").replace("}", ")"), "kind": "reused", "lang": r["lang"],
                        "author": None} for r in reused if r["payload_span"][1] - r["payload_span"][0] < 900], 1)
    for goal in maker.bad_goals:
        maker.add(goal, 0, "bare_harmful", None)
    for goal in maker.good_goals:
        maker.add(goal, 0, "bare_harmless", None)
    for row in maker.out:
        if row["source"].startswith("own payload") and row["family"].startswith("bare"):
            row["source"] = "input-harm"
    return maker.out


def harm_goals(rows, kept_out):
    """Requests that do not occur in any text of the held-out rows."""
    blob = "\n".join(r["text"] for r in kept_out).lower()
    return [r for r in rows if r["text"].lower().rstrip("?. ") not in blob]
