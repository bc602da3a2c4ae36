"""UltraFeedback as it was gathered: an instruction and some `completions`, each with ratings.

Its first release has answers with an `overall_score` of 10 whose critique is bad and whose four
aspects are rated low. Such a score is not believed: the answer is left out.
"""

from __future__ import annotations

from statistics import fmean
from typing import Any

from srlm_fast.data.conversations import Exchange, Ordered, user
from srlm_fast.data.fields import Line, check_number, check_text, kind
from srlm_fast.records import Message

TOP = 10.0  # of overall_score, from 1
LEAST = 4.0  # mean of the aspects (1 to 5) that goes with the top score


def asked(line: Line) -> list[Message]:
    return [user(line.text("instruction"))]


def ordered(line: Line) -> Ordered:
    """The answers whose overall score is believed. Raises InputError for fewer than two."""
    found = _believed(line)
    if len(found) < 2:
        raise line.error("completions", f"has {len(found)} answers with a score", "at least two")
    responses, scores = zip(*found, strict=True)
    return Ordered(asked(line), list(responses), list(scores))


def answered(line: Line) -> list[Exchange]:
    """The best answer, the first of equal ones."""
    found = _believed(line)
    if not found:
        raise line.error("completions", "has no answer with a score", "at least one")
    return [(asked(line), max(found, key=lambda each: each[1])[0])]


def left_out(line: Line) -> int:
    """How many answers have a score that is not believed."""
    return len(line.items("completions")) - len(_believed(line))


def _believed(line: Line) -> list[tuple[str, float]]:
    """(answer, overall score) of each completion but those whose score contradicts its aspects."""
    found = [
        _completion(line, f"completions[{i}]", value)
        for i, value in enumerate(line.items("completions"))
    ]
    return [(text, score) for text, score, aspects in found if score < TOP or aspects >= LEAST]


def _completion(line: Line, field: str, value: Any) -> tuple[str, float, float]:
    """(answer, overall score, mean of its aspects)."""
    if not isinstance(value, dict):
        raise line.error(field, f"is {kind(value)}", '{"response": ..., "overall_score": ...}')
    text = check_text(line, f"{field}.response", value.get("response"))
    score = check_number(line, f"{field}.overall_score", value.get("overall_score"))
    return text, score, _aspects(line, field, value)


def _aspects(line: Line, field: str, value: dict[str, Any]) -> float:
    """`fine-grained_score`, else the mean of the ratings in `annotations`; LEAST where there is
    neither, so that the score stands.
    """
    mean = value.get("fine-grained_score")
    if mean is not None:
        return check_number(line, f"{field}.fine-grained_score", mean)
    annotations = value.get("annotations")
    parts = list(annotations.values()) if isinstance(annotations, dict) else []
    ratings = [str(part.get("Rating")) for part in parts if isinstance(part, dict)]
    numbers = [float(rating) for rating in ratings if rating.isdecimal()]
    return fmean(numbers) if numbers else LEAST
