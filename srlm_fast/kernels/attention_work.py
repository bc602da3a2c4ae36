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

    The best of 61 lines of `bench_paged_attention --tune` on an H200, 2026-11-26: 3.92 TB/s on 64
    contexts of 1,024 with the heads of Llama-3-8B, 4.31 TB/s on 256 with those of Llama-2-70B, of
    4.37 that a reduction reads. Splits of 512 gave 3.62 and 3.99.
    """

    split: int = 1024
    tile: int = 64
    num_warps: int = 4
    num_stages: int = 2
    programs: int = 0


@dataclass(frozen=True)
class Capacity:
    """Sizes of buffers that stay where they are, for a CUDA graph: sequences, pages of a sequence,
    and splits of all sequences together, of which even an empty one has one.
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
        self.width = max(16, 1 << (head_dim - 1).bit_length())  # as tiles have it
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

    def plan(
        self, row_starts: np.ndarray, context_lengths: np.ndarray, block_table: np.ndarray
    ) -> None:
        """row_starts [S + 1], context_lengths [S], block_table [S, W] of int32 on the host.

        Raises ValueError where they do not fit together or exceed the capacity.
        """
        arrays = self._checked(row_starts, context_lengths, block_table)
        starts, lengths, table = self._padded(*arrays)
        items, first_slots = self._items(starts, lengths, table)
        tiles = self._tiles(starts, lengths)
        if self.capacity is not None and len(items) > self.capacity.splits:
            raise ValueError(f"a step of {len(items)} splits, wanted at most {self.capacity}")
        self.num_rows, self.num_items, self.num_tiles = int(starts[-1]), len(items), len(tiles)
        self.longest = int(lengths.max(initial=0))
        self.longest_rows = int(np.diff(starts).max(initial=0))
        room = self.capacity.splits if self.capacity else len(items)
        arrays = {
            "item_count": np.array([len(items)]),
            "row_starts": starts,
            "lengths": lengths,
            "key_starts": np.concatenate(([0], np.cumsum(lengths))),  # for flash-attn
            "first_slots": first_slots,
            "items": np.concatenate((items, np.zeros((room - len(items), 2), np.int32))),
            "tiles": tiles,
            "table": table,
        }
        self._upload({name: array.astype(np.int32) for name, array in arrays.items()})

    def parts(self) -> tuple[Tensor, Tensor]:
        """Where splits leave their states, [slots, H, width + 2], and are counted, [slots, G]."""
        if self._parts is None:
            slots = self.capacity.splits if self.capacity else self.num_slots
            states = slots, self.num_heads, self.width + 2
            self._parts = (
                torch.empty(states, dtype=torch.float32, device=self.device),
                torch.zeros(slots, self.num_kv_heads, dtype=torch.int32, device=self.device),
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
        if self.capacity is not None and (rows != 1).any():
            raise ValueError("row_starts: not one row of each sequence, wanted with a capacity")
        return starts, lengths, table

    def _padded(self, starts, lengths, table):
        """To the capacity; the table to a multiple of 16, so that no step compiles anew because
        its longest sequence is odd.
        """
        more, width = 0, max(table.shape[1], 1)
        if self.capacity is not None:
            more, width = self.capacity.sequences - len(lengths), self.capacity.pages
        if more < 0 or width < table.shape[1]:
            raise ValueError(f"block_table: shape {table.shape}, wanted at most {self.capacity}")
        starts = np.concatenate((starts, starts[-1] + np.arange(1, more + 1)))
        width = -(-width // ALIGN) * ALIGN
        table = np.pad(table, ((0, more), (0, width - table.shape[1])))
        return starts, np.pad(lengths, (0, more)), table

    def _items(self, starts, lengths, table):
        """[N, 2] sequence and split; [S] the first slot of those that have several."""
        splits = np.where(np.diff(starts) == 1, np.maximum(-(-lengths // self.config.split), 1), 0)
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
        room = [-(-array.size // ALIGN) * ALIGN for array in arrays.values()]
        places = np.cumsum([0, *room]).tolist()
        packed = np.zeros(places[-1], np.int32)
        for place, array in zip(places, arrays.values(), strict=False):
            packed[place : place + array.size] = array.ravel()
        if self._buffer is None or self.capacity is None:
            self._buffer = torch.empty(len(packed), dtype=torch.int32, device=self.device)
            self._parts = None
            self.parts()
        host = torch.from_numpy(packed)
        if self.device.type == "cuda":
            host = host.pin_memory()
        self._buffer.copy_(host, non_blocking=True)
        for place, (name, array) in zip(places, arrays.items(), strict=False):
            setattr(self, name, self._buffer[place : place + array.size].view(array.shape))


def _ragged(counts):
    """counts [S] -> of each of their sum: its s, its number within s."""
    owner = np.repeat(np.arange(len(counts)), counts)
    return owner, np.arange(len(owner)) - np.repeat(np.cumsum(counts) - counts, counts)


def _multiprocessors(device: torch.device) -> int:
    if device.type != "cuda":
        return 2  # the interpreter runs them one after another
    return torch.cuda.get_device_properties(device).multi_processor_count
