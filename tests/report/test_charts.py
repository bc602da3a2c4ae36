"""Axes that cover what they show, bars from 0, and marks where the figures say."""

from __future__ import annotations

import re

import pytest

from srlm_fast.report import charts
from srlm_fast.report.charts import Point, Series
from srlm_fast.report.svg import aligned, number, ticks


@pytest.mark.parametrize(
    ("low", "high", "wanted"),
    [
        (0, 1, [0, 0.5, 1]),
        (0, 100, [0, 50, 100]),
        (3.21, 4.14, [3, 3.5, 4, 4.5]),
        (-0.7, 0.3, [-1, -0.5, 0, 0.5]),
        (1, 1, [0, 0.5, 1]),
        (-2, -2, [-2, -1.5, -1, -0.5, 0]),
        (0, 0, [0, 0.5, 1]),
    ],
)
def test_ticks_are_round_and_cover_the_values(low: float, high: float, wanted: list[float]):
    assert ticks(low, high) == pytest.approx(wanted)


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.25, "0.25"), (1e-4, "0.0001"), (1.5e-5, "1.5e-5"), (12000, "12k"), (3e6, "3M"), (0, "0")],
)
def test_ticks_are_short(value: float, text: str):
    assert number(value) == text


@pytest.mark.parametrize(
    ("ticks", "said"),
    [
        ("0.476 0.48 0.5", "0.476 0.480 0.500"),
        ("-1 -0.5 0", "-1.0 -0.5 0.0"),
        ("0.0001 5e-5 0", "1e-4 5e-5 0"),
        ("0 12k", "0 12k"),
    ],
)
def test_ticks_of_an_axis_are_written_alike(ticks: str, said: str):
    assert " ".join(aligned(ticks.split())) == said


def attributes(svg: str, tag: str, kind: str) -> list[dict[str, str]]:
    found = re.findall(rf'<{tag} class="{kind}"([^>]*)>', svg)
    return [dict(re.findall(r'(\w+)="([^"]*)"', each)) for each in found]


def test_an_interval_reaches_from_its_lower_to_its_upper_bound():
    svg = charts.by_model([Series("a", [Point(0, 3.0, (2.0, 4.0))])], ["M1"], "score")
    bar = attributes(svg, "line", "whisker s0")[0]
    grid = {float(g["y1"]) for g in attributes(svg, "line", "grid")}
    assert {float(bar["y1"]), float(bar["y2"])} <= grid  # 2 and 4 are ticks
    assert "95 % interval 2 to 4" in svg


def test_an_axis_of_shares_ends_at_one():
    lone = [Series("a", [Point(0, 0.96, (0.91, 1.0))])]
    axis = re.compile(r'<text class="tick" text-anchor="end"[^>]*>([^<]*)<')
    plain, bounded = (
        charts.by_model(lone, ["M1"], "accuracy", spec=charts.percent, bounded=each)
        for each in (False, True)
    )
    assert axis.findall(plain)[-1] == "105 %" and axis.findall(bounded)[-1] == "100 %"


def test_bars_start_at_zero_and_are_as_high_as_their_share():
    svg = charts.histogram([(0.0, 30), (1.0, 10), (2.0, 0)], "scores")
    first, second = attributes(svg, "rect", "bar s0")
    assert float(first["height"]) == pytest.approx(3 * float(second["height"]), abs=0.2)
    floor = {float(bar["y"]) + float(bar["height"]) for bar in (first, second)}
    assert len(floor) == 1 and floor.pop() == pytest.approx(144)
    assert "0 to 1: 30 candidates (75 %)" in svg


def test_a_stack_is_as_long_as_its_parts():
    svg = charts.stacks([("M1", {"train": 10, "measure": 30})], ["train", "measure"], "s", " s")
    train, measure = attributes(svg, "rect", "bar s0")[0], attributes(svg, "rect", "bar s1")[0]
    assert float(measure["width"]) == pytest.approx(3 * float(train["width"]), abs=0.2)
    assert float(train["x"]) + float(train["width"]) == pytest.approx(float(measure["x"]), abs=0.2)


def test_long_trainings_are_thinned_to_means():
    points = [(step, 1.0) for step in range(10_000)]
    assert len(charts.thinned(points)) <= charts.MOST_POINTS
    assert charts.curves([Series("a", [(0, 1.0)])], "") is None
    assert "nan" not in charts.curves([Series("a", [(0, 1.0), (1, float("nan")), (2, 3.0)])], "")


def test_series_beyond_the_sixth_look_different():
    from srlm_fast.report.panels import run_series

    looks = {(one.style % 6, one.dashed) for one in run_series([(str(i), ()) for i in range(12)])}
    assert len(looks) == 12


def test_names_in_charts_are_escaped():
    svg = charts.by_model([Series("<u>", [Point(0, 1.0)])], ["<u>"], "<u>")
    svg += charts.stacks([("<u>", {"<u>": 1.0})], ["<u>"], "<u>", "<u>")
    assert "<u>" not in svg and "&lt;u&gt;" in svg
