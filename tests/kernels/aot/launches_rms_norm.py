"""rms_norm and rms_norm_residual, forward and backward, at every size of tile."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import torch

from srlm_fast.kernels import rms_norm, rms_norm_residual
from tests.kernels.aot import Launch


def alone(*shape: int, dtype: torch.dtype = torch.bfloat16, frozen: bool = False) -> None:
    x = torch.zeros(shape, dtype=dtype, requires_grad=True)
    weight = torch.ones(shape[-1], dtype=dtype, requires_grad=not frozen)
    rms_norm(x, weight, 1e-5).backward(torch.zeros_like(x))


def residual(
    width: int, dtype: torch.dtype = torch.bfloat16, only_y: bool = False, frozen: bool = False
) -> None:
    x = torch.zeros(4096, width, dtype=dtype, requires_grad=True)
    weight = torch.ones(width, dtype=dtype, requires_grad=not frozen)
    y, total = rms_norm_residual(x, x.detach(), weight, 1e-5)
    outputs = [y] if only_y else [y, total]
    torch.autograd.backward(outputs, [torch.zeros_like(y)] * len(outputs))


def head(width: int) -> None:
    """q of a fused projection, as Qwen3 norms it."""
    qkv = torch.zeros(4, 48, width, dtype=torch.bfloat16, requires_grad=True)
    q = qkv[:, :32]
    weight = torch.ones(width, dtype=torch.bfloat16, requires_grad=True)
    rms_norm(q, weight, 1e-6).backward(torch.zeros_like(q))


def launches(arch: int) -> Iterator[Launch]:
    yield Launch("8192", partial(alone, 4096, 8192))
    yield Launch("8192, residual", partial(residual, 8192))
    yield Launch("16384, residual", partial(residual, 16384))
    yield Launch("heads of 128", partial(head, 128))
    if arch != 90:
        return
    yield Launch("8192, residual, fp32", partial(residual, 8192, torch.float32))
    yield Launch("8192, residual, frozen", partial(residual, 8192, frozen=True))
    yield Launch("4096, residual", partial(residual, 4096))
    yield Launch("4096, residual, its sum unused", partial(residual, 4096, only_y=True))
    yield Launch("896, fp16", partial(alone, 4096, 896, dtype=torch.float16))
    yield Launch("5120, fp32", partial(alone, 4096, 5120, dtype=torch.float32))
    yield Launch("1000", partial(alone, 4096, 1000))
    yield Launch("heads of 64", partial(head, 64))
