"""The model of a run that is taken out of it: its last one, its best, or one by name."""

from __future__ import annotations

from pathlib import Path

from srlm_fast.damage import not_a_run
from srlm_fast.records import InputError
from srlm_fast.run_folder import SUMMARY_FILE, is_run_folder, read_json
from srlm_fast.run_models import ModelAt, find_model, listed, meant, models_of, resolve_model


def find_in_run(word: str, best: bool = False) -> ModelAt:
    """As `find_model`, of runs alone. best: the model of the highest held-out score."""
    path = Path(word).expanduser()
    if best:
        if not is_run_folder(path):
            raise InputError(f"--best: found with {word}, wanted the folder of a whole run")
        return resolve_model(str(best_of(path)))
    found = find_model(word)
    if found.run is None:
        raise InputError(
            f"{word}: {not_a_run(path)}, wanted the folder of a run (runs/x) or of a model of it "
            f"(runs/x/m2){meant(path)}"
        )
    return found


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
