"""What a run folder has lost since its stages were finished, and how the run goes on without it.

`state.json` says how many rows each finished stage left. Standard library only.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from srlm_fast.records import InputError, read_object, write_json_atomic
from srlm_fast.run_folder import CONFIG_FILE, STATE_FILE, SUMMARY_FILE, read_json

METRICS_FILE = "metrics.jsonl"
# (stage, the figure that counts the rows, the files that hold them: one or the other)
COUNTED = (
    ("prompts", "prompts", ("prompts.jsonl",)),
    ("answers", "candidates", ("candidates.jsonl",)),
    ("answers", "judgements", ("judgements.jsonl", "comparisons.jsonl")),
    ("answers", "chains", ("revisions.jsonl",)),
    ("reward", "judgements", ("judgements.jsonl",)),
    ("pairs", "pairs", ("pairs.jsonl",)),
    ("pairs", "earlier", ("earlier_pairs.jsonl",)),
    ("pairs", "sft_rows", ("sft.jsonl",)),
    ("eft_judge", "judgements", ("eft_judgements.jsonl",)),
    ("eft", "kept", ("eft.jsonl",)),
)
_STAGE = re.compile(r"m([1-9]\d*)/(\w+)")


@dataclass(frozen=True)
class Lost:
    """A file of fewer rows than its finished stage left."""

    file: Path
    found: int
    wanted: int

    def __str__(self) -> str:
        found = f"found {self.found} rows, wanted the {self.wanted} of its stage"
        return f"{self.file}: {found}; {way_out(self.file.parent)}"


def read_state(run: Path) -> dict[str, Any]:
    """`state.json`, {} where there is none. Raises InputError saying how to go on."""
    path = run / STATE_FILE
    try:
        state = read_object(path)
    except InputError as error:
        raise InputError(f"{error}; {without_state()}") from None
    stages, seconds = state.get("stages", {}), state.get("seconds", {})
    good = isinstance(stages, dict) and isinstance(seconds, dict)
    if not good or not all(isinstance(figures, dict) for figures in stages.values()):
        raise InputError(f"{path}: found no stages, wanted what the run wrote; {without_state()}")
    return state


def without_state() -> str:
    return (
        "restore it, or remove it: the run's own command then does its stages again, and keeps "
        "the rows that are there"
    )


def way_out(folder: Path) -> str:
    """How the run goes on where something of `m3/` is gone."""
    return (
        f"restore it, or remove {folder} and the models behind it: the run's own command then "
        "makes them again"
    )


def rounds_of(stages: dict[str, Any]) -> dict[int, dict[str, Any]]:
    """The figures of finished stages by the number of the model."""
    found: dict[int, dict[str, Any]] = {}
    for name, figures in stages.items():
        if place := _STAGE.fullmatch(name):
            found.setdefault(int(place[1]), {})[place[2]] = figures
    return dict(sorted(found.items()))


def lost_rows(run: Path) -> Iterator[Lost]:
    """The files that hold fewer rows than `state.json` says. Raises InputError as `read_state`."""
    for number, stages in rounds_of(read_state(run).get("stages", {})).items():
        for stage, figure, names in COUNTED:
            wanted = stages.get(stage, {}).get(figure)
            if isinstance(wanted, int) and wanted:
                yield from fewer([run / f"m{number}" / name for name in names], wanted)
        if number == 1 and "rows" in stages.get("train", {}):
            taught = stages["train"]
            yield from fewer([run / "m1" / "sft.jsonl"], taught["rows"] + taught["too_long"])


def fewer(files: list[Path], wanted: int) -> Iterator[Lost]:
    found = sum(map(num_rows, files))
    if found < wanted:
        yield Lost(next((file for file in files if num_rows(file)), files[0]), found, wanted)


def num_rows(path: Path) -> int:
    """Whole lines of a file that may not be there."""
    if not path.is_file():
        return 0
    with path.open("rb") as file:
        return sum(line.endswith(b"\n") for line in file)


def lost_model(run: Path) -> Path | None:
    """The last model that was made, where it is gone: by `state.json`, or else by the summary."""
    stages = read_json(run / STATE_FILE).get("stages")
    number = last_made(stages) if stages else len(read_json(run / SUMMARY_FILE).get("models") or ())
    path = run / f"m{number}" / "model"
    return path if number and not path.is_dir() else None


def last_made(stages: dict[str, Any]) -> int:
    """The number of the last model, 0 where none is made."""
    return max((n for n, own in rounds_of(stages).items() if "train" in own), default=0)


def check_going_on(run: Path) -> list[str]:
    """What is said before a run goes on: the files that have lost rows. Stages of folders that
    somebody has removed are to be done again. Raises InputError for what stops it.
    """
    forget_removed(run)
    gone = lost_model(run) if read_state(run).get("stages") else None
    if gone is not None:
        raise InputError(f"{gone}: is gone, wanted the last model; {way_out(gone.parent)}")
    return [str(lost) for lost in lost_rows(run)]


def forget_removed(run: Path) -> None:
    """Take the stages of removed `m2/`, `m3/` out of `state.json`. Raises InputError where a later
    one is still there.
    """
    state = read_state(run)
    numbers = list(rounds_of(state.get("stages", {})))
    kept = [number for number in numbers if has_files(run / f"m{number}")]
    removed = [number for number in numbers if number not in kept]
    if not removed:
        return
    later = [number for number in kept if number > removed[0]]
    if later:
        raise InputError(
            f"{run / f'm{removed[0]}'}: is gone, and m{later[0]}/ was made from it; restore it, or "
            f"remove m{later[0]}/ and the models behind it too"
        )
    gone = tuple(f"m{number}/" for number in removed)
    for part in ("stages", "seconds"):
        left = {name: value for name, value in state[part].items() if not name.startswith(gone)}
        state[part] = left
    write_json_atomic(run / STATE_FILE, state)


def has_files(folder: Path) -> bool:
    return any(path.is_file() for path in folder.rglob("*"))


def read_metrics(run: Path) -> tuple[list[dict[str, Any]], list[int]]:
    """The lines of `metrics.jsonl`, and the numbers of those that are no row of a stage. A torn
    last line is neither.
    """
    path, rows, bad = run / METRICS_FILE, [], []
    lines = path.read_bytes().splitlines(keepends=True) if path.is_file() else []
    for number, line in enumerate(lines, 1):
        try:
            row = json.loads(line)
        except ValueError:
            row = None
        if isinstance(row, dict) and "stage" in row:
            rows.append(row)
        elif line.endswith(b"\n"):
            bad.append(number)
    return rows, bad


def bad_metrics(run: Path) -> list[str]:
    """What is said of the lines of `metrics.jsonl` that cannot be read."""
    return [
        f"{run / METRICS_FILE} line {number}: found no row of a stage; only curves are made of "
        "such: remove the line, and the same command goes on"
        for number in read_metrics(run)[1]
    ]


def not_a_run(folder: Path) -> str:
    """What a folder that is no run is instead."""
    if not folder.is_dir():
        return "no such folder" if not folder.exists() else "a file"
    if (folder / STATE_FILE).is_file():
        config = folder / CONFIG_FILE
        lacks = "cannot be read" if config.is_file() else "is missing"
        return f"{CONFIG_FILE} of this run {lacks} (restore it)"
    return "a folder that is no run"
