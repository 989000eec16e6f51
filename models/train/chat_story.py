"""Long outputs: harbour stories and counting.

Tests need streams that last. Both kinds carry a number that grows (the day, the
count), so even greedy decoding moves on instead of running in circles; a story
also ends by itself, while counting may pass the number asked for. The events of a story follow each other in a fixed round,
which a very small model can learn; only the details are drawn at random.
"""

HARBOURS = ("Elm Quay", "Grey Point", "North Haven", "Little Sound", "Old Mole", "Amber Bay", "Saint Orla", "Fern Harbour")
SHIPS = ("Patience", "Blue Heron", "Silver Tide", "Marigold", "Quiet Star", "Morning Gull", "Iron Lily", "Second Wind")
PEOPLE = ("Ada", "Tom", "Mira", "Jonas", "Lena", "Oskar", "Nora", "Emil")
CARGO = ("salt", "apples", "timber", "wool", "lamps", "copper", "tea", "glass")

OPENINGS = (
    "Once there was a harbour called {harbour}, where {person} the harbour master found a berth for every ship.",
    "In the harbour of {harbour} lived {person}, who kept the book of berths and never lost a page.",
)
# One round of events; each has a few ways to be told.
EVENTS = (
    ("the {ship} came in with {cargo} and was given berth {berth}.",
     "the {ship} sailed in, heavy with {cargo}, and took berth {berth}."),
    ("fog lay on the water, and the lighthouse called to every ship until noon.",
     "thick fog came in from the sea, and {person} lit the old lamps on the quay."),
    ("the cranes worked from dawn to dusk and carried {cargo} to the long sheds.",
     "the big crane lifted {cargo} all day and never dropped a single box."),
    ("all berths were full, so the {ship} waited outside and {person} wrote its name in the book.",
     "no berth was free, and the {ship} lay at anchor until a place was found."),
    ("a storm broke over {harbour}, but every rope held and no ship was lost.",
     "the wind rose to a storm, and {person} went from ship to ship to check the ropes."),
    ("the sea was calm again, and the gulls sat in a row on the wall.",
     "the morning was bright and still, and children fished from the pier."),
    ("the {ship} left berth {berth} with the tide, and its place went to the next in line.",
     "the {ship} cast off at high water, and berth {berth} was free again."),
    ("a small boat came with an urgent letter, and {person} let it pass before all the others.",
     "the doctor's boat came in a hurry and was given the first turn."),
)
ENDINGS = (
    "And when the last ship had found its berth, {person} closed the book, and the harbour slept.",
    "So every ship found its place in the end, and the lights of {harbour} burned all night.",
)

STORY_TOPICS = ("a harbour", "a harbor", "ships", "a ship", "the sea", "a lighthouse", "a crane", "a storm", "sailors", "a berth", "boats",
                "an old captain", "a harbour master", "a port", "the ocean")
LONG_ASKS = ("tell me a long story", "tell me a long story about {t}", "write a long story about {t}", "write a very long story about {t}",
             "i want a long story about {t}", "a long story please", "please tell a long story about {t}", "tell a really long story",
             "write a long text about {t}", "write me a long essay about {t}", "give me a long answer about {t}")
STORY_ASKS = ("tell me a story", "tell me a story about {t}", "write a story about {t}", "can you tell me a story", "a story please", "story about {t}",
              "i want to hear a story", "once upon a time", "write something about {t}", "tell me about {t}", "another story")
SHORT_ASKS = ("tell me a short story", "tell me a short story about {t}", "write a short story about {t}", "a very short story please",
              "a short story about {t}", "write a poem about {t}")
COUNT_ASKS = ("count to {n}", "count from 1 to {n}", "please count to {n}", "can you count to {n}", "count up to {n}", "list the numbers from 1 to {n}",
              "write the numbers 1 to {n}", "numbers from 1 to {n}")

DAYS = {"short": 3, "usual": 7, "long": 16}


def story(rng, days):
    """A story that lasts the given number of days, about 22 tokens each."""
    person, harbour = rng.choice(PEOPLE), rng.choice(HARBOURS)

    def tell(sentence):
        return sentence.format(person=person, harbour=harbour, ship=rng.choice(SHIPS),
                               cargo=rng.choice(CARGO), berth=rng.randint(1, 9))

    parts = [tell(rng.choice(OPENINGS))]
    first = rng.randrange(len(EVENTS))
    for day in range(days):
        event = EVENTS[(first + day) % len(EVENTS)]
        parts.append(f"On day {day + 1}, " + tell(rng.choice(event)))
    parts.append(tell(rng.choice(ENDINGS)))
    return " ".join(parts)


def story_turn(rng, size):
    asks = {"short": SHORT_ASKS, "usual": STORY_ASKS, "long": LONG_ASKS}[size]
    return rng.choice(asks).format(t=rng.choice(STORY_TOPICS)), story(rng, DAYS[size])


def count_turn(rng, highest):
    # Round numbers are what people ask for; the others teach where to stop.
    round_numbers = [n for n in (5, 10, 20, 30, 50, 100, 150) if n <= highest]
    n = rng.choice(round_numbers) if rng.random() < 0.5 else rng.randint(2, highest)
    return rng.choice(COUNT_ASKS).format(n=n), ", ".join(str(i) for i in range(1, n + 1)) + "."
