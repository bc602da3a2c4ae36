"""Preference pairs and principles as users write them, mistakes included."""

from __future__ import annotations

import json

import pytest

from srlm_fast.data import read_preferences, read_principles
from srlm_fast.records import InputError


@pytest.fixture
def write(tmp_path):
    def to_file(*rows):
        path = tmp_path / "rows.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        return path

    return to_file


def turn(role, content):
    return {"role": role, "content": content}


ASKED, GOOD, BAD = turn("user", "Q"), turn("assistant", "good"), turn("assistant", "bad")


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": "Q", "chosen": "good", "rejected": "bad"},
        {"prompt": [ASKED], "chosen": [GOOD], "rejected": "bad"},
        {"prompt": "Q", "chosen": [ASKED, GOOD], "rejected": [ASKED, BAD]},
        {"chosen": [ASKED, GOOD], "rejected": [ASKED, BAD], "score_chosen": 4.5},
    ],
    ids=["strings", "messages", "ultrafeedback", "no prompt"],
)
def test_every_layout_is_the_same_row(write, row):
    wanted = {"prompt": "Q", "chosen": [ASKED, GOOD], "rejected": [ASKED, BAD]}
    assert read_preferences(write(row)) == [wanted]


def test_turns_before_the_question_are_kept_and_equal_answers_left_out(write):
    before = [turn("system", "Be kind."), turn("user", "a"), turn("assistant", "b"), ASKED]
    rows = read_preferences(
        write(
            {"prompt": before, "chosen": "good", "rejected": "bad"},
            {"prompt": "Q", "chosen": "same", "rejected": "same"},
        )
    )
    assert [row["prompt"] for row in rows] == ["Q"]
    assert rows[0]["chosen"] == [*before, GOOD]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"prompt": "Q", "chosen": "a"}, "line 1: field 'rejected' is missing"),
        ({"chosen": "a", "rejected": "b"}, "field 'prompt' is missing"),
        ({"prompt": "Q", "chosen": [], "rejected": "b"}, "'chosen' is an empty list"),
        ({"prompt": "Q", "chosen": "a", "rejected": 3}, "'rejected' is the number 3"),
        ({"prompt": "Q", "chosen": ["a"], "rejected": "b"}, r"'chosen\[0\]' is a string"),
        (
            {"prompt": "Q", "chosen": [turn("bot", "a")], "rejected": "b"},
            r"'chosen\[0\].role' is 'bot', wanted one of system",
        ),
        (
            {"prompt": "Q", "chosen": [ASKED], "rejected": "b"},
            "'chosen' ends in a turn of the user, wanted an answer",
        ),
        (
            {"prompt": "Q", "chosen": [turn("assistant", " ")], "rejected": "b"},
            r"'chosen\[0\].content' is blank",
        ),
        (
            {"prompt": [turn("system", "s")], "chosen": "a", "rejected": "b"},
            "'chosen' has a turn of the assistant where the user's is due",
        ),
    ],
)
def test_mistakes_are_one_line(write, row, message):
    with pytest.raises(InputError, match=message):
        read_preferences(write(row))


def test_principles(write):
    row = {"critique": "What is untrue?", "revision": "Correct it."}
    assert read_principles(write(row, row | {"id": 3})) == [row, row]
    with pytest.raises(InputError, match="line 2: field 'revision' is missing"):
        read_principles(write(row, {"critique": "What?"}))
