"""Rows into a new file, in the form that its name asks for."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from srlm_fast.records import InputError, write_jsonl, write_text_atomic

SUFFIXES = (".jsonl", ".json", ".parquet")


def check_suffix(path: Path) -> None:
    """Raise InputError for a name of none of the forms, and where a form's package is missing."""
    if path.suffix not in SUFFIXES:
        raise InputError(f"--out {path}: found no {', '.join(SUFFIXES)} at its end, wanted one")
    if path.suffix == ".parquet":
        parquet(path)


def write_rows(path: Path, rows: Iterable[dict[str, Any]]) -> None:
    """Lines (.jsonl), a list (.json) or a table (.parquet); the file appears whole."""
    if path.suffix == ".parquet":
        write_parquet(path, list(rows))
    elif path.suffix == ".json":
        write_list(path, list(rows))
    else:
        write_jsonl(path, rows)


def write_list(path: Path, rows: list[dict[str, Any]]) -> None:
    text = json.dumps(rows, indent=2, ensure_ascii=False, allow_nan=False)
    write_text_atomic(path, whole(text) + "\n")


def whole(text: str) -> str:
    """Half of a surrogate pair has no place in UTF-8: a question mark takes it."""
    return text.encode("utf-8", "replace").decode()


def write_parquet(path: Path, rows: list[dict[str, Any]]) -> None:
    pyarrow = parquet(path)
    temporary = path.with_name(f".{path.name}.tmp")
    rows = json.loads(whole(json.dumps(rows, ensure_ascii=False)))
    try:
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), temporary)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def parquet(path: Path) -> Any:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError:
        raise InputError(
            f"--out {path}: pyarrow is not installed, wanted it (pip install pyarrow) or a name "
            "that ends in .jsonl"
        ) from None
    return pyarrow
