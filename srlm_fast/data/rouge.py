"""ROUGE against a pool: how much of a text some earlier text already has.

F = 2 C / (m + n) of two texts of m and n units. ROUGE-L (Lin 2004, section 3.1, beta 1): units are
words, C is their longest common subsequence. ROUGE-2 (section 2): units are pairs of neighbouring
words, C is what both have in any order.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from functools import lru_cache
from itertools import pairwise
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

# The ROUGE package lowers the text and keeps runs of a-z and 0-9. On ASCII text this is the same;
# on other scripts, which that package drops, a run of letters is a word, and so is each Chinese or
# Japanese character.
_IDEOGRAPH = r"\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"
_WORD = re.compile(rf"[{_IDEOGRAPH}]|(?:[^\W_{_IDEOGRAPH}])+")
# How a number is written is no difference: 1,000 is 1000, and 5km is 5 km.
_GROUPED = re.compile(r"(?<=\d)[,'’_\u00a0\u2009\u202f](?=\d{3}(?!\d))")
_NUMBER = re.compile(r"(\d+)")

Units = Callable[[str], list[str]]


def words(text: str) -> list[str]:
    """The words of a text, lower case, without punctuation."""
    return _WORD.findall(text.lower())


def word_pairs(text: str) -> list[str]:
    """Neighbouring words, numbers written alike; the lone word of a text that has no other."""
    found = words(_NUMBER.sub(r" \1 ", _GROUPED.sub("", text)))
    return [f"{one} {two}" for one, two in pairwise(found)] or found


def lcs_length(one: Sequence[int], two: Sequence[int]) -> int:
    """Length of the longest common subsequence, bit-parallel over `one` (Hyyrö 2004)."""
    where: dict[int, int] = {}
    for at, word in enumerate(one):
        where[word] = where.get(word, 0) | 1 << at
    everything = (1 << len(one)) - 1
    unmatched = everything  # a bit falls to 0 where the subsequence grows by one
    for word in two:
        hit = unmatched & where.get(word, 0)
        unmatched = ((unmatched + hit) | (unmatched - hit)) & everything
    return len(one) - unmatched.bit_count()


def bag_overlap(one: Sequence[int], two: Sequence[int]) -> int:
    """How many units two texts have in common, in any order."""
    return (Counter(one) & Counter(two)).total()


class Index(Protocol):
    """Texts as rows of ids from 0. `PlainIndex` and the native `TextIndex` are two of them."""

    def __len__(self) -> int: ...

    def add(self, ids: NDArray[np.int32]) -> None: ...

    def best(
        self, ids: NDArray[np.int32], starts: NDArray[np.int64], least: float, in_order: bool
    ) -> NDArray[np.float64]: ...


class PlainIndex:
    """What the native index does, by comparing each text with every other."""

    def __init__(self) -> None:
        self._texts: list[list[int]] = []

    def __len__(self) -> int:
        return len(self._texts)

    def add(self, ids: NDArray[np.int32]) -> None:
        self._texts.append(ids.tolist())

    def best(
        self, ids: NDArray[np.int32], starts: NDArray[np.int64], least: float, in_order: bool
    ) -> NDArray[np.float64]:
        """The largest F of each text ids[starts[i]:starts[i + 1]] against the index: float64
        [texts], 0 where none reaches `least`. in_order: C is the longest common subsequence, else
        what is in common in any order. Ids below 0 match nothing.
        """
        queries = [ids[start:end].tolist() for start, end in pairwise(starts.tolist())]
        found = [self._best_of(query, lcs_length if in_order else bag_overlap) for query in queries]
        return np.array([f if f >= least else 0.0 for f in found])

    def _best_of(self, query: list[int], common: Callable[..., int]) -> float:
        sizes = ((text, len(query) + len(text)) for text in self._texts)
        return max((2 * common(query, text) / size for text, size in sizes if size), default=0.0)


class RougePool:
    """Texts to compare with, and those that new ones come too near to.

    units: what a text is made of. in_order: whether their order counts. So the defaults are
    ROUGE-L, and `word_pairs` in any order is ROUGE-2.
    """

    def __init__(
        self, texts: Iterable[str] = (), units: Units = words, in_order: bool = True
    ) -> None:
        self._units, self._in_order = units, in_order
        self._ids: dict[str, int] = {}
        self._index = _fastest()()
        for text in texts:
            self.add(text)

    def __len__(self) -> int:
        return len(self._index)

    def add(self, text: str) -> None:
        ids = self._ids
        row = [ids.setdefault(unit, len(ids)) for unit in self._units(text)]
        self._index.add(np.array(row, dtype=np.int32))

    def best(self, text: str, least: float = 0.0) -> float:
        """The largest F of `text` against a text of the pool, 0 to 1; 0 where it is below `least`,
        which is much faster to find out.
        """
        return float(self.best_each([text], least)[0])

    def best_each(self, texts: Sequence[str], least: float = 0.0) -> NDArray[np.float64]:
        """`best` of each text [texts], with all threads; the pool stays as it is."""
        # Units that no text of the pool has are all -1: they match nothing there.
        rows = [[self._ids.get(unit, -1) for unit in self._units(text)] for text in texts]
        starts = np.cumsum([0, *map(len, rows)], dtype=np.int64)
        ids = np.array([each for row in rows for each in row], dtype=np.int32)
        return self._index.best(ids, starts, least, self._in_order)


@lru_cache(maxsize=1)
def _fastest() -> Callable[[], Index]:
    """The native index where the extension is built, else the twin."""
    from srlm_fast.kernels import native  # here, so that reading a file of prompts needs no torch

    return native.native().TextIndex if native.available() else PlainIndex
