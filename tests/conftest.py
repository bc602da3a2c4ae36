"""Where kernels run: on the GPU where there is one, otherwise in Triton's interpreter.

`kernel_device` is the device of a kernel test's tensors. On a machine with a GPU such a test bears
the mark `gpu`; on others the public functions are made to launch their kernels in the interpreter.
"""

from __future__ import annotations

import os

import pytest
import torch

HAS_GPU = torch.cuda.is_available()
if not HAS_GPU:
    # Before the first import of triton in this process: its own functions read it when imported.
    os.environ["TRITON_INTERPRET"] = "1"

from srlm_fast.kernels import jit  # noqa: E402

if jit.HAS_TRITON and not HAS_GPU:
    import tests.kernels.interpreter  # noqa: F401


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if HAS_GPU and "kernel_device" in getattr(item, "fixturenames", ()):
            item.add_marker("gpu")
        if not HAS_GPU and item.get_closest_marker("gpu"):
            item.add_marker(pytest.mark.skip(reason="needs a GPU"))


@pytest.fixture
def kernel_device(monkeypatch: pytest.MonkeyPatch) -> str:
    """The device on which public functions launch Triton kernels during this test."""
    if not jit.HAS_TRITON:
        pytest.skip("triton is not installed")
    if HAS_GPU:
        return "cuda"
    monkeypatch.setattr(jit, "runs_triton", lambda x: True)
    return "cpu"
