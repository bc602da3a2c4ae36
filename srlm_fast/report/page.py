"""One self-contained HTML page from a run folder.

It needs no network and no other file, and nothing that a model wrote is ever markup.
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from srlm_fast.records import InputError, write_text_atomic

from . import charts, paper
from .display import duration
from .examples import Packed, pack_rounds
from .gather import Lengths, Run, bins, equal_bins, read_run, unit_bins
from .judge_text import FIGURES
from .panels import collapse_panels, model_names, usual_legend
from .settings import settings
from .svg import minus

REPORT_FILE = "report.html"
TEMPLATE = "report.html.jinja"
KIND = "report"
MARK = f'<meta name="generator" content="srlm_fast {KIND}">'
WORDS = {
    "pair": "pair",
    "tie": "equal scores",
    "identical": "equal texts",
    "one_judged": "one answer judged",
    "not_judged": "no score read",
    "no_candidate": "no answer",
    "margin": "margin too small",
    "unread": "comparison not read",
    "cut": "cut at the longest length",
    "no_pair": "no pair",
    "not_decided": "not decided yet",
}


def write_report(folder: Path) -> Path:
    """Write `report.html` into a run folder and return its path.

    A run that is not finished gives a page of what is there. Raises InputError when `folder` is
    not a run folder.
    """
    path = folder / REPORT_FILE
    write_text_atomic(path, render(folder))
    return path


def is_run(folder: Path) -> bool:
    """Whether `config.json` is a run's (a model folder has one of another kind)."""
    try:
        made = json.loads((folder / "config.json").read_text("utf-8"))
        return isinstance(made["run"], dict)
    except (OSError, ValueError, TypeError, KeyError):
        return False


def load(folder: Path) -> Run:
    """Raises InputError when `folder` is not a run folder."""
    if not is_run(folder):
        raise InputError(f"{folder}: found no config.json of a run, wanted the folder of a run")
    return read_run(folder)


def render(folder: Path) -> str:
    """The page as text."""
    run = load(folder)
    packed = pack_rounds([(made.name, made.examples) for made in run.rounds if made.examples])
    return render_page(
        TEMPLATE,
        ("page.js", "browser.js"),
        KIND,
        run=run,
        packed=packed,
        data=as_data({"rounds": [round_data(each) for each in packed], "words": WORDS}),
        judge=judge_rows(run),
        contests=contest_rows(run),
        settings=settings(run.config),
        **run_charts(run),
    )


def round_data(made: Packed) -> dict[str, Any]:
    return {"name": made.name, "total": made.total, "kept": made.kept}


def run_charts(run: Run) -> dict[str, Any]:
    """Every chart of a run's page by the name that the template has for it."""
    names = model_names([run])
    counted = unit_bins if run.config.get("reward") == "pairwise" else bins
    scores = [(made.name, counted(made.scores), made) for made in run.rounds if made.scores]
    top = charts.highest_share([each for _, each, _ in scores])
    outcomes = outcome_rows(run)
    kinds = list(dict.fromkeys(kind for _, parts in outcomes for kind in parts))
    seconds = charts.seconds_by_model(run.phases)
    phases = list(dict.fromkeys(phase.name for phase in run.phases))
    humans = human_series(run)
    return {
        "score_chart": charts.by_model(
            [charts.Series("held-out score", score_points(run, names))],
            names,
            "mean score, 95 % interval",
            spec="{:.2f}".format,
        ),
        "judge_charts": judge_charts(run),
        "histograms": [
            (n, charts.histogram(b, f"scores of the round of {n}", top=top), made)
            for n, b, made in scores
        ],
        "margins": margin_charts(run),
        "outcome_chart": charts.stacks(outcomes, kinds, "prompts", " prompts"),
        "outcome_legend": charts.stack_legend(kinds),
        "lengths": length_rows(run),
        "length_chart": charts.quantiles(length_rows(run), "characters"),
        "curves": training_charts(run),
        "panels": collapse_panels(run),
        "panel_legend": usual_legend(),
        "human_chart": charts.outlines(humans, "share of texts", "perplexity of a text"),
        "human_legend": charts.line_legend(humans),
        "phase_chart": charts.stacks(seconds, phases, "seconds", " s"),
        "phase_legend": charts.stack_legend(phases),
        "memory_chart": charts.memory(run.memory),
        "memory_legend": charts.memory_kinds(run.memory),
    }


def score_points(run: Run, names: Sequence[str]) -> list[charts.Point]:
    found = [(model["name"], model.get("eval") or {}) for model in run.models]
    return [
        charts.Point(names.index(name), row["score"], interval_of(row.get("interval")))
        for name, row in found
        if row.get("score") is not None
    ]


def interval_of(bounds: Any) -> tuple[float, float] | None:
    return None if not bounds or None in bounds else (bounds[0], bounds[1])


def judge_points(run: Run, names: Sequence[str], figure_name: str) -> list[charts.Point]:
    found = [(model["name"], model.get("judge") or {}) for model in run.models]
    return [
        charts.Point(
            names.index(name), row[figure_name], interval_of(judge_interval(row, figure_name))
        )
        for name, row in found
        if row.get(figure_name) is not None
    ]


def judge_charts(run: Run) -> list[tuple[Any, list[Any]]]:
    """(chart, legend) of two figures of the run's judges, beside the paper's."""
    names = model_names([run])
    made = []
    for figure_name, label, spec in JUDGE_CHARTS:
        own = judge_points(run, names, figure_name)
        theirs = [
            charts.Point(names.index(name), row[figure_name])
            for name, row in paper.JUDGE.items()
            if name in names
        ]
        series = [charts.Series("this run", own), charts.Series("the paper", theirs, 1, True)]
        if own:
            chart = charts.by_model(series, names, label, spec=spec, bounded=True)
            made.append((chart, charts.legend(series)))
    return made


JUDGE_CHARTS: tuple[tuple[str, str, charts.Spec], ...] = (
    ("pairwise_accuracy", "pairwise accuracy, a tie is half", charts.percent),
    ("spearman", "Spearman", "{:.2f}".format),
)


def judge_rows(run: Run) -> list[dict[str, Any]]:
    """The judge table: what each row is, its kind, and a cell for each of FIGURES."""
    rows = [(m["name"], "ours", m["judge"]) for m in run.models if m.get("judge")]
    rows += [
        (f"judge of round {made.name}, on its own answers", "ours", made.row["judge_on_own"])
        for made in run.rounds
        if made.row.get("judge_on_own")
    ]
    rows += [("the longer answer is the better one", "control", row) for row in run.length_only]
    rows += [(f"the paper's {name}", "paper", row) for name, row in paper.JUDGE.items()]
    return [{"name": n, "kind": k, "cells": judge_cells(row)} for n, k, row in rows]


def judge_cells(row: Mapping[str, Any]) -> list[dict[str, Any]]:
    return [
        {
            "value": percent(row.get(name)) if "%" in spec else figure(row.get(name), spec),
            "interval": interval_words(judge_interval(row, name), spec),
            "n": n_of(row, name),
        }
        for name, _, spec in FIGURES
    ]


def contest_rows(run: Run) -> list[dict[str, Any]]:
    """Each model against the one before and against the first: shares of its wins, ties, losses."""
    names = [model["name"] for model in run.models]
    found = [
        (model, against, model.get(key) or {})
        for place, model in enumerate(run.models)
        for key, against in (("against_previous", names[place - 1]), ("against_first", names[0]))
        if key == "against_previous" or place > 1
    ]
    return [
        {
            "name": model["name"],
            "against": against,
            "shares": [row[kind] / row["n"] for kind in ("win", "tie", "loss")],
            "rates": [row, row.get("length_controlled") or {}],
            "prompts": row.get("prompts"),
        }
        for model, against, row in found
        if row.get("n")
    ]


def judge_interval(row: Mapping[str, Any], name: str) -> Any:
    if name == "pairwise_accuracy" and row.get("pairwise_interval"):
        return row["pairwise_interval"]
    return (row.get("intervals") or {}).get(name)


def interval_words(bounds: Any, spec: str) -> str:
    found = interval_of(bounds)
    if found is None:
        return ""
    if "%" in spec:
        return f"{100 * found[0]:.1f} to {100 * found[1]:.1f}"
    return f"{figure(found[0], spec)} to {figure(found[1], spec)}"


def n_of(row: Mapping[str, Any], name: str) -> Any:
    n = row.get("n")
    return n.get(name) if isinstance(n, dict) else n


def outcome_rows(run: Run) -> list[tuple[str, dict[str, float]]]:
    return [
        (made.name, {word(kind): float(n) for kind, n in made.outcomes.items()})
        for made in run.rounds
    ]


def word(kind: str) -> str:
    """A reason as the page says it."""
    return WORDS.get(kind, kind.replace("_", " "))


def margin_charts(run: Run) -> list[tuple[str, Any]]:
    """The margins of each round's pairs, all over the same bins."""
    made = [(each.name, each.margins) for each in run.rounds if each.margins]
    if not made:
        return []
    highest = max(max(values) for _, values in made)
    high = 1.0 if highest <= 1 else 5.0
    while high < highest:
        high *= 2
    found = [(name, equal_bins(values, 0.0, high)) for name, values in made]
    top = charts.highest_share([each for _, each in found])
    return [
        (name, charts.histogram(each, f"margins of the pairs of {name}", "pairs", top))
        for name, each in found
    ]


def length_rows(run: Run) -> list[Lengths]:
    """Held-out answers of each model, then each round's candidates and its pairs' two sides."""
    rounds = [
        each
        for made in run.rounds
        for each in (made.lengths, made.lengths_of("chosen"), made.lengths_of("rejected"))
    ]
    return [*run.answer_lengths, *(each for each in rounds if each)]


def training_charts(run: Run) -> list[tuple[str, Any, list[Any]]]:
    """(title, chart, legend) of every figure of training: DPO's rounds over each other, other
    trainings apart.
    """
    made = []
    for is_dpo, title in ((False, "SFT"), (True, "DPO")):
        found = [curve for curve in run.curves if curve.is_dpo == is_dpo]
        for label, names in CURVES:
            there = [name for name in names if any(name in curve.figures for curve in found)]
            series = [
                charts.Series(
                    curve_name(curve.name, name, there), curve.figures[name], style, i > 0
                )
                for style, curve in enumerate(found)
                for i, name in enumerate(there)
                if name in curve.figures
            ]
            chart = charts.curves(series, f"{title}: {label}")
            if chart is not None:
                made.append((f"{title}: {label}", chart, charts.line_legend(series)))
    return made


CURVES = (
    ("loss", ("loss", "held_out_loss")),
    ("reward margin", ("margin",)),
    ("share of pairs in the right order", ("accuracy",)),
    ("log-ratios to the reference, nats", ("chosen_logratio", "rejected_logratio")),
    ("gradient norm", ("grad_norm",)),
    ("learning rate", ("learning_rate",)),
)


def curve_name(stage: str, figure_name: str, names: Sequence[str]) -> str:
    """M2, or "M2 rejected" where a chart has several figures of a training."""
    model, _, rest = stage.partition("/")
    model = model.upper() if rest in ("", "train") else f"{model.upper()} {rest}"
    short = {"held_out_loss": "held-out", "loss": "training"}.get(
        figure_name, figure_name.removesuffix("_logratio")
    )
    return model if len(names) == 1 else f"{model} {short}"


def human_series(run: Run) -> list[charts.Series]:
    found = [(m["name"], (m.get("human_text") or {}).get("histogram")) for m in run.models]
    return [
        charts.Series(name, [(float(edge), int(n)) for edge, n in rows], style)
        for style, (name, rows) in enumerate(found)
        if rows
    ]


def render_page(name: str, scripts: Sequence[str], kind: str, **context: Any) -> str:
    """A page of a template. Its one script may run because the policy names its hash. kind: what
    the page says that it is."""
    from markupsafe import Markup

    here = Path(__file__).parent
    script = "\n".join((here / each).read_text("utf-8") for each in scripts)
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    page = template(name).render(
        **context,
        kind=kind,
        script=Markup(script),
        script_hash=digest,
        style=Markup((here / "page.css").read_text("utf-8")),
        figures=FIGURES,
    )
    # Half of a surrogate pair, which a byte-level model can write, has no place in UTF-8.
    return page.encode("utf-8", "replace").decode("utf-8")


def template(name: str) -> Any:
    # Imported here: a display alone needs no template engine.
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "figure": figure,
        "duration": duration,
        "percent": percent,
        "word": word,
        "thousands": thousands,
        "interval": interval_words,
    }
    return environment.get_template(name)


def figure(value: Any, spec: str = ".2f") -> str:
    """A number by its spec; "–" for None, anything else as it is."""
    if value is None:
        return "–"
    return minus(format(value, spec)) if isinstance(value, int | float) else str(value)


def percent(value: float | None) -> str:
    return "–" if value is None else f"{100 * value:.1f} %"


def thousands(value: Any) -> str:
    return f"{value:,}" if isinstance(value, int) else "–" if value is None else str(value)


def as_data(value: Any) -> Any:
    """JSON that is inert inside a script element: no `<`, `>`, `&` or line separator is left."""
    from markupsafe import Markup

    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"))
    for char in "<>&\u2028\u2029":
        text = text.replace(char, f"\\u{ord(char):04x}")
    return Markup(text)
