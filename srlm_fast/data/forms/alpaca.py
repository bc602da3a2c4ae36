"""Alpaca's rows: instruction, input, output, and LLaMA-Factory's system and history beside
them; Dolly names the last two context and response.
"""

from __future__ import annotations

from srlm_fast.data.conversations import Exchange, assistant, exchanges, question, system, user
from srlm_fast.data.fields import Line, check_text, kind
from srlm_fast.records import Message

INPUTS = ("input", "context")


def asked(line: Line) -> list[Message]:
    """The instruction and, on a line of its own, the input, behind system and history."""
    parts = [line.text("instruction"), *(_optional(line, name) for name in INPUTS)]
    text = "\n".join(part for part in parts if part)
    return question(line, "instruction", [*system(line), *_history(line), user(text)])


def answered(line: Line) -> list[Exchange]:
    """The answers of the history and that of the row."""
    answer = line.text("output" if line.fields.get("output") is not None else "response")
    return exchanges(line, "output", [*asked(line), assistant(answer)])


def _optional(line: Line, field: str) -> str:
    value = line.fields.get(field)
    if value is None or (isinstance(value, str) and not value.strip()):
        return ""
    return check_text(line, field, value)


def _history(line: Line) -> list[Message]:
    """[[question, answer], ...] as turns."""
    turns: list[Message] = []
    value = line.fields.get("history")
    for i, pair in enumerate([] if value is None else line.items("history")):
        field = f"history[{i}]"
        if not isinstance(pair, list) or len(pair) != 2:
            found = f"has {len(pair)} entries" if isinstance(pair, list) else f"is {kind(pair)}"
            raise line.error(field, found, "a question and its answer")
        turns += [
            user(check_text(line, f"{field}[0]", pair[0])),
            assistant(check_text(line, f"{field}[1]", pair[1])),
        ]
    return turns
