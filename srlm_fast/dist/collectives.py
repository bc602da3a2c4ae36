"""Exchanges between the ranks of one group, and what they become in the backward pass.

A tensor is whole (the same on every rank), a part (this rank's columns) or a summand. Every rank
makes the same calls in the same order.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor
from torch.distributed import ProcessGroup


def _all_reduce(x: Tensor, group: ProcessGroup) -> None:
    """The sum over ranks, in place. On a CPU in order of the ranks: gloo's own order depends on an
    element's place among others from three ranks on, and with it a row's bits on its company.
    """
    ranks = dist.get_world_size(group)
    if x.device.type != "cpu" or ranks < 3:
        dist.all_reduce(x, group=group)
        return
    parts = [torch.empty_like(x, memory_format=torch.contiguous_format) for _ in range(ranks)]
    dist.all_gather(parts, x.contiguous(), group=group)
    total = parts[0]
    for part in parts[1:]:
        total = total + part
    x.copy_(total)


class _SumGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, group: ProcessGroup) -> Tensor:
        ctx.group = group
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        grad = grad.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(grad, group=ctx.group)
        return grad, None


class _Sum(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, group: ProcessGroup) -> Tensor:
        ctx.mark_dirty(x)
        _all_reduce(x, group)
        return x

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return grad, None


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, width: int, group: ProcessGroup) -> Tensor:
        ranks = dist.get_world_size(group)
        share = -(-width // ranks)
        ctx.first, ctx.count = dist.get_rank(group) * share, x.shape[1]
        parts = x.new_empty(ranks, len(x), share)
        # A list: the form that takes one tensor has another name from torch 2.13 on.
        dist.all_gather(list(parts), F.pad(x, (0, share - x.shape[1])).contiguous(), group=group)
        return parts.transpose(0, 1).reshape(len(x), ranks * share)[:, :width]

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        return grad[:, ctx.first : ctx.first + ctx.count], None, None


def sum_gradient(x: Tensor, group: ProcessGroup) -> Tensor:
    """x itself, of which each rank uses a part: the gradients of the parts are summed."""
    return _SumGradient.apply(x, group)


def sum_over_ranks(x: Tensor, group: ProcessGroup) -> Tensor:
    """The sum of all ranks' x, written over x."""
    return _Sum.apply(x, group)


def gather_columns(x: Tensor, width: int, group: ProcessGroup) -> Tensor:
    """Parts [U, w] of ranks in turn -> [U, width]. The last ranks may have fewer columns."""
    return _Gather.apply(x, width, group)
