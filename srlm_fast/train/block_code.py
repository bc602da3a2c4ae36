"""Numbers in 8 bits: a place in a table of 256 values, and a scale for each block of 256 numbers
(arXiv 2110.02861, sections 2.1 and 2.2).

    number = table[code] * scale,    scale = largest magnitude of the block

The table is the paper's dynamic one: seven decades below 1, each cut twice as finely as the one
beneath it. Two of its values are others here, because numbers are rounded at random: the signed
table has both -1 and 1, so that every number lies between two values; the unsigned one has no zero.
A second moment that became zero beside a first one that did not would make a step of m / eps.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from .rounding import LEVELS

BLOCK = 256
SMALLEST = 1e-30  # a block below it counts as zeros


def dynamic_table(signed: bool) -> Tensor:
    """[256] fp32, rising, from -1 or just above 0 to 1."""
    decades = []
    for decade in range(7):
        edges = torch.linspace(0.1, 1, 2 ** (decade + (not signed)) + 1, dtype=torch.float64)
        decades.append(10.0 ** (decade - 6) * (edges[1:] + edges[:-1]) / 2)
    values, one = torch.cat(decades), torch.ones(1, dtype=torch.float64)
    lowest = [-one, -values[1:], 0 * one] if signed else [1e-7 * one]
    return torch.cat([*lowest, values, one]).sort().values.float()


class BlockCode:
    """The code for signed or for unsigned numbers, on a device."""

    def __init__(self, signed: bool, device: torch.device | str = "cpu") -> None:
        self.table = dynamic_table(signed).to(device)
        self._gaps = self.table.diff()
        self._below = _lowest_codes(self.table)

    def encode(self, values: Tensor, noise: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """values [n] fp32 -> (codes [n] uint8, scales [ceil(n / 256)] fp32).

        Rounded at random by noise ([n] int32 of 0..65535), without it to the nearest. What `decode`
        gives is encoded to the nearest as the very codes and scales that it came from.
        """
        blocks = F.pad(values, (0, -len(values) % BLOCK)).view(-1, BLOCK)
        largest = blocks.abs().amax(1)
        scales = largest.where(largest >= SMALLEST, 0)
        shares = (blocks / scales.clamp(min=SMALLEST)[:, None]).view(-1)[: len(values)]
        lower = self._code_below(shares)
        # 0..1 from the value below to the one above.
        place = shares.sub_(self.table.index_select(0, lower))
        place.div_(self._gaps.index_select(0, lower))
        threshold = 0.5 if noise is None else (noise + 0.5) / LEVELS
        return lower.add_(place > threshold).to(torch.uint8), scales

    def _code_below(self, shares: Tensor) -> Tensor:
        """[n] int32, 0..254: of the largest value that is not above each of them."""
        bits = shares.view(torch.int32).bitwise_right_shift(16).bitwise_and_(0xFFFF)
        lower = self._below.index_select(0, bits)
        lower.add_(shares >= self.table.index_select(0, lower + 1))
        return lower.clamp_(max=len(self.table) - 2)

    def decode(self, codes: Tensor, scales: Tensor) -> Tensor:
        """[n] fp32."""
        values = self.table.index_select(0, codes.int())
        return values.mul_(scales.repeat_interleave(BLOCK)[: len(values)])


def _lowest_codes(table: Tensor) -> Tensor:
    """[65536] int32, 0..254: for all fp32 numbers that share their first 16 bits, the code below
    the lowest of them. It holds for all or is one too low: so fine are 8 bits of precision.
    """
    bits = torch.arange(1 << 16, dtype=torch.int32) << 16
    bits |= torch.where(bits < 0, 0xFFFF, 0)  # of negative numbers the last one is the lowest
    lowest = bits.view(torch.float32).nan_to_num().clamp(-1, 1)
    codes = torch.bucketize(lowest, table.cpu(), out_int32=True, right=True) - 1
    return codes.clamp_(0, len(table) - 2).to(table.device)
