"""Memory that goes back to the system piece by piece while its owner is still at work.

What the forward pass keeps for the backward pass and what the backward pass makes would otherwise
add up. On a CPU the kept part lives in a mapping of its own, in huge pages where the system has
them; a piece that has been read is released at once. On a GPU it is an ordinary allocation.
"""

from __future__ import annotations

import mmap

import torch
from torch import Tensor

WORTH_A_MAPPING = 8 << 20  # bytes; below, the allocator's own memory is warm already


class Pages:
    """`count` elements in a row, to be handed out and released by ranges."""

    def __init__(self, count: int, dtype: torch.dtype, device: torch.device) -> None:
        self._map: mmap.mmap | None = None
        num_bytes = count * dtype.itemsize
        if (
            device.type != "cpu"
            or num_bytes < WORTH_A_MAPPING
            or not hasattr(mmap, "MADV_DONTNEED")
        ):
            self.elements = torch.empty(count, dtype=dtype, device=device)
            return
        self._map = mmap.mmap(-1, num_bytes)
        try:
            self._map.madvise(mmap.MADV_HUGEPAGE)
        except (AttributeError, OSError):
            pass  # a kernel without huge pages
        self.elements = torch.frombuffer(self._map, dtype=dtype)

    def block(self, start: int, rows: int, columns: int) -> Tensor:
        """[rows, columns] from element `start` on; uninitialised."""
        return self.elements[start : start + rows * columns].view(rows, columns)

    def release(self, start: int, stop: int) -> None:
        """Elements start..stop-1 will not be read again. What is left of their first and last
        page stays.
        """
        if self._map is None:
            return
        size = self.elements.element_size()
        first = -(-start * size // mmap.PAGESIZE) * mmap.PAGESIZE
        last = stop * size // mmap.PAGESIZE * mmap.PAGESIZE
        if last > first:
            self._map.madvise(mmap.MADV_DONTNEED, first, last - first)
