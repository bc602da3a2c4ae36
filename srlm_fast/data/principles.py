"""A constitution as the user writes it: one principle a line."""

from __future__ import annotations

from pathlib import Path
from typing import TypedDict

from srlm_fast.data.fields import read_lines


class PrincipleRow(TypedDict):
    """What the model is asked about its own answer, and what it is asked to change."""

    critique: str
    revision: str


def read_principles(path: str | Path) -> list[PrincipleRow]:
    """Rows with `critique` and `revision`, both request texts. Raises InputError naming file, line
    and field."""
    lines = read_lines(path, '{"critique": "...", "revision": "..."}')
    return [
        {"critique": line.text("critique"), "revision": line.text("revision")} for line in lines
    ]
