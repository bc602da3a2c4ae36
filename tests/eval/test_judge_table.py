"""The judge table: hand-worked cases and scipy."""

import json
import random

import numpy as np
import pytest
from scipy import stats

from srlm_fast.eval import judge_table


def row(scores, judged, responses=None):
    texts = responses or ["x" * (i + 1) for i in range(len(scores))]
    return {"prompt": "q", "responses": texts, "scores": scores, "judged": judged}


def test_hand_worked():
    rows = [
        row([3, 2, 1], [5, 4, 1]),  # all three pairs right
        row([3, 2, 1], [2, 2, 5]),  # a tie, two wrong
        row([2, 2, 1], [5, 4, 3]),  # one pair has no order of people's: two right
    ]
    table = judge_table(rows)
    assert table["pairwise_accuracy"] == pytest.approx((3 + 0.5 + 2) / 8)
    assert table["ties"] == pytest.approx(1 / 8)
    assert table["pairwise_untied"] == pytest.approx(5 / 7)
    assert table["exact_match"] == pytest.approx(1 / 3)  # the third judge parts two that people tie
    assert table["five_best"] == pytest.approx(2 / 3)
    assert table["n"] == {
        "pairwise_accuracy": 8,
        "pairwise_untied": 7,
        "ties": 8,
        "exact_match": 3,
        "spearman": 3,
        "kendall": 3,
        "five_best": 3,
    }


def test_against_scipy():
    draw = random.Random(1)
    rows = [
        row([draw.randint(0, 5) for _ in range(5)], [draw.randint(0, 15) / 3 for _ in range(5)])
        for _ in range(60)
    ]
    ordered = [r for r in rows if len(set(r["scores"])) > 1]
    assert all(len(set(r["judged"])) > 1 for r in ordered)
    table = judge_table(rows)
    for name, statistic in (("spearman", stats.spearmanr), ("kendall", stats.kendalltau)):
        want = np.mean([statistic(r["scores"], r["judged"]).statistic for r in ordered])
        assert table[name] == pytest.approx(want)
    same = [
        (stats.rankdata(r["scores"], "dense") == stats.rankdata(r["judged"], "dense")).all()
        for r in ordered
    ]
    assert table["exact_match"] == pytest.approx(np.mean(same))


def test_against_brute_force():
    """Ranks and signs by hand, without scipy, ties included."""

    def ranks(values):
        return [sum(w < v for w in values) + (values.count(v) + 1) / 2 for v in values]

    def spearman(human, judge):
        x, y = (np.array(ranks(values)) - (len(values) + 1) / 2 for values in (human, judge))
        return x @ y / np.sqrt((x @ x) * (y @ y))

    def kendall(human, judge):
        pairs = [(i, j) for i in range(len(human)) for j in range(i)]
        x, y = (np.array([np.sign(v[i] - v[j]) for i, j in pairs]) for v in (human, judge))
        return x @ y / np.sqrt((x @ x) * (y @ y))

    draw = random.Random(7)
    for _ in range(100):
        count = draw.randint(2, 6)
        human, judge = ([draw.randint(0, 3) for _ in range(count)] for _ in range(2))
        table = judge_table([row(human, judge)])
        if len(set(human)) < 2:
            assert table["spearman"] is None and table["kendall"] is None
        elif len(set(judge)) < 2:
            assert table["spearman"] == table["kendall"] == 0.0
        else:
            assert table["spearman"] == pytest.approx(spearman(human, judge))
            assert table["kendall"] == pytest.approx(kendall(human, judge))


def test_tau_b_by_hand():
    """Six pairs; people tie one, the judge another; of the other four three agree: (3 - 1) over
    sqrt(5 * 5).
    """
    table = judge_table([row([1, 2, 2, 3], [1, 4, 2, 2])])
    assert table["kendall"] == pytest.approx(2 / 5)


def test_a_perfect_and_a_reversed_judge():
    scores = [[0, 1, 2, 5], [5, 3, 4, 1]]
    right = judge_table([row(s, s) for s in scores])
    assert all(right[k] == 1.0 for k in ("pairwise_accuracy", "exact_match", "spearman", "kendall"))
    assert right["five_best"] == 1.0 and right["ties"] == 0.0
    wrong = judge_table([row(s, [5 - x for x in s]) for s in scores])
    assert wrong["pairwise_accuracy"] == 0.0 and wrong["exact_match"] == 0.0
    assert wrong["spearman"] == pytest.approx(-1) and wrong["kendall"] == pytest.approx(-1)
    assert wrong["five_best"] == 0.0


def test_a_judge_that_ties_everything_knows_nothing():
    table = judge_table([row([1, 2, 3], [4, 4, 4])])
    assert table["pairwise_accuracy"] == 0.5 and table["ties"] == 1.0
    assert table["spearman"] == table["kendall"] == table["exact_match"] == 0.0
    assert table["pairwise_untied"] is None


def test_unread_scores_take_no_part_and_are_counted():
    table = judge_table([row([3, 2, 1], [5, None, 1]), row([2, 1], [None, 3])])
    assert table["pairwise_accuracy"] == 1.0 and table["n"]["pairwise_accuracy"] == 1
    assert table["unjudged"] == 2 and table["prompts"] == 2
    assert table["n"]["spearman"] == 1


def test_five_best_counts_answers_at_the_top_of_the_scale():
    rows = [row([4, 4, 1], [5, 5, 5]), row([2, 1], [4 + 2 / 3, 5])]
    table = judge_table(rows)
    assert table["five_best"] == pytest.approx(2 / 4) and table["n"]["five_best"] == 4


def test_answers_of_different_prompts_are_not_compared():
    """Within each prompt the judge is right, across them it would be wrong."""
    assert judge_table([row([1, 2], [4, 5]), row([3, 4], [0, 1])])["pairwise_accuracy"] == 1.0


def test_length_only_is_the_judge_that_counts_characters():
    rows = [row([1, 2, 3], [3, 2, 1], ["a", "bb", "ccc"]), row([2, 1], [2, 1], ["é", "ab"])]
    control = judge_table(rows)["length_only"]
    assert control["pairwise_accuracy"] == pytest.approx(3 / 4)
    assert control["spearman"] == pytest.approx(0.0)


def test_nothing_to_measure_is_none_and_json():
    for rows in ([], [row([1, 1], [2, 3])], [row([1, 2], [None, None])]):
        table = judge_table(rows)
        assert table["pairwise_accuracy"] is None and table["pairwise_interval"] is None
        assert json.loads(json.dumps(table, allow_nan=False)) == table


def test_interval_holds_the_accuracy_and_narrows():
    draw = random.Random(2)

    def sample(count):
        return [row([2, 1], [2, 1] if draw.random() < 0.75 else [1, 2]) for _ in range(count)]

    few, many = judge_table(sample(40)), judge_table(sample(1000))
    for table in (few, many):
        low, high = table["pairwise_interval"]
        assert low < table["pairwise_accuracy"] < high
    width = [high - low for low, high in (few["pairwise_interval"], many["pairwise_interval"])]
    # sqrt(1000 / 40) = 5 times; the binomial width at n = 1000 is 2 * 1.96 * sqrt(.75 * .25 / n).
    assert width[1] == pytest.approx(2 * 1.96 * (0.75 * 0.25 / 1000) ** 0.5, rel=0.15)
    assert 3 < width[0] / width[1] < 7
    assert judge_table(sample(1))["pairwise_interval"] is None  # one prompt has no spread


def test_interval_takes_the_pairs_of_a_prompt_together():
    """Ten pairs each, all right or all wrong, are no more evidence than one pair each."""
    right, wrong = [1, 2, 3, 4, 5], [5, 4, 3, 2, 1]
    many = judge_table([row(right, right if i % 4 else wrong) for i in range(100)])
    one = judge_table([row([1, 2], [1, 2] if i % 4 else [2, 1]) for i in range(100)])
    assert many["n"]["pairwise_accuracy"] == 10 * one["n"]["pairwise_accuracy"]
    assert many["pairwise_interval"] == pytest.approx(one["pairwise_interval"])


def test_interval_against_the_bootstrap():
    draw = random.Random(3)
    rows = [
        row([1, 2, 3], [draw.randint(0, 3), draw.randint(0, 4), draw.randint(0, 5)])
        for _ in range(200)
    ]
    tables = [judge_table([r]) for r in rows]
    pairs = np.array([table["n"]["pairwise_accuracy"] for table in tables])
    right = pairs * [table["pairwise_accuracy"] for table in tables]
    drawn = np.random.default_rng(0).integers(0, 200, (2000, 200))
    draws = right[drawn].sum(1) / pairs[drawn].sum(1)
    low, high = judge_table(rows)["pairwise_interval"]
    assert high - low == pytest.approx(2 * 1.96 * np.std(draws), rel=0.05)


def test_every_figure_has_an_interval_over_prompts():
    draw = random.Random(5)
    rows = [
        row([1, 2, 3, 3], [min(5, s + draw.randint(0, 3)) for s in (1, 2, 3, 3)])
        for _ in range(120)
    ]
    table = judge_table(rows)
    assert table["intervals"].keys() == table["n"].keys()
    assert table["intervals"]["pairwise_accuracy"] == table["pairwise_interval"]
    for name, (low, high) in table["intervals"].items():
        assert low < table[name] < high
    # Each prompt's own table gives the parts of every ratio and mean, to be drawn again.
    own = [judge_table([r]) for r in rows]
    drawn = np.random.default_rng(1).integers(0, len(rows), (2000, len(rows)))
    for name in table["n"]:
        counts = np.array([t["n"][name] for t in own])
        parts = counts * [t[name] or 0.0 for t in own]
        draws = parts[drawn].sum(1) / counts[drawn].sum(1)
        low, high = table["intervals"][name]
        assert high - low == pytest.approx(2 * 1.96 * np.std(draws), rel=0.12), name
    assert table["length_only"]["intervals"]["spearman"] is not None


def test_a_judge_without_fault_is_not_sure_of_it():
    """Ten of ten right: Wilson's lower end is 1 / (1 + z**2 / 10)."""
    table = judge_table([row([1, 2], [1, 2])] * 10)
    assert table["pairwise_interval"] == pytest.approx([1 / (1 + 1.959964**2 / 10), 1.0])
    assert table["intervals"]["ties"] == pytest.approx([0.0, 1 - 1 / (1 + 1.959964**2 / 10)])


def test_lists_of_different_length_are_refused():
    with pytest.raises(ValueError, match=r"rows\[1\]"):
        judge_table([row([1, 2], [1, 2]), row([1, 2], [1])])
