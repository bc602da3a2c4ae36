"""SwiGLU: y = silu(g) * u with [g, u] the halves of one fused projection (arXiv 2002.05202, eq. 6).

gate_up [..., 2F] -> [..., F] in the dtype of gate_up.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor


def swiglu_reference(gate_up: Tensor) -> Tensor:
    """gate_up [..., 2F] -> silu(gate_up[..., :F]) * gate_up[..., F:]."""
    gate, up = gate_up.chunk(2, dim=-1)
    return F.silu(gate) * up


def swiglu(gate_up: Tensor) -> Tensor:
    """gate_up [..., 2F] -> [..., F]. Raises ValueError on an odd width."""
    if gate_up.shape[-1] % 2:
        raise ValueError(f"gate_up: width {gate_up.shape[-1]}, wanted an even one")
    return swiglu_reference(gate_up)
