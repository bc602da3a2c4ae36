"""The judge measured alone, as text: its figures with the length-only control beside them."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from .table import ABSENT, align, figure

FIGURES = (
    ("pairwise_accuracy", "pairwise accuracy, a tie is half", ".1%"),
    ("pairwise_untied", "pairwise accuracy, ties left out", ".1%"),
    ("ties", "ties of the judge", ".1%"),
    ("five_best", "top score given to the best", ".1%"),
    ("exact_match", "whole order right", ".1%"),
    ("spearman", "Spearman", ".3f"),
    ("kendall", "Kendall tau-b", ".3f"),
)
HEAD = ("", "judge", "95 % interval", "n", "length only")


def judge_text(figures: dict[str, Any]) -> str:
    """Tables and the lines around them, of the figures that the command writes."""
    rubric = figures["rubric"]
    lines = [
        "",
        f"{figures['model']} as judge ({figures['judge']}, {figures['judge_samples']} per answer, "
        f"rubric {rubric['version']} {rubric['digest']})",
        *table([HEAD, *figure_rows(figures)]),
    ]
    if figures["subsets"]:
        lines += ["", *table([HEAD, *subset_rows(figures["subsets"])])]
    if figures["sections"]:
        lines += ["", *table([("section", "judge", "length only"), *section_rows(figures)])]
    return "\n".join([*lines, "", *unread(figures)])


def figure_rows(figures: dict[str, Any]) -> list[tuple[str, ...]]:
    return [
        (
            title,
            figure(figures[name], spec),
            interval(figures["intervals"][name], spec),
            str(figures["n"][name]),
            figure(figures["length_only"].get(name), spec),
        )
        for name, title, spec in FIGURES
    ]


def subset_rows(subsets: dict[str, dict[str, Any]]) -> list[tuple[str, ...]]:
    """Pairwise accuracy of each subset."""
    rows = []
    for name, made in subsets.items():
        title, (_, *cells) = f"pairwise accuracy, {name}", figure_rows(made)[0]
        rows.append((title, *cells))
    return rows


def section_rows(figures: dict[str, Any]) -> list[tuple[str, ...]]:
    control = figures["sections_length_only"]
    return [
        (name, figure(score, ".1%"), figure(control.get(name), ".1%"))
        for name, score in figures["sections"].items()
    ]


def interval(bounds: list[float] | None, spec: str) -> str:
    return ABSENT if bounds is None else f"{bounds[0]:{spec}} to {bounds[1]:{spec}}"


def unread(figures: dict[str, Any]) -> list[str]:
    """What took no part: judgements without a score by status, and rows that were too long."""
    statuses = figures["judgements"]
    total = sum(statuses.values())
    missing = [f"{name.replace('_', ' ')} {n}" for name, n in statuses.items() if name != "ok"]
    lines = [f"judgements: {total}, without a score: {', '.join(missing) or 'none'}"]
    lines += [f"answers without any score: {figures['unjudged']}"] if figures["unjudged"] else []
    if figures.get("audited"):
        lines.append(
            f"stopped at the first score line; of {figures['audited']} judgements that went on "
            f"{figures['differ']} ended with another score"
        )
    if figures["too_long"]:
        lines.append(f"rows longer than the model's context: {figures['too_long']}")
    return lines


def table(rows: Iterable[tuple[str, ...]]) -> list[str]:
    cells = list(rows)
    widths = [max(len(row[column]) for row in cells) for column in range(len(cells[0]))]
    return ["  ".join(align(row, widths)).rstrip() for row in cells]
