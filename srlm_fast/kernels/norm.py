"""The Euclidean norm of a tensor of any precision, summed in one of fp32 or more.

On a CPU fp32 and bf16 are read once: squares are added up in fp32 by blocks of 4,096 elements, the
blocks in fp64, in order, so the bits do not depend on the number of threads.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from .native import native, runs_natively


def norm(x: Tensor) -> Tensor:
    """-> scalar, fp32 (fp64 for fp64); inf and NaN where x has them. A DTensor gives a DTensor."""
    if not (runs_natively(x) and x.is_contiguous()):
        return torch.linalg.vector_norm(x, dtype=torch.promote_types(x.dtype, torch.float32))
    squares = native().sum_of_squares(x.data_ptr(), x.dtype == torch.bfloat16, x.numel())
    return torch.tensor(math.sqrt(squares))
