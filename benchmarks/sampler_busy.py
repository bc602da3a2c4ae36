"""The share of the time in which a GPU has something to do."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch


def busy_share(call: Callable[[], Any], last: float) -> float | None:
    """Kernels' and copies' time, overlaps counted once, in the last so many seconds of what the
    device does in the call; None where the profiler saw nothing.
    """
    try:
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
            call()
            torch.cuda.synchronize()
        device = torch.autograd.DeviceType.CUDA
        spans = [
            (event.start_ns(), event.start_ns() + event.duration_ns())
            for event in profile.profiler.kineto_results.events()
            if event.device_type() == device
        ]
    except Exception:  # a profiler that is not there or breaks costs a figure, not the run
        return None
    return covered(spans, 1e9 * last)


def covered(spans: Iterable[tuple[float, float]], last: float) -> float | None:
    """The part of the last so long before the last end that lies in one of the spans."""
    spans = sorted(spans)
    if not spans or last <= 0:
        return None
    stop = max(end for _, end in spans)
    inside, place = 0.0, max(stop - last, spans[0][0])
    whole = stop - place
    for start, end in spans:
        inside += max(0.0, end - max(start, place))
        place = max(place, end)
    return inside / whole if whole else None
