"""Reading a user's file piece by piece, whatever its form: JSON lines, one JSON list, JSON objects
spread over lines, plain text, any of them compressed with gzip, or parquet.

The form is told by the content, not by the name. Memory stays constant: a line or an element of a
list is at most LIMIT bytes, also inside gzip, and parquet is read in batches.
"""

from __future__ import annotations

import codecs
import gzip
import io
import json
import re
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, NoReturn, cast

from srlm_fast.records import InputError

LIMIT = 1 << 26  # bytes of a line; characters of an element of a list
CHUNK = 1 << 20
BATCH_ROWS = 512
TELL_EVERY = 64  # entries
GZIP, PARQUET, BOM = b"\x1f\x8b", b"PAR1", b"\xef\xbb\xbf"
# What other files that people have begin with -> their name.
OTHERS = {
    b"PK\x03\x04": "a zip archive",
    b"BZh": "compressed with bzip2",
    b"\xfd7zXZ\x00": "compressed with xz",
    b"\x28\xb5\x2f\xfd": "compressed with zstd",
    b"SQLite format 3": "an SQLite database",
    b"ARROW1": "an Arrow file",
    b"version https://git-lfs": "a Git LFS pointer (git lfs pull brings the file)",
}
SPREAD = re.compile(rb"\s*\{[ \t]*\r?\n")  # the beginning of an object that goes over lines
FORMS = "a JSONL file (or a JSON list, gzip of either, parquet)"

Refuse = Callable[[InputError], None]
Told = Callable[[int], None]


@dataclass(frozen=True)
class Entry:
    """A piece of a file. value: the text of a line, without its end; an element of a JSON list, any
    JSON value; a row of a parquet file, an object."""

    number: int  # from 1
    place: str  # "line 3", "line 1, element 3 of a list" or "row 3"
    value: Any
    is_text: bool = False  # of a line, not yet taken apart


class DuplicateKeyError(ValueError):
    """An object has a key twice; the key is the argument."""


def unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """The object of these pairs. Raises DuplicateKeyError."""
    made = dict(pairs)
    if len(made) < len(pairs):
        seen: set[str] = set()
        for key, _ in pairs:
            if key in seen:
                raise DuplicateKeyError(key)
            seen.add(key)
    return made


DECODER = json.JSONDecoder(object_pairs_hook=unique_keys)


def why_not_json(error: Exception) -> str:
    """What DECODER raised, in words."""
    if isinstance(error, json.JSONDecodeError):
        return f"{error.msg.removesuffix(' at')} at column {error.colno}"
    if isinstance(error, DuplicateKeyError):
        return f"the key {error.args[0][:60]!r} stands twice in an object"
    return "a number too long or lists too deep"


def raise_it(error: InputError) -> NoReturn:
    raise error


def read_entries(
    path: str | Path,
    refuse: Refuse = raise_it,
    columns: Sequence[str] | None = None,
    told: Told | None = None,
) -> Iterator[Entry]:
    """The pieces of a file in order, lines of white space alone among them.

    refuse: gets what is wrong with one piece (not UTF-8, larger than LIMIT) or with all from some
    piece on (a torn gzip, a list that breaks off, a broken parquet); if it returns, what can be
    read goes on. columns: of a parquet file, those alone are read. told: is called now and then
    with the bytes of the file that have been read.
    Raises InputError for what is wrong with a file as a whole: no such file, a folder, a pipe,
    UTF-16, an archive, parquet where pyarrow is missing.
    """
    path = Path(path)
    if path.is_dir():
        raise InputError(f"{path}: a folder, wanted {FORMS}")
    if path.exists() and not path.is_file():  # which would be waited for, and can be read but once
        raise InputError(f"{path}: a device or a pipe, wanted {FORMS}")
    try:
        with open(path, "rb") as file:
            entries = _entries(path, file, refuse, columns)
            yield from entries if told is None else _telling(entries, file, told)
    except FileNotFoundError:
        raise InputError(f"{path}: no such file, wanted {FORMS}") from None
    except OSError as error:
        raise InputError(
            f"{path}: cannot be read ({error.strerror or error}), wanted {FORMS}"
        ) from None


def _telling(entries: Iterator[Entry], file: IO[bytes], told: Told) -> Iterator[Entry]:
    for count, entry in enumerate(entries):
        if count % TELL_EVERY == 0:
            told(file.tell())
        yield entry


def _entries(
    path: Path, file: io.BufferedReader, refuse: Refuse, columns: Sequence[str] | None
) -> Iterator[Entry]:
    head = file.peek(64)
    for magic, name in OTHERS.items():
        if head.startswith(magic):
            raise InputError(f"{path}: {name}, wanted {FORMS}")
    if head.startswith(PARQUET):
        yield from _parquet_rows(path, file, refuse, columns)
    elif head.startswith(GZIP):
        with gzip.open(file) as inside:
            # GzipFile has the methods of BufferedReader that are used.
            yield from _texts(path, cast(io.BufferedReader, inside), refuse)
    else:
        yield from _texts(path, file, refuse)


def _texts(path: Path, file: io.BufferedReader, refuse: Refuse) -> Iterator[Entry]:
    """Lines, or elements of one list; a torn gzip is refused where it breaks."""
    place = "line 1"
    try:
        head = file.peek(64)
        if wide := _wide(head):
            raise InputError(f"{path} {place}: {wide} text, wanted UTF-8 text")
        for entry in _reader(path, head.removeprefix(BOM).lstrip())(path, file, refuse):
            place = f"behind {entry.place}"
            yield entry
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        refuse(
            InputError(
                f"{path} {place}: the gzip data breaks off ({_one_line(error)}), wanted a whole "
                "gzip file of UTF-8 text"
            )
        )


def _reader(path: Path, head: bytes) -> Callable[[Path, IO[bytes], Refuse], Iterator[Entry]]:
    """What reads a text that begins so."""
    if ".txt" in path.suffixes[-2:]:
        return _lines
    if head.startswith(b"["):
        return _elements
    return _objects if SPREAD.match(head) else _lines


def _wide(head: bytes) -> str:
    """The name of a coding of two or four bytes a character, by its mark or by its zeros."""
    if head.startswith((codecs.BOM_UTF32_LE, codecs.BOM_UTF32_BE)):
        return "UTF-32"
    zeros = [byte == 0 for byte in head[:4]]
    if head.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        return "UTF-16"
    return "UTF-16" if zeros in ([False, True] * 2, [True, False] * 2) else ""


def _lines(path: Path, file: IO[bytes], refuse: Refuse) -> Iterator[Entry]:
    """Split at newlines alone: str.splitlines would also split at U+2028, which JSON strings may
    hold."""
    number = 0
    while raw := file.readline(LIMIT + 1):
        number += 1
        if len(raw) > LIMIT:
            while raw and not raw.endswith(b"\n"):
                raw = file.readline(CHUNK)
            refuse(too_large(f"{path} line {number}"))
            continue
        try:
            text = (raw.removeprefix(BOM) if number == 1 else raw).decode()
        except UnicodeDecodeError as error:
            refuse(_not_utf8(f"{path} line {number}", error))
        else:
            yield Entry(number, f"line {number}", text.rstrip("\r\n"), is_text=True)


def too_large(place: str) -> InputError:
    return InputError(f"{place}: larger than {LIMIT >> 20} MiB, wanted smaller rows")


def _not_utf8(place: str, error: UnicodeDecodeError) -> InputError:
    at = f"byte {error.start + 1} of the line is 0x{error.object[error.start]:02x}"
    return InputError(f"{place}: not UTF-8 ({at}), wanted UTF-8 text")


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__


SPACE = re.compile(r"[ \t\r\n]*")


class _Values:
    """The elements of the one JSON list that a file holds, or its objects one after another, read
    through a window that moves over the text."""

    def __init__(self, path: Path, file: IO[bytes], is_list: bool) -> None:
        self.path, self.file, self.is_list = path, file, is_list
        self.text, self.at, self.line, self.number = "", 0, 1, 1
        self._decoder = codecs.getincrementaldecoder("utf-8-sig")()

    def entries(self) -> Iterator[Entry | InputError]:
        """The values, an InputError in place of one that can be passed over. Raises InputError
        for what nothing can be read behind."""
        return self._elements() if self.is_list else self._objects()

    def _objects(self) -> Iterator[Entry | InputError]:
        while self._next():
            yield self._value()
            self.number += 1

    def _elements(self) -> Iterator[Entry | InputError]:
        self._next()
        mark = "["
        while mark != "]":
            self._move(self.at + 1)
            if not (self._next() == "]" and mark == "["):
                yield self._value()
            mark = self._next()
            if mark not in ("]", ","):
                raise self._error(f"is followed by {mark or 'the end of the file'!r}", "',' or ']'")
            self.number += 1
        self._move(self.at + 1)
        if more := self._next():
            raise self._error(f"would be {more!r} behind the list", "one list or an object a line")

    @property
    def place(self) -> str:
        return f"line {self.line}" + f", element {self.number} of a list" * self.is_list

    def _error(self, found: str, wanted: str) -> InputError:
        return InputError(f"{self.path} {self.place}: {found}, wanted {wanted}")

    def _next(self) -> str:
        """The next character that is no white space; empty at the file's end."""
        while True:
            space = SPACE.match(self.text, self.at)
            self._move(space.end() if space else self.at)
            if self.at < len(self.text) or not self._grow():
                return self.text[self.at : self.at + 1]

    def _move(self, to: int) -> None:
        self.line += self.text.count("\n", self.at, to)
        self.at = to

    def _grow(self) -> bool:
        """Read as much again as there is; False at the file's end."""
        data = self.file.read(max(CHUNK, len(self.text) - self.at))
        try:
            more = self._decoder.decode(data, final=not data)
        except UnicodeDecodeError as error:
            raise self._error(f"not UTF-8 (0x{error.object[error.start]:02x})", "UTF-8") from None
        self.text, self.at = self.text[self.at :] + more, 0
        return bool(data)

    def _value(self) -> Entry | InputError:
        place, decoder, twice = self.place, DECODER, None
        while True:
            try:
                value, end = decoder.raw_decode(self.text, self.at)
            except DuplicateKeyError as error:  # the end is looked for without heed of keys
                twice = self._error(f"not JSON ({why_not_json(error)})", "each key once")
                decoder = json.JSONDecoder()
            except (ValueError, RecursionError) as error:
                if not isinstance(error, json.JSONDecodeError) or not self._may_go_on():
                    found = f"not JSON ({why_not_json(error).partition(' at column')[0]})"
                    raise self._error(found, "a list of objects, or an object a line") from None
            else:
                if end < len(self.text) or not self._grow():  # a number might go on
                    self._move(end)
                    return twice or Entry(self.number, place, value)

    def _may_go_on(self) -> bool:
        """Whether there is more text, so that an element may only be cut by the window."""
        if len(self.text) - self.at > LIMIT:
            raise too_large(f"{self.path} {self.place}")
        return self._grow()


def _elements(path: Path, file: IO[bytes], refuse: Refuse) -> Iterator[Entry]:
    return _entries_of(_Values(path, file, is_list=True), refuse)


def _objects(path: Path, file: IO[bytes], refuse: Refuse) -> Iterator[Entry]:
    return _entries_of(_Values(path, file, is_list=False), refuse)


def _entries_of(values: _Values, refuse: Refuse) -> Iterator[Entry]:
    entries = values.entries()
    while True:
        try:
            entry = next(entries)
        except StopIteration:
            return
        except InputError as error:
            return refuse(error)
        if isinstance(entry, Entry):
            yield entry
        else:
            refuse(entry)


# Parquet


def _has_footer(file: IO[bytes]) -> bool:
    """Whether a file ends as parquet does: a footer, its length in four bytes, the mark."""
    size = file.seek(0, io.SEEK_END)
    file.seek(max(0, size - 8))
    end = file.read()
    file.seek(0)
    room = size - 8 - len(PARQUET)
    return end.endswith(PARQUET) and int.from_bytes(end[:4], "little") <= room


def _parquet_rows(
    path: Path, file: IO[bytes], refuse: Refuse, columns: Sequence[str] | None
) -> Iterator[Entry]:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError:
        raise InputError(
            f"{path}: a parquet file, which needs the package pyarrow (pip install pyarrow), "
            "wanted that or a JSONL file"
        ) from None
    if not _has_footer(file):
        found = "the parquet data is broken (it breaks off before its footer)"
        return refuse(InputError(f"{path}: {found}, wanted a whole parquet file"))
    number = 0
    try:
        table = pyarrow.parquet.ParquetFile(file)
        there = table.schema_arrow.names
        names = [name for name in there if columns is None or name in columns] or there
        for group in range(table.num_row_groups):  # a batch over two would fall with the second
            for batch in table.iter_batches(BATCH_ROWS, [group], names, use_threads=False):
                for value in batch.to_pylist():
                    number += 1
                    yield Entry(number, f"row {number}", value)
    except (pyarrow.ArrowException, OSError, UnicodeDecodeError) as error:
        behind = f" behind row {number}" if number else ""
        refuse(
            InputError(
                f"{path}{behind}: the parquet data is broken ({_one_line(error)}), wanted a whole "
                "parquet file"
            )
        )
