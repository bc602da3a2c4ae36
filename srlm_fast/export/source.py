"""The model that a word on the command line means: a whole run stands for its last one."""

from __future__ import annotations

from pathlib import Path

from srlm_fast.records import InputError
from srlm_fast.run_folder import SUMMARY_FILE, is_run_folder, read_json, slug
from srlm_fast.run_models import ModelAt, listed, models_of, resolve_model


def find_model(word: str) -> ModelAt:
    """Raises InputError for a run's model that is not there."""
    path = Path(word).expanduser()
    return resolve_model(str(last_of(path)) if is_run_folder(path) else word)


def find_in_run(word: str, best: bool = False) -> ModelAt:
    """As `find_model`, of runs alone. best: the model of the highest held-out score."""
    path = Path(word).expanduser()
    if best:
        if not is_run_folder(path):
            raise InputError(f"--best: found with {word}, wanted the folder of a whole run")
        return resolve_model(str(best_of(path)))
    found = find_model(word)
    if found.run is None:
        what = "a folder that is no run" if path.is_dir() else "no such folder"
        raise InputError(
            f"{word}: {what}, wanted that of a run (runs/x) or of a model of it (runs/x/m2)"
        )
    return found


def label(model: ModelAt) -> str:
    """A name for what the model makes: that of the run and the model, or of the folder."""
    if model.run is None:
        return slug(model.folder_or_name)
    return f"{slug(str(model.run))}-m{model.number}"


def last_of(run: Path) -> Path:
    models = models_of(run)
    if not models:
        raise InputError(f"{run}: a run without a finished model, wanted one that has made some")
    return models[-1]


def best_of(run: Path) -> Path:
    """The model with the highest held-out score, of equal ones the earliest."""
    rows = read_json(run / SUMMARY_FILE).get("models") or []
    scores = {row["name"].lower(): (row.get("eval") or {}).get("score") for row in rows}
    scored = [folder for folder in models_of(run) if scores.get(folder.name) is not None]
    if not scored:
        raise InputError(
            f"--best: {run} has no model with a held-out score, wanted one by its name: "
            f"{listed(run)}"
        )
    return max(scored, key=lambda folder: float(scores[folder.name] or 0.0))
