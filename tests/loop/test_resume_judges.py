"""Runs whose judge is read, not sampled, broken off by rows and started again: the same rows."""

from __future__ import annotations

import pytest

from srlm_fast import records
from srlm_fast.judge import pairwise
from srlm_fast.loop import run
from tests.loop.test_resume import Killed, break_at
from tests.loop.worlds import (
    Silent,
    results,
    same,
    share_first_model,
    small_config,
    small_run,
)

MODES = {
    "expected": {"judge.mode": "expected"},
    "direct": {"judge.mode": "direct"},
    "pairwise": {"reward": "pairwise"},
}


@pytest.fixture(scope="module")
def first(two_rounds):
    return two_rounds


@pytest.mark.parametrize("mode", MODES)
def test_broken_by_rows(mode, first, tmp_path, monkeypatch):
    """The process dies inside the answers of M2 again and again, at ever later rows."""
    monkeypatch.setattr(pairwise, "MIN_MASS", 0.0)
    changes = MODES[mode] | {"iterations": 1}
    share_first_model(first, tmp_path / "whole")
    small_run(tmp_path / "whole", **changes)
    out, tries = tmp_path / "run", 0
    share_first_model(first, out)
    for count in (7, 19, 33, 40, 52):
        with monkeypatch.context() as patch:
            break_at(patch, records.RowWriter, "write", count)
            try:
                run(small_config(out, **changes), Silent())
                break
            except Killed:
                tries += 1
    small_run(out, **changes)
    assert tries >= 2
    same(results(tmp_path / "whole"), results(out))
