"""Files to measure a judge on: both forms, and one line for whatever is wrong."""

from __future__ import annotations

import json

import pytest

from srlm_fast.data import read_eft_or_ranked, read_ranked
from srlm_fast.records import InputError

USER = {"role": "user", "content": "What is rain?"}
PAIR = {"prompt": "What is rain?", "chosen": "Water.", "rejected": "Sand."}
RANKED = {"prompt": "q", "responses": ["a", "b"], "scores": [1, 2]}
EFT = {"prompt": "q", "response": "a", "judgement": "Score: 1", "score": 1}


def said(text):
    return {"role": "assistant", "content": text}


@pytest.fixture
def written(tmp_path):
    def write(*rows):
        path = tmp_path / "rows.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        return path

    return write


@pytest.mark.parametrize(
    "row",
    [
        PAIR | {"chosen_model": "x", "rejected_model": "y", "id": 3},
        PAIR | {"chosen": [USER, said("Water.")], "rejected": [USER, said("Sand.")]},
        {"chosen": [USER, said("Water.")], "rejected": [USER, said("Sand.")]},
        {"prompt": [USER], "chosen": [said("Water.")], "rejected": "Sand."},
    ],
)
def test_pairs_as_texts_or_messages(written, row):
    assert read_ranked(written(row)) == [
        {
            "prompt": "What is rain?",
            "responses": ["Water.", "Sand."],
            "scores": [1.0, 0.0],
            "subset": "",
        }
    ]


def test_more_turns_keep_their_roles(written):
    turns = [USER, said("Water."), {"role": "user", "content": "From where?"}]
    (row,) = read_ranked(written({"prompt": turns, "chosen": "Clouds.", "rejected": "Taps."}))
    whole = "User: What is rain?\n\nAssistant: Water.\n\nUser: From where?"
    assert (row["prompt"], row["text"], row["turns"]) == (whole, "From where?", turns[:-1])
    assert read_ranked(written(row | {"subset": None})) == [row]  # as it was written down
    assert read_eft_or_ranked(written(EFT | {"prompt": turns})) == (
        [EFT | {"prompt": whole, "text": "From where?", "turns": turns[:-1]}],
        [],
    )


def test_a_text_that_is_not_the_last_turn_of_the_prompt_says_nothing(written):
    row = RANKED | {"turns": [USER, said("Water.")], "text": "Something else."}
    (found,) = read_ranked(written(row))
    assert found["text"] == "q" and found["prompt"].endswith("User: q")


def test_ranked_rows_and_subsets(written):
    (row,) = read_ranked(written(RANKED | {"subset": "easy"}))
    assert row == RANKED | {"subset": "easy"}
    assert read_ranked(written(PAIR | {"subset": "hep-js"}))[0]["subset"] == "hep-js"


@pytest.mark.parametrize(
    ("rows", "wanted"),
    [
        ([PAIR, RANKED], "line 2: field 'responses' stands in a file of preference pairs"),
        ([RANKED, RANKED, PAIR], "line 3: field 'chosen' stands in a file of ranked answers"),
        ([{"prompt": "q", "chosen": "a"}], "line 1: field 'rejected' is missing"),
        (
            [PAIR | {"chosen": [USER]}],
            "field 'chosen' ends in a turn of the user, wanted an answer",
        ),
        ([PAIR | {"chosen": []}], "field 'chosen' is an empty list"),
        ([PAIR | {"chosen": ["x"]}], "field 'chosen[0]' is a string"),
        ([PAIR | {"chosen": [said(3)]}], "'chosen[0].content' is the number 3"),
        ([{"chosen": "a", "rejected": "b"}], "field 'prompt' is missing"),
        ([{"chosen": [USER, said("a")], "rejected": [said("b")]}], "field 'prompt' is missing"),
        ([PAIR | {"prompt": []}], "field 'prompt' is an empty list"),
        ([PAIR | {"prompt": " "}], "field 'prompt' is blank"),
        ([PAIR | {"subset": 3}], "field 'subset' is the number 3"),
        ([{"prompt": "q"}], "line 1: found prompts, wanted answers whose order is known"),
        ([], "empty"),
    ],
)
def test_mistakes(written, rows, wanted):
    with pytest.raises(InputError) as caught:
        read_ranked(written(*rows))
    assert wanted in str(caught.value) and "rows.jsonl" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_seeds_of_judging_in_either_form(written):
    assert read_eft_or_ranked(written(EFT)) == ([EFT], [])
    assert read_eft_or_ranked(written(RANKED, RANKED)) == ([], [RANKED, RANKED])


@pytest.mark.parametrize(
    ("rows", "wanted"),
    [
        ([EFT, RANKED], "line 2: field 'responses' stands in a file of judgements"),
        ([RANKED, EFT], "line 2: field 'judgement' stands in a file of ranked answers"),
        (
            [{"prompt": "q", "response": "a"}],
            "line 1: found instructions with answers, wanted judgements or answers",
        ),
        ([RANKED | {"scores": [1]}], "field 'scores' has 1 entries"),
    ],
)
def test_mixed_seeds_are_refused(written, rows, wanted):
    with pytest.raises(InputError, match="line") as caught:
        read_eft_or_ranked(written(*rows))
    assert wanted in str(caught.value)
