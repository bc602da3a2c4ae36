"""Reading a user's JSONL file: every mistake is one line that names the file, the line and the
field."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from srlm_fast.records import InputError

_SHOWN = 60
_KINDS = {dict: "an object", list: "a list", str: "a string", bool: "a boolean", type(None): "null"}


@dataclass(frozen=True)
class Line:
    """One JSON object of a file."""

    path: Path
    number: int  # from 1, empty lines counted
    fields: dict[str, Any]

    def error(self, field: str, found: str, wanted: str) -> InputError:
        return InputError(
            f"{self.path} line {self.number}: field '{field}' {found}, wanted {wanted}"
        )

    def text(self, field: str) -> str:
        """A string that is not blank."""
        if field not in self.fields:
            raise self.error(field, f"is missing (found {_names(self.fields)})", "a string")
        return check_text(self, field, self.fields[field])

    def number_of(self, field: str) -> float:
        if field not in self.fields:
            raise self.error(field, f"is missing (found {_names(self.fields)})", "a number")
        return check_number(self, field, self.fields[field])

    def items(self, field: str) -> list[Any]:
        if field not in self.fields:
            raise self.error(field, f"is missing (found {_names(self.fields)})", "a list")
        if not isinstance(self.fields[field], list):
            raise self.error(field, f"is {kind(self.fields[field])}", "a list")
        return self.fields[field]


def check_text(line: Line, field: str, value: Any) -> str:
    if not isinstance(value, str):
        raise line.error(field, f"is {kind(value)}", "a string")
    if not value.strip():
        raise line.error(field, "is blank", "some text")
    try:
        value.encode()
    except UnicodeEncodeError as error:
        half = f"U+{ord(value[error.start]):04X}"
        raise line.error(
            field, f"has half of a surrogate pair ({half})", "whole characters"
        ) from None
    return value


def check_number(line: Line, field: str, value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise line.error(field, f"is {kind(value)}", "a number")
    if not math.isfinite(value):
        raise line.error(field, f"is {value}", "a finite number")
    return float(value)


def kind(value: Any) -> str:
    """What a JSON value is, in words: "a list", "the number 3"."""
    return _KINDS.get(type(value)) or f"the number {str(value)[:_SHOWN]}"


def read_lines(path: str | Path, wanted: str) -> Iterator[Line]:
    """The objects of a JSONL file in order. Lines of white space alone are skipped, but counted.

    wanted: what a line should look like, for the messages. Raises InputError naming the file, and
    the line, for: no such file, a folder, an unreadable or an empty file, text that is not UTF-8, a
    line that is not a JSON object.
    """
    path = Path(path)
    found = False
    for number, raw in enumerate(_raw_lines(path), 1):
        text = _decode(path, number, raw.removeprefix(b"\xef\xbb\xbf") if number == 1 else raw)
        if text.strip():
            found = True
            yield Line(path, number, _object(path, number, text, wanted))
    if not found:
        raise InputError(f"{path}: empty, wanted one JSON object per line such as {wanted}")


def _raw_lines(path: Path) -> Iterator[bytes]:
    """Split at newlines alone: str.splitlines would also split at U+2028, which JSON strings may
    hold."""
    if path.is_dir():
        raise InputError(f"{path}: a folder, wanted a JSONL file")
    try:
        with open(path, "rb") as file:
            yield from file
    except FileNotFoundError:
        raise InputError(f"{path}: no such file, wanted a JSONL file") from None
    except OSError as error:
        raise InputError(
            f"{path}: cannot be read ({error.strerror}), wanted a JSONL file"
        ) from None


def _decode(path: Path, number: int, raw: bytes) -> str:
    try:
        return raw.decode()
    except UnicodeDecodeError as error:
        at = f"byte {error.start + 1} of the line is 0x{raw[error.start]:02x}"
        raise InputError(f"{path} line {number}: not UTF-8 ({at}), wanted UTF-8 text") from None


def _object(path: Path, number: int, text: str, wanted: str) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except json.JSONDecodeError as error:
        why = f"{error.msg} at column {error.colno}"
    except (ValueError, RecursionError):
        why = "a number too long or lists too deep"
    else:
        if isinstance(value, dict):
            return value
        raise InputError(f"{path} line {number}: {kind(value)}, wanted an object such as {wanted}")
    raise InputError(f"{path} line {number}: not JSON ({why}), wanted an object such as {wanted}")


def _names(fields: dict[str, Any]) -> str:
    names = ", ".join(repr(name) for name in list(fields)[:8])
    return names[: 3 * _SHOWN] or "no field"
