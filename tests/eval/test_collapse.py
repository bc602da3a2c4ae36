"""Collapse figures, hand-worked."""

import json

import pytest

from srlm_fast.eval import collapse_figures
from srlm_fast.eval.collapse import one_of_each_prompt
from srlm_fast.eval.ngrams import words
from srlm_fast.records import Candidate

SHARES = ("distinct_1", "distinct_2", "distinct_3", "self_bleu", "unique", "repeated_openings")


def answer(prompt_id, text, tokens=1, logprob=0.0, reason="stop", ids=None):
    ids = tuple(range(tokens)) if ids is None else ids
    return Candidate(prompt_id, 0, text, tuple(ids), logprob, reason)


def test_hand_worked():
    rows = [
        answer("p", "a b a b", 4, -2.0),
        answer("p", "a b a b", 4, -2.0),
        answer("q", "c", 2, -1.0, "length"),
    ]
    figures = collapse_figures(rows)
    assert figures["distinct_1"] == pytest.approx(3 / 9)
    assert figures["distinct_2"] == pytest.approx(2 / 6)
    assert figures["distinct_3"] == pytest.approx(2 / 4)
    assert figures["self_bleu"] == 0.0  # the first answers to p and to q share no word
    assert figures["unique"] == pytest.approx(2 / 3)
    assert figures["end_of_text"] == pytest.approx(2 / 3)
    assert figures["length_mean"] == pytest.approx(15 / 3)
    assert [figures[f"length_p{p}"] for p in (5, 50, 95)] == pytest.approx([1.6, 7.0, 7.0])
    assert figures["tokens_mean"] == pytest.approx(10 / 3)
    assert figures["entropy"] == pytest.approx(0.5)
    assert figures["n"] == 3


def test_neighbours_are_not_taken_across_answers():
    figures = collapse_figures([answer("p", "a b"), answer("p", "c"), answer("q", "b c")])
    assert figures["distinct_2"] == pytest.approx(2 / 2)
    assert figures["distinct_3"] is None


def test_the_same_answer_to_two_prompts_is_not_a_repeat():
    assert collapse_figures([answer("p", "yes"), answer("q", "yes")])["unique"] == 1.0


def test_a_chinese_or_japanese_character_is_a_word():
    assert words("A 你好, b-c ひら") == ["A", "你", "好", ",", "b-c", "ひ", "ら"]
    figures = collapse_figures([answer("p", "猫猫狗"), answer("q", "猫狗")])
    assert figures["distinct_1"] == pytest.approx(2 / 5)
    assert figures["distinct_2"] == pytest.approx(2 / 3)
    assert figures["self_bleu"] > 0


def test_openings_repeat_where_another_prompt_has_them():
    long, other = list(range(20)), list(range(19))
    rows = [
        answer("p", "", ids=[*long, 7]),
        answer("q", "", ids=[*long, 8]),  # the same first 20
        answer("r", "", ids=other),  # 19 of them, and its end
        answer("s", "", ids=[3, 0]),
        answer("s", "", ids=[3, 0]),  # to the same prompt
    ]
    assert collapse_figures(rows)["repeated_openings"] == pytest.approx(2 / 5)
    assert collapse_figures([*rows, answer("t", "", ids=other)])[
        "repeated_openings"
    ] == pytest.approx(4 / 6)


def test_self_bleu_takes_one_answer_to_each_of_prompts_spread_evenly():
    rows = [answer(f"p{i}", f"{k}") for i in range(10) for k in range(3)]
    assert [row.prompt_id for row in one_of_each_prompt(rows, 4)] == ["p0", "p2", "p5", "p7"]
    assert {row.text for row in one_of_each_prompt(rows)} == {"0"}
    assert len(one_of_each_prompt(rows)) == 10


def test_repetition_moves_the_figures():
    varied = collapse_figures(
        [answer(f"{i}", f"w{i} x{i} y{i}", ids=[i, 0]) for i in range(20)],
    )
    stuck = collapse_figures([answer(f"{i}", "same old words") for i in range(20)])
    for name in ("distinct_1", "distinct_2", "distinct_3"):
        assert stuck[name] < varied[name] / 5
    for name in ("self_bleu", "repeated_openings"):
        assert (varied[name], stuck[name]) == (0.0, 1.0)


@pytest.mark.parametrize("rows", [[], [answer("p", "", 0)]])
def test_nothing_to_measure_is_json(rows):
    figures = collapse_figures(rows)
    assert figures["distinct_1"] is None and figures["entropy"] is None
    assert figures["self_bleu"] is None
    assert json.loads(json.dumps(figures, allow_nan=False)).keys() >= set(SHARES)
