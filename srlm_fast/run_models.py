"""What a word that names a model means: one of a run, a folder, a preset or a hub id.

    runs/x/m2, runs/x/m2/model    M2 of the run x
    runs/x                        its last model where a command says so, else refused
    a folder                      the model in it, or in its `model/`
    tiny                          the package's own
    anything else                 a preset or a hub id, looked for when it is loaded

Standard library only, so that a wrong name is told before anything heavy is imported.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from srlm_fast.damage import lost_model, way_out
from srlm_fast.options import nearest
from srlm_fast.records import InputError
from srlm_fast.run_folder import CONFIG_FILE, is_run_folder, read_json, slug

TINY = "tiny"  # the package's own
MODEL = "model"  # the folder of the weights inside `m1/`, `m2/`, ...
HOLDS_MODEL = (CONFIG_FILE, "adapter_config.json")  # one of them is in the folder of a model
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

    @property
    def is_tiny(self) -> bool:
        """Whether it is the package's own, or what a run made of that."""
        return TINY in (self.name, (self.run_config or {}).get("model"))


def find_model(text: str) -> ModelAt:
    """As `resolve_model`; a whole run stands for its last model."""
    path = Path(text).expanduser()
    if text == TINY or not is_run_folder(path):
        return resolve_model(text)
    gone, models = lost_model(path), models_of(path)
    if gone is not None:
        raise InputError(
            f"{gone}: is gone, wanted the last model of the run, or one by its name: "
            f"{listed(path)}; {way_out(gone.parent)}"
        )
    if not models:
        raise InputError(f"{path}: a run without a finished model, wanted one that has made some")
    return resolve_model(str(models[-1]))


def resolve_model(text: str) -> ModelAt:
    """Raises InputError for the folder of a whole run, for a model that a run does not have, for a
    file, and for a path that leads nowhere.
    """
    path = Path(text).expanduser()
    if text == TINY:
        return ModelAt(TINY, None, TINY)
    if is_run_folder(path):
        raise InputError(f"{text}: found a whole run, wanted one of its models: {listed(path)}")
    place = path.absolute()
    place = place.parent if place.name == MODEL and place.is_dir() else place
    numbered = _NUMBERED.fullmatch(place.name)
    if numbered is not None and is_run_folder(place.parent):
        return _of_run(text, place, int(numbered[1]))
    return _of_no_run(text, path)


def _of_run(text: str, place: Path, number: int) -> ModelAt:
    run = place.parent
    if not (place / MODEL).is_dir():
        found = "found no model in it yet" if place.is_dir() else "found no such model"
        raise InputError(f"{text}: {found}, wanted one that the run has: {listed(run)}")
    config = read_json(run / CONFIG_FILE)["run"]
    return ModelAt(str(place / MODEL), config, f"M{number}", run, number)


def _of_no_run(text: str, path: Path) -> ModelAt:
    if path.is_dir():
        return ModelAt(str(_inner(path.absolute())), None, text)
    if path.exists():
        raise InputError(f"{text}: is a file; wanted a model folder with {CONFIG_FILE}")
    if path.is_absolute() or len(path.parts) > 2:  # no hub id is so
        raise InputError(
            f"{text}: no such folder, wanted a model's, such as runs/x/m2{meant(path)}"
        )
    return ModelAt(text, None, text)


def meant(path: Path) -> str:
    """The folder beside it whose name is near, as a question; else nothing."""
    place = path.absolute()
    beside = place.parent.iterdir() if place.parent.is_dir() and not path.exists() else ()
    names = {each.name.lower(): each for each in beside if each.is_dir()}
    near = nearest(place.name.lower(), names)
    return f"; did you mean {path.parent / names[near].name}?" if near else ""


def _inner(folder: Path) -> Path:
    """The folder itself, or its `model/` where only that holds a model."""
    inside = folder / MODEL
    return inside if _holds_model(inside) and not _holds_model(folder) else folder


def _holds_model(folder: Path) -> bool:
    return any((folder / name).is_file() for name in HOLDS_MODEL)


def label(model: ModelAt) -> str:
    """A name for what the model makes: that of the run and the model, or of the folder."""
    if model.run is None:
        return slug(model.folder_or_name)
    return f"{slug(str(model.run))}-m{model.number}"


def models_of(run: Path) -> list[Path]:
    """The folders `m1`, `m2`, ... of a run that hold a model, in order."""
    found = [path.parent for path in run.glob(f"m*/{MODEL}")]
    numbered = {int(m[1]): path for path in found if (m := _NUMBERED.fullmatch(path.name))}
    return [numbered[number] for number in sorted(numbered)]


def listed(run: Path) -> str:
    return ", ".join(str(path) for path in models_of(run)) or "none so far"
