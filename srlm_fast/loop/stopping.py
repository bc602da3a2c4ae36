"""A run that ends by itself, and the counted reasons it gives."""

from __future__ import annotations

from collections.abc import Mapping


class StoppedError(RuntimeError):
    """The run stopped by itself; the message says why, `counts` how often, by reason."""

    def __init__(self, message: str, **counts: Mapping[str, int]) -> None:
        super().__init__(message)
        self.counts = {name: dict(found) for name, found in counts.items()}


def cure(statuses: Mapping[str, int], max_tokens: int) -> str:
    """What lets judgements end where most were cut at `max_tokens`, as words to go on with."""
    if 2 * statuses.get("truncated", 0) <= sum(statuses.values()):
        return ""
    return f"; most judgements were cut at --judge-max-tokens {max_tokens}, wanted more of them"


def reasons(counts: Mapping[str, int]) -> str:
    """Counts by reason as words: "too short 3, duplicate 1"."""
    found = [f"{name.replace('_', ' ')} {count}" for name, count in counts.items() if count]
    return ", ".join(found) or "nothing was counted"
