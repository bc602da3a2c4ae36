"""Times and memory of a variant's steps, within its process."""

from __future__ import annotations

import contextlib
import gc
import time
from pathlib import Path
from typing import Any

import torch

from benchmarks import harness


class StepClock:
    """`begin` before training, `tick` at each step's end with its loss; `result` afterwards."""

    def __init__(self, device: str) -> None:
        self.device = device
        self.marks: list[tuple[float, float]] = []  # wall, CPU
        self.losses: list[float] = []

    def begin(self) -> None:
        """What has been used up to now, for loading the model, does not count as peak memory."""
        gc.collect()
        if self.device == "cuda":
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
        else:
            harness._trim()
            with contextlib.suppress(OSError):  # refused: then of the process's whole life
                Path("/proc/self/clear_refs").write_text("5")
        self._mark()

    def tick(self, loss: float | None) -> None:
        self._mark()
        if loss is not None:
            self.losses.append(float(loss))

    def _mark(self) -> None:
        harness.synchronize(self.device)
        self.marks.append((time.perf_counter(), time.process_time()))

    def result(self) -> dict[str, Any]:
        """Seconds of each step but the first, which allocates; bytes, all that the process holds on
        a CPU, all that tensors hold on a GPU.
        """
        steps = list(zip(self.marks[1:], self.marks[2:], strict=False))
        on_gpu = self.device == "cuda"
        peak = torch.cuda.max_memory_allocated() if on_gpu else harness._status("VmHWM")
        return {
            "seconds": [after[0] - before[0] for before, after in steps],
            "cpu_seconds": [after[1] - before[1] for before, after in steps],
            "losses": self.losses,
            "peak_bytes": peak,
        }
