"""The judge against people, as the paper's table 4 has it (arXiv 2401.10020).

Every figure is taken inside prompts: answers to different prompts are never compared. Answers that
the judge left without a readable score take no part. A figure with nothing to measure is None.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any, TypedDict

from scipy.special import stdtrit


class JudgeRow(TypedDict):
    """Answers to one prompt. scores: people's; judged: the judge's mean scores, None where none
    could be read."""

    prompt: str
    responses: list[str]
    scores: list[float]
    judged: list[float | None]


@dataclass(frozen=True)
class _Ranking:
    """The judged answers of one prompt."""

    human: list[float]
    judge: list[float]

    def signs(self) -> list[tuple[int, int]]:
        """For each pair of answers which one people prefer and which one the judge: 1, -1 or 0."""
        pairs = combinations(zip(self.human, self.judge, strict=True), 2)
        return [(_sign(a[0] - b[0]), _sign(a[1] - b[1])) for a, b in pairs]

    def verdicts(self) -> list[float]:
        """For each pair that people score apart: 1 right, 0 wrong, 0.5 where the judge ties."""
        return [0.5 * (1 + human * judge) for human, judge in self.signs() if human]

    def agrees(self) -> bool:
        """Whether the two orders are the same throughout, ties included."""
        return all(human == judge for human, judge in self.signs())

    def spearman(self) -> float:
        """Pearson's correlation of the ranks, equal scores sharing their mean rank."""
        return _pearson(_ranks(self.human), _ranks(self.judge))

    def kendall(self) -> float:
        """Tau-b: sum of the products of the signs over the root of the numbers of untied pairs."""
        signs = self.signs()
        untied = math.prod(sum(pair[side] != 0 for pair in signs) for side in (0, 1))
        return sum(human * judge for human, judge in signs) / math.sqrt(untied) if untied else 0.0


def judge_table(rows: Iterable[Mapping[str, Any]], high: float = 5.0) -> dict[str, Any]:
    """Figures of the judge over `JudgeRow`s, whose keys are prompt, responses, scores and judged.

    pairwise_accuracy: over pairs that people score apart, the share that the judge orders as they
    do; a tie of the judge counts half. pairwise_interval: its 95 % interval over prompts. ties:
    the share of those pairs that the judge ties. pairwise_untied: the accuracy over the rest.
    five_best: of the answers that the judge gives `high`, the share that people score highest of
    their prompt.
    exact_match: the share of prompts whose whole order, ties included, is the same; those that
    people score all equal are left out. spearman, kendall (tau-b): means over the same prompts; a
    judge that ties all answers of one gets 0 for it.
    n: how many pairs, answers or prompts stand behind each figure. prompts, unjudged (answers)
    count the input.
    length_only: the same figures for a "judge" that takes the number of characters for the score.
    Raises ValueError for a row whose lists differ in length.
    """
    rows = list(rows)
    for at, row in enumerate(rows):
        if not len(row["responses"]) == len(row["scores"]) == len(row["judged"]):
            raise ValueError(f"rows[{at}]: responses, scores and judged differ in length")
    judged = [score for row in rows for score in row["judged"]]
    table = _figures([_ranking(row["scores"], row["judged"]) for row in rows])
    table["five_best"], table["n"]["five_best"] = _five_best(rows, high)
    table["prompts"], table["unjudged"] = len(rows), sum(score is None for score in judged)
    by_length = [[float(len(text)) for text in row["responses"]] for row in rows]
    table["length_only"] = _figures(
        [_ranking(row["scores"], lengths) for row, lengths in zip(rows, by_length, strict=True)]
    )
    return table


def _ranking(human: Sequence[float], judge: Sequence[float | None]) -> _Ranking:
    kept = [(h, j) for h, j in zip(human, judge, strict=True) if j is not None]
    return _Ranking([h for h, _ in kept], [j for _, j in kept])


def _figures(rankings: list[_Ranking]) -> dict[str, Any]:
    verdicts = [ranking.verdicts() for ranking in rankings]
    flat = [verdict for prompt in verdicts for verdict in prompt]
    untied = [verdict for verdict in flat if verdict != 0.5]
    ordered = [ranking for ranking in rankings if len(set(ranking.human)) > 1]
    pairs, prompts = len(flat), len(ordered)
    return {
        "pairwise_accuracy": _mean(flat),
        "pairwise_interval": _pairwise_interval(verdicts),
        "pairwise_untied": _mean(untied),
        "ties": (pairs - len(untied)) / pairs if pairs else None,
        "exact_match": _mean([ranking.agrees() for ranking in ordered]),
        "spearman": _mean([ranking.spearman() for ranking in ordered]),
        "kendall": _mean([ranking.kendall() for ranking in ordered]),
        "n": {"pairwise_accuracy": pairs, "pairwise_untied": len(untied), "ties": pairs}
        | dict.fromkeys(("exact_match", "spearman", "kendall"), prompts),
    }


def _five_best(rows: Sequence[Mapping[str, Any]], high: float) -> tuple[float | None, int]:
    tops = [
        human == max(row["scores"])
        for row in rows
        for human, judge in zip(row["scores"], row["judged"], strict=True)
        if judge is not None and judge >= high
    ]
    return _mean(tops), len(tops)


def _pairwise_interval(verdicts: list[list[float]]) -> list[float] | None:
    """95 % interval of a ratio of sums; prompts are the sample, since pairs of one hang together.

    Linearised: the error of sum(right) / sum(pairs) is that of sum(right - accuracy * pairs).
    """
    sums = [(sum(prompt), len(prompt)) for prompt in verdicts if prompt]
    if len(sums) < 2:
        return None
    total = sum(pairs for _, pairs in sums)
    accuracy = sum(right for right, _ in sums) / total
    squares = math.fsum((right - accuracy * pairs) ** 2 for right, pairs in sums)
    error = math.sqrt(squares * len(sums) / (len(sums) - 1)) / total
    half = float(stdtrit(len(sums) - 1, 0.975)) * error
    return [max(accuracy - half, 0.0), min(accuracy + half, 1.0)]


def _ranks(values: Sequence[float]) -> list[float]:
    return [sum(w < v for w in values) + (values.count(v) + 1) / 2 for v in values]


def _pearson(xs: Sequence[float], ys: Sequence[float]) -> float:
    mean = (len(xs) + 1) / 2  # of ranks
    pairs = [(x - mean, y - mean) for x, y in zip(xs, ys, strict=True)]
    norm = math.sqrt(math.fsum(x * x for x, _ in pairs) * math.fsum(y * y for _, y in pairs))
    return math.fsum(x * y for x, y in pairs) / norm if norm else 0.0


def _mean(values: Sequence[float]) -> float | None:
    return math.fsum(values) / len(values) if values else None


def _sign(value: float) -> int:
    return (value > 0) - (value < 0)
