"""The ROUGE benchmark runs at a small size and its rows say what they were measured on."""

from __future__ import annotations

import sys

import pytest

from benchmarks import bench_rouge
from benchmarks.harness import commit
from srlm_fast.records import read_jsonl

pytest.importorskip("rouge_score", reason="rouge-score is not installed")


def test_rows_name_the_commit_and_agree_with_the_package(tmp_path, monkeypatch):
    monkeypatch.setattr(bench_rouge, "RESULTS", tmp_path / "rouge.jsonl")
    monkeypatch.setattr(bench_rouge, "CHECKED", 3)
    monkeypatch.setattr(bench_rouge, "CHECKED_POOL", 20)
    monkeypatch.setattr(bench_rouge, "in_process", lambda pool, n, _: bench_rouge.ours(pool, n))
    words = ["bench_rouge", "--pools", "40", "--candidates", "9", "--pairs", "20"]
    monkeypatch.setattr(sys, "argv", words)
    bench_rouge.main()
    rows = read_jsonl(bench_rouge.RESULTS)
    assert [row["threads"] for row in rows] == [1, 2]
    assert all(row["commit"] == commit() and row["rouge_score"] for row in rows)
