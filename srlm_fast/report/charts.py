"""The charts of the page. Each returns Markup, or None when there is nothing to draw.

Bars start at 0. Points with intervals do not have to: their axes say where they start.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from statistics import fmean
from typing import Any

from markupsafe import Markup

from .gather import QUANTILES, Bins, Lengths, Phase
from .svg import (
    BLANK,
    NUM_STYLES,
    Frame,
    Scale,
    figure,
    group,
    legend_block,
    legend_swatch,
    line,
    line_swatch,
    marker,
    number,
    percent,
    polyline,
    rect,
    text,
    ticks,
    x_axis,
    y_axis,
)

MOST_POINTS = 300
SMALL = Frame(width=230, height=126, left=40, right=10, top=10, bottom=26)
PLAIN = Frame()
UNNAMED = Frame(height=190, top=10)  # of a chart whose heading says what it shows
Spec = Callable[[float], str]


@dataclass(frozen=True)
class Point:
    """A model's figure with its interval. place: the model's column."""

    place: int
    value: float
    interval: tuple[float, float] | None = None

    @property
    def span(self) -> tuple[float, float]:
        return self.interval or (self.value, self.value)


@dataclass(frozen=True)
class Series:
    """One line of a chart. style: its colour, dash and marker."""

    name: str
    points: Sequence[Any]  # Point, or (x, y)
    style: int = 0
    dashed: bool = False


def by_model(
    series: Sequence[Series],
    columns: Sequence[str],
    label: str,
    frame: Frame = PLAIN,
    spec: Spec = number,
    title: str = "",
    bounded: bool = False,
) -> Markup | None:
    """A figure against M1, M2, ...; several lines stand beside each other in a column, a lone one
    of a large chart has its figures at its points. title: what it shows, where `label` does not say
    it. bounded: a share or a correlation, whose axis ends at 1 and has no room for figures above.
    """
    series = [one for one in map(drawable, series) if one.points]
    if not series:
        return None
    spans = [bound for one in series for point in one.points for bound in point.span]
    values = len(series) == 1 and frame is not SMALL and not bounded
    room = 0.15 * (max(spans) - min(spans)) if values else 0.0
    marks = ticks(min(spans), max(spans) + room, 3 if frame is SMALL else 4)
    x, y = frame.columns(len(columns)), frame.y(marks[0], marks[-1])
    gap = min(12.0, 0.6 * (frame.end - frame.left) / len(columns) / len(series))
    parts = [y_axis(frame, marks, y, label, spec)]
    parts += [text(x(place), frame.height - 6, name) for place, name in enumerate(columns)]
    for order, one in enumerate(series):
        shift = gap * (order - (len(series) - 1) / 2)
        place = {point.place: x(point.place) + shift for point in one.points}
        parts.append(polyline([(place[p.place], y(p.value)) for p in one.points], line_class(one)))
        parts += [point_mark(one, p, place[p.place], y, columns, spec) for p in one.points]
        if values:
            parts += [
                text(place[p.place], y(p.span[1]) - 7, spec(p.value), "value") for p in one.points
            ]
    return figure(in_words(title or label, series, columns, spec), frame, parts)


def drawable(one: Series) -> Series:
    """Without points that are no number, as a training that went wrong leaves them."""
    kept = [point for point in one.points if all(map(math.isfinite, (point.value, *point.span)))]
    return Series(one.name, kept, one.style, one.dashed)


def in_words(title: str, series: Sequence[Series], columns: Sequence[str], spec: Spec) -> str:
    """A chart by model for who does not see it."""
    lines = (
        ", ".join([one.name, *(f"{columns[p.place]} {spec(p.value)}" for p in one.points)])
        for one in series
    )
    return f"{title}: {'; '.join(lines)}"


def line_class(one: Series) -> str:
    return f"line s{one.style % NUM_STYLES}" + (" dashed" if one.dashed else "")


def point_mark(
    one: Series, point: Point, x: float, y: Scale, columns: Sequence[str], spec: Spec
) -> Markup:
    low, high = point.span
    said = f"{one.name}, {columns[point.place]}: {spec(point.value)}"
    whisker: list[Markup] = []
    if point.interval:
        said += f", 95 % interval {spec(low)} to {spec(high)}"
        kind = f"whisker s{one.style % NUM_STYLES}"
        ends = [line(x - 4, y(v), x + 4, y(v), kind) for v in (low, high)]
        whisker = [line(x, y(low), x, y(high), kind), *ends]
    return group(said, *whisker, marker(x, y(point.value), one.style))


def histogram(
    bins: Bins, label: str, unit: str = "candidates", top: float | None = None
) -> Markup | None:
    """Shares of equal bins given by their lower edges, with the mean of their middles. top: the
    highest share on the axis, so that several can be compared.
    """
    total = sum(count for _, count in bins)
    if not total:
        return None
    frame, step = Frame(height=170), bins[1][0] - bins[0][0]
    marks = ticks(0.0, top or max(count for _, count in bins) / total, 3)
    x, y = frame.x(bins[0][0], bins[-1][0] + step), frame.y(0.0, marks[-1])
    bars = [
        rect(
            x(edge) + 0.5,
            y(count / total),
            x(edge + step) - x(edge) - 1,
            frame.floor - y(count / total),
            "bar s0",
            f"{edge:g} to {edge + step:g}: {count} {unit} ({percent(count / total)})",
        )
        for edge, count in bins
        if count
    ]
    axis = x_axis(frame, ticks(bins[0][0], bins[-1][0] + step, 5), x, "", number)
    return figure(label, frame, [y_axis(frame, marks, y, f"share of {unit}", percent), *bars, axis])


def highest_share(all_bins: Sequence[Bins]) -> float:
    """The largest share of a bin in any of several histograms."""
    shares = [max(n for _, n in bins) / (sum(n for _, n in bins) or 1) for bins in all_bins if bins]
    return max(shares, default=1.0)


def outlines(series: Sequence[Series], label: str, x_label: str) -> Markup | None:
    """Histograms over each other, as outlines of their shares. points: (lower edge, count), the
    bins as wide as each other on the axis, which is logarithmic; bins behind the last text are
    left out.
    """
    series = [logarithmic(one) for one in series if sum(count for _, count in one.points)]
    if not series:
        return None
    frame = Frame(bottom=38)
    edges = sorted({edge for one in series for edge, _ in one.points})
    width = min((b - a for a, b in pairwise(edges)), default=1.0)
    last = max(edge for one in series for edge, count in one.points if count)
    totals = [sum(count for _, count in one.points) for one in series]
    tallest = max(n / t for one, t in zip(series, totals, strict=True) for _, n in one.points)
    marks, across = ticks(0.0, tallest, 3), powers(edges[0], last + width)
    x, y = frame.x(edges[0], last + width), frame.y(0.0, marks[-1])
    parts = [y_axis(frame, marks, y, label, percent)]
    parts.append(x_axis(frame, across, x, x_label, lambda v: number(2**v)))
    for one, total in zip(series, totals, strict=True):
        steps = [
            point
            for edge, count in one.points
            if edge <= last
            for point in ((x(edge), y(count / total)), (x(edge + width), y(count / total)))
        ]
        parts.append(polyline(steps, line_class(one), one.name))
    return figure(label, frame, parts)


def logarithmic(one: Series) -> Series:
    """With the binary logarithm of its lower edges."""
    points = [(math.log2(max(edge, 1.0)), count) for edge, count in one.points]
    return Series(one.name, points, one.style, one.dashed)


def powers(low: float, high: float) -> list[float]:
    """At most six whole numbers from `low` to `high`, evenly spread."""
    step = max(1, math.ceil((high - low) / 6))
    return [float(v) for v in range(math.ceil(low), math.floor(high) + 1, step)]


def curves(series: Sequence[Series], title: str) -> Markup | None:
    """Figures against the optimizer step. title: of the chart, which a heading above it says."""
    finite = [
        Series(one.name, kept, one.style, one.dashed)
        for one in series
        if len(kept := [(s, v) for s, v in one.points if math.isfinite(v)]) > 1
    ]
    if not finite:
        return None
    frame, thin = UNNAMED, [thinned(list(one.points)) for one in finite]
    values = [value for points in thin for _, value in points]
    last = max(step for points in thin for step, _ in points)
    marks, across = ticks(min(values), max(values)), ticks(0, last, 5)
    x, y = frame.x(0, max(last, 1)), frame.y(marks[0], marks[-1])
    parts = [y_axis(frame, marks, y, "", number)]
    parts.append(x_axis(frame, [t for t in across if t <= last], x, "", number))
    if marks[0] < 0 < marks[-1]:
        parts.append(line(frame.left, y(0), frame.end, y(0), "zero"))
    for one, points in zip(finite, thin, strict=True):
        said = f"{one.name}: from {points[0][1]:.4g} to {points[-1][1]:.4g}"
        parts.append(polyline([(x(s), y(v)) for s, v in points], line_class(one), said))
    said = "; ".join(f"{one.name} ends at {one.points[-1][1]:.4g}" for one in finite)
    return figure(f"{title}: {said}", frame, parts)


def thinned(points: list[tuple[float, float]]) -> list[tuple[float, float]]:
    """At most MOST_POINTS: means over equal stretches of steps."""
    size = -(-len(points) // MOST_POINTS)
    chunks = [points[start : start + size] for start in range(0, len(points), size)]
    return [(fmean(s for s, _ in chunk), fmean(v for _, v in chunk)) for chunk in chunks]


def stacks(
    rows: Sequence[tuple[str, Mapping[str, float]]], kinds: Sequence[str], label: str, unit: str
) -> Markup | None:
    """A horizontal bar for each row, made of its parts. kinds: the parts' names, by colour."""
    rows = [(name, parts) for name, parts in rows if sum(parts.values())]
    if not rows:
        return None
    wide = min(max(len(name) for name, _ in rows), 16) * 6.5 + 12
    frame = Frame(height=34 * len(rows) + 50, left=wide, right=46)
    marks = ticks(0.0, max(sum(parts.values()) for _, parts in rows), 4)
    x = frame.x(0.0, marks[-1])
    drawn = [line(x(v), frame.top - 4, x(v), frame.floor, "grid") for v in marks]
    drawn += [text(x(v), frame.floor + 15, number(v)) for v in marks]
    for index, (name, parts) in enumerate(rows):
        drawn.append(stack(name, parts, kinds, x, frame.top + 34 * index, unit))
    return figure(label, frame, [*drawn, text(2, 12, label, "axis", "start")])


def stack(
    name: str,
    parts: Mapping[str, float],
    kinds: Sequence[str],
    x: Callable[[float], float],
    top: float,
    unit: str,
) -> Markup:
    short = name if len(name) <= 16 else f"{name[:15]}…"
    drawn, start = [text(2, top + 16, short, "tick", "start")], 0.0
    for kind in kinds:
        amount = parts.get(kind, 0.0)
        if amount:
            said = f"{name}, {kind}: {number(amount)}{unit}"
            width = x(start + amount) - x(start)
            drawn.append(rect(x(start), top, width, 24, f"bar {fill(kinds, kind)}", said))
            start += amount
    return group(
        "", *drawn, text(x(start) + 5, top + 16, number(round(start, 1)), "value", "start")
    )


def fill(kinds: Sequence[str], kind: str) -> str:
    """The colour of one of several parts; behind the sixth they are paler."""
    index = list(kinds).index(kind)
    return f"s{index % NUM_STYLES}" + (" pale" if index >= NUM_STYLES else "")


def quantiles(rows: Sequence[Lengths], label: str) -> Markup | None:
    """For each row a line from the 5th to the 95th percentile, a box over the middle half, a mark
    at the median and a dot at the mean.
    """
    if not rows:
        return None
    longest = max(len(row.name) for row in rows)
    frame = Frame(height=26 * len(rows) + 50, left=max(104, longest * 6 + 12), right=14)
    marks = ticks(0.0, max(row.quantiles[-1] for row in rows), 4)
    x = frame.x(0.0, marks[-1])
    drawn = [line(x(v), frame.top - 4, x(v), frame.floor, "grid") for v in marks]
    drawn += [text(x(v), frame.floor + 15, number(v)) for v in marks]
    for index, row in enumerate(rows):
        drawn.append(box(row, x, frame.top + 26 * index + 10))
    return figure(label, frame, [*drawn, text(2, 12, label, "axis", "start")])


def box(row: Lengths, x: Callable[[float], float], middle: float) -> Markup:
    low, first, median, third, high = map(x, row.quantiles)
    named = zip(QUANTILES, row.quantiles, strict=True)
    said = f"{row.name}: mean {row.mean:.1f}, " + ", ".join(
        f"{100 * q:.0f} % {value:.4g}" for q, value in named
    )
    return group(
        f"{said}; {row.n} answers",
        text(2, middle + 4, row.name, "tick", "start"),
        line(low, middle, high, middle, "whisker s0"),
        rect(first, middle - 8, third - first, 16, "box s0"),
        line(median, middle - 8, median, middle + 8, "median"),
        marker(x(row.mean), middle, 1, 3),
    )


MEMORY = (
    ("weights", "weights_bytes"),
    ("packed weights", "packed_bytes"),
    ("keys and values", "kv_bytes"),
    ("optimizer", "optimizer_bytes"),
)
OTHER = "other"
GIB = 2**30


def memory(rows: Sequence[Mapping[str, Any]]) -> Markup | None:
    """A column for each phase in order: what is held, by kind, and a line at the peak."""
    rows = [row for row in rows if row.get("phase") != "end"]
    if not rows:
        return None
    frame = Frame(width=720, height=250, left=48)
    marks = ticks(0.0, max(highest_bytes(row["memory"]) for row in rows) / GIB, 4)
    x, y = frame.columns(len(rows)), frame.y(0.0, marks[-1])
    width = min(40.0, 0.8 * (frame.end - frame.left) / len(rows))
    parts = [y_axis(frame, marks, y, "GiB", number)]
    parts += [column(row, x(i) - width / 2, width, y) for i, row in enumerate(rows)]
    return figure("Memory by phase", frame, [*parts, *model_names(frame, rows, x)])


def model_names(
    frame: Frame, rows: Sequence[Mapping[str, Any]], x: Callable[[float], float]
) -> list[Markup]:
    """The models below their columns, parted by lines."""
    found = [str(row.get("stage", "")).partition("/") for row in rows]
    names = [first.upper() if rest else first for first, _, rest in found]
    drawn = []
    for start in [i for i, name in enumerate(names) if i == 0 or names[i - 1] != name]:
        stop = next((i for i in range(start, len(names)) if names[i] != names[start]), len(names))
        middle, edge = (x(start) + x(stop - 1)) / 2, (x(start) + x(start - 1)) / 2
        drawn.append(text(middle, frame.height - 8, names[start]))
        if start:
            drawn.append(line(edge, frame.top, edge, frame.floor + 6, "zero"))
    return drawn


def column(
    row: Mapping[str, Any], left: float, width: float, y: Callable[[float], float]
) -> Markup:
    held, peak = row["memory"], row["memory"].get("peak_bytes", 0)
    drawn, below = [], 0.0
    for kind, amount in held_by_kind(held).items():
        top = below + amount
        index = [name for name, _ in MEMORY].index(kind) if kind != OTHER else NUM_STYLES - 1
        drawn.append(
            rect(left, y(top / GIB), width, y(below / GIB) - y(top / GIB), f"bar s{index}")
        )
        below = top
    drawn.append(line(left - 1, y(peak / GIB), left + width + 1, y(peak / GIB), "median"))
    kinds = ", ".join(f"{k} {gib(v)}" for k, v in held_by_kind(held).items())
    said = f"{row.get('stage')}, {row.get('phase')}: peak {gib(peak)}; {kinds}"
    return group(said, *drawn)


def held_by_kind(held: Mapping[str, Any]) -> dict[str, float]:
    """Bytes by kind; what is held beyond the named ones is OTHER."""
    named = {kind: float(held.get(key) or 0) for kind, key in MEMORY}
    other = float(held.get("held_bytes") or 0) - sum(named.values())
    return {kind: amount for kind, amount in {**named, OTHER: other}.items() if amount > 0}


def highest_bytes(held: Mapping[str, Any]) -> float:
    return max(sum(held_by_kind(held).values()), float(held.get("peak_bytes") or 0))


def gib(value: float) -> str:
    return f"{value / GIB:.2f} GiB" if value >= GIB / 10 else f"{value / 2**20:.1f} MiB"


def memory_kinds(rows: Sequence[Mapping[str, Any]]) -> list[tuple[str, Markup]]:
    """The legend of `memory`: kinds that occur."""
    there = {kind for row in rows for kind in held_by_kind(row["memory"])}
    kinds = [(name, f"bar s{index}") for index, (name, _) in enumerate(MEMORY)]
    return [
        (name, legend_block(kind))
        for name, kind in [*kinds, (OTHER, f"bar s{NUM_STYLES - 1}")]
        if name in there
    ]


def legend(series: Sequence[Series]) -> list[tuple[str, Markup]]:
    """(name, swatch) of each line; none for a lone one."""
    if len(series) < 2:
        return []
    return [(one.name, legend_swatch(one.style, one.dashed)) for one in series]


def line_legend(series: Sequence[Series]) -> list[tuple[str, Markup]]:
    """As `legend`, of lines without markers."""
    return [(one.name, line_swatch(one.style, one.dashed)) for one in series if len(series) > 1]


def run_legend(series: Sequence[Series], plain: bool = False) -> list[tuple[str, Markup]]:
    """(name, swatch) of each run, also of a lone one; a run without a point says so. plain: of
    lines without markers.
    """
    swatch = line_swatch if plain else legend_swatch
    return [
        (one.name, swatch(one.style, one.dashed))
        if one.points
        else (f"{one.name}: no figures yet", BLANK)
        for one in series
    ]


def stack_legend(kinds: Sequence[str]) -> list[tuple[str, Markup]]:
    return [(kind, legend_block(f"bar {fill(kinds, kind)}")) for kind in kinds]


def seconds_by_model(phases: Sequence[Phase]) -> list[tuple[str, dict[str, float]]]:
    """Rows of `stacks`."""
    rows: dict[str, dict[str, float]] = {}
    for phase in phases:
        made = rows.setdefault(phase.model, {})
        made[phase.name] = made.get(phase.name, 0.0) + phase.seconds
    return list(rows.items())
