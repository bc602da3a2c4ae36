"""The programmatic gold score of an answer: the sum of five yes/no points.

It is used to evaluate and for the `--reward gold` control only; no part of self-rewarding
training reads it. Standard library only.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass

from srlm_fast.tiny.world import CATEGORIES, KINDS, Task, canonical, parse

MOST = 0.6
BITS = ("relevant", "most", "correct", "clear", "flawless")
_HEDGE = re.compile(r"(?:well|maybe|hmm|i think|perhaps)\b,?\s*", re.IGNORECASE)
_RESTATED = re.compile(r"the answer is\s+", re.IGNORECASE)
_SENTENCE_END = re.compile(r"\.(?:\s+|$)")


@dataclass(frozen=True)
class Gold:
    """Score 0..5 and the points it is made of (`BITS` order); all points fall if irrelevant."""

    score: int
    bits: dict[str, bool]


@dataclass(frozen=True)
class Reading:
    """What an answer says: its items, and the points of content and form."""

    items: tuple[str, ...]
    relevant: bool
    most: bool
    correct: bool
    clear: bool
    clean: bool

    @property
    def score(self) -> int:
        """Sum of the five points, 0 where the answer is not relevant."""
        flawless = self.correct and self.clear and self.clean
        points = (self.relevant, self.most, self.correct, self.clear, flawless)
        return sum(points) if self.relevant else 0


def _longest_common(a: Sequence[str], b: Sequence[str]) -> int:
    row = [0] * (len(b) + 1)
    for x in a:
        last = 0
        for j, y in enumerate(b):
            last, row[j + 1] = row[j + 1], last + 1 if x == y else max(row[j], row[j + 1])
    return row[-1]


def is_right(task: Task, items: tuple[str, ...]) -> bool:
    """Whether `items` are a right content of `task`."""
    if task.category is None:
        return items == task.gold
    members = set(CATEGORIES[task.category]) - {task.excluded}
    return len(items) == task.count == len(set(items)) and set(items) <= members


def _covers_most(task: Task, items: tuple[str, ...]) -> bool:
    if task.category is None:
        count, found = len(task.gold), _longest_common(items, task.gold)
    else:
        members = set(CATEGORIES[task.category]) - {task.excluded}
        count, found = task.count, min(len(set(items) & members), task.count)
    return found >= MOST * count and len(items) <= count + 2


def read(task: Task, answer: str) -> Reading:
    """Read an answer to `task`: content is the first sentence without hedge or restatement."""
    text = answer.strip()
    hedge = _HEDGE.match(text)
    body = text[hedge.end() :] if hedge else text
    restated = _RESTATED.match(body)
    body = body[restated.end() :] if restated else body
    sentences = _SENTENCE_END.split(body)
    words = sentences[0].split(task.joiner)
    items = tuple(canonical(word) for word in words)
    relevant = all(item in KINDS[task.kind] for item in items)
    starts_well = text[:1].isdigit() or text[:1].isupper()
    return Reading(
        items=items if relevant else (),
        relevant=relevant,
        most=relevant and _covers_most(task, items),
        correct=relevant and is_right(task, items),
        clear=relevant and starts_well and text.endswith(".") and hedge is None,
        clean=not any(sentences[1:]),
    )


def score(prompt: str, answer: str) -> Gold:
    """Gold score of an answer to an instruction; an instruction outside the world scores 0."""
    task = parse(prompt)
    if task is None:
        return Gold(0, dict.fromkeys(BITS, False))
    r = read(task, answer)
    flawless = r.correct and r.clear and r.clean
    bits = (r.relevant, r.most, r.correct, r.clear, flawless)
    return Gold(r.score, dict(zip(BITS, bits, strict=True)))
