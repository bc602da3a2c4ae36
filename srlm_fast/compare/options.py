"""Options of the command. Standard library only."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from srlm_fast import judge_options
from srlm_fast.judge_options import PLACE, RUBRIC
from srlm_fast.options import JUDGES, Option, one_of, real, text, whole
from srlm_fast.records import InputError
from srlm_fast.run import Parser, parsed
from srlm_fast.run_folder import check_out

from .folder import KEY

KINDS = ("pairwise", *JUDGES, "model", "gold")
MATCHES = ("all", "same")
OF_RUN = judge_options.of_run(
    ("--temperature", "--top-p", "--max-tokens", *RUBRIC, *PLACE, "--kv-gb")
)
OWN = (
    Option(
        "--out",
        "out",
        text("a folder"),
        "FOLDER",
        "where rows go as they finish, and comparison.json; the same command goes on from there",
    ),
    Option(
        "--prompts",
        "prompts",
        text("the name of a file"),
        "FILE",
        "prompts to answer (default: those that the run of A and B holds out, its own answers to "
        "them included; for the tiny model those of its world)",
    ),
    Option("--limit", "limit", whole(1), "N", "prompts of them, drawn by the seed (default: all)"),
    Option(
        "--samples",
        "evaluation.samples",
        whole(1),
        "N",
        "answers of each model to a prompt (default: 1; those of the run, of tiny 4)",
    ),
    Option(
        "--match",
        "match",
        one_of(*MATCHES),
        "HOW",
        "of several answers: all of A's with all of B's, or same, the k-th with the k-th (default: "
        "all)",
    ),
    Option(
        "--judge",
        "judge",
        text("A, B, a folder, a hub id or a preset"),
        "JUDGE",
        "the model that judges: A, B, or any other (default: M1 of the run that both are of, else "
        "B)",
    ),
    Option(
        "--judge-kind",
        "judge_kind",
        one_of(*KINDS),
        "KIND",
        "pairwise: the judge compares two answers in both orders, a disagreement is a tie; "
        "sampled, expected, direct: it scores each by the rubric as --judge of a run does; model: "
        "JUDGE is a reward model; gold: the tiny world's program. Of all but pairwise equal scores "
        "are a tie, and order plays no part (default: pairwise; sampled with --rubric; for the "
        "tiny model gold, or sampled where --judge or --rubric is given)",
    ),
    Option(
        "--tie-within",
        "tie_within",
        real(0.0),
        "X",
        "scores no further apart than this are a tie (default: 0)",
    ),
)
SAMPLES = next(option for option in OWN if option.name == "--samples")
DESCRIPTION = "Measures which of two models gives the better answers to the same prompts."


def make_parser() -> Parser:
    parser = judge_options.make_parser("compare", DESCRIPTION, "A B --out FOLDER", (*OWN, *OF_RUN))
    parser.extra_word = "wanted two models, then options only"
    for name in ("A", "B"):
        parser.add_argument(
            name.lower(),
            metavar=name,
            help="a model of a run (runs/x/m3), a folder, a hub id or a preset",
        )
    return parser


def read_options(argv: Sequence[str]) -> argparse.Namespace:
    """The options as values, None where not given. Raises InputError naming the option."""
    arguments = parsed(make_parser(), argv, (*OWN, *OF_RUN))
    if arguments.out is None:
        raise InputError("--out: not given, wanted a folder for the answers and figures")
    check_out(Path(arguments.out), KEY)
    return arguments
