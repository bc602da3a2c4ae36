"""The share of the time in which a GPU has something to do."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch


def busy_share(call: Callable[[], Any]) -> float | None:
    """Kernels' and copies' time, overlaps counted once, between the first one's begin and the last
    one's end; None where the profiler saw nothing.
    """
    activities = [torch.profiler.ProfilerActivity.CUDA]
    try:
        with torch.profiler.profile(activities=activities) as profile:
            call()
            torch.cuda.synchronize()
        events = profile.profiler.kineto_results.events()
        device = torch.autograd.DeviceType.CUDA
        spans = [
            (e.start_ns(), e.start_ns() + e.duration_ns())
            for e in events
            if e.device_type() == device
        ]
    except (RuntimeError, AttributeError):
        return None
    return covered(spans)


def covered(spans: Iterable[tuple[float, float]]) -> float | None:
    """The part of first begin to last end that lies in one of the spans."""
    spans = sorted(spans)
    if not spans:
        return None
    inside, end = 0.0, spans[0][0]
    for start, stop in spans:
        inside += max(0.0, stop - max(start, end))
        end = max(end, stop)
    whole = end - spans[0][0]
    return inside / whole if whole else None
