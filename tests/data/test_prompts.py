"""The user's prompt file: odd texts pass unchanged, every mistake is one line that says where."""

import json
import os
from pathlib import Path

import pytest

from srlm_fast.data import read_prompts
from srlm_fast.records import InputError

ODD = [
    "What is rain?",
    "什么是雨？",
    "ما هو المطر؟",
    "🌧️👩‍👩‍👧 ?",
    "line\nbreak\u2028and\u0085more\ttab",
    "{prompt} {response} {{}} %s",
    "x" * 200_000,
    " spaces kept ",
    "nul \x00 byte",
]


def write(folder: Path, text: str | bytes) -> Path:
    path = folder / "prompts.jsonl"
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return path


def line(text: str, **more) -> str:
    return json.dumps({"prompt": text, **more}, ensure_ascii=False)


@pytest.mark.parametrize("ensure_ascii", [True, False])
def test_odd_texts_come_through_unchanged(tmp_path, ensure_ascii):
    rows = "".join(json.dumps({"prompt": text}, ensure_ascii=ensure_ascii) + "\n" for text in ODD)
    prompts = read_prompts(write(tmp_path, rows))
    assert [prompt.text for prompt in prompts] == ODD
    assert len({prompt.prompt_id for prompt in prompts}) == len(ODD)
    assert {prompt.source for prompt in prompts} == {"file"}


@pytest.mark.parametrize("dump", [lambda rows: "\n".join(map(json.dumps, rows)), json.dumps])
def test_strings_are_prompts(tmp_path, dump):
    prompts = read_prompts(write(tmp_path, dump(ODD)))
    assert prompts == read_prompts(write(tmp_path, "\n".join(map(line, ODD))))
    assert [prompt.text for prompt in prompts] == ODD


def test_empty_lines_byte_order_mark_and_windows_line_ends(tmp_path):
    text = f"\ufeff\r\n{line('one')}\r\n  \t\r\n\r\n{line('two')}"
    assert [p.text for p in read_prompts(write(tmp_path, text))] == ["one", "two"]


def test_ids_are_taken_or_made_from_the_text(tmp_path):
    rows = [
        line("a", prompt_id="x"),
        line("b", id=7),
        line("c", id=None),
        line("d", prompt_id="y", id=[]),
    ]
    prompts = read_prompts(write(tmp_path, "\n".join(rows)))
    assert [p.prompt_id for p in prompts[:2]] == ["x", "7"] and prompts[3].prompt_id == "y"
    again = read_prompts(write(tmp_path, line("c") + "\n" + line("a")))
    assert again[0].prompt_id == prompts[2].prompt_id  # of the text, not of its place


def test_a_repeated_text_is_one_prompt_unless_it_has_its_own_id(tmp_path):
    rows = [line("a"), line("b"), line("a"), line("a", id="second")]
    assert [p.text for p in read_prompts(write(tmp_path, "\n".join(rows)))] == ["a", "b", "a"]


MISTAKES = [
    ("", ["empty"]),
    ("\n \n", ["empty"]),
    ("{not json", ["line 1", "not JSON", "column"]),
    (f"{line('a')}\n\nwhat is rain?\n", ["line 3", "not JSON"]),
    (f"{line('a')}\n{line('b')[:-3]}", ["line 2", "not JSON"]),
    ('[["a"]]', ["line 1", "a list", "object"]),
    ('" "', ["line 1", "'prompt' is blank"]),
    ("null", ["line 1", "null"]),
    ("3", ["line 1", "number 3"]),
    ('{"ask": "a"}', ["line 1", "'prompt'", "missing", "'ask'"]),
    ("{}", ["line 1", "'prompt'", "missing", "no field"]),
    ('{"prompt": 3}', ["line 1", "'prompt'", "the number 3"]),
    ('{"prompt": null}', ["line 1", "'prompt'", "null"]),
    ('{"prompt": true}', ["line 1", "'prompt'", "boolean"]),
    ('{"prompt": ["a"]}', ["line 1", "'prompt[0]'", "a string"]),
    ('{"prompt": []}', ["line 1", "'prompt'", "an empty list"]),
    ('{"prompt": {"a": 1}}', ["line 1", "'prompt[0].role'", "null"]),
    (line(" \n"), ["line 1", "'prompt'", "blank"]),
    ('{"prompt": "\\ud83d"}', ["line 1", "'prompt'", "surrogate", "D83D"]),
    (f"{line('a', id='x')}\n{line('b', id='x')}", ["line 2", "'id'", "'x'", "line 1"]),
    (f"{line('a', id=1)}\n{line('b', prompt_id='1')}", ["line 2", "'prompt_id'", "line 1"]),
    (line("a", id=1.5), ["line 1", "'id'", "1.5"]),
    (line("a", id=True), ["line 1", "'id'", "boolean"]),
    (line("a", prompt_id=" "), ["line 1", "'prompt_id'", "blank"]),
    (f"{line('a')}\n{line('é')}".encode("latin-1"), ["line 2", "UTF-8", "0xe9", "byte 13"]),
    (line("a").encode("utf-16"), ["line 1", "UTF-8"]),
    (b"\x1f\x8b\x08\x00gz", ["line 1", "UTF-8"]),
    ("[" * 100_000, ["line 1", "not JSON", "deep"]),
    ('{"prompt": ' + "1" * 5000 + "}", ["line 1", "too long"]),
]


@pytest.mark.parametrize(("content", "parts"), MISTAKES, ids=range(len(MISTAKES)))
def test_a_mistake_is_one_line_that_says_where(tmp_path, content, parts):
    path = write(tmp_path, content)
    with pytest.raises(InputError) as caught:
        read_prompts(path)
    message = str(caught.value)
    assert message.startswith(str(path))
    assert "wanted" in message and "\n" not in message and len(message) < 400 + len(str(path))
    assert all(part in message for part in parts), message


def test_missing_file_and_folder(tmp_path):
    with pytest.raises(InputError, match="no such file"):
        read_prompts(tmp_path / "none.jsonl")
    with pytest.raises(InputError, match="folder"):
        read_prompts(tmp_path)


def test_a_path_through_a_file_names_the_reason(tmp_path):
    path = write(tmp_path, line("a"))
    with pytest.raises(InputError, match="cannot be read"):
        read_prompts(path / "inside.jsonl")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_unreadable_file(tmp_path):
    path = write(tmp_path, line("a"))
    path.chmod(0)
    with pytest.raises(InputError, match="cannot be read"):
        read_prompts(path)
