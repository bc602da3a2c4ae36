"""Masks of allowed tokens, one bit a token, as the sampling kernels read them."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor


KEPT = 64  # sets that are kept from one run to the next


class Masks:
    """Every different set of tokens once. Bit i of word w of a row allows token 32 w + i."""

    def __init__(self, vocab_size: int, device: torch.device) -> None:
        self.vocab_size, self.device = vocab_size, device
        self.tensor: Tensor | None = None  # [M, W] int32
        self._rows: dict[tuple[int, ...], int] = {}

    def start(self) -> None:
        """Before a run: forget the sets of earlier ones where there are many."""
        if len(self._rows) > KEPT:
            self.tensor = None
            self._rows.clear()

    def index(self, token_ids: tuple[int, ...]) -> int:
        """The row of a set of tokens; -1 for the empty one, which allows all. Raises ValueError."""
        if not token_ids:
            return -1
        if max(token_ids) >= self.vocab_size:
            raise ValueError(
                f"allowed_token_ids: {max(token_ids)}, wanted ids below {self.vocab_size}"
            )
        if token_ids not in self._rows:
            row = self._row(token_ids)
            self.tensor = row if self.tensor is None else torch.cat((self.tensor, row))
            self._rows[token_ids] = len(self._rows)
        return self._rows[token_ids]

    def _row(self, token_ids: tuple[int, ...]) -> Tensor:
        bits = np.zeros(-(-self.vocab_size // 32) * 32, bool)
        bits[list(token_ids)] = True
        words = np.packbits(bits, bitorder="little").view("<i4")
        return torch.from_numpy(words.copy())[None].to(self.device)
