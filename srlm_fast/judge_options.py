"""What the commands beside `run` in which a model judges have in common: options of a run that they
take, and rows drawn from a file. Standard library only.
"""

from __future__ import annotations

import random
from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

from srlm_fast.options import OPTIONS, Option
from srlm_fast.run import Parser

if TYPE_CHECKING:
    from srlm_fast.config import Config

Row = TypeVar("Row")
RUBRIC = (
    *("--rubric", "--judge-samples", "--judge-temperature", "--judge-max-tokens"),
    "--judge-stop",
)
PLACE = ("--seed", "--device", "--dtype")


def of_run(names: Collection[str]) -> tuple[Option, ...]:
    """The options of a run by name, in its order."""
    return tuple(option for option in OPTIONS if option.name in names)


def make_parser(name: str, description: str, words: str, options: Sequence[Option]) -> Parser:
    """words: how the command is called, without options."""
    program = f"python -m srlm_fast.{name}"
    parser = Parser(
        prog=program,
        description=description,
        allow_abbrev=False,
        usage=f"%(prog)s {words} [options]",
    )
    for option in options:
        parser.add_argument(option.name, **option.for_parser)
    return parser


def drawn(rows: list[Row], limit: int | None, seed: int) -> list[Row]:
    """At most `limit` rows, drawn by the seed, in the order of the file."""
    if limit is None or limit >= len(rows):
        return rows
    return [rows[i] for i in sorted(random.Random(seed).sample(range(len(rows)), limit))]


def judging(config: Config) -> dict[str, Any]:
    """What a judge's judgements depend on beside its rubric, by the option that sets it."""
    judge = config.judge
    return {
        "--judge-stop": judge.stop,
        "--judge-samples": judge.sampling.n,
        "--judge-temperature": judge.sampling.temperature,
        "--judge-max-tokens": judge.sampling.max_tokens,
    }
