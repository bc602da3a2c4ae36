"""A step's small arrays on their way to the device: packed, and moved in one transfer."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

ALIGN = 16  # bytes; enough for every dtype, and for the kernels' vector loads


class Staged:
    """Arrays side by side in one buffer; each becomes an attribute, a tensor of its dtype.

    `put` again moves new arrays of the same sizes into the same place, so a captured graph reads
    them there.
    """

    def __init__(self, arrays: Mapping[str, np.ndarray], device: torch.device) -> None:
        sizes = [-(-array.nbytes // ALIGN) * ALIGN for array in arrays.values()]
        starts = np.cumsum([0, *sizes]).tolist()
        self._places = dict(zip(arrays, starts, strict=False))
        self._size, self._device = starts[-1], device
        self._buffer = torch.empty(max(self._size, 1), dtype=torch.uint8, device=device)
        for name, array in arrays.items():
            start = self._places[name]
            raw = self._buffer[start : start + array.nbytes]
            setattr(self, name, raw.view(_torch_dtype(array)).view(array.shape))
        self.put(arrays)

    def __getattr__(self, name: str) -> Tensor:
        raise AttributeError(name)

    def put(self, arrays: Mapping[str, np.ndarray]) -> None:
        """Move the arrays; the host does not wait."""
        host = torch.empty(
            len(self._buffer), dtype=torch.uint8, pin_memory=self._device.type == "cuda"
        )
        packed = host.numpy()
        for name, array in arrays.items():
            start = self._places[name]
            packed[start : start + array.nbytes] = (
                np.ascontiguousarray(array).view(np.uint8).ravel()
            )
        self._buffer.copy_(host, non_blocking=True)


def _torch_dtype(array: np.ndarray) -> torch.dtype:
    return torch.from_numpy(np.empty(0, array.dtype)).dtype


def padded(array: np.ndarray, length: int, fill: Any) -> np.ndarray:
    """array [N] filled up to [length]."""
    out = np.full(length, fill, array.dtype)
    out[: len(array)] = array
    return out
