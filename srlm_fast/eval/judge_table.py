"""The judge against people, as the paper's table 4 has it (arXiv 2401.10020).

Every figure is taken inside prompts: answers to different prompts are never compared. Answers that
the judge left without a readable score take no part. A figure with nothing to measure is None.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any, TypedDict

from scipy.stats import kendalltau, spearmanr

from srlm_fast.eval.interval import mean_interval, ratio_interval, share_interval


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
        return self._correlation(spearmanr)

    def kendall(self) -> float:
        """Variant b: of the pairs, those that either side ties are taken out of the norm."""
        return self._correlation(kendalltau)

    def _correlation(self, statistic: Callable[..., Any]) -> float:
        """0 where one side ties everything, for which neither coefficient is defined."""
        if len(set(self.human)) < 2 or len(set(self.judge)) < 2:
            return 0.0
        return float(statistic(self.human, self.judge).statistic)


def judge_table(rows: Iterable[Mapping[str, Any]], high: float = 5.0) -> dict[str, Any]:
    """Figures of the judge over `JudgeRow`s, whose keys are prompt, responses, scores and judged.

    pairwise_accuracy: over pairs that people score apart, the share that the judge orders as they
    do; a tie of the judge counts half. ties: the share of those pairs that the judge ties.
    pairwise_untied: the accuracy over the rest.
    five_best: of the answers that the judge gives `high` or more, the share that people score
    highest of their prompt.
    exact_match: the share of prompts whose whole order, ties included, is the same; those that
    people score all equal are left out. spearman, kendall (tau-b): means over the same prompts; a
    judge that ties all answers of one gets 0 for it.
    n: how many pairs, answers or prompts stand behind each figure. intervals: the 95 % interval of
    each over prompts, None where there are fewer than two; pairwise_interval: that of the first.
    prompts, unjudged (answers) count the input.
    length_only: the same figures for a "judge" that takes the number of characters for the score.
    Raises ValueError for a row whose lists differ in length.
    """
    rows = list(rows)
    for at, row in enumerate(rows):
        if not len(row["responses"]) == len(row["scores"]) == len(row["judged"]):
            raise ValueError(f"rows[{at}]: responses, scores and judged differ in length")
    judged = [score for row in rows for score in row["judged"]]
    table = _figures([_ranking(row["scores"], row["judged"]) for row in rows])
    tops = _five_best(rows, high)
    table["five_best"] = _ratio(tops)
    table["n"]["five_best"] = sum(count for _, count in tops)
    table["intervals"]["five_best"] = ratio_interval(tops)
    table["prompts"], table["unjudged"] = len(rows), sum(score is None for score in judged)
    table["length_only"] = _figures([_ranking(row["scores"], _lengths(row)) for row in rows])
    return table


def _lengths(row: Mapping[str, Any]) -> list[float | None]:
    """Lengths of the answers that the judge read, so that both are measured on the same."""
    pairs = zip(row["responses"], row["judged"], strict=True)
    return [None if judge is None else float(len(text)) for text, judge in pairs]


def _ranking(human: Sequence[float], judge: Sequence[float | None]) -> _Ranking:
    kept = [(h, j) for h, j in zip(human, judge, strict=True) if j is not None]
    return _Ranking([h for h, _ in kept], [j for _, j in kept])


def _figures(rankings: list[_Ranking]) -> dict[str, Any]:
    verdicts = [ranking.verdicts() for ranking in rankings]
    ordered = [ranking for ranking in rankings if len(set(ranking.human)) > 1]
    shares: dict[str, list[tuple[float, int]]] = {
        "pairwise_accuracy": [(sum(v), len(v)) for v in verdicts],
        "pairwise_untied": [(v.count(1.0), len(v) - v.count(0.5)) for v in verdicts],
        "ties": [(v.count(0.5), len(v)) for v in verdicts],
    }
    means = {
        "exact_match": [float(ranking.agrees()) for ranking in ordered],
        "spearman": [ranking.spearman() for ranking in ordered],
        "kendall": [ranking.kendall() for ranking in ordered],
    }
    intervals = {name: ratio_interval(sums) for name, sums in shares.items()}
    intervals |= {name: _mean_interval(means[name]) for name in ("spearman", "kendall")}
    intervals["exact_match"] = share_interval(int(sum(means["exact_match"])), len(ordered))
    return {
        **{name: _ratio(sums) for name, sums in shares.items()},
        **{name: _mean(values) for name, values in means.items()},
        "pairwise_interval": intervals["pairwise_accuracy"],
        "intervals": intervals,
        "n": {name: sum(count for _, count in sums) for name, sums in shares.items()}
        | dict.fromkeys(means, len(ordered)),
    }


def _five_best(rows: Sequence[Mapping[str, Any]], high: float) -> list[tuple[float, int]]:
    """Of each prompt: (answers given `high` that people score highest, answers given it)."""
    found = []
    for row in rows:
        pairs = zip(row["scores"], row["judged"], strict=True)
        given = [human for human, judge in pairs if judge is not None and judge >= high]
        found.append((float(given.count(max(row["scores"], default=0))), len(given)))
    return found


def _ratio(sums: Sequence[tuple[float, int]]) -> float | None:
    total = sum(count for _, count in sums)
    return math.fsum(part for part, _ in sums) / total if total else None


def _mean_interval(values: Sequence[float]) -> list[float] | None:
    """Of correlations, which end at -1 and 1."""
    if len(values) < 2:
        return None
    _, low, high = mean_interval(values)
    return [max(low, -1.0), min(high, 1.0)]


def _mean(values: Sequence[float]) -> float | None:
    return math.fsum(values) / len(values) if values else None


def _sign(value: float) -> int:
    return (value > 0) - (value < 0)
