"""`export pairs`: a run's preference pairs in the forms that trainers read.

Whole conversations in `chosen` and `rejected`, without a `prompt`, are what TRL, OpenRLHF and
Axolotl (`chat_template.argilla_chat`) all take unchanged. The rows of `pairs.jsonl` are those of
UltraFeedback-binarized and more, whose text `prompt` TRL's trainer refuses beside them. Axolotl's
`chat_template.default` takes `messages` for the turns before the answer, and one message for each.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

from srlm_fast.options import Option, one_of
from srlm_fast.run import DONE

from .command import Command, out_option
from .made import note
from .rounds import ALL, ROUND, converted, digests, round_files, rows_file
from .row_file import write_rows

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
    out, files = rows_file(arguments.out), pair_files(arguments)
    rows = list(converted(files, FORMATS[arguments.format]))
    note(COMMAND, arguments)
    write_rows(out, rows)
    print(f"{len(rows)} pairs of {', '.join(file.parent.name for file in files)}: {out}")
    return DONE


def pair_files(arguments: argparse.Namespace) -> list[Path]:
    return round_files(arguments, "pairs.jsonl", "pairs")


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
    defaults=ALL | {"--format": "conversations"},
    inputs=lambda arguments: digests(pair_files(arguments)),
    run=run,
)
