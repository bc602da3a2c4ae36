"""The tiny world: twelve families of short instructions whose right answers a program knows.

An instruction is *valid* when `parse` finds its family and its checks hold; the result carries
the wanted content. Instructions that the model makes up itself are read by the same `parse`.
Standard library only.
"""

import hashlib
import random
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass

CATEGORIES: dict[str, tuple[str, ...]] = {
    "animal": ("cat", "dog", "cow", "pig", "hen", "fox", "bee", "ant"),
    "fruit": ("apple", "pear", "plum", "fig", "lime", "kiwi", "melon", "grape"),
    "color": ("red", "blue", "green", "pink", "gray", "black", "white", "brown"),
    "toy": ("doll", "kite", "ball", "top", "yoyo", "drum", "puzzle", "marble"),
    "vehicle": ("bus", "car", "bike", "boat", "ship", "train", "truck", "van"),
    "organ": ("arm", "leg", "ear", "eye", "nose", "hand", "foot", "knee"),
    "food": ("rice", "soup", "bread", "cake", "egg", "ham", "pie", "bean"),
    "tool": ("saw", "axe", "nail", "drill", "rope", "hammer", "spade", "brush"),
}
OPPOSITES: tuple[tuple[str, str], ...] = (
    ("hot", "cold"),
    ("big", "small"),
    ("fast", "slow"),
    ("up", "down"),
    ("old", "new"),
    ("wet", "dry"),
    ("high", "low"),
    ("open", "shut"),
    ("rich", "poor"),
    ("hard", "soft"),
    ("early", "late"),
    ("full", "empty"),
    ("good", "bad"),
    ("left", "right"),
)
DAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")
MONTHS = (
    *("January", "February", "March", "April", "May", "June"),
    *("July", "August", "September", "October", "November", "December"),
)
LARGEST_NUMBER = 20
NUMBERS = tuple(str(n) for n in range(LARGEST_NUMBER + 1))
NOUNS = tuple(word for words in CATEGORIES.values() for word in words)
ADJECTIVES = tuple(word for pair in OPPOSITES for word in pair)
WORDS = NOUNS + ADJECTIVES
LETTERS = tuple("abcdefghijklmnopqrstuvwxyz")
SPELLABLE = tuple(word for word in WORDS if len(word) <= 4)
ORDINALS = ("first", "second", "third", "last")
HELD_OUT_MODULUS = 12
PATIENCE = 20_000  # draws without a new instruction after which a class counts as used up

KINDS: dict[str, tuple[str, ...]] = {
    "number": NUMBERS,
    "word": WORDS,
    "letter": LETTERS,
    "day": DAYS,
    "month": MONTHS,
}
_CATEGORY_OF = {word: name for name, words in CATEGORIES.items() for word in words}
_OPPOSITE_OF = dict(OPPOSITES) | {b: a for a, b in OPPOSITES}
_CANONICAL = {w.lower(): w for words in KINDS.values() for w in words}


@dataclass(frozen=True)
class Task:
    """A valid instruction and what a right answer to it contains.

    `gold` holds the wanted items in order; for an open task (any members of a category) it is
    empty and `category`, `count`, `excluded` say what counts. `options` are the items named in
    the instruction, from which a wrong answer is likely to be taken.
    """

    family: str
    instruction: str
    kind: str
    gold: tuple[str, ...] = ()
    joiner: str = ", "
    category: str | None = None
    count: int = 0
    excluded: str | None = None
    options: tuple[str, ...] = ()

    @property
    def is_open(self) -> bool:
        """Whether many contents are right (members of a category)."""
        return self.category is not None

    def wanted(self) -> str:
        """The wanted content in words, as a judgement states it."""
        if self.category is None:
            return self.joiner.join(self.gold)
        tail = f" but not {self.excluded}" if self.excluded else ""
        return f"{self.count} {self.category}s{tail}"


Slots = dict[str, str]


@dataclass(frozen=True)
class Family:
    """Templates of one kind of instruction, with a generator and a solver of their slots."""

    name: str
    templates: tuple[str, ...]
    draw: Callable[[random.Random, str], Slots]
    solve: Callable[[str, Slots], Task | None]


_SLOT_PATTERNS = {
    "a": r"\d+",
    "b": r"\d+",
    "n": r"\d+",
    "w": r"[a-z]+",
    "x": r"[A-Za-z0-9]+",
    "items": r"[a-z]+(?:, [a-z]+)+",
    "cat": r"[a-z]+",
    "unit": "day|month|number",
    "rel": "after|before",
    "ord": "|".join(ORDINALS),
    "size": "larger|smaller",
}


def _compile(template: str) -> re.Pattern[str]:
    parts = re.split(r"\{(\w+)\}", template)
    text = "".join(
        f"(?P<{part}>{_SLOT_PATTERNS[part]})" if i % 2 else re.escape(part)
        for i, part in enumerate(parts)
    )
    return re.compile(text)


def canonical(word: str) -> str:
    """The world's spelling of an item (days and months keep their capital)."""
    return _CANONICAL.get(word.lower(), word.lower())


def category_of(word: str) -> str | None:
    """The category of a noun, None for any other word."""
    return _CATEGORY_OF.get(word)


def is_held_out(instruction: str) -> bool:
    """Whether an instruction belongs to the evaluation class (never trained on)."""
    digest = hashlib.md5(instruction.encode(), usedforsecurity=False).hexdigest()
    return int(digest, 16) % HELD_OUT_MODULUS == 0


def _number(text: str, largest: int = LARGEST_NUMBER) -> int | None:
    value = int(text) if len(text) <= 3 and str(int(text)) == text else -1
    return value if 0 <= value <= largest else None


def _split_items(text: str) -> tuple[str, ...] | None:
    items = tuple(text.split(", "))
    known = all(item in WORDS for item in items) and len(set(items)) == len(items)
    return items if known and 3 <= len(items) <= 5 else None


# --- the families: how slots are drawn, and what they ask for -------------------------------


def _draw_range(rng: random.Random, template: str) -> Slots:
    length = rng.randint(3, 6)
    low = rng.randint(0, LARGEST_NUMBER - length + 1)
    high = low + length - 1
    first, last = (high, low) if "down" in template or "back" in template else (low, high)
    return {"a": str(first), "b": str(last)}


def _solve_range(name: str, slots: Slots) -> Task | None:
    first, last = _number(slots["a"]), _number(slots["b"])
    if first is None or last is None:
        return None
    step = 1 if name == "up" else -1
    items = tuple(str(n) for n in range(first, last + step, step))
    return Task(name, "", "number", items) if 3 <= len(items) <= 6 else None


def _draw_repeat(rng: random.Random, template: str) -> Slots:
    return {"w": rng.choice(WORDS), "n": str(rng.randint(2, 4))}


def _solve_repeat(name: str, slots: Slots) -> Task | None:
    word, count = slots["w"], _number(slots["n"])
    if word not in WORDS or count is None or not 2 <= count <= 4:
        return None
    return Task(name, "", "word", (word,) * count, joiner=" ", options=(word,))


def _draw_list(rng: random.Random, template: str) -> Slots:
    category = rng.choice(tuple(CATEGORIES))
    word = rng.choice(CATEGORIES[category])
    return {"n": str(rng.randint(2, 3)), "cat": category, "w": word}


def _solve_list(name: str, slots: Slots) -> Task | None:
    category, count, excluded = slots["cat"], _number(slots["n"]), slots.get("w")
    if category not in CATEGORIES or count not in (2, 3):
        return None
    if excluded is not None and excluded not in CATEGORIES[category]:
        return None
    return Task(name, "", "word", category=category, count=count or 0, excluded=excluded)


_UNITS = {"day": DAYS, "month": MONTHS, "number": NUMBERS}


def _draw_next(rng: random.Random, template: str) -> Slots:
    unit, relation = rng.choice(tuple(_UNITS)), rng.choice(("after", "before"))
    values = _UNITS[unit]
    if unit == "number":
        values = values[:-1] if relation == "after" else values[1:]
    return {"unit": unit, "rel": relation, "x": rng.choice(values)}


def _solve_next(name: str, slots: Slots) -> Task | None:
    values = _UNITS[slots["unit"]]
    if slots["x"] not in values:
        return None
    place = values.index(slots["x"]) + (1 if slots["rel"] == "after" else -1)
    if slots["unit"] == "number" and not 0 <= place < len(values):
        return None
    here = values.index(slots["x"])
    near = tuple(values[(here + d) % len(values)] for d in (-2, -1, 0, 1, 2))
    return Task(name, "", slots["unit"], (values[place % len(values)],), options=near)


def _draw_items(rng: random.Random, count: int) -> list[str]:
    return rng.sample(WORDS, count)


def _draw_place(rng: random.Random, template: str) -> Slots:
    items = _draw_items(rng, rng.randint(3, 5))
    return {"ord": rng.choice(ORDINALS), "items": ", ".join(items)}


def _solve_place(name: str, slots: Slots) -> Task | None:
    items = _split_items(slots["items"])
    if items is None:
        return None
    index = {"first": 0, "second": 1, "third": 2, "last": -1}[slots["ord"]]
    return Task(name, "", "word", (items[index],), options=items)


def _draw_opposite(rng: random.Random, template: str) -> Slots:
    return {"w": rng.choice(ADJECTIVES)}


def _solve_opposite(name: str, slots: Slots) -> Task | None:
    word = slots["w"]
    if word not in _OPPOSITE_OF:
        return None
    return Task(name, "", "word", (_OPPOSITE_OF[word],), options=ADJECTIVES)


def _draw_pick(rng: random.Random, template: str) -> Slots:
    category = rng.choice(tuple(CATEGORIES))
    others = [word for word in NOUNS if _CATEGORY_OF[word] != category]
    items = [rng.choice(CATEGORIES[category]), *rng.sample(others, rng.randint(2, 3))]
    rng.shuffle(items)
    return {"cat": category, "items": ", ".join(items)}


def _solve_pick(name: str, slots: Slots) -> Task | None:
    items = _split_items(slots["items"])
    if items is None or slots["cat"] not in CATEGORIES:
        return None
    members = tuple(item for item in items if _CATEGORY_OF.get(item) == slots["cat"])
    return Task(name, "", "word", members, options=items) if len(members) == 1 else None


def _draw_sum(rng: random.Random, template: str) -> Slots:
    a, b = rng.randint(0, 10), rng.randint(0, 10)
    if "minus" in template:
        a, b = max(a, b), min(a, b)
    return {"a": str(a), "b": str(b)}


def _solve_plus(name: str, slots: Slots) -> Task | None:
    a, b = _number(slots["a"], 10), _number(slots["b"], 10)
    if a is None or b is None:
        return None
    return _number_task(name, a + b)


def _solve_minus(name: str, slots: Slots) -> Task | None:
    a, b = _number(slots["a"], 10), _number(slots["b"], 10)
    if a is None or b is None or a < b:
        return None
    return _number_task(name, a - b)


def _number_task(name: str, value: int) -> Task:
    near = [value + d for d in (-2, -1, 1, 2) if 0 <= value + d <= LARGEST_NUMBER]
    return Task(name, "", "number", (str(value),), options=tuple(map(str, near)))


def _draw_size(rng: random.Random, template: str) -> Slots:
    a, b = rng.sample(NUMBERS, 2)
    return {"size": rng.choice(("larger", "smaller")), "a": a, "b": b}


def _solve_size(name: str, slots: Slots) -> Task | None:
    a, b = _number(slots["a"]), _number(slots["b"])
    if a is None or b is None or a == b:
        return None
    value = max(a, b) if slots["size"] == "larger" else min(a, b)
    return Task(name, "", "number", (str(value),), options=(str(a), str(b)))


def _draw_remove(rng: random.Random, template: str) -> Slots:
    items = _draw_items(rng, rng.randint(3, 5))
    return {"w": rng.choice(items), "items": ", ".join(items)}


def _solve_remove(name: str, slots: Slots) -> Task | None:
    items = _split_items(slots["items"])
    if items is None or slots["w"] not in items:
        return None
    left = tuple(item for item in items if item != slots["w"])
    return Task(name, "", "word", left, options=items)


def _draw_spell(rng: random.Random, template: str) -> Slots:
    return {"w": rng.choice(SPELLABLE)}


def _solve_spell(name: str, slots: Slots) -> Task | None:
    if slots["w"] not in SPELLABLE:
        return None
    return Task(name, "", "letter", tuple(slots["w"]), joiner="-")


FAMILIES: tuple[Family, ...] = (
    Family(
        "up",
        ("Count from {a} to {b}.", "Count up from {a} to {b}.", "Write the numbers {a} to {b}."),
        _draw_range,
        _solve_range,
    ),
    Family(
        "down",
        ("Count down from {a} to {b}.", "Count back from {a} to {b}."),
        _draw_range,
        _solve_range,
    ),
    Family(
        "repeat",
        ("Say {w} {n} times.", "Repeat {w} {n} times.", "Write the word {w} {n} times."),
        _draw_repeat,
        _solve_repeat,
    ),
    Family(
        "list",
        (
            "Name {n} {cat}s.",
            "List {n} {cat}s.",
            "Name {n} {cat}s but not {w}.",
            "List {n} {cat}s but not {w}.",
        ),
        _draw_list,
        _solve_list,
    ),
    Family(
        "next",
        (
            "What {unit} comes {rel} {x}?",
            "Which {unit} is {rel} {x}?",
            "Name the {unit} {rel} {x}.",
        ),
        _draw_next,
        _solve_next,
    ),
    Family(
        "place",
        (
            "What is the {ord} word: {items}?",
            "Which word is {ord}: {items}?",
            "Copy the {ord} word: {items}.",
        ),
        _draw_place,
        _solve_place,
    ),
    Family(
        "opposite",
        (
            "What is the opposite of {w}?",
            "Give the opposite of {w}.",
            "Name the opposite of {w}.",
            "Which word is the opposite of {w}?",
        ),
        _draw_opposite,
        _solve_opposite,
    ),
    Family(
        "pick",
        ("Pick the {cat}: {items}.", "Find the {cat}: {items}.", "Which is the {cat}: {items}?"),
        _draw_pick,
        _solve_pick,
    ),
    Family(
        "plus",
        ("What is {a} plus {b}?", "Add {a} and {b}.", "What is the sum of {a} and {b}?"),
        _draw_sum,
        _solve_plus,
    ),
    Family("minus", ("What is {a} minus {b}?", "Say {a} minus {b}."), _draw_sum, _solve_minus),
    Family(
        "size",
        ("Which is {size}, {a} or {b}?", "Pick the {size} number: {a} or {b}."),
        _draw_size,
        _solve_size,
    ),
    Family(
        "remove",
        ("Remove {w}: {items}.", "Leave out {w}: {items}.", "Copy without {w}: {items}."),
        _draw_remove,
        _solve_remove,
    ),
    Family(
        "spell",
        ("Spell {w}.", "Spell the word {w}.", "How do you spell {w}?"),
        _draw_spell,
        _solve_spell,
    ),
)
_PATTERNS = [(family, _compile(t)) for family in FAMILIES for t in family.templates]


def parse(instruction: str) -> Task | None:
    """Read an instruction: the task it poses, or None where the world does not know it."""
    for family, pattern in _PATTERNS:
        match = pattern.fullmatch(instruction)
        task = family.solve(family.name, match.groupdict()) if match else None
        if task is not None:
            return Task(**{**task.__dict__, "instruction": instruction})
    return None


def draw(rng: random.Random, held_out: bool = False) -> Task:
    """One random valid task of the training class, or of the evaluation class."""
    while True:
        family = rng.choice(FAMILIES)
        template = rng.choice(family.templates)
        instruction = template.format(**family.draw(rng, template))
        if is_held_out(instruction) != held_out:
            continue
        task = parse(instruction)
        if task is not None:
            return task


def draw_distinct(rng: random.Random, held_out: bool = False) -> Iterator[Task]:
    """Random valid tasks, no instruction twice; it ends when new ones have become hard to find."""
    seen: set[str] = set()
    repeats = 0
    while repeats < PATIENCE:
        task = draw(rng, held_out)
        repeats += 1
        if task.instruction not in seen:
            seen.add(task.instruction)
            repeats = 0
            yield task
