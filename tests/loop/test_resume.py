"""A run broken off anywhere and started again ends as the unbroken one: same rows, same scores,
same weights.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time

import pytest

from srlm_fast import records
from srlm_fast.loop import run, state
from srlm_fast.records import read_jsonl
from tests.loop.worlds import Silent, results, same, small_config, small_run


class Killed(BaseException):
    """Stands for SIGKILL: nothing in the program expects it."""


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory):
    out = tmp_path_factory.mktemp("resume") / "run"
    small_run(out)
    return results(out)


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
    assert tries == 12
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
    """The model is written, the mark is not: the stage is done again and gives the same."""
    out = tmp_path / "run"
    for _ in range(3):
        with monkeypatch.context() as patch:
            from srlm_fast.model import Model

            break_at(patch, Model, "save", 1)
            with pytest.raises(Killed):
                run(small_config(out), Silent())
            assert (out / "m1" / "model").is_dir()
        break
    small_run(out)
    same(unbroken, results(out))


def test_torn_rows_are_made_again(unbroken, tmp_path, monkeypatch):
    """Half a line at the end of every file of the second round."""
    out = tmp_path / "run"
    with monkeypatch.context() as patch:
        break_at(patch, state.RunState, "finish", 3)  # m1/train, m1/measure, m2/prompts
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
    small_run(out)
    same(unbroken, results(out))


def test_asked_to_stop_in_training(unbroken, tmp_path):
    """A stop asked for in the middle of SFT is taken at a step, with a checkpoint."""
    out, screen, asked = tmp_path / "run", Silent(), [0]

    def stop():
        asked[0] += 1
        return asked[0] == 4

    with pytest.raises(KeyboardInterrupt):
        run(small_config(out), screen, stop)
    assert (out / "m1" / "checkpoint.pt").exists()
    assert not (out / "m1" / "model").exists()
    small_run(out)
    same(unbroken, results(out))
    assert not (out / "m1" / "checkpoint.pt").exists()
    steps = [
        row["step"]
        for row in read_jsonl(out / "metrics.jsonl")
        if row["stage"] == "m1/train" and "step" in row
    ]
    assert steps == sorted(set(steps))


COMMAND = """
import sys
from pathlib import Path
from tests.loop.worlds import small_run
small_run(Path(sys.argv[1]))
"""


def test_sigkill_for_real(unbroken, tmp_path):
    """SIGKILL at three moments that depend on the machine; then the run is finished."""
    out = tmp_path / "run"
    for wanted in ("m1/sft.jsonl", "m2/candidates.jsonl", "m3/prompts.jsonl"):
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
