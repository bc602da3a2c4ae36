"""The report's benchmark runs at a small size and writes what it found."""

from __future__ import annotations

import json
import sys

from benchmarks import bench_report


def test_a_small_run_writes_its_figures(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(bench_report, "RESULTS", tmp_path / "out" / "bench_report_cpu.json")
    monkeypatch.setattr(sys, "argv", ["bench_report", "--candidates", "80", "--runs", "1"])
    bench_report.main()
    found = json.loads(bench_report.RESULTS.read_text())
    assert 0 < found["median"]["bytes"] < 1e6 and found["median"]["seconds"] > 0
    assert bool(found["browser"]) == ("first_paint_seconds" in found["median"])
    assert "wanted below 5" in capsys.readouterr().out
