"""Preference pairs that people (or another judge) have ordered: what a reward model learns from."""

from __future__ import annotations

from pathlib import Path
from typing import TypedDict

from srlm_fast.data.conversations import Ordered, assistant
from srlm_fast.data.fields import Skipped
from srlm_fast.data.formats import PAIRS
from srlm_fast.data.ranked import recognised_order
from srlm_fast.data.recognised import Recognised
from srlm_fast.records import Message


class PreferenceRow(TypedDict):
    """Two conversations that differ in their last answer. prompt: the text of the last question."""

    prompt: str
    chosen: list[Message]
    rejected: list[Message]


def read_preferences(path: str | Path, skipped: Skipped | None = None) -> list[PreferenceRow]:
    """Pairs of a file of any form that holds an order of answers: its pairs, or the best answer of
    each prompt against the worst.

    Pairs of the same answer or the same score are left out: they say nothing. skipped: counts lines
    that cannot be read. Raises InputError naming file, line and field.
    """
    return recognised_preferences(path, skipped).rows


def recognised_preferences(
    path: str | Path, skipped: Skipped | None = None
) -> Recognised[PreferenceRow]:
    """`read_preferences` with what the file was recognised as."""
    return recognised_order(path, PAIRS, skipped).made(_pairs)


def _pairs(found: Ordered) -> list[PreferenceRow]:
    low, high = min(found.scores), max(found.scores)
    better, worse = (found.responses[found.scores.index(score)] for score in (high, low))
    if low == high or better == worse:
        return []
    chosen, rejected = ([*found.turns, assistant(text)] for text in (better, worse))
    return [{"prompt": found.turns[-1]["content"], "chosen": chosen, "rejected": rejected}]
