"""What a judgement in the tiny world reads like, and the rubric that asks for one.

A judgement states the wanted content beside the given one and compares them, so that each of
its words follows from a few words shortly before it. Standard library only.
"""

from dataclasses import replace
from typing import Any

from srlm_fast.tiny.gold import Reading, read
from srlm_fast.tiny.world import Task

RUBRIC = (
    "Score the answer from 0 to 5: is it right, clear and clean?\n"
    "Task: {prompt}\nAnswer:\n{response}"
)

Piece = tuple[str, str]  # (text, role); role: wanted, given, verdict, form, score


def flip(reading: Reading, names: tuple[str, ...]) -> Reading:
    """The reading with some of its points inverted (a noisy judge), kept consistent."""
    changes: dict[str, Any] = {name: not getattr(reading, name) for name in names}
    noisy = replace(reading, **changes)
    return replace(noisy, most=noisy.most or noisy.correct)


def pieces(task: Task, reading: Reading, label: str | None = "Score") -> list[Piece]:
    """A judgement as (text, role) pieces; `label` None leaves the number out."""
    parts = [("It should be", "form"), (f" {task.wanted()}", "wanted"), (". It says", "form")]
    if not reading.relevant:
        parts += [(" nothing", "verdict"), (".", "form")]
    else:
        content = "Right" if reading.correct else "Close" if reading.most else "Wrong"
        parts += [(f" {task.joiner.join(reading.items)}", "given"), (".", "form")]
        parts += [(f" {content}", "verdict"), (".", "form")]
        parts += [(" Clear" if reading.clear else " Messy", "verdict"), (".", "form")]
        parts += [(" Clean" if reading.clean else " Extra", "verdict"), (".", "form")]
    return [*parts, (f" {label}:", "form"), (f" {reading.score}", "score")] if label else parts


def judgement(task: Task, answer: str, noise: tuple[str, ...] = ()) -> tuple[str, int]:
    """Judgement text of an answer and the score it ends with."""
    reading = flip(read(task, answer), noise)
    return "".join(text for text, _ in pieces(task, reading)), reading.score
