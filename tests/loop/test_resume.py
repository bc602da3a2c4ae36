"""A run broken off anywhere and started again ends as the unbroken one: same rows, same scores,
same weights.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time

import pytest

from srlm_fast import records
from srlm_fast import run as command
from srlm_fast.loop import run, state
from srlm_fast.model import Model
from srlm_fast.records import InputError, read_jsonl
from srlm_fast.run import main
from tests.loop.worlds import Silent, results, same, share_first_model, small_config, small_run


class Killed(BaseException):
    """Stands for SIGKILL: nothing in the program expects it."""


@pytest.fixture(scope="module")
def unbroken(two_rounds):
    return results(two_rounds)


def break_at(monkeypatch, owner, name, count):
    """Let the `count`-th call of a method do its work, then die."""
    original, calls = getattr(owner, name), [0]

    def wrapper(self, *args, **kwargs):
        value = original(self, *args, **kwargs)
        calls[0] += 1
        if calls[0] == count:
            raise Killed
        return value

    monkeypatch.setattr(owner, name, wrapper)


def test_broken_at_every_stage_boundary(unbroken, tmp_path, monkeypatch):
    """After each finished stage the process ends; the next one goes on."""
    out, tries = tmp_path / "run", 0
    while True:
        with monkeypatch.context() as patch:
            break_at(patch, state.RunState, "finish", 1)
            try:
                run(small_config(out), Silent())
                break
            except Killed:
                tries += 1
    assert tries == 14
    same(unbroken, results(out))


def test_broken_inside_stages_by_rows(unbroken, tmp_path, monkeypatch):
    """The process dies after ever more written rows, in whatever stage that is."""
    out, tries = tmp_path / "run", 0
    for count in (3, 9, 20, 31, 47, 64, 90, 140):
        with monkeypatch.context() as patch:
            break_at(patch, records.RowWriter, "write", count)
            try:
                run(small_config(out), Silent())
                break
            except Killed:
                tries += 1
    small_run(out)
    assert tries >= 5
    same(unbroken, results(out))


def test_broken_before_a_stage_is_marked(unbroken, tmp_path, monkeypatch):
    """Each time a model is written and not yet marked: the stage is done again and gives the
    same.
    """
    out = tmp_path / "run"
    for number in (1, 2, 3):
        with monkeypatch.context() as patch:
            # Every start repeats the stage whose mark is missing before it comes to the next one.
            break_at(patch, Model, "save", 1 if number == 1 else 2)
            with pytest.raises(Killed):
                run(small_config(out), Silent())
        assert (out / f"m{number}" / "model").is_dir()
    small_run(out)
    same(unbroken, results(out))


def test_torn_rows_are_made_again(two_rounds, unbroken, tmp_path, monkeypatch):
    """Half a line at the end of every file of the second round."""
    out = tmp_path / "run"
    share_first_model(two_rounds, out)
    with monkeypatch.context() as patch:
        break_at(patch, state.RunState, "finish", 1)  # m2/prompts
        with pytest.raises(Killed):
            run(small_config(out), Silent())
    with monkeypatch.context() as patch:
        break_at(patch, records.RowWriter, "write", 30)
        with pytest.raises(Killed):
            run(small_config(out), Silent())
    for name in ("candidates.jsonl", "judgements.jsonl"):
        path = out / "m2" / name
        assert len(read_jsonl(path)) > 1
        path.write_bytes(path.read_bytes()[:-7])
    with monkeypatch.context() as patch:
        break_at(patch, state.RunState, "finish", 2)  # m2/answers, m2/pairs
        with pytest.raises(Killed):
            run(small_config(out), Silent())
    pairs = out / "m2" / "pairs.jsonl"
    pairs.write_bytes(pairs.read_bytes()[:-7])
    kept = json.loads((out / "state.json").read_text())
    del kept["stages"]["m2/pairs"]
    (out / "state.json").write_text(json.dumps(kept))
    small_run(out)
    same(unbroken, results(out))


def test_asked_to_stop_in_training(unbroken, tmp_path):
    """A stop asked for in the middle of SFT or DPO is taken at a step, with a checkpoint."""
    out = tmp_path / "run"
    for name in ("m1", "m2"):

        def stop(folder=out / name):
            rows = read_jsonl(out / "metrics.jsonl")
            return any(r["stage"] == f"{folder.name}/train" and "step" in r for r in rows)

        with pytest.raises(KeyboardInterrupt):
            run(small_config(out), Silent(), stop)
        assert (out / name / "checkpoint.pt").exists()
        assert not (out / name / "model").exists()
    small_run(out)
    same(unbroken, results(out))
    assert not list(out.glob("m*/checkpoint.pt"))
    steps = [
        row["step"]
        for row in read_jsonl(out / "metrics.jsonl")
        if row["stage"] == "m1/train" and "step" in row
    ]
    assert steps == sorted(set(steps))


COMMAND = """
import sys
from pathlib import Path
from srlm_fast.run import main
from tests.loop.worlds import small_run
small_run(Path(sys.argv[1]))
"""


def test_sigkill_for_real(unbroken, tmp_path):
    """SIGKILL at two moments that depend on the machine; then the run is finished."""
    out = tmp_path / "run"
    for wanted in ("m1/sft.jsonl", "m2/candidates.jsonl"):
        process = subprocess.Popen([sys.executable, "-c", COMMAND, str(out)], env=os.environ)
        until = time.monotonic() + 120
        while not (out / wanted).exists() and process.poll() is None:
            assert time.monotonic() < until
            time.sleep(0.02)
        time.sleep(0.3)
        process.send_signal(signal.SIGKILL)
        process.wait()
    small_run(out)
    same(unbroken, results(out))


def test_a_killed_run_has_the_cards_of_the_models_that_were_measured(tmp_path, monkeypatch):
    def killed(*args):
        raise Killed

    monkeypatch.setattr(command, "write_pages", killed)  # what a run does when it has ended
    out, few = tmp_path / "run", {"iterations": 1, "num_eft": 2, "sft.epochs": 1}
    few |= {"reward": "gold", "num_prompts": 12, "evaluation.num_prompts": 4}
    with pytest.raises(Killed):
        command.train(small_config(out, **few), out, None)
    first, second = ((out / name / "model" / "README.md").read_text() for name in ("m1", "m2"))
    assert "| M1 |" in first and "| M2 |" not in first
    assert "| M1 |" in second and "| M2 | 12 | 48 |" in second


def test_sigint_for_real(tmp_path):
    """Ctrl-C: the next safe point, exit status 130, one line that says how to go on; then it
    does.
    """
    out = tmp_path / "run"
    limits = "--iterations 0 --sft-epochs 1 --eval-count 4 --eval-samples 1 --eval-judged 1"
    command = [sys.executable, "-m", "srlm_fast.run", "--out", str(out), *limits.split()]
    process = subprocess.Popen(
        command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    )
    until = time.monotonic() + 120
    while not (out / "m1" / "sft.jsonl").exists():
        assert time.monotonic() < until
        assert process.poll() is None
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    error = process.communicate(timeout=120)[1]
    assert process.returncode == 130
    assert error.count("\n") == 1
    assert "the same command goes on" in error
    assert main(command[3:]) == 0
    assert (out / "summary.json").is_file()


@pytest.mark.parametrize("name", ["candidates.jsonl", "pairs.jsonl", "judgements.jsonl"])
@pytest.mark.parametrize("damage", ["cut", "lost", "foreign"])
def test_rows_lost_after_their_stage_are_named(finished_answers, tmp_path, name, damage):
    """Rows that a finished stage left and that are gone are not quietly done without."""
    out = tmp_path / "run"
    shutil.copytree(finished_answers, out)
    path = out / "m2" / name
    rows = path.read_bytes().splitlines(keepends=True)
    left = {"cut": b"".join(rows)[:-5], "lost": b"", "foreign": b'{"a": 1}\n' * len(rows)}
    path.write_bytes(left[damage])
    kept = json.loads((out / "state.json").read_text())
    if name != "pairs.jsonl":
        del kept["stages"]["m2/pairs"]
        (out / "m2" / "pairs.jsonl").unlink()
    (out / "state.json").write_text(json.dumps(kept))
    with pytest.raises(InputError, match=name):
        run(small_config(out), Silent())
    assert path.read_bytes() == left[damage]


@pytest.fixture(scope="module")
def finished_answers(two_rounds, tmp_path_factory):
    """A run that died when the pairs of M2 were there."""
    out = tmp_path_factory.mktemp("answers") / "run"
    share_first_model(two_rounds, out)
    with pytest.MonkeyPatch.context() as patch:
        break_at(patch, state.RunState, "finish", 3)  # m2/prompts, m2/answers, m2/pairs
        with pytest.raises(Killed):
            run(small_config(out), Silent())
    return out
