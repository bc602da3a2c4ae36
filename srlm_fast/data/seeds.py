"""Seed rows: instructions to follow (IFT) and judgements to imitate (EFT)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NotRequired, TypedDict

from srlm_fast.data.fields import Line, Skipped
from srlm_fast.data.formats import EFT, IFT, JUDGED, RANKED, Format
from srlm_fast.data.ranked import EftEvalRow, eval_row, grouped, recognised_order, with_order
from srlm_fast.data.recognised import Recognised, read_recognised
from srlm_fast.records import AskedRow, Message


class IftRow(TypedDict):
    """An instruction and the answer to it. turns: what was said before the instruction."""

    prompt: str
    response: str
    turns: NotRequired[Sequence[Message]]


# (judgement, its score) -> the field that is wrong, what was found, what was wanted; None: right.
Fault = Callable[[str, float], tuple[str, str, str] | None]


class EftRow(AskedRow):
    """An answer to a prompt, and the judgement of it with the score it ends in."""

    response: str
    judgement: str
    score: float


def read_ift(path: str | Path, skipped: Skipped | None = None) -> list[IftRow]:
    """Instructions with answers, from a file of any form that holds answers to imitate: each turn
    of the assistant in a conversation, the chosen answer of a pair, the best of ranked ones.

    skipped: counts lines that cannot be read. Raises InputError naming file, line and field.
    """
    return recognised_ift(path, skipped).rows


def recognised_ift(path: str | Path, skipped: Skipped | None = None) -> Recognised[IftRow]:
    """`read_ift` with what the file was recognised as."""
    return read_recognised(path, IFT, _ift_rows, skipped)


def _ift_rows(form: Format, line: Line) -> list[IftRow]:
    assert form.answered is not None
    return [_ift_row(turns, answer) for turns, answer in form.answered(line)]


def _ift_row(turns: list[Message], answer: str) -> IftRow:
    *before, last = turns
    row: IftRow = {"prompt": last["content"], "response": answer}
    return {**row, "turns": before} if before else row


def read_eft(path: str | Path, skipped: Skipped | None = None) -> list[EftRow]:
    """Rows with `prompt`, `response`, `judgement` and `score`. Raises InputError as `read_ift`
    does."""
    return read_recognised(path, JUDGED, _eft_rows, skipped).rows


def read_eft_or_ranked(
    path: str | Path, skipped: Skipped | None = None
) -> tuple[list[EftRow], list[EftEvalRow]]:
    """(rows of `read_eft`, none) or (none, rows of `read_eft_eval`), by what the file holds.

    Raises InputError as `read_ift` does, also for a file that mixes the two forms.
    """
    found = recognised_eft(path, skipped)
    return (found.rows, []) if found.form.judged else ([], found.rows)


def recognised_eft(
    path: str | Path, skipped: Skipped | None = None, fault: Fault | None = None
) -> Recognised[Any]:
    """Rows of `read_eft` where the file's form holds judgements, else those of `read_eft_eval`.

    fault: what is wrong with a judgement, which is then a line that cannot be read.
    """

    def rows(form: Format, line: Line) -> list[Any]:
        if form.ordered is None or form.judged is not None:
            return [_faultless(line, row, fault) for row in _eft_rows(form, line)]
        return [form.ordered(line)]

    found = read_recognised(path, EFT, rows, skipped)
    if found.form.judged:
        return found
    return with_order(grouped(found)).made(lambda row: [eval_row(row)])


def _eft_rows(form: Format, line: Line) -> list[Any]:
    assert form.judged is not None
    return [form.judged(line)]


def _faultless(line: Line, row: Any, fault: Fault | None) -> Any:
    if fault and (wrong := fault(row["judgement"], row["score"])):
        raise line.error(*wrong)
    return row


def read_eft_eval(path: str | Path, skipped: Skipped | None = None) -> list[EftEvalRow]:
    """Answers whose order is known, from a file of any form that holds some. Raises InputError as
    `read_ift` does."""
    return recognised_eft_eval(path, skipped).rows


def recognised_eft_eval(path: str | Path, skipped: Skipped | None = None) -> Recognised[EftEvalRow]:
    """`read_eft_eval` with what the file was recognised as."""
    return recognised_order(path, RANKED, skipped).made(lambda row: [eval_row(row)])
