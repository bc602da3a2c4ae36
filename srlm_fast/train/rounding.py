"""Rounding at random: up with the probability that leaves the mean where it was.

A value between two neighbours a < x < b becomes b with probability (x - a) / (b - a), else a. An
update of a thousandth of the distance then moves the value once in a thousand times, where rounding
to the nearest would never move it (arXiv 2010.06192).
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

LEVELS = 1 << 16  # of the noise: the bits that bfloat16 cuts off


class Noise:
    """Random numbers that depend on nothing but the seed and the place `at` which they are drawn.

    They come from a generator of the device's own, so that nothing waits for the device; devices of
    another type draw others.
    """

    def __init__(self, seed: int, device: torch.device) -> None:
        self.seed = seed
        self._generator = torch.Generator(device)
        self._place: tuple[int, ...] | None = None  # where the generator is yet to be put

    def at(self, *place: int) -> Noise:
        """Itself, about to draw what belongs to this place: step, parameter, element."""
        self._place = place
        return self

    def draw(self, count: int) -> Tensor:
        """[count] int32 of 0..65535, the next ones at this place."""
        if self._place is not None:
            sequence = np.random.SeedSequence([self.seed % 2**64, *self._place])
            self._generator.manual_seed(int(sequence.generate_state(1, np.uint64)[0]) >> 1)
            self._place = None
        words = torch.empty(-(-count // 4), dtype=torch.int64, device=self._generator.device)
        words.random_(-(2**63), None, generator=self._generator)
        return words.view(torch.int16)[:count].to(torch.int32).bitwise_and_(LEVELS - 1)


def fixed_thresholds(count: int, device: torch.device) -> Tensor:
    """[count] int32 of 0..65535, always the same."""
    draw = torch.Generator(device).manual_seed(0)
    return torch.randint(LEVELS, (count,), generator=draw, dtype=torch.int32, device=device)


def to_bfloat16(values: Tensor, noise: Tensor) -> Tensor:
    """values fp32 -> bf16, rounded at random by noise (int32 of 0..65535), of the same shape.

    bf16 is fp32 without its last 16 bits: what is added carries over with the right probability.
    """
    bits = values.view(torch.int32) + noise
    return bits.bitwise_right_shift_(16).to(torch.int16).view(torch.bfloat16)
