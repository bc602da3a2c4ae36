"""What made the rows of a file or folder, noted beside them, so that no other command goes on with
them.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from srlm_fast.records import InputError, read_jsonl, write_json_atomic
from srlm_fast.run_folder import read_json


def hold(rows: Path, note: Path, made: str, wanted: Mapping[str, Any]) -> None:
    """Refuse a file of rows that something else has made, as `refuse_other`; note what makes it."""
    if read_jsonl(rows):
        refuse_other(made, read_json(note), wanted, "file")
    write_json_atomic(note, wanted)


def refuse_other(
    made: str, found: Mapping[str, Any], wanted: Mapping[str, Any], place: str
) -> None:
    """Raise InputError naming the first option in which what is there differs from `wanted`. made:
    what is there, up to "made"; place: "file" or "folder".
    """
    for name in (*wanted, *sorted(found.keys() - wanted.keys())):
        if found.get(name) != wanted.get(name):
            raise InputError(
                f"{made} with {name} {found.get(name)}, found {wanted.get(name)}; wanted the same "
                f"options, or another {place}"
            )
