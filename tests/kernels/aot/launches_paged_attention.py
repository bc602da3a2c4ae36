"""write_kv and paged_attention: decoding, merging, extending; the heads of Llama and of Qwen."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import numpy as np
import torch

from srlm_fast.kernels.attention_work import PagedWork
from srlm_fast.kernels.kv_pages import write_kv
from srlm_fast.kernels.paged_attention import paged_attention
from tests.kernels.aot import Launch

BF16, FP16, FP32, FP8 = torch.bfloat16, torch.float16, torch.float32, torch.float8_e4m3fn
MATMUL = frozenset({"_decode_kernel", "_extend_kernel"})
LLAMA_8B, LLAMA_70B, QWEN_05B, QWEN_7B = (32, 8, 128), (64, 8, 128), (14, 2, 64), (28, 4, 128)


def pages_for(heads, page, dtype):
    return (torch.zeros(32, heads[1], page, heads[2], dtype=dtype) for _ in range(2))


def write(heads, page=64, dtype=BF16, cache=None, index=torch.int64) -> None:
    keys, values = pages_for(heads, page, cache or dtype)
    qkv = torch.zeros(4, heads[0] + 2 * heads[1], heads[2], dtype=dtype)
    _, k, v = qkv.split((heads[0], heads[1], heads[1]), dim=1)
    write_kv(k, v, torch.zeros(4, dtype=index), keys, values)


def attend(heads, page=64, dtype=BF16, cache=None, window=None, deterministic=False, scale=1.0):
    """A decoded row of several splits, a chunk of 20 rows."""
    keys, values = pages_for(heads, page, cache or dtype)
    work = PagedWork(
        num_heads=heads[0],
        num_kv_heads=heads[1],
        head_dim=heads[2],
        page_tokens=page,
        dtype=dtype,
        device="cpu",
        deterministic=deterministic,
    )
    lengths = np.array([2000, 1000], np.int32)
    work.plan(np.array([0, 1, 21], np.int32), lengths, np.zeros((2, 2048 // page), np.int32))
    q = torch.zeros(21, heads[0], heads[2], dtype=dtype)
    scales = {"k_scale": scale, "v_scale": scale}
    paged_attention(q, keys, values, work, 0.1, window, **scales)


def launches(arch: int) -> Iterator[Launch]:
    def attention(name: str, *args, **options) -> Launch:
        matmul = frozenset() if options.get("dtype") is FP32 else MATMUL
        return Launch(f"attention: {name}", partial(attend, *args, **options), matmul)

    yield Launch("write: 8B", partial(write, LLAMA_8B))
    yield attention("8B", LLAMA_8B)
    yield attention("8B, deterministic", LLAMA_8B, deterministic=True)
    yield attention("70B", LLAMA_70B)
    if arch > 80:
        one = torch.ones(1)
        yield attention("70B, fp8", LLAMA_70B, cache=FP8, scale=one)
        yield Launch("write: fp8", partial(write, LLAMA_8B, cache=FP8, index=torch.int32))
    if arch != 90:
        return
    yield Launch("write: fp32, odd", partial(write, (3, 3, 80), 16, FP32))
    yield attention("8B, fp8, deterministic", LLAMA_8B, cache=FP8, deterministic=True, scale=0.5)
    yield attention("8B, pages of 16, window", LLAMA_8B, 16, window=512)
    yield attention("8B, window, deterministic", LLAMA_8B, window=512, deterministic=True)
    yield attention("0.5B, group of 7", QWEN_05B)
    yield attention("7B, group of 7, fp16", QWEN_7B, dtype=FP16)
    yield attention("width 80", (32, 32, 80))
    yield attention("width 256", (16, 8, 256), 256)
    yield attention("width 16, fp32", (4, 2, 16), 16, dtype=FP32)
    yield attention("fp32", LLAMA_8B, dtype=FP32)
    yield attention("fp32, deterministic", LLAMA_8B, dtype=FP32, deterministic=True)
