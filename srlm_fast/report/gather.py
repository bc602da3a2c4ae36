"""A run folder -> what the page shows of it.

Whatever is not there yet is left out, so an unfinished run has a page too.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from statistics import fmean
from typing import Any

from srlm_fast.damage import read_metrics
from srlm_fast.records import read_object

from .rows import PAIR, Example, read_round, rows_of
from .summary import read_summary

SCORE_BINS = 20
CURVES = (
    *("loss", "held_out_loss", "margin", "accuracy", "chosen_logratio", "rejected_logratio"),
    *("learning_rate", "grad_norm"),
)
QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)
Bins = list[tuple[float, int]]  # (lower edge, count), of equal widths


@dataclass(frozen=True)
class Lengths:
    """Characters of a set of answers: quantiles are those of QUANTILES."""

    name: str
    n: int
    mean: float
    quantiles: tuple[float, ...]


@dataclass(frozen=True)
class Round:
    """One round: its row of the summary, {} where there is none yet, and its prompts."""

    name: str
    row: dict[str, Any]
    examples: list[Example]

    @cached_property
    def scores(self) -> list[float]:
        """Mean score of each candidate that has one."""
        return [mean for example in self.examples for mean in example.means]

    @property
    def scores_of_pairs_alone(self) -> bool:
        return bool(self.scores) and not any(e.means for e in self.examples if e.outcome != PAIR)

    @cached_property
    def margins(self) -> list[float]:
        return [e.margin for e in self.examples if e.margin is not None]

    @property
    def outcomes(self) -> dict[str, int]:
        """Prompts by what became of them, pairs first: those of the summary, else of the rows."""
        if self.row.get("pairs") is not None and self.row.get("dropped") is not None:
            found = {PAIR: self.row["pairs"], **self.row["dropped"]}
        else:
            found = Counter(e.outcome for e in self.examples)
        return {PAIR: found.get(PAIR, 0), **{k: n for k, n in found.items() if n and k != PAIR}}

    @property
    def rejected(self) -> dict[str, int]:
        """Why self-made prompts were not taken: reason -> count."""
        return {k: n for k, n in (self.row.get("rejected_prompts") or {}).items() if n}

    @property
    def lengths(self) -> Lengths | None:
        return lengths(f"{self.name}, candidates", [len(a.text) for a in self.answers()])

    def lengths_of(self, role: str) -> Lengths | None:
        found = [len(answer.text) for answer in self.answers() if answer.role == role]
        return lengths(f"{self.name}, {role}", found)

    def answers(self) -> list[Any]:
        return [answer for example in self.examples for answer in example.answers]


@dataclass(frozen=True)
class Curve:
    """The figures that one training wrote at each of its steps, and its tokens per second."""

    name: str
    figures: dict[str, list[tuple[float, float]]]
    tokens_per_second: float | None = None

    @property
    def model(self) -> str:
        return self.name.partition("/")[0].upper()

    @property
    def is_dpo(self) -> bool:
        return "margin" in self.figures


@dataclass(frozen=True)
class Phase:
    """A span of the run. seconds; tokens_per_second: None where that was not measured."""

    model: str
    name: str
    seconds: float
    tokens_per_second: float | None = None


@dataclass(frozen=True)
class Warned:
    """A named warning of a round."""

    round: str
    name: str
    figure: Any
    limit: Any
    text: str


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
    phases: list[Phase]
    memory: list[dict[str, Any]]
    answer_lengths: list[Lengths] = field(default_factory=list)

    @property
    def name(self) -> str:
        return self.folder.absolute().name

    @property
    def gain(self) -> float | None:
        """Held-out score of the last model less that of the first."""
        found = [(model.get("eval") or {}).get("score") for model in self.models]
        if len(found) < 2 or found[0] is None or found[-1] is None:
            return None
        return found[-1] - found[0]

    @property
    def finished(self) -> bool:
        return bool(self.summary.get("finished"))

    @property
    def stopped(self) -> str | None:
        """Why the run stopped by itself, where it did."""
        return (self.summary.get("stopped") or {}).get("reason")

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
    def watched(self) -> bool:
        """Whether the rounds were looked at for warnings."""
        return any("warnings" in made.row for made in self.rounds)

    @property
    def warnings(self) -> list[Warned]:
        return [
            Warned(
                made.name,
                str(each.get("name", "warning")),
                each.get("figure"),
                each.get("limit"),
                str(each.get("text", "")),
            )
            for made in self.rounds
            for each in made.row.get("warnings") or ()
        ]


def read_run(folder: Path) -> Run:
    """Raises InputError naming the file that cannot be read."""
    config, summary = read_object(folder / "config.json"), read_summary(folder)
    options = flatten(config.get("run", config))
    models, rows = summary["models"], summary["rounds"]
    metrics = read_metrics(folder)[0]
    curves = read_curves(metrics)
    folders = model_folders(folder)
    return Run(
        folder=folder,
        config=options,
        versions=config.get("versions") or {},
        summary=summary,
        models=models,
        rounds=read_rounds(folders, rows),
        curves=curves,
        phases=read_phases(models, rows, metrics, {c.name: c.tokens_per_second for c in curves}),
        memory=[row for row in metrics if is_measured(row.get("memory"))],
        answer_lengths=read_lengths(folders),
    )


def model_folders(folder: Path) -> list[Path]:
    """`m1/`, `m2/`, ... in order."""
    found = (path for path in folder.glob("m*") if path.name[1:].isdigit() and path.is_dir())
    return sorted(found, key=lambda path: int(path.name[1:]))


def flatten(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in tree.items():
        if isinstance(value, dict):
            flat |= flatten(value, f"{prefix}{name}.")
        elif value not in (None, "", [], ()):
            flat[prefix + name] = value
    return flat


def read_rounds(folders: Sequence[Path], rows: list[dict[str, Any]]) -> list[Round]:
    """The rounds of the summary, then those that so far have only rows."""
    by_name = {row["name"]: row for row in rows}
    examples = {path.name.upper(): read_round(path) for path in folders}
    begun = [name for name, found in examples.items() if found and name not in by_name]
    return [
        Round(name, by_name.get(name, {}), examples.get(name, [])) for name in [*by_name, *begun]
    ]


def bins(values: list[float]) -> Bins:
    """Counts in equal bins over 0 to 5, or to 5 times the next power of two above that; where there
    are scores below 0, as reward models give them, over as much on that side."""
    if not values:
        return []
    high = 5.0
    while max(map(abs, values)) > high:
        high *= 2
    return equal_bins(values, -high if min(values) < 0 else 0.0, high)


def unit_bins(values: list[float]) -> Bins:
    """As `bins`, over 0 to 1 where all values lie there, as probabilities do."""
    if values and 0 <= min(values) and max(values) <= 1:
        return equal_bins(values, 0.0, 1.0)
    return bins(values)


def equal_bins(values: Iterable[float], low: float, high: float) -> Bins:
    width = (high - low) / SCORE_BINS
    counts = Counter(min(int((value - low) / width), SCORE_BINS - 1) for value in values)
    return [(low + index * width, counts[index]) for index in range(SCORE_BINS)]


def lengths(name: str, values: Sequence[int]) -> Lengths | None:
    if not values:
        return None
    rising = sorted(values)
    return Lengths(name, len(rising), fmean(rising), tuple(quantile(rising, q) for q in QUANTILES))


def quantile(rising: Sequence[float], share: float) -> float:
    """Linear between the two nearest of sorted values."""
    place = share * (len(rising) - 1)
    low = math.floor(place)
    high = min(low + 1, len(rising) - 1)
    return rising[low] + (rising[high] - rising[low]) * (place - low)


def read_lengths(folders: Sequence[Path]) -> list[Lengths]:
    """Of every model's answers to the held-out prompts."""
    found = [
        lengths(path.name.upper(), [len(row["text"]) for row in rows])
        for path in folders
        if (rows := list(rows_of(path / "evaluation.jsonl", "text")))
    ]
    return [each for each in found if each]


def read_curves(metrics: Sequence[Mapping[str, Any]]) -> list[Curve]:
    """Every numeric figure of the step rows, by round and stage."""
    stages: dict[str, list[Mapping[str, Any]]] = {}
    for row in metrics:
        if isinstance(row.get("step"), int) and "loss" in row:
            stages.setdefault(str(row["stage"]), []).append(row)
    return [Curve(name, figures_of(rows), rate_of(rows)) for name, rows in stages.items()]


def figures_of(rows: Sequence[Mapping[str, Any]]) -> dict[str, list[tuple[float, float]]]:
    found = {
        name: [(row["step"], row[name]) for row in rows if isinstance(row.get(name), int | float)]
        for name in CURVES
    }
    return {name: points for name, points in found.items() if points}


def rate_of(rows: Sequence[Mapping[str, Any]]) -> float | None:
    """Tokens that the steps were fed per second of them."""
    timed = [(row["num_tokens"], row["seconds"]) for row in rows if row.get("num_tokens")]
    seconds = sum(spent or 0.0 for _, spent in timed)
    return sum(tokens for tokens, _ in timed) / seconds if seconds else None


def is_measured(memory: Any) -> bool:
    """Whether these are bytes by name."""
    return isinstance(memory, dict) and all(
        isinstance(amount, int | float) for name, amount in memory.items() if "bytes" in name
    )


def read_phases(
    models: Sequence[Mapping[str, Any]],
    rounds: Sequence[Mapping[str, Any]],
    metrics: Sequence[Mapping[str, Any]],
    training_rates: Mapping[str, float | None],
) -> list[Phase]:
    """Where the time went, model by model: as the summary has it, else as finished stages wrote it
    down."""
    stages = {
        str(row["stage"]): float(row["seconds"])
        for row in metrics
        if "step" not in row and isinstance(row.get("seconds"), int | float)
    }
    by_model: dict[str, dict[str, float]] = {}
    for stage, spent in stages.items():
        model, _, name = stage.partition("/")
        by_model.setdefault(model.upper(), {})[name] = spent
    for measured in models:
        own = measured.get("seconds") or {}
        by_model[measured["name"]] = by_model.get(measured["name"], {}) | own
    for made in (made for made in rounds if made.get("seconds")):
        rest = {"measure": by_model.get(made["name"], {}).get("measure", 0.0)}
        by_model[made["name"]] = made["seconds"] | rest
    rates = {made["name"]: made.get("tokens_per_second") or {} for made in rounds}
    return [
        Phase(
            model,
            name.replace("_", " "),
            spent,
            rate(rates.get(model, {}), model, name, training_rates),
        )
        for model in sorted(by_model)
        for name, spent in by_model[model].items()
        if spent
    ]


def rate(
    rates: Mapping[str, float], model: str, phase: str, training: Mapping[str, float | None]
) -> float | None:
    """Sampling and judging share a batch and its rate."""
    if phase == "train":
        return training.get(f"{model.lower()}/train")
    return rates.get(phase, rates.get("sample_and_judge") if phase in ("sample", "judge") else None)
