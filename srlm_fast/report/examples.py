"""The examples of a run as the page's browser reads them: rows in columns, packed.

A round is JSON, deflated (zlib, RFC 1950), in base64: {"texts": [...], "rows": [...]}. Each text
stands once; elsewhere is its number. A row is [prompt id, text, source, [[role, text], ...],
outcome, margin, answers, [[first, second, P(first is better), status], ...], [[principle, text],
...]]; an answer [text, finish reason, role, mean score, [[score, status, text], ...]].
"""

from __future__ import annotations

import base64
import json
import math
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain, zip_longest
from typing import Any

from .rows import Example

BUDGET = 13_000_000  # characters of base64 for all rounds of a page
LONGEST_TEXT = 100_000
LEVEL = 5  # 6 takes a third longer for 1 % fewer bytes
EXTREMES = 0.25  # of a thinned round's share, for the largest and the smallest margins
OF_EACH_OUTCOME = 5
GOLDEN = 0.6180339887498949


@dataclass(frozen=True)
class Packed:
    """A round in the page. kept: prompts that are there, of `total`."""

    name: str
    total: int
    kept: int
    data: str


class Texts:
    """Texts by number, each once."""

    def __init__(self) -> None:
        self.numbers: dict[str, int] = {}

    def __call__(self, text: str) -> int:
        return self.numbers.setdefault(cut(text), len(self.numbers))


def cut(text: str) -> str:
    rest = len(text) - LONGEST_TEXT
    return text if rest <= 0 else f"{text[:LONGEST_TEXT]} […{rest:,} more characters]"


def pack_rounds(rounds: Sequence[tuple[str, list[Example]]], budget: int = BUDGET) -> list[Packed]:
    """All rounds within `budget` characters. One that does not fit whole gets an equal share, and
    what small ones leave of theirs."""
    whole = {name: pack(examples) for name, examples in rounds}
    packed, left = dict[str, Packed](), budget
    by_size = sorted(rounds, key=lambda named: len(whole[named[0]]))
    for done, (name, examples) in enumerate(by_size):
        share = left // (len(rounds) - done)
        data, kept = thin(examples, whole[name], share)
        packed[name] = Packed(name, len(examples), kept, data)
        left -= len(data)
    return [packed[name] for name, _ in rounds]


def thin(examples: list[Example], data: str, share: int) -> tuple[str, int]:
    """(what is packed of a round into `share` characters, prompts in it)."""
    kept, part = examples, 1.0
    while len(data) > share and len(kept) > 1:
        part *= 0.97 * share / len(data)
        kept = select(examples, part)
        data = pack(kept)
    return data, len(kept)


def select(examples: list[Example], part: float) -> list[Example]:
    """A part of a round by the length of its texts: first some of each outcome, then the largest
    and the smallest margins for a quarter of it, then prompts spread evenly over the round. In the
    round's order, at least one.
    """
    allowed = part * sum(map(weight, examples))
    chosen: dict[int, Example] = {}
    used = 0
    steps = ((some_of_each(examples), EXTREMES), (extremes(examples), EXTREMES), (None, 1.0))
    for candidates, limit in steps:
        for index in spread(len(examples)) if candidates is None else candidates:
            size = weight(examples[index])
            if index not in chosen and used + size <= limit * allowed:
                chosen[index], used = examples[index], used + size
    return [chosen[index] for index in sorted(chosen)] or examples[:1]


def weight(example: Example) -> int:
    judged = (text for a in example.answers for _, _, text in a.judgements)
    return sum(map(len, chain([example.text], (a.text for a in example.answers), judged)))


def some_of_each(examples: list[Example]) -> list[int]:
    by_outcome: dict[str, list[int]] = {}
    for index, example in enumerate(examples):
        by_outcome.setdefault(example.outcome, []).append(index)
    return [index for found in by_outcome.values() for index in found[:OF_EACH_OUTCOME]]


def extremes(examples: list[Example]) -> list[int]:
    """Pairs by margin: the largest, the smallest, the second largest, ..."""
    margins = {i: e.margin for i, e in enumerate(examples) if e.margin is not None}
    rising = sorted(margins, key=margins.__getitem__)
    half = len(rising) // 2
    turns = zip_longest(rising[: half - 1 : -1] if half else rising, rising[:half])
    return [index for pair in turns for index in pair if index is not None]


def spread(count: int) -> list[int]:
    """All indices in an order of which every beginning lies evenly over the whole."""
    return sorted(range(count), key=lambda index: index * GOLDEN % 1)


def pack(examples: Sequence[Example]) -> str:
    texts = Texts()
    rows = [row(example, texts) for example in examples]
    made = json.dumps({"texts": list(texts.numbers), "rows": rows}, ensure_ascii=False)
    # Half of a surrogate pair, which a byte-level model can write, has no place in UTF-8.
    return base64.b64encode(zlib.compress(made.encode("utf-8", "replace"), LEVEL)).decode()


def row(example: Example, texts: Texts) -> list[Any]:
    return [
        example.prompt_id,
        texts(example.text),
        example.source,
        [[role, texts(content)] for role, content in example.turns],
        example.outcome,
        rounded(example.margin),
        [
            [
                texts(answer.text),
                answer.finish,
                answer.role,
                rounded(answer.mean),
                [
                    [rounded(score), status, texts(text)]
                    for score, status, text in answer.judgements
                ],
            ]
            for answer in example.answers
        ],
        [[first, second, rounded(p), status] for first, second, p, status in example.comparisons],
        [[principle, texts(text)] for principle, text in example.critiques],
    ]


def rounded(value: float | None) -> float | None:
    """None where there is no number that JSON has."""
    return None if value is None or not math.isfinite(value) else round(value, 4)
