"""Memory that goes back to the system piece by piece while its owner is still at work.

What the forward pass keeps for the backward pass and what the backward pass makes would otherwise
add up. On a CPU the kept part lives in a mapping of its own, of which a piece that has been read is
released at once. On a GPU it is an ordinary allocation.
"""

from __future__ import annotations

import mmap

import torch

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
        # Private: nothing of a shared mapping, the default, would be released. Populated: mapping
        # all pages at once takes half the time of 29,000 first touches. Huge pages take less still
        # where free ones lie about, and seven times as long where they have to be made.
        flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | getattr(mmap, "MAP_POPULATE", 0)
        self._map = mmap.mmap(-1, num_bytes, flags=flags)
        self.elements = torch.frombuffer(self._map, dtype=dtype)

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
