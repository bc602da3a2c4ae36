"""A user's file: its form is that of the first row that can be used, and holds for all."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Generic, TypeVar

from srlm_fast.data.conversations import check_text_alone
from srlm_fast.data.fields import Line, Skipped, read_lines
from srlm_fast.data.files import DECODER, raise_it, read_entries
from srlm_fast.data.formats import (
    FORMATS,
    PLAIN,
    PROMPTS,
    Format,
    Use,
    given,
    named,
    recognise,
    unfit,
    unknown,
)
from srlm_fast.records import InputError

Row = TypeVar("Row")
Other = TypeVar("Other")
Rows = Callable[[Format, Line], Iterable[Row]]  # what a use makes of a line of a form


@dataclass
class Recognised(Generic[Row]):
    """The rows of a file. lines: those that could be used, of which each gave none, one or several
    rows; left_out: answers in them that were not used; tied: rows whose answers have no order;
    skipped: lines that could not be read.
    """

    path: Path
    form: Format
    rows: list[Row] = field(default_factory=list)
    lines: int = 0
    left_out: int = 0
    tied: int = 0
    skipped: int = 0
    messages: list[str] = field(default_factory=list)  # of the first lines skipped

    def made(self, make: Callable[[Row], Iterable[Other]]) -> Recognised[Other]:
        """What `make` makes of each row, in place of the rows."""
        own = {name: value for name, value in vars(self).items() if name != "rows"}
        return Recognised(rows=[other for row in self.rows for other in make(row)], **own)

    def said(self) -> str:
        """The file in a line."""
        return f"{self.path}: recognised as {self.form.words}, {self.counted()}"

    def counted(self) -> str:
        """How many rows came of how many lines."""
        parts = [_count(len(self.rows), "rows")]
        if len(self.rows) != self.lines:
            parts[0] += f" of {_count(self.lines, self.form.unit)}"
        if self.left_out:
            parts.append(f"{_count(self.left_out, 'answers')} of doubtful score left out")
        if self.tied:
            parts.append(f"{self.tied:,} with answers of one score alone")
        if self.skipped:
            parts.append(f"{_count(self.skipped, 'lines')} skipped")
        return ", ".join(parts)

    def notes(self, option: str) -> list[str]:
        """`said`, and the first lines skipped."""
        return [f"{option} {self.said()}", *(f"  {message}" for message in self.messages)]

    def account(self) -> dict[str, Any]:
        """The same as figures."""
        return {
            "form": self.form.words,
            "rows": len(self.rows),
            "lines": self.lines,
            "left_out": self.left_out,
            "skipped": self.skipped,
            "skipped_first": self.messages,
        }


def read_recognised(
    path: str | Path, use: Use, rows: Rows[Row], skipped: Skipped | None = None
) -> Recognised[Row]:
    """The rows that `rows` makes of a file's lines.

    skipped: lines that cannot be read are counted there and passed over. Raises InputError naming
    file, line and field: for those lines without `skipped`; for a form that cannot serve `use`; for
    a line of another form than the first; and for a file with more bad lines than good ones.
    """
    found: Recognised[Row] = Recognised(Path(path), PLAIN)
    before, refuse = (skipped.count, skipped.add) if skipped else (0, raise_it)
    kept = len(skipped.messages) if skipped else 0
    for line, plain in _lines(Path(path), use, skipped):
        try:
            form = PLAIN if plain else _form(line, found.form if found.lines else None, use)
            if not use.takes(form):
                raise unfit(line, form, use)
            check_text_alone(line)
            made = list(rows(form, line))
            doubted = form.left_out(line) if form.left_out and use is not PROMPTS else 0
        except InputError as error:
            refuse(error)
            continue
        found.form = form
        found.rows += made
        found.lines += 1
        found.left_out += doubted
    if skipped:
        found.skipped, found.messages = skipped.count - before, skipped.messages[kept:]
    _check_share(found)
    return found


def form_of(path: str | Path, use: Use = PROMPTS) -> Format:
    """The form of the first row that has a known one. Raises InputError where none has."""
    skipped = Skipped()
    for line, plain in _lines(Path(path), use, skipped):
        form = PLAIN if plain else recognise(line)
        if form is not None:
            return form
        skipped.add(unknown(line, use))
    raise InputError(skipped.messages[0])


def _form(line: Line, form: Format | None, use: Use) -> Format:
    """The form to read a line as: its own, or that of the file. Raises InputError for a line that
    has neither.
    """
    own = recognise(line)
    if form is None:
        if own is None:
            raise unknown(line, use)
        return own
    if own is None or own is form or set(own.needs) < set(form.needs):
        return form  # which tells what is missing
    told = line.fields.get(form.needs[0]) is not None
    if told and (
        FORMATS.index(own) > FORMATS.index(form) or (use is PROMPTS and form.fits(given(line)))
    ):
        return form
    found = f"stands in a file of {form.words}"
    raise line.error(own.needs[0], found, "one form in a file")


def _check_share(found: Recognised[Any]) -> None:
    if found.skipped > found.lines:
        first = f", the first: {found.messages[0]}" if found.messages else ""
        raise InputError(
            f"{found.path}: {found.skipped} of {found.skipped + found.lines} lines cannot be read"
            f"{first}; wanted more good ones than bad"
        )


def _count(number: int, unit: str) -> str:
    return f"{number:,} {unit.removesuffix('s') if number == 1 else unit}"


def _lines(path: Path, use: Use, skipped: Skipped | None) -> Iterator[tuple[Line, bool]]:
    """(line, whether it is plain text)."""
    if ".txt" in path.suffixes[-2:] and not _holds_objects(path):
        for line in _plain(path, skipped):
            yield line, True
    else:
        for line in read_lines(path, use.example, skipped, string="prompt"):
            yield named(line), False


def _plain(path: Path, skipped: Skipped | None) -> Iterator[Line]:
    """The lines of a text that are not blank."""
    found = False
    for entry in read_entries(path, skipped.add if skipped else raise_it):
        if entry.value.strip():
            found = True
            yield Line(path, entry.number, {"prompt": entry.value}, entry.place)
    if not found:
        raise InputError(f"{path}: empty, wanted a prompt a line")


def _holds_objects(path: Path) -> bool:
    """Whether a file named as text begins with a JSON object."""
    for entry in read_entries(path, lambda error: None):
        if isinstance(entry.value, str) and entry.value.strip():
            try:
                return isinstance(DECODER.decode(entry.value), dict)
            except (ValueError, RecursionError):
                return False
    return False
