"""The closing table: one row per model, from `summary.json`."""

from __future__ import annotations

from typing import Any

COLUMNS = ("model", "held-out score", "95 % interval", "judge agrees", "pairs", "length", "time")
ABSENT = "-"


def summary_table(summary: dict[str, Any]) -> str:
    """Aligned text. A figure the run does not have is shown as "-"."""
    rows = [COLUMNS, *model_rows(summary)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(COLUMNS))]
    return "\n".join("  ".join(align(row, widths)).rstrip() for row in rows)


def align(row: tuple[str, ...], widths: list[int]) -> list[str]:
    first, *rest = (cell.rjust(width) for cell, width in zip(row, widths, strict=True))
    return [first.strip().ljust(widths[0]), *rest]


def model_rows(summary: dict[str, Any]) -> list[tuple[str, ...]]:
    rounds = {made["name"]: made for made in summary.get("rounds") or []}
    return [model_row(model, rounds.get(model["name"], {})) for model in summary["models"]]


def model_row(model: dict[str, Any], made: dict[str, Any]) -> tuple[str, ...]:
    score = model.get("eval") or {}
    judge = model.get("judge") or {}
    # A round's time and that of measuring its model; M1 has no round but its own training.
    own = model.get("seconds") or {}
    spent = [*(made.get("seconds") or {}).values(), own.get("measure")]
    spent += [] if made else [own.get("train")]
    seconds = [value for value in spent if value is not None]
    return (
        str(model["name"]),
        figure(score.get("score"), ".2f"),
        interval(score.get("interval")),
        figure(judge.get("pairwise_accuracy"), ".1%"),
        figure(made.get("pairs"), "d"),
        figure(model.get("length_mean"), ".0f"),
        figure(sum(seconds) if seconds else None, ".0f", " s"),
    )


def figure(value: float | None, spec: str, unit: str = "") -> str:
    return ABSENT if value is None else f"{value:{spec}}{unit}"


def interval(bounds: list[float] | None) -> str:
    return ABSENT if not bounds or None in bounds else f"{bounds[0]:.2f} to {bounds[1]:.2f}"
