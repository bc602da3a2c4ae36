"""A mean and how sure it is."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from scipy.special import stdtrit


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
