"""Attention of a packed stream of segments: causal inside each, and behind a prompt they share.

A segment s may have a parent: a row of s sees all of its parent's rows, then its own up to itself,

    out_i = sum_j softmax_j(scale q_i . k_j) v_j    over j in parent(s), then j in s with j <= i

so that a prompt which several responses share is in the stream, and computed, once (prefix sharing,
arXiv 2410.20305). A parent has no parent itself: trees of depth one. With a window w a row sees the
last w positions up to its own, where a child's positions go on behind its parent's.

Three ways to it, of which none lets a row's bits depend on whether a gradient is wanted:

    CPU, fp32 and bf16   csrc/segment_attention.cpp
    GPU, 16 bits         flash attention, twice where there are children: tree_attention
    otherwise            SDPA of every segment's context, gathered and padded

The first two keep the log-sum-exp of each row's scores, lse, and backward is

    P = e^(scale q k^T - lse)   dv = P^T do   dS = scale P (do v^T - sum_d do o)
    dq = dS k                   dk = dS^T q                  (arXiv 2307.08691, algorithm 2)

Scores, softmax and sums are fp32; in 16 bits probabilities and their gradients are rounded before
they are multiplied with values, queries and keys.

Shape letters: T rows, S segments, H query heads, G key/value heads, K head width, L rows of the
longest segment, M keys of the longest context.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache, cached_property
from itertools import accumulate
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from .contracts import check_number, check_tensor, once_differentiable, wants_graph
from .native import available, native
from .tree_attention import FLASH, Sequences, TreeAttention, TreePlan, attend_trees

DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
NATIVE_DTYPES = (torch.float32, torch.bfloat16)
# Head widths that flash attention takes, backward too, on every GPU: multiples, up to this one.
FLASH_STEP, FLASH_WIDTH = 8, 192


class Padded(NamedTuple):
    """Segments side by side. rows [S L] and keys [S M] int64: rows of the stream, those behind a
    segment's end any; None: the stream as it is. slots [T] int64: where a row of the stream is
    among rows; None: the same. mask [S, 1, L, M]: what a row sees; None: plain causal.
    """

    rows: Tensor | None
    keys: Tensor | None
    slots: Tensor | None
    mask: Tensor | None


class Segments:
    """How a stream of T rows is cut, on the CPU.

    lengths [S]: rows of each segment, one behind the other in the stream. parents [S]: the number
    of each segment's parent, -1 for none; None: no segment has one. Raises ValueError.

    What all layers of a step share, on each device, is made once and kept here.
    """

    def __init__(self, lengths: Sequence[int], parents: Sequence[int] | None = None) -> None:
        if not lengths or min(lengths) < 1:
            raise ValueError(f"lengths: {list(lengths)}, wanted at least one segment, none empty")
        self.lengths = list(lengths)
        self.parents = [-1] * len(lengths) if parents is None else list(parents)
        if len(self.parents) != len(self.lengths):
            raise ValueError(f"parents: {len(self.parents)}, wanted {len(self.lengths)}")
        for index, parent in enumerate(self.parents):
            if not (parent == -1 or (0 <= parent < index and self.parents[parent] == -1)):
                raise ValueError(
                    f"parents[{index}]: {parent}, wanted -1 or an earlier segment without a parent"
                )
        *self.starts, self.num_rows = accumulate(self.lengths, initial=0)
        self.has_parents = any(parent >= 0 for parent in self.parents)
        self._padded: dict[tuple[torch.device, int | None], Padded] = {}
        self._plans: dict[torch.device, TreePlan] = {}

    @cached_property
    def first_positions(self) -> list[int]:
        """[S] position of each segment's first row."""
        return [0 if p < 0 else self.lengths[p] for p in self.parents]

    @cached_property
    def longest(self) -> int:
        """Keys of the longest context."""
        return max(map(sum, zip(self.first_positions, self.lengths, strict=True)))

    @cached_property
    def arrays(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """lengths and parents."""
        return np.array(self.lengths, np.int64), np.array(self.parents, np.int64)

    def padded(self, device: torch.device, window: int | None) -> Padded:
        """On a device."""
        if (device, window) not in self._padded:
            made = (None if x is None else x.to(device) for x in _pad(self, window))
            self._padded[device, window] = Padded(*made)
        return self._padded[device, window]

    def tree_plan(self, device: torch.device) -> TreePlan:
        """On a device."""
        if device not in self._plans:
            self._plans[device] = _plan_trees(self, device)
        return self._plans[device]


def _pad(segments: Segments, window: int | None) -> Padded:
    lengths, before, starts = (
        torch.tensor(x)[:, None]
        for x in (segments.lengths, segments.first_positions, segments.starts)
    )
    row, key = torch.arange(int(lengths.max())), torch.arange(segments.longest)
    parents = torch.tensor(segments.parents).clamp(min=0)
    mask = None
    if segments.has_parents or window is not None:
        distance = (before + row)[:, :, None] - key
        mask = ((distance >= 0) & (distance < (window or len(key))))[:, None]
    if not segments.has_parents and bool((lengths == len(row)).all()):
        return Padded(None, None, None, mask)
    rows = starts + torch.minimum(row, lengths - 1)
    own = starts + torch.minimum(key - before, lengths - 1)
    keys = torch.where(key < before, starts[parents] + key, own)
    slots = (row < lengths).flatten().nonzero()[:, 0]
    return Padded(rows.flatten(), keys.flatten(), slots, mask)


def _plan_trees(segments: Segments, device: torch.device) -> TreePlan:
    def sequences(queries: Sequence[int], keys: Sequence[int], causal: bool) -> Sequences:
        starts = (
            torch.tensor([0, *accumulate(x)], dtype=torch.int32).to(device) for x in (queries, keys)
        )
        return Sequences(*starts, max(queries), max(keys), causal)

    def rows_of(numbers: Sequence[int]) -> Tensor:
        spans = [torch.arange(segments.lengths[i]) + segments.starts[i] for i in numbers]
        return torch.cat(spans or [torch.arange(0)]).to(device)

    children: dict[int, list[int]] = {}
    for index, parent in enumerate(segments.parents):
        if parent >= 0:
            children.setdefault(parent, []).append(index)
    branches = None
    if children:
        child_lengths = [sum(segments.lengths[i] for i in each) for each in children.values()]
        branches = sequences(child_lengths, [segments.lengths[p] for p in children], False)
    own = sequences(segments.lengths, segments.lengths, True)
    child_rows = rows_of([i for each in children.values() for i in each])
    return TreePlan(own, branches, child_rows, rows_of(list(children)))


def segment_attention_reference(
    q: Tensor, k: Tensor, v: Tensor, segments: Segments, scale: float, window: int | None = None
) -> Tensor:
    """q [T, H, K], k and v [T, G, K] -> [T, H, K]; softmax in fp32, in fp64 for fp64."""
    wide = torch.promote_types(q.dtype, torch.float32)
    group, outs = q.shape[1] // k.shape[1], []
    for start, length, parent in zip(
        segments.starts, segments.lengths, segments.parents, strict=True
    ):
        rows = torch.arange(start, start + length)
        before = 0 if parent < 0 else segments.lengths[parent]
        if before:
            first = segments.starts[parent]
            rows = torch.cat((torch.arange(first, first + before), rows))
        keys, values = (x[rows].repeat_interleave(group, 1).to(wide) for x in (k, v))
        scores = torch.einsum("qhd,khd->hqk", q[start : start + length].to(wide), keys) * scale
        position = torch.arange(before + length, device=q.device)
        distance = position[before:, None] - position
        hidden = distance < 0 if window is None else (distance < 0) | (distance >= window)
        weights = scores.masked_fill(hidden, -torch.inf).softmax(-1)
        outs.append(torch.einsum("hqk,khd->qhd", weights, values).to(q.dtype))
    return torch.cat(outs)


def _attend_padded(q, k, v, segments, scale, window):
    """SDPA, which has a gradient of its own."""
    padded, group = segments.padded(q.device, window), q.shape[1] // k.shape[1]
    if q.is_cuda and group > 1:  # its kernels with a mask or fp32 want a head for each of q's
        k, v = (x.repeat_interleave(group, 1) for x in (k, v))

    def heads(x: Tensor, rows: Tensor | None) -> Tensor:
        x = x if rows is None else x.index_select(0, rows)
        return x.unflatten(0, (len(segments.lengths), -1)).transpose(1, 2)

    out = F.scaled_dot_product_attention(
        heads(q, padded.rows),
        heads(k, padded.keys),
        heads(v, padded.keys),
        attn_mask=padded.mask,
        is_causal=padded.mask is None,
        scale=scale,
        enable_gqa=q.shape[1] != k.shape[1],
    )
    out = out.transpose(1, 2).flatten(0, 1)
    return out if padded.slots is None else out.index_select(0, padded.slots)


def _heads(x: Tensor) -> tuple[int, int, int]:
    return x.data_ptr(), x.stride(0), x.stride(1)


def _dense(x: Tensor) -> Tensor:
    """The values of a head side by side; rows and heads may be those of a fused projection."""
    return x if x.stride(2) == 1 else x.contiguous()


def _shape(q, k, scale, window):
    (rows, heads, width), kv_heads = q.shape, k.shape[1]
    return rows, heads, kv_heads, width, q.dtype == torch.bfloat16, scale, window or 0


def _attend_native(q, k, v, segments, scale, window):
    """out [T, H, K], lse [H, T] fp32."""
    q, k, v = _dense(q), _dense(k), _dense(v)
    out = torch.empty(q.shape, dtype=q.dtype)
    lse = torch.empty((q.shape[1], q.shape[0]), dtype=torch.float32)
    native().segment_attention(
        _shape(q, k, scale, window), *segments.arrays, *map(_heads, (q, k, v)),
        out.data_ptr(), lse.data_ptr(),
    )  # fmt: skip
    return out, lse


class _NativeAttention(torch.autograd.Function):
    @staticmethod
    def forward(ctx, q, k, v, segments, scale, window):
        out, lse = _attend_native(q, k, v, segments, scale, window)
        ctx.save_for_backward(q, k, v, out, lse)
        ctx.call = segments, scale, window
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        (q, k, v, out, lse), (segments, scale, window) = ctx.saved_tensors, ctx.call
        q, k, v, grad = _dense(q), _dense(k), _dense(v), _dense(grad)
        grads = [torch.empty(x.shape, dtype=x.dtype) for x in (q, k, v)]
        native().segment_attention_backward(
            _shape(q, k, scale, window), *segments.arrays, *map(_heads, (q, k, v, out, grad)),
            lse.data_ptr(), *(x.data_ptr() for x in grads),
        )  # fmt: skip
        return *grads, None, None, None


@cache
def _has_flash(index: int | None) -> bool:
    """Whether PyTorch has its flash attention, and a GPU the compute capability that it wants."""
    there = torch.version.cuda is not None and torch.backends.cuda.is_flash_attention_available()
    return there and torch.cuda.get_device_capability(index) >= (8, 0)


def _takes_flash(q: Tensor, segments: Segments, window: int | None) -> bool:
    width = q.shape[2]
    return (
        q.is_cuda
        and q.dtype in (torch.bfloat16, torch.float16)
        and width % FLASH_STEP == 0
        and width <= FLASH_WIDTH
        and not (segments.has_parents and window is not None)
        and _has_flash(q.device.index)
    )


def segment_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    segments: Segments,
    scale: float,
    window: int | None = None,
) -> Tensor:
    """q [T, H, K], k and v [T, G, K] -> [T, H, K] in the dtype of q. Differentiable once; in fp64
    as often as SDPA is.

    segments: of the T rows. scale: what scores are multiplied with. window: keys that a row sees,
    itself included. Rows and heads may be strided as they like, as views of one projection are.

    Raises ValueError naming the argument: shapes, dtypes, devices, a number of heads that the
    key/value heads do not divide, a scale or window not above 0, a DTensor. RuntimeError in a
    backward pass with create_graph=True.
    """
    check_tensor("q", q, (segments.num_rows, "H", "K"), DTYPES)
    like = ((q.dtype,), q.device)
    check_tensor("k", k, (q.shape[0], "G", q.shape[2]), *like)
    check_tensor("v", v, k.shape, *like)
    if k.shape[1] == 0 or q.shape[1] % k.shape[1]:
        raise ValueError(f"q: {q.shape[1]} heads, wanted a multiple of the {k.shape[1]} of k")
    check_number("scale", scale, "a number above 0", lambda x: x > 0)
    if window is not None:
        check_number("window", window, "1 or more keys, or None", lambda n: n > 0, integer=True)
        window = window if window < segments.longest else None
    if q.device.type == "cpu" and q.dtype in NATIVE_DTYPES and available():
        if wants_graph(q, k, v):
            return _NativeAttention.apply(*_kept(q, k, v), segments, scale, window)
        return _attend_native(q, k, v, segments, scale, window)[0]
    if _takes_flash(q, segments, window):
        plan = segments.tree_plan(q.device)
        if wants_graph(q, k, v):
            return TreeAttention.apply(*_kept(q, k, v), plan, scale, window, FLASH)
        return attend_trees(*map(_dense, (q, k, v)), plan, scale, window)[0]
    return _attend_padded(q, k, v, segments, scale, window)


def _kept(*tensors: Tensor) -> list[Tensor]:
    """What backward keeps: a view would keep the projection that it is part of, which nobody else
    needs.
    """
    return [x.contiguous() for x in tensors]
