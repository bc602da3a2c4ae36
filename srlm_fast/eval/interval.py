"""A mean, a ratio or a share, and how sure it is."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import numpy as np
from scipy.special import stdtrit
from scipy.stats import binomtest


def mean_interval(values: Iterable[float], confidence: float = 0.95) -> tuple[float, float, float]:
    """(mean, low, high): Student's t interval of the mean.

    values: one per prompt, so that several answers to one prompt do not pass for independent ones.
    One value, or
    equal ones, have no spread to measure: low and high are the mean. Raises ValueError for none, or
    one not finite.
    """
    data = np.asarray(list(values), dtype=np.float64)
    if not data.size or not np.isfinite(data).all():
        raise ValueError(f"values: {data.size} of them, wanted at least one and all finite")
    mean = float(data.mean())
    if data.size < 2 or (data == data[0]).all():
        return mean, mean, mean
    error = float(data.std(ddof=1)) / data.size**0.5
    half = float(stdtrit(data.size - 1, (1 + confidence) / 2)) * error
    return mean, mean - half, mean + half


def ratio_interval(
    sums: Sequence[tuple[float, int]], confidence: float = 0.95
) -> list[float] | None:
    """[low, high] inside [0, 1] of the ratio sum(part) / sum(whole); None for fewer than two.

    sums: (part, whole) of each prompt; prompts are the sample, since what stands in one hangs
    together. Linearised: the error of the ratio is that of sum(part - ratio * whole), Student's t.
    Where every prompt has the same share that shows no spread at all: then up to the share q of
    prompts that none of n leaves possible (Wilson's) may have any other, [ratio (1 - q), ratio
    (1 - q) + q], which is Wilson's own interval for a ratio of 0 or 1.
    """
    sums = [(part, whole) for part, whole in sums if whole]
    if len(sums) < 2:
        return None
    parts, total = (sum(column) for column in zip(*sums, strict=True))
    ratio = parts / total
    if all(part * total == parts * whole for part, whole in sums):
        q = 1 - wilson(len(sums), len(sums), confidence)[0]
        return [ratio * (1 - q), ratio * (1 - q) + q]
    squares = math.fsum((part - ratio * whole) ** 2 for part, whole in sums)
    error = math.sqrt(squares * len(sums) / (len(sums) - 1)) / total
    half = float(stdtrit(len(sums) - 1, (1 + confidence) / 2)) * error
    return [max(ratio - half, 0.0), min(ratio + half, 1.0)]


def share_interval(count: int, n: int, confidence: float = 0.95) -> list[float] | None:
    """Wilson's [low, high] of the share count / n of independent cases; None for fewer than two."""
    return wilson(count, n, confidence) if n > 1 else None


def wilson(count: int, n: int, confidence: float) -> list[float]:
    found = binomtest(count, n).proportion_ci(confidence, method="wilson")
    return [float(found.low), float(found.high)]
