"""The seed of judging (EFT) from ranked answers: judgements whose order agrees with people's, the
histogram of their scores flattened (arXiv 2401.10020, section 3.1).
"""

from __future__ import annotations

import math
import random
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import groupby, pairwise
from typing import Any

from srlm_fast.judge.pairs import mean_score
from srlm_fast.records import Judgement, Prompt

# Why a prompt gave no rows; each that is dropped is counted under exactly one of these.
REASONS = ("unranked", "unread", "disagreeing")


@dataclass(frozen=True)
class Ranked:
    """Answers to one prompt with people's scores; higher is better."""

    prompt: Prompt
    responses: Sequence[str]
    scores: Sequence[float]


@dataclass(frozen=True)
class EftCounts:
    """Every step. prompts = agreeing + those of `dropped`; before flattening there are `agreed`
    rows, after it `kept` + `over_limit`. Histograms: score -> rows.
    """

    prompts: int
    answers: int
    judgements: int
    unread: int  # judgements without a score
    dropped: dict[str, int]  # prompts, by reason
    agreeing: int  # prompts
    agreed: int  # rows of the agreeing prompts
    flattened: int  # rows dropped from the most common score
    over_limit: int  # rows left out because enough are there
    kept: int
    before: dict[str, int]
    after: dict[str, int]


@dataclass(frozen=True)
class EftSet:
    """rows: {"prompt", "response", "judgement", "score", "prompt_id", "candidate", "sample"}."""

    rows: list[dict[str, Any]]
    counts: EftCounts

    def figures(self) -> dict[str, Any]:
        return asdict(self.counts)


def build_eft(
    ranked: Sequence[Ranked],
    judgements: Iterable[Judgement],
    seed: int = 0,
    limit: int | None = None,
) -> EftSet:
    """Rows to teach judging with, in the order of the prompts and their answers.

    Of a prompt's answers one judgement each is kept, or none of all. They agree with people when,
    of every two answers that people score apart, the judge gives the better one a strictly higher
    score; answers that people score alike may be judged in any way. Where an answer has several
    sampled judgements, their means have to agree, and of the choices of one for each answer that
    agree as well the one whose scores are nearest to the means (least sum of distances) is kept,
    equal sums settled in a fixed order. An answer without a readable judgement takes no part.

    A prompt is dropped as "unranked" (people score all its answers alike), "unread" (of answers
    that people score apart fewer than two have a readable judgement), or "disagreeing" (no choice
    agrees). Then rows of the most common score are dropped until as many are left as of the second
    most common, and at most `limit` rows in all are kept; which ones is drawn by the seed.
    """
    all_judgements = list(judgements)
    by_answer: dict[tuple[str, int], list[Judgement]] = {}
    for judgement in sorted(all_judgements, key=lambda j: j.sample):
        if judgement.score is not None and math.isfinite(judgement.score):
            key = (judgement.prompt_id, judgement.candidate)
            by_answer.setdefault(key, []).append(judgement)
    agreed: list[dict[str, Any]] = []
    reasons: list[str] = []
    for item in ranked:
        picked = _pick(item, by_answer)
        if isinstance(picked, str):
            reasons.append(picked)
        else:
            agreed += [_row(item, judgement) for judgement in picked]
    rng = random.Random(seed)
    flat = flatten(agreed, rng)
    kept = flat if limit is None or limit >= len(flat) else _drawn(flat, limit, rng)
    dropped = Counter(reasons)
    counts = EftCounts(
        prompts=len(ranked),
        answers=sum(len(item.responses) for item in ranked),
        judgements=len(all_judgements),
        unread=len(all_judgements) - sum(map(len, by_answer.values())),
        dropped={reason: dropped[reason] for reason in REASONS},
        agreeing=len(ranked) - len(reasons),
        agreed=len(agreed),
        flattened=len(agreed) - len(flat),
        over_limit=len(flat) - len(kept),
        kept=len(kept),
        before=histogram(agreed),
        after=histogram(kept),
    )
    return EftSet(kept, counts)


def flatten(rows: Sequence[Mapping[str, Any]], rng: random.Random) -> list[Any]:
    """Without some rows of the most common score: as many are left as of the second most common.

    Where two scores are the most common, or there is one score alone, nothing is dropped.
    """
    common = Counter(row["score"] for row in rows).most_common(2)
    if len(common) < 2:
        return list(rows)
    (most, _), (_, wanted) = common
    of_most = [i for i, row in enumerate(rows) if row["score"] == most]
    left = set(rng.sample(of_most, wanted))
    return [row for i, row in enumerate(rows) if row["score"] != most or i in left]


def histogram(rows: Iterable[Mapping[str, Any]]) -> dict[str, int]:
    """Score, as JSON has keys, -> rows, from the lowest score."""
    counts = Counter(float(row["score"]) for row in rows)
    return {f"{score:g}": counts[score] for score in sorted(counts)}


def _drawn(rows: list[Any], count: int, rng: random.Random) -> list[Any]:
    return [rows[i] for i in sorted(rng.sample(range(len(rows)), count))]


def _pick(
    item: Ranked, by_answer: Mapping[tuple[str, int], list[Judgement]]
) -> list[Judgement] | str:
    """One judgement of each judged answer, in the order of the answers, or why there are none."""
    if len(set(item.scores)) < 2:
        return "unranked"
    judged = [
        (score, found)
        for k, score in enumerate(item.scores)
        if (found := by_answer.get((item.prompt.prompt_id, k)))
    ]
    if len({score for score, _ in judged}) < 2:
        return "unread"
    judged.sort(key=lambda pair: pair[0])
    groups = [[j for _, j in group] for _, group in groupby(judged, key=lambda pair: pair[0])]
    picked = _agreeing(groups) if _means_agree(groups) else None
    return "disagreeing" if picked is None else sorted(picked, key=lambda j: j.candidate)


def _means_agree(groups: Sequence[Sequence[Sequence[Judgement]]]) -> bool:
    """Whether the answers' mean scores rise strictly from group to group."""
    means = [
        [mean_score([j.score for j in answer]) or 0.0 for answer in answers] for answers in groups
    ]
    return all(max(worse) < min(better) for worse, better in pairwise(means))


def _agreeing(groups: Sequence[Sequence[Sequence[Judgement]]]) -> list[Judgement] | None:
    """The best choice of one judgement per answer whose scores rise from group to group.

    groups: answers that people score alike, from the worst; of each answer its judgements. Group by
    group, the best choice for every score that may be the highest so far.
    """
    best: dict[float, tuple[float, list[Judgement]]] = {-math.inf: (0.0, [])}
    for answers in groups:
        tops = sorted({_score(judgement) for answer in answers for judgement in answer})
        reached: dict[float, tuple[float, list[Judgement]]] = {}
        for floor, (cost, picked) in best.items():
            for top in (top for top in tops if top > floor):
                found = [_nearest(answer, floor, top) for answer in answers]
                if None in found:
                    continue
                chosen = [pair for pair in found if pair is not None]
                total = cost + math.fsum(distance for distance, _ in chosen)
                if top not in reached or total < reached[top][0]:
                    reached[top] = (total, picked + [judgement for _, judgement in chosen])
        best = reached
    return min(best.values(), key=lambda found: found[0])[1] if best else None


def _nearest(
    answer: Sequence[Judgement], floor: float, top: float
) -> tuple[float, Judgement] | None:
    """(distance, judgement) nearest to the answer's mean score, with a score in (floor, top]."""
    mean = mean_score([judgement.score for judgement in answer])
    assert mean is not None
    allowed = [judgement for judgement in answer if floor < _score(judgement) <= top]
    near = ((abs(_score(judgement) - mean), judgement) for judgement in allowed)
    return min(near, key=lambda pair: (pair[0], pair[1].sample), default=None)


def _score(judgement: Judgement) -> float:
    assert judgement.score is not None
    return judgement.score


def _row(item: Ranked, judgement: Judgement) -> dict[str, Any]:
    return {
        "prompt": item.prompt.text,
        "response": item.responses[judgement.candidate],
        "judgement": judgement.text.strip(),
        "score": judgement.score,
        "prompt_id": judgement.prompt_id,
        "candidate": judgement.candidate,
        "sample": judgement.sample,
    }
