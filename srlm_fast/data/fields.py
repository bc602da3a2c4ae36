"""The objects of a user's file and their fields: every mistake is one line that names the file, the
line and the field."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from srlm_fast.data.files import DECODER, Entry, Told, raise_it, read_entries, why_not_json
from srlm_fast.records import InputError

Row = TypeVar("Row")

KEPT_MESSAGES = 5
_SHOWN = 60
TABLE = re.compile(r'"?\w[\w-]*"?(?:[,;\t]"?\w[\w-]*"?)+')  # the names of columns
_KINDS = {dict: "an object", list: "a list", str: "a string", bool: "a boolean", type(None): "null"}


@dataclass(frozen=True)
class Line:
    """One JSON object of a file. place: in words, "line" and the number where it is empty."""

    path: Path
    number: int  # from 1, empty lines counted
    fields: dict[str, Any]
    place: str = ""

    @property
    def where(self) -> str:
        return f"{self.path} {self.place or f'line {self.number}'}"

    def error(self, field: str, found: str, wanted: str) -> InputError:
        return InputError(f"{self.where}: field '{field}' {found}, wanted {wanted}")

    def text(self, field: str) -> str:
        """A string that is not blank."""
        if field not in self.fields:
            raise self.error(field, f"is missing (found {_names(self.fields)})", "a string")
        return check_text(self, field, self.fields[field])

    def either(self, *fields: str) -> str:
        """The string of the first of these fields that is there and not null."""
        there = (name for name in fields if self.fields.get(name) is not None)
        return self.text(next(there, fields[0]))

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
    try:
        number = float(value)
    except OverflowError:  # a whole number of hundreds of digits
        number = math.inf
    if not math.isfinite(number):
        raise line.error(field, f"is {number}", "a finite number")
    return number


def kind(value: Any) -> str:
    """What a JSON value is, in words: "a list", "the number 3"."""
    if name := _KINDS.get(type(value)):
        return name
    if isinstance(value, int | float):
        return f"the number {str(value)[:_SHOWN]}"
    return f"of the type {type(value).__name__}"  # parquet has more types than JSON


@dataclass
class Skipped:
    """What was passed over in reading, and why: all are counted, the first messages kept."""

    count: int = 0
    messages: list[str] = field(default_factory=list)

    def add(self, error: InputError) -> None:
        self.count += 1
        if self.count <= KEPT_MESSAGES:
            self.messages.append(str(error))

    def lines(self) -> list[str]:
        """What there is to say about it, a line each; none where nothing was skipped."""
        if not self.count:
            return []
        more = self.count - len(self.messages)
        tail = [f"  and {more} more"] if more else []
        rows = "row" if self.count == 1 else "rows"
        return [
            f"skipped {self.count} {rows} that cannot be read:",
            *(f"  {message}" for message in self.messages),
            *tail,
        ]


def read_rows(
    path: str | Path,
    parse: Callable[[Line], Iterable[Row]],
    wanted: str,
    skipped: Skipped | None = None,
    columns: Sequence[str] | None = None,
    told: Told | None = None,
) -> Iterator[Row]:
    """What `parse` makes of each object of a file, in order.

    parse: raises InputError for an object that it cannot use; none of that object's rows are given.
    wanted, skipped, columns, told: as of `read_lines`. Raises InputError as that does, and with
    `skipped` for a file in which no object can be used.
    """
    refuse, before = (skipped.add, skipped.count) if skipped else (raise_it, 0)
    used = False
    for line in read_lines(path, wanted, skipped, columns, told, string="prompt"):
        try:
            rows = list(parse(line))
        except InputError as error:
            refuse(error)
        else:
            used = True
            yield from rows
    if skipped and not used:
        first = "".join(f"; the first: {message}" for message in skipped.messages[before:][:1])
        raise InputError(
            f"{path}: none of its rows can be read ({skipped.count - before} skipped{first}), "
            f"wanted objects such as {wanted}"
        )


def read_lines(
    path: str | Path,
    wanted: str,
    skipped: Skipped | None = None,
    columns: Sequence[str] | None = None,
    told: Told | None = None,
    string: str = "",
) -> Iterator[Line]:
    """The objects of a file in order: of JSON lines, of a JSON list, gzip or not, or of parquet.
    Lines of white space alone are passed over, but counted.

    wanted: what an object should look like, for the messages. skipped: counts what cannot be read,
    instead of an error. columns, told: as of `files.read_entries`. string: the field that a JSON
    string in the place of an object is read as; without it a string is an error.
    Raises InputError naming the file, and the line, for: no such file, a folder, an unreadable or
    an empty file, text that is not UTF-8, a line that is not a JSON object or larger than 64 MiB,
    an object with a key twice, a file that breaks off.
    """
    refuse, before = (skipped.add, skipped.count) if skipped else (raise_it, 0)
    found = False
    for entry in read_entries(path, refuse, columns, told):
        if isinstance(entry.value, str) and not entry.value.strip():
            continue
        found = True
        try:
            fields = _object(Path(path), entry, wanted, string)
        except InputError as error:
            refuse(error)
        else:
            yield Line(Path(path), entry.number, fields, entry.place)
    if not found and not (skipped and skipped.count > before):
        raise InputError(f"{path}: empty, wanted one JSON object per line such as {wanted}")


def _object(path: Path, entry: Entry, wanted: str, string: str) -> dict[str, Any]:
    value = entry.value
    try:
        # The text of a line; an element of a list that is a string is none.
        if isinstance(value, str) and entry.is_text:
            value = DECODER.decode(value)
    except (ValueError, RecursionError) as error:
        is_table = entry.number == 1 and TABLE.fullmatch(value)
        found = "a table (CSV)" if is_table else f"not JSON ({why_not_json(error)})"
        raise InputError(
            f"{path} {entry.place}: {found}, wanted an object such as {wanted}"
        ) from None
    if string and isinstance(value, str):
        value = {string: value}
    if isinstance(value, dict):
        return value
    raise InputError(f"{path} {entry.place}: {kind(value)}, wanted an object such as {wanted}")


def _names(fields: dict[str, Any]) -> str:
    names = ", ".join(repr(name) for name in list(fields)[:8])
    return names[: 3 * _SHOWN] or "no field"
