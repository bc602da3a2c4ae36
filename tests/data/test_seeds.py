"""Seed files: their rows, and mistakes by file, line and field."""

import json

import pytest

from srlm_fast.data import read_eft, read_eft_eval, read_ift
from srlm_fast.records import InputError

IFT = {"prompt": "q", "response": "a"}
EFT = IFT | {"judgement": "Fine. Score: 4", "score": 4}
EVAL = {"prompt": "q", "responses": ["a", "b", "c"], "scores": [5, 2.5, 0]}


def write(folder, *rows):
    path = folder / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    return path


@pytest.mark.parametrize(("read", "row"), [(read_ift, IFT), (read_eft, EFT), (read_eft_eval, EVAL)])
def test_rows_keep_their_fields_and_no_others(tmp_path, read, row):
    assert read(write(tmp_path, row, row | {"source": "x"})) == [row, row]


@pytest.mark.parametrize(
    ("read", "row", "parts"),
    [
        (read_ift, {"prompt": "q"}, ["'response'", "missing"]),
        (read_ift, IFT | {"response": "  "}, ["'response'", "blank"]),
        (read_ift, IFT | {"prompt": 1}, ["'prompt'", "number 1"]),
        (read_eft, IFT, ["'judgement'", "missing"]),
        (read_eft, EFT | {"score": "4"}, ["'score'", "a string", "number"]),
        (read_eft, EFT | {"score": True}, ["'score'", "boolean"]),
        (read_eft, EFT | {"score": float("nan")}, ["'score'", "nan"]),
        (read_eft, EFT | {"score": -(10**400)}, ["'score'", "a finite number"]),
        (read_eft_eval, EVAL | {"scores": [1, 2, 10**400]}, ["'scores[2]'", "a finite number"]),
        (read_eft_eval, EVAL | {"responses": "a"}, ["'responses'", "a string", "list"]),
        (
            read_eft_eval,
            EVAL | {"responses": ["a"], "scores": [1]},
            ["'responses'", "at least two"],
        ),
        (read_eft_eval, EVAL | {"scores": [1, 2]}, ["'scores'", "2 entries", "3"]),
        (read_eft_eval, EVAL | {"scores": [1, 2, None]}, ["'scores[2]'", "null"]),
        (read_eft_eval, EVAL | {"responses": ["a", "", "c"]}, ["'responses[1]'", "blank"]),
        (read_eft_eval, {"prompt": "q", "responses": ["a", "b"]}, ["'scores'", "missing"]),
    ],
)
def test_mistakes(tmp_path, read, row, parts):
    good = {read_ift: IFT, read_eft: EFT, read_eft_eval: EVAL}[read]
    path = write(tmp_path, good, row)
    with pytest.raises(InputError) as caught:
        read(path)
    assert str(caught.value).startswith(f"{path} line 2: ")
    assert all(part in str(caught.value) for part in parts), caught.value


@pytest.mark.parametrize("read", [read_ift, read_eft, read_eft_eval])
def test_empty_and_missing_files(tmp_path, read):
    with pytest.raises(InputError, match="empty"):
        read(write(tmp_path))
    with pytest.raises(InputError, match="no such file"):
        read(tmp_path / "none")
