"""Pairs: the right two answers, the right row, and a counted reason wherever there is none."""

import json
import math
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from srlm_fast.judge import PairConfig, collect_scores, make_pairs, mean_score
from srlm_fast.records import Candidate, Judgement, Prompt

PROMPT = Prompt("p", "What is rain?", "file")


def candidates(*texts: str, prompt_id: str = "p") -> list[Candidate]:
    return [Candidate(prompt_id, i, text, (1, 2), -3.0, "stop") for i, text in enumerate(texts)]


def pairs_of(*scores: list, texts: str = "abcdefgh", **options):
    rows = candidates(*texts[: len(scores)])
    return make_pairs([PROMPT], rows, {("p", i): s for i, s in enumerate(scores)}, **options)


def picked(*scores: list, texts: str | list[str] = "abcdefgh", **config) -> tuple[int, int] | str:
    made = pairs_of(*scores, texts=texts, config=PairConfig(**config))
    if made.pairs:
        return made.pairs[0]["chosen_index"], made.pairs[0]["rejected_index"]
    return made.reasons["p"]


def test_highest_against_lowest_mean():
    assert picked([3, 3, 4], [1, 2, 2], [5, 4, 4], [0, 5, 5]) == (2, 1)


def test_a_miss_is_left_out_of_the_mean_and_never_a_zero():
    assert picked([4, None, None], [3, 3, 3], [2, math.nan, 3]) == (0, 2)


def test_an_unread_candidate_is_neither_chosen_nor_rejected():
    assert picked([None, None], [3, 3], [], [4, 4]) == (3, 1)


def test_equal_tops_go_by_variance_then_index():
    assert picked([0, 0], [3, 5], [4, 4], [4, 4]) == (2, 0)
    assert picked([1, 5], [2, 4], [0, 0]) == (1, 2)


def test_one_score_has_no_known_variance():
    assert picked([4], [4, 4], [1, 1]) == (1, 2)
    assert picked([4], [4], [1]) == (0, 2)


def test_equal_bottoms_go_by_variance_then_index():
    assert picked([5, 5], [0, 2], [1, 1], [1, 1]) == (0, 2)


def test_equal_means_of_different_samples_are_a_tie():
    assert picked([1, 2, 2], [2, 1, 2]) == "tie"
    assert picked([3, 4, 4], [3, 4, 4, 3, 4, 4]) == "tie"


@pytest.mark.parametrize(
    ("scores", "texts", "reason"),
    [
        ([], "", "no_candidate"),
        ([[None], []], "ab", "not_judged"),
        ([[4, 4], [None]], "ab", "one_judged"),
        ([[4]], "a", "one_judged"),
        ([[2], [4]], "aa", "identical"),
        ([[5], [3], [1]], "aba", "identical"),
        ([[3, 3], [3, 3]], "ab", "tie"),
    ],
)
def test_every_drop_has_a_reason(scores, texts, reason):
    made = pairs_of(*scores, texts=texts)
    assert made.pairs == []
    assert made.reasons == {"p": reason}
    assert made.dropped[reason] == 1 and sum(made.dropped.values()) == 1


def test_margin_and_minimum_of_valid_scores():
    assert picked([4], [3], min_margin=1.0) == (0, 1)
    assert picked([4], [3], min_margin=1.5) == "margin"
    assert picked([5, None, None], [4, 4, 4], [2, 2, None], min_judgements=2) == (1, 2)


def test_a_margin_of_thirds_is_not_lost_to_rounding():
    assert (4 + 4 + 5) / 3 - (3 + 3 + 4) / 3 < 1  # in floats
    assert picked([4, 4, 5], [3, 3, 4], min_margin=1.0) == (0, 1)


@pytest.mark.parametrize(
    ("lengths", "means", "rho", "wanted"),
    [
        # Range 0..5, rho 0.2: bands [4, 5] and [0, 1].
        ([90, 40, 10, 20, 70], [5, 4, 3, 0, 1], 0.2, (1, 4)),
        ([90, 40, 10, 20, 70], [5, 4, 3, 0, 1], 0.0, (0, 3)),
        # 3.9 and 1.1 are outside, however short or long.
        ([90, 1, 10, 20, 99], [5, 3.9, 3, 0, 1.1], 0.2, (0, 3)),
        # Equal lengths: the better mean above, the worse below.
        ([30, 30, 30, 30], [4, 5, 1, 0], 0.2, (1, 3)),
        # rho 0.5: both bands hold the middle one; shortest, it is chosen and not rejected too.
        ([30, 10, 30], [4, 2, 0], 0.5, (1, 2)),
        # Longest, it is rejected and not chosen too.
        ([30, 90, 30], [4, 2, 0], 0.5, (0, 1)),
        # rho 0.8: the shortest of the top scores 1; what scores above it cannot be rejected.
        ([50, 99, 10, 20], [5, 4, 1, 0], 0.8, (2, 3)),
        # Two in both bands with one mean are no pair of each other.
        ([50, 10, 99, 20], [4, 2, 2, 0], 0.5, (1, 3)),
    ],
)
def test_length_control(lengths, means, rho, wanted):
    texts = [chr(97 + i) * length for i, length in enumerate(lengths)]
    assert picked(*[[m] for m in means], texts=texts, length_control=rho) == wanted


def test_margin_counts_for_the_pair_that_length_control_took():
    texts = ["a" * 9, "b", "c"]
    assert picked([5], [4], [2], texts=texts, length_control=0.4, min_margin=2.5) == "margin"
    assert picked([5], [4], [2], texts=texts, min_margin=2.5) == (0, 2)


@given(
    st.lists(
        st.tuples(st.integers(1, 9), st.lists(st.integers(0, 5), min_size=1, max_size=3)),
        min_size=2,
        max_size=8,
    ),
    st.floats(0, 0.99),
)
def test_length_control_by_brute_force(answers, rho):
    texts = [chr(97 + i) * length for i, (length, _) in enumerate(answers)]
    means = [sum(scores) / len(scores) for _, scores in answers]
    high, low = max(means), min(means)
    found = picked(*[scores for _, scores in answers], texts=texts, length_control=rho)
    if high - low < 1e-9:
        assert found == "tie"
        return
    chosen, rejected = found
    band = rho * (high - low) + 1e-8
    assert means[chosen] > means[rejected]
    assert high - means[chosen] <= band and means[rejected] - low <= band
    inner = rho * (high - low) - 1e-8
    if rho:
        above = [i for i, m in enumerate(means) if high - m <= inner and m > low]
        assert all(len(texts[chosen]) <= len(texts[i]) for i in above)
        below = [i for i, m in enumerate(means) if m - low <= inner and m < means[chosen]]
        assert all(len(texts[rejected]) >= len(texts[i]) for i in below)


@pytest.mark.parametrize(
    "wrong",
    [
        {"min_margin": -1},
        {"min_margin": math.nan},
        {"length_control": 1.0},
        {"length_control": -0.1},
        {"min_judgements": 0},
    ],
)
def test_a_value_out_of_range_is_named(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        PairConfig(**wrong)


def test_pairs_and_drops_add_up_to_the_prompts():
    draw = random.Random(0)
    prompts = [Prompt(f"p{i}", f"question {i}", "file") for i in range(300)]
    rows = [
        c for p in prompts for c in candidates(*"abcd"[: draw.randint(0, 4)], prompt_id=p.prompt_id)
    ]
    scores = {
        (c.prompt_id, c.index): draw.choices([None, 3, 4], k=draw.randint(0, 3)) for c in rows
    }
    made = make_pairs(prompts, rows, scores)
    assert len(made.pairs) + sum(made.dropped.values()) == len(prompts)
    assert made.ties == made.dropped["tie"] > 0
    assert (
        made.dropped["not_judged"] and made.dropped["one_judged"] and made.dropped["no_candidate"]
    )
    assert all(pair["score_chosen"] > pair["score_rejected"] for pair in made.pairs)
    shuffled = draw.sample(rows, len(rows))
    assert make_pairs(prompts, shuffled, scores) == made


def test_row_is_ultrafeedback_binarized_and_more():
    made = pairs_of([1, 2, None], [5, 5, 5], round_name="M2", seed=7, sampling={"n": 2})
    (row,) = made.pairs
    user = {"role": "user", "content": "What is rain?"}
    assert row["prompt"] == "What is rain?" and row["prompt_id"] == "p"
    assert row["chosen"] == [user, {"role": "assistant", "content": "b"}] == row["messages"]
    assert row["rejected"] == [user, {"role": "assistant", "content": "a"}]
    assert (row["score_chosen"], row["score_rejected"]) == (5.0, 1.5)
    assert row["all_responses"] == ["a", "b"]
    assert row["scores"] == [[1, 2, None], [5, 5, 5]]
    assert (row["round"], row["seed"], row["sampling"]) == ("M2", 7, {"n": 2})
    assert json.loads(json.dumps(row, allow_nan=False)) == row


def test_unread_scores_are_null_in_the_row():
    (row,) = pairs_of([math.nan, 2], [5]).pairs
    assert row["scores"] == [[None, 2], [5]]


def test_rows_read_as_trl_preferences():
    """TRL takes the prompt out of the two conversations, whether or not the text column stays."""
    from datasets import Dataset
    from trl.data_utils import extract_prompt, maybe_extract_prompt

    rows = Dataset.from_list(pairs_of([1], [4]).pairs)
    want = {
        "prompt": [{"content": "What is rain?", "role": "user"}],
        "chosen": [{"content": "b", "role": "assistant"}],
        "rejected": [{"content": "a", "role": "assistant"}],
    }
    assert maybe_extract_prompt(rows[0]) == want
    assert extract_prompt(rows.remove_columns("prompt")[0]) == want


def test_a_prompt_id_twice_is_refused():
    with pytest.raises(ValueError, match="prompt_id"):
        make_pairs([PROMPT, PROMPT], [], {})


def test_collect_scores_orders_by_sample():
    rows = [
        Judgement("p", 0, 2, "", None, "MISSING"),
        Judgement("p", 0, 0, "", 4.0, "OK"),
        Judgement("p", 1, 0, "", 1.0, "OK"),
        Judgement("p", 0, 1, "", 3.0, "OK"),
    ]
    assert collect_scores(rows) == {("p", 0): [4.0, 3.0, None], ("p", 1): [1.0]}


def test_mean_score():
    assert mean_score([1, 2, None]) == 1.5
    assert mean_score([0]) == 0.0
    assert mean_score([None, math.nan]) is None
    assert mean_score([]) is None
