"""`export sft`: what a run taught by SFT, as conversations: the seeds, and the best answers."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

from srlm_fast.options import Option, one_of
from srlm_fast.records import InputError
from srlm_fast.run import DONE

from .command import Command, out_option
from .made import note
from .pairs import spoken
from .rounds import ALL, ROUND, converted, digests, round_files, rows_file
from .row_file import write_rows

Row = dict[str, Any]
KINDS = ("ift", "eft", "best")


def messages(row: Row) -> list[dict[str, str]]:
    question = {"role": "user", "content": row["prompt"]}
    answer = {"role": "assistant", "content": row["response"]}
    return [*(row.get("turns") or []), question, answer]


def as_messages(row: Row) -> Row:
    """TRL's language modelling type, Axolotl's chat_template, OpenRLHF's --input_key messages."""
    return {"messages": messages(row), "kind": kind(row)}


def as_sharegpt(row: Row) -> Row:
    return {"conversations": [spoken(message) for message in messages(row)], "kind": kind(row)}


def as_alpaca(row: Row) -> Row:
    if row.get("turns"):
        raise InputError("--format: found alpaca with rows of several turns, wanted messages")
    return {"instruction": row["prompt"], "input": "", "output": row["response"], "kind": kind(row)}


def kind(row: Row) -> str:
    return str(row.get("kind", "best"))


FORMATS: dict[str, Callable[[Row], Row]] = {
    "messages": as_messages,
    "sharegpt": as_sharegpt,
    "alpaca": as_alpaca,
}


def run(arguments: argparse.Namespace) -> int:
    out, form = rows_file(arguments.out), FORMATS[arguments.format]
    files = taught_files(arguments)
    wanted = KINDS if arguments.kind == "all" else (arguments.kind,)
    rows = list(converted(files, form, lambda row: kind(row) in wanted, "SFT row"))
    if not rows:
        raise InputError(f"--kind: found {arguments.kind}, of which the run has no rows")
    note(COMMAND, arguments)
    write_rows(out, rows)
    print(f"{len(rows)} conversations: {out}")
    return DONE


def taught_files(arguments: argparse.Namespace) -> list[Path]:
    return round_files(arguments, "sft.jsonl", "SFT rows")


COMMAND = Command(
    name="sft",
    help="what a run was taught by SFT (seeds, judgements, best answers) as conversations",
    what=("RUN", "the folder of a run"),
    options=(
        out_option("a new file: .jsonl, .json (a list) or .parquet"),
        ROUND,
        Option(
            "--kind",
            "kind",
            one_of(*KINDS, "all"),
            "NAME",
            "ift: instructions; eft: judge prompts; best: best answers of --reward best-of-n "
            "(default: all)",
        ),
        Option(
            "--format",
            "format",
            one_of(*FORMATS),
            "NAME",
            "messages, sharegpt or alpaca (default: messages)",
        ),
    ),
    defaults=ALL | {"--format": "messages", "--kind": "all"},
    inputs=lambda arguments: digests(taught_files(arguments)),
    run=run,
)
