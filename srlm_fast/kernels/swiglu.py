"""SwiGLU: y = silu(g) * u with [g, u] the halves of one fused projection (arXiv 2002.05202, eq. 6).

gate_up [..., 2F] -> [..., F] in the dtype of gate_up. With the sigmoid s = 1 / (1 + e^-g), for
silu(g) = g s, and the upstream gradient d of y,

    ds/dg = s (1 - s),   hence   dL/dg = d u s (1 + g (1 - s))
    dL/du = d g s

Triton, and on a CPU csrc/train_ops.cpp for fp32 and bf16: fp32 inside, one rounding at the end.
Backward keeps gate_up alone and computes s again; both read each value once and write each once.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from . import jit
from .contracts import check_tensor, once_differentiable, wants_graph
from .jit import tl, triton
from .native import native, runs_natively

DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)

# Columns a program and warps, the same for every architecture: 8 columns a thread, one load of 16
# bytes from either half. H200, D 8,192: backward at the speed of a copy; others not yet tried.
BLOCK, NUM_WARPS = 1024, 4


def swiglu_reference(gate_up: Tensor) -> Tensor:
    """gate_up [..., 2F] -> silu(gate_up[..., :F]) * gate_up[..., F:]."""
    gate, up = gate_up.chunk(2, dim=-1)
    return F.silu(gate) * up


@triton.jit
def _forward_kernel(gate_up_ptr, y_ptr, width, row_blocks, stride, BLOCK: tl.constexpr):
    row = (tl.program_id(0) // row_blocks).to(tl.int64)
    cols = tl.program_id(0) % row_blocks * BLOCK + tl.arange(0, BLOCK)
    mask = cols < width
    gate_up_ptr += row * stride + cols
    gate = tl.load(gate_up_ptr, mask=mask, other=0.0).to(tl.float32)
    up = tl.load(gate_up_ptr + width, mask=mask, other=0.0).to(tl.float32)
    y = gate / (1.0 + tl.exp(-gate)) * up
    tl.store(y_ptr + row * width + cols, y.to(y_ptr.dtype.element_ty), mask=mask)


@triton.jit
def _backward_kernel(
    grad_ptr, gate_up_ptr, out_ptr, width, row_blocks, grad_stride, stride, BLOCK: tl.constexpr
):
    row = (tl.program_id(0) // row_blocks).to(tl.int64)
    cols = tl.program_id(0) % row_blocks * BLOCK + tl.arange(0, BLOCK)
    mask = cols < width
    gate_up_ptr += row * stride + cols
    grad = tl.load(grad_ptr + row * grad_stride + cols, mask=mask, other=0.0).to(tl.float32)
    gate = tl.load(gate_up_ptr, mask=mask, other=0.0).to(tl.float32)
    up = tl.load(gate_up_ptr + width, mask=mask, other=0.0).to(tl.float32)
    sigmoid = 1.0 / (1.0 + tl.exp(-gate))
    grad_gate = grad * up * sigmoid * (1.0 + gate * (1.0 - sigmoid))
    grad_up = grad * gate * sigmoid
    out_ptr += row * (2 * width) + cols
    tl.store(out_ptr, grad_gate.to(out_ptr.dtype.element_ty), mask=mask)
    tl.store(out_ptr + width, grad_up.to(out_ptr.dtype.element_ty), mask=mask)


def _rows(x: Tensor) -> Tensor:
    """[N, width], columns side by side; rows of a wider matrix are not copied."""
    if x.ndim != 2:
        x = x.reshape(-1, x.shape[-1])
    return x if x.stride(1) == 1 else x.contiguous()


def _launch_forward(gate_up):
    width = gate_up.shape[-1] // 2
    y = gate_up.new_empty(*gate_up.shape[:-1], width)
    if y.numel():
        rows, row_blocks = _rows(gate_up), jit.cdiv(width, BLOCK)
        if not jit.runs_triton(gate_up):
            shape = (rows.shape[0], width, rows.dtype == torch.bfloat16)
            native().swiglu_forward(shape, rows.data_ptr(), rows.stride(0), y.data_ptr())
            return y
        _forward_kernel[(rows.shape[0] * row_blocks,)](
            rows, y, width, row_blocks, rows.stride(0), BLOCK=BLOCK, num_warps=NUM_WARPS
        )
    return y


def _launch_backward(grad, gate_up):
    width = grad.shape[-1]
    out = gate_up.new_empty(gate_up.shape)
    if out.numel():
        grad, rows, row_blocks = _rows(grad), _rows(gate_up), jit.cdiv(width, BLOCK)
        if not jit.runs_triton(gate_up):
            shape = (rows.shape[0], width, rows.dtype == torch.bfloat16)
            both = (grad.data_ptr(), grad.stride(0), rows.data_ptr(), rows.stride(0))
            native().swiglu_backward(shape, *both, out.data_ptr())
            return out
        _backward_kernel[(rows.shape[0] * row_blocks,)](
            grad, rows, out, width, row_blocks, grad.stride(0), rows.stride(0),
            BLOCK=BLOCK, num_warps=NUM_WARPS,
        )  # fmt: skip
    return out


class _SwiGLU(torch.autograd.Function):
    @staticmethod
    def forward(ctx, gate_up):
        ctx.save_for_backward(gate_up)
        return _launch_forward(gate_up)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        return _launch_backward(grad, *ctx.saved_tensors)


@jit.on_its_device
def swiglu(gate_up: Tensor) -> Tensor:
    """gate_up [..., 2F] -> [..., F] in the dtype of gate_up. Differentiable once.

    Raises ValueError naming the argument: an odd width, a dtype, a DTensor.
    """
    check_tensor("gate_up", gate_up, getattr(gate_up, "shape", ()) or ("...", "2F"), DTYPES)
    if gate_up.shape[-1] % 2:
        raise ValueError(f"gate_up: width {gate_up.shape[-1]}, wanted an even one")
    in_triton = jit.runs_triton(gate_up)
    if gate_up.dtype == torch.float64 or not (in_triton or runs_natively(gate_up)):
        return swiglu_reference(gate_up)
    return _SwiGLU.apply(gate_up) if wants_graph(gate_up) else _launch_forward(gate_up)
