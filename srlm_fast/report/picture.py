"""The held-out scores of a run as a few lines of text: each model's interval on one axis."""

from __future__ import annotations

import math
from typing import Any

WIDE, NARROW = 56, 20  # columns of the axis
NAMED = 8  # columns of the names before it


def score_picture(summary: dict[str, Any], columns: int, unicode: bool) -> str:
    """A line for each model, "" where fewer than two have a score with an interval. columns: of the
    screen.
    """
    found = [(str(model["name"]), model.get("eval") or {}) for model in summary["models"]]
    figures = {name: (row.get("score"), *(row.get("interval") or ())) for name, row in found}
    rows = {name: row for name, row in figures.items() if len(row) == 3 and all(map(finite, row))}
    width = min(columns - NAMED - 2, WIDE)
    if len(rows) < 2 or width < NARROW:
        return ""
    low, high = min(row[1] for row in rows.values()), max(row[2] for row in rows.values())
    step = (high - low) / (width - 1) or 1.0
    lines = [
        f"{name[:NAMED]:{NAMED}}{drawn([round((v - low) / step) for v in row], unicode)}"
        for name, row in rows.items()
    ]
    first, last = f"{low:.2f}", f"{high:.2f}"
    axis = [first + last.rjust(width - len(first)), "held-out score, 95 % interval"]
    return "\n".join([*lines, *(" " * NAMED + line for line in axis)])


def finite(value: Any) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)


def drawn(places: list[int], unicode: bool) -> str:
    """An interval and the score in it. places: columns of the score, the low and the high end."""
    score, first, last = places
    begin, between, at, end = "├─●┤" if unicode else "|-o|"
    line = [" "] * first + [between] * (last - first + 1)
    line[first], line[last], line[score] = begin, end, at
    return "".join(line)
