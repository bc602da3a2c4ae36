"""The collapse panel: a small chart for each figure that is watched, and which a warning names."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from markupsafe import Markup

from .charts import SMALL, Point, Series, by_model, legend
from .gather import Run
from .svg import NUM_STYLES

HELD_OUT, CANDIDATES = "held-out answers", "a round's candidates"
Figure = Callable[[Mapping[str, Any]], Any]


ENTROPY, SCORE = "output entropy, nats/token", "judge's mean score of own answers"
PREFERENCE = "preference over the model before"  # the own score under `--reward pairwise`
LOGRATIOS = "log-ratios at the end, nats"
WARNED_AT = {  # title of the chart that a warning of `eval.alarms` is about
    "entropy_fall": ENTROPY,
    "entropy_trend": ENTROPY,
    "rejected_logratio": LOGRATIOS,
    "chosen_logratio": LOGRATIOS,
    "self_praise": SCORE,
}


@dataclass(frozen=True)
class Kind:
    """What one chart shows. keys: of `collapse`, a line each. hint: what to look for."""

    title: str
    keys: tuple[str, ...] = ()
    hint: str = ""


LESS_VARIED = "down: the same words again"
KINDS = (
    Kind(ENTROPY, ("entropy",), "down: surer of fewer words"),
    Kind("distinct-1", ("distinct_1",), LESS_VARIED),
    Kind("distinct-2", ("distinct_2",), LESS_VARIED),
    Kind("distinct-3", ("distinct_3",), LESS_VARIED),
    Kind("self-BLEU", ("self_bleu",), "up: answers are more alike"),
    Kind("different answers per prompt", ("unique",), "down: samples agree"),
    Kind("share that ends by itself", ("end_of_text",), "down: more are cut off"),
    Kind("share of repeated openings", ("repeated_openings",), "up: more begin alike"),
    Kind("mean length, characters", ("length_mean",), "a judge may favour length"),
    Kind("length, 5 / 50 / 95 %", ("length_p5", "length_p50", "length_p95"), "in characters"),
    Kind("mean length, tokens", ("tokens_mean",)),
)
PERPLEXITY = Kind("perplexity of human text", (), "up: people's text is forgotten")
OWN_SCORE = Kind(SCORE, (), "up alone, it praises itself")
OWN_PREFERENCE = Kind(PREFERENCE, (), "above even alone, it praises itself")
EVEN = 0.5
LOGRATIO = Kind(LOGRATIOS, (), "well: chosen above 0, rejected not far below")
NOT_DRAWN = ("n",)


@dataclass(frozen=True)
class Panel:
    """legend: of lines that are not the usual two."""

    title: str
    chart: Markup
    hint: str = ""
    legend: Sequence[tuple[str, Markup]] = ()
    warned: bool = False


def kinds_of(runs: Sequence[Run]) -> list[Kind]:
    """The agreed figures, then whatever else the runs have."""
    known = {key for kind in KINDS for key in kind.keys}
    found = [(m.get("collapse") or {}) for run in runs for m in run.models]
    found += [(made.row.get("collapse") or {}) for run in runs for made in run.rounds]
    other = dict.fromkeys(key for each in found for key in each if key not in known)
    named = [Kind(key.replace("_", " "), (key,)) for key in other if key not in NOT_DRAWN]
    return [*KINDS, *named]


def model_names(runs: Sequence[Run]) -> list[str]:
    """The columns of charts by model."""
    found = [m["name"] for run in runs for m in run.models]
    found += [made.name for run in runs for made in run.rounds]
    return sorted(dict.fromkeys(found), key=lambda name: (len(name), name))


def points(names: Sequence[str], rows: Sequence[Mapping[str, Any]], figure: Figure) -> list[Point]:
    """A point for each row that has the figure. names: the columns."""
    found = [(row["name"], figure(row)) for row in rows]
    return [Point(names.index(name), float(v)) for name, v in found if isinstance(v, int | float)]


def earlier(point: Point) -> Point:
    """The column of the model that wrote a round's candidates: the one before that it made."""
    return Point(max(point.place - 1, 0), point.value)


def of_collapse(key: str) -> Figure:
    return lambda row: (row.get("collapse") or {}).get(key)


def score_mean(row: Mapping[str, Any]) -> Any:
    return row.get("score_mean")


def within(group: str, key: str) -> Figure:
    return lambda row: (row.get(group) or {}).get(key)


def collapse_panels(run: Run) -> list[Panel]:
    """All that is watched of one run."""
    names, rounds = model_names([run]), [made.row | {"name": made.name} for made in run.rounds]
    made = [(kind, collapse_series(run, kind, names, rounds)) for kind in kinds_of([run])]
    made.append((
        PERPLEXITY,
        [
            Series(title, points(names, run.models, within("human_text", key)), style)
            for title, key, style in (("mean", "perplexity", 0), ("95 %", "perplexity_p95", 1))
        ],
    ))  # fmt: skip
    made.append(own_score(run, names, rounds))
    made.append((
        LOGRATIO,
        [
            Series(key, points(names, rounds, within("logratios", key)), style)
            for style, key in enumerate(("chosen", "rejected", "margin"))
        ],
    ))  # fmt: skip
    return [panel for kind, series in made if (panel := drawn(run, kind, series, names))]


def own_score(
    run: Run, names: Sequence[str], rounds: Sequence[Mapping[str, Any]]
) -> tuple[Kind, list[Series]]:
    """A preference is over another model each time: a line at the same height praises on."""
    own = points(names, run.models, within("own_score", "score"))
    if any(within("own_score", "kind")(model) == "preference" for model in run.models):
        even = Series("even", [Point(point.place, EVEN) for point in own], 1, dashed=True)
        return OWN_PREFERENCE, [Series("P(its own is better)", own), even]
    candidates = [earlier(p) for p in points(names, rounds, score_mean)]
    return OWN_SCORE, [Series(HELD_OUT, own), Series(CANDIDATES, candidates, 1, dashed=True)]


def collapse_series(
    run: Run, kind: Kind, names: Sequence[str], rounds: Sequence[Mapping[str, Any]]
) -> list[Series]:
    held_out = [
        Series(key_name(kind, key), points(names, run.models, of_collapse(key)), style)
        for style, key in zip((2, 0, 3) if len(kind.keys) > 1 else (0,), kind.keys, strict=True)
    ]
    if len(kind.keys) > 1:
        return held_out
    candidates = [earlier(p) for p in points(names, rounds, of_collapse(kind.keys[0]))]
    return [*held_out, Series(CANDIDATES, candidates, 1, dashed=True)]


def key_name(kind: Kind, key: str) -> str:
    """A line's name: that of all, or where there are several the percentile."""
    return HELD_OUT if len(kind.keys) == 1 else f"{key.rpartition('p')[2]} %"


def usual_legend() -> list[tuple[str, Markup]]:
    """Of the charts that show answers and candidates."""
    return legend([Series(HELD_OUT, ()), Series(CANDIDATES, (), 1, dashed=True)])


def drawn(run: Run, kind: Kind, series: Sequence[Series], names: Sequence[str]) -> Panel | None:
    chart = by_model(series, names, "", SMALL, title=kind.title)
    usual = any(one.name == CANDIDATES for one in series)
    entries = [] if usual else legend([one for one in series if one.points])
    if chart is None:
        return None
    return Panel(kind.title, chart, kind.hint, entries, is_warned(run, kind))


def is_warned(run: Run, kind: Kind) -> bool:
    title = SCORE if kind is OWN_PREFERENCE else kind.title
    return any(WARNED_AT.get(warning.name) == title for warning in run.warnings)


def compared_panels(runs: Sequence[tuple[str, Run]]) -> list[Panel]:
    """The figures of the models of several runs, a line for each run."""
    names = model_names([run for _, run in runs])
    kinds = [
        (Kind(f"length, {key_name(kind, key)}", hint=kind.hint) if kind.keys[1:] else kind, key)
        for kind in kinds_of([run for _, run in runs])
        for key in kind.keys
    ]
    figures = [(kind, of_collapse(key)) for kind, key in kinds]
    figures.append((PERPLEXITY, within("human_text", "perplexity")))
    made = []
    for kind, figure in figures:
        series = run_series([(name, points(names, run.models, figure)) for name, run in runs])
        chart = by_model(series, names, "", SMALL, title=kind.title)
        made += [Panel(kind.title, chart, kind.hint)] if chart is not None else []
    return made


def run_series(runs: Sequence[tuple[str, Sequence[Any]]]) -> list[Series]:
    """A line for each of several runs; behind the sixth they are dashed."""
    return [Series(name, found, i, i >= NUM_STYLES) for i, (name, found) in enumerate(runs)]
