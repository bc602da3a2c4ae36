"""The user's own prompts."""

from __future__ import annotations

import hashlib
from pathlib import Path

from srlm_fast.data.fields import Line, kind, read_lines
from srlm_fast.records import Prompt


def read_prompts(path: str | Path) -> list[Prompt]:
    """Prompts of a JSONL file with a `prompt` field, in order, their text exactly as it stands
    there.

    The id is the line's `prompt_id` or `id` (a string or a whole number), else a hash of the text;
    a text that comes again without an id of its own is the same prompt and taken once. Lines of
    white space alone are skipped.
    Raises InputError, one line naming file, line and field, for everything that cannot be used.
    """
    prompts: list[Prompt] = []
    first_line: dict[str, int] = {}
    for line in read_lines(path, '{"prompt": "..."}'):
        text = line.text("prompt")
        field, own_id = _own_id(line)
        prompt_id = own_id or hashlib.sha256(text.encode()).hexdigest()[:16]
        if prompt_id not in first_line:
            first_line[prompt_id] = line.number
            prompts.append(Prompt(prompt_id, text, "file"))
        elif own_id:
            found = f"is {own_id[:60]!r}, which stands on line {first_line[prompt_id]} too"
            raise line.error(field, found, "each id once")
    return prompts


def _own_id(line: Line) -> tuple[str, str]:
    """(field, id) as the line gives it; an empty id where it gives none (or null)."""
    for field in ("prompt_id", "id"):
        value = line.fields.get(field)
        if isinstance(value, int) and not isinstance(value, bool):
            return field, str(value)
        if isinstance(value, str):
            return field, line.text(field)
        if value is not None:
            raise line.error(field, f"is {kind(value)}", "a string or a whole number")
    return "", ""
