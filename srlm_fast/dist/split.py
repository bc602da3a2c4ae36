"""Which part of a parameter each rank holds, and the way back to the whole one.

`Whole` and `Columns` are plain placements. `Rows` stores rank by rank: of a fused [q; k; v], cut
straight into equal runs, the first rank would get queries only; stored as [q_0; k_0; v_0; q_1; k_1;
v_1; ...] an ordinary Shard(0) gives each rank the rows of its own heads. A row may have copies on
several ranks; whoever reads the whole parameter takes one of them, whoever loads it fills all.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor
from torch.distributed.tensor import Placement, Replicate, Shard


class Split(Protocol):
    """How one parameter lies on the ranks."""

    placement: Placement

    def part(self, whole: Tensor, rank: int) -> Tensor:
        """A copy of what a rank holds."""
        ...

    def whole(self, stored: Tensor) -> Tensor:
        """All ranks' parts, one behind the other -> the parameter as files have it."""
        ...

    def rows(self, count: int, rank: int) -> Tensor:
        """Which of the whole's `count` rows a rank holds, in the order in which it holds them."""
        ...


class Whole:
    """Every rank holds all of it."""

    placement: Placement = Replicate()

    def part(self, whole: Tensor, rank: int) -> Tensor:
        return whole.clone()

    def whole(self, stored: Tensor) -> Tensor:
        return stored

    def rows(self, count: int, rank: int) -> Tensor:
        return torch.arange(count)


class Columns:
    """Equal runs of columns."""

    placement: Placement = Shard(1)

    def __init__(self, ranks: int) -> None:
        self.ranks = ranks

    def part(self, whole: Tensor, rank: int) -> Tensor:
        return whole.chunk(self.ranks, 1)[rank].clone(memory_format=torch.contiguous_format)

    def whole(self, stored: Tensor) -> Tensor:
        return stored

    def rows(self, count: int, rank: int) -> Tensor:
        return torch.arange(count)


class Rows:
    """of_rank: the numbers of the rows that each rank holds, in the order in which it holds
    them.
    """

    placement: Placement = Shard(0)

    def __init__(self, of_rank: Sequence[Tensor]) -> None:
        self.of_rank = of_rank
        self.order = torch.cat(list(of_rank))  # stored row -> row of the whole
        self.count = int(self.order.max()) + 1
        self.has_copies = len(self.order) > self.count

    def only(self, kept: Tensor) -> Rows:
        """The same for a parameter that has some of the rows alone, `kept` [rows] bool."""
        number = kept.cumsum(0) - 1
        return Rows([number[own[kept[own]]] for own in self.of_rank])

    def part(self, whole: Tensor, rank: int) -> Tensor:
        return whole[self.of_rank[rank].to(whole.device)]

    def whole(self, stored: Tensor) -> Tensor:
        out = stored.new_empty(self.count, *stored.shape[1:])
        out[self.order.to(stored.device)] = stored
        return out

    def rows(self, count: int, rank: int) -> Tensor:
        return self.of_rank[rank]


def vocabulary(size: int, ranks: int) -> Rows:
    """Runs of ceil(size / ranks) rows, the last one shorter. Raises ValueError."""
    runs = torch.arange(size).split(-(-size // ranks))
    if len(runs) < ranks:
        raise ValueError(f"vocab_size: {size}, wanted tokens for each of {ranks} ranks")
    return Rows(runs)


def gate_and_up(width: int, ranks: int) -> Rows:
    """[gate; up], each of `width` rows. Raises ValueError."""
    if width % ranks:
        raise ValueError(f"intermediate_size: {width}, wanted a multiple of {ranks} ranks")
    parts = torch.arange(2 * width).view(2, ranks, width // ranks)
    return Rows([parts[:, rank].flatten() for rank in range(ranks)])


def query_key_value(heads: tuple[int, int], width: int, ranks: int) -> Rows:
    """[q; k; v] of heads (H, G) of `width` rows: each rank has H / R query heads and the key/value
    heads that they look at. With fewer of these than ranks, neighbours hold copies of one. Raises
    ValueError.
    """
    queries, keys = heads
    if queries % ranks:
        raise ValueError(f"num_attention_heads: {queries}, wanted a multiple of {ranks} ranks")
    if keys % ranks and ranks % keys:
        raise ValueError(
            f"num_key_value_heads: {keys}, wanted a multiple or a divisor of {ranks} ranks"
        )
    rows = torch.arange((queries + 2 * keys) * width).view(-1, width)
    q, k, v = rows.split((queries, keys, keys))
    own = max(1, keys // ranks)
    found = []
    for rank in range(ranks):
        first = rank * keys // ranks
        part = (q.chunk(ranks)[rank], k[first : first + own], v[first : first + own])
        found.append(torch.cat(part).flatten())
    return Rows(found)
