"""Layers' matrices in int8 with a scale for each row: half of bf16's bytes on any device.

    scale = max_k |W_k| / 127,    weight_k = round(W_k / scale)

Only the weight is rounded: a layer multiplies in the dtype of x, with its matrix widened before,
which costs its bytes again each time. Trained through exactly, but for the arithmetic of the dtype.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from .quantised import QuantisedLinear

LIMIT = 127
SMALLEST = 1e-30
DTYPES = (torch.bfloat16, torch.float16, torch.float32, torch.float64)


class Int8Linear(QuantisedLinear):
    """y = x W^T + b with W [N, K] = weight scale, int8 and fp32."""

    stored = torch.int8
    title = "int8"

    @classmethod
    def check(cls, device: torch.device, dtype: torch.dtype) -> None:
        if dtype not in DTYPES or device.type == "meta":
            raise ValueError(f"model: {dtype} on {device}, wanted it on a GPU or a CPU")

    @classmethod
    def quantise(cls, rows: Tensor) -> tuple[Tensor, Tensor]:
        wide = rows.float()
        scale = wide.abs().amax(1, keepdim=True).clamp_min(SMALLEST) / LIMIT
        return (wide / scale).round_().to(torch.int8), scale

    def multiply(self, x: Tensor, weight: Tensor, scale: Tensor) -> Tensor:
        return F.linear(x, self.widened(weight, x.dtype)).mul_(scale.view(1, -1))
