"""Seed rows in their JSONL form: instructions to follow (IFT) and judgements to imitate (EFT)."""

from __future__ import annotations

from pathlib import Path
from typing import TypedDict

from srlm_fast.data.fields import Line, check_number, check_text, read_lines

EFT_FORM = '{"prompt": "...", "response": "...", "judgement": "... Score: 4", "score": 4}'
RANKED_FORM = '{"prompt": "...", "responses": ["...", "..."], "scores": [4, 2]}'


class IftRow(TypedDict):
    """An instruction and the answer to it."""

    prompt: str
    response: str


class EftRow(TypedDict):
    """An answer to a prompt, and the judgement of it with the score it ends in."""

    prompt: str
    response: str
    judgement: str
    score: float


class EftEvalRow(TypedDict):
    """Several answers to a prompt with the scores that people gave; higher is better."""

    prompt: str
    responses: list[str]
    scores: list[float]


def read_ift(path: str | Path) -> list[IftRow]:
    """Rows with `prompt` and `response`. Raises InputError naming file, line and field."""
    lines = read_lines(path, '{"prompt": "...", "response": "..."}')
    return [{"prompt": line.text("prompt"), "response": line.text("response")} for line in lines]


def read_eft(path: str | Path) -> list[EftRow]:
    """Rows with `prompt`, `response`, `judgement` and `score`. Raises InputError as `read_ift`
    does."""
    return [_eft_row(line) for line in read_lines(path, EFT_FORM)]


def read_eft_or_ranked(path: str | Path) -> tuple[list[EftRow], list[EftEvalRow]]:
    """(rows of `read_eft`, none) or (none, rows of `read_eft_eval`), by what the first line holds.

    Raises InputError as `read_ift` does, also for a file that mixes the two forms.
    """
    eft: list[EftRow] = []
    ranked: list[EftEvalRow] = []
    for line in read_lines(path, f"{EFT_FORM} or {RANKED_FORM}"):
        if "judgement" not in line.fields and "responses" in line.fields:
            if eft:
                raise line.error("responses", "stands in a file of judgements", "one form alone")
            ranked.append(ranked_row(line))
        else:
            if ranked:
                found = "stands in a file of ranked answers"
                raise line.error("judgement", found, "one form alone")
            eft.append(_eft_row(line))
    return eft, ranked


def _eft_row(line: Line) -> EftRow:
    return {
        "prompt": line.text("prompt"),
        "response": line.text("response"),
        "judgement": line.text("judgement"),
        "score": line.number_of("score"),
    }


def read_eft_eval(path: str | Path) -> list[EftEvalRow]:
    """Rows with `prompt`, at least two `responses` and as many `scores`. Raises InputError as
    `read_ift` does."""
    return [ranked_row(line) for line in read_lines(path, RANKED_FORM)]


def ranked_row(line: Line) -> EftEvalRow:
    """The row of one line. Raises InputError."""
    responses, scores = line.items("responses"), line.items("scores")
    if len(responses) < 2:
        raise line.error("responses", f"has {len(responses)} entries", "at least two")
    if len(scores) != len(responses):
        raise line.error("scores", f"has {len(scores)} entries", f"{len(responses)} as 'responses'")
    return {
        "prompt": line.text("prompt"),
        "responses": [check_text(line, f"responses[{i}]", r) for i, r in enumerate(responses)],
        "scores": [check_number(line, f"scores[{i}]", s) for i, s in enumerate(scores)],
    }
