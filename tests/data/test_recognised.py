"""A file's form holds for all its lines; bad lines are named, and counted where they may be."""

from __future__ import annotations

import gzip
import json

import pytest

from srlm_fast.data import read_eft_or_ranked, read_ift, read_prompts, read_ranked
from srlm_fast.data.fields import Skipped
from srlm_fast.data.prompts import recognised_prompts
from srlm_fast.data.ranked import recognised_ranked
from srlm_fast.data.seeds import recognised_ift
from srlm_fast.records import InputError

IFT = {"prompt": "q", "response": "a"}
TURNS = [
    {"from": "human", "value": "Hi"},
    {"from": "gpt", "value": "Hello"},
    {"from": "human", "value": "Rain?"},
    {"from": "gpt", "value": "Water"},
]
CHAT = {"conversations": TURNS}


@pytest.fixture
def write(tmp_path):
    def to_file(*rows, name="rows.jsonl"):
        path = tmp_path / name
        lines = [row if isinstance(row, str) else json.dumps(row) for row in rows]
        path.write_text("".join(line + "\n" for line in lines), "utf-8")
        return path

    return to_file


OTHERS = [
    (read_ift, IFT, {"prompt": "q", "completion": "a"}, "'completion' stands in a file of inst"),
    (read_ift, IFT, CHAT, "'conversations' stands in a file of instructions with answers"),
    (read_ift, IFT, {"prompt": "q"}, "'response' is missing"),
    (read_ift, IFT, {"prompt": "q", "response": None}, "'response' is null"),
    (read_ift, IFT, {"ask": "q"}, "'prompt' is missing"),
    (read_ift, CHAT, {"id": 3}, "'conversations' is missing (found 'id')"),
    (read_ift, CHAT, IFT, "'response' stands in a file of ShareGPT conversations"),
    (
        read_ift,
        {"prompt": "q", "completion": "a"},
        {"prompt": "q", "completion": "b", "label": False},
        "'label' stands in a file of prompts with completions",
    ),
    (read_prompts, {"prompt": "q"}, CHAT, "'conversations' stands in a file of prompts"),
    (read_prompts, CHAT, {"prompt": "q"}, "'prompt' stands in a file of ShareGPT"),
    (read_prompts, {"prompt": "q"}, {"message_tree_id": "x"}, "'message_tree_id' stands in"),
]


@pytest.mark.parametrize(("read", "first", "second", "message"), OTHERS)
def test_a_later_line_of_another_form_is_named(write, read, first, second, message):
    with pytest.raises(InputError) as caught:
        read(write(first, second))
    assert f"rows.jsonl line 2: field {message}" in str(caught.value)


def test_prompts_may_have_more_fields_on_some_lines(write):
    rows = {"prompt": "a"}, {"prompt": "b", "response": "x"}, {"prompt": "c", "chosen": "y"}
    assert [p.text for p in read_prompts(write(*rows))] == ["a", "b", "c"]
    rows = {"prompt": "a", "response": "x"}, {"prompt": "b", "response": None}
    assert [p.text for p in read_prompts(write(*rows))] == ["a", "b"]


REFUSED = [
    (
        {"message_tree_id": "t", "prompt": {}},
        "Open Assistant trees, .*`python -m srlm_fast.data oa",
    ),
    (
        {
            "message_id": "m",
            "parent_id": None,
            "message_tree_id": "m",
            "text": "q",
            "role": "prompter",
        },
        "srlm_fast.data oasst",
    ),
    ({"prompt": "q", "completions": ["a"], "labels": [True]}, "stepwise supervision, wanted"),
    ({"text": "q"}, "language modelling, wanted prompts apart from answers"),
    ({"input_ids": [1], "attention_mask": [1]}, "token ids, wanted the texts"),
]


@pytest.mark.parametrize(("row", "message"), REFUSED)
@pytest.mark.parametrize("read", [read_prompts, read_ift, read_ranked, read_eft_or_ranked])
def test_forms_that_serve_nothing_are_refused_by_name(write, read, row, message):
    with pytest.raises(InputError, match=message):
        read(write(row))


def test_an_unknown_row_lists_what_would_serve(write):
    with pytest.raises(InputError) as caught:
        read_ift(write({"Ask": "q", "reply": "a"}))
    message = str(caught.value)
    assert "line 1: field 'prompt' is missing (found 'Ask', 'reply')" in message
    for form in ("prompt + response", "instruction + output", "conversations", "messages"):
        assert form in message
    assert "\n" not in message and len(message) < 500


BAD = [
    "{not json",
    '{"prompt": "a", "prompt": "b", "response": "c"}',
    json.dumps({"prompt": "q", "response": " "}),
    json.dumps({"prompt": [{"role": "user", "content": None}], "response": "a"}),
    "3",
]


@pytest.mark.parametrize("bad", BAD)
@pytest.mark.parametrize("place", [0, 1, 2])
def test_a_bad_line_is_an_error_or_skipped_and_counted(write, bad, place):
    rows = [IFT | {"prompt": str(i)} for i in range(3)]
    rows.insert(place, bad)
    path = write(*rows)
    with pytest.raises(InputError, match=f"line {place + 1}"):
        read_ift(path)
    skipped = Skipped()
    found = recognised_ift(path, skipped)
    assert [row["prompt"] for row in found.rows] == ["0", "1", "2"]
    assert (found.lines, found.skipped, skipped.count) == (3, 1, 1)
    assert f"line {place + 1}" in found.messages[0]
    assert found.said().endswith("instructions with answers, 3 rows, 1 line skipped")


def test_the_first_row_that_can_be_used_decides(write):
    path = write(CHAT, IFT, IFT)
    with pytest.raises(InputError, match="line 2: field 'response' stands in a file of ShareGPT"):
        read_ift(path)
    with pytest.raises(InputError, match="2 of 3 lines cannot be read, the first: .* line 2: "):
        read_ift(path, Skipped())
    found = recognised_ift(write('{"prompt": "q"}', CHAT, IFT, CHAT), Skipped())
    assert found.form.words == "ShareGPT conversations" and found.skipped == 2


def test_more_bad_lines_than_good_are_an_error(write):
    good, bad = [IFT] * 3, ['{"prompt": "q"}'] * 3
    assert len(read_ift(write(*good, *bad), Skipped())) == 3
    with pytest.raises(InputError) as caught:
        read_ift(write(*good, *bad, bad[0]), Skipped())
    assert "4 of 7 lines cannot be read, the first: " in str(caught.value)
    assert "line 4: field 'response' is missing" in str(caught.value)


def test_the_account_counts_each_file_alone(write):
    skipped = Skipped()
    for _ in range(2):
        found = recognised_ift(write(CHAT, CHAT, "{"), skipped)
    assert found.account() == {
        "form": "ShareGPT conversations",
        "rows": 4,
        "lines": 2,
        "left_out": 0,
        "skipped": 1,
        "skipped_first": found.messages,
    }
    assert "recognised as ShareGPT conversations, 4 rows of 2 conversations" in found.said()
    assert len(found.messages) == 1 and skipped.count == 2


def test_doubtful_scores_are_counted(write):
    made = [
        {"response": text, "overall_score": score, "fine-grained_score": 1.5}
        for text, score in (("a", 10), ("b", 3), ("c", 2))
    ]
    found = recognised_ranked(write({"instruction": "q", "completions": made}))
    assert found.said().endswith("1 row, 1 answer of doubtful score left out")
    assert read_prompts(write({"instruction": "q", "completions": [{"overall_score": "N/A"}]}))


def test_plain_text_is_a_prompt_a_line(write, tmp_path):
    path = write("What is rain?", "", '  [1] "quoted" {', "What is rain?", name="p.txt")
    found = recognised_prompts(path)
    assert [p.text for p in found.rows] == ["What is rain?", '  [1] "quoted" {']
    assert found.form.words == "plain text, a prompt a line"
    packed = tmp_path / "p.txt.gz"
    packed.write_bytes(gzip.compress(path.read_bytes()))
    assert [p.text for p in read_prompts(packed)] == [p.text for p in found.rows]
    with pytest.raises(InputError, match="line 1: found plain text, a prompt a line, wanted instr"):
        read_ift(path)
    # The content decides: JSON lines under the name of a text.
    assert read_prompts(write({"prompt": "q"}, name="j.txt"))[0].text == "q"


def test_a_torn_gzip_is_skipped_from_there(write, tmp_path):
    path = tmp_path / "rows.jsonl.gz"
    rows = "".join(json.dumps({"prompt": f"number {i}"}) + "\n" for i in range(3000))
    path.write_bytes(gzip.compress(rows.encode())[:-200])
    with pytest.raises(InputError, match="gzip"):
        read_prompts(path)
    found = recognised_prompts(path, Skipped())
    assert found.skipped == 1 and 0 < len(found.rows) < 3000


def test_a_list_and_parquet_are_read_as_lines_are(write, tmp_path):
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    rows = [{**CHAT, "system": None}, {"conversations": TURNS[:2], "system": "Be kind."}]
    wanted = read_ift(write(*rows))
    (tmp_path / "list.json").write_text(json.dumps(rows, indent=1))
    assert read_ift(tmp_path / "list.json") == wanted
    parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "rows.parquet")
    assert read_ift(tmp_path / "rows.parquet") == wanted
    assert len(wanted) == 3 and wanted[2]["turns"] == [{"role": "system", "content": "Be kind."}]
