"""Collapse figures, hand-worked."""

import json

import pytest

from srlm_fast.eval import collapse_figures
from srlm_fast.records import Candidate


def answer(prompt_id, text, tokens=1, logprob=0.0, reason="stop"):
    return Candidate(prompt_id, 0, text, tuple(range(tokens)), logprob, reason)


def test_hand_worked():
    rows = [
        answer("p", "a b a b", 4, -2.0),
        answer("p", "a b a b", 4, -2.0),
        answer("q", "c", 2, -1.0, "length"),
    ]
    figures = collapse_figures(rows)
    assert figures["distinct_1"] == pytest.approx(3 / 9)
    assert figures["distinct_2"] == pytest.approx(2 / 6)
    assert figures["unique"] == pytest.approx(2 / 3)
    assert figures["end_of_text"] == pytest.approx(2 / 3)
    assert figures["length_mean"] == pytest.approx(15 / 3)
    assert figures["tokens_mean"] == pytest.approx(10 / 3)
    assert figures["entropy"] == pytest.approx(0.5)
    assert figures["n"] == 3


def test_neighbours_are_not_taken_across_answers():
    assert collapse_figures([answer("p", "a"), answer("p", "b")])["distinct_2"] is None


def test_the_same_answer_to_two_prompts_is_not_a_repeat():
    assert collapse_figures([answer("p", "yes"), answer("q", "yes")])["unique"] == 1.0


def test_repetition_lowers_the_figures():
    varied = collapse_figures([answer("p", f"w{i} x{i} y{i}") for i in range(20)])
    stuck = collapse_figures([answer("p", "same old words") for _ in range(20)])
    for name in ("distinct_1", "distinct_2", "unique"):
        assert stuck[name] < varied[name] / 5


@pytest.mark.parametrize("rows", [[], [answer("p", "", 0)]])
def test_nothing_to_measure_is_json(rows):
    figures = collapse_figures(rows)
    assert figures["distinct_1"] is None and figures["entropy"] is None
    json.dumps(figures, allow_nan=False)
