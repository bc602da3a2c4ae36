"""The report's benchmark runs at a small size, writes what it found, and fails above a limit."""

from __future__ import annotations

import json
import sys

import pytest

from benchmarks import bench_report
from benchmarks.harness import commit


@pytest.mark.parametrize(("most_bytes", "status"), [(15e6, 0), (1e3, 1)])
def test_a_small_run_writes_its_figures(tmp_path, monkeypatch, capsys, most_bytes, status):
    # A loaded machine may be slow: only the size decides here.
    monkeypatch.setattr(bench_report, "LIMITS", {"seconds": 600.0, "bytes": most_bytes})
    monkeypatch.setattr(bench_report, "RESULTS", tmp_path / "out" / "bench_report_cpu.json")
    monkeypatch.setattr(sys, "argv", ["bench_report", "--candidates", "80", "--runs", "1"])
    assert bench_report.main() == status
    found = json.loads(bench_report.RESULTS.read_text())
    assert 0 < found["median"]["bytes"] < 1e6 and found["median"]["seconds"] > 0
    assert found["commit"] == commit()
    assert bool(found["browser"]) == ("first_paint_seconds" in found["median"])
    told = capsys.readouterr().out
    assert "wanted below 600" in told and told.count("MISSED") == status
