"""Kernels compiled ahead of time, without a GPU, as their launchers launch them.

`worker` is a process of its own (one process cannot interpret and compile). It pretends to have a
GPU of capability 80, 90 or 100, calls the public functions on CPU tensors, and compiles what they
launch instead of launching it. test_compile.py asks for no spills, shared memory within the card's,
and tensor cores in every matmul.

To add an op, write launches_<op>.py with

    def launches(arch: int) -> Iterable[Launch]:
        yield Launch("forward", lambda: my_op(torch.zeros(128, 64).bfloat16()))
        yield Launch("scores", lambda: ..., matmul={"_scores_kernel"})

A call is the public function (or its launcher) with the sizes, dtypes and strides that select what
shall be compiled, backward included; what comes out is never computed, so nothing may depend on
it. `matmul` names the kernels that must run on tensor cores. Compiling takes 0.3-3 s a kernel: all
configurations on 90, the default and the heaviest ones on 80 and 100. The worker also runs by hand:

    python -m tests.kernels.aot.worker 90 tests.kernels.aot.launches_my_op
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Launch:
    name: str
    call: Callable[[], Any]
    matmul: frozenset[str] | set[str] = frozenset()
