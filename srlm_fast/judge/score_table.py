"""A score pattern compiled for one tokenizer: the byte automaton lifted to its tokens."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from srlm_fast.judge.automaton import ByteAutomaton, compile_automaton
from srlm_fast.judge.score import parse_pattern
from srlm_fast.kernels.judge_score import ScoreTable, pack_ends, pack_maps
from srlm_fast.kernels.token_bytes import end_ids, token_bytes

NEWLINE = 0x0A


def compile_pattern(
    tokenizer: Any, pattern: str | None = None, low: int = 0, high: int = 5
) -> ScoreTable:
    """Compile a score pattern once per tokenizer (a transformers or a tokenizers one).

    pattern, low, high: as `judge.score.parse_pattern` has them. Raises ValueError naming `pattern`
    where it is no regular expression or cannot be compiled, or `tokenizer` where the bytes of its
    tokens cannot be told.
    """
    automaton = compile_automaton(pattern, low, high)
    specification = parse_pattern(pattern, low, high)
    data, ends = token_bytes(tokenizer), end_ids(tokenizer)
    lifted = _Lifted(automaton)
    token_maps = np.array([lifted.map_of(token) for token in data], dtype=np.int32)
    inside = [i for i in ends if i < len(data)]
    token_maps[inside] = lifted.end_map
    return ScoreTable(
        token_bytes=data,
        end_ids=ends,
        read=specification.read,
        place=specification.place,
        score_ids=_score_ids(data, low, high),
        low=low,
        start=automaton.start,
        guess=int(automaton.next[automaton.start, ord("a")]),
        token_maps=torch.from_numpy(token_maps),
        maps=torch.from_numpy(lifted.packed()),
        ends=torch.from_numpy(lifted.ends()),
    )


def _score_ids(data: Sequence[bytes], low: int, high: int) -> dict[int, tuple[int, ...]]:
    """For each score the ids that spell it alone, with or without a space before it."""
    ids: dict[bytes, list[int]] = {str(score).encode(): [] for score in range(low, high + 1)}
    for token_id, token in enumerate(data):
        if token.strip() in ids:
            ids[token.strip()].append(token_id)
    return {int(score): tuple(group) for score, group in ids.items()}


class _Lifted:
    """Maps of tokens: what a string of bytes does to each state. Most tokens of a vocabulary do the
    same to all of them, so a map is made once and has a number.

    A row: for each state the state behind the token, the outcome it brings, and whether it ends a
    line: one that a number stood in before, or any.
    """

    def __init__(self, automaton: ByteAutomaton) -> None:
        self.automaton = automaton
        self.size = len(automaton.next)
        _, self.column = np.unique(
            np.vstack([automaton.next, automaton.outcome, np.arange(256) == NEWLINE]),
            axis=1,
            return_inverse=True,
        )
        self.column = self.column.reshape(-1)
        self.rows: list[
            np.ndarray
        ] = []  # of [4, S + 1]: state, outcome, its line ends, a line ends
        self._index: dict[bytes, int] = {}
        self._behind: dict[tuple[int, int], int] = {}
        states = np.arange(self.size + 1, dtype=np.int32)
        nothing = np.zeros_like(states)
        self.identity = self._shared(np.stack([states, nothing, nothing, nothing]))
        ended = np.append(automaton.end[1], 0)  # the last state: the turn is over
        self.end_map = self._shared(
            np.stack([np.full_like(states, self.size), ended, nothing, nothing])
        )

    def _shared(self, row: np.ndarray) -> int:
        key = row.tobytes()
        if key not in self._index:
            self._index[key] = len(self.rows)
            self.rows.append(row.astype(np.int32))
        return self._index[key]

    def map_of(self, token: bytes) -> int:
        at = self.identity
        for byte in token:
            key = (at, int(self.column[byte]))
            if key not in self._behind:
                self._behind[key] = self._extended(at, byte)
            at = self._behind[key]
        return at

    def _extended(self, at: int, byte: int) -> int:
        state, outcome, number_line, line = self.rows[at]
        inside = state < self.size
        start = np.where(inside, state, 0)
        brought = np.where(inside, self.automaton.outcome[start, byte], 0)
        outcome = np.where(brought > 0, brought, outcome)
        if byte == NEWLINE:
            number_line = number_line | (outcome > 0)
            line = np.ones_like(line)
        following = np.where(inside, self.automaton.next[start, byte], self.size)
        return self._shared(np.stack([following, outcome, number_line, line]))

    def packed(self) -> np.ndarray:
        return pack_maps(np.stack(self.rows))

    def ends(self) -> np.ndarray:
        """[2, S + 1]; where the turn is over, an unfinished row is like a finished one."""
        outcome = np.hstack([self.automaton.end, [[0], [0]]])
        is_open = np.vstack([np.append(self.automaton.open, False), np.zeros(self.size + 1, bool)])
        over = np.zeros_like(is_open)
        over[0, -1] = over[1] = True
        return pack_ends(outcome, is_open, over)
