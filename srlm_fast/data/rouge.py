"""ROUGE-L against a pool: how much of a text's word order some earlier text already has.

F = 2 L / (m + n), L the longest common subsequence of the two texts' m and n words (Lin 2004,
section 3.1, beta 1).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from functools import lru_cache
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

# The ROUGE package lowers the text and keeps runs of a-z and 0-9. On ASCII text this is the same;
# on other scripts, which that package drops, a run of letters is a word, and so is each Chinese or
# Japanese character.
_IDEOGRAPH = r"\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"
_WORD = re.compile(rf"[{_IDEOGRAPH}]|(?:[^\W_{_IDEOGRAPH}])+")


def words(text: str) -> list[str]:
    """The words of a text, lower case, without punctuation."""
    return _WORD.findall(text.lower())


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


def rouge_l_max(
    candidate: NDArray[np.int32], pool: NDArray[np.int32], offsets: NDArray[np.int64]
) -> float:
    """The largest F-measure of `candidate` [n] against the texts pool[offsets[i]:offsets[i + 1]].

    Plain twin of the native function of the same name. 0 for no words or no texts.
    """
    best, ids, bounds = 0.0, candidate.tolist(), offsets.tolist()
    for start, end in pairwise(bounds):
        total = len(ids) + end - start
        # L is at most the shorter length, which most texts of another length already fail by.
        if total and 2 * min(len(ids), end - start) / total > best:
            best = max(best, 2 * lcs_length(ids, pool[start:end].tolist()) / total)
    return best


class RougePool:
    """Texts to compare with, kept as one flat array of word ids."""

    def __init__(self, texts: Iterable[str] = ()) -> None:
        self._ids: dict[str, int] = {}
        self._words = np.empty(1024, dtype=np.int32)
        self._offsets = np.zeros(128, dtype=np.int64)
        self._num_texts = 0
        for text in texts:
            self.add(text)

    def __len__(self) -> int:
        return self._num_texts

    def add(self, text: str) -> None:
        ids = [self._ids.setdefault(word, len(self._ids)) for word in words(text)]
        start = int(self._offsets[self._num_texts])
        end = start + len(ids)
        self._words = _with_room(self._words, end)
        self._offsets = _with_room(self._offsets, self._num_texts + 2)
        self._words[start:end] = ids
        self._num_texts += 1
        self._offsets[self._num_texts] = end

    def best(self, text: str) -> float:
        """The largest ROUGE-L F-measure of `text` against a text of the pool, 0 to 1."""
        # Words that no text of the pool has are all -1: they match nothing there.
        ids = np.array([self._ids.get(word, -1) for word in words(text)], dtype=np.int32)
        offsets = self._offsets[: self._num_texts + 1]
        return _fastest()(ids, self._words[: offsets[-1]], offsets)


def _with_room(array: NDArray, size: int) -> NDArray:
    """The array, moved to one twice as large if it has fewer than `size` entries."""
    if size <= len(array):
        return array
    larger = np.zeros(max(size, 2 * len(array)), dtype=array.dtype)
    larger[: len(array)] = array
    return larger


@lru_cache(maxsize=1)
def _fastest() -> Callable[[NDArray, NDArray, NDArray], float]:
    """The native function where the extension is built, else the twin."""
    from srlm_fast.kernels import native  # here, so that reading a file of prompts needs no torch

    return native.native().rouge_l_max if native.available() else rouge_l_max
