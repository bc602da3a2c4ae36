"""Reading files of every form, and files that are broken in every way."""

from __future__ import annotations

import gzip
import io
import json
import os
import sys
import tracemalloc
import zlib

import pyarrow
import pyarrow.parquet
import pytest

from srlm_fast.config import fingerprint
from srlm_fast.data import files
from srlm_fast.data.fields import Skipped, read_lines, read_rows
from srlm_fast.records import InputError

ROWS = [{"prompt": "a\u2028b", "n": [{"x": None}]}, {"prompt": "é", "n": []}, {"prompt": "c"}]
TEXTS = [json.dumps(row, ensure_ascii=False) for row in ROWS]
LINES = "".join(text + "\n" for text in TEXTS)
FORM = '{"prompt": "..."}'


def write(folder, content, name="rows.jsonl"):
    path = folder / name
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def parquet_bytes(rows):
    made = io.BytesIO()
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), made)
    return made.getvalue()


def fields_of(path, **options):
    return [line.fields for line in read_lines(path, FORM, **options)]


@pytest.mark.parametrize("name", ["rows.jsonl", "rows.json", "rows.gz", "rows"])
@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize(
    "content",
    [
        LINES,
        LINES.rstrip("\n"),
        "\ufeff" + LINES.replace("\n", "\r\n"),
        "[" + ",".join(TEXTS) + "]",
        "\ufeff \n" + json.dumps(ROWS, indent=2) + "\n\n",
        "\ufeff" + "\n".join(json.dumps(row, indent=2) for row in ROWS),
    ],
)
def test_the_form_is_told_by_the_content(tmp_path, content, packed, name):
    data = content.encode()
    assert fields_of(write(tmp_path, gzip.compress(data) if packed else data, name)) == ROWS


def test_gzip_of_several_members(tmp_path):
    data = b"".join(gzip.compress(text.encode() + b"\n") for text in TEXTS)
    assert fields_of(write(tmp_path, data)) == ROWS


def test_parquet(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "BATCH_ROWS", 2)
    rows = [{"prompt": str(i), "n": {"x": None, "y": [i]}} for i in range(5)]
    path = write(tmp_path, parquet_bytes(rows), "rows.jsonl")
    assert fields_of(path) == rows
    assert [line.place for line in read_lines(path, FORM)][-1] == "row 5"
    assert fields_of(path, columns=["prompt", "other"]) == [{"prompt": str(i)} for i in range(5)]


def test_parquet_without_its_package(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(InputError, match="pip install pyarrow"):
        fields_of(write(tmp_path, parquet_bytes(ROWS)))


def test_lines_of_a_list_across_windows(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "CHUNK", 1)
    path = write(tmp_path, "[\n" + ",\n".join(TEXTS) + "\n]")
    lines = list(read_lines(path, FORM))
    assert [line.fields for line in lines] == ROWS
    assert lines[2].place == "line 4, element 3 of a list" and lines[2].number == 3


def test_a_number_across_windows_is_one(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "CHUNK", 1)
    path = write(tmp_path, "[12, 345 ,6]")
    assert [entry.value for entry in files.read_entries(path)] == [12, 345, 6]


def test_a_key_twice_in_an_element_across_windows_is_passed_over(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "CHUNK", 16)
    bad = '{"prompt": "b", "n": [{"x": 1, "x": 2}, "' + "y" * 99 + '"]}'
    content, skipped = f"[{TEXTS[1]}, {bad}, {TEXTS[2]}]", Skipped()
    assert fields_of(write(tmp_path, content), skipped=skipped) == [ROWS[1], ROWS[2]]
    assert (
        skipped.count == 1 and "element 2 of a list: not JSON (the key 'x'" in skipped.messages[0]
    )
    skipped = Skipped()
    assert fields_of(write(tmp_path, content[: content.index("yyy")]), skipped=skipped) == ROWS[1:2]
    assert skipped.count == 1 and "element 2 of a list: not JSON" in skipped.messages[0]


def test_plain_text_is_lines_even_where_it_looks_like_a_list(tmp_path):
    path = write(tmp_path, "[1] what is rain?\n\n{x}\r\n", "prompts.txt")
    entries = [(e.number, e.value, e.is_text) for e in files.read_entries(path)]
    assert entries == [(1, "[1] what is rain?", True), (2, "", True), (3, "{x}", True)]


def packed_random(count=3000):
    """A gzip that deflate could make little of, so that a cut leaves some lines whole."""
    texts = (json.dumps({"prompt": f"{zlib.crc32(b'%d' % i):x} {i}"}) + "\n" for i in range(count))
    return gzip.compress("".join(texts).encode())


def flipped(data, at):
    return data[:at] + bytes([data[at] ^ 0xFF]) + data[at + 1 :]


MISTAKES = {
    "empty": (b"", ["empty"]),
    "blank": (b"\n \n", ["empty"]),
    "empty gzip": (gzip.compress(b""), ["empty"]),
    "empty parquet": (parquet_bytes([{"a": 1}][:0]), ["empty"]),
    "truncated gzip": (packed_random()[:-5000], ["behind line ", "gzip data breaks off"]),
    "gzip header alone": (gzip.compress(b"x")[:10], ["line 1: the gzip data breaks off"]),
    "flipped gzip": (flipped(packed_random(), 9000), ["line 1151: not JSON"]),
    "gzip of no known block": (flipped(packed_random(), 10), ["line 1: the gzip data breaks off"]),
    "gzip with a wrong sum": (flipped(gzip.compress(LINES.encode()), -8), ["behind line 3"]),
    "more behind gzip": (gzip.compress(LINES.encode()) + b"more", ["behind line 3", "gzip"]),
    "not UTF-8": (LINES.encode() + b'{"prompt": "\xe9"}', ["line 4: not UTF-8 (byte 13 ", "0xe9"]),
    "not UTF-8 in gzip": (gzip.compress(b'{"prompt": "\xe9"}'), ["line 1: not UTF-8"]),
    "not UTF-8 in a list": (b'[{"prompt": "\xe9"}]', ["element 1 of a list: not UTF-8 (0xe9)"]),
    "UTF-16": (LINES.encode("utf-16"), ["line 1: UTF-16 text", "UTF-8"]),
    "UTF-16 without a mark": (LINES.encode("utf-16-le"), ["line 1: UTF-16 text"]),
    "UTF-16, big end first": (LINES.encode("utf-16-be"), ["line 1: UTF-16 text"]),
    "UTF-32": (LINES.encode("utf-32"), ["line 1: UTF-32 text"]),
    "zip": (b"PK\x03\x04...", ["a zip archive"]),
    "zstd": (b"\x28\xb5\x2f\xfd...", ["compressed with zstd"]),
    "one key twice": ('{"a": 1, "b": {"c": 1, "c": 2}}', ["line 1: not JSON", "'c' stands twice"]),
    "one key twice in a list": (
        '[{"a": 1},\n{"a": 1, "a": 2}]',
        ["line 2, element 2 of a list", "key 'a' stands twice"],
    ),
    "an element that is no object": ('[{"a": 1}, [1]]', ["element 2 of a list: a list", "object"]),
    "a string as element": ('["{}"]', ["line 1, element 1 of a list: a string"]),
    "a number as the last": ("[{}, 12", ["element 2 of a list: the number 12"]),
    "a list that breaks off": ('[{"a": 1}, {"a": ', ["element 2 of a list: not JSON"]),
    "a list without its end": ('[{"a": 1}\n', ["line 2", "the end of the file", "','"]),
    "an element missing": ('[{"a": 1},,{"a": 2}]', ["element 2 of a list: not JSON"]),
    "lists a line": ('[{"a": 1}]\n[{"a": 1}]', ["line 2", "'[' behind the list"]),
    "an object over lines that breaks off": ('{\n"a": 1\n}\n{\n"a"', ["line 4: not JSON"]),
    "more than objects over lines": ('{\n"a": 1\n}\n3', ["line 4: the number 3"]),
    "a Git LFS pointer": ("version https://git-lfs.github.com/spec/v1\n", ["git lfs pull"]),
    "too deep": ("[" * 100_000, ["line 1, element 1 of a list: not JSON", "deep"]),
    "too long a number": ('{"a": ' + "1" * 5000 + "}", ["line 1", "too long"]),
    "parquet alone": (b"PAR1", ["parquet data is broken"]),
    "parquet with a footer larger than itself": (
        b"PAR1aaaaaPAR1",
        ["parquet data is broken (it br"],
    ),
    "a CSV": (b"prompt,response\nWhy?,So.\n", ["line 1", "a table (CSV), wanted an object"]),
    "a string without an end": (
        b'{"prompt": "Why',
        ["not JSON (Unterminated string starting at c"],
    ),
    "torn parquet": (parquet_bytes(ROWS[:1])[:-20], ["parquet data is broken"]),
    "parquet with a hole": (
        parquet_bytes([{"prompt": "x" * 50}])[:4]
        + bytes(40)
        + parquet_bytes([{"prompt": "x" * 50}])[44:],
        ["parquet data is broken"],
    ),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_is_one_line_that_says_where(tmp_path, name):
    content, parts = MISTAKES[name]
    path = write(tmp_path, content)
    with pytest.raises(InputError) as caught:
        fields_of(path)
    message = str(caught.value)
    assert message.startswith(str(path)) and "wanted" in message and "\n" not in message
    assert len(message) < 500 + len(str(path))
    assert all(part in message for part in parts), message


def test_a_folder_and_no_file(tmp_path):
    with pytest.raises(InputError, match="a folder"):
        fields_of(tmp_path)
    with pytest.raises(InputError, match="no such file"):
        fields_of(tmp_path / "none")


def prompts(line):
    yield {"prompt": line.text("prompt")}


def test_rows_that_cannot_be_read_are_counted_and_passed_over(tmp_path):
    bad = ['{"prompt": 3}', "{", '{"a": 1, "a": 2}', "[]", '{"prompt": ""}', "3", '{"p": 1}']
    content = "\n".join([TEXTS[1], *bad, TEXTS[2]]).encode() + b"\n\xff\n"
    path, skipped = write(tmp_path, content), Skipped()
    assert [row["prompt"] for row in read_rows(path, prompts, FORM, skipped)] == ["é", "c"]
    assert skipped.count == 8 and len(skipped.messages) == 5
    assert skipped.messages[0].startswith(f"{path} line 2: field 'prompt' is the number 3")
    said = skipped.lines()
    assert said[0] == "skipped 8 rows that cannot be read:" and said[-1] == "  and 3 more"
    assert len(said) == 7 and not Skipped().lines()
    with pytest.raises(InputError, match="line 2: field 'prompt' is the number 3"):
        list(read_rows(path, prompts, FORM))


def test_a_row_that_fails_half_way_gives_nothing(tmp_path):
    def halves(line):
        yield 1
        yield line.text("prompt")

    skipped = Skipped()
    path = write(tmp_path, '{"prompt": ""}\n{"prompt": "a"}')
    assert list(read_rows(path, halves, FORM, skipped)) == [1, "a"]


def test_what_a_broken_file_gave_stays_and_the_break_is_one(tmp_path):
    skipped = Skipped()
    path = write(tmp_path, packed_random()[:-5000])
    rows = list(read_rows(path, prompts, FORM, skipped))
    assert len(rows) > 1000 and rows[999]["prompt"].endswith(" 999")
    assert skipped.count == 1 and f"line {len(rows)}: the gzip data" in skipped.messages[0]
    skipped = Skipped()
    path = write(tmp_path, '[{"prompt": "a"}, {"prompt": "b", "prompt": "c"}, {"prompt": "d"}, {')
    rows = list(read_rows(path, prompts, FORM, skipped))
    assert [row["prompt"] for row in rows] == ["a", "d"] and skipped.count == 2
    skipped = Skipped()
    path = write(tmp_path, torn_second_group())
    assert len(list(read_rows(path, prompts, FORM, skipped))) == 2 and skipped.count == 1
    assert "behind row 2: the parquet data is broken" in skipped.messages[0]


def torn_second_group():
    """Parquet in two row groups of two rows, zeros over the second."""
    made = io.BytesIO()
    table = pyarrow.Table.from_pylist([{"prompt": str(i) * 40} for i in range(4)])
    pyarrow.parquet.write_table(table, made, row_group_size=2, use_dictionary=False)
    data = made.getvalue()
    second = pyarrow.parquet.ParquetFile(io.BytesIO(data)).metadata.row_group(1).column(0)
    at = second.data_page_offset
    return (
        data[:at] + bytes(second.total_compressed_size) + data[at + second.total_compressed_size :]
    )


def test_nothing_but_skipped_rows_is_a_mistake(tmp_path):
    skipped = Skipped()
    with pytest.raises(
        InputError, match="none of its rows can be read \\(2 skipped; the first: .* line 1: "
    ):
        list(read_rows(write(tmp_path, "{x\n}\n"), prompts, FORM, skipped))
    with pytest.raises(InputError, match="UTF-16"):
        list(read_rows(write(tmp_path, LINES.encode("utf-16")), prompts, FORM, skipped))


@pytest.mark.parametrize("packed", [False, True])
def test_a_line_larger_than_the_limit_is_refused_unread(tmp_path, monkeypatch, packed):
    monkeypatch.setattr(files, "LIMIT", 1 << 20)
    monkeypatch.setattr(files, "CHUNK", 1 << 16)
    content = f'''{TEXTS[1]}\n{{"prompt": "{"x" * (8 << 20)}"}}\n{TEXTS[2]}\n'''.encode()
    path = write(tmp_path, gzip.compress(content, 1) if packed else content)
    del content
    tracemalloc.start()
    with pytest.raises(InputError, match="line 2: larger than 1 MiB"):
        fields_of(path)
    skipped = Skipped()
    assert [row["prompt"] for row in read_rows(path, prompts, FORM, skipped)] == ["é", "c"]
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert skipped.count == 1 and peak < 4 << 20


def test_a_line_of_twice_the_real_limit(tmp_path):
    """A file with a hole; what is held is the limit, and its pieces once more."""
    path, skipped = write(tmp_path, TEXTS[1] + '\n{"prompt": "'), Skipped()
    with path.open("r+b") as file:
        file.seek(2 * files.LIMIT)
        file.write(f"\n{TEXTS[2]}\n".encode())
    tracemalloc.start()
    assert [row["prompt"] for row in read_rows(path, prompts, FORM, skipped)] == ["é", "c"]
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert files.LIMIT == 64 << 20 and peak < 2.2 * files.LIMIT
    assert "line 2: larger than 64 MiB" in skipped.messages[0] and skipped.count == 1


def test_an_element_larger_than_the_limit_is_refused_unread(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "LIMIT", 1 << 18)
    monkeypatch.setattr(files, "CHUNK", 1 << 14)
    path = write(tmp_path, f'''[{TEXTS[1]}, {{"prompt": "{"x" * (8 << 20)}"}}]''')
    tracemalloc.start()
    with pytest.raises(InputError, match="element 2 of a list: larger than"):
        fields_of(path)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 4 << 20


def test_a_pipe_is_refused_and_not_waited_for(tmp_path):
    path = tmp_path / "pipe"
    os.mkfifo(path)
    with pytest.raises(InputError, match="pipe: a device or a pipe, wanted a JSONL file"):
        list(read_lines(path, FORM))
    with pytest.raises(InputError, match="--prompts .*pipe: found a device or a pipe, wanted a fi"):
        fingerprint("--prompts", str(path))
