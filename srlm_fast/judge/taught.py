"""Judgements that somebody wrote for a model to imitate: a rubric must be able to read them."""

from __future__ import annotations

from srlm_fast.judge.rubric import Rubric
from srlm_fast.judge.score import parse_pattern
from srlm_fast.kernels.judge_score import ScoreStatus

Fault = tuple[str, str, str]  # field, what was found, what was wanted


def fault_of(rubric: Rubric, judgement: str, score: float) -> Fault | None:
    """What is wrong with a judgement and the score that is said to be its own; None: nothing.

    Under the label of this project the score must be the last that is said; what stands behind the
    number of a rubric's own `pattern` is that pattern's affair.
    """
    reading = parse_pattern(rubric.pattern, rubric.low, rubric.high)
    label = "a score that the rubric's pattern reads" if rubric.pattern else "a line 'Score: N'"
    wanted = f"{label}, from {rubric.low} to {rubric.high}"
    given, status = reading.read(judgement)
    if status is ScoreStatus.OUT_OF_RANGE:
        return "judgement", f"ends in the score {reading.find(judgement)['value'][:20]}", wanted
    if status is not ScoreStatus.OK:
        return (
            "judgement",
            "has no score",
            f"{label} at its end, from {rubric.low} to {rubric.high}",
        )
    end = reading.find(judgement).end()
    if rubric.pattern is None and any(map(str.isalnum, judgement[end:])):
        return "judgement", f"goes on behind its score ({judgement[end:].strip()[:40]!r})", wanted
    if given != score:
        return "score", f"is {score:g}", f"{given:g}, in which the judgement ends"
    return None
