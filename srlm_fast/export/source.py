"""The model that a word on the command line means."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from srlm_fast.records import InputError
from srlm_fast.run_folder import SUMMARY_FILE, is_run_folder, read_json, slug


@dataclass(frozen=True)
class Source:
    """given: what `load_model` takes. run, number: of a model that lies in a run."""

    given: str
    run: Path | None = None
    number: int = 0

    @property
    def label(self) -> str:
        """A name for what the model makes: that of the run and the model, or of the folder."""
        if self.run is None:
            return slug(self.given)
        return f"{slug(str(self.run))}-m{self.number}"

    @property
    def folder(self) -> Path:
        """Of a model in a run."""
        return Path(self.given)


def find_source(word: str) -> Source:
    """A run means its last model. Raises InputError for a run's model that is not there."""
    path = Path(word).expanduser()
    if is_run_folder(path):
        return in_run(path, max(models_of(path), default=1))
    for folder in (path, path.parent):
        if is_run_folder(folder.parent) and is_round(folder):
            return in_run(folder.parent, int(folder.name[1:]))
    return Source(word)


def find_in_run(word: str, best: bool = False) -> Source:
    """As `find_source`, of runs alone. best: the model of the highest held-out score."""
    path = Path(word).expanduser()
    source = find_source(word)
    if source.run is None:
        found = "a folder that is no run" if path.is_dir() else "no such folder"
        raise InputError(
            f"{word}: {found}, wanted that of a run (runs/x) or of a model of it (runs/x/m2)"
        )
    if not best:
        return source
    if not is_run_folder(path):
        raise InputError(f"--best: found with {word}, wanted the folder of the whole run")
    return in_run(path, best_of(path))


def is_round(folder: Path) -> bool:
    return folder.name[:1] == "m" and folder.name[1:].isdigit()


def in_run(run: Path, number: int) -> Source:
    folder = run / f"m{number}" / "model"
    if not folder.is_dir():
        there = ", ".join(f"m{each}" for each in models_of(run)) or "none"
        raise InputError(f"{run}: holds no finished m{number}, wanted one of its models ({there})")
    return Source(str(folder), run, number)


def models_of(run: Path) -> list[int]:
    """Numbers of the models that are whole; a model's folder appears when it is."""
    folders = [path.parent for path in run.glob("m*/model")]
    return sorted(int(folder.name[1:]) for folder in folders if is_round(folder))


def best_of(run: Path) -> int:
    """The number of the model with the highest held-out score, of equal ones the earliest."""
    models = read_json(run / SUMMARY_FILE).get("models") or []
    scores = {
        int(model["name"][1:]): score
        for model in models
        if (score := (model.get("eval") or {}).get("score")) is not None
    }
    there = {number: scores[number] for number in models_of(run) if number in scores}
    if not there:
        raise InputError(
            f"--best: {run} has no model with a held-out score, wanted one by its name"
        )
    return max(there, key=lambda number: there[number])
