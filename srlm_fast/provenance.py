"""What made the rows of a file or folder, noted beside them, so that no other command goes on with
them.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from srlm_fast.records import InputError, read_jsonl, write_json_atomic
from srlm_fast.run_folder import read_json

SHOWN = 3
_CONTENT = re.compile(r"(?P<of>.+) \((?:its|their|the file's) content\)")
_FIELD = re.compile(r"[a-z_][\w.]*")  # of the configuration, that no option sets


def hold(rows: Path, note: Path, made: str, wanted: Mapping[str, Any]) -> None:
    """Refuse a file of rows that something else has made, as `refuse_other`; note what makes it."""
    if read_jsonl(rows):
        found = read_json(note)
        if not found:
            raise InputError(
                f"{made} by something else ({note.name} is not beside it); wanted another file"
            )
        refuse_other(made, found, wanted, "file")
    write_json_atomic(note, wanted)


def refuse_other(
    made: str, found: Mapping[str, Any], wanted: Mapping[str, Any], place: str
) -> None:
    """Raise InputError naming the first option in which what is there differs from `wanted`. made:
    what is there, up to "made"; place: "file" or "folder".
    """
    for name in (*wanted, *sorted(found.keys() - wanted.keys())):
        if found.get(name) != wanted.get(name):
            told = told_apart([(name, found.get(name), wanted.get(name))])
            raise InputError(f"{made} {told}; wanted the same options, or another {place}")


def told_apart(different: Iterable[tuple[str, Any, Any]]) -> str:
    """(option, its value there, its value here) in words: "with --seed 1, found 2". Each option is
    told once, and what no option sets only where nothing else differs.
    """
    told: dict[str, str] = {}
    for name, there, here in different:
        if content := _CONTENT.fullmatch(name):
            told.setdefault(content["of"], f"{content['of']} of other content")
        else:
            told[name] = f"{name} {value_of(there)}, found {value_of(here)}"
    named = [words for name, words in told.items() if not _FIELD.fullmatch(name)]
    shown = named or list(told.values())
    more = f"; {len(shown) - SHOWN} more differ" if len(shown) > SHOWN else ""
    return f"with {'; '.join(shown[:SHOWN])}{more}"


def value_of(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return "not given" if value is None else str(value)
