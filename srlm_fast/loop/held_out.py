"""Pairs of a round that are evaluated while the rest is learnt from."""

from __future__ import annotations

import random
from collections.abc import Sequence


def held_out_prompts(prompt_ids: Sequence[str], share: float, seed: int) -> set[str]:
    """`share` of the different prompts, drawn by `seed`: at least one, and never all of them."""
    prompts = sorted(set(prompt_ids))
    if not share or len(prompts) < 2:
        return set()
    count = min(max(1, round(share * len(prompts))), len(prompts) - 1)
    return set(random.Random(seed).sample(prompts, count))
