"""rope and rope_qk, forward and backward, on heads cut out of a fused projection."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import torch

from srlm_fast.kernels import rope, rope_qk
from tests.kernels.aot import Launch


def step(heads: tuple[int, int], width: int, dtype: torch.dtype = torch.bfloat16) -> None:
    qkv = torch.zeros(4, heads[0] + 2 * heads[1], width, dtype=dtype, requires_grad=True)
    q, k, _ = qkv.split((*heads, heads[1]), dim=1)
    angles = torch.zeros(4, width // 2), torch.zeros(4, width // 2)
    outputs = rope_qk(q, k, *angles)
    torch.autograd.backward(outputs, [torch.zeros_like(y) for y in outputs])


def alone() -> None:
    x = torch.zeros(4, 32, 128, dtype=torch.bfloat16, requires_grad=True)
    rope(x, torch.zeros(4, 64), torch.zeros(4, 64)).backward(torch.zeros_like(x))


def launches(arch: int) -> Iterator[Launch]:
    yield Launch("Llama-2-70B", partial(step, (64, 8), 128))
    if arch != 90:
        return
    yield Launch("Llama-3-8B", partial(step, (32, 8), 128))
    yield Launch("Qwen2-0.5B", partial(step, (14, 2), 64))
    yield Launch("128 heads", partial(step, (128, 8), 128))
    yield Launch("width 18, fp32", partial(step, (4, 4), 18, torch.float32))
    yield Launch("alone", alone)
