"""The ranks that train one model together: who takes which items, and what they tell each other.

Data ranks share each step's items; the ranks of a tensor group take the same ones. Losses and
gradients are sums over items divided by a count over the whole batch, so neither depends on how
many ranks and micro-batches the items are spread over.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed import ReduceOp

from srlm_fast.kernels.norm import norm

from .optimizer import norm_of
from .packing import Ints, MicroBatch

if TYPE_CHECKING:  # a process without ranks does not pay for importing it
    from torch.distributed.device_mesh import DeviceMesh


class Ranks:
    """A mesh ("data", "tensor") as `dist.device_mesh` makes it, or None: this process alone.

    scale: what a loss is multiplied with before its backward pass; FSDP divides by the data ranks.
    Raises ValueError when the mesh has other dimensions, weights are split and there is none, or
    only parts of the model are sharded.
    """

    def __init__(self, model: nn.Module, mesh: DeviceMesh | None) -> None:
        names = ("data", "tensor")
        if mesh is not None and mesh.mesh_dim_names != names:
            raise ValueError(f"mesh: dimensions {mesh.mesh_dim_names}, wanted {names}")
        if mesh is None and any(hasattr(weight, "placements") for weight in model.parameters()):
            raise ValueError("mesh: None, but the weights are split; wanted the mesh they lie on")
        self.mesh = mesh
        groups = [] if mesh is None else [mesh.get_group(name) for name in names]
        self._groups = [group for group in groups if dist.get_world_size(group) > 1]
        self._data = groups[:1] if mesh is not None and mesh.size(0) > 1 else []
        self.num_data = 1 if mesh is None else mesh.size(0)
        self.data_rank = 0 if mesh is None else mesh.get_local_rank("data")
        self.is_first = mesh is None or dist.get_rank() == 0
        self._model = model
        self._sharded = mesh is not None and _is_sharded(model)
        self.scale = self.num_data if self._sharded else 1
        first = next(model.parameters())
        self._device, self._dtype = first.device, first.dtype

    def micro_batches(
        self, items: Ints, lengths: Ints, cut: Callable[[Ints], list[MicroBatch]]
    ) -> list[MicroBatch]:
        """This rank's share of a batch: as many micro-batches as every other data rank has.

        lengths: tokens of each of the items. cut: makes the micro-batches of some items. A share
        that needs fewer is filled up with the shortest item, idle: FSDP gathers weights in every
        pass, on all ranks at once.
        """
        if not self._data:
            return cut(items)
        own = items[share(lengths, self.num_data)[self.data_rank]]
        batches = cut(own) if len(own) else []
        missing = int(self.most(len(batches))) - len(batches)
        if missing:
            (idle,) = cut(items[[np.argmin(lengths)]])
            batches += [replace(idle, idle=True)] * missing
        return batches

    def reshard(self) -> None:
        """Give back what forwards without a backward pass have gathered, if anything."""
        if self._sharded:
            from srlm_fast.dist import reshard

            reshard(self._model)

    def most(self, value: float) -> float:
        """The largest value of all ranks."""
        found = torch.tensor(value, dtype=torch.float64, device=self._device)
        for group in self._groups:
            dist.all_reduce(found, ReduceOp.MAX, group=group)
        return float(found)

    def wait(self) -> None:
        """Until all ranks are here."""
        self.any(False)

    def any(self, flag: bool) -> bool:
        """Whether it is true on one rank at least."""
        return bool(self.most(flag)) if self._groups else flag

    def sum(self, x: Tensor) -> Tensor:
        """The sum of x over data ranks, in place."""
        for group in self._data:
            dist.all_reduce(x, group=group)
        return x

    def sum_gradients(self, gradients: Sequence[Tensor | None]) -> None:
        """Sum, in place, what the data ranks have for their own items; FSDP has done it."""
        if self._sharded or not self._data:
            return
        group = self._data[0]
        found = [grad for grad in gradients if grad is not None]
        works: list[Any] = [dist.all_reduce(grad, group=group, async_op=True) for grad in found]
        for work in works:
            work.wait()

    def norm(self, params: Sequence[Any], gradients: Sequence[Tensor | None]) -> Tensor:
        """[] at least fp32: the norm of all gradients, each element counted once wherever it has
        copies.

        params: of the model; gradients: of each, this rank's plain tensor.
        """
        if self.mesh is None:
            return norm_of(gradients)
        pairs = [(g, p) for g, p in zip(gradients, params, strict=True) if g is not None]
        squares = [norm(g).double().square() for g, _ in pairs]
        copies = [self._copies(param) for _, param in pairs]
        # A rank may hold no row of any parameter that has a gradient.
        total = torch.stack(squares) if squares else torch.zeros(0, dtype=torch.float64)
        total = (total.to(self._device) / torch.tensor(copies, device=self._device)).sum()
        for group in self._groups:
            dist.all_reduce(total, group=group)
        return total.sqrt().to(torch.promote_types(self._dtype, torch.float32))

    def _copies(self, param: Any) -> int:
        """How many ranks hold each of its elements."""
        assert self.mesh is not None
        placed = enumerate(getattr(param, "placements", ()))  # FSDP over tensor is no plain Shard
        ranks = [param.device_mesh.size(dim) for dim, how in placed if not how.is_replicate()]
        return self.mesh.size() // math.prod(ranks)


def _is_sharded(model: nn.Module) -> bool:
    from torch.distributed.fsdp import FSDPModule

    found = isinstance(model, FSDPModule)
    if not found and any(isinstance(module, FSDPModule) for module in model.modules()):
        raise ValueError("model: only parts of it are sharded; wanted dist.shard(model, mesh)")
    return found


def share(lengths: Ints, ranks: int) -> list[Ints]:
    """Numbers of the items that each rank takes: dealt out from the longest to the shortest, each
    to the rank with the fewest tokens so far. Depends on nothing but its arguments.
    """
    held: list[list[int]] = [[] for _ in range(ranks)]
    tokens = np.zeros(ranks, dtype=np.int64)
    for item in np.argsort(-lengths, kind="stable").tolist():
        rank = int(tokens.argmin())
        held[rank].append(item)
        tokens[rank] += lengths[item]
    return [np.array(sorted(items), dtype=np.int64) for items in held]
