"""The benchmark of reading scores runs on a CPU, and calls a wrong result wrong."""

from __future__ import annotations

import torch

from benchmarks import bench_judge_score as bench
from benchmarks import command
from benchmarks.harness import read_rows


def test_quick_run_writes_rows_and_is_right(tmp_path, monkeypatch):
    monkeypatch.setattr(command, "pin", lambda core: None)
    assert bench.main(["--device", "cpu", "--quick", "--rounds", "1", "--out", str(tmp_path)]) == 0
    rows = {row["variant"]: row for row in read_rows(tmp_path / "bench_judge_score_cpu.jsonl")}
    timed = {"ours", "PyTorch walk", "eager", "row by row", "specification"}
    assert all(rows[name]["correct"] and rows[name]["ms"]["p50"] > 0 for name in timed)
    assert rows.keys() - timed == {"walk", "chunks"}
    assert all("GPU" in rows[name]["reason"] for name in rows.keys() - timed)


def test_a_wrong_result_is_called_wrong(monkeypatch, capsys):
    monkeypatch.setattr(command, "pin", lambda core: None)
    right = bench.extract_scores

    def broken(*arguments):
        scores, status = (each.clone() for each in right(*arguments))
        scores[0] = torch.nan if scores[0] == scores[0] else 3.0
        return scores, status

    monkeypatch.setattr(bench, "extract_scores", broken)
    options = command.parse(bench.BENCHMARK, ["--device", "cpu", "--quick", "--rounds", "1"])
    rows, kept = bench.run_case(bench.Case(8, 40), options, {"copy_bytes_per_s": 1e9})
    found = {row.variant: row.correct for row in rows}
    assert found["ours"] is False and found["eager"] is True
    assert "WRONG" in capsys.readouterr().out
    assert kept["bytes"] == 8 * 40 * 8
