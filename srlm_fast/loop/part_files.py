"""Rows that several ranks write side by side: a part file for each, one file in the end.

`candidates.jsonl` is the first rank's own, `candidates.1.jsonl` that of data rank 1, and so on.
Whatever ends a run in between, the next one finds the parts and makes one file of them, on however
many ranks it runs.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

from srlm_fast.records import dump_row, read_jsonl, write_jsonl


def part_of(path: Path, data_rank: int) -> Path:
    """The file in which a data rank writes its rows of `path`."""
    return path.with_name(f"{path.stem}.{data_rank}{path.suffix}") if data_rank else path


def parts_of(path: Path) -> list[Path]:
    """The part files that are there, in order of their ranks."""
    parts = path.parent.glob(f"{path.stem}.[0-9]*{path.suffix}")
    return sorted(parts, key=lambda part: int(part.suffixes[-2][1:]))


def join_parts(path: Path, order: Sequence[str] | None = None) -> None:
    """Make one file of a file and its parts, if there are any; atomically, and with nothing in it
    twice, as may be when an earlier call was broken off.

    order: prompt ids in the order in which their rows are to stand (each row has a "prompt_id");
    None leaves them as they were written.
    """
    parts = parts_of(path)
    if not parts:
        return
    rows = [row for part in (path, *parts) for row in read_jsonl(part)]
    rows = list({dump_row(row): row for row in rows}.values())
    if order is not None:
        place = {prompt_id: i for i, prompt_id in enumerate(order)}
        rows.sort(key=lambda row: place.get(str(row.get("prompt_id")), len(place)))
    write_jsonl(path, rows)
    for part in parts:
        part.unlink()


class Writer(Protocol):
    """What rows are appended through (`records.RowWriter`)."""

    def write(self, *rows: Any) -> None: ...
    def __enter__(self) -> Writer: ...
    def __exit__(self, *exc: object) -> None: ...


class NoRows:
    """A `RowWriter` that writes nothing: another rank writes these rows."""

    def write(self, *rows: Any) -> None:
        """Leave it to the other rank."""

    def __enter__(self) -> NoRows:
        return self

    def __exit__(self, *exc: object) -> None:
        """Nothing was opened."""
