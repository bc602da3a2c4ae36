"""A model as a user names it: one of a run, a folder, a preset or a hub id.

Standard library only, so that a wrong name is told before anything heavy is imported.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from srlm_fast.records import InputError
from srlm_fast.run_folder import CONFIG_FILE, is_run_folder, read_json

TINY = "tiny"  # the package's own
MODEL = "model"  # the folder of the weights inside `m1/`, `m2/`, ...
_NUMBERED = re.compile(r"m([1-9]\d*)")


@dataclass(frozen=True)
class ModelAt:
    """folder_or_name: as `load_model` takes it, a folder's path absolute. name: M2 for a model of a
    run, else what was given. run, number, run_config: the run that made it, which of its models it
    is, and the options of that run (of its `config.json`); None for a model of no run.
    """

    folder_or_name: str
    run_config: dict[str, Any] | None
    name: str
    run: Path | None = None
    number: int | None = None

    @property
    def rows(self) -> Path | None:
        """The folder of the round that made it."""
        return None if self.run is None else self.run / f"m{self.number}"


def resolve_model(text: str) -> ModelAt:
    """`runs/x/m2` and `runs/x/m2/model` are the model M2 of a run; any other name is left alone.

    Raises InputError for the folder of a run itself, for a model that a run does not have, and for
    a path that leads nowhere.
    """
    path = Path(text).expanduser()
    if is_run_folder(path):
        raise InputError(f"{text}: found a whole run, wanted one of its models: {listed(path)}")
    place = path.absolute()
    place = place.parent if place.name == MODEL and place.is_dir() else place
    numbered = _NUMBERED.fullmatch(place.name)
    if numbered is None or not is_run_folder(place.parent):
        is_folder = text != TINY and path.is_dir()
        if not is_folder and (path.is_absolute() or len(path.parts) > 2):  # no hub id is so
            raise InputError(f"{text}: no such folder, wanted a model's, such as runs/x/m2")
        return ModelAt(str(path.absolute()) if is_folder else text, None, text)
    if not (place / MODEL).is_dir():
        found = "found no model in it yet" if place.is_dir() else "found no such model"
        raise InputError(f"{text}: {found}, wanted one that the run has: {listed(path.parent)}")
    run, number = place.parent, int(numbered[1])
    config = read_json(run / CONFIG_FILE)["run"]
    return ModelAt(str(place / MODEL), config, f"M{number}", run, number)


def models_of(run: Path) -> list[Path]:
    """The folders `m1`, `m2`, ... of a run that hold a model, in order."""
    found = [path.parent for path in run.glob(f"m*/{MODEL}")]
    numbered = {int(m[1]): path for path in found if (m := _NUMBERED.fullmatch(path.name))}
    return [numbered[number] for number in sorted(numbered)]


def listed(run: Path) -> str:
    return ", ".join(str(path) for path in models_of(run)) or "none so far"
