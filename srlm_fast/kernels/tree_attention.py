"""Attention of trees of depth one by two variable-length calls of flash attention, for a GPU.

One call attends within every segment, causally; the other lets the rows of all children of a parent
see all of its rows. A softmax over two disjoint sets of keys a and b, of which each is known by its
own output and log-sum-exp, is merged by

    lse = log(e^lse_a + e^lse_b)     out = e^(lse_a - lse) out_a + e^(lse_b - lse) out_b

(arXiv 2205.14135, online softmax). Backward needs no such weights: of the merged output and its
log-sum-exp either call makes the probabilities, and so the gradients, of its own keys,

    P = e^(scale q k^T - lse)     dS = scale P (dO v^T - delta)     delta = sum_d dO O

(arXiv 2307.08691, algorithm 2), and what falls on the same rows is added.

Shape letters: T rows, H query heads, G key/value heads, K head width, B sequences, C rows of
children, P rows of parents that have any.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .contracts import once_differentiable


class Sequences(NamedTuple):
    """Rows of queries and of keys that belong together, neighbours in either stream.

    q_starts, k_starts [B + 1] int32: where each begins. longest_q, longest_k: rows. causal: row i
    of the queries sees keys up to i, otherwise all.
    """

    q_starts: Tensor
    k_starts: Tensor
    longest_q: int
    longest_k: int
    causal: bool


class TreePlan(NamedTuple):
    """own: segments, each on itself. branches: the children of each parent on their parent, or None
    where there are none; child_rows [C] and parent_rows [P] int64 bring them side by side.
    """

    own: Sequences
    branches: Sequences | None
    child_rows: Tensor
    parent_rows: Tensor


class VarlenCalls(NamedTuple):
    """forward(q, k, v, sequences, scale, window) -> out [T, H, K], lse [H, T].
    backward(grad, q, k, v, out, lse, sequences, scale, window) -> dq, dk, dv.
    """

    forward: Callable[..., tuple[Tensor, Tensor]]
    backward: Callable[..., tuple[Tensor, Tensor, Tensor]]


def _options(scale: float, window: int | None) -> dict[str, Any]:
    """flash attention counts the keys before a row, without the row itself."""
    sides = {} if window is None else {"window_size_left": window - 1, "window_size_right": 0}
    return {"scale": scale, **sides}


def _flash_forward(q, k, v, sequences, scale, window):
    *starts_and_sizes, causal = sequences
    out, lse, *_ = torch.ops.aten._flash_attention_forward(
        q, k, v, *starts_and_sizes, 0.0, causal, False, **_options(scale, window)
    )
    return out, lse


def _flash_backward(grad, q, k, v, out, lse, sequences, scale, window):
    *starts_and_sizes, causal = sequences
    # The state of a generator, and a place for more of it: without dropout nothing reads them.
    unused = q.new_zeros(2, dtype=torch.uint64), q.new_empty(0)
    return torch.ops.aten._flash_attention_backward(
        grad, q, k, v, out, lse, *starts_and_sizes, 0.0, causal, *unused, **_options(scale, window)
    )


FLASH = VarlenCalls(_flash_forward, _flash_backward)


def _merge(part: Tensor, lse: Tensor, other: Tensor, other_lse: Tensor) -> tuple[Tensor, Tensor]:
    """Outputs [C, H, K] and their lse [H, C] -> those of both sets of keys."""
    both = torch.logaddexp(lse, other_lse)
    weights = ((x - both).exp().t().unsqueeze(2) for x in (lse, other_lse))
    return sum(x * w for x, w in zip((part, other), weights, strict=True)).to(part.dtype), both


def attend_trees(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    plan: TreePlan,
    scale: float,
    window: int | None = None,
    calls: VarlenCalls = FLASH,
) -> tuple[Tensor, Tensor]:
    """q [T, H, K], k and v [T, G, K] -> out [T, H, K], lse [H, T]. No window with branches."""
    out, lse = calls.forward(q, k, v, plan.own, scale, window)
    if plan.branches is not None:
        rows = plan.child_rows
        keys, values = (x.index_select(0, plan.parent_rows) for x in (k, v))
        far = calls.forward(q.index_select(0, rows), keys, values, plan.branches, scale, None)
        near = out.index_select(0, rows), lse.index_select(1, rows)
        merged, merged_lse = _merge(*near, *far)
        out.index_copy_(0, rows, merged)
        lse.index_copy_(1, rows, merged_lse)
    return out, lse


def _differentiate(grad, q, k, v, out, lse, plan, scale, window, calls):
    """dq, dk, dv of the merged output."""
    grads = calls.backward(grad, q, k, v, out, lse, plan.own, scale, window)
    if plan.branches is not None:
        rows, parents = plan.child_rows, plan.parent_rows
        grad, q, out = (x.index_select(0, rows) for x in (grad, q, out))
        k, v, lse = (
            k.index_select(0, parents),
            v.index_select(0, parents),
            lse.index_select(1, rows),
        )
        parts = calls.backward(grad, q, k, v, out, lse, plan.branches, scale, None)
        for whole, part, place in zip(grads, parts, (rows, parents, parents), strict=True):
            whole.index_add_(0, place, part)
    return grads


class TreeAttention(torch.autograd.Function):
    """attend_trees without its lse, differentiable once."""

    @staticmethod
    def forward(ctx, q, k, v, plan, scale, window, calls):
        out, lse = attend_trees(q, k, v, plan, scale, window, calls)
        ctx.save_for_backward(q, k, v, out, lse)
        ctx.call = plan, scale, window, calls
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        grads = _differentiate(grad.contiguous(), *ctx.saved_tensors, *ctx.call)
        return *grads, None, None, None, None
