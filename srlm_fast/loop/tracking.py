"""A run in TensorBoard or Weights & Biases: every line of `metrics.jsonl`, handed on as it is
written.

A process that goes on with a run hands all lines on again, so that nothing is missing which an
earlier one had written down and not handed on. TensorBoard's files are made anew from them;
Weights & Biases knows a line by its number and leaves out what it has, under the run's own id.
"""

from __future__ import annotations

import shutil
import uuid
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from srlm_fast.records import InputError, read_object, write_json_atomic

PROJECT = "srlm_fast"  # of Weights & Biases, unless WANDB_PROJECT names one
ID_FILE = "wandb.json"

Row = Mapping[str, Any]


class Tracker(Protocol):
    """Where lines of `metrics.jsonl` are handed to. number: that of the line, from 0."""

    def log(self, number: int, row: Row) -> None: ...
    def close(self) -> None: ...


class TensorBoard:
    """Event files in `tensorboard/` of the run folder."""

    def __init__(self, folder: Path) -> None:
        from torch.utils.tensorboard import SummaryWriter

        path = folder / "tensorboard"
        shutil.rmtree(path, ignore_errors=True)
        self._writer = SummaryWriter(str(path))

    def log(self, number: int, row: Row) -> None:
        name, step = place(row)
        for figure, value in numbers(row):
            self._writer.add_scalar(f"{name}/{figure}", value, step)

    def close(self) -> None:
        self._writer.close()


class WeightsAndBiases:
    """A run of Weights & Biases whose id lies in the run folder. Its environment variables hold
    (WANDB_MODE=offline, WANDB_PROJECT). Raises InputError where it cannot be begun.
    """

    def __init__(self, folder: Path, config: Mapping[str, Any]) -> None:
        import os

        import wandb

        try:
            self._run = wandb.init(
                project=os.environ.get("WANDB_PROJECT", PROJECT),
                id=run_id(folder / ID_FILE),
                name=folder.name,
                dir=str(folder),
                config=dict(config),
                resume="allow",
                settings=wandb.Settings(silent=True, console="off"),
            )
        except wandb.Error as error:
            raise InputError(
                f"--log: wandb cannot begin ({error}); WANDB_MODE=offline keeps everything in the "
                "run folder"
            ) from None
        self._known: set[str] = set()

    def log(self, number: int, row: Row) -> None:
        if number < self._run.starting_step:
            return
        name, step = place(row)
        axis = f"{name}/step"
        if name not in self._known:
            self._known.add(name)
            self._run.define_metric(f"{name}/*", step_metric=axis)
        figures = {f"{name}/{figure}": value for figure, value in numbers(row)}
        self._run.log(figures | {axis: step}, step=number)

    def close(self) -> None:
        self._run.finish()


def place(row: Row) -> tuple[str, int]:
    """(name of the chart, place on its axis) of a line: a training's steps are an axis of their
    own; what each model has once, each phase's memory too, stands over the number of the model.
    """
    if "step" in row:
        return row["stage"], row["step"]
    model, _, stage = str(row["stage"]).rpartition("/")
    number = int(model[1:]) if model[1:].isdigit() else 0
    return (f"memory/{stage}/{row['phase']}" if "phase" in row else stage), number


def numbers(row: Row, prefix: str = "") -> Iterator[tuple[str, float]]:
    """The numbers of a line by name, those inside objects as `eval/score`."""
    for name, value in row.items():
        if isinstance(value, Mapping):
            inside = "" if name == "memory" else f"{prefix}{name}/"
            yield from numbers(value, inside)
        elif isinstance(value, int | float) and not isinstance(value, bool) and name != "step":
            yield prefix + name, value


def run_id(path: Path) -> str:
    """The id under which a run goes on; made at its first start."""
    found = read_object(path)
    if not found:
        found = {"id": uuid.uuid4().hex[:16]}
        write_json_atomic(path, found)
    return str(found["id"])


def open_trackers(
    names: Sequence[str], folder: Path, config: Mapping[str, Any], lines: Iterable[Row]
) -> list[Tracker]:
    """Those of `--log`, with the lines that are there already. Raises InputError."""
    found: list[Tracker] = []
    for name in names:
        found.append(
            TensorBoard(folder) if name == "tensorboard" else WeightsAndBiases(folder, config)
        )
    for number, row in enumerate(lines):
        for tracker in found:
            tracker.log(number, row)
    return found
