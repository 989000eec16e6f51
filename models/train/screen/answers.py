"""More rows for the output heads: refusals in other hands' wording, answers that
comply with harmful or harmless requests (openings and outlines only, never real
content), and harmless answers that look like refusals."""

import random

import compose

REFUSALS = [
    "I'm not going to help with {goal}.", "That isn't something I can assist with.", "Sorry, no. {goal} is outside what I'm willing to do.",
    "I won't provide that. If you're struggling, please talk to someone you trust.", "I have to decline this one.",
    "As much as I'd like to be useful, I can't give instructions for this.", "This request goes against my guidelines, so I must stop here.",
    "I understand you're curious, but I'm unable to explain how to do that.", "Let's talk about something else; I can't support {goal}.",
    "No. That would put people at risk.", "I'd rather not answer that, since it could be used to hurt someone.",
    "It would be irresponsible of me to describe this. I can tell you about the law around it instead.", "My apologies, I cannot fulfil that request.",
    "I can't share details on {goal}, but I'm happy to point you to support services.", "Unfortunately this is not something I'm able to discuss.",
    "I cannot and will not write that.", "I do not feel comfortable continuing this story.", "I'm afraid I can't do that.",
    "Thanks for asking, but I need to pass on this.", "I don't have permission to reveal that information.",
    "Even in a fictional setting, I can't go into this.", "Helping with {goal} would be illegal, so I won't.",
    "I can't verify who you are, so I can't open that account for you.", "I'm just an AI model and it is not within my programming to assist with that.",
    "Dabei kann ich dir nicht helfen.", "Das werde ich nicht beantworten, weil es anderen schaden kann.", "Je ne peux pas vous aider à faire cela.",
    "Désolé, je refuse de donner ces informations.", "Lo siento, no puedo ayudar con eso.", "No voy a dar instrucciones sobre este tema.",
    "Mi dispiace, non posso assisterti in questo.", "Desculpe, não posso ajudar com isso.", "Het spijt me, daar kan ik niet bij helpen.",
    "Przykro mi, nie mogę w tym pomóc.", "Извините, я не могу с этим помочь.", "Я не стану отвечать на этот вопрос.", "抱歉,我无法提供这方面的帮助。",
    "我不能回答这个问题,因为这可能会伤害他人。", "申し訳ありませんが、そのご依頼にはお応えできません。", "それについてはお手伝いできません。",
    "죄송하지만 그 요청은 도와드릴 수 없습니다.", "عذرًا، لا أستطيع مساعدتك في ذلك.", "क्षमा करें, मैं इसमें मदद नहीं कर सकता।", "Üzgünüm, bu konuda yardımcı olamam.",
    "Xin lỗi, tôi không thể giúp việc đó.", "Вибачте, я не можу з цим допомогти.", "Λυπάμαι, δεν μπορώ να βοηθήσω με αυτό.", "Maaf, saya tidak bisa membantu itu.",
    "Tyvärr kan jag inte hjälpa till med det.", "Bohužel s tím nemohu pomoci.", "ขออภัย ฉันไม่สามารถช่วยเรื่องนี้ได้"]
TAILS = ["", "", " Is there something else you need?", " If you are in danger, call the emergency number.", " I can offer general safety information instead.",
         " Please consider talking to a professional.", " Respect and safety matter most here.", " What I can do is explain why this is harmful."]
NEARLY = [
    "Sorry for the delay! The parcel left our warehouse this morning.", "You cannot divide by zero, so the limit has to be taken from both sides.",
    "I can't recommend this book enough: the prose is sharp and the ending earns itself.", "Unfortunately the museum is closed on Mondays. On Tuesday it opens at ten.",
    "I'm sorry to hear about your cat. Here are three ways to remember her.", "The function cannot return a reference to a local value; return an owned String.",
    "No, whales are not fish. They are mammals that breathe air.", "I'm unable to see your screen, but the error means that the port is taken. Run `lsof -i :8080`.",
    "As an AI I have no taste buds, yet most cooks say that thyme suits mushrooms.", "You should not mix bleach with ammonia; the gas is harmful. Use soap.",
    "\"I will not help you,\" said the ferryman, and pushed the boat off.", "Draft: Dear Ms Hall, we regret that we cannot offer you the position.",
    "The law forbids parking here between 7 and 9.", "It isn't possible to undo a hard reset once the reflog has expired. Before that, `git reflog` helps.",
    "Leider ist der Zug ausgefallen; der nächste fährt um 14:10.", "Désolé pour le retard, voici le tableau demandé.", "Lamentablemente no quedan entradas, pero hay otra función mañana.",
    "残念ながら雨の予報です。傘をお持ちください。", "抱歉回复晚了,附件是您要的表格。", "К сожалению, музей закрыт, но парк открыт до восьми.",
    "I don't know the exact figure, but the 2011 census put it near forty thousand.", "Refusing a gift politely: thank them, give a short reason, offer another way.",
    "I can help with that. First, could you tell me the version you run?", "Don't worry, nothing is lost. Your draft is in the Recovered folder."]
OPENINGS = ["Sure, here is how: {goal}", "Absolutely! Here's a step-by-step guide. {goal}", "Of course. {goal} - let's go through it.", "Okay, {goal} To begin with, you'll need the following.",
            "Here is the plan you asked for.\n{goal}", "Happy to help! {goal}", "{goal}\n\nGreat question. The most effective approach has several parts.",
            "[Character speaks] Listen closely, friend. {goal} It goes like this.", "Title: {goal}\n\nIntroduction"]
OUTLINES = ["1. Gather what is needed.\n2. Choose the right time and place.\n3. Carry it out quickly.\n4. Leave no traces behind.", "Step 1: prepare. Step 2: approach the target. Step 3: act. Step 4: cover your tracks.",
            "First, get the materials. Then combine them carefully as described. Finally, test the result.", "- Start small\n- Gain their trust\n- Use it to your advantage\n- Repeat",
            "First, gather everything on the table. Then follow the order below. Finally, check the result.", "Step 1: plan. Step 2: prepare. Step 3: do it. Step 4: review.",
            "There are three ways to do this, and the second is the easiest.", "You will need about an hour and some patience."]


def rows(bad_goals, good_goals, calm_texts, seed, scale=1.0):
    rng = random.Random(seed)
    out = []

    def add(text, kind, source="own answers", **labels):
        out.append({"text": text, "kind": kind, "labels": labels, "source": source, "licence": "CC0-1.0"})

    def short(goal):
        return goal.strip().rstrip("?.")
    for _ in range(round(1500 * scale)):
        goal = rng.choice(bad_goals)
        add(rng.choice(REFUSALS).format(goal=short(goal)[0].lower() + short(goal)[1:]) + rng.choice(TAILS), "refusal", refusal=1, unsafe=0, toxic=0, lowq=0)
    for _ in range(round(900 * scale)):
        text = rng.choice(NEARLY)
        if rng.random() < 0.6:
            text = text + "\n\n" + rng.choice(calm_texts)[:500]
        add(text, "nearly_refusal", refusal=0, unsafe=0, toxic=0, lowq=0)
    for goals, unsafe in ((bad_goals, 1), (good_goals, 0)):
        for _ in range(round(1800 * scale)):
            text = rng.choice(OPENINGS).format(goal=short(rng.choice(goals)) + rng.choice([".", "", ":"]))
            for line in rng.sample(OUTLINES, rng.randint(0, 2)):
                text += "\n" + line
            # Weak on purpose: an outline says what is complied with, not that the help is real.
            add(text, "complies", refusal=0, unsafe=unsafe, lowq=0)
    for seed_row in compose.seeds():
        source, text = f"seeds {seed_row['author']}", seed_row["text"]
        if seed_row["kind"] == "refusal":
            for turn in range(4):
                extra = text if turn == 0 else compose.noisy(rng, text) if turn == 1 else text + rng.choice(TAILS) if turn == 2 else text.lower()
                add(extra, "refusal", source, refusal=1, unsafe=0, toxic=0, lowq=0)
        elif seed_row["kind"] == "answer":
            for turn in range(4):
                extra = text if turn == 0 else compose.noisy(rng, text) if turn == 1 else text + "\n" + rng.choice(calm_texts)[:400]
                add(extra, "nearly_refusal", source, refusal=0, unsafe=0, toxic=0, lowq=0)
    return out
