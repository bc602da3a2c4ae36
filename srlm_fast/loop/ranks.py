"""The processes of a run: one, or those that torchrun started, on a mesh of data and tensor ranks.

Prompts are shared out over data ranks; the tensor ranks of one hold its weights together and make
the same calls in the same order. Rows that a data rank finds by itself go to a file of its own,
written by its first tensor rank; whatever all ranks know alike is written by the first rank alone.
"""

from __future__ import annotations

import datetime
import itertools
import shutil
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import DeviceMesh

from srlm_fast.dist import device_mesh, shard, tensor_parallel, unsharded
from srlm_fast.model import Model
from srlm_fast.records import InputError, RowWriter, write_jsonl
from srlm_fast.sampler import Generation, Request, Sampler, SamplingParams
from srlm_fast.sampler.data_parallel import generate

from .boundary import Boundary
from .part_files import NoRows, Writer, join_parts, part_of

T = TypeVar("T")
OnFinished = Callable[[Generation], Iterable[Request]]
# Ranks that exchange something have met just before; only generating prompts takes them apart.
EXCHANGE_TIMEOUT = datetime.timedelta(hours=6)
_made = itertools.count()  # a process may do several runs, one behind the other


class Ranks:
    """One process, to which everything belongs.

    asked: whether somebody wants the run to stop. first: whether this rank writes what all know.
    sharded: whether weights are sharded over data ranks with FSDP; else each of those has them all.
    over_mesh: what training takes beside its own arguments.
    """

    first = True
    sharded = False
    over_mesh: dict[str, Any] = {}  # noqa: RUF012 (empty for all)

    def __init__(self) -> None:
        self.asked: Callable[[], bool] = lambda: False

    # ------------------------------------------------------------------------------- meeting

    def wait(self) -> None:
        """Until all ranks are here. Raises KeyboardInterrupt on all when a stop is asked for."""
        self.check_stop()

    def check_stop(self) -> None:
        """Raise KeyboardInterrupt when a stop is asked for, between rows that a rank finds by
        itself; the others find out.
        """
        if self.asked():
            raise KeyboardInterrupt

    def stop_in_step(self) -> bool:
        """Whether a stop is asked for; all ranks ask together and get the same answer."""
        return self.asked()

    def check_stop_in_step(self) -> None:
        """Raise KeyboardInterrupt on all ranks, which call it together."""
        if self.stop_in_step():
            raise KeyboardInterrupt

    def in_step(self, finished: OnFinished) -> OnFinished:
        """`finished`, at whose calls the tensor ranks of a data rank stop together if at all."""
        return finished

    def from_first(self, find: Callable[[], T]) -> T:
        """What `find` gives on the first rank, on all; all call it together."""
        return find()

    def gather(self, value: T) -> list[T]:
        """The values of all data ranks; all ranks call it together."""
        return [value]

    def tell(self, status: int) -> bool:
        """Whether it is this rank that says why the run ends, with an exit status."""
        return True

    def told(self) -> int | None:
        """The exit status of the rank that ended first, None where none has."""
        return None

    # ------------------------------------------------------------------------------- prompts

    def share(self, items: Sequence[T]) -> Sequence[T]:
        """Those items that are this data rank's."""
        return items

    def generate(
        self, sampler: Sampler, prompts: Sequence[Sequence[int]], params: Sequence[SamplingParams]
    ) -> list[Generation]:
        """`sampler.generate` by all data ranks; all of it on every rank."""
        return sampler.generate(prompts, params)

    # ------------------------------------------------------------------------------- weights

    splits_weights = False

    @property
    def split(self) -> Callable[[Model], None] | None:
        """What lays a model's weights out over ranks before memory is taken, for `load_model`."""
        return None

    def whole(self, model: Model) -> AbstractContextManager[None]:
        """Weights that are whole on every data rank, for one sampling phase."""
        return nullcontext()

    def save(self, model: Model, folder: Path) -> None:
        """Write a model; it is there on all ranks afterwards."""
        model.save(folder)

    # ---------------------------------------------------------------------------------- rows

    def appending(self, path: Path) -> Writer:
        """A writer of rows that this data rank finds by itself."""
        return RowWriter(path)

    def writing(self, path: Path) -> Writer:
        """A writer of rows that all ranks know alike."""
        return RowWriter(path)

    def write(self, path: Path, rows: Iterable[Any]) -> None:
        """Write a whole file of rows that all ranks know alike."""
        write_jsonl(path, rows)

    def collect(self, *paths: Path) -> None:
        """Make each file whole from what an earlier process left, on however many ranks."""
        for path in paths:
            join_parts(path)

    def join(self, paths: Sequence[Path], order: Sequence[str]) -> bool:
        """Make each file whole from the rows of all ranks, in the order of their prompts. True
        where there was something to join: then the files hold more than this rank has found.
        """
        return False

    def remove(self, path: Path) -> None:
        """Remove a file or a folder that no rank needs any more."""
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)


ALONE = Ranks()


def join_ranks(tensor: int, device: str | None) -> ManyRanks:
    """This process as one of those that torchrun started. Raises InputError."""
    kind = device or ("cuda" if torch.cuda.is_available() else "cpu")
    try:
        return ManyRanks(device_mesh(tensor, kind))
    except ValueError as error:
        raise InputError(str(error)) from None


class ManyRanks(Ranks):
    """One of several processes on a mesh ("data", "tensor"). All make one together."""

    def __init__(self, mesh: DeviceMesh) -> None:
        super().__init__()
        self.mesh = mesh
        self.data, self.data_ranks = mesh["data"].get_local_rank(), mesh["data"].size()
        self.tensor, self.tensor_ranks = mesh["tensor"].get_local_rank(), mesh["tensor"].size()
        self.first, self.over_mesh = dist.get_rank() == 0, {"mesh": mesh}
        # Flags and rows are no work for the device's own group.
        self._all = dist.new_group(backend="gloo", timeout=EXCHANGE_TIMEOUT)
        self._tensor = self._own_group(mesh.mesh.tolist())
        self._data = self._own_group(mesh.mesh.t().tolist())
        store = dist.PrefixStore(
            f"srlm_fast/{next(_made)}", dist.distributed_c10d._get_default_store()
        )
        self.boundary = Boundary(store, dist.get_rank(), dist.get_world_size())

    @staticmethod
    def _own_group(groups: list[list[int]]) -> dist.ProcessGroup:
        made = [dist.new_group(ranks, EXCHANGE_TIMEOUT, "gloo") for ranks in groups]
        return next(g for g, ranks in zip(made, groups, strict=True) if dist.get_rank() in ranks)

    # ------------------------------------------------------------------------------- meeting

    def wait(self) -> None:
        self.boundary.meet(self.asked)

    def _leaves(self) -> bool:
        """Whether this rank should leave: asked to, or because another one has left."""
        return self.asked() or self.boundary.verdict() is not None

    def check_stop(self) -> None:
        # Tensor ranks run side by side: none may leave on its own between two exchanges.
        if self.tensor_ranks == 1 and self._leaves():
            self.boundary.leave()

    def stop_in_step(self) -> bool:
        return self._any(self._all)

    def check_stop_in_step(self) -> None:
        if self.stop_in_step():
            self.boundary.leave()

    def in_step(self, finished: OnFinished) -> OnFinished:
        def step(generation: Generation) -> Iterable[Request]:
            if self._any(self._tensor):
                self.boundary.leave()
            return finished(generation)

        return finished if self.tensor_ranks == 1 else step

    def _any(self, group: dist.ProcessGroup) -> bool:
        flag = torch.tensor([self._leaves()], dtype=torch.int32)
        dist.all_reduce(flag, dist.ReduceOp.MAX, group=group)
        return bool(flag)

    def from_first(self, find: Callable[[], T]) -> T:
        found: list[Any] = [find() if self.first else None]
        self.wait()
        dist.broadcast_object_list(found, src=0, group=self._all)
        return found[0]

    def gather(self, value: T) -> list[T]:
        values: list[Any] = [None] * self.data_ranks
        dist.all_gather_object(values, value, group=self._data)
        return values

    def tell(self, status: int) -> bool:
        return self.boundary.tell(status)

    def told(self) -> int | None:
        return self.boundary.told()

    def leave(self, seconds: float) -> None:
        """Exit together, if all come within `seconds`."""
        self.boundary.part(seconds)

    # ------------------------------------------------------------------------------- prompts

    def share(self, items: Sequence[T]) -> Sequence[T]:
        return items[self.data :: self.data_ranks]

    def generate(
        self, sampler: Sampler, prompts: Sequence[Sequence[int]], params: Sequence[SamplingParams]
    ) -> list[Generation]:
        return generate(sampler, prompts, params, self._data)

    # ------------------------------------------------------------------------------- weights

    @property
    def splits_weights(self) -> bool:  # type: ignore[override]
        return self.tensor_ranks > 1 or self._shards

    @property
    def _shards(self) -> bool:
        return self.sharded and self.data_ranks > 1

    @property
    def split(self) -> Callable[[Model], None] | None:
        return self._lay_out if self.splits_weights else None

    def _lay_out(self, model: Model) -> None:
        if self.tensor_ranks > 1:
            tensor_parallel(model, self.mesh["tensor"])
        if self._shards:
            shard(model, self.mesh["data"])

    def whole(self, model: Model) -> AbstractContextManager[None]:
        return unsharded(model)

    def save(self, model: Model, folder: Path) -> None:
        if self.first or self.splits_weights:
            model.save(folder)
        self.wait()

    # ---------------------------------------------------------------------------------- rows

    def appending(self, path: Path) -> Writer:
        return NoRows() if self.tensor else RowWriter(part_of(path, self.data))

    def writing(self, path: Path) -> Writer:
        return RowWriter(path) if self.first else NoRows()

    def write(self, path: Path, rows: Iterable[Any]) -> None:
        if self.first:
            write_jsonl(path, rows)

    def collect(self, *paths: Path) -> None:
        if self.first:
            super().collect(*paths)
        self.wait()

    def join(self, paths: Sequence[Path], order: Sequence[str]) -> bool:
        self.wait()
        if self.first:
            for path in paths:
                join_parts(path, order)
        self.wait()
        return True

    def remove(self, path: Path) -> None:
        if self.first:
            super().remove(path)
