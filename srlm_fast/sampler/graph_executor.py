"""Running planned steps on a GPU: launched without waiting, decode steps as captured CUDA graphs.

A step's arrays go to the device in one transfer. Tokens that the host does not know yet are put in
from the draw of the step before, which never leaves the device for that. What was drawn comes back
behind an event; the host waits for it only after the next step has been launched.

A step in which every sequence has one row, and is drawn from once, is a decode step. Its kernels
are captured once for each bucket of sizes and then replayed; whatever differs from step to step
lies in buffers that stay where they are. Other steps are launched kernel by kernel.
"""

from __future__ import annotations

import time
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..kernels.attention_work import Capacity, PagedWork
from ..kernels.sample_tokens import sample_tokens
from ..model import Model
from .executor import LOGIT_ROWS, OF_SAMPLES, Drawn, OnHidden, parts
from .invariant import FEWEST_ROWS, invariant_matmuls
from .paged_triton import TritonCache, TritonContext
from .staging import Staged, padded

# Sequences of a captured decode step; finer steps would waste fewer rows and capture more often.
BUCKETS = (1, 2, 4, 8, 16, 32, 48, 64, 96, 128, 160, 192, 224, 256, 320, 384, 448, 512)
# What a padded row of a decode step holds where it is not 0.
FILL = {"slots": -1, "sample_rows": -1, "mask_rows": -1, "forced": -1, "temperature": 1.0}
SAMPLING = (
    "sample_rows",
    *OF_SAMPLES,
    "history",
    "history_starts",
    "banned",
    "banned_starts",
)


@dataclass
class Flight:
    """A launched step: its draw on its way to the host."""

    tokens: Tensor  # [N] on the host
    logprobs: Tensor
    started: Any  # events; None where there is no CUDA
    ended: Any


@dataclass
class Captured:
    graph: Any
    staged: Staged
    work: PagedWork
    logprobs: Tensor


class GraphExecutor:
    """Steps on a GPU; see above. deterministic: bits do not depend on a row's company."""

    ahead = 1

    def __init__(
        self,
        model: Model,
        cache: TritonCache,
        max_sequences: int,
        max_batch_tokens: int,
        deterministic: bool,
        attention: str = "triton",
    ) -> None:
        self.model, self.cache = model, cache
        self.deterministic, self.attention = deterministic, attention
        self.device = model.device
        self.on_cuda = self.device.type == "cuda"  # the tests run all but the graphs elsewhere
        # A decode step draws at most once a sequence, other steps once a row.
        self.room = max(max_sequences, max_batch_tokens)
        self.fewest_rows = FEWEST_ROWS if deterministic else 1
        self.last = torch.zeros(self.room, dtype=torch.int32, device=self.device)
        self.work = cache.work(deterministic)
        self.graphs: dict[tuple[int, ...], Captured] = {}
        self.pool = torch.cuda.graph_pool_handle() if self.on_cuda else None
        self.device_seconds = 0.0
        self.captures, self.capture_seconds = 0, 0.0

    # ---------------------------------------------------------------------------------- steps

    def launch(self, plan: Any, masks: Tensor | None, on_hidden: OnHidden | None = None) -> Flight:
        """Start the step that `plan` holds; what it needs of the plan is copied."""
        self._make_room(len(plan.sample_rows))
        with invariant_matmuls(self.model.dtype) if self.deterministic else nullcontext():
            if self.on_cuda and _is_decode(plan):
                logprobs, started = self._replay(plan, masks)
            else:
                logprobs, started = self._run(plan, masks, on_hidden)
        return self._send(len(plan.sample_rows), logprobs, started)

    def collect(self, flight: Flight) -> Drawn:
        """Wait for a launched step: its token_ids and logprobs."""
        if flight.ended is not None:
            flight.ended.synchronize()
            self.device_seconds += 1e-3 * flight.started.elapsed_time(flight.ended)
        return flight.tokens.numpy(), flight.logprobs.numpy()

    def _make_room(self, count: int) -> None:
        """One request alone may have more samples than otherwise run at once."""
        if count > len(self.last):
            more = torch.zeros(count - len(self.last), dtype=torch.int32, device=self.device)
            self.last = torch.cat((self.last, more))
            self.graphs.clear()  # they read and write the old place

    def _event(self) -> Any:
        if not self.on_cuda:
            return None
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def _send(self, count: int, logprobs: Tensor, started: Any) -> Flight:
        tokens = torch.empty(count, dtype=torch.int32, pin_memory=self.on_cuda)
        values = torch.empty(count, dtype=torch.float32, pin_memory=self.on_cuda)
        tokens.copy_(self.last[:count], non_blocking=True)
        values.copy_(logprobs[:count], non_blocking=True)
        return Flight(tokens, values, started, self._event())

    # ------------------------------------------------------------------------- kernel by kernel

    def _run(
        self, plan: Any, masks: Tensor | None, on_hidden: OnHidden | None
    ) -> tuple[Tensor, Any]:
        """-> logprobs [N], and when it began; the tokens are in `last`."""
        staged = Staged(self._rows(plan), self.device)
        self._copy(plan.copies)
        self.work.plan(plan.row_starts, plan.context_lengths, plan.block_table)
        started = self._event()
        hidden = self._hidden(staged, self.work)
        if on_hidden and len(plan.hidden_rows):
            places = torch.from_numpy(plan.hidden_rows.copy()).to(self.device)
            on_hidden(plan.hidden_ids.tolist(), plan.hidden_positions.tolist(), hidden[places])
        logprobs = torch.empty(len(plan.sample_rows), dtype=torch.float32, device=self.device)
        row = drawn = 0
        for part in parts(plan, LOGIT_ROWS):
            count, rows = len(part.sample_rows), len(part.logit_rows)
            wanted = staged.logit_rows[row : row + max(rows, self.fewest_rows)]
            logits = self._logits(hidden[wanted])
            flat = Staged({name: getattr(part, name) for name in SAMPLING}, self.device)
            self._sample(logits, flat, masks, drawn, logprobs[drawn : drawn + count])
            row, drawn = row + rows, drawn + count
        return logprobs, started

    def _rows(self, plan: Any) -> dict[str, np.ndarray]:
        """The arrays of the rows; padding behind them is row 0's token, written nowhere."""
        arrays = {}
        for name in ("token_ids", "positions", "slots"):
            array = getattr(plan, name)
            room = max(len(array), self.fewest_rows)
            arrays[name] = padded(array, room, FILL.get(name, 0))
        # Pieces of the head's rows may begin anywhere, so padding stands behind the last.
        room = len(plan.logit_rows) + self.fewest_rows
        arrays["logit_rows"] = padded(plan.logit_rows, room, 0)
        return arrays

    def _copy(self, copies: np.ndarray) -> None:
        if len(copies):
            self.cache.copy_pages(Staged({"copies": copies}, self.device).copies.long())

    def _hidden(self, staged: Staged, work: PagedWork) -> Tensor:
        """[T, D] after the final norm. Unknown tokens are those drawn last."""
        known = staged.token_ids
        drawn = self.last[(-1 - known).clamp(min=0)]
        context = TritonContext(self.cache, work, staged.slots, self.attention)
        return self.model(torch.where(known < 0, drawn, known), staged.positions, context)

    def _logits(self, hidden: Tensor) -> Tensor:
        """[U, V], in fp32 where the library can: rounded to 16 bits they would be off by up to a
        sixteenth at 20, and so would the log-probabilities.
        """
        if self.on_cuda and hidden.itemsize == 2 and self.model.parallel is None:
            return torch.mm(hidden, self.model.head.t(), out_dtype=torch.float32)
        return self.model.logits(hidden)

    def _sample(
        self, logits: Tensor, staged: Staged, masks: Tensor | None, first: int, out: Tensor
    ) -> None:
        """Into last[first:] and `out`."""
        s, tokens = staged, self.last[first : first + len(out)]
        sample_tokens(
            logits,
            s.sample_rows,
            s.temperature,
            s.top_k,
            s.top_p,
            s.min_p,
            s.repetition_penalty,
            s.noise_keys.view(torch.int64),
            s.sample_positions,
            s.history,
            s.history_starts,
            s.banned,
            s.banned_starts,
            masks,
            s.mask_rows,
            s.forced,
            tokens=tokens,
            logprobs=out,
        )

    # ----------------------------------------------------------------------------- as a graph

    def _replay(self, plan: Any, masks: Tensor | None) -> tuple[Tensor, Any]:
        """A decode step -> logprobs of its bucket, and when it began; the tokens are in `last`."""
        masks = masks if (plan.mask_rows >= 0).any() else None
        self._copy(plan.copies)
        key = self._bucket(plan, masks)
        arrays = _bucket_arrays(plan, key)
        captured = self.graphs.get(key)
        if captured is None:
            before = time.perf_counter()
            captured = self.graphs[key] = self._capture(plan, key, arrays, masks)
            self.captures += 1
            self.capture_seconds += time.perf_counter() - before
        captured.staged.put(arrays)
        captured.work.plan(plan.row_starts, plan.context_lengths, plan.block_table)
        started = self._event()
        captured.graph.replay()
        return captured.logprobs, started

    def _bucket(self, plan: Any, masks: Tensor | None) -> tuple[int, ...]:
        """Sizes: sequences, pages of a sequence, splits, history, banned; room of masks."""
        count, split = len(plan.sample_rows), self.work.config.split
        sequences = next(size for size in BUCKETS if size >= max(count, self.fewest_rows))
        splits = int((-(-plan.context_lengths // split)).sum()) + sequences - count
        sizes = (plan.block_table.shape[1], splits, len(plan.history), len(plan.banned))
        room = 0 if masks is None else len(masks)
        return (sequences, *(1 << (size - 1).bit_length() if size else 0 for size in sizes), room)

    def _capture(
        self, plan: Any, key: tuple[int, ...], arrays: dict[str, np.ndarray], masks: Tensor | None
    ) -> Captured:
        """Run once outside, so that everything is compiled and allocated; then capture."""
        staged = Staged(arrays, self.device)
        work = self.cache.work(self.deterministic, capacity=Capacity(*key[:3]))
        # Padding alone: nothing is written, whatever ran before.
        nothing = np.zeros(0, np.int32)
        work.plan(np.zeros(1, np.int32), nothing, np.zeros((0, 1), np.int32))
        staged.put({**arrays, "slots": np.full_like(arrays["slots"], -1)})
        logprobs = torch.empty(key[0], dtype=torch.float32, device=self.device)
        last = self.last.clone()

        def step() -> None:
            hidden = self._hidden(staged, work)
            self._sample(self._logits(hidden), staged, masks, 0, logprobs)

        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            step()
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self.pool):
            step()
        self.last.copy_(last)
        return Captured(graph, staged, work, logprobs)


def _is_decode(plan: Any) -> bool:
    """Whether every sequence has one row, which one sample is drawn from."""
    rows, drawn = len(plan.token_ids), len(plan.sample_rows)
    one_each = rows == len(plan.context_lengths) == len(plan.logit_rows) == drawn
    return one_each and not len(plan.hidden_rows) and drawn <= BUCKETS[-1]


def _bucket_arrays(plan: Any, key: tuple[int, ...]) -> dict[str, np.ndarray]:
    """The arrays of a decode step, filled up to its bucket."""
    sequences, _, _, history, banned, _ = key
    arrays = {}
    for name in ("token_ids", "positions", "slots", *SAMPLING):
        array = getattr(plan, name)
        if name in ("history", "banned"):
            arrays[name] = padded(array, history if name == "history" else banned, 0)
        elif name.endswith("_starts"):
            arrays[name] = padded(array, sequences + 1, array[-1])
        else:
            arrays[name] = padded(array, sequences, FILL.get(name, 0))
    return arrays
