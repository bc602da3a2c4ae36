"""The linear layer y = x W^T + b for training: PyTorch's own, with another way to dL/dW on a CPU.

x [..., K], W [N, K], b [N]. With the upstream gradient g of y, over all rows,

    dL/dx = g W        dL/dW = g^T x        dL/db = sum over rows of g

In bf16 on a CPU the matmul g^T x spends half of its time on reading g against the grain. Here g is
turned first, piece by piece, at the speed of memory.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from .contracts import once_differentiable
from .native import native, runs_natively

PIECE = 1 << 22  # elements of g that are turned at a time
MIN_COLUMNS = 128  # of a piece: with fewer the matmul would be slower


def weight_gradient(grad: Tensor, x: Tensor, out: Tensor | None = None) -> Tensor:
    """grad [T, N], x [T, K] -> grad^T x [N, K] in their dtype; written to `out`, if given."""
    out = x.new_empty(grad.shape[1], x.shape[1]) if out is None else out
    if not (runs_natively(grad, x) and grad.dtype == torch.bfloat16 and grad.stride(1) == 1):
        return torch.mm(grad.T, x, out=out)
    columns = max(PIECE // max(len(grad), 1), MIN_COLUMNS)
    for piece, place in zip(grad.split(columns, 1), out.split(columns), strict=True):
        torch.mm(_turned(piece), x, out=place)
    return out


def _turned(x: Tensor) -> Tensor:
    """bf16 x [T, N], columns side by side -> [N, T], contiguous."""
    out = x.new_empty(x.shape[1], x.shape[0])
    native().transpose(x.data_ptr(), *x.shape, x.stride(0), out.data_ptr())
    return out


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, weight, bias):
        ctx.save_for_backward(x, weight)
        return F.linear(x, weight, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        x, weight = ctx.saved_tensors
        needs_x, needs_weight, needs_bias = ctx.needs_input_grad
        rows, x_rows = grad.reshape(-1, grad.shape[-1]), x.reshape(-1, x.shape[-1])
        return (
            (rows @ weight).view(x.shape) if needs_x else None,
            weight_gradient(rows, x_rows) if needs_weight else None,
            rows.sum(0) if needs_bias else None,
        )


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """`torch.nn.functional.linear`; on a CPU in bf16 differentiable once."""
    if (
        torch.is_grad_enabled()
        and weight.requires_grad
        and x.dtype == weight.dtype == torch.bfloat16
        and runs_natively(x, weight)
    ):
        return _Linear.apply(x, weight, bias)
    return F.linear(x, weight, bias)
