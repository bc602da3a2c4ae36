"""The benchmark of segment attention runs on a CPU, and calls a wrong result wrong."""

from __future__ import annotations

from benchmarks import bench_segment_attention as bench
from benchmarks import command
from benchmarks.harness import read_rows


def test_quick_run_writes_rows_and_is_right(tmp_path, monkeypatch):
    monkeypatch.setattr(command, "pin", lambda core: None)
    assert bench.main(["--device", "cpu", "--quick", "--rounds", "1", "--out", str(tmp_path)]) == 0
    rows = read_rows(tmp_path / "bench_segment_attention_cpu.jsonl")
    found = {(row["case"]["part"], row["variant"]): row for row in rows}
    for part in ("forward", "backward"):
        for variant in ("ours", "ours, unshared", "eager", "SDPA, unshared", "SDPA, mask"):
            assert found[part, variant]["correct"] and found[part, variant]["ms"]["p50"] > 0
        assert found[part, "FlexAttention"]["reason"]


def test_a_wrong_result_is_called_wrong(monkeypatch):
    right = bench.segment_attention
    monkeypatch.setattr(bench, "segment_attention", lambda *given: 1.1 * right(*given))
    options = command.parse(bench.BENCHMARK, ["--device", "cpu", "--quick", "--rounds", "1"])
    for case in bench.cases(options):
        rows, _ = bench.run_case(case, options, {"matmul_flops": 1e9})
        found = {row.variant: row.correct for row in rows}
        assert not found["ours"] and not found["ours, unshared"] and found["SDPA, mask"]


def test_flops_by_hand():
    """A prompt of 3 and two responses of 2: 6 pairs, and 2 x (6 + 3); 12 heads of 64."""
    assert bench.Case("small", 1, 3, 2, "forward").flops == 24 * 12 * 64 * 4
    assert bench.Case("small", 2, 3, 2, "backward").flops == 2 * 24 * 12 * 64 * 10
