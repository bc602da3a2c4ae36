"""Who wins: in both orders, by scores, and when nothing can be read."""

from __future__ import annotations

import math

import pytest

from srlm_fast.judge import Comparison, Duel, by_comparison, by_score, compare, cross_pairs, matched
from srlm_fast.records import Candidate


def answer(prompt_id: str, index: int, text: str) -> Candidate:
    return Candidate(prompt_id, index, text, (), 0.0, "stop")


OURS = {"p": [answer("p", 0, "one"), answer("p", 1, "two")], "only": [answer("only", 0, "x")]}
THEIRS = {"p": [answer("p", 0, "one"), answer("p", 1, "three")], "lost": [answer("lost", 0, "y")]}


def indices(match: str) -> list[tuple[str, int, int]]:
    return [(a.prompt_id, a.index, b.index) for a, b in matched(OURS, THEIRS, match)]


def test_who_meets_whom():
    assert indices("all") == [("p", 0, 0), ("p", 0, 1), ("p", 1, 0), ("p", 1, 1)]
    assert indices("same") == [("p", 0, 0), ("p", 1, 1)]


def test_identical_texts_are_not_compared_and_equal_pairs_once():
    ours = {"p": [answer("p", 0, "one"), answer("p", 1, "one"), answer("p", 2, "two")]}
    theirs = {"p": [answer("p", 0, "two")]}
    assert cross_pairs(matched(ours, theirs)) == {("one", "two"): [("p", 0, 0), ("p", 1, 0)]}


@pytest.mark.parametrize(
    ("a_first", "b_first", "outcome", "orders"),
    [
        (0.9, 0.2, 1.0, (1, 1)),  # A named in both orders
        (0.1, 0.6, 0.0, (-1, -1)),
        (0.9, 0.9, 0.5, (1, -1)),  # the one shown first, whoever it is
        (0.2, 0.3, 0.5, (-1, 1)),
        (0.5, 0.2, 0.5, (0, 1)),
        (0.5, 0.5, 0.5, (0, 0)),
    ],
)
def test_both_orders(a_first: float, b_first: float, outcome: float, orders: tuple[int, int]):
    """a_first, b_first: P("1") with A's answer, with B's answer in the first place."""
    key = ("p", 1, 1)
    (match,) = [m for m in matched(OURS, THEIRS) if (m[0].index, m[1].index) == (1, 1)]
    (duel,) = by_comparison([match], {key: compare(key, (a_first, 0.9), (b_first, 0.9))})
    assert duel == Duel("p", 1, 1, outcome, (3, 5), "OK", orders)


def test_unread_comparisons_are_no_ties():
    rows = {("p", 0, 1): compare(("p", 0, 1), (0.9, 0.1), (0.2, 0.9))}
    rows["p", 1, 0] = Comparison("p", 1, 0, math.nan, 0.5, 0.9, None, "MISSING")
    found = by_comparison(matched(OURS, THEIRS), rows)
    assert [(duel.outcome, duel.status) for duel in found] == [
        (0.5, "OK"),  # identical: a tie without a judge
        (None, "MISSING"),
        (None, "MISSING"),
        (None, "TOO_LONG"),
    ]
    assert [duel.identical for duel in found] == [True, False, False, False]


def test_scores():
    ours = {("p", 0): [1.0, None], ("p", 1): [3.0, 4.0]}
    theirs = {("p", 0): [3.5], ("p", 1): [None, None]}
    found = by_score(matched(OURS, THEIRS), ours, theirs)
    assert [(duel.outcome, duel.status) for duel in found] == [
        (0.5, "OK"),  # identical, whatever the scores say
        (None, "NO_SCORE"),
        (0.5, "OK"),  # 3.5 and 3.5
        (None, "NO_SCORE"),
    ]
    found = by_score(matched(OURS, THEIRS), ours, {("p", 0): [3.0]})
    assert [(duel.outcome, duel.status) for duel in found][2:] == [(1.0, "OK"), (None, "TOO_LONG")]


def test_scores_within_the_slack_are_a_tie():
    (match,) = matched({"p": [answer("p", 0, "a")]}, {"p": [answer("p", 0, "b")]})

    def outcome(one: float, other: float, slack: float) -> float | None:
        return by_score([match], {("p", 0): [one]}, {("p", 0): [other]}, slack)[0].outcome

    assert outcome(0.1 + 0.2, 0.3, 0.0) == 0.5
    assert outcome(3.0, 2.75, 0.0) == 1.0 and outcome(2.75, 3.0, 0.2) == 0.0
    assert outcome(3.0, 2.75, 0.25) == 0.5
