"""Memory that shows what a kernel should not have touched, and what it should have.

`surrounded` puts an input between NaNs: what is read beyond its ends shows in the result. Within
`guarded` every torch.empty, empty_like and new_empty is full of NaN (-7 for integers), so that what
was not written shows, and lies between sentinels, which are looked at in the end.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor

MARGIN = 64  # elements; a multiple of what vectorised loads are aligned to
SENTINEL = 57.0


def surrounded(x: Tensor) -> Tensor:
    """A contiguous copy of floating x with NaN on either side."""
    buffer = torch.full((x.numel() + 2 * MARGIN,), math.nan, dtype=x.dtype, device=x.device)
    return buffer[MARGIN : MARGIN + x.numel()].view(x.shape).copy_(x)


@contextmanager
def guarded() -> Iterator[pytest.MonkeyPatch]:
    """Gives what undoes it, for a test that counts launches: filling is one."""
    buffers: list[Tensor] = []
    stock = torch.empty

    def allocate(shape: Any, dtype: torch.dtype | None, device: Any) -> Tensor:
        dtype, count = dtype or torch.get_default_dtype(), math.prod(shape)
        buffer = torch.full((count + 2 * MARGIN,), SENTINEL, dtype=dtype, device=device)
        buffers.append(buffer)
        body = buffer[MARGIN : MARGIN + count]
        return body.fill_(math.nan if dtype.is_floating_point else -7).view(shape)

    def empty(*shape: Any, dtype: Any = None, device: Any = None, **options: Any) -> Tensor:
        if options:
            return stock(*shape, dtype=dtype, device=device, **options)
        sizes = shape if isinstance(shape[0], int) else shape[0]
        return allocate(sizes, dtype, device)

    def empty_like(x: Tensor, dtype: Any = None, device: Any = None) -> Tensor:
        return allocate(x.shape, dtype or x.dtype, device or x.device)

    def new_empty(self: Tensor, *shape: Any, dtype: Any = None, device: Any = None) -> Tensor:
        return empty(*shape, dtype=dtype or self.dtype, device=device or self.device)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch, "empty", empty)
        patch.setattr(torch, "empty_like", empty_like)
        patch.setattr(Tensor, "new_empty", new_empty)
        yield patch
    for buffer in buffers:
        for margin in (buffer[:MARGIN], buffer[-MARGIN:]):
            assert (margin == SENTINEL).all(), f"written outside a tensor: {margin.tolist()}"
