"""Memory that goes back to the system piece by piece while its owner is still at work.

What the forward pass keeps for the backward pass and what the backward pass makes would otherwise
add up. On a CPU the kept part lives in a mapping of its own, in huge pages where the system has
them; a piece that has been read is released at once. On a GPU it is an ordinary allocation.
"""

from __future__ import annotations

import ctypes
import mmap
from functools import cache

import torch
from torch import Tensor

WORTH_A_MAPPING = 8 << 20  # bytes; below, the allocator's own memory is warm already


class Pages:
    """`count` elements in a row, uninitialised, to be released by ranges."""

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
        # Private: of a shared mapping, the default, nothing would be huge, and nothing released.
        self._map = mmap.mmap(-1, num_bytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        self.elements = torch.frombuffer(self._map, dtype=dtype)
        ask_for_huge_pages(self.elements)

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


def ask_for_huge_pages(x: Tensor) -> Tensor:
    """x, before anything is written to it: on a CPU in pages of 2 MiB, where the system has them.

    A first touch costs a fault per page, and 40,000 of them 5 % of the head's step.
    """
    start = -(-x.data_ptr() // mmap.PAGESIZE) * mmap.PAGESIZE
    size = x.data_ptr() + x.numel() * x.element_size() - start
    if x.device.type == "cpu" and size >= WORTH_A_MAPPING and hasattr(mmap, "MADV_HUGEPAGE"):
        _libc().madvise(start, size, mmap.MADV_HUGEPAGE)  # advice: a refusal costs nothing
    return x


@cache
def _libc() -> ctypes.CDLL:
    libc = ctypes.CDLL(None)
    libc.madvise.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
    return libc
