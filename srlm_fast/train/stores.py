"""How a tensor that the optimizer reads and writes piece by piece is kept.

Everything here is flat and local to its rank. A piece that is read is in the precision of the
arithmetic, fp32 (fp64 for an fp64 model); it is changed in place and written back. Pieces begin at
multiples of a block.
"""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

from .block_code import BLOCK, BlockCode
from .rounding import Noise, to_bfloat16


class Store(Protocol):
    def read(self, piece: slice) -> Tensor: ...

    def write(self, piece: slice, values: Tensor, noise: Noise) -> None: ...

    def whole(self) -> Tensor:
        """[n], what a checkpoint keeps; `fill` brings it back to the bit."""
        ...

    def fill(self, values: Tensor) -> None: ...

    @property
    def nbytes(self) -> int: ...


class Exact:
    """In the precision of the arithmetic: what is read is the tensor itself."""

    def __init__(self, values: Tensor) -> None:
        self.values = values

    def read(self, piece: slice) -> Tensor:
        return self.values[piece]

    def write(self, piece: slice, values: Tensor, noise: Noise) -> None:
        pass

    def whole(self) -> Tensor:
        return self.values

    def fill(self, values: Tensor) -> None:
        self.values.copy_(values)

    @property
    def nbytes(self) -> int:
        return self.values.nbytes


class Mastered(Exact):
    """Weights in half precision that follow an exact copy: bf16 rounded by a fixed threshold for
    each element, fp16 to the nearest.

    thresholds: int32 of 0..65535, at least as many as a piece has. Weights that were bf16 before
    stand in the middle between two roundings: rounded to the nearest none would move until its
    updates add up to half a unit in its last place, some sixty steps at lr 1e-6. With thresholds
    some move at once and the mean follows; as they are fixed, nothing flickers from step to step.
    """

    def __init__(self, master: Tensor, weights: Tensor, thresholds: Tensor) -> None:
        super().__init__(master)
        self.weights, self.thresholds = weights, thresholds

    def write(self, piece: slice, values: Tensor, noise: Noise) -> None:
        if self.weights.dtype == torch.bfloat16:
            values = to_bfloat16(values, self.thresholds[: len(values)])
        self.weights[piece].copy_(values)


class Rounded(Exact):
    """In bf16, rounded at random."""

    def read(self, piece: slice) -> Tensor:
        return self.values[piece].float()

    def write(self, piece: slice, values: Tensor, noise: Noise) -> None:
        self.values[piece].copy_(to_bfloat16(values, noise.draw(len(values))))


class Coded:
    """In 8 bits by blocks, rounded at random. Zeros at first."""

    def __init__(self, size: int, code: BlockCode) -> None:
        device = code.table.device
        self.code = code
        self.codes = torch.zeros(size, dtype=torch.uint8, device=device)
        self.scales = torch.zeros(-(-size // BLOCK), device=device)

    def read(self, piece: slice) -> Tensor:
        return self.code.decode(self.codes[piece], self.scales[_blocks(piece)])

    def write(self, piece: slice, values: Tensor, noise: Noise) -> None:
        codes, scales = self.code.encode(values, noise.draw(len(values)))
        self.codes[piece], self.scales[_blocks(piece)] = codes, scales

    def whole(self) -> Tensor:
        return self.code.decode(self.codes, self.scales)

    def fill(self, values: Tensor) -> None:
        codes, scales = self.code.encode(values.to(self.scales))
        self.codes.copy_(codes)
        self.scales.copy_(scales)

    @property
    def nbytes(self) -> int:
        return self.codes.nbytes + self.scales.nbytes


def _blocks(piece: slice) -> slice:
    return slice(piece.start // BLOCK, -(-piece.stop // BLOCK))
