"""Linear layer: y = x w^T + b.

x [T, K], w [N, K], b [N] -> y [T, N] in the dtype of x, sums in fp32.

A library's matmul may add in another order when the number of rows changes, so a row's bits may depend on its
company. The packed form does not: each output is one chain of multiply-adds over k = 0 .. K-1. The sampler packs the
weights (once per weights version, `packed`) where they are small enough to be held twice.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from torch import Tensor

from .native import native, takes


def linear_reference(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """x [..., K], weight [N, K], bias [N] -> [..., N]."""
    return F.linear(x, weight, bias)


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """x [..., K], weight [N, K], bias [N] -> [..., N]. Raises ValueError when the widths differ."""
    if x.shape[-1] != weight.shape[1]:
        raise ValueError(f"weight: width {weight.shape[1]}, wanted {x.shape[-1]} as in x")
    panels = getattr(weight, "panels", None)
    if panels is None or x.dim() != 2 or not takes(x):
        return linear_reference(x, weight, bias)
    x = x.contiguous()
    out = torch.empty(x.shape[0], weight.shape[0])
    native().packed_linear(
        x.data_ptr(),
        x.shape[0],
        x.shape[1],
        panels.data_ptr(),
        weight.shape[0],
        0 if bias is None else bias.data_ptr(),
        out.data_ptr(),
    )
    return out


def pack(weight: Tensor) -> Tensor:
    """weight [N, K] fp32 on a CPU -> its copy in panels of 16 outputs, flat."""
    weight = weight.detach().contiguous()
    panels = torch.empty(native().packed_size(*weight.shape))
    native().pack_weight(weight.data_ptr(), *weight.shape, panels.data_ptr())
    return panels


@contextmanager
def packed(weights: Iterable[tuple[Tensor, Tensor]]) -> Iterator[None]:
    """Within the block, `linear` on each weight uses its panels. They are the caller's to keep fresh."""
    pairs = list(weights)
    for weight, panels in pairs:
        weight.panels = panels  # type: ignore[attr-defined]
    try:
        yield
    finally:
        for weight, _ in pairs:
            del weight.panels  # type: ignore[attr-defined]
