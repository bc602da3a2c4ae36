"""How good a model is: its held-out score, and how well it judges."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

from srlm_fast.eval import judge_table, mean_interval
from srlm_fast.judge import Rubric, collect_scores, mean_score
from srlm_fast.records import Candidate, Judgement, Prompt
from srlm_fast.sampler import Sampler, SamplingParams

from .answers import AnswerStage
from .material import Material
from .readers import Reader


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


def ranked_id(row: int) -> str:
    """The prompt id of a ranked row."""
    return f"ranked-{row}"


def judge_given(
    sampler: Sampler,
    rubric: Rubric,
    reader: Reader,
    rows: Sequence[Mapping[str, Any]],
    judgements: Path,
    show: Callable[[AnswerStage, list[Prompt]], None],
) -> AnswerStage:
    """Judge the answers of ranked rows into a file, going on from what it holds.

    rows: "prompt" and "responses"; the answer k of row i is the candidate (ranked_id(i), k). show:
    runs the stage. Returns the stage with `judgements`, and the rows `too_long` for the model.
    """
    prompts = [Prompt(ranked_id(i), row["prompt"], "seed") for i, row in enumerate(rows)]
    stage = AnswerStage(sampler, SamplingParams(), rubric, reader, None, judgements)
    stage.candidates = {
        prompt.prompt_id: [
            Candidate(prompt.prompt_id, k, text, (), 0.0, "stop")
            for k, text in enumerate(row["responses"])
        ]
        for prompt, row in zip(prompts, rows, strict=True)
    }
    show(stage, prompts)
    return stage


def judged_rows(
    rows: Sequence[Mapping[str, Any]], judgements: Mapping[tuple[str, int], list[Judgement]]
) -> list[dict[str, Any]]:
    """Ranked rows with the judge's mean scores beside people's, None where none could be read."""
    scores = collect_scores(j for group in judgements.values() for j in group)
    return [
        {
            **row,
            "judged": [
                mean_score(scores.get((ranked_id(i), k), ())) for k in range(len(row["responses"]))
            ],
        }
        for i, row in enumerate(rows)
    ]


def judge_figures(
    rows: Sequence[Mapping[str, Any]],
    judgements: Mapping[tuple[str, int], list[Judgement]],
    high: float,
) -> dict[str, Any]:
    """The paper's judge table on rows whose answers were scored by people (or by the world's
    program), and what became of the judgements. high: the rubric's upper end.
    """
    return judge_table(judged_rows(rows, judgements), high) | {
        "judgements": status_counts(judgements)
    }


def audit_counts(judgements: Mapping[Any, list[Any]]) -> dict[str, int]:
    """How many judgements were read both by their first score line and to their end, and how many
    of them differed; nothing where all were read one way.
    """
    audits = [getattr(row, "audit", "") for group in judgements.values() for row in group]
    audited = [audit for audit in audits if audit]
    return {"audited": len(audited), "differ": audited.count("differs")} if audited else {}


def status_counts(judgements: Mapping[tuple[str, int], list[Judgement]]) -> dict[str, int]:
    """Judgements by status, in small letters: "ok" and why others have no score."""
    found = Counter(j.status.lower() for group in judgements.values() for j in group)
    return dict(sorted(found.items()))
