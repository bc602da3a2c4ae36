"""`python -m srlm_fast.judge --model NAME_OR_FOLDER --data FILE`: how well a model judges.

Its judgements of answers whose order is known, and the figures that come of them, beside those of a
"judge" that counts characters. Exit status as `srlm_fast.run` has it.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from srlm_fast import judge_options, provenance
from srlm_fast.judge_options import PLACE, RUBRIC, drawn, judging
from srlm_fast.options import OPTIONS, Option, text, whole
from srlm_fast.records import InputError, write_json_atomic
from srlm_fast.run import DONE, Parser, end_of, in_one_line, parsed, stop_on_interrupt
from srlm_fast.run_folder import check_file, read_json

if TYPE_CHECKING:
    from srlm_fast.config import Config
    from srlm_fast.loop.alone import Judged
    from srlm_fast.report.display import Display

OF_RUN = judge_options.of_run(("--model", "--judge", *RUBRIC, *PLACE, "--skip-bad"))
OWN = (
    Option(
        "--data",
        "data",
        text("the name of a file"),
        "FILE",
        "answers whose order is known: ranked (`prompt`, `responses`, `scores`), pairs as "
        "RewardBench has them (`prompt`, `chosen`, `rejected`, `subset`), UltraFeedback, ...",
    ),
    Option("--limit", "limit", whole(1), "N", "rows of the file, drawn by the seed (default: all)"),
    Option("--out", "out", text("the name of a file"), "FILE", "where the figures go, as JSON"),
    Option(
        "--rows",
        "rows",
        text("the name of a file"),
        "FILE",
        "where judgements go as they finish; the same command goes on from there",
    ),
)
OURS = {"model", "judge_samples", "rubric"}  # keys of `described`
DESCRIPTION = "Measures how well a model judges answers whose order is known."


def make_parser() -> Parser:
    words = "--model NAME_OR_FOLDER --data FILE"
    parser = judge_options.make_parser("judge", DESCRIPTION, words, (*OF_RUN, *OWN))
    parser.set_defaults(**{option.key: None for option in OPTIONS})
    return parser


def read_options(argv: Sequence[str]) -> argparse.Namespace:
    """The options as values, None where not given. Raises InputError naming the option."""
    arguments = parsed(make_parser(), argv, (*OPTIONS, *OWN))
    if arguments.data is None:
        raise InputError("--data: not given, wanted a JSONL file of answers whose order is known")
    for name in ("out", "rows"):
        if getattr(arguments, name) is not None:
            check_file(f"--{name}", getattr(arguments, name))
    check_distinct(arguments)
    check_figures(arguments.out)
    return arguments


def check_figures(out: str | None) -> None:
    """What lies under --out is replaced only where this command has made it."""
    if out is not None and Path(out).exists() and not OURS <= read_json(Path(out)).keys():
        raise InputError(
            f"--out {out}: found a file that is no figures of srlm_fast.judge, wanted one of its "
            "own or a new name"
        )


def check_distinct(arguments: argparse.Namespace) -> None:
    """What is written must not be what is read."""
    named = {f"--{name}": getattr(arguments, name) for name in ("data", "rubric", "rows", "out")}
    taken: dict[Path, str] = {}
    for option, path in named.items():
        if path is not None:
            first = taken.setdefault(Path(path).absolute().resolve(), option)
            if first != option:
                raise InputError(f"{option} {path}: is the file of {first} too, wanted another")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit status. Every mistake ends as one line on stderr."""
    return end_of(lambda: command(sys.argv[1:] if argv is None else argv))


def command(argv: Sequence[str]) -> int:
    arguments = read_options(argv)
    # From here on torch is needed, which takes seconds to import.
    from srlm_fast.report.display import Display
    from srlm_fast.report.judge_text import judge_text

    display = Display(sys.stdout)
    try:
        config, judged = judge(arguments, display)
    finally:
        display.close()
    figures = described(config, judged)
    if arguments.out is not None:
        write_json_atomic(Path(arguments.out), figures)
    display.note(judge_text(figures))
    return DONE


def judge(arguments: argparse.Namespace, display: Display) -> tuple[Config, Judged]:
    """Let the model judge the rows of --data. Raises InputError and KeyboardInterrupt."""
    from srlm_fast.config import from_options
    from srlm_fast.data.fields import Skipped
    from srlm_fast.data.ranked import recognised_ranked
    from srlm_fast.plan import check_lengths, model_config

    with in_one_line(Path(arguments.rows or ".")):
        config = from_options(arguments)
        check_lengths(config, model_config(config.model), ("--judge-max-tokens",))
        found = recognised_ranked(arguments.data, Skipped() if config.skip_bad else None)
        for note in found.notes("--data"):
            display.note(note)
        rows = [dict(row) for row in found.rows]
        with tempfile.TemporaryDirectory() as scratch:
            path = Path(arguments.rows or Path(scratch) / "rows.jsonl")
            beside = path.with_name(f"{path.name}.settings.json")
            made = f"--rows {path}: holds judgements made"
            provenance.hold(path, beside, made, settings(config, arguments))
            return config, measure(config, drawn(rows, arguments.limit, config.seed), path, display)


def settings(config: Config, arguments: argparse.Namespace) -> dict[str, Any]:
    """What the judgements of a file of rows depend on, by the option that sets it."""
    from srlm_fast.config import fingerprint, named

    inputs = {named(f"inputs.{name}"): digest[:16] for name, digest in config.inputs.items()}
    return {
        "--model": config.model,
        "--data (the file's content)": fingerprint("--data", arguments.data)[:16],
        "--limit": arguments.limit,
        "--judge": config.judge.mode,
        **judging(config),
        "--seed": config.seed,
        "--device": config.device,
        "--dtype": config.dtype,
        "--rubric": config.rubric_file,
        **({"--skip-bad": "yes"} if config.skip_bad else {}),
        **inputs,
    }


def measure(config: Config, rows: list[dict[str, Any]], path: Path, display: Display) -> Judged:
    """Judge the rows, until a signal asks for a stop."""
    from srlm_fast.loop.alone import judge_alone

    with stop_on_interrupt(display) as stop:
        return judge_alone(config, rows, path, display, stop)


def described(config: Config, judged: Judged) -> dict[str, Any]:
    """The figures with what made them."""
    return {
        "model": config.model,
        "judge": config.judge.mode,
        "judge_samples": judged.samples,
        "rubric": judged.rubric.provenance,
        "seed": config.seed,
        **figures_of(judged, config.judge.mode),
    }


def figures_of(judged: Judged, mode: str) -> dict[str, Any]:
    """The judge table of all rows, that of each subset, and RewardBench's sections."""
    from srlm_fast.eval import judge_table, section_scores
    from srlm_fast.loop.judging import top_score

    high = top_score(judged.rubric.high, mode)
    table = judge_table(judged.rows, high)
    names = sorted({row["subset"] for row in judged.rows} - {""})
    subsets = {
        name: judge_table([row for row in judged.rows if row["subset"] == name], high)
        for name in names
    }
    return {
        **table,
        "judgements": judged.statuses,
        "too_long": judged.too_long,
        **judged.audits,
        "subsets": subsets,
        "sections": section_scores(accuracies(subsets)),
        "sections_length_only": section_scores(
            accuracies({name: made["length_only"] for name, made in subsets.items()})
        ),
    }


def accuracies(tables: Mapping[str, dict[str, Any]]) -> dict[str, tuple[float | None, int]]:
    return {
        name: (table["pairwise_accuracy"], table["n"]["pairwise_accuracy"])
        for name, table in tables.items()
    }


if __name__ == "__main__":
    sys.exit(main())
