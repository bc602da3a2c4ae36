"""Masks of allowed tokens, one bit a token, as the sampling kernels read them."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

FEWEST = 16  # rows that are taken at once
KEPT = 64  # sets that are kept from one run to the next


class Masks:
    """Every different set of tokens once. Bit i of word w of a row allows token 32 w + i.

    The rows stay where they are until more are wanted than there is room for, because captured
    graphs read them there.
    """

    def __init__(self, vocab_size: int, device: torch.device) -> None:
        self.vocab_size, self.device = vocab_size, device
        self.tensor: Tensor | None = None  # [room, W] int32
        self._rows: dict[tuple[int, ...], int] = {}

    def start(self) -> None:
        """Before a run: forget the sets of earlier ones where there are many."""
        if len(self._rows) > KEPT:
            self._rows.clear()

    def index(self, token_ids: tuple[int, ...]) -> int:
        """The row of a set of tokens; -1 for the empty one, which allows all. Raises ValueError."""
        if not token_ids:
            return -1
        key = tuple(sorted(set(token_ids)))
        if key[-1] >= self.vocab_size:
            raise ValueError(f"allowed_token_ids: {key[-1]}, wanted ids below {self.vocab_size}")
        if key not in self._rows:
            self._room(len(self._rows))[len(self._rows)] = self._words(key)
            self._rows[key] = len(self._rows)
        return self._rows[key]

    def _room(self, row: int) -> Tensor:
        """The rows, twice as many where `row` is not among them."""
        if self.tensor is None:
            shape = (FEWEST, -(-self.vocab_size // 32))
            self.tensor = torch.zeros(shape, dtype=torch.int32, device=self.device)
        elif row == len(self.tensor):
            self.tensor = torch.cat((self.tensor, torch.zeros_like(self.tensor)))
        return self.tensor

    def _words(self, token_ids: tuple[int, ...]) -> Tensor:
        bits = np.zeros(-(-self.vocab_size // 32) * 32, bool)
        bits[list(token_ids)] = True
        words = np.packbits(bits, bitorder="little").view("<i4")
        return torch.from_numpy(words.copy()).to(self.device)
