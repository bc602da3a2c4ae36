"""Rewards: where a candidate's scores come from."""

from collections import Counter
from statistics import mean

from scipy import stats

from srlm_fast.judge import (
    JudgedReward,
    RandomReward,
    ScorerReward,
    make_pairs,
    score_candidates,
)
from srlm_fast.records import Candidate, Judgement, Prompt


def prompt(text: str) -> Prompt:
    return Prompt(text, text, "file")


def answer(question: str, index: int, text: str) -> Candidate:
    return Candidate(question, index, text, (), 0.0, "stop")


def test_judged_gives_what_the_judge_wrote():
    reward = JudgedReward(
        [Judgement("q", 0, 1, "", None, "MISSING"), Judgement("q", 0, 0, "", 4.0, "OK")]
    )
    assert reward.scores(prompt("q"), answer("q", 0, "x")) == [4.0, None]
    assert reward.scores(prompt("q"), answer("q", 1, "x")) == []


def test_random_is_the_same_in_any_order_and_for_the_same_text():
    reward = RandomReward(seed=3)
    one = [reward.scores(prompt(f"q{i}"), answer(f"q{i}", 0, "a")) for i in range(20)]
    again = [
        RandomReward(3).scores(prompt(f"q{i}"), answer(f"q{i}", 5, "a")) for i in range(19, -1, -1)
    ]
    assert one == again[::-1]
    assert one != [
        RandomReward(4).scores(prompt(f"q{i}"), answer(f"q{i}", 0, "a")) for i in range(20)
    ]


def test_random_keeps_question_and_answer_apart():
    reward = RandomReward(samples=8)
    assert reward.scores(prompt("ab"), answer("", 0, "c")) != reward.scores(
        prompt("a"), answer("", 0, "bc")
    )


def test_random_is_even_over_the_scale_and_blind_to_quality():
    draws = [
        RandomReward(1).scores(prompt(f"q{i}"), answer("", 0, "x" * (i % 7))) for i in range(2000)
    ]
    counts = Counter(score for scores in draws for score in scores)
    assert set(counts) == set(range(6))
    assert stats.chisquare(list(counts.values())).pvalue > 1e-4
    lengths = [i % 7 for i in range(2000)]
    assert abs(stats.spearmanr(lengths, [mean(scores) for scores in draws]).statistic) < 0.08


def test_scorer_is_asked_with_the_texts():
    reward = ScorerReward(lambda question, text: len(question) + len(text))
    assert reward.scores(prompt("abc"), answer("abc", 0, "de")) == [5.0]


def test_scores_feed_the_pairs():
    prompts = [prompt("q"), prompt("r")]
    rows = [answer(q.text, i, text) for q in prompts for i, text in enumerate(["long one", "x"])]
    scores = score_candidates(ScorerReward(lambda _, text: float(len(text))), prompts, rows)
    made = make_pairs(prompts, rows, scores)
    assert [pair["chosen"][1]["content"] for pair in made.pairs] == ["long one"] * 2
