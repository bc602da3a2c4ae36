"""A run that ends by itself, and the counted reasons it gives."""

from __future__ import annotations

from collections.abc import Mapping


class StoppedError(RuntimeError):
    """The run stopped by itself; the message says why, `counts` how often, by reason."""

    def __init__(self, message: str, **counts: Mapping[str, int]) -> None:
        super().__init__(message)
        self.counts = {name: dict(found) for name, found in counts.items()}


def reasons(counts: Mapping[str, int]) -> str:
    """Counts by reason as words: "too short 3, duplicate 1"."""
    found = [f"{name.replace('_', ' ')} {count}" for name, count in counts.items() if count]
    return ", ".join(found) or "nothing was counted"
