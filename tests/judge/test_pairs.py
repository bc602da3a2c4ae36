"""Pairs: the right two answers, the right row, and a counted reason wherever there is none."""

import json
import math
import random

import pytest

from srlm_fast.judge import collect_scores, make_pairs, mean_score
from srlm_fast.records import Candidate, Judgement, Prompt

PROMPT = Prompt("p", "What is rain?", "file")


def candidates(*texts: str, prompt_id: str = "p") -> list[Candidate]:
    return [Candidate(prompt_id, i, text, (1, 2), -3.0, "stop") for i, text in enumerate(texts)]


def pairs_of(*scores: list, texts: str = "abcdefgh", **options):
    rows = candidates(*texts[: len(scores)])
    return make_pairs([PROMPT], rows, {("p", i): s for i, s in enumerate(scores)}, **options)


def picked(*scores: list, **options) -> tuple[int, int] | str:
    made = pairs_of(*scores, **options)
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
    assert picked([5, None, None], [4, 4, 4], [2, 2, None], min_valid=2) == (1, 2)


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
