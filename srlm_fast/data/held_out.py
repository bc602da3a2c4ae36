"""How much of what a user gives is held out where nothing was given to measure on."""

from __future__ import annotations

HELD_OUT_SHARE = 0.1


def held_out_count(prompts: int, most: int) -> int:
    """Of different prompts: a tenth, at most `most`, at least one where two are there."""
    return min(most, max(1, round(prompts * HELD_OUT_SHARE))) if prompts > 1 else 0
