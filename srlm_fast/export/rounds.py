"""The rows that a run's rounds have kept, into a new file in another form."""

from __future__ import annotations

import argparse
import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from srlm_fast.damage import lost_rows, not_a_run
from srlm_fast.options import Kind, Option
from srlm_fast.records import InputError
from srlm_fast.report.rows import rows_of
from srlm_fast.run_folder import is_run_folder
from srlm_fast.run_models import meant

from .command import check_new_file
from .made import digest
from .row_file import check_suffix

Row = dict[str, Any]


def rows_file(given: str) -> Path:
    """`--out` as a new file of rows. Raises InputError."""
    out = Path(given).expanduser()
    check_new_file(out)
    check_suffix(out)
    return out


def converted(
    files: Sequence[Path],
    form: Callable[[Row], Row],
    wanted: Callable[[Row], bool] = lambda row: True,
    what: str = "pair",
) -> Iterator[Row]:
    """The rows of files, those that are wanted, in another form. Raises InputError."""
    for file in files:
        for row in rows_of(file):
            try:
                if wanted(row):
                    yield form(row)
            except (KeyError, IndexError, TypeError, AttributeError) as error:
                raise InputError(
                    f"{file}: found a row that is no {what} of a run ({error})"
                ) from None


def round_files(arguments: argparse.Namespace, name: str, what: str) -> list[Path]:
    """The files of that name in a run's rounds, or in one of them. Raises InputError."""
    run, which = arguments.what, arguments.round
    folder = Path(run).expanduser()
    if not is_run_folder(folder):
        raise InputError(f"{run}: {not_a_run(folder)}, wanted the folder of a run{hint(folder)}")
    check_whole(folder, name, which)
    there = {file.parent.name: file for file in rounds(folder, name)}
    if not there:
        raise InputError(f"{run}: has no {what}, wanted a run that made some")
    if which != "all" and which not in there:
        raise InputError(
            f"--round: found {which}, wanted all or one with {what}: {', '.join(there)}"
        )
    return list(there.values()) if which == "all" else [there[which]]


def hint(folder: Path) -> str:
    """Of one of the models of a run: how it is asked for; of a slip in a name: what was meant."""
    run = folder.absolute().parent
    if is_run_folder(run) and ROUND.kind.holds(folder.name.lower()):
        return f": {run} --round {folder.name.lower()}"
    return meant(folder)


def check_whole(run: Path, name: str, which: str) -> None:
    """Raise InputError where rows of a round that is asked for have been lost."""
    for lost in lost_rows(run):
        if lost.file.name == name and which in ("all", lost.file.parent.name):
            raise InputError(str(lost))


def digests(files: Sequence[Path]) -> dict[str, str]:
    return {f"{f.parent.name}/{f.name} (its content)": digest("RUN", f) for f in files}


def rounds(folder: Path, name: str) -> Iterator[Path]:
    """Files with something in them, in the order of the rounds."""
    found = [file for file in folder.glob(f"m*/{name}") if file.parent.name[1:].isdigit()]
    for file in sorted(found, key=lambda file: int(file.parent.name[1:])):
        if file.stat().st_size:
            yield file


ALL = {"--round": "all"}  # what it is where not given
ROUND = Option(
    "--round",
    "round",
    Kind(str.lower, lambda given: bool(re.fullmatch(r"all|m\d+", given)), "all or a model (m2)"),
    "mN",
    "the round that made this model, or all (default: all)",
)
