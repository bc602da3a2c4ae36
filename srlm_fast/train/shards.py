"""Tensors that lie on many ranks, in a folder of PyTorch's distributed checkpoint.

Each rank writes and reads the pieces that it holds, at their places in the whole tensor as files
have it. So any number of ranks, split any way, reads what any other has written; so does a process
without ranks.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed.checkpoint as dcp
from torch import Tensor
from torch.distributed.checkpoint import DefaultLoadPlanner, DefaultSavePlanner
from torch.distributed.checkpoint.metadata import (
    ChunkStorageMetadata,
    MetadataIndex,
    TensorProperties,
)
from torch.distributed.checkpoint.planner import (
    LoadPlan,
    ReadItem,
    SavePlan,
    TensorWriteData,
    WriteItem,
    WriteItemType,
)
from torch.distributed.checkpoint.planner_helpers import create_read_items_for_chunk_list

from srlm_fast.dist import Piece


@dataclass(frozen=True)
class Spread:
    """A tensor of `shape`, of which this rank holds some pieces."""

    shape: tuple[int, ...]
    pieces: list[Piece]

    @classmethod
    def whole(cls, tensor: Tensor) -> Spread:
        return cls(tuple(tensor.shape), [Piece((0,) * tensor.ndim, tensor)])


def save_shards(folder: Path, tensors: Mapping[str, Spread]) -> None:
    """Write a new folder. All ranks call it with the same names; what several hold is written
    once.
    """
    dcp.save({}, storage_writer=dcp.FileSystemWriter(folder), planner=_Save(tensors))


def load_shards(folder: Path, tensors: Mapping[str, Spread], alone: bool) -> None:
    """Fill the pieces. All ranks call it, unless this process is `alone`. Raises KeyError for a
    name that is not there.
    """
    reader = dcp.FileSystemReader(folder)
    with warnings.catch_warnings():  # that it is alone
        warnings.filterwarnings("ignore", message="torch.distributed is disabled")
        dcp.load({}, storage_reader=reader, planner=_Load(tensors), no_dist=alone)


def _views(tensors: Mapping[str, Spread]) -> dict[MetadataIndex, Tensor]:
    return {
        MetadataIndex(name, torch.Size(piece.offsets)): piece.local
        for name, spread in tensors.items()
        for piece in spread.pieces
    }


def _chunk(index: MetadataIndex, local: Tensor) -> ChunkStorageMetadata:
    assert index.offset is not None
    return ChunkStorageMetadata(index.offset, local.shape)


class _Save(DefaultSavePlanner):
    def __init__(self, tensors: Mapping[str, Spread]) -> None:
        super().__init__(flatten_state_dict=False, flatten_sharded_tensors=False)
        self.tensors, self.views = tensors, _views(tensors)

    def create_local_plan(self) -> SavePlan:
        items = []
        for index, local in self.views.items():
            size = torch.Size(self.tensors[index.fqn].shape)
            properties = TensorProperties.create_from_tensor(local)
            data = TensorWriteData(_chunk(index, local), properties, size)
            items.append(WriteItem(index, WriteItemType.SHARD, tensor_data=data))
        self.plan = SavePlan(items)
        return self.plan

    def resolve_data(self, write_item: WriteItem) -> Tensor:
        return self.views[write_item.index].detach()


class _Load(DefaultLoadPlanner):
    def __init__(self, tensors: Mapping[str, Spread]) -> None:
        super().__init__(flatten_state_dict=False, flatten_sharded_tensors=False)
        self.tensors, self.views = tensors, _views(tensors)

    def create_local_plan(self) -> LoadPlan:
        assert self.metadata is not None
        items: list[ReadItem] = []
        for index, local in self.views.items():
            kept: Any = self.metadata.state_dict_metadata[index.fqn]
            items += create_read_items_for_chunk_list(index.fqn, kept, [_chunk(index, local)])
        return LoadPlan(items)

    def resolve_tensor(self, read_item: ReadItem) -> Tensor:
        view = self.views[read_item.dest_index].detach()
        for dim, (start, length) in enumerate(
            zip(read_item.dest_offsets, read_item.lengths, strict=True)
        ):
            view = view.narrow(dim, start, length)
        return view
