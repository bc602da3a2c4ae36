"""Turns as users' files hold them, and what no chat template could render."""

from __future__ import annotations

import json

import pytest

from srlm_fast.data import read_ift, read_prompts
from srlm_fast.records import InputError


def says(role, content, **more):
    return {"role": role, "content": content, **more}


Q, A = says("user", "q"), says("assistant", "a")


@pytest.fixture
def write(tmp_path):
    def to_file(row):
        path = tmp_path / "rows.jsonl"
        path.write_text(json.dumps(row) + "\n", "utf-8")
        return path

    return to_file


@pytest.mark.parametrize(
    "messages",
    [
        [Q, A],
        [says("Human", "q"), says("gpt", "a")],
        [{"from": "user", "value": "q"}, {"from": "assistant", "value": "a"}],
        [says("system", " "), Q, A],
        [says("user", [{"type": "text", "text": "q"}]), says("assistant", "a", tool_calls=None)],
        [Q, A, says("user", "more")],  # nobody has answered
    ],
)
def test_spellings_of_the_same_conversation(write, messages):
    assert read_ift(write({"messages": messages})) == [{"prompt": "q", "response": "a"}]


def test_developer_is_the_system_and_a_blank_one_is_none(write):
    path = write({"messages": [says("developer", "Be kind."), Q, A]})
    assert read_prompts(path)[0].turns == (says("system", "Be kind."),)
    row = {"conversations": [Q, A], "system": "Be kind."}
    assert read_prompts(write(row))[0].turns == (says("system", "Be kind."),)


def test_ids_of_conversations_come_from_all_turns(write):
    first = read_prompts(write({"messages": [Q, A, says("user", "more")]}))[0]
    other = read_prompts(write({"messages": [Q, says("assistant", "b"), says("user", "more")]}))[0]
    assert first.text == other.text == "more" and first.prompt_id != other.prompt_id


MISTAKES = [
    ([], "'messages' is an empty list"),
    ([says("system", "")], "'messages' is an empty list"),
    ({"role": "user"}, "'messages' is an object, wanted a list"),
    ([3], "'messages[0]' is the number 3"),
    ([{"content": "q"}], "'messages[0].role' is null, wanted one of system"),
    ([says("narrator", "q")], "'messages[0].role' is 'narrator', wanted one of system"),
    ([Q, says("assistant", None)], "'messages[1].content' is null"),
    ([Q, says("assistant", "\ud83d")], "'messages[1].content' has half of a surrogate pair"),
    ([A, Q, A], "has a turn of the assistant where the user's is due"),
    ([Q, Q, A], "has a turn of the user where the assistant's is due"),
    ([Q, A, says("system", "s")], "has a turn of the system where the user's is due"),
    ([Q], "'messages' has no turn of the assistant, wanted an answer"),
    ([Q, says("tool", "42"), A], "'messages[1].role' is 'tool', wanted turns without tools"),
    ([Q, says("assistant", None, tool_calls=[{"id": 1}])], "'messages[1]' calls a tool"),
    ([says("user", [{"type": "image_url", "image_url": "x"}]), A], "holds parts that are no text"),
]


@pytest.mark.parametrize(("messages", "message"), MISTAKES)
def test_mistakes_name_the_message(write, messages, message):
    with pytest.raises(InputError) as caught:
        read_ift(write({"messages": messages}))
    assert message in str(caught.value) and "rows.jsonl line 1: field 'mess" in str(caught.value)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"conversations": [Q, A], "tools": [{"name": "f"}]}, "'tools' names tools, wanted none"),
        (
            {"conversations": [{"from": "human", "value": "q"}, {"from": "observation"}]},
            "'conversations[1].from' is 'observation', wanted turns without tools",
        ),
        ({"messages": [Q, A], "images": ["a.jpg"]}, "'images' names images, wanted none"),
        ({"instruction": "q", "output": "a", "image": "a.jpg"}, "'image' names image"),
        ({"instruction": "q", "instances": []}, "'instances' is an empty list"),
        ({"instruction": "q", "instances": [{"input": ""}]}, "'instances[0].output' is missing"),
        (
            {"instruction": "q", "instances": [{"output": "a"}, {"input": "", "output": 3}]},
            "'instances[1].output' is the number 3, wanted a string",
        ),
        ({"instruction": 3, "instances": [{"output": "a"}]}, "'instruction' is the number 3"),
        ({"question": "q", "answer": 3}, "'answer' is the number 3"),
        (
            {"instruction": "q", "output_1": "a", "output_2": "b", "preference": 3},
            "'preference' is 3, wanted 0, or a number from 1 to 2",
        ),
        ({"conversations": [Q, A], "system": 3}, "'system' is the number 3"),
        ({"instruction": "q", "output": ""}, "'output' is blank"),
        ({"instruction": "q", "input": 3, "output": "a"}, "'input' is the number 3"),
        ({"instruction": "q", "output": "a", "history": "x"}, "'history' is a string"),
        ({"instruction": "q", "output": "a", "history": [["x"]]}, "'history[0]' has 1 entries"),
        ({"instruction": "q", "output": "a", "history": [["x", ""]]}, "'history[0][1]' is blank"),
        ({"prompt": [Q, A], "completion": "b"}, "'completion' has a turn of the assistant where"),
        ({"prompt": "q", "completion": "b", "label": "yes"}, "'label' is a string, wanted true"),
        ({"prompt": "q", "turns": [A], "response": "a"}, "'prompt' has a turn of the assistant"),
        ({"instruction": "q", "completions": ["a"]}, "'completions[0]' is a string"),
        (
            {"instruction": "q", "completions": [{"response": "a", "overall_score": None}]},
            "'completions[0].overall_score' is null",
        ),
        ({"prompt": "q", "chosen": "a"}, "'rejected' is missing"),
        ({"chosen": "same", "rejected": "same"}, "'prompt' is missing"),
        (
            {"prompt": [Q], "chosen": [Q, A], "rejected": [says("user", "other"), A]},
            "'rejected' has other turns before its answer than 'chosen'",
        ),
        (
            {"chosen": "\n\nHuman: q\n\nAssistant: a", "rejected": "\n\nHuman: q\n\nAssistant:"},
            "blank",
        ),
    ],
)
def test_mistakes_of_other_forms_name_the_field(write, row, message):
    with pytest.raises(InputError) as caught:
        read_ift(write(row))
    assert message in str(caught.value) and "rows.jsonl line 1: field " in str(caught.value)
