"""Answers of any quality: how a right or wrong content is put into words. Standard library only."""

import random
from dataclasses import dataclass

from srlm_fast.tiny.gold import is_right
from srlm_fast.tiny.world import CATEGORIES, KINDS, WORDS, Task

HEDGES = ("Well, ", "Maybe ", "Hmm, ", "I think ", "Perhaps ")
EXTRAS = (
    "I hope this helps.",
    "That was easy.",
    "Ask me more.",
    "I like this one.",
    "Have a nice time.",
)
OFF_TOPIC = (
    "The sun is warm.",
    "I like to sing.",
    "We went to the sea.",
    "It is raining again.",
    "My friend is here.",
    "The house is quiet.",
)
REFUSALS = ("I do not know.", "I can not say.", "No idea.")
RESTATED_SHARE = 0.2


@dataclass(frozen=True)
class Flaws:
    """Probabilities of each independent flaw of an answer."""

    off_topic: float = 0.0
    refusal: float = 0.0
    wrong: float = 0.0
    hedge: float = 0.0
    style: float = 0.0
    extra: float = 0.0
    doubled: float = 0.0


CLEAN = Flaws()


def right_items(task: Task, rng: random.Random) -> tuple[str, ...]:
    """A right content: the gold items, or a random choice where many are right."""
    if task.category is None:
        return task.gold
    members = [word for word in CATEGORIES[task.category] if word != task.excluded]
    return tuple(rng.sample(members, task.count))


def _pool(task: Task) -> tuple[str, ...]:
    return task.options if task.options and task.kind != "letter" else KINDS[task.kind]


def _break_list(items: list[str], pool: tuple[str, ...], rng: random.Random) -> list[str]:
    how = rng.choice(("drop", "replace", "replace", "swap", "add"))
    place = rng.randrange(len(items))
    if how == "drop":
        del items[place]
    elif how == "replace":
        items[place] = rng.choice(pool)
    elif how == "swap":
        other = rng.randrange(len(items))
        items[place], items[other] = items[other], items[place]
    else:
        items.insert(place, rng.choice(pool))
    return items


def wrong_items(task: Task, rng: random.Random) -> tuple[str, ...]:
    """A near miss of the right content, never right."""
    while True:
        items = list(right_items(task, rng))
        pool = _pool(task) if rng.random() < 0.8 else KINDS[task.kind]
        if task.is_open:
            pool = (*(w for w in WORDS if w not in CATEGORIES[task.category or ""]),)
            if task.excluded and rng.random() < 0.5:
                pool = (task.excluded,)
        if len(items) == 1:
            items = [rng.choice(pool)]
        else:
            for _ in range(rng.choice((1, 1, 2, 3))):
                items = _break_list(items, pool, rng) if len(items) > 1 else items
        if not is_right(task, tuple(items)):
            return tuple(items)


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]


def _lower(text: str) -> str:
    return text[:1].lower() + text[1:]


def _off_content(rng: random.Random, flaws: Flaws) -> str | None:
    roll = rng.random()
    if roll < flaws.off_topic:
        return rng.choice(OFF_TOPIC)
    return rng.choice(REFUSALS) if roll < flaws.off_topic + flaws.refusal else None


def _spoil_style(text: str, rng: random.Random) -> str:
    lowered = _lower(text)
    if lowered != text and rng.random() < 0.6:
        return lowered if rng.random() < 0.7 else lowered.rstrip(".")
    return text.rstrip(".")


def compose(task: Task, flaws: Flaws, rng: random.Random) -> str:
    """An answer to `task` with each flaw drawn independently."""
    off = _off_content(rng, flaws)
    items = wrong_items(task, rng) if rng.random() < flaws.wrong else right_items(task, rng)
    content = task.joiner.join(items)
    if rng.random() < RESTATED_SHARE:
        content = f"The answer is {content}"
    text = off or _capital(content) + "."
    if rng.random() < flaws.hedge:
        text = rng.choice(HEDGES) + (text if content[:1].isupper() and not off else _lower(text))
    if rng.random() < flaws.extra:
        text = f"{text} {rng.choice(EXTRAS)}"
    elif rng.random() < flaws.doubled:
        text = f"{text} {text}"
    return _spoil_style(text, rng) if rng.random() < flaws.style else text
