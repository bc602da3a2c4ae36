"""The score parser against a golden file, and the token reader against the parser."""

import json
import math
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from srlm_fast.judge import ScoreStatus, parse_score

GOLDEN = [
    json.loads(line)
    for line in (Path(__file__).parent / "golden_scores.jsonl").read_text("utf-8").splitlines()
]
FRAGMENTS = [
    *("Score", "score", ":", " ", "\n", "*", "_", "`", "/", ".", ",", "-", "e", "x", " out of "),
    *(str(n) for n in range(11)),
    *("a", "é", "分", "４", "🙂", "Score: ", "/5", "/10", "S", "Sco"),
]
texts = st.lists(st.sampled_from(FRAGMENTS), max_size=12).map("".join)


@pytest.mark.parametrize("case", GOLDEN, ids=lambda case: case["name"])
def test_golden(case):
    score, status = parse_score(case["text"], case["finished"])
    assert status.name == case["status"]
    assert math.isnan(score) if case["score"] is None else score == case["score"]


def test_golden_file_is_large_and_covers_every_status():
    assert len(GOLDEN) >= 200
    assert len({case["name"] for case in GOLDEN}) == len(GOLDEN)
    assert {case["status"] for case in GOLDEN} == {status.name for status in ScoreStatus}
    assert all((case["score"] is None) == (case["status"] != "OK") for case in GOLDEN)


@pytest.mark.parametrize("number", ["10", "45", "05", "4.5", "-1", "1e1", "4/10"])
@pytest.mark.parametrize("behind", ["", "\n", " and more", ". More"])
def test_a_longer_number_is_never_read_as_its_first_digit(number, behind):
    score, status = parse_score(f"Score: {number}{behind}")
    assert math.isnan(score)
    assert status is ScoreStatus.OUT_OF_RANGE


@settings(max_examples=300, deadline=None)
@given(texts)
def test_only_ok_carries_a_number_and_it_is_in_range(text):
    for finished in (True, False):
        score, status = parse_score(text, finished)
        assert (status is ScoreStatus.OK) == (not math.isnan(score))
        assert math.isnan(score) or score in range(6)
        assert finished or status is not ScoreStatus.MISSING
        assert not finished or status is not ScoreStatus.TRUNCATED


@settings(max_examples=300, deadline=None)
@given(texts, texts)
def test_a_certain_score_stays_unless_another_label_follows(text, more):
    """What "certain" means: no text behind the cut changes it, short of a whole new label."""
    score, status = parse_score(text, finished=False)
    if status is ScoreStatus.OK and "score" not in more.lower():
        assert parse_score(text + more) == (score, ScoreStatus.OK)


@settings(max_examples=200, deadline=None)
@given(texts, st.integers(0, 5), st.sampled_from(["\n", " ", " so ", ". "]))
def test_the_last_number_decides(before, number, behind):
    assert parse_score(f"{before}\nScore: {number}{behind}") == (number, ScoreStatus.OK)


@pytest.mark.parametrize(
    ("pattern", "text", "want"),
    [
        (r"Rating:", "Rating: **7**/9", 7),
        (r"Rating:", "Score: 3", ScoreStatus.MISSING),
        (r"Score: (\d+)", "It should be 4. Score: 3", 3),
        (r"Score: (\d)", "Score: 10", ScoreStatus.OUT_OF_RANGE),
        (r"Score: (\d+)", "Score: ４", ScoreStatus.MISSING),
        (r"\[\[(\d+)\]\]", "[[8]] and [[2]]", 2),
        (r"<score>(\d+)</score>", "<score>4</score>.", 4),
        (r"<score>(\d+)</score>", "<score>4", ScoreStatus.MISSING),
        (r"Points?:|Grade:", "Point: 9 Grade: 1", 1),
    ],
)
def test_own_pattern(pattern, text, want):
    score, status = parse_score(text, pattern=pattern, low=1, high=9)
    assert (status if math.isnan(score) else score) == want


@pytest.mark.parametrize(
    ("text", "want"),
    [
        ("fine <sco", ScoreStatus.TRUNCATED),
        ("<score>4</sc", ScoreStatus.TRUNCATED),
        ("<score>4</score>", ScoreStatus.OK),
        ("<score>4</score> and <", ScoreStatus.TRUNCATED),
        ("<score>4</score> and", ScoreStatus.OK),
    ],
)
def test_own_pattern_cut_by_the_token_limit(text, want):
    assert parse_score(text, finished=False, pattern=r"<score>(\d+)</score>")[1] is want


@pytest.mark.parametrize(
    ("arguments", "name"),
    [
        ({"pattern": "("}, "pattern"),
        ({"pattern": ""}, "pattern"),
        ({"pattern": "x*"}, "pattern"),
        ({"low": 5, "high": 5}, "low"),
        ({"low": -1}, "low"),
    ],
)
def test_a_pattern_that_cannot_be_used_is_named(arguments, name):
    with pytest.raises(ValueError, match=name):
        parse_score("Score: 4", **arguments)


@pytest.mark.parametrize(
    "text",
    [
        "Score" + " " * 50_000,
        "_" * 50_000,
        "Score: " * 5_000,
        "Score: 1" + " *" * 25_000,
        "S" * 50_000,
    ],
)
@pytest.mark.timeout(10)
def test_long_output_is_read_in_linear_time(text):
    for finished in (True, False):
        assert parse_score(text, finished)[1] in ScoreStatus
