"""What the loop thinks of a model's own held-out answers, by the kind of reward. What comes of it
in whole runs is tested with these (`test_comparing`, `test_rewards`).
"""

from __future__ import annotations

from types import SimpleNamespace

from srlm_fast.loop.own_score import OWN_SCORES, both_scores, by_rubric
from srlm_fast.loop.watching import Watching
from srlm_fast.options import REWARDS
from srlm_fast.records import Judgement


def test_only_prompts_with_both_scores_count():
    rows = [Judgement(key, k, 0, "", s, "OK") for key, k, s in SCORES]
    assert both_scores(rows) == [(1.0, 2.0)]


SCORES = [
    ("a", 0, 1.0),
    ("a", 1, 2.0),
    ("b", 0, None),
    ("b", 1, 3.0),
    ("c", 0, 1.0),
    ("c", 1, None),
]


def test_a_constitution_has_the_rubrics_own_score():
    """The live model that revises grades too, and is the judge of the judge table."""
    assert OWN_SCORES["constitution"] is OWN_SCORES["self"] is by_rubric
    assert REWARDS and set(REWARDS) - set(OWN_SCORES) == {"random", "gold"}


def run_of(reward, known=(), program=None, iterations=2):
    config = SimpleNamespace(reward=reward, iterations=iterations)
    material = SimpleNamespace(score_bits=program, eft_eval=list(known))
    return SimpleNamespace(config=config, material=material)


def test_a_run_says_once_that_the_warning_cannot_come_up():
    (said,) = Watching(run_of("random", program=len)).notes
    assert said == "no warning self_praise: --reward random has no own score"
    (said,) = Watching(run_of("self")).notes
    assert "there are no answers of known order (--eft, --eft-eval)" in said
    assert not Watching(run_of("pairwise", known=[{}])).notes
    assert not Watching(run_of("model", program=len)).notes
    assert not Watching(run_of("random", iterations=0)).notes
