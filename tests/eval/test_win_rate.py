"""Win rates: hand-worked counts, lengths that decide and that do not, data without spread."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from scipy.optimize import minimize
from scipy.special import expit, logit, stdtrit

from srlm_fast.eval.win_rate import RIDGE, fit_logistic, length_controlled, win_rate
from srlm_fast.judge import Duel


def duel(prompt: Any, outcome: float | None, difference: int = 0, k: int = 0, **more: Any) -> Duel:
    return Duel(str(prompt), k, k, outcome, (1000 + difference, 1000), **more)


def finite(value: Any) -> bool:
    if isinstance(value, dict):
        return all(map(finite, value.values()))
    if isinstance(value, list):
        return all(map(finite, value))
    return value is None or math.isfinite(value)


def test_counts_by_hand():
    duels = [
        duel("a", 1.0, 30),
        duel("a", 0.5, -10, 1),
        duel("b", 0.0, 20),
        duel("b", None, 5, 1, status="MISSING"),
        duel("c", 1.0, -20),
        duel("c", 0.5, 0, 1, identical=True),
        duel("c", None, 5, 2, status="TOO_LONG"),
    ]
    found = win_rate(duels)
    assert (found["win"], found["tie"], found["loss"], found["n"]) == (2, 2, 1, 5)
    assert found["prompts"] == 3 and found["identical"] == 1
    assert found["shares"] == {"win": 0.4, "tie": 0.4, "loss": 0.2}
    assert found["win_rate"] == 0.6
    assert found["unread"] == {"missing": 1, "too_long": 1}
    # a: 1.5 of 2, b: 0 of 1, c: 1.5 of 2; residuals against 0.6 are 0.3, -0.6, 0.3
    error = math.sqrt((0.09 + 0.36 + 0.09) * 3 / 2) / 5
    half = stdtrit(2, 0.975) * error
    assert found["interval"] == pytest.approx([max(0.6 - half, 0), min(0.6 + half, 1)])
    # wins: 1 of 2, 0 of 1, 1 of 2 against 0.4: 0.2, -0.4, 0.2; ties the same
    half = stdtrit(2, 0.975) * math.sqrt(0.24 * 3 / 2) / 5
    assert found["intervals"]["win"] == pytest.approx([max(0.4 - half, 0), min(0.4 + half, 1)])
    assert found["intervals"]["tie"] == found["intervals"]["win"]
    # losses: 0 of 2, 1 of 1, 0 of 2 against 0.2: -0.4, 0.8, -0.4
    half = stdtrit(2, 0.975) * math.sqrt(0.96 * 3 / 2) / 5
    assert found["intervals"]["loss"] == pytest.approx([max(0.2 - half, 0), min(0.2 + half, 1)])
    # won by the longer: 30 yes, -10 half, 20 no, -20 no
    assert (
        found["longer_wins"]["share"] == pytest.approx(1.5 / 4) and found["longer_wins"]["n"] == 4
    )
    only = found["length_only"]
    assert (only["win"], only["tie"], only["loss"], only["n"]) == (2, 1, 2, 5)
    assert found["position"] is None


def test_mean_lengths_count_an_answer_once():
    duels = [Duel("p", i, j, 0.5, (len_a, 7)) for i, len_a in enumerate((10, 20)) for j in (0,)]
    duels.append(Duel("p", 0, 1, None, (10, 9)))
    assert win_rate(duels)["length_mean"] == {"a": 15.0, "b": 8.0}


def test_places_by_hand():
    """Orders (A first, B first): 1 for A. Of the first two comparisons one names the place."""
    orders = [(1, 1), (1, -1), (-1, 1), (0, 1), (1, -1)]
    outcomes = [1.0, 0.5, 0.5, 0.5, 0.5]
    found = win_rate(
        [duel(i, y, orders=o) for i, (y, o) in enumerate(zip(outcomes, orders, strict=True))]
    )
    assert found["position"]["disagree"]["share"] == 3 / 5
    # first place named: 1 of 2, 2 of 2, 0 of 2, (half + 0) of 2, 2 of 2
    assert found["position"]["first"]["share"] == pytest.approx((0.5 + 1 + 0 + 0.25 + 1) / 5)
    assert found["position"]["first"]["n"] == 5


def test_a_judge_that_only_likes_length():
    """A's answers are longer as a rule and win for it; at equal lengths nobody would."""
    differences = np.random.default_rng(0).normal(60, 50, 200).round()
    favour = expit(2 * np.tanh(differences / differences.std()))
    rows = zip(favour, differences, strict=True)
    found = length_controlled([duel(i, *row) for i, row in enumerate(rows)])
    assert favour.mean() > 0.75
    assert found["win_rate"] == pytest.approx(0.5, abs=1e-3)
    assert found["length_effect"] == pytest.approx(2.0, abs=1e-2)


def test_a_judge_that_knows_nothing_but_length():
    """A is longer four times of five and wins just those, however small the difference."""
    draws = np.random.default_rng(0).integers(1, 200, 200)
    found = win_rate([duel(i, float(i % 5 > 0), d if i % 5 else -d) for i, d in enumerate(draws)])
    assert found["win_rate"] == 0.8 and found["longer_wins"]["share"] == 1.0
    low, high = found["length_controlled"]["interval"]
    assert low < 0.5 < high
    mirrored = [duel(i, float(d > 0), d) for i, d in enumerate(range(-50, 51)) if d]
    assert length_controlled(mirrored)["win_rate"] == pytest.approx(0.5, abs=1e-9)


def test_a_gap_that_has_nothing_to_do_with_length_stays():
    duels = [
        duel(f"{difference} {k}", float(k < 7), difference)
        for difference in (-5, 10, 40, 90)
        for k in range(10)
    ]
    found = win_rate(duels)
    assert found["win_rate"] == pytest.approx(0.7)
    assert found["length_controlled"]["win_rate"] == pytest.approx(0.7, abs=1e-3)
    assert abs(found["length_controlled"]["length_effect"]) < 0.01


def drawn(seed: int, prompts: int = 120, each: int = 3) -> list[Duel]:
    """Ties, a favour for length, and prompts on which one model is better throughout."""
    rng = np.random.default_rng(seed)
    found = []
    for prompt in range(prompts):
        shift = rng.normal() * 2
        for k in range(each):
            difference = int(rng.normal(40, 60))
            logits = 0.4 + shift + 1.5 * np.tanh(difference / 60) + rng.normal() * 0.3
            outcome = 0.5 if rng.random() < 0.2 else float(rng.random() < expit(logits))
            found.append(duel(prompt, outcome, difference, k))
    return found


def design_of(duels: list[Duel]) -> tuple[np.ndarray, np.ndarray]:
    d = np.array([each.lengths[0] - each.lengths[1] for each in duels], dtype=np.float64)
    y = np.array([each.outcome for each in duels], dtype=np.float64)
    return np.stack([np.ones(len(d)), np.tanh(d / d.std())], axis=1), y


@pytest.mark.parametrize("seed", range(3))
def test_the_fit_is_that_of_a_general_minimiser(seed: int):
    design, outcomes = design_of(drawn(seed))

    def loss(weights: np.ndarray) -> float:
        p = expit(design @ weights)
        entropy = -(outcomes * np.log(p) + (1 - outcomes) * np.log1p(-p)).sum()
        return entropy + RIDGE / 2 * (weights**2).sum()

    reference = minimize(loss, np.zeros(2), method="BFGS", options={"gtol": 1e-9})
    np.testing.assert_allclose(fit_logistic(design, outcomes), reference.x, atol=1e-6)
    assert length_controlled(drawn(seed))["win_rate"] == pytest.approx(
        expit(reference.x[0]), abs=1e-6
    )


def test_the_interval_is_as_wide_as_resampled_prompts_are():
    duels, rng = drawn(7), np.random.default_rng(0)
    design, outcomes = design_of(duels)
    rows = np.arange(len(duels)).reshape(-1, 3)
    thetas = []
    for _ in range(200):
        picked = rows[rng.integers(len(rows), size=len(rows))].ravel()
        thetas.append(fit_logistic(design[picked], outcomes[picked])[0])
    low, high = length_controlled(duels)["interval"]
    error = (logit(high) - logit(low)) / 2 / stdtrit(len(rows) - 1, 0.975)
    assert error == pytest.approx(np.std(thetas), rel=0.2)
    # A prompt's comparisons as prompts of their own would look like more than they are.
    apart = [duel(i, d.outcome, d.lengths[0] - d.lengths[1]) for i, d in enumerate(duels)]
    narrow = length_controlled(apart)["interval"]
    assert narrow[1] - narrow[0] < 0.85 * (high - low)
    # Every comparison four times in its prompt says nothing new.
    assert length_controlled(duels * 4)["interval"] == pytest.approx([low, high], abs=1e-3)


def test_at_equal_lengths_it_is_the_win_rate_by_the_delta_method():
    outcomes = [1.0] * 60 + [0.5] * 20 + [0.0] * 20
    found = win_rate([duel(i, y) for i, y in enumerate(outcomes)])
    assert found["length_controlled"]["win_rate"] == pytest.approx(found["win_rate"], abs=1e-3)
    errors = [np.subtract(*made[::-1]) for made in (found["interval"],)]
    low, high = found["length_controlled"]["interval"]
    slope = 0.7 * 0.3
    assert (logit(high) - logit(low)) * slope == pytest.approx(errors[0], rel=3e-2)


@pytest.mark.parametrize(
    ("outcome", "differences", "win", "extrapolated"),
    [
        (lambda d: 1.0, [0] * 30, "above", False),
        (lambda d: 0.0, [0] * 30, "below", False),
        (lambda d: 1.0, range(1, 31), "above", True),
        (lambda d: 1.0, [7] * 30, "above", True),
        (lambda d: 0.5, range(-15, 15), "half", False),
        (lambda d: float(d > 0), [-1, 1] * 15, "half", False),
        (lambda d: float(d > 0), [-(10**6), 10**6] * 15, "half", False),
    ],
)
def test_data_without_spread_does_not_blow_up(outcome, differences, win, extrapolated):
    found = win_rate([duel(i, outcome(d), d) for i, d in enumerate(differences)])
    assert finite(found)
    controlled = found["length_controlled"]
    low, high = controlled["interval"]
    assert 0 <= low <= controlled["win_rate"] <= high <= 1
    assert controlled["extrapolated"] is extrapolated
    limits = {"above": (0.95, 1), "below": (0, 0.05), "half": (0.499, 0.501)}[win]
    assert limits[0] <= controlled["win_rate"] <= limits[1]
    assert 0.05 < high - low  # thirty cases are not certainty
    assert 0.05 < found["interval"][1] - found["interval"][0]


def longer_wins_but(seldom: int, of: int, same: int) -> list[Duel]:
    """A wins all but `seldom` of `of`, always by the longer answer; then identical texts."""
    won = [duel(i, 1.0, 5 + i) if i >= seldom else duel(i, 0.0, -5 - i) for i in range(of)]
    return won + [duel(of + i, 0.5, identical=True) for i in range(same)]


@pytest.mark.parametrize(("seldom", "of", "same"), [(2, 20, 5), (4, 8, 4), (10, 30, 1)])
def test_ties_do_not_make_a_fit_without_mistakes_sure(seldom: int, of: int, same: int):
    """Where the longer answer always wins nothing is known of equal lengths, whatever is a tie."""
    duels = longer_wins_but(seldom, of, same)
    alone = length_controlled(duels[:of])
    share = same / (of + same)
    found = length_controlled(duels)
    assert found["win_rate"] == pytest.approx((1 - share) * alone["win_rate"] + share / 2)
    assert found["length_effect"] == alone["length_effect"]
    widths = [high - low for low, high in (alone["interval"], found["interval"])]
    assert widths[1] > 0.99 * (1 - share) * widths[0] > 0.2
    seen = [duel(of + i, 0.5, i % 2) for i in range(same)]  # ties that a judge called
    low, high = length_controlled(duels[:of] + seen)["interval"]
    assert high - low > 0.2


def test_few_losses_are_not_certainty():
    """Of 30 prompts one or two are lost, by long answers: 19 of 20 won is still likely."""
    for lost in ({27}, {27, 28}):
        duels = [duel(i, float(i not in lost), 5 * i - 40) for i in range(30)]
        low, high = length_controlled(duels)["interval"]
        assert low < 0.95 < high
    # A win and a loss among ties, at lengths that tell nothing of equal ones.
    ties = [duel(i, 0.5, 8 * i - 70) for i in range(28)]
    low, high = length_controlled([*ties, duel("w", 1.0, 150), duel("l", 0.0, 150)])["interval"]
    assert high - low > 0.05


def test_identical_texts_are_ties_at_any_length():
    """By hand: 0.7 at equal lengths of half of the comparisons, and a share that is no constant."""
    seen = [duel(i, float(i % 10 < 7)) for i in range(40)]
    same = [duel(40 + i, 0.5, identical=True) for i in range(40)]
    rate, found = length_controlled(seen), length_controlled(seen + same)
    assert found["win_rate"] == pytest.approx(0.6, abs=1e-3)
    half = stdtrit(79, 0.975) * math.sqrt(0.25 / 79)
    for side in (0, 1):
        parts = (rate["interval"][side] - rate["win_rate"]) / 2, 0.2 * half
        assert abs(found["interval"][side] - found["win_rate"]) == pytest.approx(
            math.hypot(*parts), abs=1e-3
        )
    assert length_controlled(same) is None and win_rate(same)["interval"][0] < 0.5


def test_all_won_at_equal_lengths_is_as_sure_as_the_rule_of_three_says():
    """exp(-n (1 - p)) = 0.05 at about 1 - 3 / n on one side; two sides have t^2 / 2 for 3."""
    (low, high) = length_controlled([duel(i, 1.0) for i in range(100)])["interval"]
    assert low == pytest.approx(math.exp(-(stdtrit(99, 0.975) ** 2) / 2 / 100), abs=2e-3)
    assert high > 0.999
    # Four comparisons of each prompt are no more prompts.
    again = length_controlled([duel(i % 100, 1.0, k=i) for i in range(400)])["interval"]
    assert again[0] == pytest.approx(low, abs=1e-3)


def test_one_prompt_or_none():
    found = win_rate([duel("p", 1.0, 3), duel("p", 0.0, 5, 1)])
    assert found["interval"] is None and found["length_controlled"]["interval"] is None
    assert found["win_rate"] == 0.5
    nothing = win_rate([duel("p", None, 3, status="MISSING")])
    assert nothing["n"] == 0 and nothing["unread"] == {"missing": 1}
    assert nothing["win_rate"] is nothing["interval"] is nothing["length_controlled"] is None
    assert nothing["intervals"] == {"win": None, "tie": None, "loss": None}
    assert nothing["longer_wins"] == {"share": None, "interval": None, "n": 0}
    assert win_rate([])["length_mean"] is None
