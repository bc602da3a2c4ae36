"""Where the rows and columns of a parameter lie: what checkpoints and model files are cut by, so
that neither depends on how many ranks wrote them.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor

from .split import Split


class Piece(NamedTuple):
    """A box of the whole parameter that this rank holds."""

    offsets: tuple[int, ...]  # of its first element in the whole
    local: Tensor  # a view of what is held here


class Layout:
    """How a model's weights lie on ranks: over a tensor mesh by `splits`, and over data ranks by
    rows where FSDP shards them. A parameter that `splits` does not name lies as its placements say.

    mesh: the tensor mesh, or that of the data ranks of a model with no other. writes: whether this
    rank writes files; all take part in gathering what it writes.
    """

    def __init__(self, mesh: DeviceMesh, splits: dict[str, Split] | None = None) -> None:
        self.splits, self.has_tensor = splits or {}, splits is not None
        self.groups = [mesh.get_group()]
        self.writes = dist.get_rank() == 0

    def whole(self, name: str, weight: Any) -> Tensor:
        """The parameter as files have it, on every rank, one at a time in memory."""
        weight = weight.detach()
        stored = weight.full_tensor() if isinstance(weight, DTensor) else weight
        return self.splits[name].whole(stored) if name in self.splits else stored

    def pieces(self, name: str, weight: Any, value: Tensor | None = None) -> list[Piece]:
        """The pieces of a parameter, or of a `value` that lies as it does on this rank.

        Raises ValueError inside `unsharded`, where a change of the weights would not last.
        """
        held = getattr(getattr(weight, "device_mesh", None), "ndim", 0)
        if held != len(self.groups):
            raise ValueError(f"{name}: gathered over data ranks; wanted it outside dist.unsharded")
        value = weight.detach().to_local() if value is None else value
        rows, column = self._rows(name, weight), self._column(weight)
        return _runs(rows, column, value)

    def wait(self) -> None:
        """Until all ranks are here."""
        for group in self.groups:
            dist.barrier(group)

    def _rows(self, name: str, weight: DTensor) -> Tensor:
        """The rows of the whole that this rank holds, in the order in which it holds them."""
        mesh, rows = weight.device_mesh, torch.arange(weight.shape[0])
        if self.has_tensor:
            ranks, rank = mesh.size(-1), mesh.get_local_rank(mesh.ndim - 1)
            if name in self.splits:
                rows = self.splits[name].rows(len(rows), rank)
            elif weight.placements[-1].is_shard(0):
                rows = rows.chunk(ranks)[rank]
        if mesh.ndim > self.has_tensor:  # FSDP cuts what a tensor rank holds, the first ranks first
            parts, rank = rows.chunk(mesh.size(0)), mesh.get_local_rank(0)
            rows = parts[rank] if rank < len(parts) else rows[:0]
        return rows

    def _column(self, weight: DTensor) -> int:
        """The first column that this rank holds."""
        mesh = weight.device_mesh
        if not (self.has_tensor and weight.placements[-1].is_shard(1)):
            return 0
        return weight.shape[1] // mesh.size(-1) * mesh.get_local_rank(mesh.ndim - 1)


def _runs(rows: Tensor, column: int, value: Tensor) -> list[Piece]:
    """value, which holds these rows, cut where they do not follow each other."""
    if len(rows) == 0:
        return []
    breaks = (rows.diff() != 1).nonzero().flatten() + 1
    starts = [0, *breaks.tolist()]
    stops = [*starts[1:], len(rows)]
    rest = (column,) if value.ndim > 1 else ()
    return [
        Piece((int(rows[start]), *rest), value[start:stop])
        for start, stop in zip(starts, stops, strict=True)
    ]
