"""What a model knows about its weights being split over ranks (`srlm_fast.dist` does the
splitting).

Shape letters: U rows, D width, V vocabulary.
"""

from __future__ import annotations

from typing import Protocol

from torch import Tensor


class Parallel(Protocol):
    """Every rank makes the same calls in the same order. writes: whether this rank writes files."""

    writes: bool

    def whole(self, name: str, weight: Tensor) -> Tensor:
        """The parameter `name` as files have it, from the part `weight` of each rank."""
        ...

    def load(self, name: str, weight: Tensor, start: int, rows: Tensor) -> None:
        """Copy rows [start, start + len(rows)) of the whole parameter to where they lie here."""
        ...

    def logits(self, hidden: Tensor, head: Tensor) -> Tensor:
        """hidden [U, D] -> [U, V], the same on every rank."""
        ...

    def wait(self) -> None:
        """Until all ranks are here."""
        ...
