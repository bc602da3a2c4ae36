"""The closing table."""

from __future__ import annotations

import math

from srlm_fast.report import summary_table
from srlm_fast.report.picture import score_picture


def test_a_row_per_model_with_its_figures(make_run):
    import json

    summary = json.loads((make_run(2) / "summary.json").read_text())
    head, *rows = summary_table(summary).splitlines()
    assert head.split()[0] == "model"
    assert [row.split()[0] for row in rows] == ["M1", "M2", "M3"]
    assert rows[0].split() == "M1 3.36 3.27 to 3.45 76.5% - 30 14 s".split()
    assert rows[1].split() == "M2 3.70 3.61 to 3.79 76.5% 478 30 33 s".split()
    assert len({len(row) for row in rows}) == 1


def test_absent_figures_are_shown_as_absent():
    summary = {"models": [{"name": "M1", "eval": {"score": None}, "judge": None}], "rounds": []}
    assert summary_table(summary).splitlines()[1].split() == ["M1", *["-"] * 6]


def scored(*rows: tuple[float, list[float] | None]) -> dict:
    named = enumerate(rows, 1)
    return {
        "models": [{"name": f"M{t}", "eval": {"score": s, "interval": i}} for t, (s, i) in named]
    }


def test_scores_are_drawn_on_one_axis():
    made = scored((3.0, [2.0, 4.0]), (6.0, [4.0, 8.0])), 40
    lines = score_picture(*made, unicode=True).splitlines()
    assert lines[0] == "M1      ├────●────┤"
    assert lines[1] == f"M2      {' ' * 10}├{'─' * 8}●{'─' * 9}┤"
    assert lines[2] == "        2.00" + "8.00".rjust(26)
    assert set("".join(score_picture(*made, unicode=False).splitlines()[:2])) <= set("M12 |-o")


def test_without_two_scores_or_room_nothing_is_drawn():
    whole = (3.0, [2.0, 4.0])
    for made in (scored(whole), scored(whole, (3.0, None)), scored(whole, (math.nan, [2.0, 4.0]))):
        assert score_picture(made, 80, unicode=True) == ""
    assert score_picture(scored(whole, whole), 20, unicode=True) == ""
