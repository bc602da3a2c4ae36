"""Conversations in users' files: a system turn or none, then turns of a user and an assistant.

What chat templates have no common form for (calls of tools and their results, images, two turns of
the same role in a row) is refused where it is read, not when a template meets it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from srlm_fast.data.fields import Line, check_text, kind
from srlm_fast.records import Message

Exchange = tuple[list[Message], str]  # turns that end in the user's, the answer to them

ROLES = {
    **dict.fromkeys(("system", "developer"), "system"),
    **dict.fromkeys(("user", "human", "prompter"), "user"),
    **dict.fromkeys(("assistant", "gpt", "chatgpt", "model"), "assistant"),
}
TOOLS = ("tool", "function", "function_call", "tool_call", "observation", "tool_response")
BESIDE = {"tools", "images", "image", "videos", "video", "audios", "audio"}  # fields of a row
NOTHING: tuple[Any, ...] = (None, "", "[]", [], "{}", {})
MESSAGE = '{"role": "...", "content": "..."}'
SHOWN = 40  # characters of a role that is not known


@dataclass(frozen=True)
class Ordered:
    """Answers to one conversation, which ends in the user's turn; a higher score is better. subset:
    the part of the file that they belong to, "" where it names none.
    """

    turns: list[Message]
    responses: list[str]
    scores: list[float]
    subset: str = ""


def user(text: str) -> Message:
    return {"role": "user", "content": text}


def assistant(text: str) -> Message:
    return {"role": "assistant", "content": text}


def system(line: Line, field: str = "system") -> list[Message]:
    """The turn of a row's own field; none where it has none, or a blank one."""
    value = line.fields.get(field)
    if value is None or (isinstance(value, str) and not value.strip()):
        return []
    return [{"role": "system", "content": check_text(line, field, value)}]


def messages(line: Line, field: str, value: Any) -> list[Message]:
    """The turns of a list of {"role", "content"} or ShareGPT's {"from", "value"}, a blank system
    turn left out. Raises InputError.
    """
    if not isinstance(value, list):
        raise line.error(field, f"is {kind(value)}", f"a list of messages {MESSAGE}")
    first = int(bool(value) and _is_blank_system(value[0]))
    if not value[first:]:
        raise line.error(field, "is an empty list", "at least one message")
    return [_message(line, f"{field}[{i}]", value[i]) for i in range(first, len(value))]


def as_messages(line: Line, field: str, role: str) -> list[Message]:
    """A field as turns: a list of messages, one message, or a text, which is one turn of `role`."""
    value = line.fields.get(field)
    if isinstance(value, list | dict):
        return messages(line, field, value if isinstance(value, list) else [value])
    return [{"role": role, "content": line.text(field)}]


def check_text_alone(line: Line) -> None:
    """Raise InputError for a row that has tools or media beside its texts."""
    for name in sorted(BESIDE.intersection(line.fields)):
        if line.fields[name] not in NOTHING:
            wanted = "none, for which chat templates have no common form"
            raise line.error(name, f"names {name}", wanted)


def check_order(line: Line, field: str, turns: Sequence[Message]) -> None:
    """Raise InputError unless user and assistant take turns, a system turn before them or none."""
    begin = int(bool(turns) and turns[0]["role"] == "system")
    for i, turn in enumerate(turns[begin:]):
        due = ("user", "assistant")[i % 2]
        if turn["role"] != due:
            raise line.error(
                field,
                f"has a turn of the {turn['role']} where the {due}'s is due",
                "user and assistant in turn, at most a system turn before them",
            )


def question(line: Line, field: str, turns: Sequence[Message]) -> list[Message]:
    """The turns up to the user's last. Raises InputError where there is none."""
    check_order(line, field, turns)
    asked = list(turns[:-1] if turns and turns[-1]["role"] == "assistant" else turns)
    if not asked or asked[-1]["role"] != "user":
        raise line.error(field, "has no turn of the user", "one")
    return asked


def exchanges(line: Line, field: str, turns: Sequence[Message], start: int = 0) -> list[Exchange]:
    """Each answer from turn `start` on, with the turns before it. Raises InputError for none."""
    check_order(line, field, turns)
    found = [
        (list(turns[:i]), turn["content"])
        for i, turn in enumerate(turns)
        if i >= start and turn["role"] == "assistant"
    ]
    if not found:
        raise line.error(field, "has no turn of the assistant", "an answer")
    return found


def _is_blank_system(value: Any) -> bool:
    if not isinstance(value, dict) or "system" not in (value.get("role"), value.get("from")):
        return False
    return not str(value.get("content") or value.get("value") or "").strip()


def _message(line: Line, field: str, value: Any) -> Message:
    if not isinstance(value, dict):
        raise line.error(field, f"is {kind(value)}", MESSAGE)
    name, text = ("from", "value") if value.get("from") is not None else ("role", "content")
    role = _role(line, f"{field}.{name}", value.get(name))
    if value.get("tool_calls") or value.get("function_call"):
        raise _of_tools(line, field, "calls a tool")
    return {"role": role, "content": _content(line, f"{field}.{text}", value.get(text))}


def _role(line: Line, field: str, given: Any) -> str:
    name = given.lower() if isinstance(given, str) else ""
    if name in TOOLS:
        raise _of_tools(line, field, f"is {given!r}")
    if name not in ROLES:
        found = f"is {given[:SHOWN]!r}" if isinstance(given, str) else f"is {kind(given)}"
        raise line.error(field, found, f"one of {', '.join(ROLES)}")
    return ROLES[name]


def _of_tools(line: Line, field: str, found: str) -> Exception:
    wanted = "turns without tools, for which chat templates have no common form"
    return line.error(field, found, wanted)


def _content(line: Line, field: str, value: Any) -> str:
    """A text, or parts {"type": "text", "text" (or "value"): ...} joined."""
    if not isinstance(value, list):
        return check_text(line, field, value)
    texts = [text for part in value if isinstance(text := _part(part), str)]
    if len(texts) < len(value):
        raise line.error(field, "holds parts that are no text", "text alone")
    return check_text(line, field, "".join(texts))


def _part(value: Any) -> Any:
    """The text of a part of a content; None where it is of another type."""
    if not isinstance(value, dict):
        return None
    return value.get("text", value.get("value") if value.get("type") == "text" else None)
