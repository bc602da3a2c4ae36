"""`export pairs`: a run's preference pairs in the forms that trainers read.

Whole conversations in `chosen` and `rejected`, without a `prompt`, are what TRL, OpenRLHF and
Axolotl (`chat_template.argilla_chat`) all take unchanged. The rows of `pairs.jsonl` are those of
UltraFeedback-binarized and more, whose text `prompt` TRL's trainer refuses beside them. Axolotl's
`chat_template.default` takes `messages` for the turns before the answer, and one message for each.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from srlm_fast.options import Kind, Option, one_of
from srlm_fast.records import InputError, iter_jsonl
from srlm_fast.run import DONE
from srlm_fast.run_folder import is_run_folder

from .command import Command, check_new_file, out_option
from .row_file import check_suffix, write_rows

Row = dict[str, Any]
BINARIZED = (
    *("prompt", "prompt_id", "chosen", "rejected", "messages"),
    *("score_chosen", "score_rejected"),
)
ORIGIN = ("prompt_id", "score_chosen", "score_rejected", "round")
SPEAKERS = {"user": "human", "assistant": "gpt", "system": "system"}


def as_run(row: Row) -> Row:
    return row


def as_ultrafeedback(row: Row) -> Row:
    return {name: row.get(name) for name in BINARIZED}


def as_trl(row: Row) -> Row:
    """The explicit prompt of TRL's conversational preference type."""
    sides = {side: row[side][-1:] for side in ("chosen", "rejected")}
    return {"prompt": row["chosen"][:-1], **sides, **origin(row)}


def as_axolotl(row: Row) -> Row:
    """messages: the turns before the answer; each answer one message."""
    sides = {side: row[side][-1] for side in ("chosen", "rejected")}
    return {"messages": row["chosen"][:-1], **sides, **origin(row)}


def as_conversations(row: Row) -> Row:
    """TRL's implicit prompt: it finds what both conversations share."""
    return {"chosen": row["chosen"], "rejected": row["rejected"], **origin(row)}


def as_sharegpt(row: Row) -> Row:
    """LLaMA-Factory's ranking form of ShareGPT."""
    sides = {side: spoken(row[side][-1]) for side in ("chosen", "rejected")}
    return {"conversations": [spoken(m) for m in row["chosen"][:-1]], **sides, **origin(row)}


def origin(row: Row) -> Row:
    return {name: row.get(name) for name in ORIGIN}


def spoken(message: dict[str, str]) -> dict[str, str]:
    return {"from": SPEAKERS.get(message["role"], message["role"]), "value": message["content"]}


FORMATS: dict[str, Callable[[Row], Row]] = {
    "conversations": as_conversations,
    "openrlhf": as_conversations,
    "ultrafeedback": as_ultrafeedback,
    "run": as_run,
    "trl": as_trl,
    "axolotl": as_axolotl,
    "sharegpt": as_sharegpt,
}


def run(arguments: argparse.Namespace) -> int:
    out, form = rows_file(arguments.out), FORMATS[arguments.format or "conversations"]
    files = round_files(arguments.what, arguments.round or "all", "pairs.jsonl", "pairs")
    rows = list(converted(files, form))
    write_rows(out, rows)
    print(f"{len(rows)} pairs of {', '.join(file.parent.name for file in files)}: {out}")
    return DONE


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
        for row in iter_jsonl(file):
            try:
                if wanted(row):
                    yield form(row)
            except (KeyError, IndexError, TypeError, AttributeError) as error:
                raise InputError(
                    f"{file}: found a row that is no {what} of a run ({error})"
                ) from None


def round_files(run: str, which: str, name: str, what: str) -> list[Path]:
    """The files of that name in a run's rounds, or in one of them. Raises InputError."""
    folder = Path(run).expanduser()
    if not is_run_folder(folder):
        found = "a folder that is no run" if folder.is_dir() else "no such folder"
        raise InputError(f"{run}: {found}, wanted the folder of a run")
    there = {file.parent.name: file for file in rounds(folder, name)}
    if not there:
        raise InputError(f"{run}: has no {what}, wanted a run that made some")
    if which != "all" and which not in there:
        raise InputError(
            f"--round: found {which}, wanted all or one with {what}: {', '.join(there)}"
        )
    return list(there.values()) if which == "all" else [there[which]]


def rounds(folder: Path, name: str) -> Iterator[Path]:
    """Files with something in them, in the order of the rounds."""
    found = [file for file in folder.glob(f"m*/{name}") if file.parent.name[1:].isdigit()]
    for file in sorted(found, key=lambda file: int(file.parent.name[1:])):
        if file.stat().st_size:
            yield file


ROUND = Option(
    "--round",
    "round",
    Kind(str.lower, lambda given: bool(re.fullmatch(r"all|m\d+", given)), "all or a model (m2)"),
    "mN",
    "the round that made this model, or all (default: all)",
)
COMMAND = Command(
    name="pairs",
    help="the preference pairs of a run for other trainers",
    what=("RUN", "the folder of a run"),
    options=(
        out_option("a new file: .jsonl, .json (a list) or .parquet"),
        ROUND,
        Option(
            "--format",
            "format",
            one_of(*FORMATS),
            "NAME",
            "conversations (openrlhf is the same): whole ones, which TRL, OpenRLHF and Axolotl's "
            "chat_template.argilla_chat read unchanged; trl: an explicit prompt of messages; "
            "axolotl: for chat_template.default; ultrafeedback: the columns of "
            "UltraFeedback-binarized; run: every column of the run; sharegpt: LLaMA-Factory's "
            "ranking form (default: conversations)",
        ),
    ),
    run=run,
)
