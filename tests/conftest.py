"""Where kernels run: on the GPU where there is one, otherwise in Triton's interpreter.

`kernel_device` is the device of a kernel test's tensors. On a machine with a GPU such a test bears
the mark `gpu`; on others the public functions are made to launch their kernels in the interpreter.
"""

from __future__ import annotations

import fcntl
import os
import shutil
from collections.abc import Callable
from pathlib import Path

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


@pytest.fixture(scope="session")
def made_once(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """made_once(name, make) -> the folder that make(folder) filled, once for all test processes.

    Others read it too: a test that writes makes a copy.
    """
    base = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        base = base.parent

    def made(name: str, make: Callable[[Path], object]) -> Path:
        folder, done = base / "made_once" / name, base / f"{name}.done"
        with open(base / f"{name}.lock", "w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not done.exists():
                shutil.rmtree(folder, ignore_errors=True)  # what failed in another process
                folder.mkdir(parents=True)
                make(folder)
                done.touch()
        return folder

    return made


@pytest.fixture(scope="session")
def two_rounds(made_once: Callable[..., Path]) -> Path:
    """A run that made M1, M2 and M3, at the size of tests.loop.worlds.SMALL."""
    from tests.loop.worlds import configured_run

    return made_once("two_rounds", configured_run)


@pytest.fixture
def kernel_device(monkeypatch: pytest.MonkeyPatch) -> str:
    """The device on which public functions launch Triton kernels during this test."""
    if not jit.HAS_TRITON:
        pytest.skip("triton is not installed")
    if HAS_GPU:
        return "cuda"
    monkeypatch.setattr(jit, "runs_triton", lambda x: True)
    return "cpu"
