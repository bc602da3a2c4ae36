"""The benchmark of expected scores runs on a CPU, and calls a wrong mean wrong."""

from __future__ import annotations

import torch

from benchmarks import bench_expected_scores as bench
from benchmarks import command
from benchmarks.harness import read_rows

QUICK = ["--device", "cpu", "--quick", "--rounds", "3"]


def test_quick_run_writes_rows_and_is_right(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(command, "pin", lambda cores: None)
    assert bench.main([*QUICK, "--out", str(tmp_path)]) == 0
    rows = read_rows(tmp_path / "bench_expected_scores_cpu.jsonl")
    mine = {row["case"]["name"]: row for row in rows if row["variant"] == "ours"}
    assert set(mine) == {"quick 16 rows", "quick 16 rows with mass"}
    assert all(row["correct"] and row["ms"]["p50"] > 0 for row in mine.values())
    assert set(mine["quick 16 rows with mass"]["errors"]) == {"score", "mass"}
    assert {row["correct"] for row in rows if row["variant"] == "gathered, eager"} == {True}
    shown = capsys.readouterr().out
    assert "floor, one copy" in shown and "floor, one matmul" in shown


def test_a_wrong_mean_is_called_wrong(monkeypatch, capsys):
    right = bench.ours
    monkeypatch.setattr(bench, "ours", lambda *given: tuple(1.5 * x for x in right(*given)))
    options = command.parse(bench.BENCHMARK, QUICK)
    top = {"copy_bytes_per_s": 1e9, "matmul_flops": 1e9}
    rows, _ = bench.run_case(bench.Case(bench.QUICK, 8, True), options, top)
    assert {row.variant: row.correct for row in rows}["ours"] is False
    assert "WRONG" in capsys.readouterr().out


def test_variants_agree_in_fp64():
    case = bench.Case(bench.QUICK, 4, True)
    x = bench.make_inputs(case, "cpu")
    truth = bench.truth_of(case, x)
    full = bench.full_logits(x.hidden, x.head, x.ids, x.values, True)
    found = [full, bench.gathered(x), bench.ours(x.groups, True, x)]
    for values in found:
        for value, wanted in zip(values, truth, strict=False):
            torch.testing.assert_close(value.double(), wanted, rtol=1e-4, atol=1e-5)
    assert ((truth[2] > 0.1) & (truth[2] < 1)).all()
