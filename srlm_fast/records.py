"""Records that cross stages, and their JSONL form. Standard library only.

Rows are appended as they finish, one JSON object per line. A process may die in the middle of a
line: `read_jsonl` ignores such a torn last line and `RowWriter` cuts it off, so that nothing before
it is lost.
"""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NotRequired, TextIO, TypedDict


class InputError(ValueError):
    """The user's input cannot be used. The message is one line: where, what was found, what was
    wanted.
    """


class Message(TypedDict):
    """One turn of a conversation."""

    role: str
    content: str


@dataclass(frozen=True)
class Prompt:
    """An instruction: the user's last turn. `source` is "self-made", "file" or "seed". turns: what
    was said before it, a system message included.
    """

    prompt_id: str
    text: str
    source: str
    turns: Sequence[Message] = ()

    @property
    def messages(self) -> list[Message]:
        """All turns, the last one the user's."""
        return [*self.turns, {"role": "user", "content": self.text}]

    @property
    def conversation(self) -> str:
        """All turns as one text."""
        return conversation_text(self.messages)


def conversation_text(messages: Sequence[Message]) -> str:
    """A single turn as it is; more of them with their roles, for a reader that takes one text."""
    if len(messages) == 1:
        return messages[0]["content"]
    return "\n\n".join(f"{m['role'].capitalize()}: {m['content']}" for m in messages)


class AskedRow(TypedDict):
    """A conversation up to the user's last turn. prompt: all of it as one text; where it has more
    than one turn, text: the last one, turns: those before it.
    """

    prompt: str
    text: NotRequired[str]
    turns: NotRequired[Sequence[Message]]


def asked_row(messages: Sequence[Message]) -> AskedRow:
    row: AskedRow = {"prompt": conversation_text(messages)}
    *before, last = messages
    return {**row, "text": last["content"], "turns": before} if before else row


@dataclass(frozen=True)
class Candidate:
    """One sampled answer. `logprob` is the sum over `token_ids` in nats at temperature 1."""

    prompt_id: str
    index: int
    text: str
    token_ids: tuple[int, ...]
    logprob: float
    finish_reason: str


@dataclass(frozen=True)
class Judgement:
    """One sample of the judge on one candidate. `score` is None unless `status` is "OK". audit:
    "same" or "differs" where a reading of the first score line was held against the last score.
    """

    prompt_id: str
    candidate: int
    sample: int
    text: str
    score: float | None
    status: str
    audit: str = ""


def to_row(record: Any) -> dict[str, Any]:
    """The JSON object of a record (a dataclass), or the object itself if it is already a dict. A
    prompt of one turn has no `turns`.
    """
    if isinstance(record, dict):
        return record
    row = dataclasses.asdict(record)
    return row if row.get("turns", True) else {k: v for k, v in row.items() if k != "turns"}


def dump_row(row: Any) -> str:
    """One line of JSON, without the newline. Text stays readable (no ASCII escapes)."""
    # Lone surrogates cannot be written as UTF-8, so such text falls back to escapes.
    text = json.dumps(to_row(row), ensure_ascii=False, allow_nan=False)
    try:
        text.encode()
    except UnicodeEncodeError:
        text = json.dumps(to_row(row), allow_nan=False)
    return text


class RowWriter:
    """Appends rows to a JSONL file; each row reaches the operating system before `write`
    returns.
    """

    def __init__(self, path: Path) -> None:
        cut_torn_line(path)
        self.path = path
        self._file: TextIO = open(path, "a", encoding="utf-8")

    def write(self, *rows: Any) -> None:
        self._file.write("".join(dump_row(row) + "\n" for row in rows))
        self._file.flush()

    def close(self) -> None:
        """Bring the rows to disk: what is marked as finished after this survives a power cut."""
        os.fsync(self._file.fileno())
        self._file.close()

    def __enter__(self) -> RowWriter:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


def cut_torn_line(path: Path) -> None:
    """Cut a last line that has no newline: what a killed process leaves behind."""
    if not path.exists():
        return
    data = path.read_bytes()
    keep = data.rfind(b"\n") + 1
    if keep != len(data):
        with open(path, "r+b") as file:
            file.truncate(keep)


def read_jsonl(path: Path) -> list[dict[str, Any]]:
    """All whole rows of a file written by `RowWriter`; an empty list when there is no such file."""
    return list(iter_jsonl(path))


def iter_jsonl(path: Path) -> Iterator[dict[str, Any]]:
    """The rows one by one. Raises InputError naming the line that is no JSON object."""
    if not path.exists():
        return
    with open(path, "rb") as file:
        for number, line in enumerate(file, 1):
            if line.endswith(b"\n"):
                yield _load_row(line, path, number)


def _load_row(line: bytes, path: Path, number: int) -> dict[str, Any]:
    try:
        row = json.loads(line)
    except ValueError as error:
        raise InputError(f"{path} line {number}: found no JSON ({error}), wanted a row") from None
    if not isinstance(row, dict):
        raise InputError(f"{path} line {number}: found {line[:40]!r}, wanted a JSON object")
    return row


def read_object(path: Path, error: type[InputError] = InputError) -> dict[str, Any]:
    """The JSON object in a file, {} where there is no file. Raises `error` naming the file."""
    if not path.is_file():
        return {}
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as reason:
        raise error(f"{path}: found no JSON ({reason}), wanted an object") from None
    if not isinstance(value, dict):
        raise error(f"{path}: found no JSON object, wanted one")
    return value


def write_jsonl(path: Path, rows: Iterable[Any]) -> None:
    """Write a whole file at once, atomically."""
    write_text_atomic(path, "".join(dump_row(row) + "\n" for row in rows))


def write_json_atomic(path: Path, value: Any) -> None:
    write_text_atomic(path, json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def write_text_atomic(path: Path, text: str) -> None:
    """Replace `path` by `text` so that a reader or a crash sees the old file or the new one, never
    a part.
    """
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        with open(temporary, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)  # on a full disk what is left of it is in the way
        raise
