"""swiglu, forward and backward: a width that fills its blocks, one that does not, an odd one."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import torch

from srlm_fast.kernels import swiglu
from tests.kernels.aot import Launch


def step(dtype: torch.dtype, width: int) -> None:
    gate_up = torch.zeros(4, 2 * width, dtype=dtype, requires_grad=True)
    swiglu(gate_up).backward(torch.zeros(4, width, dtype=dtype))


def launches(arch: int) -> Iterator[Launch]:
    yield Launch("bf16, 28672", partial(step, torch.bfloat16, 28672))
    if arch != 90:
        return
    yield Launch("fp16, 4864", partial(step, torch.float16, 4864))
    yield Launch("fp32, 77", partial(step, torch.float32, 77))
