"""What a model knows about its weights being split over ranks (`srlm_fast.dist` does the
splitting).

Shape letters: U rows, D width, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

from torch import Tensor


class Layout(Protocol):
    """How the weights lie on ranks, which all make the same calls in the same order. writes:
    whether this rank writes files.
    """

    writes: bool

    def whole(self, name: str, weight: Tensor) -> Tensor:
        """The parameter `name` as files have it, from the part `weight` of each rank."""
        ...

    def pieces(self, name: str, weight: Tensor) -> Sequence[tuple[tuple[int, ...], Tensor]]:
        """The boxes of the whole parameter that this rank holds: the place of each one's first
        element, and a view of where it lies here. Raises ValueError.
        """
        ...

    def wait(self) -> None:
        """Until all ranks are here."""
        ...


class Parallel(Layout, Protocol):
    """A model whose ranks each run their own heads and columns."""

    def logits(self, hidden: Tensor, head: Tensor) -> Tensor:
        """hidden [U, D] -> [U, V], the same on every rank."""
        ...

    def logprobs(
        self,
        hidden: Tensor,
        head: Tensor,
        targets: Tensor,
        local: Callable[[Tensor, Tensor, Tensor], tuple[Tensor, Tensor]],
    ) -> Tensor:
        """hidden [N, D], targets [N] -> log-probs [N], the same on every rank. local: the same for
        one rank's rows of the head, with log-sum-exps [N].
        """
        ...


def local(weight: Any) -> Tensor:
    """This rank's plain tensor of a weight that may be split."""
    return weight.to_local() if hasattr(weight, "to_local") else weight
