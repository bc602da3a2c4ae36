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
REASONS = ("no_candidate", "not_judged", "one_judged", "identical", "tie", "margin")


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
    min_valid: int = 1,
    min_margin: float = 0.0,
) -> PairSet:
    """For each prompt the highest mean score against the lowest (arXiv 2401.10020, section 2.3).

    A candidate counts as judged with at least `min_valid` scores that could be read; the others,
    unread ones among them, can be neither chosen nor rejected. Equal means are settled by the
    lowest variance of the judge (unknown for a single score, so last), then by the lowest index, at
    either end. A prompt is dropped, for one counted
    reason: "no_candidate"; "not_judged"; "one_judged"; "identical" (the two texts are the same);
    "tie" (all means are equal); "margin" (they differ by less than `min_margin`).

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
        picked = _pick(group, scores, min_valid, min_margin)
        if isinstance(picked, str):
            reasons[prompt.prompt_id] = picked
        else:
            pairs.append(_row(prompt, group, scores, *picked) | origin)
    return PairSet(pairs, reasons)


def _pick(
    group: list[Candidate],
    scores: Mapping[CandidateKey, Samples],
    min_valid: int,
    min_margin: float,
) -> tuple[_Judged, _Judged] | str:
    """(chosen, rejected), or the reason there is no pair."""
    judged = [j for c in group if (j := _judge(c, scores, min_valid)) is not None]
    if len(judged) < 2:
        return "no_candidate" if not group else "one_judged" if judged else "not_judged"
    chosen = min(judged, key=lambda j: (-j.mean, j.variance, j.candidate.index))
    rejected = min(judged, key=lambda j: (j.mean, j.variance, j.candidate.index))
    if len({j.candidate.text for j in judged}) == 1:
        return "identical"
    if chosen.mean == rejected.mean:
        return "tie"
    if chosen.candidate.text == rejected.candidate.text:
        return "identical"
    if chosen.mean - rejected.mean < min_margin:
        return "margin"
    return chosen, rejected


def _judge(
    candidate: Candidate, scores: Mapping[CandidateKey, Samples], min_valid: int
) -> _Judged | None:
    valid = valid_scores(scores.get((candidate.prompt_id, candidate.index), ()))
    if len(valid) < max(min_valid, 1):
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
    question = {"role": "user", "content": prompt.text}
    better = [question, {"role": "assistant", "content": chosen.candidate.text}]
    worse = [question, {"role": "assistant", "content": rejected.candidate.text}]
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
