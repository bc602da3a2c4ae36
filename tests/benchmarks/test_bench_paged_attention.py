"""The benchmark of paged attention runs on a CPU, and calls a wrong result wrong."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from benchmarks import bench_paged_attention as bench
from benchmarks import command
from benchmarks.harness import read_rows
from srlm_fast.kernels import DecodeConfig


@pytest.fixture(autouse=True)
def rate(monkeypatch):
    monkeypatch.setattr(bench, "read_rate", lambda device: 1e9)


def test_quick_run_writes_rows_and_is_right(tmp_path, monkeypatch):
    monkeypatch.setattr(command, "pin", lambda core: None)
    assert bench.main(["--device", "cpu", "--quick", "--rounds", "1", "--out", str(tmp_path)]) == 0
    rows = read_rows(tmp_path / "bench_paged_attention_cpu.jsonl")
    found = {(row["case"]["kind"], row["variant"]): row for row in rows}
    for kind, rival in (("decode", "gather, SDPA"), ("prefill", "SDPA, dense")):
        for variant in ("ours", rival, "eager"):
            assert found[kind, variant]["correct"] and found[kind, variant]["ms"]["p50"] > 0


def test_a_wrong_result_is_called_wrong(monkeypatch):
    right = bench.paged_attention
    monkeypatch.setattr(bench, "paged_attention", lambda *given: 1.1 * right(*given))
    options = command.parse(bench.BENCHMARK, ["--device", "cpu", "--quick", "--rounds", "1"])
    rows, _ = bench.run_case(bench.Case("qwen2.5-0.5b", "decode", 2, "64"), options, {})
    found = {row.variant: row.correct for row in rows}
    assert found["ours"] is False and found["eager"] is True


def test_bytes_and_flops_by_hand():
    """Llama-3-8B in fp32: a token's keys and values take 2 x 8 x 128 x 4 bytes, q and out of a row
    2 x 32 x 128 x 4. Siblings share 1,024 tokens and have 64 of their own each.
    """
    per_token, per_row = 8192, 32768
    for context, tokens in (("70", 4 * 70), ("siblings", 1024 + 4 * 64)):
        inputs = bench.make_inputs(bench.Case("llama-3-8b", "decode", 4, context), "cpu")
        assert inputs.bytes == tokens * per_token + 4 * per_row
    inputs = bench.make_inputs(bench.Case("llama-3-8b", "prefill", 2, "10"), "cpu")
    assert inputs.flops == 2 * 4 * 32 * 128 * 55


def test_ragged_contexts_and_pages_in_no_order():
    inputs = bench.make_inputs(bench.Case("qwen2.5-0.5b", "decode", 5, "ragged"), "cpu")
    assert inputs.lengths.tolist() == [64, 560, 1056, 1552, 2048]
    pages = [inputs.table[s, : -(-n // 64)] for s, n in enumerate(inputs.lengths)]
    assert sorted(np.concatenate(pages)) == list(range(len(inputs.keys)))
    assert (np.diff(np.concatenate(pages)) != 1).any()


def test_tuning_wants_a_gpu(monkeypatch, capsys):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert bench.main(["--tune"]) == 2 and "no GPU" in capsys.readouterr().err
    found = list(bench.configs())
    assert len(set(found)) == len(found) and DecodeConfig() in found
