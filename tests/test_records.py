"""Rows reach the disk whole, a torn last line is dropped, files are replaced atomically."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from srlm_fast.records import (
    Candidate,
    InputError,
    RowWriter,
    dump_row,
    read_jsonl,
    read_object,
    write_json_atomic,
    write_jsonl,
)


def test_rows_come_back(tmp_path):
    path = tmp_path / "rows.jsonl"
    with RowWriter(path) as writer:
        writer.write(Candidate("p", 0, "naïve 漢字 🙂\u2028end", (1, 2), -0.5, "stop"))
        writer.write({"a": None}, {"b": [1]})
    rows = read_jsonl(path)
    assert rows[0]["text"] == "naïve 漢字 🙂\u2028end"
    assert rows[1:] == [{"a": None}, {"b": [1]}]


@pytest.mark.parametrize("torn", ['{"n": 3', '{"n": 3}', '{"n": "\xe9'])
def test_torn_last_line_is_dropped_and_cut(tmp_path, torn):
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b'{"n": 1}\n{"n": 2}\n' + torn.encode("latin-1"))
    assert read_jsonl(path) == [{"n": 1}, {"n": 2}]
    with RowWriter(path) as writer:
        writer.write({"n": 4})
    assert [row["n"] for row in read_jsonl(path)] == [1, 2, 4]


@pytest.mark.parametrize("bad", [b"{oops}", b"[1]", b"\xff"])
def test_a_damaged_row_is_named(tmp_path, bad):
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b'{"n": 1}\n' + bad + b"\n")
    with pytest.raises(InputError, match="rows.jsonl line 2"):
        read_jsonl(path)


def test_nan_is_refused():
    with pytest.raises(ValueError, match="Out of range"):
        dump_row({"x": float("nan")})


def test_lone_surrogate_is_written(tmp_path):
    write_jsonl(tmp_path / "r.jsonl", [{"t": "\ud800"}])
    assert read_jsonl(tmp_path / "r.jsonl") == [{"t": "\ud800"}]


def test_atomic_replace_keeps_the_old_file_when_writing_fails(tmp_path):
    path = tmp_path / "state.json"
    write_json_atomic(path, {"a": 1})
    with pytest.raises(TypeError):
        write_json_atomic(path, {"a": object()})
    assert json.loads(path.read_text()) == {"a": 1}
    write_json_atomic(path, {"a": 2})
    assert json.loads(path.read_text()) == {"a": 2}


def test_an_object_or_one_line_with_the_file(tmp_path: Path):
    path = tmp_path / "object.json"
    assert read_object(path) == {}
    write_json_atomic(path, {"a": 1})
    assert read_object(path) == {"a": 1}
    for written, said in ((b"{", "found no JSON"), (b"[]", "no JSON object"), (b"\xff", "no JSON")):
        path.write_bytes(written)
        with pytest.raises(InputError, match=f"object.json: .*{said}"):
            read_object(path)
