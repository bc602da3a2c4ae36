"""Rotary position embedding (arXiv 2104.09864, eq. 34, in the half-split layout that Llama
checkpoints use).

For head x [K] at position p with angles a_i = p * f_i, i < K/2:
    y[i]       = x[i] * cos a_i - x[i + K/2] * sin a_i
    y[i + K/2] = x[i + K/2] * cos a_i + x[i] * sin a_i
Angles, cosines and sines are fp32. Eager PyTorch takes the product in the dtype of x, as
transformers does; Triton, and on a CPU csrc/train_ops.cpp for fp32 and bf16, in fp32, rounding
once.

The rotation is linear and its matrix is (with scaled cosines and sines, but for that scale)
orthogonal: backward is the transposed one, the rotation of the gradient by -a. It keeps cos and sin
only, which get no gradient.
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


@cache
def _tile(num_q_heads: int, num_k_heads: int, half: int) -> tuple[int, int, int, int]:
    """Heads of q and of k, columns, all padded to powers of two; warps: 16 pairs of q a thread."""
    sizes = (num_q_heads, num_k_heads, half)
    q_heads, k_heads, cols = (jit.power_of_2(max(size, 1)) for size in sizes)
    return q_heads, k_heads, cols, min(max(q_heads * cols // 512, 1), 16)


@triton.jit
def _rotate(
    x_ptr, y_ptr, cos, sin,
    token, num_heads, half,
    stride_token, stride_head,
    HEADS: tl.constexpr, HALF: tl.constexpr,
):  # fmt: skip
    heads, cols = tl.arange(0, HEADS).to(tl.int64)[:, None], tl.arange(0, HALF)[None, :]
    mask = (heads < num_heads) & (cols < half)
    x_ptr += token * stride_token + heads * stride_head + cols
    first = tl.load(x_ptr, mask=mask, other=0.0).to(tl.float32)
    second = tl.load(x_ptr + half, mask=mask, other=0.0).to(tl.float32)
    y_ptr += (token * num_heads + heads) * (2 * half) + cols
    dtype = y_ptr.dtype.element_ty
    tl.store(y_ptr, (first * cos - second * sin).to(dtype), mask=mask)
    tl.store(y_ptr + half, (second * cos + first * sin).to(dtype), mask=mask)


@triton.jit
def _rope_kernel(
    q_ptr, k_ptr, cos_ptr, sin_ptr, q_out_ptr, k_out_ptr,
    num_q_heads, num_k_heads, half,
    q_token, q_head, k_token, k_head, cos_token, sin_token,
    BACK: tl.constexpr, HAS_K: tl.constexpr,
    Q_HEADS: tl.constexpr, K_HEADS: tl.constexpr, HALF: tl.constexpr,
):  # fmt: skip
    """One token: its cosines and sines are read once for all heads."""
    token = tl.program_id(0).to(tl.int64)
    cols = tl.arange(0, HALF)
    cos = tl.load(cos_ptr + token * cos_token + cols, mask=cols < half, other=0.0)
    sin = tl.load(sin_ptr + token * sin_token + cols, mask=cols < half, other=0.0)
    cos, sin = cos.to(tl.float32)[None, :], sin.to(tl.float32)[None, :]
    if BACK:
        sin = -sin
    _rotate(q_ptr, q_out_ptr, cos, sin, token, num_q_heads, half, q_token, q_head, Q_HEADS, HALF)
    if HAS_K:
        _rotate(
            k_ptr, k_out_ptr, cos, sin, token, num_k_heads, half, k_token, k_head, K_HEADS, HALF
        )


def _launch(q, k, cos, sin, back):
    """q [T, H, K], k [T, G, K] or None -> the same, rotated, contiguous."""
    q, cos, sin = _dense(q), _dense(cos), _dense(sin)
    k_in = q if k is None else _dense(k)
    q_out = q.new_empty(q.shape)
    k_out = q_out if k is None else k_in.new_empty(k_in.shape)
    if not jit.runs_triton(q):
        for x, y in ((q, q_out), (k_in, k_out))[: 1 if k is None else 2]:
            _turn(x, y, cos, sin, back)
        return q_out, None if k is None else k_out
    num_tokens, num_q_heads, width = q.shape
    num_k_heads, half = k_in.shape[1], width // 2
    q_heads, k_heads, cols, num_warps = _tile(num_q_heads, num_k_heads, half)
    q_token, q_head, _ = q.stride()
    k_token, k_head, _ = k_in.stride()
    _rope_kernel[(num_tokens,)](
        q, k_in, cos, sin, q_out, k_out,
        num_q_heads, num_k_heads, half,
        q_token, q_head, k_token, k_head, cos.stride(0), sin.stride(0),
        BACK=back, HAS_K=k is not None, Q_HEADS=q_heads, K_HEADS=k_heads, HALF=cols,
        num_warps=num_warps,
    )  # fmt: skip
    return q_out, None if k is None else k_out


def _turn(x: Tensor, y: Tensor, cos: Tensor, sin: Tensor, back: bool) -> None:
    """x [T, H, K] -> y [T, H, K], which may be x, on a CPU. Columns of all side by side."""
    angles = (cos.data_ptr(), sin.data_ptr(), cos.stride(0), sin.stride(0))
    places = [(t.data_ptr(), t.stride(0), t.stride(1)) for t in (x, y)]
    native().turn_heads(
        *places, x.dtype == torch.bfloat16, *x.shape, (*angles, cos.dtype == torch.bfloat16), back
    )


def _dense(x: Tensor) -> Tensor:
    """Columns side by side; the other strides stay."""
    return x if x.stride(-1) == 1 else x.contiguous()


class _Rope(torch.autograd.Function):
    @staticmethod
    def forward(ctx, q, k, cos, sin):
        ctx.save_for_backward(cos, sin)
        return _launch(q, k, cos, sin, back=False)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_q, grad_k):
        return *_launch(grad_q, grad_k, *ctx.saved_tensors, back=True), None, None


class _RopeQkv(torch.autograd.Function):
    @staticmethod
    def forward(ctx, qkv, cos, sin, heads):
        ctx.save_for_backward(cos, sin)
        ctx.heads = heads
        q, k, v = _split(qkv.detach(), heads)
        for x in (q, k):
            _turn(x, x, cos, sin, back=False)
        torch.autograd.graph.increment_version(qkv)
        return q, k, v

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_q, grad_k, grad_v):
        out = grad_v.new_empty(len(grad_v), sum(ctx.heads) * grad_v.shape[2])
        q, k, v = _split(out, ctx.heads)
        cos, sin = ctx.saved_tensors  # once: what checkpoints can be read a single time
        _turn(_dense(grad_q), q, cos, sin, back=True)
        _turn(_dense(grad_k), k, cos, sin, back=True)
        v.copy_(grad_v)
        return out, None, None, None


def _split(qkv: Tensor, heads: tuple[int, int, int]) -> tuple[Tensor, ...]:
    """[T, (H + 2 G) K] -> views [T, H, K], [T, G, K], [T, G, K]."""
    return qkv.unflatten(1, (sum(heads), -1)).split(heads, dim=1)


@jit.on_its_device
def rope(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """x [T, H, K], cos and sin [T, K/2] fp32 or in the dtype of x -> [T, H, K].

    Any strides; heads cut out of a fused projection are not copied. Differentiable once.
    Raises ValueError naming the argument: a shape or a device that does not fit, a dtype, a
    DTensor, a cos or sin that requires a gradient.
    """
    _check("x", x, cos, sin)
    if not (_in_triton(x) or runs_natively(x)):
        return rope_reference(x, cos, sin)
    if wants_graph(x):
        return _Rope.apply(x, None, cos, sin)[0]
    return _launch(x, None, cos, sin, back=False)[0]


@jit.on_its_device
def rope_qk(q: Tensor, k: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
    """q [T, H, K], k [T, G, K], cos and sin [T, K/2] -> both rotated, in one launch. See `rope`."""
    _check("q", q, cos, sin)
    check_tensor("k", k, (q.shape[0], "G", q.shape[2]), (q.dtype,), q.device)
    if not (_in_triton(q) or runs_natively(q)):
        return rope_reference(q, cos, sin), rope_reference(k, cos, sin)
    if wants_graph(q, k):
        return _Rope.apply(q, k, cos, sin)
    return _launch(q, k, cos, sin, back=False)


@jit.on_its_device
def rope_qkv(
    qkv: Tensor, heads: tuple[int, int, int], cos: Tensor, sin: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """qkv [T, (H + 2 G) K] as projected, heads (H, G, G) -> q, k rotated and v, as `rope_qk`.

    On a CPU what qkv held is lost: the results are views of it, so that training keeps one of the
    two only. RuntimeError in backward where another operation has saved it.
    """
    check_tensor("qkv", qkv, ("T", "(H + 2G)K"), DTYPES)
    if qkv.shape[1] % sum(heads):
        raise ValueError(f"qkv: width {qkv.shape[1]}, wanted a multiple of {sum(heads)} heads")
    q, k, v = _split(qkv, heads)
    _check("qkv", q, cos, sin)
    if jit.runs_triton(qkv) or not runs_natively(qkv) or qkv.stride(1) != 1:
        return *rope_qk(q, k, cos, sin), v
    return _RopeQkv.apply(qkv, _dense(cos), _dense(sin), heads)


def _check(name: str, x: Tensor, cos: Tensor, sin: Tensor) -> None:
    check_tensor(name, x, ("T", "H", "K"), DTYPES)
    num_tokens, _, width = x.shape
    if width % 2:
        raise ValueError(f"{name}: width {width}, wanted an even one")
    like = ((num_tokens, width // 2), (torch.float32, x.dtype), x.device)
    for angle_name, angle in (("cos", cos), ("sin", sin)):
        check_tensor(angle_name, angle, *like)
        if angle.requires_grad:
            raise ValueError(f"{angle_name}: requires a gradient, wanted a constant")


def _in_triton(x: Tensor) -> bool:
    return jit.runs_triton(x) and x.dtype != torch.float64
