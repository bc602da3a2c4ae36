"""Axes, marks and text of inline SVG.

Colours, dashes and fonts are classes that the page's style sheet sets, so they follow light, dark
and print. Every function returns Markup in which each value was escaped.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from markupsafe import Markup

Scale = Callable[[float], float]
NUM_STYLES = 6
BLANK = Markup("")


@dataclass(frozen=True)
class Frame:
    """A plot's size and the room around it, in the units of its viewBox."""

    width: float = 360
    height: float = 210
    left: float = 44
    right: float = 12
    top: float = 24
    bottom: float = 26

    @property
    def floor(self) -> float:
        return self.height - self.bottom

    @property
    def end(self) -> float:
        return self.width - self.right

    def x(self, low: float, high: float) -> Scale:
        return scale(low, high, self.left, self.end)

    def y(self, low: float, high: float) -> Scale:
        return scale(low, high, self.floor, self.top)

    def columns(self, count: int) -> Scale:
        """Middle of each of `count` equal columns."""
        column = (self.end - self.left) / max(count, 1)
        return lambda index: self.left + column * (index + 0.5)


def scale(low: float, high: float, start: float, end: float) -> Scale:
    """Linear map of [low, high] to [start, end]."""
    width = high - low or 1.0
    return lambda value: start + (value - low) / width * (end - start)


def ticks(low: float, high: float, count: int = 4) -> list[float]:
    """Round values (1, 2 or 5 times a power of ten apart) that cover [low, high] in at most
    `count` + 1 steps. For a lone value from 0 on.
    """
    if high <= low:
        low, high = min(low, 0.0), max(high, 0.0) or float(low == 0)
    raw = (high - low) / count
    power = 10.0 ** math.floor(math.log10(raw))
    step = power * next(m for m in (1, 2, 5, 10, 20) if m * power >= raw * (1 - 1e-9))
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [number * step for number in range(first, last + 1)]


def number(value: float) -> str:
    """A tick in few characters: 0.25, 12, 1.5k, 3M, 5e-5."""
    for limit, unit in ((1e9, "G"), (1e6, "M"), (1e4, "k")):
        if abs(value) >= limit:
            return f"{value / (1e3 if unit == 'k' else limit):.4g}{unit}"
    if abs(value) >= 1e-4 or value == 0:
        return f"{value:.4g}"
    return powered(value)


def aligned(words: Sequence[str]) -> list[str]:
    """Plain numbers with as many digits behind the point as the one that has most, those of an axis
    with powers of ten as such; others as they are.
    """
    if any("e-" in word for word in words):
        return [powered(float(word)) for word in words]
    if not all(word.lstrip("-").replace(".", "", 1).isdigit() for word in words):
        return list(words)
    places = max((len(word.partition(".")[2]) for word in words), default=0)
    return [f"{float(word):.{places}f}" for word in words]


def powered(value: float) -> str:
    return f"{value:.1e}".replace("e-0", "e-").replace(".0e", "e") if value else "0"


def percent(value: float) -> str:
    return f"{100 * value:.3g} %"


def figure(label: str, frame: Frame, parts: Sequence[Markup]) -> Markup:
    return Markup('<svg viewBox="0 0 {:g} {:g}" role="img" aria-label="{}">{}</svg>').format(
        frame.width, frame.height, label, BLANK.join(parts)
    )


def text(x: float, y: float, words: str, kind: str = "tick", anchor: str = "middle") -> Markup:
    return Markup('<text class="{}" text-anchor="{}" x="{:.1f}" y="{:.1f}">{}</text>').format(
        kind, anchor, x, y, minus(words)
    )


def minus(words: str) -> str:
    """With the sign of a negative number as it is printed."""
    return f"\u2212{words[1:]}" if words[:1] == "-" and words[1:2].isdigit() else words


def line(x1: float, y1: float, x2: float, y2: float, kind: str) -> Markup:
    return Markup('<line class="{}" x1="{:.1f}" y1="{:.1f}" x2="{:.1f}" y2="{:.1f}"/>').format(
        kind, x1, y1, x2, y2
    )


def rect(x: float, y: float, width: float, height: float, kind: str, title: str = "") -> Markup:
    return Markup(
        '<rect class="{}" x="{:.1f}" y="{:.1f}" width="{:.1f}" height="{:.1f}">{}</rect>'
    ).format(kind, x, y, max(width, 0.4), max(height, 0.0), tip(title))


def tip(title: str) -> Markup:
    return Markup("<title>{}</title>").format(title) if title else BLANK


def group(title: str, *parts: Markup) -> Markup:
    return Markup("<g>{}{}</g>").format(tip(title), BLANK.join(parts))


def polyline(points: Sequence[tuple[float, float]], kind: str, title: str = "") -> Markup:
    return Markup('<polyline class="{}" points="{}">{}</polyline>').format(
        kind, " ".join(f"{x:.1f},{y:.1f}" for x, y in points), tip(title)
    )


def marker(x: float, y: float, style: int, size: float = 4.5) -> Markup:
    """A shape of its own for each style, so that colour is not the only difference."""
    corners = {1: 4, 2: 3, 3: 4, 4: 3, 5: 6}.get(style % NUM_STYLES)
    kind = f"mark s{style % NUM_STYLES}"
    if corners is None:
        return Markup('<circle class="{}" cx="{:.1f}" cy="{:.1f}" r="{:g}"/>').format(
            kind, x, y, size
        )
    turn = {1: 0.25, 2: -0.5, 3: 0.0, 4: 0.5, 5: 0.0}[style % NUM_STYLES] * math.pi
    angles = [turn + 2 * math.pi * corner / corners for corner in range(corners)]
    around = [(x + 1.2 * size * math.cos(a), y + 1.2 * size * math.sin(a)) for a in angles]
    points = " ".join(f"{px:.1f},{py:.1f}" for px, py in around)
    return Markup('<polygon class="{}" points="{}"/>').format(kind, points)


def y_axis(
    frame: Frame, values: Sequence[float], y: Scale, label: str, spec: Callable[[float], str]
) -> Markup:
    """Horizontal lines with their values, and above them what is measured."""
    lines = [line(frame.left, y(v), frame.end, y(v), "grid") for v in values]
    named = zip(values, aligned(list(map(spec, values))), strict=True)
    words = [text(frame.left - 6, y(v) + 4, said, anchor="end") for v, said in named]
    return BLANK.join([*lines, *words, text(2, 12, label, "axis", "start")])


def x_axis(
    frame: Frame, values: Sequence[float], x: Scale, label: str, spec: Callable[[float], str]
) -> Markup:
    """Values below the floor; what is measured stands at its right end."""
    marks = [line(x(v), frame.floor, x(v), frame.floor + 4, "grid") for v in values]
    words = [text(x(v), frame.floor + 15, spec(v)) for v in values]
    return BLANK.join([*marks, *words, text(frame.end, frame.height - 5, label, "axis", "end")])


def legend_swatch(style: int, dashed: bool = False) -> Markup:
    """A piece of a series' line with its marker, for a legend beside the chart."""
    kind = f"line s{style % NUM_STYLES}" + (" dashed" if dashed else "")
    return Markup('<svg class="swatch" viewBox="0 0 28 12" aria-hidden="true">{}</svg>').format(
        BLANK.join([line(1, 6, 27, 6, kind), marker(14, 6, style, 3.8)])
    )


def line_swatch(style: int, dashed: bool = False) -> Markup:
    """A piece of a line without markers."""
    kind = f"line s{style % NUM_STYLES}" + (" dashed" if dashed else "")
    return Markup('<svg class="swatch" viewBox="0 0 28 12" aria-hidden="true">{}</svg>').format(
        line(1, 6, 27, 6, kind)
    )


def legend_block(kind: str) -> Markup:
    """A filled block of a bar's colour."""
    return Markup(
        '<svg class="swatch block" viewBox="0 0 12 12" aria-hidden="true">{}</svg>'
    ).format(rect(0, 0, 12, 12, kind))
