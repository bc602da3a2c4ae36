"""rope_write_kv: Llama without a norm, Qwen3 with one, fp8 pages."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import torch

from srlm_fast.kernels.rope_kv import rope_write_kv
from tests.kernels.aot import Launch

BF16 = torch.bfloat16


def step(heads: tuple[int, int], width: int, norm: bool = False, dtype=BF16, cache=None, **scales):
    qkv = torch.zeros(4, (heads[0] + 2 * heads[1]) * width, dtype=dtype)
    pages = torch.zeros(2, 4, heads[1], 64, width).to(cache or dtype)
    norms = (torch.ones(width, dtype=dtype),) * 2 if norm else (None, None)
    angles = torch.zeros(2, 4, width // 2)
    rope_write_kv(qkv, *angles, torch.zeros(4).long(), *pages, *norms, 1e-6, **scales)


def launches(arch: int) -> Iterator[Launch]:
    yield Launch("Llama-2-70B", partial(step, (64, 8), 128))
    yield Launch("Qwen3-8B", partial(step, (32, 8), 128, True))
    if arch != 90:
        return
    scale = torch.ones(1)
    eight = {"cache": torch.float8_e4m3fn, "k_scale": scale, "v_scale": 0.5}
    yield Launch("Llama-3-8B, fp8", partial(step, (32, 8), 128, **eight))
    yield Launch("Qwen2-0.5B, fp32", partial(step, (14, 2), 64, dtype=torch.float32))
    yield Launch("width 18, fp32", partial(step, (4, 4), 18, True, torch.float32))
