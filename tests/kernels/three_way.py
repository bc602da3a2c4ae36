"""Three results per case: fp64 truth, eager PyTorch in the case's dtype, ours in the same dtype."""

from __future__ import annotations

from torch import Tensor


def assert_no_worse(ours: Tensor, eager: Tensor, truth: Tensor, floor: float, name: str) -> None:
    """Our largest error may be at most twice eager's, plus the floor."""
    error, allowed = (ours.double() - truth).abs(), (eager.double() - truth).abs()
    limit = 2 * float(allowed.max()) + floor
    worst = int(error.nan_to_num(float("inf")).argmax())
    values = [float(t.double().flatten()[worst]) for t in (ours, eager, truth)]
    assert float(error.max()) <= limit, (
        f"{name}: error {float(error.max()):.3g} > {limit:.3g} at flat index {worst}: "
        f"ours {values[0]!r}, eager {values[1]!r}, truth {values[2]!r}"
    )
