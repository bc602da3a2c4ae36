"""A run that ends by itself, and the counted reasons it gives."""

from __future__ import annotations

from collections.abc import Mapping


class StoppedError(RuntimeError):
    """The run stopped by itself; the message says why."""


def reasons(counts: Mapping[str, int]) -> str:
    """Counts by reason as words: "too short 3, duplicate 1"."""
    found = [f"{name.replace('_', ' ')} {count}" for name, count in counts.items() if count]
    return ", ".join(found) or "nothing was counted"
