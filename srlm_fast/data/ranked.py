"""Answers whose order is known: what EFT is built from and a judge is measured on."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from srlm_fast.data.conversations import Ordered
from srlm_fast.data.fields import Line, Skipped, check_text
from srlm_fast.data.formats import RANKED, Format, Use
from srlm_fast.data.recognised import Recognised, read_recognised
from srlm_fast.records import AskedRow, InputError, asked_row, conversation_text


class EftEvalRow(AskedRow):
    """Several answers to a prompt with the scores that people gave; higher is better."""

    responses: list[str]
    scores: list[float]


class RankedRow(EftEvalRow):
    """subset: the part of the file that the row belongs to, "" where it names none."""

    subset: str


def read_ranked(path: str | Path, skipped: Skipped | None = None) -> list[RankedRow]:
    """Rows of a file of any form that holds an order of answers: scores, pairs (1 and 0), or single
    answers with a label or a score, put together by their prompt; an optional `subset`.

    skipped: counts lines that cannot be read. Raises InputError naming file, line and field.
    """
    return recognised_ranked(path, skipped).rows


def recognised_ranked(path: str | Path, skipped: Skipped | None = None) -> Recognised[RankedRow]:
    """`read_ranked` with what the file was recognised as."""
    return recognised_order(path, RANKED, skipped).made(
        lambda found: [{**eval_row(found), "subset": found.subset}]
    )


def recognised_order(
    path: str | Path, use: Use, skipped: Skipped | None = None
) -> Recognised[Ordered]:
    """Ordered answers, a row for each prompt where the file has an answer a line."""

    def rows(form: Format, line: Line) -> list[Ordered]:
        assert form.ordered is not None
        subset = _subset(line) if use is RANKED else ""
        return [dataclasses.replace(form.ordered(line), subset=subset)]

    return with_order(grouped(read_recognised(path, use, rows, skipped)))


def eval_row(found: Ordered) -> EftEvalRow:
    return {**asked_row(found.turns), "responses": found.responses, "scores": found.scores}


def grouped(found: Recognised[Ordered]) -> Recognised[Ordered]:
    """Rows of one answer put together by their prompt, where the form has such; prompts with one
    answer alone are left out. Raises InputError where none has two.
    """
    if not found.form.grouped:
        return found
    groups: dict[str, Ordered] = {}
    for row in found.rows:
        empty = dataclasses.replace(row, responses=[], scores=[])
        group = groups.setdefault(conversation_text(row.turns), empty)
        group.responses.extend(row.responses)
        group.scores.extend(row.scores)
    found.rows = [group for group in groups.values() if len(group.responses) > 1]
    if not found.rows:
        raise InputError(
            f"{found.path}: recognised as {found.form.words}, each of another prompt, wanted "
            "several answers to a prompt"
        )
    return found


def with_order(found: Recognised[Ordered]) -> Recognised[Ordered]:
    """The same, with rows counted whose answers all have one score. Raises InputError where no row
    has two of different score.
    """
    found.tied = sum(len(set(row.scores)) < 2 for row in found.rows)
    if found.tied == len(found.rows):
        raise InputError(
            f"{found.path}: recognised as {found.form.words}, no two answers of different score to "
            "a prompt, wanted answers whose order is known"
        )
    return found


def _subset(line: Line) -> str:
    value = line.fields.get("subset")
    return "" if value is None else check_text(line, "subset", value)
