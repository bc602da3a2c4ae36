"""Whole conversations: ShareGPT's (`conversations`, with system and tools beside them) and lists of
messages (`messages`).
"""

from __future__ import annotations

from typing import Any

from srlm_fast.data.conversations import Exchange, exchanges, messages, question, system
from srlm_fast.data.fields import Line
from srlm_fast.records import Message

NO_TOOLS: tuple[Any, ...] = (None, "", "[]", [])


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


def _turns(line: Line, field: str) -> list[Message]:
    """The turns, behind the row's own `system` where they bring none."""
    if line.fields.get("tools") not in NO_TOOLS:
        wanted = "none, for which chat templates have no common form"
        raise line.error("tools", "names tools", wanted)
    turns = messages(line, field, line.items(field))
    return turns if turns[0]["role"] == "system" else [*system(line), *turns]
