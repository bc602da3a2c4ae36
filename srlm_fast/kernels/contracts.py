"""The checks that public kernel functions share. They raise ValueError: argument, found, wanted."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import wraps
from numbers import Real
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad


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
    if value.layout != torch.strided:
        raise ValueError(f"{name}: layout {value.layout}, wanted a dense tensor")
    # Equal first: these checks are host time of every launch.
    if value.shape != shape and not _fits(value.shape, shape):
        wanted = ", ".join(map(str, shape))
        raise ValueError(f"{name}: shape {list(value.shape)}, wanted [{wanted}]")
    if value.dtype not in dtypes:
        wanted = " or ".join(str(dtype).removeprefix("torch.") for dtype in dtypes)
        raise ValueError(f"{name}: {str(value.dtype).removeprefix('torch.')}, wanted {wanted}")
    if device is None and value.is_meta:
        raise ValueError(f"{name}: on meta, wanted a tensor with values")
    if device is not None and value.device != device:
        raise ValueError(f"{name}: on {value.device}, wanted {device}")


def _fits(found: Sequence[int], shape: Sequence[int | str]) -> bool:
    if len(found) != len(shape):
        return False
    for size, want in zip(found, shape, strict=True):
        if size != want and not isinstance(want, str):
            return False
    return True


def check_number(
    name: str, value: Any, wanted: str, fits: Callable[[Any], bool], integer: bool = False
) -> None:
    """A Python number, finite, that fits; no tensor, whose gradient would be lost."""
    kind = int if integer else Real
    good = isinstance(value, kind) and not isinstance(value, bool) and math.isfinite(value)
    if not (good and fits(value)):
        shown = type(value).__name__ if isinstance(value, Tensor) else repr(value)
        raise ValueError(f"{name}: {shown}, wanted {wanted}")


def wants_graph(*tensors: Tensor) -> bool:
    """Whether autograd must hear of what is made of them; otherwise a launch is all there is."""
    if torch.is_grad_enabled():
        for tensor in tensors:
            if tensor.requires_grad:
                return True
    # Forward mode goes through a Function too, which refuses it.
    return forward_ad._current_level >= 0


def once_differentiable(backward: Callable[..., Any]) -> Callable[..., Any]:
    """A backward pass without one of its own, which refuses create_graph.

    PyTorch's decorator of this name refuses only where the upstream gradient needs a gradient, and
    otherwise leaves the second derivative out silently.
    """

    @wraps(backward)
    def first(ctx: Any, *grads: Tensor | None) -> Any:
        if torch.is_grad_enabled():
            raise RuntimeError("found create_graph=True, wanted first derivatives only")
        return backward(ctx, *grads)

    return first
