"""The benchmark of a sampling step runs on a CPU, and calls a wrong result wrong."""

from __future__ import annotations

import pytest
import torch

from benchmarks import bench_sample_tokens as bench
from benchmarks import command
from benchmarks.harness import read_rows


def test_quick_run_writes_rows_and_is_right(tmp_path, monkeypatch):
    monkeypatch.setattr(command, "pin", lambda core: None)
    assert bench.main(["--device", "cpu", "--quick", "--rounds", "1", "--out", str(tmp_path)]) == 0
    rows = read_rows(tmp_path / "bench_sample_tokens_cpu.jsonl")
    ours = [row for row in rows if row["variant"] == "ours"]
    assert len(ours) == len(bench.OPTIONS) * len(bench.KINDS)
    assert all(row["correct"] and row["ms"]["p50"] > 0 for row in ours)
    assert all(row["correct"] for row in rows if row["variant"] == "eager")


@pytest.mark.parametrize("wrong", ["token", "logprob", "forbidden"])
def test_a_wrong_result_is_called_wrong(wrong, monkeypatch, capsys):
    right = bench.sample_tokens

    def broken(*flat, **kept):
        tokens, logprobs = (x.clone() for x in right(*flat, **kept))
        if wrong == "logprob":
            return tokens, logprobs + 0.01
        tokens[:] = 0 if wrong == "forbidden" else torch.where(tokens == 0, 1, 0)
        return tokens, logprobs

    monkeypatch.setattr(bench, "sample_tokens", broken)
    options = command.parse(bench.BENCHMARK, ["--device", "cpu", "--quick", "--rounds", "1"])
    case = bench.Case("llama-2", 2, "everything", "model")
    rows, _ = bench.run_case(case, options, {"copy_bytes_per_s": 1e9})
    found = {row.variant: row.correct for row in rows}
    assert found["ours"] is False and found["eager"] is True
    assert "WRONG" in capsys.readouterr().out


def test_bytes_by_hand():
    assert bench.Case("llama-3", 256, "plain", "model").bytes(2) == 256 * 128_256 * 2
