"""How good a model is: its held-out score, and how well it judges."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

from srlm_fast.eval import judge_table, mean_interval
from srlm_fast.judge import collect_scores, mean_score
from srlm_fast.records import Candidate, Judgement, Prompt

from .material import Material


@dataclass(frozen=True)
class Scored:
    """A held-out answer with its score, and the points the score is made of where a program gave
    it.
    """

    prompt_id: str
    text: str
    score: float
    bits: dict[str, bool]


def score_by_program(material: Material, candidates: dict[str, list[Candidate]]) -> list[Scored]:
    assert material.score_bits is not None
    return [
        Scored(p.prompt_id, c.text, *material.score_bits(p.text, c.text))
        for p in material.held_out
        for c in candidates.get(p.prompt_id, [])
    ]


def score_by_judge(
    prompts: Sequence[Prompt],
    candidates: dict[str, list[Candidate]],
    judgements: dict[tuple[str, int], list[Judgement]],
) -> list[Scored]:
    """Answers whose judgements held no score are left out."""
    scores = collect_scores(j for group in judgements.values() for j in group)
    means = {key: mean_score(samples) for key, samples in scores.items()}
    return [
        Scored(p.prompt_id, c.text, score, {})
        for p in prompts
        for c in candidates.get(p.prompt_id, [])
        if (score := means.get((p.prompt_id, c.index))) is not None
    ]


def evaluation_figures(scored: Sequence[Scored], judged_by: str) -> dict[str, Any]:
    """Mean score with its 95 % interval over prompts (a prompt's answers are not independent)."""
    by_prompt: dict[str, list[float]] = {}
    for row in scored:
        by_prompt.setdefault(row.prompt_id, []).append(row.score)
    means = [fmean(scores) for scores in by_prompt.values()]
    if not means:
        return {"score": None, "n": 0, "interval": None, "judged_by": judged_by}
    mean, low, high = mean_interval(means)
    bits = {name: fmean(row.bits[name] for row in scored) for name in scored[0].bits}
    figures = {"score": mean, "n": len(means), "interval": [low, high], "judged_by": judged_by}
    return figures | ({"bits": bits} if bits else {})


def given_candidates(
    rows: Sequence[dict[str, Any]],
) -> tuple[list[Prompt], dict[str, list[Candidate]]]:
    """The judge's evaluation rows as prompts with given candidates."""
    prompts = [Prompt(f"eft-{i}", row["prompt"], "seed") for i, row in enumerate(rows)]
    candidates = {
        prompt.prompt_id: [
            Candidate(prompt.prompt_id, k, text, (), 0.0, "stop")
            for k, text in enumerate(row["responses"])
        ]
        for prompt, row in zip(prompts, rows, strict=True)
    }
    return prompts, candidates


def judge_figures(
    rows: Sequence[dict[str, Any]], judgements: dict[tuple[str, int], list[Judgement]]
) -> dict[str, Any] | None:
    """The paper's judge table on rows whose answers were scored by people (or by the world's
    program).
    """
    if not rows:
        return None
    scores = collect_scores(j for group in judgements.values() for j in group)
    table_rows = [
        row
        | {
            "judged": [
                mean_score(scores.get((f"eft-{i}", k), ())) for k in range(len(row["responses"]))
            ]
        }
        for i, row in enumerate(rows)
    ]
    return judge_table(table_rows)
