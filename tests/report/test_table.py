"""The closing table."""

from __future__ import annotations

from srlm_fast.report import summary_table


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
