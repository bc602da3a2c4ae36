"""Whole conversations: ShareGPT's (`conversations`, with system and tools beside them) and lists of
messages (`messages`).
"""

from __future__ import annotations

from srlm_fast.data.conversations import (
    Exchange,
    Ordered,
    exchanges,
    messages,
    question,
    system,
)
from srlm_fast.data.fields import Line
from srlm_fast.data.forms.own import SAID, label
from srlm_fast.records import Message


def sharegpt(line: Line) -> list[Message]:
    return _turns(line, "conversations")


def sharegpt_asked(line: Line) -> list[Message]:
    return question(line, "conversations", sharegpt(line))


def sharegpt_answered(line: Line) -> list[Exchange]:
    return exchanges(line, "conversations", sharegpt(line))


def asked(line: Line) -> list[Message]:
    return question(line, "messages", _turns(line, "messages"))


def answered(line: Line) -> list[Exchange]:
    return exchanges(line, "messages", _turns(line, "messages"))


def liked(line: Line) -> list[Exchange]:
    """The answers of a conversation that is liked, or whose `label` is a topic."""
    found = _exchanges(line)
    return found if _has_topic(line) or label(line) else []


def labelled(line: Line) -> Ordered:
    """The last answer with 1 or 0 for the `label`, to be grouped."""
    turns, answer = _exchanges(line)[-1]
    return Ordered(turns, [answer], [float(label(line))])


def _has_topic(line: Line) -> bool:
    value = line.fields.get("label")
    return isinstance(value, str) and value.strip().lower() not in SAID


def _exchanges(line: Line) -> list[Exchange]:
    return answered(line) if line.fields.get("messages") is not None else sharegpt_answered(line)


def _turns(line: Line, field: str) -> list[Message]:
    """The turns, behind the row's own `system` where they bring none."""
    turns = messages(line, field, line.items(field))
    return turns if turns[0]["role"] == "system" else [*system(line), *turns]
