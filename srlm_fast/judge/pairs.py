"""Preference pairs: of the answers to one prompt, the best scored against the worst scored."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from srlm_fast.records import Candidate, Judgement, Prompt

CandidateKey = tuple[str, int]  # (prompt_id, candidate index)
Samples = Sequence[float | None]  # one score per judgement, None where none could be read

# Why a prompt gave no pair; each prompt that is dropped is counted under exactly one of these.
# "unread": chosen and rejected themselves could not be compared (`pairwise.with_labels`).
REASONS = ("no_candidate", "not_judged", "one_judged", "identical", "tie", "margin", "unread")


# Means are sums of floats: what is equal on paper may differ by some units of the last place.
_SLACK = 1e-9


@dataclass(frozen=True)
class PairConfig:
    """Which two answers make a pair, and when there is none.

    min_margin: least difference of the two means. length_control: rho in [0, 1); above 0, answers
    with a mean in [(1 - rho) * highest + rho * lowest, highest] count as equally good and the
    shortest is chosen, and of the same band at the bottom the longest is rejected (arXiv
    2407.19594); length is in characters. min_judgements: an answer with fewer scores that could be
    read takes no part. Raises ValueError naming the field that is out of range.
    """

    min_margin: float = 0.0
    length_control: float = 0.0
    min_judgements: int = 1

    def __post_init__(self) -> None:
        if not 0 <= self.min_margin < math.inf:
            raise ValueError(f"min_margin: {self.min_margin}, wanted a number of at least 0")
        if not 0 <= self.length_control < 1:
            raise ValueError(f"length_control: {self.length_control}, wanted 0 or more, below 1")
        if self.min_judgements < 1:
            raise ValueError(f"min_judgements: {self.min_judgements}, wanted at least 1")


@dataclass(frozen=True)
class PairSet:
    """Pair rows in the order of the prompts, and for each prompt without one the reason."""

    pairs: list[dict[str, Any]]
    reasons: dict[str, str]

    @property
    def dropped(self) -> dict[str, int]:
        """Prompts dropped for each reason; with the pairs they add up to all prompts."""
        counts = Counter(self.reasons.values())
        return {reason: counts[reason] for reason in (*REASONS, *sorted(counts.keys() - REASONS))}

    @property
    def ties(self) -> int:
        return self.dropped["tie"]


@dataclass(frozen=True)
class _Judged:
    candidate: Candidate
    mean: float
    variance: float

    @property
    def length(self) -> int:
        return len(self.candidate.text)

    @property
    def index(self) -> int:
        return self.candidate.index


def valid_scores(samples: Samples) -> list[float]:
    """The scores that could be read."""
    return [score for score in samples if score is not None and math.isfinite(score)]


def mean_score(samples: Samples) -> float | None:
    """Mean over the scores that could be read; None where none could. A miss is never a 0."""
    valid = valid_scores(samples)
    return math.fsum(valid) / len(valid) if valid else None


def collect_scores(judgements: Iterable[Judgement]) -> dict[CandidateKey, list[float | None]]:
    """The scores of each candidate in the order of its samples, None where one could not be
    read."""
    ordered = sorted(judgements, key=lambda j: (j.prompt_id, j.candidate, j.sample))
    scores: dict[CandidateKey, list[float | None]] = {}
    for judgement in ordered:
        scores.setdefault((judgement.prompt_id, judgement.candidate), []).append(judgement.score)
    return scores


def make_pairs(
    prompts: Sequence[Prompt],
    candidates: Iterable[Candidate],
    scores: Mapping[CandidateKey, Samples],
    *,
    round_name: str = "",
    seed: int = 0,
    sampling: Mapping[str, Any] | None = None,
    config: PairConfig = PairConfig(),
) -> PairSet:
    """For each prompt the highest mean score against the lowest (arXiv 2401.10020, section 2.3).

    A candidate counts as judged with at least `config.min_judgements` scores that could be read;
    the others, unread ones among them, can be neither chosen nor rejected. Equal means are settled
    by the lowest variance of the judge (unknown for a single score, so last), then by the lowest
    index, at either end; in the bands of length control by length, then mean, variance and index.
    The rejected one always has the lower mean, also where the two bands overlap.

    A prompt is dropped, for one counted reason: "no_candidate"; "not_judged"; "one_judged" (only
    one has scores enough); "identical" (the two texts are the same); "tie" (all means are equal);
    "margin" (the two means differ by less than `config.min_margin`).

    A pair row is a superset of the UltraFeedback-binarized layout: prompt, prompt_id, chosen,
    rejected, messages, score_chosen, score_rejected, then all_responses, scores (every sample, null
    where unread), chosen_index, rejected_index, round, seed, sampling. Raises ValueError for a
    prompt id that stands twice.
    """
    by_prompt: dict[str, list[Candidate]] = {prompt.prompt_id: [] for prompt in prompts}
    if len(by_prompt) != len(prompts):
        raise ValueError("prompts: a prompt_id stands twice, wanted each once")
    for candidate in candidates:
        if candidate.prompt_id in by_prompt:
            by_prompt[candidate.prompt_id].append(candidate)
    origin = {"round": round_name, "seed": seed, "sampling": dict(sampling or {})}
    pairs, reasons = [], {}
    for prompt in prompts:
        group = sorted(by_prompt[prompt.prompt_id], key=lambda c: c.index)
        picked = _pick(group, scores, config)
        if isinstance(picked, str):
            reasons[prompt.prompt_id] = picked
        else:
            pairs.append(_row(prompt, group, scores, *picked) | origin)
    return PairSet(pairs, reasons)


def _pick(
    group: list[Candidate], scores: Mapping[CandidateKey, Samples], config: PairConfig
) -> tuple[_Judged, _Judged] | str:
    """(chosen, rejected), or the reason there is no pair."""
    judged = [j for c in group if (j := _judge(c, scores, config.min_judgements)) is not None]
    if len(judged) < 2:
        return "no_candidate" if not group else "one_judged" if judged else "not_judged"
    if len({j.candidate.text for j in judged}) == 1:
        return "identical"
    means = [j.mean for j in judged]
    if max(means) - min(means) < _SLACK:
        return "tie"
    chosen, rejected = _ends(judged, config.length_control)
    if chosen.candidate.text == rejected.candidate.text:
        return "identical"
    if chosen.mean - rejected.mean < config.min_margin - _SLACK:
        return "margin"
    return chosen, rejected


def _ends(judged: list[_Judged], rho: float) -> tuple[_Judged, _Judged]:
    """(chosen, rejected) of answers whose means are not all equal."""
    means = [j.mean for j in judged]
    high, low = max(means), min(means)
    band = rho * (high - low) + _SLACK
    top = [j for j in judged if j.mean >= high - band and j.mean > low]
    if not rho:
        chosen = min(top, key=lambda j: (j.variance, j.index))
        bottom = [j for j in judged if j.mean <= low + band]
        return chosen, min(bottom, key=lambda j: (j.variance, j.index))
    chosen = min(top, key=lambda j: (j.length, -j.mean, j.variance, j.index))
    bottom = [j for j in judged if j.mean <= low + band and j.mean < chosen.mean]
    return chosen, min(bottom, key=lambda j: (-j.length, j.mean, j.variance, j.index))


def _judge(
    candidate: Candidate, scores: Mapping[CandidateKey, Samples], min_judgements: int
) -> _Judged | None:
    valid = valid_scores(scores.get((candidate.prompt_id, candidate.index), ()))
    if len(valid) < min_judgements:
        return None
    mean = math.fsum(valid) / len(valid)
    spread = math.fsum((score - mean) ** 2 for score in valid) / len(valid)
    return _Judged(candidate, mean, spread if len(valid) > 1 else math.inf)


def _row(
    prompt: Prompt,
    group: list[Candidate],
    scores: Mapping[CandidateKey, Samples],
    chosen: _Judged,
    rejected: _Judged,
) -> dict[str, Any]:
    better = [*prompt.messages, {"role": "assistant", "content": chosen.candidate.text}]
    worse = [*prompt.messages, {"role": "assistant", "content": rejected.candidate.text}]
    samples = [scores.get((c.prompt_id, c.index), ()) for c in group]
    return {
        "prompt": prompt.text,
        "prompt_id": prompt.prompt_id,
        "chosen": better,
        "rejected": worse,
        "messages": better,
        "score_chosen": chosen.mean,
        "score_rejected": rejected.mean,
        "all_responses": [c.text for c in group],
        "scores": [[s if s is None or math.isfinite(s) else None for s in row] for row in samples],
        "chosen_index": chosen.candidate.index,
        "rejected_index": rejected.candidate.index,
    }
