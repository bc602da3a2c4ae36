"""Several runs on one page, side by side."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from srlm_fast.records import InputError, write_text_atomic

from . import charts
from .gather import Lengths, Run
from .page import (
    JUDGE_CHARTS,
    contest_rows,
    curve_name,
    judge_cells,
    judge_points,
    load,
    outcome_rows,
    render_page,
    score_points,
)
from .panels import compared_panels, model_names, run_series
from .settings import Setting, settings

TEMPLATE = "compare.html.jinja"
KIND = "comparison"
MARK = f'<meta name="generator" content="srlm_fast {KIND}">'
CURVES = (
    ("loss", "loss"),
    ("margin", "reward margin"),
    ("chosen_logratio", "log-ratio of the chosen, nats"),
    ("rejected_logratio", "log-ratio of the rejected, nats"),
)
HEAD = 2000  # characters among which a page says what it is
Named = Sequence[tuple[str, Run]]


def write_comparison(folders: Sequence[Path], path: Path) -> Path:
    """Write one page of several runs to `path` and return it. Raises InputError for a folder that
    is no run or is given twice, and where `path` holds anything but an earlier comparison.
    """
    check_different(folders)
    check_ours(path, MARK)
    write_text_atomic(path, render_comparison(folders))
    return path


def check_different(folders: Sequence[Path]) -> None:
    """Raise InputError where a folder is given twice."""
    seen: dict[Path, Path] = {}
    for folder in folders:
        before = seen.setdefault(folder.resolve(), folder)
        if before is not folder:
            also = "" if str(before) == str(folder) else f", as {before} too"
            raise InputError(f"{folder}: found the same run twice{also}, wanted different runs")


def check_ours(path: Path, mark: str) -> None:
    """Raise InputError unless `path` is free or a page with the mark, and its folder is there."""
    if path.is_dir():
        raise InputError(f"--out {path}: found a folder, wanted the name of a file")
    if not path.absolute().parent.is_dir():
        raise InputError(f"--out {path}: found no folder {path.parent}, wanted one that is there")
    if path.exists():
        with open(path, encoding="utf-8", errors="replace") as file:
            if mark not in file.read(HEAD):
                raise InputError(
                    f"--out {path}: found a file that is no such page of srlm_fast, wanted one "
                    "or a new name"
                )


def render_comparison(folders: Sequence[Path]) -> str:
    """The page as text."""
    runs = named([load(folder) for folder in folders])
    return render_page(
        TEMPLATE,
        ("page.js",),
        KIND,
        runs=runs,
        legend_of_runs=charts.legend(run_series([(name, ()) for name, _ in runs])),
        scorers={run.judged_by for _, run in runs} - {None},
        names=model_names([run for _, run in runs]),
        judge=judge_rows(runs),
        contests=contests(runs),
        lengths=lengths(runs),
        differences=differences(runs),
        **comparison_charts(runs),
    )


def named(runs: Sequence[Run]) -> list[tuple[str, Run]]:
    """Each run under its folder's name, with as many folders above it as tell them all apart."""
    paths = [run.folder.resolve().parts for run in runs]
    depth = 1
    while len({parts[-depth:] for parts in paths}) < len(set(paths)):
        depth += 1
    return [("/".join(parts[-depth:]), run) for run, parts in zip(runs, paths, strict=True)]


def comparison_charts(runs: Named) -> dict[str, Any]:
    names = model_names([run for _, run in runs])
    scores = run_series([(name, score_points(run, names)) for name, run in runs])
    outcomes = [
        (f"{short(name)} {round_name}", parts)
        for name, run in runs
        for round_name, parts in outcome_rows(run)
    ]
    kinds = list(dict.fromkeys(kind for _, parts in outcomes for kind in parts))
    seconds = [(short(name), seconds_by_phase(run)) for name, run in runs]
    phases = list(dict.fromkeys(phase for _, parts in seconds for phase in parts))
    return {
        "score_chart": charts.by_model(
            scores, names, "mean score, 95 % interval", spec="{:.2f}".format
        ),
        "score_legend": charts.run_legend(scores),
        "judge_charts": judge_charts(runs, names),
        "length_chart": charts.quantiles(
            [replace(row, name=f"{short(name)} {row.name}") for name, row in lengths(runs)],
            "characters",
        ),
        "curves": training_charts(runs),
        "outcome_chart": charts.stacks(outcomes, kinds, "prompts", " prompts"),
        "outcome_legend": charts.stack_legend(kinds),
        "panels": compared_panels(runs),
        "panel_legend": charts.run_legend(run_series([(name, watched(run)) for name, run in runs])),
        "phase_chart": charts.stacks(seconds, phases, "seconds", " s"),
        "phase_legend": charts.stack_legend(phases),
    }


def short(name: str) -> str:
    """The end of a name, which differs more often than its beginning."""
    return name if len(name) <= 16 else f"…{name[-15:]}"


def judge_charts(runs: Named, names: Sequence[str]) -> list[tuple[Any, list[Any]]]:
    """(chart, legend) of two figures of the runs' judges."""
    made = []
    for figure_name, label, spec in JUDGE_CHARTS:
        series = run_series([(name, judge_points(run, names, figure_name)) for name, run in runs])
        chart = charts.by_model(series, names, label, spec=spec, bounded=True)
        made += [(chart, charts.run_legend(series))] if chart is not None else []
    return made


def contests(runs: Named) -> list[dict[str, Any]]:
    """Each model against the first of its own run."""
    return [
        row | {"run": name}
        for name, run in runs
        for row in contest_rows(run)
        if row["against"] == run.models[0]["name"]
    ]


def lengths(runs: Named) -> list[tuple[str, Lengths]]:
    """Of each model's answers to its run's held-out prompts."""
    return [(name, row) for name, run in runs for row in run.answer_lengths]


def training_charts(runs: Named) -> list[tuple[str, Any, list[Any]]]:
    """(title, chart, legend) of the main figures of each training, a line for each run."""
    stages = dict.fromkeys(curve.name for _, run in runs for curve in run.curves)
    made = []
    for stage in sorted(stages, key=lambda name: (len(name.partition("/")[0]), name)):
        for figure_name, label in CURVES:
            title = f"{curve_name(stage, figure_name, [figure_name])}: {label}"
            series = run_series([(n, points_of(run, stage, figure_name)) for n, run in runs])
            chart = charts.curves(series, title)
            if chart is not None:
                made.append(
                    (title, chart, charts.run_legend([s for s in series if s.points], True))
                )
    return made


def points_of(run: Run, stage: str, figure_name: str) -> Sequence[tuple[float, float]]:
    """(step, value); of losses those of SFT alone, as DPO's says little beside its margin."""
    found = next((curve for curve in run.curves if curve.name == stage), None)
    if found is None or (figure_name == "loss" and found.is_dpo):
        return ()
    return found.figures.get(figure_name, ())


def judge_rows(runs: Named) -> list[dict[str, Any]]:
    """A row for each model of each run."""
    return [
        {"run": name, "model": model["name"], "cells": judge_cells(model["judge"])}
        for name, run in runs
        for model in run.models
        if model.get("judge")
    ]


def watched(run: Run) -> list[dict[str, Any]]:
    """The models that the charts of collapse have figures of."""
    return [m for m in run.models if m.get("collapse") or m.get("human_text")]


def seconds_by_phase(run: Run) -> dict[str, float]:
    """Over all models."""
    spent: dict[str, float] = defaultdict(float)
    for phase in run.phases:
        spent[phase.name] += phase.seconds
    return dict(spent)


def differences(runs: Named) -> list[tuple[str, str, list[str | None]]]:
    """(option or version, what it is, its value in each run) of those in which the runs differ;
    None where a run leaves it at nothing.
    """
    tables = [options(run) for _, run in runs]
    help = {name: one.help for table in tables for name, one in table.items()}
    rows = [(name, [table.get(name) for table in tables]) for name in help]
    found = [(name, [None if one is None else one.words for one in each]) for name, each in rows]
    return [(name, help[name], words) for name, words in found if len(set(words)) > 1]


def options(run: Run) -> dict[str, Setting]:
    given = [one for group in settings(run.config).values() for one in group]
    versions = [Setting("", f"version of {name}", str(v)) for name, v in run.versions.items()]
    return {one.name: one for one in given + versions}
