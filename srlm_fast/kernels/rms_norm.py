"""RMSNorm: y = x / sqrt(mean(x^2) + eps) * w   (arXiv 1910.07467, eq. 4).

x [..., D], w [D]. The mean and the division are in fp32, the product with w in the dtype of x, as
Llama does.
"""

from __future__ import annotations

import torch
from torch import Tensor


def rms_norm_reference(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """x [..., D], weight [D] -> [..., D] in the dtype of x."""
    wide = x.float() if x.dtype in (torch.float16, torch.bfloat16) else x
    scale = torch.rsqrt(wide.square().mean(-1, keepdim=True) + eps)
    return weight * (wide * scale).to(x.dtype)


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """x [..., D], weight [D] -> [..., D] in the dtype of x. Raises ValueError when the widths
    differ.
    """
    if x.shape[-1] != weight.shape[0]:
        raise ValueError(f"weight: width {weight.shape[0]}, wanted {x.shape[-1]} as in x")
    return rms_norm_reference(x, weight, eps)
