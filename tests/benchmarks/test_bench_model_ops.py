"""The benchmark of the decoder's operations runs on a CPU, and calls a wrong result wrong."""

from __future__ import annotations

import pytest
import torch

from benchmarks import bench_model_ops as bench
from benchmarks import command
from benchmarks.harness import read_rows


def test_quick_run_writes_rows_and_is_right(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(command, "pin", lambda cores: None)
    assert bench.main(["--device", "cpu", "--quick", "--rounds", "2", "--out", str(tmp_path)]) == 0
    rows = read_rows(tmp_path / "bench_model_ops_cpu.jsonl")
    ours = [row for row in rows if row["variant"] == "ours"]
    assert len(ours) == len(bench.OPS) * len(bench.PARTS)
    assert all(row["correct"] and row["ms"]["p50"] > 0 for row in ours)
    assert {row["reason"] for row in rows if row["variant"] == "Liger"} != {None}
    assert "floor, one copy" in capsys.readouterr().out


@pytest.mark.parametrize("part", bench.PARTS)
def test_a_wrong_result_is_called_wrong(part, monkeypatch, capsys):
    right = bench.OUR_FORMS["swiglu"]
    monkeypatch.setitem(bench.OUR_FORMS, "swiglu", lambda x: (1.1 * right(x)[0],))
    options = command.parse(bench.BENCHMARK, ["--device", "cpu", "--quick", "--rounds", "1"])
    case = bench.Case("qwen2.5-0.5b", "swiglu", part, 4)
    rows, _ = bench.run_case(case, options, {"copy_bytes_per_s": 1e9})
    found = {row.variant: row.correct for row in rows}
    assert found["ours"] is False and found["eager"] is True
    assert "WRONG" in capsys.readouterr().out


def test_bytes_by_hand():
    """Llama-2-70B in bf16: D 8192, 64 + 8 heads of 128, F 28672; per token."""
    of = {
        (op, part): bench.Case("llama-2-70b", op, part, 1).bytes(2)
        for op in bench.OPS
        for part in bench.PARTS
    }
    assert of["rms_norm", "forward"] == 2 * 2 * 8192
    assert of["rms_norm", "backward"] == 3 * 2 * 8192
    assert of["residual", "forward"] == of["residual", "backward"] == 4 * 2 * 8192
    assert of["rope", "forward"] == of["rope", "backward"] == 2 * 2 * 72 * 128 + 2 * 4 * 64
    assert (of["swiglu", "forward"], of["swiglu", "backward"]) == (3 * 2 * 28672, 5 * 2 * 28672)


def test_heads_are_cut_out_of_a_projection():
    q, k = bench.make_inputs(bench.Case("qwen2.5-0.5b", "rope", "forward", 3), "cpu").leaves
    assert (q.shape, k.shape) == ((3, 14, 64), (3, 2, 64))
    assert q.stride(0) == k.stride(0) == 18 * 64 and not q.is_contiguous()


def test_what_overwrites_its_inputs_gets_fresh_ones():
    case = bench.Case("qwen2.5-0.5b", "rms_norm", "backward", 3)
    inputs = bench.make_inputs(case, "cpu")
    wanted = bench.truth(case, inputs)

    step = bench.Step(bench.EAGER["rms_norm"], inputs, case.part, overwrites=True)
    for _ in range(2):
        step.prepare()
        found = step()
        step.taken.upstream[0].zero_()
        with torch.no_grad():
            step.taken.leaves[0].zero_()
        for ours, right in zip(found, wanted, strict=True):
            torch.testing.assert_close(ours.double(), right, rtol=1e-4, atol=1e-4)
