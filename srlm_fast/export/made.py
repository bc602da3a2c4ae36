"""What made an export, noted beside it, so that the same command again finds it done."""

from __future__ import annotations

import argparse
import hashlib
from pathlib import Path
from typing import Any

from srlm_fast.provenance import hold, refuse_other
from srlm_fast.records import InputError, write_json_atomic
from srlm_fast.run import DONE
from srlm_fast.run_folder import read_json

from .command import Command, is_there

SEAL = "--out (its content)"


def note_of(out: Path) -> Path:
    return out.with_name(f".{out.name}.made.json")


def rows_of(out: Path) -> Path:
    """Where answers wait until all are there."""
    return out.with_name(f"{out.name}.rows.jsonl")


def made_with(command: Command, arguments: argparse.Namespace) -> dict[str, Any]:
    """The options and what was read, by the name that a message has for each. Raises InputError."""
    given = {o.name: getattr(arguments, o.key) for o in command.options if o.name != "--out"}
    flags = {name: getattr(arguments, name.removeprefix("--")) for name, _ in command.flags}
    return given | flags | command.inputs(arguments)


def is_made(command: Command, arguments: argparse.Namespace) -> bool:
    """Whether this very command has made `--out` already, which is said. Raises InputError where
    something else has.
    """
    out = Path(arguments.out).expanduser()
    found = read_json(note_of(out))
    if not found or not is_there(out):
        return False
    where = f"--out {out}: is there already"
    sealed = found.pop(SEAL, None)
    refuse_other(f"{where}, made", found, made_with(command, arguments), "name")
    if sealed not in (None, seal_of(out)):
        raise InputError(f"{where}, changed since it was made; wanted a new name")
    rows_of(out).unlink(missing_ok=True)
    print(f"{out}: is there already, made by the same command")
    return True


def make(command: Command, arguments: argparse.Namespace) -> int:
    """Do it, unless it is done; note what came out. Returns the exit status. Raises InputError."""
    if is_made(command, arguments):
        return DONE
    status = command.run(arguments)
    out = Path(arguments.out).expanduser()
    write_json_atomic(note_of(out), read_json(note_of(out)) | {SEAL: seal_of(out)})
    return status


def seal_of(out: Path) -> str:
    """Of a file its digest, of a folder that of its files' names and sizes."""
    if out.is_file():
        return digest("--out", out)
    sizes = sorted((path.name, path.stat().st_size) for path in out.iterdir())
    return hashlib.sha256(repr(sizes).encode()).hexdigest()[:16]


def is_noted(command: Command, arguments: argparse.Namespace) -> bool:
    """Whether this very command was here before, and may have been killed."""
    found = read_json(note_of(Path(arguments.out).expanduser()))
    return bool(found) and found == made_with(command, arguments)


def note(command: Command, arguments: argparse.Namespace) -> None:
    """Write what makes `--out`. Raises InputError where rows wait that something else has made."""
    out = Path(arguments.out).expanduser()
    rows = rows_of(out)
    made = f"--out {out}: {rows.name} holds answers made"
    hold(rows, note_of(out), made, made_with(command, arguments))


def digest(option: str, path: Path) -> str:
    """64 bits of a file's SHA-256. Raises InputError."""
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()[:16]
    except OSError as error:
        raise InputError(f"{option} {path}: {error.strerror}, wanted a readable file") from None
