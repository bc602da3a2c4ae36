"""RMSNorm: y = x / sqrt(mean(x^2) + eps) * w   (arXiv 1910.07467, eq. 4), and the same of a sum.

x [..., D], w [D]. The mean and the division are in fp32, the product with w in the dtype of x, as
Llama does. With r = 1 / sqrt(mean(x^2) + eps), n = r x and the upstream gradient g of y,

    dL/dw_j = sum over rows of g_j n_j
    dr/dx_j = -r^3 x_j / D,    hence
    dL/dx_j = sum_i g_i w_i dn_i/dx_j = r (g_j w_j - n_j mean_i(g_i w_i n_i))

The residual form norms s = x + residual (rounded to their dtype) and returns s beside y. With the
upstream gradient h of s, dL/dx = dL/dresidual = dL/ds + h.

Triton: one read of x and one write of y forward, x, g and the gradient once each backward; fp32
inside, n rounded before it meets w. Backward keeps x (or s, an output anyhow) and r, 4 bytes a row.
Each program adds up dL/dw of its rows in registers, a second pass adds the programs up, in order:
no atomics, so the same bits every time.

CPU, fp32 and bf16: the same in csrc/train_ops.cpp, dL/dw by blocks of 64 rows, so that its bits do
not depend on the number of threads. With and without a gradient the results have the same bits.
"""

from __future__ import annotations

from functools import cache

import torch
from torch import Tensor

from . import jit
from .contracts import check_tensor, once_differentiable, wants_graph
from .jit import tl, triton
from .native import native, runs_natively

DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
# A row is held in one program's registers: 16,384 values of 16 bits, 8,192 of 32. Wider ones run in
# PyTorch.
MAX_ROW_BYTES = 32768


def rms_norm_reference(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """x [..., D], weight [D] -> [..., D] in the dtype of x."""
    wide = x.float() if x.dtype in (torch.float16, torch.bfloat16) else x
    scale = torch.rsqrt(wide.square().mean(-1, keepdim=True) + eps)
    return weight * (wide * scale).to(x.dtype)


def rms_norm_residual_reference(
    x: Tensor, residual: Tensor, weight: Tensor, eps: float
) -> tuple[Tensor, Tensor]:
    """x, residual [..., D], weight [D] -> the norm of their sum, their sum."""
    total = x + residual
    return rms_norm_reference(total, weight, eps), total


# Streaming multiprocessors by arch, for as many programs backward as run at once: 32 warps an SM,
# hence 64 registers a thread. Correct on an H200, not yet tuned there.
_SMS = {80: 108, 90: 132, 100: 148}
_WARPS_PER_SM = 32


@cache
def _tile(width: int) -> tuple[int, int, int]:
    """Rows a program holds at a time, their width padded to a power of two, warps: 8 or 16 values
    a thread.
    """
    block = max(jit.power_of_2(width), 16)
    return max(1024 // block, 1), block, min(max(block // 512, 4), 32)


def _num_programs(num_tiles: int, num_warps: int) -> int:
    return min(num_tiles, _sms(jit.arch()) * (_WARPS_PER_SM // num_warps))


@cache
def _sms(arch: int) -> int:
    return _SMS[max(key for key in _SMS if key <= max(arch, 80))]


def _registers(x: Tensor) -> int | None:
    """No limit where it would spill: fp32, rows that do not begin at 32 bytes, sm_100."""
    fits = x.itemsize == 2 and x.shape[-1] % 16 == 0 and jit.arch() < 100
    return 64 if fits else None


@triton.jit
def _forward_kernel(
    x_ptr, residual_ptr, weight_ptr, y_ptr, total_ptr, rstd_ptr,
    eps,
    num_rows, width, inner,
    x_outer, x_inner, residual_outer, residual_inner,
    HAS_RESIDUAL: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    # Two-dimensional from the start: a vector would be laid out anew before it meets a tile.
    rows = tl.program_id(0) * ROWS + tl.arange(0, ROWS)[:, None]
    outer, within = (rows // inner).to(tl.int64), (rows % inner).to(tl.int64)
    cols = tl.arange(0, BLOCK)[None, :]
    live, inside = rows < num_rows, cols < width
    at = outer * x_outer + within * x_inner + cols
    dense = rows.to(tl.int64) * width + cols
    dtype = y_ptr.dtype.element_ty

    x = tl.load(x_ptr + at, mask=live & inside, other=0.0)
    if HAS_RESIDUAL:
        at = outer * residual_outer + within * residual_inner + cols
        residual = tl.load(residual_ptr + at, mask=live & inside, other=0.0)
        x = (x.to(tl.float32) + residual.to(tl.float32)).to(dtype)
        tl.store(total_ptr + dense, x, mask=live & inside)
    x = x.to(tl.float32)
    rstd = tl.rsqrt(tl.sum(x * x, axis=1, keep_dims=True) / width + eps)
    tl.store(rstd_ptr + rows, rstd, mask=live)
    weight = tl.load(weight_ptr + cols, mask=inside, other=0.0).to(tl.float32)
    y = (x * rstd).to(dtype).to(tl.float32) * weight
    tl.store(y_ptr + dense, y.to(dtype), mask=live & inside)


@triton.jit
def _backward_kernel(
    grad_ptr, grad_total_ptr, x_ptr, weight_ptr, rstd_ptr, out_ptr, parts_ptr,
    num_rows, width, inner, num_tiles,
    grad_outer, grad_inner, total_outer, total_inner, x_outer, x_inner,
    HAS_GRAD_TOTAL: tl.constexpr, HAS_PARTS: tl.constexpr,
    ROWS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    own_rows = tl.arange(0, ROWS)[:, None]
    cols = tl.arange(0, BLOCK)[None, :]
    inside = cols < width
    parts = tl.zeros((ROWS, BLOCK), tl.float32)
    for tile in range(tl.program_id(0), num_tiles, tl.num_programs(0)):
        rows = tile * ROWS + own_rows
        live = rows < num_rows
        outer, within = (rows // inner).to(tl.int64), (rows % inner).to(tl.int64)
        at = outer * x_outer + within * x_inner + cols
        x = tl.load(x_ptr + at, mask=live & inside, other=0.0).to(tl.float32)
        at = outer * grad_outer + within * grad_inner + cols
        grad = tl.load(grad_ptr + at, mask=live & inside, other=0.0).to(tl.float32)
        rstd = tl.load(rstd_ptr + rows, mask=live, other=0.0)

        normed = x * rstd
        if HAS_PARTS:
            parts += grad * normed
        # Read in every round: held in registers it would halve the programs that run at once.
        grad *= tl.load(weight_ptr + cols, mask=inside, other=0.0).to(tl.float32)
        shared = tl.sum(grad * normed, axis=1, keep_dims=True) / width
        out = rstd * (grad - normed * shared)
        if HAS_GRAD_TOTAL:
            at = outer * total_outer + within * total_inner + cols
            out += tl.load(grad_total_ptr + at, mask=live & inside, other=0.0).to(tl.float32)
        out = out.to(out_ptr.dtype.element_ty)
        tl.store(out_ptr + rows.to(tl.int64) * width + cols, out, mask=live & inside)
    if HAS_PARTS:
        parts_ptr += tl.program_id(0).to(tl.int64) * width
        tl.store(parts_ptr + cols, tl.sum(parts, axis=0, keep_dims=True), mask=inside)


def _dense(x: Tensor) -> Tensor:
    """Columns side by side, at most three dimensions: a copy only where there are others."""
    if x.is_contiguous() or (x.ndim <= 3 and x.stride(-1) == 1):
        return x
    return x.contiguous()


def _layout(*tensors: Tensor) -> list[int]:
    """inner, and two strides of each tensor: row i begins at i // inner and i % inner times them.

    Of `_dense` tensors of one shape. Computed, since a view costs the host more than a launch can.
    """
    shape = tensors[0].shape
    if all(x.is_contiguous() for x in tensors):
        return [1, *(shape[-1], 0) * len(tensors)]
    layout = [shape[1] if len(shape) == 3 else 1]
    for x in tensors:
        layout += (*x.stride()[:-1], 0)[:2]
    return layout


def _launch_forward(x, residual, weight, eps):
    """-> y, x + residual (x itself without one), r [N]; the first two in the shape of x."""
    y, width = x.new_empty(x.shape), x.shape[-1]
    total = x if residual is None else x.new_empty(x.shape)
    # What is absent gets a place of something that is there: the kernel does not look at it.
    x = _dense(x)
    residual_in = x if residual is None else _dense(residual)
    num_rows = x.numel() // width
    rstd = x.new_empty(num_rows, dtype=torch.float32)
    inner, *strides = _layout(x, residual_in)
    if not jit.runs_triton(x):
        native().rms_norm_forward(
            (num_rows, width, x.dtype == torch.bfloat16),
            (x.data_ptr(), inner, *strides[:2]),
            (0 if residual is None else residual_in.data_ptr(), inner, *strides[2:]),
            *(weight.data_ptr(), eps, y.data_ptr(), total.data_ptr(), rstd.data_ptr()),
        )
        return y, total, rstd
    rows, block, num_warps = _tile(width)
    _forward_kernel[(jit.cdiv(num_rows, rows),)](
        x, residual_in, weight, y, total, rstd,
        eps,
        num_rows, width, inner, *strides,
        HAS_RESIDUAL=residual is not None, ROWS=rows, BLOCK=block, num_warps=num_warps,
    )  # fmt: skip
    return y, total, rstd


def _launch_backward(grad, grad_total, x, weight, rstd, needs_weight):
    """-> dL/dx in the shape of x; dL/dw, or None."""
    out, num_rows, width = x.new_empty(x.shape), rstd.shape[0], x.shape[-1]
    x, grad = _dense(x), _dense(grad)
    total = grad if grad_total is None else _dense(grad_total)
    inner, *strides = _layout(grad, total, x)
    if not jit.runs_triton(x):
        grad_weight = rstd.new_empty(width) if needs_weight else None
        native().rms_norm_backward(
            (num_rows, width, x.dtype == torch.bfloat16),
            (grad.data_ptr(), inner, *strides[:2]),
            (0 if grad_total is None else total.data_ptr(), inner, *strides[2:4]),
            (x.data_ptr(), inner, *strides[4:]),
            *(weight.data_ptr(), rstd.data_ptr(), out.data_ptr()),
            0 if grad_weight is None else grad_weight.data_ptr(),
        )
        return out, None if grad_weight is None else grad_weight.to(weight.dtype)
    rows, block, num_warps = _tile(width)
    num_tiles = jit.cdiv(num_rows, rows)
    num_programs = _num_programs(num_tiles, num_warps)
    parts = rstd.new_empty(num_programs if needs_weight else 0, width)
    _backward_kernel[(num_programs,)](
        grad, total, x, weight, rstd, out, parts,
        num_rows, width, inner, num_tiles, *strides,
        HAS_GRAD_TOTAL=grad_total is not None, HAS_PARTS=needs_weight,
        ROWS=rows, BLOCK=block, num_warps=num_warps, maxnreg=_registers(x),
    )  # fmt: skip
    return out, parts.sum(0).to(weight.dtype) if needs_weight else None


class _RmsNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, weight, eps):
        y, _, rstd = _launch_forward(x, None, weight, eps)
        ctx.save_for_backward(x, weight, rstd)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        x, weight, rstd = ctx.saved_tensors
        return *_launch_backward(grad, None, x, weight, rstd, ctx.needs_input_grad[1]), None


class _RmsNormResidual(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, residual, weight, eps):
        y, total, rstd = _launch_forward(x, residual, weight, eps)
        ctx.save_for_backward(total, weight, rstd)
        ctx.set_materialize_grads(False)  # zeros would be read from memory
        return y, total

    @staticmethod
    @once_differentiable
    def backward(ctx, grad, grad_total):
        total, weight, rstd = ctx.saved_tensors
        if grad is None:
            return grad_total, grad_total, None, None
        out, grad_weight = _launch_backward(
            grad, grad_total, total, weight, rstd, ctx.needs_input_grad[2]
        )
        return out, out, grad_weight, None


@jit.on_its_device
def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """x [..., D], weight [D] of the same dtype -> [..., D] in that dtype.

    Differentiable once. Rows may be strided as they like, also [T, H, D] cut out of a
    wider [T, *]. No rows: no rows, and a weight gradient of 0. Raises ValueError naming the
    argument: a shape or a device that does not fit, a dtype, a DTensor.
    """
    _check(x, weight)
    if not (_in_triton(x) or _in_native(x)):
        return rms_norm_reference(x, weight, eps)
    if wants_graph(x, weight):
        return _RmsNorm.apply(x, weight.contiguous(), eps)
    return _launch_forward(x, None, weight.contiguous(), eps)[0]


@jit.on_its_device
def rms_norm_residual(
    x: Tensor, residual: Tensor, weight: Tensor, eps: float
) -> tuple[Tensor, Tensor]:
    """x, residual [..., D], weight [D] -> rms_norm(x + residual), x + residual.

    One kernel, one read of each: what a block of a decoder does between its two halves. Otherwise
    as `rms_norm`.
    """
    _check(x, weight)
    check_tensor("residual", residual, x.shape, (x.dtype,), x.device)
    if not (_in_triton(x) or _in_native(x)):
        return rms_norm_residual_reference(x, residual, weight, eps)
    if wants_graph(x, residual, weight):
        return _RmsNormResidual.apply(x, residual, weight.contiguous(), eps)
    return _launch_forward(x, residual, weight.contiguous(), eps)[:2]


def _check(x: Tensor, weight: Tensor) -> None:
    check_tensor("x", x, getattr(x, "shape", ()) or ("...", "D"), DTYPES)
    check_tensor("weight", weight, x.shape[-1:], (x.dtype,), x.device)


def _in_triton(x: Tensor) -> bool:
    fits = 0 < x.shape[-1] * x.itemsize <= MAX_ROW_BYTES
    return jit.runs_triton(x) and x.dtype != torch.float64 and fits


def _in_native(x: Tensor) -> bool:
    return x.shape[-1] > 0 and runs_natively(x) and not jit.runs_triton(x)
