"""What one step's attention has to do, as arrays on the device that all layers share.

Sequence s owns the rows row_starts[s] .. row_starts[s + 1] - 1 of the step's stream; they are the
last tokens of its context, whose keys lie in the pages block_table[s].

- A sequence of one row is *decoded*: its context is cut at multiples of SPLIT tokens, counted from
  its beginning, and every (sequence, split) is an item of its own. Items that read the same pages
  stand side by side, so that the second reads them from the L2 cache.
- A sequence of more rows is *extended*: every (sequence, first row) is a tile of neighbouring rows.
  The longest come first.

Splits depend on nothing but a row's position: the same row is cut the same way in any batch.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

ALIGN = 16  # elements: 64 bytes


@dataclass(frozen=True)
class DecodeConfig:
    """split: tokens; tile: tokens read at a time, at most; programs: of a multiprocessor, which
    walk over the items, or 0 for a program per item.
    """

    split: int = 512
    tile: int = 64
    num_warps: int = 4
    num_stages: int = 3
    programs: int = 3


@dataclass(frozen=True)
class Capacity:
    """Sizes of buffers that stay where they are, for a CUDA graph: sequences, pages of a sequence,
    and splits of all sequences together.
    """

    sequences: int
    pages: int
    splits: int


class PagedWork:
    """Call `plan` once per step, then `paged_attention` once per layer.

    With a capacity the arrays keep their place and every sequence has one row: what is captured in
    a CUDA graph with this object works on what was planned last. Sequences up to the capacity are
    padding with an empty context, whose output is zero.
    """

    def __init__(
        self,
        *,
        num_heads: int,
        num_kv_heads: int,
        head_dim: int,
        page_tokens: int,
        dtype: torch.dtype,
        device: torch.device | str,
        deterministic: bool = False,
        capacity: Capacity | None = None,
        config: DecodeConfig | None = None,
    ) -> None:
        self.num_heads, self.num_kv_heads, self.head_dim = num_heads, num_kv_heads, head_dim
        self.page_tokens, self.device = page_tokens, torch.empty(0, device=device).device
        self.dtype, self.deterministic, self.capacity = dtype, deterministic, capacity
        self.config = config or DecodeConfig()
        if num_heads % num_kv_heads:
            raise ValueError(f"num_heads: {num_heads}, wanted a multiple of {num_kv_heads}")
        self.group = num_heads // num_kv_heads
        # Rows of the matmuls: what one tensor-core instruction takes, or 128 where many rows of
        # one sequence meet the same keys. Without tensor cores, in fp32, those would not fit the
        # registers.
        self.decode_rows = max(16, 1 << (self.group - 1).bit_length())
        self.extend_rows = self.decode_rows
        if not deterministic and dtype.itemsize == 2:
            self.extend_rows = max(self.decode_rows, 128 if head_dim <= 128 else 64)
        self.num_rows = self.num_items = self.num_tiles = self.num_slots = 0
        self._buffer: Tensor | None = None
        self._parts: tuple[Tensor, Tensor] | None = None

    @property
    def static(self) -> bool:
        return self.capacity is not None

    def plan(
        self, row_starts: np.ndarray, context_lengths: np.ndarray, block_table: np.ndarray
    ) -> None:
        """row_starts [S + 1], context_lengths [S], block_table [S, W] of int32 on the host.

        Raises ValueError where they do not fit together or exceed the capacity.
        """
        starts, lengths, table = self._checked(row_starts, context_lengths, block_table)
        items, first_slots = self._items(starts, lengths, table)
        tiles = self._tiles(starts, lengths)
        self.num_items, self.num_tiles = len(items), len(tiles)
        self.has_empty = bool((lengths == 0).any())
        num_sequences, width, room = len(lengths), table.shape[1], len(items)
        if self.capacity is not None:
            num_sequences, width = self.capacity.sequences, self.capacity.pages
            room = self.capacity.splits
            padding = np.arange(1, num_sequences - len(lengths) + 1, dtype=np.int32)
            starts = np.concatenate((starts, starts[-1] + padding))
        arrays = {
            "item_count": (np.array([len(items)]), (1,)),
            "row_starts": (starts, (num_sequences + 1,)),
            "lengths": (lengths, (num_sequences,)),
            "first_slots": (first_slots, (num_sequences,)),
            "items": (items, (room, 2)),
            "tiles": (tiles, (len(tiles), 2)),
            # A multiple of 16, so that no step compiles anew because its longest sequence is odd.
            "table": (table, (num_sequences, -(-width // ALIGN) * ALIGN)),
        }
        self._upload(arrays)
        self.num_sequences, self.num_rows = num_sequences, int(starts[-1])

    def parts(self) -> tuple[Tensor, Tensor]:
        """Where splits leave their sums, [slots, H, K], and maximum and weight, [slots, 2, H]."""
        if self._parts is None:
            slots = self.capacity.splits if self.capacity else self.num_slots
            sizes = (slots, self.num_heads, self.head_dim), (slots, 2, self.num_heads)
            self._parts = tuple(
                torch.empty(size, dtype=torch.float32, device=self.device) for size in sizes
            )
        return self._parts

    def programs(self) -> int:
        """Of the decode kernel."""
        room = self.capacity.splits if self.capacity else self.num_items
        most = room * self.num_kv_heads
        if not self.config.programs:
            return most
        return min(most, self.config.programs * _multiprocessors(self.device))

    def _checked(self, row_starts, context_lengths, block_table):
        starts, lengths, table = (
            np.asarray(array, dtype=np.int32)
            for array in (row_starts, context_lengths, block_table)
        )
        rows = np.diff(starts)
        if (
            lengths.ndim != 1
            or starts.shape != (len(lengths) + 1,)
            or starts[0]
            or rows.min(initial=0) < 0
        ):
            raise ValueError(f"row_starts: {starts}, wanted [S + 1] rising from 0")
        if (lengths < rows).any():
            raise ValueError("context_lengths: fewer than a sequence has rows")
        if (
            table.ndim != 2
            or len(table) != len(lengths)
            or (lengths.max(initial=0) > table.shape[1] * self.page_tokens)
        ):
            raise ValueError(f"block_table: shape {table.shape}, wanted [S, pages of the longest]")
        if self.capacity is not None:
            found = Capacity(*table.shape, int(self._splits(rows, lengths).sum()))
            if (rows != 1).any():
                raise ValueError("row_starts: not one row of each sequence, wanted with a capacity")
            if (
                found.sequences > self.capacity.sequences
                or found.pages > self.capacity.pages
                or found.splits > self.capacity.splits
            ):
                raise ValueError(f"a step of {found}, wanted at most {self.capacity}")
        return starts, lengths, table

    def _splits(self, rows, lengths):
        return np.where(rows == 1, -(-lengths // self.config.split), 0)

    def _items(self, starts, lengths, table):
        """[N, 2] sequence and split; [S] the first slot of those that have several."""
        splits = self._splits(np.diff(starts), lengths)
        slots = np.where(splits > 1, splits, 0)
        self.num_slots = int(slots.sum())
        sequence, split = _ragged(splits)
        first_page = table[sequence, split * self.config.split // self.page_tokens]
        order = np.argsort(first_page, kind="stable")
        return np.stack((sequence, split), axis=1)[order], np.cumsum(slots) - slots

    def _tiles(self, starts, lengths):
        """[N, 2] sequence and first row."""
        rows, held = np.diff(starts), self.extend_rows // self.group
        sequence, tile = _ragged(np.where(rows > 1, -(-rows // held), 0))
        row = starts[sequence] + tile * held
        position = lengths[sequence] - starts[sequence + 1] + row
        return np.stack((sequence, row), axis=1)[np.argsort(-position, kind="stable")]

    def _upload(self, arrays):
        """All in one transfer; each begins at 64 bytes."""
        sizes = {name: int(np.prod(shape)) for name, (_, shape) in arrays.items()}
        room = [-(-size // ALIGN) * ALIGN for size in sizes.values()]
        begin = dict(zip(sizes, np.cumsum([0, *room]).tolist(), strict=False))
        packed = np.zeros(sum(room), np.int32)
        for name, (array, shape) in arrays.items():
            place = packed[begin[name] : begin[name] + sizes[name]].reshape(shape)
            place[tuple(slice(size) for size in array.shape)] = array
        if self._buffer is None or not self.static:
            self._buffer = torch.empty(len(packed), dtype=torch.int32, device=self.device)
            self._parts = None
        host = torch.from_numpy(packed)
        if self.device.type == "cuda":
            host = host.pin_memory()
        self._buffer.copy_(host, non_blocking=True)
        for name, (_, shape) in arrays.items():
            place = self._buffer[begin[name] : begin[name] + sizes[name]]
            setattr(self, name, place.view(shape))


def _ragged(counts):
    """counts [S] -> of each of their sum: its s, its number within s."""
    owner = np.repeat(np.arange(len(counts)), counts)
    return owner, np.arange(len(owner)) - np.repeat(np.cumsum(counts) - counts, counts)


def _multiprocessors(device: torch.device) -> int:
    if device.type != "cuda":
        return 2  # the interpreter runs them one after another
    return torch.cuda.get_device_properties(device).multi_processor_count
