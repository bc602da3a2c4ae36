"""The KV cache in pages, and attention over it.

Shape letters: L layers, B pages, P tokens of a page, T rows of a step, S sequences, H heads, G
key/value heads, K head width, V = K rounded up to 16.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from ..kernels.native import available, native
from ..model import ModelConfig

LANES = 16  # the native kernel's columns per tile


class PagedCache:
    """keys [L, B, G, K, P]: a page's tokens stand side by side, so scores of 16 keys are one
    vector; values [L, B, G, P, V].

    On a CPU fp32, or bf16 for a bf16 model and the native kernel; elsewhere the model's dtype. In
    native bf16 two neighbours of the summed dimension stand together, as the processor's dot
    products want them: keys [L, B, G, K/2, P, 2], values [L, B, G, P/2, V, 2]. Memory is touched
    only as pages are first written.
    """

    def __init__(
        self, config: ModelConfig, num_pages: int, page_tokens: int, device: Any, dtype: torch.dtype
    ) -> None:
        self.config, self.page_tokens = config, page_tokens
        self.head_dim, self.value_width = config.head_dim, -(-config.head_dim // LANES) * LANES
        self.dtype = cache_dtype(device, dtype)
        self.native = torch.device(device).type == "cpu" and available()
        shape = (config.num_layers, num_pages, config.num_kv_heads)
        options = {"dtype": self.dtype, "device": device}
        pair = 2 if self.in_pairs else 1
        within_keys = [config.head_dim // pair, page_tokens, pair][: 1 + pair]
        within_values = [page_tokens // pair, self.value_width, pair][: 1 + pair]
        self.keys = torch.zeros(*shape, *within_keys, **options)
        self.values = torch.zeros(*shape, *within_values, **options)
        if self.native:  # before they are touched
            for pool in (self.keys, self.values):
                native().ask_for_huge_pages(pool.data_ptr(), pool.nbytes)

    @property
    def in_pairs(self) -> bool:
        return self.native and self.dtype == torch.bfloat16

    @property
    def native_shape(self) -> tuple[int, int, int, int, int, bool]:
        c = self.config
        heads = (c.num_heads, c.num_kv_heads, c.head_dim)
        return (*heads, self.value_width, self.page_tokens, self.in_pairs)

    def copy_pages(self, copies: Tensor) -> None:
        """copies [C, 2] int64: from, to. All are read before any is written."""
        source, target = copies[:, 0], copies[:, 1]
        self.keys[:, target] = self.keys[:, source]
        self.values[:, target] = self.values[:, source]


def cache_dtype(device: Any, dtype: torch.dtype) -> torch.dtype:
    """The model's dtype; on a CPU fp32 unless the native kernel reads bf16."""
    if torch.device(device).type != "cpu" or (dtype == torch.bfloat16 and available()):
        return dtype
    return torch.float32


def page_bytes(config: ModelConfig, page_tokens: int, dtype: torch.dtype) -> int:
    """Bytes of one page over all layers."""
    width = config.head_dim + -(-config.head_dim // LANES) * LANES
    return config.num_layers * config.num_kv_heads * page_tokens * width * dtype.itemsize


class PagedContext:
    """Attention of one planned step: keys and values go into their pages, then every row attends.

    plan: the scheduler's arrays (slots, row_starts, context_lengths, block_table). Rows of q beyond
    the plan's are padding; their output is zero.
    """

    def __init__(self, cache: PagedCache, plan: Any) -> None:
        self.cache, self.num_rows = cache, len(plan.slots)
        self.windows = cache.config.windows
        self.scale = 1.0 / math.sqrt(cache.head_dim)
        arrays = (plan.slots, plan.row_starts, plan.context_lengths, plan.block_table)
        if cache.native:
            self.batch = native().PagedBatch(*arrays, cache.native_shape)
        else:
            self._arrays = [torch.tensor(array, device=cache.keys.device) for array in arrays]

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """q [T, H, K], k and v [T, G, K] -> [T, H, K] in the dtype of q."""
        dtype = torch.float32 if self.cache.native else self.cache.dtype
        q_real, k, v = (x[: self.num_rows].to(dtype) for x in (q, k, v))
        attend = self._attend_native if self.cache.native else self._attend_reference
        out = attend(layer, q_real, k, v).to(q.dtype)
        if len(q) > self.num_rows:
            out = torch.cat((out, out.new_zeros(len(q) - self.num_rows, *out.shape[1:])))
        return out

    def _attend_native(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        q, k, v = _row_strided(q), _row_strided(k), _row_strided(v)
        out = torch.empty(q.shape)
        self.batch.attend(
            q.data_ptr(),
            q.stride(0),
            k.data_ptr(),
            k.stride(0),
            v.data_ptr(),
            v.stride(0),
            self.cache.keys[layer].data_ptr(),
            self.cache.values[layer].data_ptr(),
            self.scale,
            self.windows[layer] or 0,
            out.data_ptr(),
        )
        return out

    def _attend_reference(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        keys, values = self.cache.keys[layer], self.cache.values[layer]
        slots, row_starts, lengths, table = self._arrays
        write_reference(keys, values, k, v, slots)
        window = self.windows[layer]
        return attend_reference(q, keys, values, row_starts, lengths, table, self.scale, window)


def _row_strided(x: Tensor) -> Tensor:
    """x [T, N, K] whose heads are contiguous within a row, as the kernel reads them."""
    return x if x.stride()[1:] == (x.shape[2], 1) else x.contiguous()


def write_reference(keys: Tensor, values: Tensor, k: Tensor, v: Tensor, slots: Tensor) -> None:
    """Put k, v [T, G, K] at slots [T] of one layer's keys [B, G, K, P] and values [B, G, P, V]."""
    page, offset = slots // keys.shape[-1], slots % keys.shape[-1]
    keys[page, :, :, offset] = k
    values[page, :, offset, : v.shape[-1]] = v


def attend_reference(
    q: Tensor,
    keys: Tensor,
    values: Tensor,
    row_starts: Tensor,
    context_lengths: Tensor,
    block_table: Tensor,
    scale: float,
    window: int | None,
) -> Tensor:
    """The specification: for each sequence gather its pages, then causal (windowed) softmax
    attention in fp32.

    q [T, H, K], row_starts [S + 1], context_lengths [S], block_table [S, W] -> [T, H, K].
    """
    out, group = torch.empty_like(q), q.shape[1] // keys.shape[1]
    starts, lengths = row_starts.tolist(), context_lengths.tolist()
    for s, length in enumerate(lengths):
        rows, pages = slice(starts[s], starts[s + 1]), block_table[s].long()
        k = keys[pages].permute(1, 0, 3, 2).flatten(1, 2)[:, :length].float()  # [G, length, K]
        v = values[pages].permute(1, 0, 2, 3).flatten(1, 2)[:, :length, : q.shape[2]].float()
        k, v = k.repeat_interleave(group, 0), v.repeat_interleave(group, 0)
        scores = q[rows].float().transpose(0, 1) @ k.transpose(1, 2) * scale  # [H, rows, length]
        key = torch.arange(length, device=q.device)
        distance = key[length - scores.shape[1] :, None] - key
        hidden = distance < 0 if window is None else (distance < 0) | (distance >= window)
        weights = scores.masked_fill(hidden, -torch.inf).softmax(-1)
        out[rows] = (weights @ v).transpose(0, 1).to(q.dtype)
    return out
