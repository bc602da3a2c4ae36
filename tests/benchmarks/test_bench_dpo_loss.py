"""The preference loss's benchmark runs on a CPU, and calls a wrong gradient wrong."""

from __future__ import annotations

from functools import partial

import torch

from benchmarks import bench_dpo_loss as bench
from benchmarks import command
from benchmarks.harness import read_rows


def test_quick_run_writes_rows_and_is_right(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(command, "pin", lambda cores: None)
    assert bench.main(["--device", "cpu", "--quick", "--rounds", "3", "--out", str(tmp_path)]) == 0
    rows = read_rows(tmp_path / "bench_dpo_loss_cpu.jsonl")
    ours = [row for row in rows if row["variant"] == "ours"]
    assert len(ours) == 2 and all(row["correct"] and row["ms"]["p50"] > 0 for row in ours)
    # So few tokens need no page that was not there.
    assert ours[0]["peak_bytes"] is not None
    assert set(ours[0]["errors"]) == {"value", "gradient"}
    assert {row["correct"] for row in rows if row["variant"] == "padded, as TRL"} == {True}
    assert "floor, one copy" in capsys.readouterr().out


def test_a_wrong_gradient_is_called_wrong(monkeypatch, capsys):
    def wrong(x: bench.Inputs) -> bench.Step:
        loss, gradient = right(x)
        return loss, 1.5 * gradient

    right = bench.ours
    monkeypatch.setattr(bench, "ours", wrong)
    options = command.parse(bench.BENCHMARK, ["--device", "cpu", "--quick", "--rounds", "1"])
    monkeypatch.setattr(command, "peak_apart", lambda *given: None)
    rows, _ = bench.run_case(bench.Case(4, 32), options, {"copy_bytes_per_s": 1e9})
    assert {row.variant: row.correct for row in rows}["ours"] is False
    assert "WRONG" in capsys.readouterr().out


def test_packed_and_padded_are_the_same_batch():
    x = bench.make_inputs(bench.Case(3, 20), "cpu", torch.float64)
    steps = [partial(bench.packed_step, bench.packed), bench.padded_step, bench.ours]
    (loss, gradient), (padded, rows), (mine, tokens) = (step(x) for step in steps)
    torch.testing.assert_close(padded, loss)
    torch.testing.assert_close(mine, loss)
    torch.testing.assert_close(rows[x.mask], gradient)
    torch.testing.assert_close(tokens, gradient)
