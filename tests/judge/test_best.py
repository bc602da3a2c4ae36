"""The best of n: unread scores are no zeros, equal means go to the surer judge."""

from __future__ import annotations

import pytest

from srlm_fast.judge import best_rows, rank
from srlm_fast.records import Candidate, Prompt


@pytest.mark.parametrize(
    ("samples", "wanted"),
    [
        ([[1.0], [3.0], [2.0]], [1, 2, 0]),
        ([[None, 2.0], [0.0, 0.0], [None]], [0, 1]),  # a miss is not 0, and not an answer
        ([[1.0, 5.0], [3.0, 3.0], [3.0]], [1, 0, 2]),  # one score: variance unknown
        ([[2.0], [2.0]], [0, 1]),
        ([[float("nan")], [], [None]], []),
        ([], []),
    ],
)
def test_rank(samples, wanted):
    assert rank(samples) == wanted


def test_rows_are_in_the_order_of_prompts_and_unread_prompts_have_none():
    prompts = [Prompt(name, f"Question {name}", "file") for name in "abc"]
    candidates = [
        Candidate(name, index, f"{name}{index}", (1,), 0.0, "stop")
        for name in "cab"
        for index in (1, 0)
    ]
    scores = {("a", 0): [1.0], ("a", 1): [4.0, 2.0], ("b", 0): [None], ("c", 0): [2.0]}
    assert best_rows(prompts, candidates, scores) == [
        {"prompt_id": "a", "prompt": "Question a", "response": "a1", "index": 1, "score": 3.0},
        {"prompt_id": "c", "prompt": "Question c", "response": "c0", "index": 0, "score": 2.0},
    ]
    assert best_rows(prompts, candidates, scores, min_valid=2) == [
        {"prompt_id": "a", "prompt": "Question a", "response": "a1", "index": 1, "score": 3.0},
    ]
