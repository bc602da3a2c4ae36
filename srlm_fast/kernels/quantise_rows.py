"""Rows to fp8 (e4m3), each with a scale of its own.

x [T, K] -> x8 [T, K] fp8 and scale [T, 1] fp32 with x about x8 scale:

    a = max(max_k |x_k|, 1e-30),    scale = a / 448,    x8_k = x_k (448 / a)

in fp32, rounded once, to nearest even; 448 is the largest number of e4m3. What is at least 2^-6
scale (a / 28,672) is right within a factor 1 +- 2^-4, what is smaller within 2^-10 scale. A row of
zeros gives zeros. A row that holds NaN or infinity gives NaN where that stood.

Triton: a program holds a row in registers, so that x is read once. Every step is rounded alike in
the reference, whose bits these are.
"""

from __future__ import annotations

import torch
from torch import Tensor

from . import jit
from .contracts import check_tensor
from .jit import tl, triton
from .kv_pages import FP8, FP8_LIMIT

DTYPES = (torch.bfloat16, torch.float16, torch.float32)
SMALLEST = 1e-30
# Columns that a program holds: 32 a thread. Wider rows run in PyTorch, as do cards before sm_89,
# which have no fp8.
MAX_WIDTH, FIRST_ARCH = 32768, 89


def quantise_rows_reference(x: Tensor) -> tuple[Tensor, Tensor]:
    """x [T, K] -> x8 [T, K], scale [T, 1]."""
    largest = x.float().abs().amax(1, keepdim=True).clamp_min(SMALLEST)
    factor = torch.full_like(largest, FP8_LIMIT) / largest  # a number would be divided otherwise
    return (x.float() * factor).to(FP8), largest * (1 / FP8_LIMIT)


@triton.jit
def _quantise_kernel(x_ptr, out_ptr, scale_ptr, stride, width, BLOCK: tl.constexpr):
    """448 is FP8_LIMIT, 1e-30 SMALLEST."""
    row = tl.program_id(0).to(tl.int64)
    cols = tl.arange(0, BLOCK)
    mask = cols < width
    x = tl.load(x_ptr + row * stride + cols, mask=mask, other=0.0).to(tl.float32)
    largest = tl.maximum(tl.max(tl.abs(x), axis=0), 1e-30)
    x *= tl.div_rn(448.0, largest)
    tl.store(out_ptr + row * width + cols, x.to(out_ptr.dtype.element_ty), mask=mask)
    tl.store(scale_ptr + row, largest * (1 / 448))


def _launch(x):
    rows, width = x.shape
    x = x if x.stride(1) == 1 else x.contiguous()
    x8, scale = x.new_empty(x.shape, dtype=FP8), x.new_empty((rows, 1), dtype=torch.float32)
    block = jit.power_of_2(width)
    _quantise_kernel[(rows,)](
        x, x8, scale, x.stride(0), width, BLOCK=block, num_warps=min(max(block // 512, 1), 32)
    )
    return x8, scale


@jit.on_its_device
def quantise_rows(x: Tensor) -> tuple[Tensor, Tensor]:
    """x [T, K], K > 0 -> x8 [T, K] fp8, scale [T, 1] fp32. Not differentiable.

    Raises ValueError naming the argument.
    """
    check_tensor("x", x, ("T", "K"), DTYPES)
    if not x.shape[1]:
        raise ValueError(f"x: shape {list(x.shape)}, wanted at least one column")
    runs = jit.runs_triton(x) and x.shape[1] <= MAX_WIDTH and jit.arch() >= FIRST_ARCH
    return _launch(x) if runs and len(x) else quantise_rows_reference(x)
