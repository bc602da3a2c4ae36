"""`python -m srlm_fast.data check`: a look at files of any form."""

from __future__ import annotations

import json

import pytest

from srlm_fast.data_command import main

CHAT = {
    "conversations": [
        {"from": "human", "value": "Hi"},
        {"from": "gpt", "value": "Hello"},
        {"from": "human", "value": "Rain?"},
        {"from": "gpt", "value": "Water"},
    ]
}


@pytest.fixture
def write(tmp_path):
    def to_file(name, *rows):
        path = tmp_path / name
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
        return str(path)

    return to_file


def test_each_file_and_what_it_serves(write, capsys):
    chats = write("chats.jsonl", CHAT, CHAT, {"conversations": []}, CHAT)
    pairs = write("pairs.jsonl", {"prompt": "q", "chosen": "a", "rejected": "b"})
    trees = write("trees.jsonl", {"message_tree_id": "x", "prompt": {}})
    text = write("prompts.txt")
    assert main(["check", chats, pairs, trees]) == 0
    assert capsys.readouterr().out.splitlines() == [
        f"{chats}: ShareGPT conversations",
        "  --prompts, --eval-prompts: 1 row of 3 conversations, 1 line skipped",
        "  --ift: 6 rows of 3 conversations, 1 line skipped",
        "  not for --eft, --eft-eval, --data, --reward-pairs",
        "  with --skip-bad only, because of:",
        f"  {chats} line 3: field 'conversations' is an empty list, wanted at least one message",
        f"{pairs}: preference pairs",
        "  --prompts, --eval-prompts: 1 row",
        "  --ift: 1 row",
        "  --eft: 1 row",
        "  --eft-eval, --data: 1 row",
        "  --reward-pairs: 1 row",
        f"{trees}: Open Assistant trees",
        "  serves no option: wanted the seeds that `python -m srlm_fast.data oasst` makes of them",
    ]
    assert main(["check", text]) == 2
    assert "empty" in capsys.readouterr().err


def test_what_one_use_cannot_read_the_others_can(write, capsys):
    rows = [{"instruction": f"Say {i}.", "output": ""} for i in range(3)]
    path = write("rows.jsonl", *rows)
    assert main(["check", path]) == 0
    out = capsys.readouterr().out
    assert "--prompts, --eval-prompts: 3 rows\n" in out
    assert "--ift: cannot be used: 3 of 3 lines cannot be read, the first: " in out


def test_uses_that_fail_for_one_reason_are_told_together(write, capsys):
    path = write("tied.jsonl", {"prompt": "q", "responses": ["a", "b"], "scores": [1, 1]})
    assert main(["check", path]) == 0
    said = capsys.readouterr().out
    assert said.count("no two answers of different score") == 1
    assert "  --eft, --eft-eval, --data, --reward-pairs: cannot be used: " in said


def test_judgements_are_read_by_the_default_rubric(write, capsys):
    row = {"prompt": "q", "response": "a", "judgement": "Score: 3", "score": 3}
    bad = row | {"judgement": "Score: 9", "score": 9}
    path = write("judged.jsonl", row, row | {"judgement": "Score: 2", "score": 2}, bad)
    assert main(["check", path]) == 0
    said = capsys.readouterr().out
    assert "  --eft: 2 rows, 1 line skipped\n" in said and "by the default rubric" in said
    assert "line 3: field 'judgement' ends in the score 9" in said


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["check"], "FILE: none given"),
        (["check", "none.jsonl"], "none.jsonl: no such file"),
        (["chekc"], "did you mean check"),
        (["check", "--out", "x"], "--out: no such option"),
    ],
)
def test_mistakes_are_one_line(argv, message, capsys):
    assert main(argv) == 2
    said = capsys.readouterr().err
    assert message in said and said.count("\n") == 1


def test_a_row_of_no_form_says_what_there_is(write, capsys):
    assert main(["check", write("x.jsonl", {"ask": "q"})]) == 2
    said = capsys.readouterr().err
    assert "field 'prompt' is missing (found 'ask'), wanted prompts: " in said


def test_a_file_of_no_known_form_does_not_hide_the_others(write, capsys):
    unknown, prompts = write("unknown.jsonl", {"a": 1}), write("prompts.jsonl", "Why?", "How?")
    assert main(["check", unknown, prompts, "none.jsonl"]) == 2
    shown = capsys.readouterr()
    first, *found, last = shown.out.splitlines()
    assert first.startswith(f"{unknown} line 1: field ") and "none.jsonl: no such file" in last
    assert found[:2] == [f"{prompts}: prompts", "  --prompts, --eval-prompts: 2 rows"]
    assert shown.err.count("\n") == 1 and "(and 1 more of 3 files)" in shown.err
