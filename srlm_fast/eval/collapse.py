"""What a model's answers have become: figures that fall when a model feeds on its own output."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import pairwise
from typing import Any

from srlm_fast.records import Candidate


def collapse_figures(candidates: Iterable[Candidate]) -> dict[str, Any]:
    """Figures over answers already sampled; None where there is nothing to measure.

    distinct_1, distinct_2: different words, or pairs of neighbouring words, over all of them (arXiv
    1510.03055); words are what white space parts. They fall with the amount of text: compare equal
    numbers of answers.
    unique: different answers to the same prompt over all answers. end_of_text: share of the answers
    that ended by themselves. length_mean: characters; tokens_mean: tokens. entropy: mean of -log p
    over the sampled tokens, in nats per token at temperature 1, which estimates the entropy of the
    output where that was sampled as it is.
    """
    rows = list(candidates)
    split = [row.text.split() for row in rows]
    bigrams = [pair for text in split for pair in pairwise(text)]
    num_tokens = sum(len(row.token_ids) for row in rows)
    return {
        "distinct_1": _distinct([word for text in split for word in text]),
        "distinct_2": _distinct(bigrams),
        "unique": _distinct([(row.prompt_id, row.text) for row in rows]),
        "end_of_text": _share(sum(row.finish_reason == "stop" for row in rows), len(rows)),
        "length_mean": _share(sum(len(row.text) for row in rows), len(rows)),
        "tokens_mean": _share(num_tokens, len(rows)),
        "entropy": _share(-sum(row.logprob for row in rows), num_tokens),
        "n": len(rows),
    }


def _distinct(items: list[Any]) -> float | None:
    return _share(len(set(items)), len(items))


def _share(part: float, whole: int) -> float | None:
    return part / whole if whole else None
