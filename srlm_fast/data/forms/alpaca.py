"""Alpaca's rows: instruction, input, output, and LLaMA-Factory's system and history beside them;
Dolly names the last two context and response. Rows of question and answer (GSM8K) or of query and
response (ms-swift) are read alike. Self-Instruct has several inputs and outputs in `instances`.
"""

from __future__ import annotations

from dataclasses import dataclass

from srlm_fast.data.conversations import Exchange, assistant, exchanges, question, system, user
from srlm_fast.data.fields import Line, check_text, kind
from srlm_fast.records import InputError, Message

ASKED, INPUTS = ("instruction", "question", "query"), ("input", "context")
ANSWERED = ("output", "response", "answer")


@dataclass(frozen=True)
class Instance(Line):
    """A task with the fields of one of its instances, which mistakes in those are told of."""

    index: int = 0
    own: frozenset[str] = frozenset()

    def error(self, field: str, found: str, wanted: str) -> InputError:
        is_own = field in self.own or field in ANSWERED
        return super().error(f"instances[{self.index}]." * is_own + field, found, wanted)


def asked(line: Line) -> list[Message]:
    """The instruction and, on a line of its own, the input, behind system and history."""
    parts = [line.either(*ASKED), *(_optional(line, name) for name in INPUTS)]
    text = "\n".join(part for part in parts if part)
    return question(line, "instruction", [*system(line), *_history(line), user(text)])


def answered(line: Line) -> list[Exchange]:
    """The answers of the history and that of the row."""
    return exchanges(line, "output", [*asked(line), assistant(line.either(*ANSWERED))])


def task_asked(line: Line) -> list[Message]:
    """The instruction with the first of its inputs."""
    return asked(_instances(line)[0])


def task_answered(line: Line) -> list[Exchange]:
    """An answer for each of the inputs."""
    return [exchange for instance in _instances(line) for exchange in answered(instance)]


def _instances(line: Line) -> list[Line]:
    """A row for each instance of a task."""
    values = line.items("instances")
    if not values or not all(isinstance(value, dict) for value in values):
        found = f"holds {kind(values[0])}" if values else "is an empty list"
        raise line.error("instances", found, 'a list of {"input": "...", "output": "..."}')
    return [
        Instance(line.path, line.number, line.fields | value, line.place, i, frozenset(value))
        for i, value in enumerate(values)
    ]


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
