"""Triton, or stand-ins where it is not installed, and the question that every launcher asks.

Kernel files write `from . import jit` and `from .jit import tl, triton`. Without Triton (it is a
dependency on Linux x86-64 only) their kernels are plain functions that nobody launches.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache, wraps
from typing import Any

import torch
from torch import Tensor

try:
    import triton
    import triton.language as tl

    HAS_TRITON = True
except ImportError:
    HAS_TRITON = False

    class _Absent:
        """Takes any decorator and any annotation."""

        def __getattr__(self, name: str) -> Any:
            return (lambda function: function) if name == "jit" else self

    triton = tl = _Absent()

__all__ = [
    "HAS_TRITON",
    "arch",
    "cdiv",
    "on_its_device",
    "power_of_2",
    "runs_triton",
    "tl",
    "triton",
]


def cdiv(size: int, step: int) -> int:
    """Steps that cover the size. As triton.cdiv, which on the host takes 4 microseconds."""
    return -(-size // step)


def power_of_2(size: int) -> int:
    """The least power of 2 that is not below a size of 1 or more. As triton.next_power_of_2."""
    return 1 << (size - 1).bit_length()


def runs_triton(x: Tensor) -> bool:
    """Whether Triton kernels run on this tensor's device: on CUDA, never the interpreter.

    The tests replace this function to run every kernel in the interpreter and to compile it.
    """
    return x.is_cuda and HAS_TRITON


def arch() -> int:
    """Compute capability of the current device, 90 for Hopper; 90 where nothing is compiled."""
    try:
        driver = triton.runtime.driver.active
        return _arch(driver, driver.get_current_device())
    except (RuntimeError, AttributeError):
        return 90


@cache
def _arch(driver: Any, device: int) -> int:
    return int(driver.get_current_target().arch)


def on_its_device(function: Callable[..., Any]) -> Callable[..., Any]:
    """A public function that launches on the device of its first tensor, whichever is current.

    Backward passes need no such care: autograd runs them with the device of their forward pass.
    """

    @wraps(function)
    def call(*args: Any, **options: Any) -> Any:
        first = args[0] if args else next(iter(options.values()), None)
        if getattr(first, "is_cuda", False) and first.device.index != torch.cuda.current_device():
            with torch.cuda.device(first.device):
                return function(*args, **options)
        return function(*args, **options)

    return call
