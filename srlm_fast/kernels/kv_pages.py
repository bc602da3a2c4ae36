"""The KV cache in pages: where keys and values lie, and how they get there.

One layer's keys and values are [B pages, G heads, P tokens, K], each contiguous: the tokens that
one page has of one head are P K elements in a row (16 KiB at P = 64, K = 128, 16 bits). A token's
slot is page P + offset; a negative slot is padding, whose key and value go nowhere.

A cache in fp8 holds k / k_scale and v / v_scale, cut to what fp8 can hold, rounded to nearest.
"""

from __future__ import annotations

import torch
from torch import Tensor

from . import jit
from .contracts import check_number, check_tensor
from .jit import tl, triton

FP8 = torch.float8_e4m3fn
DTYPES = (torch.bfloat16, torch.float16, torch.float32, torch.float64)
FP8_LIMIT = float(torch.finfo(FP8).max)
Scale = float | Tensor  # a Python number or one element, whose value no host waits for


def write_kv_reference(
    k: Tensor,
    v: Tensor,
    slots: Tensor,
    keys: Tensor,
    values: Tensor,
    k_scale: Scale = 1.0,
    v_scale: Scale = 1.0,
) -> None:
    """k, v [T, G, K] go to slots [T] of one layer's keys and values [B, G, P, K]."""
    real = slots >= 0
    page, offset = slots[real].long() // keys.shape[2], slots[real].long() % keys.shape[2]
    for new, pages, scale in ((k, keys, k_scale), (v, values, v_scale)):
        if pages.dtype == FP8:
            new = (new.float() / scale).clamp(-FP8_LIMIT, FP8_LIMIT)
        pages[page, :, offset] = new[real].to(pages.dtype)


@triton.jit
def number(scale, IS_PLACE: tl.constexpr):
    """A scale given as a number, or as a place to read it from."""
    if IS_PLACE:
        return tl.load(scale)
    else:
        return scale


@triton.jit
def to_pages(new, pages_ptr, scale, IS_PLACE: tl.constexpr):
    """Rounded as the pages want it; 448 is FP8_LIMIT."""
    dtype = pages_ptr.dtype.element_ty
    if dtype.is_fp8():
        new = new.to(tl.float32) / number(scale, IS_PLACE)
        new = tl.minimum(tl.maximum(new, -448.0), 448.0)
    return new.to(dtype)


@triton.jit
def _write_kernel(
    k_ptr, v_ptr, slots_ptr, keys_ptr, values_ptr,
    k_scale, v_scale,
    num_heads, k_row, k_head, v_row, v_head,
    K: tl.constexpr, P: tl.constexpr, HEADS: tl.constexpr, WIDTH: tl.constexpr,
    K_PLACE: tl.constexpr, V_PLACE: tl.constexpr,
):  # fmt: skip
    """One token, all its heads."""
    token = tl.program_id(0).to(tl.int64)
    slot = tl.load(slots_ptr + token).to(tl.int64)
    if slot >= 0:
        heads, cols = tl.arange(0, HEADS)[:, None].to(tl.int64), tl.arange(0, WIDTH)[None, :]
        mask = (heads < num_heads) & (cols < K)
        at = ((slot // P * num_heads + heads) * P + slot % P) * K + cols
        k = tl.load(k_ptr + token * k_row + heads * k_head + cols, mask=mask, other=0.0)
        v = tl.load(v_ptr + token * v_row + heads * v_head + cols, mask=mask, other=0.0)
        tl.store(keys_ptr + at, to_pages(k, keys_ptr, k_scale, K_PLACE), mask=mask)
        tl.store(values_ptr + at, to_pages(v, values_ptr, v_scale, V_PLACE), mask=mask)


def places(k_scale: Scale, v_scale: Scale) -> dict[str, bool]:
    return {"K_PLACE": isinstance(k_scale, Tensor), "V_PLACE": isinstance(v_scale, Tensor)}


def _launch(k, v, slots, keys, values, k_scale, v_scale):
    k, v = (x if x.stride(2) == 1 else x.contiguous() for x in (k, v))
    num_tokens, num_heads, width = k.shape
    heads, cols = triton.next_power_of_2(num_heads), triton.next_power_of_2(width)
    if num_tokens:
        _write_kernel[(num_tokens,)](
            k, v, slots.contiguous(), keys, values,
            k_scale, v_scale,
            num_heads, *k.stride()[:2], *v.stride()[:2],
            K=width, P=keys.shape[2], HEADS=heads, WIDTH=cols, **places(k_scale, v_scale),
            num_warps=min(max(heads * cols // 256, 1), 8),
        )  # fmt: skip


@jit.on_its_device
def write_kv(
    k: Tensor,
    v: Tensor,
    slots: Tensor,
    keys: Tensor,
    values: Tensor,
    k_scale: Scale = 1.0,
    v_scale: Scale = 1.0,
) -> None:
    """k, v [T, G, K], of any strides, go to slots [T] of keys and values [B, G, P, K], in place.

    No two rows may have the same slot. Raises ValueError naming the argument.
    """
    check_tensor("k", k, ("T", "G", "K"), DTYPES)
    check_tensor("v", v, k.shape, (k.dtype,), k.device)
    check_tensor("slots", slots, k.shape[:1], (torch.int32, torch.int64), k.device)
    check_pages(keys, values, k)
    for name, scale in (("k_scale", k_scale), ("v_scale", v_scale)):
        check_scale(name, scale, keys)
    write = _launch if jit.runs_triton(k) and k.dtype != torch.float64 else write_kv_reference
    write(k, v, slots, keys, values, k_scale, v_scale)


def check_pages(keys: Tensor, values: Tensor, like: Tensor, num_heads: int | None = None) -> None:
    """Against k or v [T, G, K], or q [T, H, K] where the heads of the pages are given."""
    num_heads = like.shape[1] if num_heads is None else num_heads
    check_tensor("keys", keys, ("B", num_heads, "P", like.shape[2]), (like.dtype, FP8), like.device)
    check_tensor("values", values, keys.shape, (keys.dtype,), keys.device)
    if keys.shape[2] % 16 or not keys.shape[2]:
        raise ValueError(f"keys: pages of {keys.shape[2]} tokens, wanted a multiple of 16")
    for name, pages in (("keys", keys), ("values", values)):
        if not pages.is_contiguous():
            raise ValueError(f"{name}: strides {pages.stride()}, wanted a contiguous tensor")


def check_scale(name: str, scale: Scale, keys: Tensor) -> None:
    if isinstance(scale, Tensor):
        check_tensor(name, scale.reshape(-1), (1,), (torch.float32,), keys.device)
    else:
        check_number(name, scale, "a number above 0, or a tensor of one", lambda x: x > 0)
    if keys.dtype != FP8 and (isinstance(scale, Tensor) or scale != 1):
        raise ValueError(f"{name}: given, wanted 1 where the pages are not fp8")
