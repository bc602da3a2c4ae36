"""Rotary position embedding (arXiv 2104.09864, eq. 34, in the half-split layout that Llama
checkpoints use).

For head x [K] at position p with angles a_i = p * f_i, i < K/2:
    y[i]       = x[i] * cos a_i - x[i + K/2] * sin a_i
    y[i + K/2] = x[i + K/2] * cos a_i + x[i] * sin a_i
Angles, cosines and sines are fp32; the product is taken in the dtype of x, as transformers does.
"""

from __future__ import annotations

import torch
from torch import Tensor


def rope_angles(
    positions: Tensor, frequencies: Tensor, scale: float = 1.0
) -> tuple[Tensor, Tensor]:
    """positions [T] int64, frequencies [K/2] fp32 -> cos, sin [T, K/2] fp32, both times `scale`."""
    angles = positions.to(torch.float32)[:, None] * frequencies[None, :]
    return angles.cos() * scale, angles.sin() * scale


def rope_reference(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """x [T, H, K], cos and sin [T, K/2] -> [T, H, K] in the dtype of x."""
    c, s = cos.to(x.dtype)[:, None, :], sin.to(x.dtype)[:, None, :]
    first, second = x.chunk(2, dim=-1)
    return torch.cat((first * c - second * s, second * c + first * s), dim=-1)


def rope(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """x [T, H, K], cos and sin [T, K/2] -> [T, H, K]. Raises ValueError when the shapes do not
    match.
    """
    wanted = (x.shape[0], x.shape[-1] // 2)
    if cos.shape != wanted or sin.shape != wanted:
        raise ValueError(f"cos, sin: {tuple(cos.shape)}, {tuple(sin.shape)}, wanted {wanted}")
    return rope_reference(x, cos, sin)
