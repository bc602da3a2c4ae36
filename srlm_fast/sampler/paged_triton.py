"""The KV cache on a GPU, and attention over it by Triton kernels.

Shape letters: L layers, B pages, P tokens of a page, T rows of a step, H heads, G key/value heads,
K head width.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from ..kernels.attention_work import PagedWork
from ..kernels.paged_attention import paged_attention
from ..kernels.rope_kv import rope_write_kv
from ..model import ModelConfig


class TritonCache:
    """keys and values [L, B, G, P, K]: what one page has of one head lies in a row."""

    def __init__(
        self,
        config: ModelConfig,
        num_pages: int,
        page_tokens: int,
        device: Any,
        dtype: torch.dtype,
        kv_dtype: str | None = None,
    ) -> None:
        self.config, self.page_tokens, self.dtype = config, page_tokens, dtype
        shape = (config.num_layers, num_pages, config.num_kv_heads, page_tokens, config.head_dim)
        options = {"dtype": _kv_dtype(dtype, kv_dtype), "device": device}
        self.keys, self.values = torch.zeros(shape, **options), torch.zeros(shape, **options)

    def copy_pages(self, copies: Tensor) -> None:
        """copies [C, 2] int64: from, to. All are read before any is written."""
        source, target = copies[:, 0], copies[:, 1]
        for pages in (self.keys, self.values):
            raw = pages.view(torch.uint8) if pages.itemsize == 1 else pages
            raw[:, target] = raw[:, source]

    def work(self, deterministic: bool, **more: Any) -> PagedWork:
        """The plan of a step's attention; `more` as PagedWork takes it."""
        c = self.config
        return PagedWork(
            num_heads=c.num_heads,
            num_kv_heads=c.num_kv_heads,
            head_dim=c.head_dim,
            page_tokens=self.page_tokens,
            dtype=self.dtype,
            device=self.keys.device,
            deterministic=deterministic,
            **more,
        )


def triton_page_bytes(
    config: ModelConfig, page_tokens: int, dtype: torch.dtype, kv_dtype: str | None
) -> int:
    """Bytes of one page over all layers."""
    tokens = 2 * config.num_layers * config.num_kv_heads * page_tokens
    return tokens * config.head_dim * _kv_dtype(dtype, kv_dtype).itemsize


def _kv_dtype(dtype: torch.dtype, kv_dtype: str | None) -> torch.dtype:
    return torch.float8_e4m3fn if kv_dtype == "fp8" else dtype


class TritonContext:
    """Attention of one step: keys and values go into their pages, then every row attends.

    slots [T]: where each row's key and value go; negative for padding. backend: of the attention,
    "triton" or "flash".
    """

    def __init__(
        self, cache: TritonCache, work: PagedWork, slots: Tensor, backend: str = "triton"
    ) -> None:
        self.cache, self.work, self.slots, self.backend = cache, work, slots, backend
        self.windows = cache.config.windows
        self.scale = 1.0 / math.sqrt(cache.config.head_dim)

    def attend_qkv(
        self,
        layer: int,
        qkv: Tensor,
        cos: Tensor,
        sin: Tensor,
        q_norm: Tensor | None,
        k_norm: Tensor | None,
        eps: float,
    ) -> Tensor:
        """qkv [T, (H + 2 G) K] -> [T, H, K]; as FusedContext says."""
        keys, values = self.cache.keys[layer], self.cache.values[layer]
        q = rope_write_kv(qkv, cos, sin, self.slots, keys, values, q_norm, k_norm, eps)
        return paged_attention(
            q, keys, values, self.work, self.scale, self.windows[layer], backend=self.backend
        )
