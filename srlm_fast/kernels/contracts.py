"""The check that public kernel functions share. Raises ValueError: argument, found, wanted."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def check_tensor(
    name: str,
    value: Tensor,
    shape: Sequence[int | str],
    dtypes: Sequence[torch.dtype],
    device: torch.device | None = None,
) -> None:
    """`shape` holds sizes to match, or a letter where any size will do."""
    if not isinstance(value, Tensor):
        raise ValueError(f"{name}: {type(value).__name__}, wanted a tensor")
    # By its name: importing DTensor to compare with it costs more than all that this module does.
    if type(value).__name__ == "DTensor":
        raise ValueError(f"{name}: a DTensor, wanted this rank's plain tensor (to_local())")
    found = tuple(value.shape)
    fits = len(found) == len(shape) and all(
        isinstance(want, str) or size == want for size, want in zip(found, shape, strict=True)
    )
    if not fits:
        raise ValueError(f"{name}: shape {list(found)}, wanted [{', '.join(map(str, shape))}]")
    if value.dtype not in dtypes:
        wanted = " or ".join(str(dtype).removeprefix("torch.") for dtype in dtypes)
        raise ValueError(f"{name}: {str(value.dtype).removeprefix('torch.')}, wanted {wanted}")
    if device is not None and value.device != device:
        raise ValueError(f"{name}: on {value.device}, wanted {device}")
