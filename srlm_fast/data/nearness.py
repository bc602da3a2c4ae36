"""Whether a new text comes too near to one that is known already."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from srlm_fast.data.rouge import RougePool, Units, words

# Native and plain F-measures may round differently in the last bit; the verdict must not.
SLACK = 1e-9


class Nearness:
    """One measure with its limit, over a pool that grows.

    A batch is compared with the pool at once, by all threads, and each text of it then with those
    of the batch that have joined before it: the verdicts are those of one after the other.
    """

    def __init__(
        self,
        reason: str,
        limit: float,
        known: Iterable[str],
        units: Units = words,
        in_order: bool = True,
    ) -> None:
        self.reason, self.least = reason, limit - SLACK
        self._kind = (units, in_order)
        self._pool = RougePool(known, *self._kind)
        self.begin(())

    def begin(self, texts: Sequence[str]) -> None:
        """Begin a batch of texts."""
        near = self._pool.best_each(texts, self.least) >= self.least
        self._near = dict(zip(texts, near.tolist(), strict=True))
        self._joined = RougePool((), *self._kind)

    def holds(self, text: str) -> bool:
        """Whether a text of the batch reaches the limit with one of the pool."""
        return self._near[text] or self._joined.best(text, self.least) >= self.least

    def add(self, text: str) -> None:
        self._pool.add(text)
        self._joined.add(text)
