"""An engine of the sampler's benchmark: what samples a work, and what one turn of it gives."""

from __future__ import annotations

import gc
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import torch

from benchmarks import harness
from benchmarks.sampler_work import Work

Prompts = Sequence[Sequence[int]]


@dataclass(frozen=True)
class Turn:
    """tokens: that were asked for and came. first: seconds until every prompt was computed. cpu:
    seconds of the process's own on all cores, which do not count what others took. peak_bytes:
    weights, cache and working memory. counts: the engine's own, of this turn. note: how the turn
    differs from the work.
    """

    tokens: int
    seconds: float
    first: float | None = None
    cpu: float | None = None
    peak_bytes: int | None = None
    counts: dict[str, float] = field(default_factory=dict)
    note: str = ""

    @property
    def rate(self) -> float:
        return self.tokens / self.seconds


class Engine:
    """Built from weights; raises where it cannot run."""

    settings: str = ""
    stops: bool = False  # whether a turn heeds its limit

    def greedy(self, prompts: Prompts, new: int) -> tuple[list[list[int]], list | None]:
        """The most probable tokens, and their log-probabilities where the engine has them."""
        raise NotImplementedError

    def turn(self, prompts: Prompts, work: Work, limit: float | None = None) -> Turn:
        """The work once, with these prompts; stopped after `limit` seconds if it can be."""
        raise NotImplementedError

    def prefill(self, prompts: Prompts) -> float | None:
        """Seconds to compute the prompts, for an engine whose turns do not tell."""
        return None

    def rest(self) -> None:
        """Give back what only a running engine needs."""

    def close(self) -> None:
        """Give everything back."""


class Clock:
    """Seconds since it was made, the device's work included."""

    def __init__(self, device: torch.device | str) -> None:
        self.device = torch.device(device).type
        harness.synchronize(self.device)
        self.begin = time.perf_counter()

    def __call__(self, wait: bool = True) -> float:
        if wait:
            harness.synchronize(self.device)
        return time.perf_counter() - self.begin


def measured_turn(
    engine: Engine,
    device: str,
    prompts: Prompts,
    work: Work,
    limit: float | None = None,
    baseline: int | None = None,
) -> Turn:
    """A turn with its peak of memory: on a GPU what the allocator handed out, on a CPU resident
    memory above `baseline`, without one none.
    """
    found: list[Turn] = []

    def call() -> None:
        own = time.process_time()
        turn = engine.turn(prompts, work, limit)
        own = time.process_time() - own
        found.append(replace(turn, cpu=own if device == "cpu" else None))

    if device == "cuda":
        gc.collect()
        torch.cuda.reset_peak_memory_stats()
        call()
        peak = torch.cuda.max_memory_allocated()
    elif baseline is None:
        call()
        peak = None
    else:
        peak = harness.peak_rss(call, above=baseline)
    return replace(found[0], peak_bytes=peak)
