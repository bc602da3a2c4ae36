"""The assembled round reads scores and makes pairs as a round of ours does."""

from __future__ import annotations

import pytest

from benchmarks.assembled_round import Assembled
from benchmarks.bench_round import line, settings
from srlm_fast.tiny.rubric import RUBRIC


@pytest.fixture
def assembled():
    bare = Assembled.__new__(Assembled)
    bare.rubric, bare.counts = RUBRIC, {}
    return bare


def test_the_mean_of_the_scores_that_can_be_read(assembled):
    assert assembled.mean(["Right. Score: 4", "Score: 9", "none", "Score: 1\nScore: 3"]) == 3.5
    assert assembled.mean(["none"]) is None


def test_best_against_worst_and_no_pair_from_ties(assembled):
    rows = assembled.pairs(
        ["a", "b", "c"],
        [["x", "y", "z"], ["x", "y", "z"], ["x", "y", "z"]],
        [[1.0, None, 4.0], [2.0, 2.0, None], [None, None, None]],
    )
    assert [(r["chosen"][0]["content"], r["rejected"][0]["content"]) for r in rows] == [("z", "x")]
    assert assembled.counts["pairs"] == 1


def test_settings_are_those_of_the_embedded_run():
    found = settings("float32")
    assert (found["candidates"], found["sampling"]["max_new_tokens"]) == (4, 48)
    seconds = {"sample": 1.0, "judge": 2.0, "learn": 3.0}
    counts = {"answer_tokens": 1, "judge_tokens": 2, "pairs": 3}
    row = {"seconds": seconds, "counts": counts, "peak_bytes": 2**20}
    assert "6.00 s" in line("ours", row)
