"""`export reward-bench`: a model as judge of RewardBench's pairs, in the form of its results.

Two files as allenai/reward-bench writes them: the accuracy of each subset beside `model`,
`model_type` and `chat_template`, and columns with a value for each pair (`results`, `subset`, `id`,
`scores_chosen`, `scores_rejected`, the texts). A result is 1 where the chosen answer has the higher
mean score, 0 where it has the lower one, 0.5 for a tie and where a score could not be read.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from srlm_fast import judge_command
from srlm_fast.options import OPTIONS
from srlm_fast.records import write_json_atomic
from srlm_fast.run import DONE, in_one_line
from srlm_fast.run_folder import check_file
from srlm_fast.run_models import find_model, label

from .command import MODEL, Command, check_new_file, naming, out_option
from .generating import NAME
from .made import is_noted, note

Row = dict[str, Any]
FORM = '{"prompt": "...", "chosen": "...", "rejected": "..."}'


def run(arguments: argparse.Namespace) -> int:
    source, out = find_model(arguments.what), Path(arguments.out).expanduser()
    check_new_file(out)
    if not is_noted(COMMAND, arguments):
        check_new_file(scores_file(out))
    if arguments.rows is not None:
        check_file("--rows", arguments.rows)
    judge_command.check_distinct(arguments)
    from srlm_fast.report.display import Display
    from srlm_fast.report.judge_text import judge_text

    with naming("--data"):
        ids = read_ids(arguments.data)
    display = Display(sys.stdout)
    try:
        config, judged = judge_command.judge(with_model(arguments, source.folder_or_name), display)
    finally:
        display.close()
    note(COMMAND, arguments)
    rows = pair_rows(judged.rows, judge_command.drawn(ids, arguments.limit, config.seed))
    figures = judge_command.described(config, judged)
    head = {
        "model": arguments.name or label(source),
        "model_type": "Generative RM",
        "chat_template": "tokenizer",
    }
    write_json_atomic(scores_file(out), columns(rows) | head)
    write_json_atomic(out, head | accuracies(rows) | extra(rows, figures))
    display.note(judge_text(figures))
    print(f"{len(rows)} pairs: {out}, {scores_file(out)}")
    return DONE


def inputs(arguments: argparse.Namespace) -> Row:
    """What the judgements depend on."""
    from srlm_fast.config import from_options, model_fingerprint

    name = find_model(arguments.what).folder_or_name
    with in_one_line(Path(arguments.out)):
        from srlm_fast.model import find_folder

        content = model_fingerprint("MODEL", find_folder(name))[:16]
        config = from_options(with_model(arguments, name))
    return judge_command.settings(config, arguments) | {"MODEL (its content)": content}


def scores_file(out: Path) -> Path:
    """Beside the results, that of the pairs."""
    return out.with_name(f"{out.stem}-scores{out.suffix}")


def with_model(arguments: argparse.Namespace, model: str) -> argparse.Namespace:
    """The options as those of `srlm_fast.judge`."""
    absent = {option.key: None for option in OPTIONS}
    return argparse.Namespace(**absent | vars(arguments) | {"model": model})


def read_ids(path: str) -> list[Any]:
    """The id of each row, its number where it has none. Raises InputError for rows that are no
    pairs.
    """
    from srlm_fast.data.fields import read_lines

    found = []
    for i, line in enumerate(read_lines(path, FORM)):
        if "chosen" not in line.fields:
            raise line.error("chosen", "is missing", "pairs as RewardBench has them")
        found.append(line.fields.get("id", i))
    return found


def pair_rows(rows: Sequence[Row], ids: Sequence[Any]) -> list[Row]:
    return [
        {
            "text_chosen": [asked, {"role": "assistant", "content": row["responses"][0]}],
            "text_rejected": [asked, {"role": "assistant", "content": row["responses"][1]}],
            "results": result(*row["judged"]),
            "subset": row["subset"],
            "id": row_id,
            "scores_chosen": row["judged"][0],
            "scores_rejected": row["judged"][1],
        }
        for row, row_id in zip(rows, ids, strict=True)
        if (asked := {"role": "user", "content": row["prompt"]})
    ]


def result(chosen: float | None, rejected: float | None) -> float:
    if chosen is None or rejected is None or chosen == rejected:
        return 0.5
    return float(chosen > rejected)


def columns(rows: Sequence[Row]) -> dict[str, list[Any]]:
    return {name: [row[name] for row in rows] for name in (rows[0] if rows else {})}


def accuracies(rows: Sequence[Row]) -> dict[str, float]:
    """Mean result of each subset."""
    return {name: fmean(row["results"] for row in group) for name, group in subsets(rows).items()}


def subsets(rows: Sequence[Row]) -> dict[str, list[Row]]:
    found: dict[str, list[Row]] = {}
    for row in rows:
        found.setdefault(row["subset"] or "all", []).append(row)
    return dict(sorted(found.items()))


def extra(rows: Sequence[Row], figures: Row) -> Row:
    """What is not RewardBench's own: its sections over these results, and the control."""
    from srlm_fast.eval import section_scores

    counts = {name: len(group) for name, group in subsets(rows).items()}
    measured = {name: (value, counts[name]) for name, value in accuracies(rows).items()}
    scored = [row for row in rows if None not in (row["scores_chosen"], row["scores_rejected"])]
    return {
        "sections": section_scores(measured),
        "sections_length_only": figures["sections_length_only"],
        "pairs": counts,
        "ties": sum(row["results"] == 0.5 for row in scored),
        "unread": len(rows) - len(scored),
        "judge": {name: figures[name] for name in ("judge", "judge_samples", "rubric", "seed")},
    }


NOT_TAKEN = ("--model", "--skip-bad")  # each row is a result
COMMAND = Command(
    name="reward-bench",
    help="a model as judge of RewardBench's pairs, with the length-only control",
    what=("MODEL", MODEL),
    options=(
        *(option for option in judge_command.OWN if option.name != "--out"),
        out_option("a new file for the results; those of each pair go to <name>-scores beside it"),
        NAME,
        *(option for option in judge_command.OF_RUN if option.name not in NOT_TAKEN),
    ),
    needed=("--data", "--out"),
    inputs=inputs,
    run=run,
)
