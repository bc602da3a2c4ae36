"""Intervals: scipy's t interval, its coverage, and the edges."""

import math

import numpy as np
import pytest
from scipy import stats

from srlm_fast.eval import mean_interval
from srlm_fast.eval.interval import ratio_interval, share_interval


def test_against_scipy():
    values = [3.0, 4.5, 2.0, 5.0, 4.0, 3.5]
    want = stats.ttest_1samp(values, 0).confidence_interval(0.95)
    mean, low, high = mean_interval(values)
    assert mean == pytest.approx(np.mean(values))
    assert (low, high) == pytest.approx((want.low, want.high))


def test_hand_worked():
    """1, 3: mean 2, s = sqrt 2, standard error 1, t(0.975, 1) = 12.7062."""
    assert mean_interval([1, 3]) == pytest.approx((2.0, 2 - 12.7062, 2 + 12.7062), rel=1e-5)


def test_covers_as_often_as_it_says():
    draws = np.random.default_rng(0).integers(0, 6, (1500, 20))
    inside = [low <= 2.5 <= high for _, low, high in map(mean_interval, draws)]
    assert 0.93 < np.mean(inside) < 0.97


def test_one_value_and_equal_values_have_no_spread():
    assert mean_interval([4]) == (4, 4, 4)
    assert mean_interval([0.1] * 7) == (pytest.approx(0.1),) * 3


@pytest.mark.parametrize("values", [[], [1.0, math.nan], [math.inf]])
def test_values_that_cannot_be_used(values):
    with pytest.raises(ValueError, match="values"):
        mean_interval(values)


def test_a_ratio_that_is_the_same_everywhere():
    """30 prompts of ties: up to q = z^2 / (30 + z^2) of all prompts may be won, or lost."""
    q = 1.959964**2 / (30 + 1.959964**2)
    assert ratio_interval([(0.5, 1)] * 30) == pytest.approx([0.5 - q / 2, 0.5 + q / 2])
    assert ratio_interval([(k, 3 * k) for k in range(1, 31)]) == pytest.approx(
        [(1 - q) / 3, (1 - q) / 3 + q]
    )
    for share in (0, 1):
        wanted = share_interval(30 * share, 30)
        assert ratio_interval([(4 * share, 4)] * 30) == pytest.approx(wanted)
