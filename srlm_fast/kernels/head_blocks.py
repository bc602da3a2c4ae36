"""The matmuls with a head, by blocks of its columns (rows of `head`), for `linear_logprob`.

`Blocks` makes logits and exponentials and multiplies them with the head; `Gradients` sums up what
the backward pass makes of them.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from .head_softmax import head_softmax
from .linear import weight_gradient
from .logit_rows import (
    LSE,
    RowState,
    Transform,
    add_scaled_rows,
    exponentials_,
    finish,
    scale_rows,
    slopes_,
    wide,
)
from .logprob_route import CPU_FIXED_ROWS, GPU_FIXED_ROWS, Route, matmul_dtype

# Rows of a product at a time, so that no second [N, D] in fp32 stands beside their sum.
CPU_PIECE, GPU_PIECE = 2048, 4096


class Call(NamedTuple):
    """What one call was asked for. counts [T] bool and rows [N]: which rows count; None: all."""

    transform: Transform
    route: Route
    counts: Tensor | None
    rows: Tensor | None
    batch_invariant: bool
    with_entropy: bool
    overwrite: bool


class Blocks:
    """The matmuls with the head, by blocks of its columns (rows of `head`), and their buffers."""

    def __init__(self, head: Tensor, bias: Tensor | None, call: Call) -> None:
        self.head, self.bias, self.call = head, bias, call
        self.narrow = matmul_dtype(head)
        self._buffer: Tensor | None = None

    def statistics(
        self, h: Tensor, targets: Tensor, with_product: bool
    ) -> tuple[RowState, Tensor | None]:
        """The state of all columns; with_product, also sum_j x_j head_j [N, D] relative to it."""
        route, num_classes = self.call.route, self.head.shape[0]
        if route.fused:
            state, kept = self.fused(h, targets, store=with_product)
            return state, self.product(kept[0][1], 0) if with_product else None
        state, product = RowState.empty(h.shape[0], h, self.call.with_entropy), None
        for first in range(0, num_classes, route.columns):
            x = self.workspace(h, min(route.columns, num_classes - first))
            shrink = self.exponentials_(x, h, targets, first, state, store=with_product)
            if with_product:
                part = self.product(x, first)
                if product is None:
                    product = part.to(wide(part.dtype))
                else:
                    product.mul_(shrink[:, None]).add_(part)
        return state, product

    def fused(self, h: Tensor, targets: Tensor, store: bool) -> tuple[RowState, list]:
        """The state of all columns from one launch; with `store` also their exponentials."""
        call, options = self.call, {"batch_invariant": self.call.batch_invariant}
        if store:
            none = RowState.empty(h.shape[0], h, False)
            own = finish(h, self.head, self.bias, targets, none, call.transform)[LSE]
            options |= {"offset": own.clone(), "out": self.workspace(h, self.head.shape[0])}
        state = head_softmax(
            h, self.head, self.bias, targets, call.transform, call.with_entropy, **options
        )
        return state, [(0, options["out"], state.top.clone(), None)] if store else []

    def exponentials_(
        self, x: Tensor, h: Tensor, targets: Tensor, first: int, state: RowState, store: bool = True
    ) -> Tensor:
        self.logits(x, h, first)
        bias = self.bias_of(first, x.shape[1])
        return exponentials_(x, bias, targets, first, state, self.call.transform, store)

    def logits(self, x: Tensor, h: Tensor, first: int) -> None:
        """h [N, D] -> x [N, C], without bias."""
        self._matmul(h.to(self.narrow), self._rows(first, x.shape[1]).T, x)

    def product(self, x: Tensor, first: int) -> Tensor:
        """x [N, C] @ head's rows -> [N, D], fp32 where the device can give it."""
        rows, dtype = self._rows(first, x.shape[1]), self.narrow
        if x.is_cuda and dtype in (torch.bfloat16, torch.float16):
            dtype = torch.float32
            if not self.call.batch_invariant:
                return torch.mm(x, rows, out_dtype=dtype)
        out = torch.empty((x.shape[0], rows.shape[1]), dtype=dtype, device=x.device)
        self._matmul(x, rows, out)
        return out

    def bias_of(self, first: int, width: int) -> Tensor | None:
        return None if self.bias is None else self.bias[first : first + width]

    def workspace(self, h: Tensor, width: int) -> Tensor:
        """[N, width], overwritten by the next call."""
        size = h.shape[0] * self.stride(width)
        if self._buffer is None or self._buffer.numel() < size:
            self._buffer = None
            self._buffer = torch.empty(size, dtype=self.narrow, device=h.device)
        return self.view(self._buffer, h.shape[0], width)

    def stride(self, width: int) -> int:
        """Elements from row to row; on a GPU rows begin at multiples of 16 bytes for the matmul."""
        return -(-width // 8) * 8 if self.head.is_cuda else width

    def view(self, elements: Tensor, num_rows: int, width: int) -> Tensor:
        """[num_rows, width] at the beginning of `elements`."""
        stride = self.stride(width)
        return elements[: num_rows * stride].view(num_rows, stride)[:, :width]

    def _rows(self, first: int, width: int) -> Tensor:
        return self.head[first : first + width].to(self.narrow)

    def _matmul(self, a: Tensor, b: Tensor, out: Tensor) -> None:
        if not self.call.batch_invariant:
            return _mm(a, b, out)
        step = GPU_FIXED_ROWS if a.is_cuda else CPU_FIXED_ROWS
        for start in range(0, a.shape[0], step):
            piece, place = a[start : start + step], out[start : start + step]
            if piece.shape[0] == step:
                _mm(piece, b, place)
                continue
            full = a.new_zeros(step, a.shape[1])
            full[: piece.shape[0]] = piece
            filled = out.new_empty(step, out.stride(0))[:, : out.shape[1]]
            _mm(full, b, filled)
            place.copy_(filled[: piece.shape[0]])


def _mm(a: Tensor, b: Tensor, out: Tensor) -> None:
    if a.dtype == out.dtype:
        torch.mm(a, b, out=out)
    else:  # the accumulator as it is
        out.copy_(torch.mm(a, b, out_dtype=out.dtype))


class Gradients:
    """Sums up the gradients of hidden, head and bias over blocks of columns."""

    def __init__(self, h: Tensor, head: Tensor, bias: Tensor | None, call: Call, needs) -> None:
        self.h, self.call, self.blocks = h, call, Blocks(head, bias, call)
        self.wanted, self.product, self._scaled = needs[0], None, None
        self.head = torch.empty_like(head) if needs[1] else None
        self.bias = torch.empty_like(bias) if needs[2] else None

    def add_exponentials(self, first: int, x: Tensor, scale: Tensor) -> None:
        """A block whose dL/dx is scale [N] times its exponentials x [N, C]."""
        if self.wanted:
            self._add_product(first, x, scale)
        if self.head is not None:
            # Scaling the narrow [N, D] side spares a pass over the [N, C] side.
            self._add_head(first, x, self._scaled_hidden(scale, x.dtype))
        if self.bias is not None:
            total = torch.mv(x.T, scale.to(x.dtype))
            self.bias[first : first + x.shape[1]].copy_(total)

    def add_logits(
        self,
        first: int,
        width: int,
        targets: Tensor,
        facts: Tensor,
        upstream: Tensor,
        x: Tensor | None = None,
    ) -> None:
        """A block whose logits are made again, in x [N, width] or in the workspace."""
        x = self.blocks.workspace(self.h, width) if x is None else x
        self.blocks.logits(x, self.h, first)
        bias = self.blocks.bias_of(first, width)
        slopes_(x, bias, targets, first, facts, upstream, self.call.transform)
        if self.wanted:
            self._add_product(first, x, None)
        if self.head is not None:
            self._add_head(first, x, self.h.to(x.dtype))
        if self.bias is not None:
            self.bias[first : first + width].copy_(x.sum(0, dtype=wide(x.dtype)))

    def _add_product(self, first: int, x: Tensor, scale: Tensor | None) -> None:
        if self.product is None:
            self.product = torch.zeros(self.h.shape, dtype=wide(x.dtype), device=x.device)
        step = GPU_PIECE if x.is_cuda else CPU_PIECE
        for start in range(0, x.shape[0], step):
            rows = slice(start, start + step)
            part = self.blocks.product(x[rows], first)
            if scale is None:
                self.product[rows].add_(part)
            else:
                add_scaled_rows(self.product[rows], part, scale[rows])

    def _scaled_hidden(self, scale: Tensor, dtype: torch.dtype) -> Tensor:
        # Tops seldom move, so most blocks have the scale of the one before.
        if self._scaled is None or not torch.equal(scale, self._scaled[0]):
            h = self.h.to(dtype)
            self._scaled = (scale, scale_rows(h, scale, torch.empty_like(h)))
        return self._scaled[1]

    def hidden(self) -> Tensor:
        """The gradient of the rows that count [N, D]."""
        return self.product.to(self.h.dtype)

    def results(self, num_tokens: int) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        """Gradients of hidden [T, D], head and bias; None where not wanted."""
        hidden = self.hidden() if self.wanted else None
        if hidden is not None and self.call.rows is not None:
            whole = hidden.new_zeros(num_tokens, hidden.shape[1])
            hidden = whole.index_copy_(0, self.call.rows, hidden)
        return hidden, self.head, self.bias

    def zeros(self, num_tokens: int) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        """The same when no row counts."""
        hidden = self.h.new_zeros(num_tokens, self.h.shape[1]) if self.wanted else None
        return hidden, *(None if g is None else g.zero_() for g in (self.head, self.bias))

    def _add_head(self, first: int, x: Tensor, h: Tensor) -> None:
        place = self.head[first : first + x.shape[1]]
        if place.dtype == x.dtype and place.is_contiguous():
            weight_gradient(x, h, out=place)
        else:
            place.copy_(x.T @ h)
