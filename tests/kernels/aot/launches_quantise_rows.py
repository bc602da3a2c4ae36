"""quantise_rows: the rows of Llama-2-70B, narrow odd ones, the widest."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import torch

from srlm_fast.kernels import quantise_rows
from tests.kernels.aot import Launch


def step(dtype: torch.dtype, width: int) -> None:
    quantise_rows(torch.zeros(4, width, dtype=dtype))


def launches(arch: int) -> Iterator[Launch]:
    if arch < 89:
        return
    yield Launch("bf16, 8192", partial(step, torch.bfloat16, 8192))
    yield Launch("bf16, 28672", partial(step, torch.bfloat16, 28672))
    if arch != 90:
        return
    yield Launch("fp16, 77", partial(step, torch.float16, 77))
    yield Launch("fp32, 32768", partial(step, torch.float32, 32768))
