"""Where kernels are launched."""

from __future__ import annotations

from contextlib import contextmanager
from types import SimpleNamespace

import pytest
import torch

from srlm_fast.kernels import jit


def test_a_tensor_of_another_device_makes_its_device_current(monkeypatch: pytest.MonkeyPatch):
    entered = []

    @contextmanager
    def device(name):
        entered.append(name)
        yield

    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(torch.cuda, "device", device)
    call = jit.on_its_device(lambda x, y, z=0: (x, y, z))
    here, there = (
        SimpleNamespace(is_cuda=True, device=SimpleNamespace(index=index)) for index in (0, 1)
    )
    assert call(here, 2, z=3) == (here, 2, 3) and entered == []
    assert call(there, 2, z=3) == (there, 2, 3) and entered == [there.device]
    assert call(torch.zeros(1), 2)[1] == 2 and call([1.0], 2)[0] == [1.0] and len(entered) == 1


@pytest.mark.skipif(torch.cuda.is_available(), reason="says what holds without a GPU")
def test_nothing_runs_in_the_interpreter_unless_a_test_asks():
    assert not jit.runs_triton(torch.zeros(1))
    assert jit.arch() == 90
