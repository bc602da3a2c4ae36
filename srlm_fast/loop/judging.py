"""Judging answers whose order is known, and what became of judgements."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from srlm_fast.eval import judge_table
from srlm_fast.judge import Rubric, collect_scores, mean_score
from srlm_fast.records import Candidate, Judgement, Prompt
from srlm_fast.sampler import Sampler, SamplingParams

from .answers import AnswerStage
from .ranks import ALONE, Ranks
from .readers import Reader


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
    ranks: Ranks = ALONE,
) -> AnswerStage:
    """Judge the answers of ranked rows into a file, going on from what it holds.

    rows: "prompt" and "responses"; the answer k of row i is the candidate (ranked_id(i), k). show:
    runs the stage. Returns the stage with `judgements`, and the rows `too_long` for the model.
    """
    prompts = [Prompt(ranked_id(i), row["prompt"], "seed") for i, row in enumerate(rows)]
    stage = AnswerStage(sampler, SamplingParams(), rubric, reader, None, judgements, ranks)
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
        "judgements": status_counts(judgements),
        **audit_counts(judgements),
    }


def top_score(high: float, mode: str) -> float:
    """From where on a score counts as the rubric's highest: a mean over digits never is that."""
    return float(high) if mode == "sampled" else high - 0.5


def audit_counts(judgements: Mapping[Any, list[Any]]) -> dict[str, int]:
    """How many judgements were read both by their first score line and to their end, and how many
    of them differed; nothing where all were read one way.
    """
    audits = [getattr(row, "audit", "") for group in judgements.values() for row in group]
    audited = [audit for audit in audits if audit]
    return {"audited": len(audited), "differ": audited.count("differs")} if audited else {}


def status_counts(judgements: Mapping[Any, list[Any]]) -> dict[str, int]:
    """Judgements by status, in small letters: "ok" and why others have no score."""
    found = Counter(j.status.lower() for group in judgements.values() for j in group)
    return dict(sorted(found.items()))
