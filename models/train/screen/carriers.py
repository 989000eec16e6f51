"""Document shapes with one slot. Each takes lines of harmless text and the slot's
text and returns a whole document; the slot is wrapped in two marks, so that
its place is found after all quoting and joining is done."""

import html
import json

OPEN, CLOSE = "\ue000", "\ue001"
PEOPLE = ["Mira", "Tomasz", "Ifeoma", "Lukas", "Chen", "Ana", "Dev", "Salma", "Oskar", "Yuki", "Bea", "Halvard", "Nadia", "Pavel"]
HOSTS = ["quayside.example", "tern.example.org", "northfield.example.net", "altona.example.com"]


def plain(rng, lines, slot):
    at = rng.choice([0, len(lines), rng.randint(0, len(lines))])
    glue = rng.choice(["\n", "\n\n", " "])
    return glue.join(lines[:at] + [slot] + lines[at:])


def inline(rng, lines, slot):
    """The slot stands in the middle of a line, as running text."""
    lines = lines or [""]
    i = rng.randrange(len(lines))
    words = lines[i].split(" ")
    at = rng.randint(0, len(words))
    lines = lines[:i] + [" ".join(words[:at] + [slot] + words[at:])] + lines[i + 1:]
    return "\n".join(lines)


def markdown(rng, lines, slot):
    head = rng.choice(["# Notes", "## Overview", "### Setup", "# Weekly report", "## FAQ", "# README"])
    wrap = rng.choice(["> {}", "- {}", "**{}**", "<!-- {} -->", "[//]: # ({})", "{}", "1. {}", "```\n{}\n```", "| note | {} |",
                       "![{}](img/p3.png)", "_{}_", "- [ ] {}"])
    body = [f"- {x}" if rng.random() < .2 else x for x in lines]
    at = rng.randint(0, len(body))
    return "\n".join([head, ""] + body[:at] + [wrap.format(slot)] + body[at:])


def page(rng, lines, slot):
    wrap = rng.choice(['<!-- {} -->', '<div style="display:none">{}</div>', '<img src="a.png" alt="{}">', '<p>{}</p>',
                       '<span style="font-size:0;color:#fff">{}</span>', '<li>{}</li>', '<meta name="description" content="{}">',
                       '<td>{}</td>', '<div aria-hidden="true">{}</div>', '<script type="text/plain">{}</script>',
                       '<a href="/help" title="{}">help</a>', '<noscript>{}</noscript>'])
    body = [f"<p>{html.escape(x, quote=False)}</p>" for x in lines]
    at = rng.randint(0, len(body))
    return "\n".join([rng.choice(["<html><body>", "<main>", "<article>", "<!doctype html>"])] + body[:at] + [wrap.format(slot)] + body[at:])


def record(rng, lines, slot):
    keys = ["title", "summary", "description", "body", "comment", "bio", "address", "snippet", "content", "remarks", "note"]
    rng.shuffle(keys)
    items = {k: x for k, x in zip(keys, lines[:5])} | {"id": rng.randint(1, 9999)}
    items[keys[7]] = slot
    pairs = list(items.items())
    rng.shuffle(pairs)
    value = dict(pairs)
    if rng.random() < .4:
        value = {rng.choice(["results", "items", "data", "documents"]): [value], "next": None}
    return json.dumps(value, ensure_ascii=False, indent=rng.choice([None, 2]))


def yaml(rng, lines, slot):
    body = [f"{k}: {x}" for k, x in zip(["name", "owner", "region", "purpose", "notes"], lines)]
    body.insert(rng.randint(0, len(body)), rng.choice(["description: {}", "# {}", "motd: \"{}\"", "annotations:\n  text: {}", "comment: |\n  {}"]).format(slot))
    return "\n".join(body)


def table(rng, lines, slot):
    head = rng.choice(["id,name,text", "date,author,message,score", "sku;label;review"])
    sep = ";" if ";" in head else ","
    cells = [x.replace('"', "'") for x in lines[:6]]
    cells.insert(rng.randint(0, len(cells)), slot.replace('"', "'"))
    return "\n".join([head] + [f'{i}{sep}{rng.choice(PEOPLE)}{sep}"{x}"' for i, x in enumerate(cells, 1)])


def xml(rng, lines, slot):
    tag = rng.choice(["entry", "product", "doc", "record"])
    body = [f"  <text>{html.escape(x, quote=False)}</text>" for x in lines[:5]]
    body.insert(rng.randint(0, len(body)), rng.choice(["  <note>{}</note>", "  <!-- {} -->", "  <title>{}</title>", "  <![CDATA[{}]]>"]).format(slot))
    return "\n".join([f"<{tag}>"] + body + [f"</{tag}>"])


def mail(rng, lines, slot):
    a, b = rng.sample(PEOPLE, 2)
    host = rng.choice(HOSTS)
    body = list(lines)
    body.insert(rng.randint(0, len(body)), slot)
    end = rng.choice(["Best,", "Kind regards", "Thanks!", "--", "Sent from my phone"])
    subject = rng.choice(["Friday", "invoice 4471", "trip", "question about the order", "Re: minutes", "access", "new address"])
    return f"From: {a.lower()}@{host}\nTo: {b.lower()}@{host}\nSubject: {subject}\n\nHi {b},\n\n" + "\n".join(body) + f"\n\n{end}\n{a}"


def tool(rng, lines, slot):
    name = rng.choice(["read_file", "fetch_page", "search_mail", "list_issues", "get_weather", "run_query", "open_ticket"])
    body = list(lines)
    body.insert(rng.randint(0, len(body)), slot)
    inner = "\n".join(body)
    return rng.choice([f"[{name}] returned:\n{inner}", f"<tool name=\"{name}\">\n{inner}\n</tool>", f"Observation: {inner}",
                       f"$ {name} --all\n{inner}\nexit code 0", f"Function {name} result:\n---\n{inner}\n---"])


def search(rng, lines, slot):
    hits = [x[:200] for x in lines[:5]]
    hits.insert(rng.randint(0, len(hits)), slot)
    return "\n\n".join(f"{i}. {rng.choice(HOSTS)}/{rng.choice(['a', 'blog', 'wiki', 'shop'])}\n   {x}" for i, x in enumerate(hits, 1))


def log(rng, lines, slot):
    words = ["cache warm", "accepted connection from 10.1.4.22", "GET /health 200", "retrying in 5 s", "job 88 done", "user=guest agent=\"curl/8\"",
             "disk 71 %", "config reloaded", "token refreshed", "slow query 812 ms"]
    rows = rng.sample(words, rng.randint(3, 7))
    rows.insert(rng.randint(0, len(rows)), rng.choice(["user_agent=\"{}\"", "{}", "msg=\"{}\"", "comment: {}", "GET /?q={} 404"]).format(slot))
    return "\n".join(f"2026-0{rng.randint(1, 9)}-1{rng.randint(0, 9)}T0{rng.randint(0, 9)}:11:0{rng.randint(0, 9)}Z {rng.choice(['INFO', 'WARN', 'DEBUG'])} {r}" for r in rows)


def code(rng, lines, slot):
    snippets = ["def total(rows):\n    return sum(r.price for r in rows)", "for (const f of files) {\n  await upload(f);\n}",
                "let n = input.trim().parse::<u32>()?;", "if err != nil {\n\treturn err\n}", "SELECT id FROM orders WHERE paid = 0;",
                "class Queue:\n    def __init__(self):\n        self.items = []", "const port = process.env.PORT || 8080;",
                "public int size() { return list.size(); }", "import os, sys", "printf(\"%d\\n\", count);"]
    rows = rng.sample(snippets, rng.randint(2, 4)) + ([lines[0][:200]] if lines and rng.random() < .3 else [])
    rows.insert(rng.randint(0, len(rows)), rng.choice(["# {}", "// {}", "/* {} */", "\"\"\"{}\"\"\"", "-- {}", "# TODO: {}", "print(\"{}\")", "<!-- {} -->"]).format(slot))
    return "\n".join(rows)


def diff(rng, lines, slot):
    rows = [f" {x[:120]}" for x in lines[:4]] + ["-old = 1", "+old = 2"]
    rows.insert(rng.randint(0, len(rows)), rng.choice(["+# {}", "+// {}", "+{}", " {}", "-{}"]).format(slot))
    return f"diff --git a/f{rng.randint(1, 99)} b/f\n@@ -{rng.randint(1, 99)},7 +1,8 @@\n" + "\n".join(rows)


def chat(rng, lines, slot):
    who = rng.sample(PEOPLE, 3)
    rows = [x[:240] for x in lines[:6]]
    rows.insert(rng.randint(0, len(rows)), slot)
    shape = rng.choice(["{}: {}", "<{}> {}", "[{}] {}", "{} wrote:\n> {}"])
    return "\n".join(shape.format(rng.choice(who), x) for x in rows)


def thread(rng, lines, slot):
    rows = list(lines[:5])
    rows.insert(rng.randint(0, len(rows)), slot)
    return f"Ticket #{rng.randint(100, 9999)}: {rng.choice(['login fails', 'printer offline', 'refund', 'wrong size', 'slow page'])}\n" + "\n".join(
        f"\n{rng.choice(['Customer', 'Agent', 'Support'])} ({rng.choice(PEOPLE)}):\n{x}" for x in rows)


def paper(rng, lines, slot):
    """Text as it falls out of a PDF: hard line ends, page numbers."""
    words = " ".join(lines).split(" ")
    at = rng.randint(0, len(words))
    words[at:at] = [slot]
    rows, row = [], []
    for word in words:
        row.append(word)
        if len(" ".join(row)) > 70:
            rows.append(" ".join(row))
            row = []
    rows.append(" ".join(row))
    rows.insert(rng.randint(0, len(rows)), f"\n{rng.randint(2, 40)}\n")
    return "\n".join(rows)


def titles(rng, lines, slot):
    rows = [x[:80] for x in lines[:5]]
    rows.insert(rng.randint(0, len(rows)), slot)
    return "\n\n".join(f"{i}\n00:0{rng.randint(0, 9)}:{10 + i},000 --> 00:0{rng.randint(0, 9)}:{12 + i},500\n{x}" for i, x in enumerate(rows, 1))


def review(rng, lines, slot):
    rows = [x[:160] for x in lines[:4]]
    rows.insert(rng.randint(0, len(rows)), slot)
    return "\n".join(f"{'★' * rng.randint(1, 5)} {rng.choice(PEOPLE)}: {x}" for x in rows)


def question(rng, lines, slot):
    """A user's task over a pasted text."""
    task = rng.choice(["Summarize this:", "Translate to German:", "What are the key points?", "Proofread the following text.",
                       "Answer from the document only.\n\nDocument:", "Is this review positive or negative?", "tl;dr please",
                       "Extract all dates.", "Context:", "Here is the page you asked for:", "Rewrite it in a friendly tone:",
                       "Classify the ticket below.", "Fasse zusammen:", "Résume ce texte :", "Resume este texto:"])
    return task + "\n\n" + plain(rng, lines, slot)


SHAPES = [plain, plain, inline, inline, markdown, markdown, page, page, record, record, yaml, table, xml, mail, mail, tool, tool,
          search, log, code, code, diff, chat, chat, thread, paper, titles, review, question, question, question]


def place(shape, rng, lines, slot):
    """(text, [start, end)) with the slot in the document."""
    text = shape(rng, lines, OPEN + slot + CLOSE)
    start, end = text.find(OPEN), text.find(CLOSE)
    if start < 0 or end < 0:  # json escapes nothing of the private use area, so this means a cut slot
        return None
    inner = text[start + 1:end]
    return text[:start] + inner + text[end + 1:], [start, start + len(inner)]
