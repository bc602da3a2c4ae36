"""Between the qkv projection and attention over pages, in one launch: RMSNorm of each head of q and
k where the model has one, rotary embedding, and the writing of keys and values into their pages.

qkv [T, (H + 2 G) K] holds H heads of queries, G of keys, G of values. Formulas and rounding are
those of `rms_norm`, `rope` and `write_kv`: fp32 inside, rounded after the norm (before and after
its weight), after the rotation, and to the pages' dtype. qkv is read once.
"""

from __future__ import annotations

import torch
from torch import Tensor

from . import jit
from .contracts import check_tensor
from .jit import tl, triton
from .kv_pages import DTYPES, Scale, check_pages, check_scale, places, to_pages, write_kv_reference
from .rms_norm import rms_norm_reference
from .rope import rope_reference


def rope_write_kv_reference(
    qkv: Tensor,
    cos: Tensor,
    sin: Tensor,
    slots: Tensor,
    keys: Tensor,
    values: Tensor,
    q_norm: Tensor | None = None,
    k_norm: Tensor | None = None,
    eps: float = 0.0,
    k_scale: Scale = 1.0,
    v_scale: Scale = 1.0,
) -> Tensor:
    """qkv [T, (H + 2 G) K], cos and sin [T, K/2], keys and values [B, G, P, K] -> q [T, H, K]."""
    num_kv_heads, width = keys.shape[1], keys.shape[3]
    heads = qkv.unflatten(1, (-1, width))
    q, k, v = heads.split((heads.shape[1] - 2 * num_kv_heads, num_kv_heads, num_kv_heads), dim=1)
    q = q if q_norm is None else rms_norm_reference(q, q_norm, eps)
    k = k if k_norm is None else rms_norm_reference(k, k_norm, eps)
    k = rope_reference(k, cos, sin)
    write_kv_reference(k, v, slots, keys, values, k_scale, v_scale)
    return rope_reference(q, cos, sin)


@triton.jit
def _rotated(
    x_ptr, norm_ptr, cos, sin, cols, mask, half, eps,
    K: tl.constexpr, HAS_NORM: tl.constexpr,
):  # fmt: skip
    """Both halves of some heads, in fp32, their values those of their dtype."""
    dtype = x_ptr.dtype.element_ty
    first = tl.load(x_ptr, mask=mask, other=0.0).to(tl.float32)
    second = tl.load(x_ptr + half, mask=mask, other=0.0).to(tl.float32)
    if HAS_NORM:
        squares = tl.sum(first * first + second * second, axis=1, keep_dims=True)
        rstd = tl.rsqrt(squares / K + eps)
        weight = tl.load(norm_ptr + cols, mask=cols < half, other=0.0).to(tl.float32)
        first = ((first * rstd).to(dtype).to(tl.float32) * weight).to(dtype).to(tl.float32)
        weight = tl.load(norm_ptr + half + cols, mask=cols < half, other=0.0).to(tl.float32)
        second = ((second * rstd).to(dtype).to(tl.float32) * weight).to(dtype).to(tl.float32)
    rotated = first * cos - second * sin
    return rotated.to(dtype), (second * cos + first * sin).to(dtype)


@triton.jit
def _rope_write_kernel(
    qkv_ptr, cos_ptr, sin_ptr, slots_ptr, q_norm_ptr, k_norm_ptr, q_ptr, keys_ptr, values_ptr,
    eps, k_scale, v_scale,
    num_heads, num_kv_heads, qkv_row, cos_row, sin_row,
    K: tl.constexpr, P: tl.constexpr, HAS_NORM: tl.constexpr,
    HEADS: tl.constexpr, KV_HEADS: tl.constexpr, HALF: tl.constexpr,
    K_PLACE: tl.constexpr, V_PLACE: tl.constexpr,
):  # fmt: skip
    """One token, all its heads."""
    token, half = tl.program_id(0).to(tl.int64), K // 2
    slot = tl.load(slots_ptr + token).to(tl.int64)
    cols = tl.arange(0, HALF)[None, :]
    cos = tl.load(cos_ptr + token * cos_row + cols, mask=cols < half, other=0.0).to(tl.float32)
    sin = tl.load(sin_ptr + token * sin_row + cols, mask=cols < half, other=0.0).to(tl.float32)
    qkv_ptr += token * qkv_row

    heads = tl.arange(0, HEADS)[:, None]
    mask = (heads < num_heads) & (cols < half)
    at = heads * K + cols
    first, second = _rotated(qkv_ptr + at, q_norm_ptr, cos, sin, cols, mask, half, eps, K, HAS_NORM)
    q_ptr += token * num_heads * K
    tl.store(q_ptr + at, first, mask=mask)
    tl.store(q_ptr + at + half, second, mask=mask)

    if slot >= 0:
        kv_heads = tl.arange(0, KV_HEADS)[:, None]
        inside = (kv_heads < num_kv_heads) & (cols < half)
        k_at = (num_heads + kv_heads) * K + cols
        to = ((slot // P * num_kv_heads + kv_heads) * P + slot % P) * K + cols
        k, k_2 = _rotated(
            qkv_ptr + k_at, k_norm_ptr, cos, sin, cols, inside, half, eps, K, HAS_NORM
        )
        tl.store(keys_ptr + to, to_pages(k, keys_ptr, k_scale, K_PLACE), mask=inside)
        tl.store(keys_ptr + to + half, to_pages(k_2, keys_ptr, k_scale, K_PLACE), mask=inside)
        v_at = k_at + num_kv_heads * K
        v = tl.load(qkv_ptr + v_at, mask=inside, other=0.0)
        v_2 = tl.load(qkv_ptr + v_at + half, mask=inside, other=0.0)
        tl.store(values_ptr + to, to_pages(v, values_ptr, v_scale, V_PLACE), mask=inside)
        tl.store(values_ptr + to + half, to_pages(v_2, values_ptr, v_scale, V_PLACE), mask=inside)


def _launch(qkv, cos, sin, slots, keys, values, q_norm, k_norm, eps, k_scale, v_scale):
    qkv, cos, sin = (x if x.stride(1) == 1 else x.contiguous() for x in (qkv, cos, sin))
    num_tokens, num_kv_heads, width = len(qkv), keys.shape[1], keys.shape[3]
    num_heads = qkv.shape[1] // width - 2 * num_kv_heads
    q = torch.empty(num_tokens, num_heads, width, dtype=qkv.dtype, device=qkv.device)
    # What is absent gets a place of something that is there: the kernel does not look at it.
    norms = (qkv if x is None else x.contiguous() for x in (q_norm, k_norm))
    sizes = num_heads, num_kv_heads, width // 2
    heads, kv_heads, half = (triton.next_power_of_2(size) for size in sizes)
    if num_tokens:
        _rope_write_kernel[(num_tokens,)](
            qkv, cos, sin, slots.contiguous(), *norms, q, keys, values,
            eps, k_scale, v_scale,
            num_heads, num_kv_heads, qkv.stride(0), cos.stride(0), sin.stride(0),
            K=width, P=keys.shape[2], HAS_NORM=q_norm is not None,
            HEADS=heads, KV_HEADS=kv_heads, HALF=half, **places(k_scale, v_scale),
            num_warps=min(max(heads * half // 512, 1), 16),
        )  # fmt: skip
    return q


@jit.on_its_device
def rope_write_kv(
    qkv: Tensor,
    cos: Tensor,
    sin: Tensor,
    slots: Tensor,
    keys: Tensor,
    values: Tensor,
    q_norm: Tensor | None = None,
    k_norm: Tensor | None = None,
    eps: float = 0.0,
    k_scale: Scale = 1.0,
    v_scale: Scale = 1.0,
) -> Tensor:
    """qkv [T, (H + 2 G) K] -> q [T, H, K]; keys and values go to slots [T] of the pages, in place.

    cos, sin [T, K/2] fp32 or in the dtype of qkv; q_norm, k_norm [K], both or none. A negative slot
    is padding: its q is computed, its key and value are not written. No gradient. Raises ValueError
    naming the argument.
    """
    check_tensor("qkv", qkv, ("T", "(H + 2 G) K"), DTYPES)
    check_tensor("keys", keys, ("B", "G", "P", "K"), tuple({qkv.dtype, keys.dtype}), qkv.device)
    num_tokens, (_, num_kv_heads, _, width) = len(qkv), keys.shape
    num_heads = qkv.shape[1] // width - 2 * num_kv_heads
    if qkv.shape[1] % width or num_heads < 1 or width % 2:
        raise ValueError(
            f"qkv: {qkv.shape[1]} columns, wanted more than {2 * num_kv_heads} heads of {width}"
        )
    check_pages(keys, values, qkv.unflatten(1, (-1, width)), num_kv_heads)
    check_tensor("slots", slots, (num_tokens,), (torch.int32, torch.int64), qkv.device)
    for name, angle in (("cos", cos), ("sin", sin)):
        wanted = torch.float32, qkv.dtype
        check_tensor(name, angle, (num_tokens, width // 2), wanted, qkv.device)
    if (q_norm is None) != (k_norm is None):
        raise ValueError("k_norm: wanted with q_norm, and without it not")
    for name, norm in (("q_norm", q_norm), ("k_norm", k_norm)):
        if norm is not None:
            check_tensor(name, norm, (width,), (qkv.dtype,), qkv.device)
    for name, scale in (("k_scale", k_scale), ("v_scale", v_scale)):
        check_scale(name, scale, keys)
    in_triton = jit.runs_triton(qkv) and qkv.dtype != torch.float64
    write = _launch if in_triton else rope_write_kv_reference
    return write(qkv, cos, sin, slots, keys, values, q_norm, k_norm, eps, k_scale, v_scale)
