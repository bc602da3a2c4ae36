"""`python -m srlm_fast.data oasst`: what it writes and says, and mistakes as one line."""

from __future__ import annotations

import gzip
import json
import re
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest

from srlm_fast import data_command
from srlm_fast.data import read_eft_or_ranked, read_ift, read_ranked
from srlm_fast.data_command import main
from tests.data.oasst_trees import TREES, flat_messages

ROOT = Path(__file__).parents[1]
NAMES = ["account.json", "eft_eval.jsonl", "eft_train.jsonl", "ift.jsonl"]
# With one row of IFT two trees are left whose first turns are ranked, whichever is taken.
FEW = ["--ift", "1", "--eft-train", "2", "--eft-eval", "1"]


@pytest.fixture
def trees(tmp_path):
    path = tmp_path / "trees.jsonl.gz"
    path.write_bytes(gzip.compress("".join(json.dumps(t) + "\n" for t in TREES).encode()))
    return path


def texts(folder):
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def refused(capsys, arguments, *parts):
    assert main([*map(str, arguments)]) == 2
    said = capsys.readouterr().err
    assert said.startswith("srlm_fast: ") and said.count("\n") == 1, said
    assert all(part in said for part in parts), said


def test_what_it_writes_is_what_a_run_reads(tmp_path, trees, capsys):
    out = tmp_path / "a" / "seeds"
    assert main(["oasst", str(trees), "--out", str(out), *FEW]) == 0
    assert [*texts(out)] == NAMES
    assert len(read_ift(out / "ift.jsonl")) == 1
    assert list(map(len, read_eft_or_ranked(out / "eft_train.jsonl"))) == [0, 2]
    assert len(read_ranked(out / "eft_eval.jsonl")) == 1
    said = capsys.readouterr().out
    for line in ("read", "not ready for export", "other language", "no ranked reply", "taken"):
        assert line in said
    assert "12\n" in said and "ift.jsonl: 1 rows\n" in said and f"written to {out}" in said
    account = json.loads((out / "account.json").read_text())
    assert account["finished"] and account["account"]["trees"]["read"] == 12
    assert account["made_by"]["--lang"] == "en"


def test_fewer_than_asked_for_is_said(tmp_path, trees, capsys):
    assert main(["oasst", str(trees), "--out", str(tmp_path / "out")]) == 0
    said = capsys.readouterr().out
    assert "ift.jsonl: 3 rows, 3,200 were asked for: there are no more\n" in said
    of_ift = re.search(r"first turns of IFT's trees +([1-9]\d*)\n", said)
    assert of_ift and f"there are no more but {of_ift[1]} that IFT took" in said


def test_trees_and_messages_give_the_same_bytes(tmp_path, trees):
    flat = tmp_path / "flat.jsonl"
    flat.write_text("".join(json.dumps(row) + "\n" for row in flat_messages(TREES)))
    for name, out in ((trees, "a"), (flat, "b")):
        assert main(["oasst", str(name), "--out", str(tmp_path / out), *FEW]) == 0
    one, two = texts(tmp_path / "a"), texts(tmp_path / "b")
    assert [one[name] for name in NAMES[1:]] == [two[name] for name in NAMES[1:]]


def test_a_folder_is_replaced_by_the_same_command_alone(tmp_path, trees, capsys):
    out = tmp_path / "out"
    command = ["oasst", trees, "--out", out, *FEW]
    assert main([*map(str, command)]) == 0
    wanted = texts(out)
    (out / "notes.txt").write_text("mine")
    assert main([*map(str, command)]) == 0
    refused(capsys, [*command, "--seed", "1"], "ift.jsonl", "--seed 0", "--seed", "--overwrite")
    other = tmp_path / "other.jsonl"
    other.write_text("".join(json.dumps(t) + "\n" for t in TREES[:4]))
    refused(capsys, ["oasst", other, "--out", out, *FEW], "the files' content")
    assert texts(out) == wanted | {"notes.txt": b"mine"}
    assert main([*map(str, command), "--seed", "1", "--overwrite"]) == 0
    assert json.loads((out / "account.json").read_text())["made_by"]["--seed"] == 1
    (out / "account.json").unlink()
    refused(capsys, command, "ift.jsonl", "unknown")


@pytest.mark.parametrize("last", range(4))
def test_a_killed_command_goes_on_and_ends_with_the_same_rows(tmp_path, trees, monkeypatch, last):
    out, command = tmp_path / "out", ["oasst", str(trees), *FEW]
    assert main([*command, "--out", str(tmp_path / "whole")]) == 0
    write, count = data_command.write_text_atomic, iter(range(10))

    def killed(path, text):
        if next(count) == last:
            raise KeyboardInterrupt
        write(path, text)

    monkeypatch.setattr(data_command, "write_text_atomic", killed)
    interrupted = main([*command, "--out", str(out)])
    assert interrupted == (130 if last < 3 else 0)
    monkeypatch.undo()
    assert main([*command, "--out", str(out)]) == 0
    assert texts(out) == texts(tmp_path / "whole")


def test_bad_lines_end_it_or_are_counted(tmp_path, trees, capsys):
    torn = tmp_path / "torn.jsonl"
    lines = [json.dumps(TREES[0]), json.dumps({"message_id": 3}), json.dumps(TREES[6]), "{"]
    torn.write_text("\n".join(lines))
    command, out = ["oasst", torn, "--out", tmp_path / "out", *FEW], tmp_path / "out"
    refused(capsys, command, f"{torn} line 2: field 'message_id' is the number 3")
    assert not out.exists()
    assert main([*map(str, command), "--skip-bad"]) == 0
    said = capsys.readouterr().out
    assert "skipped 2 rows that cannot be read:" in said and f"{torn} line 4: not JSON" in said
    skipped = json.loads((out / "account.json").read_text())["skipped"]
    assert skipped["count"] == 2 and len(skipped["messages"]) == 2
    whole = trees.read_bytes()
    trees.write_bytes(whole[: len(whole) - 9])
    command[1] = trees
    refused(capsys, [*command, "--overwrite"], "gzip data breaks off")


def test_none_at_all(tmp_path, trees, capsys):
    out = tmp_path / "out"
    refused(
        capsys, ["oasst", trees, "--out", out, "--lang", "xx"], "of 12 trees 0 can be used", "'xx'"
    )
    assert not out.exists()
    assert main(["oasst", str(trees), "--out", str(out), "--lang", "xx"]) == 2
    assert capsys.readouterr().out == ""  # no account of what is not written


MISTAKES = [
    ([], ["no command given, wanted one of oasst, check"]),
    (["oast", "x"], ["'oast'", "did you mean oasst"]),
    (["oasst", "--out", "x"], ["FILE", "none given"]),
    (["oasst", "TREES"], ["--out", "not given"]),
    (["oasst", "none", "--out", "x"], ["none: no such file"]),
    (["oasst", ".", "--out", "x"], [".: a folder"]),
    (["oasst", "/dev/null", "--out", "x"], ["/dev/null: a device"]),
    (["oasst", "TREES", "--out", "TREES"], ["--out", "found a file"]),
    (["oasst", "TREES", "--out", "x", "--seed", "-1"], ["--seed: found -1"]),
    (["oasst", "TREES", "--out", "x", "--ift", "many"], ["--ift: found 'many'", "whole number"]),
    (["oasst", "TREES", "--out", "x", "--eft", "3"], ["--eft", "--eft-train"]),
    (["oasst", "TREES", "--out", "x", "--lang", " "], ["--lang", "a language"]),
    (
        ["oasst", "TREES", "--out", "x", "--ift", "0", "--eft-train", "0", "--eft-eval", "0"],
        ["nothing to take"],
    ),
]


@pytest.mark.parametrize(("arguments", "parts"), MISTAKES, ids=range(len(MISTAKES)))
def test_mistakes(tmp_path, trees, monkeypatch, capsys, arguments, parts):
    monkeypatch.chdir(tmp_path)
    arguments = [str(trees) if word == "TREES" else word for word in arguments]
    refused(capsys, arguments, *parts)
    assert not (tmp_path / "x").exists()


def test_files_may_stand_apart(tmp_path, trees):
    out = str(tmp_path / "out")
    assert main(["oasst", str(trees), "--out", out, *FEW, str(trees)]) == 0


def test_a_full_disk_is_one_line(tmp_path, trees, monkeypatch, capsys):
    def full(*_):
        raise sqlite3.OperationalError("database or disk is full")

    monkeypatch.setattr("srlm_fast.data.oasst.store.Store.add", full)
    refused(capsys, ["oasst", trees, "--out", tmp_path / "out"], "SQLITE_TMPDIR")


def test_the_door_and_its_help_need_no_torch():
    done = subprocess.run(
        [sys.executable, "-X", "importtime", "-m", "srlm_fast.data", "--help"],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0 and "oasst FILE... --out FOLDER" in done.stdout
    assert "check FILE..." in done.stdout and " torch" not in done.stderr
