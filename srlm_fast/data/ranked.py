"""Answers whose order is known, to measure a judge on: our own ranked rows, or preference pairs in
RewardBench's form.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, TypedDict

from srlm_fast.data.fields import Line, check_text, kind, read_lines
from srlm_fast.data.seeds import ranked_row

FORM = (
    '{"prompt": "...", "responses": ["...", "..."], "scores": [4, 2]} or '
    '{"prompt": "...", "chosen": "...", "rejected": "..."}'
)
CHOSEN, REJECTED = 1.0, 0.0


class RankedRow(TypedDict):
    """Answers to one prompt with the scores that people gave; higher is better. subset: the part of
    the file that the row belongs to, "" where it names none.
    """

    prompt: str
    responses: list[str]
    scores: list[float]
    subset: str


def read_ranked(path: str | Path) -> list[RankedRow]:
    """Rows with `prompt`, `responses` and `scores`, or with `prompt`, `chosen` and `rejected`
    (texts or message lists, the prompt possibly only inside them); an optional `subset` in either.

    Raises InputError naming file, line and field, also for a file that mixes the two forms.
    """
    rows: list[RankedRow] = []
    first: bool | None = None
    for line in read_lines(path, FORM):
        paired = "chosen" in line.fields or "rejected" in line.fields
        if first not in (None, paired):
            found = "stands in a file of " + ("ranked answers" if paired else "pairs")
            raise line.error("chosen" if paired else "responses", found, "one form in a file")
        first = paired
        rows.append(_pair_row(line) if paired else {**ranked_row(line), "subset": _subset(line)})
    return rows


def _subset(line: Line) -> str:
    value = line.fields.get("subset")
    return "" if value is None else check_text(line, "subset", value)


def _pair_row(line: Line) -> RankedRow:
    chosen, before = _answer(line, "chosen")
    rejected, before_rejected = _answer(line, "rejected")
    prompt = line.fields.get("prompt")
    if prompt is None:
        if before != before_rejected or not before:
            raise line.error("prompt", "is missing", "one, or the same turns before both answers")
        prompt = before
    text = conversation(line, prompt) if isinstance(prompt, list) else line.text("prompt")
    return {
        "prompt": text,
        "responses": [chosen, rejected],
        "scores": [CHOSEN, REJECTED],
        "subset": _subset(line),
    }


def _answer(line: Line, field: str) -> tuple[str, list[Any]]:
    """(text of an answer, messages before it); a text has none before it."""
    value = line.fields.get(field)
    if not isinstance(value, list):
        return line.text(field), []
    if not value or _message(line, field, value[-1])[0] != "assistant":
        raise line.error(field, "does not end with an assistant's message", "one that does")
    return _message(line, field, value[-1])[1], value[:-1]


def _message(line: Line, field: str, message: Any) -> tuple[str, str]:
    """(role, content)."""
    if not isinstance(message, dict) or not isinstance(message.get("role"), str):
        raise line.error(field, f"holds {kind(message)}", 'messages {"role": ..., "content": ...}')
    return message["role"], check_text(line, f"{field}[].content", message.get("content"))


def conversation(line: Line, messages: list[Any]) -> str:
    """A question of one turn as it is; more turns with their roles, since the judge is asked about
    a text.
    """
    turns = [_message(line, "prompt", message) for message in messages]
    if not turns:
        raise line.error("prompt", "has no messages", "at least one")
    if len(turns) == 1:
        return turns[0][1]
    return "\n\n".join(f"{role.capitalize()}: {content}" for role, content in turns)
