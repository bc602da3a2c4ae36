"""A run folder -> what the page shows of it.

Whatever is not there yet is left out, so an unfinished run has a page too.
"""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from srlm_fast.records import iter_jsonl

SCORE_BINS = 20
CURVES = ("loss", "held_out_loss", "margin", "chosen_logratio", "rejected_logratio")


@dataclass(frozen=True)
class Round:
    """One round of `summary.json`, with the histogram of what the judge gave."""

    name: str
    row: dict[str, Any]
    histogram: list[tuple[float, int]]  # (lower edge of the bin, candidates in it)

    @property
    def scored(self) -> bool:
        return any(count for _, count in self.histogram)

    @property
    def seconds(self) -> dict[str, float]:
        return {name: value for name, value in (self.row.get("seconds") or {}).items() if value}

    @property
    def tokens_per_second(self) -> dict[str, float]:
        return self.row.get("tokens_per_second") or {}

    @property
    def dropped(self) -> dict[str, int]:
        """Why prompts gave no pair: reason -> count."""
        return counted(self.row.get("dropped"))

    @property
    def rejected(self) -> dict[str, int]:
        """Why self-made prompts were not taken: reason -> count."""
        return counted(self.row.get("rejected_prompts"))

    @property
    def collapse(self) -> dict[str, Any]:
        return self.row.get("collapse") or {}


def counted(reasons: dict[str, int] | None) -> dict[str, int]:
    """Reasons that occurred, as words."""
    return {name.replace("_", " "): count for name, count in (reasons or {}).items() if count}


@dataclass(frozen=True)
class Curve:
    """The figures that one training wrote at each of its steps."""

    name: str
    figures: dict[str, list[tuple[float, float]]]


@dataclass(frozen=True)
class Watch:
    """Collapse figures: whose answers, and a value per column."""

    columns: list[str]
    rows: list[tuple[str, dict[str, float | None]]]


@dataclass(frozen=True)
class Run:
    """A run folder, read."""

    folder: Path
    config: dict[str, Any]
    versions: dict[str, str]
    summary: dict[str, Any]
    models: list[dict[str, Any]]
    rounds: list[Round]
    curves: list[Curve]
    round_folders: list[Path] = field(default_factory=list)

    @property
    def gain(self) -> float | None:
        """Held-out score of the last model less that of the first."""
        found = [(model.get("eval") or {}).get("score") for model in self.models]
        if len(found) < 2 or found[0] is None or found[-1] is None:
            return None
        return found[-1] - found[0]

    @property
    def seconds(self) -> float | None:
        return self.summary.get("seconds")

    @property
    def trained_parameters(self) -> int | None:
        """How many weights the trainings moved, None where there was none."""
        return next(
            (m["trained_parameters"] for m in self.models if "trained_parameters" in m), None
        )

    @property
    def judged_by(self) -> str | None:
        """Who gave the held-out scores."""
        found = [(model.get("eval") or {}).get("judged_by") for model in self.models]
        return next((name for name in found if name), None)

    @property
    def points(self) -> list[str]:
        """Names of the points that the held-out score is made of, where a program gave it."""
        bits = [(model.get("eval") or {}).get("bits") or {} for model in self.models]
        return list(dict.fromkeys(name for each in bits for name in each))

    @property
    def length_only(self) -> list[dict[str, Any]]:
        """The judge table of a "judge" that counts characters: one, since all models judge the same
        answers; none where it was not measured."""
        found = [(model.get("judge") or {}).get("length_only") for model in self.models]
        return [row for row in found if row][:1]

    @property
    def eft(self) -> list[tuple[str, dict[str, Any]]]:
        """(model, counts) where the seed of judging was made from ranked answers."""
        return [(model["name"], model["eft"]) for model in self.models if model.get("eft")]

    @property
    def watch(self) -> Watch:
        held_out = [(f"{m['name']}, held-out", m.get("collapse")) for m in self.models]
        rounds = [(f"round {made.name}, candidates", made.collapse) for made in self.rounds]
        rows = [(name, row) for name, row in [*held_out, *rounds] if row]
        return Watch(list(dict.fromkeys(key for _, row in rows for key in row)), rows)


def read_run(folder: Path) -> Run:
    config = read_object(folder / "config.json")
    summary = read_object(folder / "summary.json")
    folders = sorted(
        (path for path in folder.glob("m*") if path.name[1:].isdigit() and path.is_dir()),
        key=lambda path: int(path.name[1:]),
    )
    return Run(
        folder=folder,
        config=flatten(config.get("run", config)),
        versions=config.get("versions") or {},
        summary=summary,
        models=summary.get("models") or [],
        rounds=[read_round(folder, row) for row in summary.get("rounds") or []],
        curves=read_curves(folder / "metrics.jsonl"),
        round_folders=folders,
    )


def read_object(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    return json.loads(path.read_text(encoding="utf-8"))


def flatten(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in tree.items():
        if isinstance(value, dict):
            flat |= flatten(value, f"{prefix}{name}.")
        elif value not in (None, "", [], ()):
            flat[prefix + name] = value
    return flat


def read_round(folder: Path, row: dict[str, Any]) -> Round:
    means = mean_scores(folder / row["name"].lower() / "judgements.jsonl")
    return Round(row["name"], row, bins(list(means.values())))


def mean_scores(path: Path) -> dict[tuple[str, int], float]:
    """Mean score of each (prompt_id, candidate) with at least one score that could be read."""
    found: dict[tuple[str, int], list[float]] = defaultdict(list)
    for row in iter_jsonl(path):
        if row.get("score") is not None:
            found[row["prompt_id"], row["candidate"]].append(row["score"])
    return {key: sum(values) / len(values) for key, values in found.items()}


def bins(values: list[float]) -> list[tuple[float, int]]:
    """Counts in equal bins over 0 to 5, or to 5 times the next power of two above that; where there
    are scores below 0, as reward models give them, over as much on that side."""
    if not values:
        return []
    high = 5.0
    while max(map(abs, values)) > high:
        high *= 2
    low = -high if min(values) < 0 else 0.0
    width = (high - low) / SCORE_BINS
    counts = Counter(min(int((value - low) / width), SCORE_BINS - 1) for value in values)
    return [(low + index * width, counts[index]) for index in range(SCORE_BINS)]


def read_curves(path: Path) -> list[Curve]:
    """Every numeric figure of the step rows, by round and stage."""
    curves: dict[str, dict[str, list[tuple[float, float]]]] = {}
    for row in iter_jsonl(path):
        if "step" not in row or "loss" not in row:
            continue
        figures = curves.setdefault(str(row.get("stage", "training")), {})
        for figure in CURVES:
            if isinstance(row.get(figure), int | float):
                figures.setdefault(figure, []).append((row["step"], row[figure]))
    return [Curve(name, figures) for name, figures in curves.items()]
