"""Numbers as they are read."""

from __future__ import annotations

GB = 1e9


def size(value: float) -> str:
    """Bytes in a unit of three digits."""
    for unit, step in (("TB", 1e12), ("GB", GB), ("MB", 1e6)):
        if value >= step:
            return f"{value / step:.3g} {unit}"
    return f"{value / 1e3:.3g} kB"


def count(value: float) -> str:
    for unit, step in (("T", 1e12), ("B", 1e9), ("M", 1e6), ("k", 1e3)):
        if value >= step:
            return f"{value / step:.3g} {unit}"
    return f"{value:.0f}"


def clock(seconds: float) -> str:
    if seconds < 60:
        return f"{seconds:.1f} s" if seconds < 10 else f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
