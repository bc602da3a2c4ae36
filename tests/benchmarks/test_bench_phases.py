"""The phases of a round in one process: what the row says, on a model of a few thousand weights."""

from __future__ import annotations

import math

import pytest

from benchmarks import bench_phases, gpu
from benchmarks.harness import read_rows


@pytest.fixture
def measured(tmp_path, monkeypatch):
    monkeypatch.setattr(bench_phases, "ceilings", lambda *_: {"matmul_flops": 1e12})
    bench_phases.main(["--device", "cpu", "--models", "nano", "--out", str(tmp_path)])
    (row,) = read_rows(tmp_path / "bench_phases.jsonl")
    return row


def test_a_row_of_all_phases_on_weights_that_stay(measured):
    assert measured["weights_stayed"] and measured["correct"]
    assert measured["losses"][0] == pytest.approx(math.log(2), rel=1e-3)
    assert list(measured["phase_bytes"]) == list(measured["seconds"])
    assert measured["step_tokens"] == 2 * (12 + 7 + 7)  # two pairs, each prompt once
    assert "tokens/s" in bench_phases.shown(measured)


def test_targets_of_the_phases():
    row = {"benchmark": "bench_phases", "variant": "ours", "correct": True, "weights_stayed": True}
    rows = [
        row | {"case": "llama-2-70b phases", "ms": {"p50": 38e3}, "tokens_per_s": {"a": 2600.0}},
        row | {"case": "llama-3-8b phases", "ms": {"p50": 1e3}, "share_of_rate": 0.4},
    ]
    found = [line[3] for line in gpu.phase_targets(rows)]
    assert found == ["met", "met", "MISSED", "met"]
    assert all("no figure" in line[3] for line in gpu.phase_targets([]))
