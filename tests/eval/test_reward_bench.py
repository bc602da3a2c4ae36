"""RewardBench's sections, worked by hand."""

import pytest

from srlm_fast.eval import section_scores
from srlm_fast.eval.reward_bench import SECTIONS


def test_the_benchmark_has_23_subsets_each_in_one_section():
    names = [name for groups in SECTIONS.values() for group in groups for name in group]
    assert len(names) == len(set(names)) == 23


def test_subsets_count_by_their_pairs_but_maths_as_much_as_code():
    found = section_scores(
        {
            "alpacaeval-easy": (1.0, 100),
            "mt-bench-med": (0.5, 40),
            "donotanswer": (0.25, 136),
            "math-prm": (0.4, 447),
            "hep-cpp": (0.9, 164),
            "hep-rust": (0.6, 82),
            "of-my-own": (0.0, 1000),
        }
    )
    assert found["Chat"] == pytest.approx((100 + 20) / 140)
    assert found["Safety"] == 0.25
    assert found["Reasoning"] == pytest.approx((0.4 + (0.9 * 164 + 0.6 * 82) / 246) / 2)
    assert "Chat Hard" not in found
    assert found["Average"] == pytest.approx((120 / 140 + 0.25 + 0.6) / 3)


def test_what_was_not_measured_takes_no_part():
    assert section_scores({"math-prm": (None, 0), "hep-js": (0.75, 8)}) == {
        "Reasoning": 0.75,
        "Average": 0.75,
    }
    assert section_scores({"mine": (1.0, 3), "": (0.5, 2)}) == {}
