"""Sets of characters, and the few classes of characters that a pattern tells apart."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import regex

LIMIT = 0x110000
SURROGATES = range(0xD800, 0xE000)
REPLACEMENT = 0xFFFD  # what bytes that are not UTF-8 decode to


@lru_cache(maxsize=256)
def code_points(char: str, flags: int = 0) -> np.ndarray:
    """[0x110000] bool: the characters that a regular expression for one character matches."""
    every, held = _every(), np.zeros(LIMIT - len(SURROGATES), dtype=bool)
    for run in regex.finditer(f"(?:{char})+", every, flags):
        held[run.start() : run.end()] = True
    gap = np.zeros(len(SURROGATES), dtype=bool)
    return np.concatenate([held[: SURROGATES.start], gap, held[SURROGATES.start :]])


@lru_cache(maxsize=1)
def _every() -> str:
    """All characters in order, without the surrogates, which UTF-8 cannot hold."""
    points = np.delete(np.arange(LIMIT, dtype="<u4"), SURROGATES)
    return points.tobytes().decode("utf-32-le")


class Alphabet:
    """The partition of all characters by a list of sets: characters of one class are in the same
    sets.

    class_of [0x110000] int64; members [classes, sets] bool; size: the number of classes.
    """

    def __init__(self, sets: list[np.ndarray]) -> None:
        held = np.stack(sets)
        starts = np.flatnonzero(np.append(True, (held[:, 1:] != held[:, :-1]).any(axis=0)))
        self.members, of_run = np.unique(held[:, starts].T, axis=0, return_inverse=True)
        self.class_of = np.repeat(of_run.reshape(-1), np.diff(np.append(starts, LIMIT)))
        self.size = len(self.members)
