"""The user's own prompts."""

from __future__ import annotations

import hashlib
from pathlib import Path

from srlm_fast.data.fields import Line, Skipped, kind
from srlm_fast.data.formats import PROMPTS, Format
from srlm_fast.data.recognised import Recognised, read_recognised
from srlm_fast.records import Message, Prompt, conversation_text


def read_prompts(path: str | Path, skipped: Skipped | None = None) -> list[Prompt]:
    """Prompts of a file of any known form, in order, their text exactly as it stands there; of a
    conversation what was said up to the user's last turn.

    The id is the line's `prompt_id` or `id` (a string or a whole number), else a hash of the text;
    a text that comes again without an id of its own is the same prompt and taken once. Lines of
    white space alone are passed over.
    skipped: counts lines that cannot be read. Raises InputError, one line naming file, line and
    field, for everything that cannot be used.
    """
    return recognised_prompts(path, skipped).rows


def recognised_prompts(path: str | Path, skipped: Skipped | None = None) -> Recognised[Prompt]:
    """`read_prompts` with what the file was recognised as."""
    first_line: dict[str, int] = {}

    def rows(form: Format, line: Line) -> list[Prompt]:
        assert form.asked is not None
        turns = form.asked(line)
        field, own_id = _own_id(line)
        made = _prompt(turns, own_id)
        first = first_line.setdefault(made.prompt_id, line.number)
        if first == line.number:
            return [made]
        if own_id:
            found = f"is {own_id[:60]!r}, which stands on line {first} too"
            raise line.error(field, found, "each id once")
        return []

    return read_recognised(path, PROMPTS, rows, skipped)


def _prompt(turns: list[Message], own_id: str) -> Prompt:
    *before, last = turns
    digest = hashlib.sha256(conversation_text(turns).encode()).hexdigest()[:16]
    return Prompt(own_id or digest, last["content"], "file", tuple(before))


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
