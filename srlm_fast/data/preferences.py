"""Preference pairs that people (or another judge) have ordered: what a reward model learns from."""

from __future__ import annotations

from pathlib import Path
from typing import Any, TypedDict

from srlm_fast.data.fields import Line, check_text, kind, read_lines

FORM = '{"prompt": "...", "chosen": "...", "rejected": "..."}'
ROLES = ("system", "user", "assistant")


class Message(TypedDict):
    """One turn of a conversation."""

    role: str
    content: str


class PreferenceRow(TypedDict):
    """Two conversations that differ in their last answer. prompt: the text of the last question."""

    prompt: str
    chosen: list[Message]
    rejected: list[Message]


def read_preferences(path: str | Path) -> list[PreferenceRow]:
    """Rows with `prompt`, `chosen` and `rejected`, each a string or a list of messages.

    An answer given as messages may hold the whole conversation (the UltraFeedback-binarized layout,
    pair rows of a run); then `prompt` may be missing. Rows whose two conversations are the same are
    left out: they say nothing. Raises InputError naming file, line and field.
    """
    rows = [_row(line) for line in read_lines(path, FORM)]
    return [row for row in rows if row["chosen"] != row["rejected"]]


def _row(line: Line) -> PreferenceRow:
    chosen, rejected = (_conversation(line, field) for field in ("chosen", "rejected"))
    questions = [m["content"] for m in chosen[:-1] if m["role"] == "user"]
    if not questions:
        raise line.error("chosen", "has no user turn", "one, or a `prompt`")
    return {"prompt": questions[-1], "chosen": chosen, "rejected": rejected}


def _conversation(line: Line, field: str) -> list[Message]:
    answer = _messages(line, field, "assistant")
    if answer[-1]["role"] != "assistant":
        raise line.error(field, f"ends in a turn of the {answer[-1]['role']}", "an answer")
    if answer[0]["role"] != "assistant":
        return answer
    return [*_messages(line, "prompt", "user"), *answer]


def _messages(line: Line, field: str, role: str) -> list[Message]:
    """A field as messages; a string is one turn of `role`."""
    value = line.fields.get(field)
    if not isinstance(value, list):
        return [{"role": role, "content": line.text(field)}]
    if not value:
        raise line.error(field, "is an empty list", "at least one message")
    return [_message(line, f"{field}[{i}]", message) for i, message in enumerate(value)]


def _message(line: Line, field: str, value: Any) -> Message:
    if not isinstance(value, dict):
        raise line.error(field, f"is {kind(value)}", '{"role": "...", "content": "..."}')
    if value.get("role") not in ROLES:
        raise line.error(f"{field}.role", f"is {value.get('role')!r}", f"one of {', '.join(ROLES)}")
    content = check_text(line, f"{field}.content", value.get("content"))
    return {"role": value["role"], "content": content}
