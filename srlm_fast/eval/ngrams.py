"""Runs of n words inside texts, as numbers.

A word is what white space parts, but each Chinese or Japanese character is a word by itself (the
same characters as in `data.rouge`). Case and punctuation count. Scripts that put no spaces and are
not among these, such as Thai, have whole phrases for words.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.int64]
_IDEOGRAPH = r"\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"
_WORD = re.compile(rf"[{_IDEOGRAPH}]|[^\s{_IDEOGRAPH}]+")


def words(text: str) -> list[str]:
    return _WORD.findall(text)


@dataclass(frozen=True)
class NGrams:
    """All runs of one length. keys: int64 [K], equal for equal runs, dense from 0. owners: int64
    [K], the text that each stands in, ascending.
    """

    keys: Ints
    owners: Ints

    @property
    def num_different(self) -> int:
        return int(self.keys.max(initial=-1)) + 1


def ngrams(texts: Iterable[str], longest: int) -> Iterator[NGrams]:
    """The runs of 1, 2, ..., `longest` words; none crosses from one text into the next."""
    ids, owners = _numbered(texts)
    starts, keys = np.arange(len(ids)), ids
    size = int(ids.max(initial=0)) + 1
    for n in range(1, longest + 1):
        yield NGrams(keys, owners[starts])
        goes_on = starts + n < len(ids)
        goes_on[goes_on] = owners[starts[goes_on] + n] == owners[starts[goes_on]]
        starts, keys = starts[goes_on], keys[goes_on]
        # Dense keys keep the product below 2^63 for any number of words that fits in memory.
        keys = np.unique(keys * size + ids[starts + n], return_inverse=True)[1]


def _numbered(texts: Iterable[str]) -> tuple[Ints, Ints]:
    """(ids [T] of all words, the text [T] that each stands in)."""
    numbers: dict[str, int] = {}
    rows = [
        np.array([numbers.setdefault(word, len(numbers)) for word in words(text)], dtype=np.int64)
        for text in texts
    ]
    lengths = [len(row) for row in rows]
    ids = np.concatenate(rows) if rows else np.empty(0, dtype=np.int64)
    return ids, np.repeat(np.arange(len(rows)), lengths)
