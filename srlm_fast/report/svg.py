"""Charts as inline SVG.

Colours are classes that the page's style sheet sets, so they follow light and dark.
Every function returns Markup in which each value was escaped, or None when there is nothing to
draw.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from markupsafe import Markup

WIDTH, HEIGHT = 560, 240
LEFT, RIGHT, TOP, BOTTOM = 58, 14, 14, 30
MOST_POINTS = 400


def scores(models: Sequence[dict[str, Any]]) -> Markup | None:
    """Held-out score of each model with its 95 % interval."""
    found = [model for model in models if (model.get("eval") or {}).get("score") is not None]
    if not found:
        return None
    spans = [span(model["eval"]) for model in found]
    low, high = nice_range(min(low for low, _ in spans), max(high for _, high in spans))
    x, y = spread(len(found)), scale(low, high, HEIGHT - BOTTOM, TOP)
    marks = [
        Markup(
            "<g><title>{} {:.3f}, 95 % interval {:.3f} to {:.3f}</title>"
            '<line class="whisker" x1="{x:.1f}" x2="{x:.1f}" y1="{:.1f}" y2="{:.1f}"/>'
            '<circle class="dot" cx="{x:.1f}" cy="{y:.1f}" r="5"/>'
            '<text class="value" text-anchor="end" x="{right:.1f}" y="{above:.1f}">{:.2f}</text>'
            '<text class="tick" text-anchor="middle" x="{x:.1f}" y="{foot}">{}</text></g>'
        ).format(
            model["name"],
            model["eval"]["score"],
            bottom,
            top,
            y(bottom),
            y(top),
            model["eval"]["score"],
            model["name"],
            x=x(index),
            y=y(model["eval"]["score"]),
            right=x(index) - 8,
            above=y(model["eval"]["score"]) - 8,
            foot=HEIGHT - 10,
        )
        for index, (model, (bottom, top)) in enumerate(zip(found, spans, strict=True))
    ]
    path = polyline([(x(index), y(model["eval"]["score"])) for index, model in enumerate(found)])
    return figure("Held-out score of each model", [grid(low, high, y), path, *marks])


def span(score: dict[str, Any]) -> tuple[float, float]:
    bounds = score.get("interval") or [None, None]
    if None in bounds:
        return score["score"], score["score"]
    return bounds[0], bounds[1]


def histogram(bins: Sequence[tuple[float, int]]) -> Markup | None:
    """Bars of counts over equal bins given by their lower edges."""
    if not bins:
        return None
    step = bins[1][0] - bins[0][0]
    top = max(count for _, count in bins) or 1
    x = scale(bins[0][0], bins[-1][0] + step, LEFT, WIDTH - RIGHT)
    y = scale(0, top, HEIGHT - BOTTOM, TOP)
    bars = [
        Markup(
            '<rect class="bar" x="{:.1f}" y="{:.1f}" width="{:.1f}" height="{:.1f}" rx="2">'
            "<title>{:g} to {:g}: {}</title></rect>"
        ).format(
            x(edge) + 1,
            y(count),
            x(edge + step) - x(edge) - 2,
            y(0) - y(count),
            edge,
            edge + step,
            count,
        )
        for edge, count in bins
        if count
    ]
    return figure("Histogram of scores", [grid(0, top, y, "{:.0f}"), *bars, x_ticks(bins, step, x)])


def x_ticks(bins: Sequence[tuple[float, int]], step: float, x: Callable[[float], float]) -> Markup:
    low, high = bins[0][0], bins[-1][0] + step
    edges = [low + (high - low) * part / 5 for part in range(6)]
    return Markup("").join(
        Markup('<text class="tick" text-anchor="middle" x="{:.1f}" y="{}">{:g}</text>').format(
            x(edge), HEIGHT - 10, edge
        )
        for edge in edges
    )


def lines(points: Sequence[tuple[float, float]]) -> Markup | None:
    """One figure against the optimizer step."""
    finite = [(step, value) for step, value in points if abs(value) < float("inf")]
    if len(finite) < 2:
        return None
    finite = thinned(finite)
    values = [value for _, value in finite]
    low, high = nice_range(min(values), max(values))
    x = scale(finite[0][0], finite[-1][0], LEFT, WIDTH - RIGHT)
    y = scale(low, high, HEIGHT - BOTTOM, TOP)
    ends = Markup("").join(
        Markup('<text class="tick" text-anchor="{}" x="{:.1f}" y="{}">step {:.0f}</text>').format(
            anchor, x(step), HEIGHT - 10, step
        )
        for anchor, step in (("start", finite[0][0]), ("end", finite[-1][0]))
    )
    path = polyline([(x(step), y(value)) for step, value in finite])
    return figure("Figure against the optimizer step", [grid(low, high, y), path, ends])


def phases(rounds: Sequence[Any]) -> Markup | None:
    """Seconds of each round's phases as one stacked bar per round."""
    timed = [made for made in rounds if made.seconds]
    if not timed:
        return None
    names = list(dict.fromkeys(name for made in timed for name in made.seconds))
    longest = max(sum(made.seconds.values()) for made in timed)
    height = 34 * len(timed) + 34
    x = scale(0, longest, LEFT, WIDTH - RIGHT)
    rows = [stack(made, names, x, 8 + 34 * row) for row, made in enumerate(timed)]
    return figure("Seconds per phase", [*rows, legend(names, height - 12)], height)


def stack(made: Any, names: Sequence[str], x: Callable[[float], float], top: float) -> Markup:
    parts = [Markup('<text class="tick" x="0" y="{:.1f}">{}</text>').format(top + 17, made.name)]
    start = 0.0
    for name, seconds in made.seconds.items():
        parts.append(
            Markup(
                '<rect class="series-{}" x="{:.1f}" y="{:.1f}" width="{:.1f}" height="24" rx="2">'
                "<title>{} {}: {:.1f} s</title></rect>"
            ).format(
                names.index(name) % 6,
                x(start),
                top,
                max(x(start + seconds) - x(start) - 2, 0.5),
                made.name,
                name,
                seconds,
            )
        )
        start += seconds
    return Markup("").join(parts)


def legend(names: Sequence[str], y: float) -> Markup:
    parts, x = [], float(LEFT)
    for index, name in enumerate(names):
        parts.append(
            Markup(
                '<rect class="series-{}" x="{:.1f}" y="{:.1f}" width="10" height="10" rx="2"/>'
                '<text class="tick" x="{:.1f}" y="{:.1f}">{}</text>'
            ).format(index % 6, x, y - 9, x + 14, y, name)
        )
        x += 30 + 7 * len(name)
    return Markup("").join(parts)


def figure(label: str, parts: Sequence[Markup], height: int = HEIGHT) -> Markup:
    return Markup('<svg viewBox="0 0 {} {}" role="img" aria-label="{}">{}</svg>').format(
        WIDTH, height, label, Markup("").join(parts)
    )


def grid(low: float, high: float, y: Callable[[float], float], spec: str = "{:.3g}") -> Markup:
    """Five horizontal lines with their values."""
    values = [low + (high - low) * part / 4 for part in range(5)]
    return Markup("").join(
        Markup(
            '<line class="grid" x1="{}" x2="{}" y1="{:.1f}" y2="{:.1f}"/>'
            '<text class="tick" text-anchor="end" x="{}" y="{:.1f}">{}</text>'
        ).format(LEFT, WIDTH - RIGHT, y(v), y(v), LEFT - 6, y(v) + 4, spec.format(v))
        for v in values
    )


def polyline(points: Sequence[tuple[float, float]]) -> Markup:
    return Markup('<polyline class="line" points="{}"/>').format(
        " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
    )


def scale(low: float, high: float, start: float, end: float) -> Callable[[float], float]:
    """Linear map of [low, high] to pixels [start, end]."""
    width = high - low or 1.0
    return lambda value: start + (value - low) / width * (end - start)


def spread(count: int) -> Callable[[float], float]:
    """Middle of each of `count` equal columns."""
    column = (WIDTH - LEFT - RIGHT) / count
    return lambda index: LEFT + column * (index + 0.5)


def nice_range(low: float, high: float) -> tuple[float, float]:
    """The range with a margin, never empty."""
    margin = (high - low) * 0.15 or max(abs(high) * 0.1, 0.1)
    return low - margin, high + margin


def thinned(points: list[tuple[float, float]]) -> list[tuple[float, float]]:
    """At most MOST_POINTS: means over equal stretches of steps."""
    size = -(-len(points) // MOST_POINTS)
    chunks = [points[start : start + size] for start in range(0, len(points), size)]
    return [
        (sum(step for step, _ in chunk) / len(chunk), sum(value for _, value in chunk) / len(chunk))
        for chunk in chunks
    ]
