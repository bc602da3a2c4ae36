"""Attention over the KV cache in pages: softmax(scale q k^T) v, causal, with a window if wanted.

Row t of sequence s stands at position p of its context and sees the keys p - window + 1 .. p. H
query heads share G heads of keys: the H / G heads of one form the rows of one matmul. Scores,
softmax and sums are fp32; probabilities are rounded to the dtype of q before they meet v.

With scores x_j (in units of log 2) the state after some keys is (m, l, a), for which

    m = max x_j,   l = sum 2^(x_j - m),   a = sum 2^(x_j - m) v_j,   out = a / l

(arXiv 2205.14135, online softmax); states of disjoint keys are merged by

    m = max(m1, m2),   l = l1 2^(m1 - m) + l2 2^(m2 - m),   a likewise.

Decoding (flash-decoding): a program computes the state of one split of one sequence; the last one
that finishes merges the sequence's splits, in their order. A context of one split is written out at
once. Programs walk over a work list whose length they read from memory, so a CUDA graph serves
steps of any lengths. Extending: a program holds neighbouring rows of one sequence and walks over
all their keys.

A row's bits depend on nothing but its sequence: splits and tiles of keys begin at fixed positions,
keys that a row does not see change nothing, and (with `PagedWork(deterministic=True)`) extending
makes the same splits, the same merges and the same shape of matmul as decoding. Every product that
is added to something is an explicit fma, so that no compiler rounds it differently in the two.
"""

from __future__ import annotations

import importlib
import math
from functools import cache

import torch
from torch import Tensor

from . import jit
from .attention_work import PagedWork
from .contracts import check_number, check_tensor
from .jit import tl, triton
from .kv_pages import Scale, check_pages, check_scale, number, places

FLASH_PAGE = 256  # tokens; flash-attn 2 takes multiples of it only
# Bytes of a key for which the tiles of the configurations are meant.
KEY_BYTES = 256


def paged_attention_reference(
    q: Tensor,
    keys: Tensor,
    values: Tensor,
    row_starts: Tensor,
    context_lengths: Tensor,
    block_table: Tensor,
    scale: float,
    window: int | None = None,
    k_scale: Scale = 1.0,
    v_scale: Scale = 1.0,
) -> Tensor:
    """q [T, H, K], keys and values [B, G, P, K] -> [T, H, K] in the dtype of q.

    row_starts [S + 1], context_lengths [S], block_table [S, W]: see attention_work. Rows of no
    sequence, and of sequences without context, are 0.
    """
    wide = torch.promote_types(q.dtype, torch.float32)
    out, group = torch.zeros_like(q), q.shape[1] // keys.shape[1]
    starts = row_starts.tolist()
    for s, length in enumerate(context_lengths.tolist()):
        rows, pages = slice(starts[s], starts[s + 1]), block_table[s].long()
        pages = pages[: -(-length // keys.shape[2])]
        if not length:
            continue
        k, v = (
            x[pages].transpose(0, 1).flatten(1, 2)[:, :length].to(q.dtype).to(wide)
            for x in (keys, values)
        )  # [G, length, K]
        k, v = k.repeat_interleave(group, 0), v.repeat_interleave(group, 0)
        scores = q[rows].to(wide).transpose(0, 1) @ k.transpose(1, 2) * (scale * k_scale)
        key = torch.arange(length, device=q.device)
        distance = key[length - scores.shape[1] :, None] - key
        hidden = distance < 0 if window is None else (distance < 0) | (distance >= window)
        weights = scores.masked_fill(hidden, -torch.inf).softmax(-1)
        out[rows] = ((weights @ v).transpose(0, 1) * v_scale).to(q.dtype)
    return out


@triton.jit
def _page(table_ptr, start, length, P: tl.constexpr, TILE: tl.constexpr):
    """The page of the keys start .. start + TILE - 1, or of each; any page beyond the context."""
    if P % TILE == 0:
        return tl.load(table_ptr + tl.minimum(start, length - 1) // P)
    else:
        return tl.load(table_ptr + tl.minimum(start + tl.arange(0, TILE), length - 1) // P)


@triton.jit
def _attend(
    maximum, weight, total, q,
    keys_ptr, values_ptr, table_ptr, head,
    begin, end, length, position, scale,
    num_kv_heads, window,
    K: tl.constexpr, P: tl.constexpr, TILE: tl.constexpr, WIDTH: tl.constexpr,
    WINDOWED: tl.constexpr, MASKED: tl.constexpr,
):  # fmt: skip
    """The state [M, 1], [M, 1], [M, WIDTH] after the keys begin .. end - 1 as well; begin is a
    multiple of TILE. position [M, 1] of each row. Without MASKED every row sees all these keys.
    """
    cols, own = tl.arange(0, WIDTH)[None, :], tl.arange(0, TILE)
    # A page's number is read a round ahead: were it read in the round that needs it, the compiler
    # would spend on it the stages that are meant for keys and values.
    page = _page(table_ptr, begin, length, P, TILE)
    for start in tl.range(begin, end, TILE):
        at = (page.to(tl.int64) * num_kv_heads + head) * P + (start + own) % P
        at = at[:, None] * K + cols
        page = _page(table_ptr, start + TILE, length, P, TILE)
        if MASKED:
            # Beyond the context there may be anything, NaN too, and 0 NaN would be NaN.
            inside = ((start + own) < length)[:, None] & (cols < K)
            k = tl.load(keys_ptr + at, mask=inside, other=0.0)
            v = tl.load(values_ptr + at, mask=inside, other=0.0)
        elif WIDTH != K:
            k = tl.load(keys_ptr + at, mask=cols < K, other=0.0)
            v = tl.load(values_ptr + at, mask=cols < K, other=0.0)
        else:
            k = tl.load(keys_ptr + at)
            v = tl.load(values_ptr + at)
        scores = tl.dot(q, tl.trans(k.to(q.dtype)), input_precision="ieee")
        if MASKED:
            distance = position - (start + own)[None, :]
            visible = distance >= 0
            if WINDOWED:
                visible = visible & (distance < window)
            scores = tl.where(visible, scores, float("-inf"))
        highest = tl.maximum(maximum, tl.max(scores, axis=1, keep_dims=True) * scale)
        # A row that has seen no key yet stays as it is.
        base = tl.where(highest == float("-inf"), 0.0, highest)
        shrink = tl.exp2(maximum - base)
        p = tl.exp2(tl.fma(scores, scale, -base))
        weight = tl.fma(weight, shrink, tl.sum(p, axis=1, keep_dims=True))
        total = tl.dot(p.to(q.dtype), v.to(q.dtype), total * shrink, input_precision="ieee")
        maximum = highest
    return maximum, weight, total


@triton.jit
def _empty(M: tl.constexpr, WIDTH: tl.constexpr):
    maximum = tl.full((M, 1), float("-inf"), tl.float32)
    return maximum, tl.zeros((M, 1), tl.float32), tl.zeros((M, WIDTH), tl.float32)


@triton.jit
def _merge(maximum, weight, total, maximum_2, weight_2, total_2):
    """States [M, 1], [M, 1], [M, WIDTH], the second that of the later keys."""
    highest = tl.maximum(maximum, maximum_2)
    base = tl.where(highest == float("-inf"), 0.0, highest)
    shrink, shrink_2 = tl.exp2(maximum - base), tl.exp2(maximum_2 - base)
    weight = tl.fma(weight, shrink, weight_2 * shrink_2)
    total = tl.fma(total, shrink, total_2 * shrink_2)
    return highest, weight, total


@triton.jit
def _finish(weight, total, v_scale, V_PLACE: tl.constexpr):
    return total / weight * number(v_scale, V_PLACE)


@triton.jit
def _decode_kernel(
    q_ptr, keys_ptr, values_ptr, out_ptr, parts_ptr, finished_ptr,
    item_count_ptr, items_ptr, row_starts_ptr, lengths_ptr, first_slots_ptr, table_ptr,
    scale, k_scale, v_scale,
    num_kv_heads, window, table_width, q_row, q_head,
    K: tl.constexpr, P: tl.constexpr, GROUP: tl.constexpr, SPLIT: tl.constexpr,
    M: tl.constexpr, TILE: tl.constexpr, WIDTH: tl.constexpr, WINDOWED: tl.constexpr,
    K_PLACE: tl.constexpr, V_PLACE: tl.constexpr,
):  # fmt: skip
    """Items (sequence, split, head), as many as fit the grid at a time."""
    member, cols = tl.arange(0, M)[:, None], tl.arange(0, WIDTH)[None, :]
    inside = (member < GROUP) & (cols < K)
    num_heads = num_kv_heads * GROUP
    for item in range(tl.program_id(0), tl.load(item_count_ptr) * num_kv_heads, tl.num_programs(0)):
        head = item % num_kv_heads
        sequence = tl.load(items_ptr + item // num_kv_heads * 2)
        split = tl.load(items_ptr + item // num_kv_heads * 2 + 1)
        length = tl.load(lengths_ptr + sequence)
        row = tl.load(row_starts_ptr + sequence).to(tl.int64)
        heads = head * GROUP + member
        first = 0
        if WINDOWED:
            first = tl.maximum(length - window, 0)
        begin = tl.maximum(split * SPLIT, first // TILE * TILE)
        end = tl.minimum((split + 1) * SPLIT, length)
        if begin < end:
            q = tl.load(q_ptr + row * q_row + heads * q_head + cols, mask=inside, other=0.0)
            position = tl.where(member < GROUP, length - 1, -1)
            maximum, weight, total = _empty(M, WIDTH)
            maximum, weight, total = _attend(
                maximum, weight, total, q,
                keys_ptr, values_ptr, table_ptr + sequence.to(tl.int64) * table_width, head,
                begin, end, length, position, scale * number(k_scale, K_PLACE),
                num_kv_heads, window,
                K, P, TILE, WIDTH, WINDOWED, True,
            )  # fmt: skip
            out_at = (row * num_heads + heads) * K + cols
            if first // SPLIT == (length - 1) // SPLIT:
                out = _finish(weight, total, v_scale, V_PLACE).to(out_ptr.dtype.element_ty)
                tl.store(out_ptr + out_at, out, mask=inside)
            else:
                first_slot = tl.load(first_slots_ptr + sequence).to(tl.int64)
                own = ((first_slot + split) * num_heads + heads) * (WIDTH + 2)
                tl.store(parts_ptr + own + cols, total, mask=member < GROUP)
                tl.store(parts_ptr + own + WIDTH, maximum, mask=member < GROUP)
                tl.store(parts_ptr + own + WIDTH + 1, weight, mask=member < GROUP)
                tl.debug_barrier()  # before one thread says so for all
                finished = finished_ptr + first_slot * num_kv_heads + head
                others = (length - 1) // SPLIT - first // SPLIT
                if tl.atomic_add(finished, 1, sem="acq_rel") == others:
                    tl.store(finished, 0)
                    maximum, weight, total = _empty(M, WIDTH)
                    for number_of_split in range(first // SPLIT, (length - 1) // SPLIT + 1):
                        at = ((first_slot + number_of_split) * num_heads + heads) * (WIDTH + 2)
                        at = parts_ptr + at
                        # From the L2 cache, where the others' are.
                        maximum, weight, total = _merge(
                            maximum, weight, total,
                            tl.load(at + WIDTH, mask=member < GROUP, cache_modifier=".cg"),
                            tl.load(at + WIDTH + 1, mask=member < GROUP, cache_modifier=".cg"),
                            tl.load(at + cols, mask=member < GROUP, cache_modifier=".cg"),
                        )  # fmt: skip
                    out = _finish(weight, total, v_scale, V_PLACE).to(out_ptr.dtype.element_ty)
                    tl.store(out_ptr + out_at, out, mask=inside)
        elif length == 0:
            zeros = tl.zeros((M, WIDTH), out_ptr.dtype.element_ty)
            tl.store(out_ptr + (row * num_heads + heads) * K + cols, zeros, mask=inside)


@triton.jit
def _extend_kernel(
    q_ptr, keys_ptr, values_ptr, out_ptr,
    tiles_ptr, row_starts_ptr, lengths_ptr, table_ptr,
    scale, k_scale, v_scale,
    num_kv_heads, window, table_width, q_row, q_head,
    K: tl.constexpr, P: tl.constexpr, GROUP: tl.constexpr, SPLIT: tl.constexpr,
    M: tl.constexpr, TILE: tl.constexpr, WIDTH: tl.constexpr, WINDOWED: tl.constexpr,
    K_PLACE: tl.constexpr, V_PLACE: tl.constexpr,
):  # fmt: skip
    """M / GROUP neighbouring rows of a sequence. SPLIT is 0 where splits do not matter."""
    tile, head = tl.program_id(0) // num_kv_heads, tl.program_id(0) % num_kv_heads
    sequence, first_row = tl.load(tiles_ptr + tile * 2), tl.load(tiles_ptr + tile * 2 + 1)
    length = tl.load(lengths_ptr + sequence)
    row_end = tl.load(row_starts_ptr + sequence + 1)
    table_ptr += sequence.to(tl.int64) * table_width
    scale *= number(k_scale, K_PLACE)

    member, cols = tl.arange(0, M)[:, None], tl.arange(0, WIDTH)[None, :]
    row, heads = first_row + member // GROUP, head * GROUP + member % GROUP
    live = (member < M // GROUP * GROUP) & (row < row_end)
    inside = live & (cols < K)
    position = tl.where(live, length - row_end + row, -1)
    at = row.to(tl.int64) * q_row + heads * q_head + cols
    q = tl.load(q_ptr + at, mask=inside, other=0.0)

    lowest = length - row_end + first_row  # position of the first row
    end = tl.minimum(lowest + M // GROUP, length)
    begin = 0
    if WINDOWED:
        begin = tl.maximum(lowest + 1 - window, 0) // TILE * TILE
    maximum, weight, total = _empty(M, WIDTH)
    if SPLIT == 0:
        middle = begin
        if not WINDOWED:
            middle = (lowest + 1) // TILE * TILE
            maximum, weight, total = _attend(
                maximum, weight, total, q, keys_ptr, values_ptr, table_ptr, head,
                begin, middle, length, position, scale, num_kv_heads, window,
                K, P, TILE, WIDTH, WINDOWED, False,
            )  # fmt: skip
        maximum, weight, total = _attend(
            maximum, weight, total, q, keys_ptr, values_ptr, table_ptr, head,
            middle, end, length, position, scale, num_kv_heads, window,
            K, P, TILE, WIDTH, WINDOWED, True,
        )  # fmt: skip
    else:
        for split in range(begin // SPLIT, (end - 1) // SPLIT + 1):
            maximum_2, weight_2, total_2 = _empty(M, WIDTH)
            maximum_2, weight_2, total_2 = _attend(
                maximum_2, weight_2, total_2, q, keys_ptr, values_ptr, table_ptr, head,
                tl.maximum(begin, split * SPLIT), tl.minimum(end, (split + 1) * SPLIT),
                length, position, scale, num_kv_heads, window,
                K, P, TILE, WIDTH, WINDOWED, True,
            )  # fmt: skip
            maximum, weight, total = _merge(maximum, weight, total, maximum_2, weight_2, total_2)
    out = _finish(weight, total, v_scale, V_PLACE).to(out_ptr.dtype.element_ty)
    at = (row.to(tl.int64) * num_kv_heads * GROUP + heads) * K + cols
    tl.store(out_ptr + at, out, mask=inside)


def _tile(tokens: int, key_bytes: int) -> int:
    """Keys that are read at a time: fewer where they are wide."""
    return min(max(tokens * KEY_BYTES // key_bytes, 16), tokens)


def _launch(q, keys, values, work, scale, window, out, k_scale, v_scale):
    q = q if q.stride(2) == 1 else q.contiguous()
    scales = scale * math.log2(math.e), k_scale, v_scale
    sizes = work.num_kv_heads, window or 0, work.table.shape[1], *q.stride()[:2]
    shape = {"K": q.shape[2], "P": keys.shape[2], "GROUP": work.group, "WIDTH": work.width}
    shape |= {"WINDOWED": window is not None} | places(k_scale, v_scale)
    if work.num_items:
        _launch_decode(q, keys, values, work, out, scales, sizes, shape)
    if work.num_tiles:
        _launch_extend(q, keys, values, work, out, scales, sizes, shape)
    if q.shape[0] > work.num_rows:
        out[work.num_rows :].zero_()
    return out


def _launch_decode(q, keys, values, work, out, scales, sizes, shape):
    _decode_kernel[(work.programs(),)](
        q, keys, values, out, *work.parts(),
        work.item_count, work.items, work.row_starts, work.lengths, work.first_slots, work.table,
        *scales, *sizes,
        **shape, SPLIT=work.config.split, M=work.decode_rows,
        **_decode_options(work, keys),
    )  # fmt: skip


def _decode_options(work, keys):
    """What a row's bits depend on. Pages of other than 16 bits spill at the usual warps: fp8 is
    widened on the way, fp32 does without tensor cores.
    """
    config, key_bytes = work.config, work.width * work.dtype.itemsize
    num_warps = config.num_warps * (1 if keys.element_size() == 2 else 2)
    return {
        "TILE": _tile(config.tile, key_bytes),
        "num_warps": num_warps,
        "num_stages": config.num_stages,
    }


def _launch_extend(q, keys, values, work, out, scales, sizes, shape):
    split, options = work.config.split, _decode_options(work, keys)
    if jit.arch() < 90 and work.width <= 128:
        options["maxnreg"] = 168  # unasked, sm_80 takes 128 and spills
    if not work.deterministic:
        split, options = (
            0,
            {"TILE": _tile(64, work.width * work.dtype.itemsize), "num_warps": 8, "num_stages": 3},
        )
    _extend_kernel[(work.num_tiles * work.num_kv_heads,)](
        q, keys, values, out,
        work.tiles, work.row_starts, work.lengths, work.table,
        *scales, *sizes,
        **shape, SPLIT=split, M=work.extend_rows, **options,
    )  # fmt: skip


@cache
def flash_attn():
    """flash-attn 2, or None where it cannot be imported: an install may lack its CUDA part."""
    try:
        return importlib.import_module("flash_attn")
    except Exception:
        return None


def _flash(q, keys, values, work, scale, window, out):
    """flash-attn 2, which has pages as [B, P, G, K]."""
    rows, pages = q[: work.num_rows], (keys.transpose(1, 2), values.transpose(1, 2))
    options = {"softmax_scale": scale, "causal": True, "block_table": work.table}
    options["window_size"] = (-1, -1) if window is None else (window - 1, 0)
    if work.longest_rows == 1 and len(rows) == len(work.lengths):
        found = flash_attn().flash_attn_with_kvcache(
            rows[:, None], *pages, cache_seqlens=work.lengths, **options
        )[:, 0]
    else:
        starts, longest = (work.row_starts, work.key_starts), (work.longest_rows, work.longest)
        found = flash_attn().flash_attn_varlen_func(rows, *pages, *starts, *longest, **options)
    out[: work.num_rows] = found
    out[work.num_rows :].zero_()
    return out


@jit.on_its_device
def paged_attention(
    q: Tensor,
    keys: Tensor,
    values: Tensor,
    work: PagedWork,
    scale: float,
    window: int | None = None,
    out: Tensor | None = None,
    k_scale: Scale = 1.0,
    v_scale: Scale = 1.0,
    backend: str = "triton",
) -> Tensor:
    """q [T, H, K], keys and values [B, G, P, K] with this step's own tokens -> [T, H, K].

    work: what was planned for this step. window: keys that a row sees, itself included. Rows of q
    beyond the planned ones, and rows of sequences without context, become 0. k_scale, v_scale: of
    fp8 pages. Rows and heads of q may be strided as they like. No gradient. backend: "flash" for
    flash-attn 2 where it is installed, for pages of a multiple of 256 tokens in 16 bits; its bits
    depend on the batch.

    Raises ValueError naming the argument: a shape or a device that does not fit, a dtype, a
    DTensor, pages that are not contiguous, a scale that is not above 0.
    """
    _check(q, keys, values, work, scale, window, out)
    for name, value in (("k_scale", k_scale), ("v_scale", v_scale)):
        check_scale(name, value, keys)
    out = torch.empty(q.shape, dtype=q.dtype, device=q.device) if out is None else out
    if backend != "triton":
        _check_flash(backend, keys, work)
        return _flash(q, keys, values, work, scale, window, out)
    if jit.runs_triton(q) and q.dtype != torch.float64:
        return _launch(q, keys, values, work, scale, window, out, k_scale, v_scale)
    arrays = (work.row_starts, work.lengths, work.table)
    return out.copy_(
        paged_attention_reference(q, keys, values, *arrays, scale, window, k_scale, v_scale)
    )


def _check(q, keys, values, work, scale, window, out):
    check_tensor("q", q, ("T", work.num_heads, work.head_dim), (work.dtype,), work.device)
    check_pages(keys, values, q, work.num_kv_heads)
    if keys.shape[2] != work.page_tokens:
        raise ValueError(f"keys: pages of {keys.shape[2]} tokens, wanted {work.page_tokens}")
    if q.shape[0] < work.num_rows:
        raise ValueError(f"q: {q.shape[0]} rows, wanted the {work.num_rows} that were planned")
    check_number("scale", scale, "a number above 0", lambda x: x > 0)
    if window is not None:
        check_number("window", window, "1 or more, or None", lambda x: x >= 1, integer=True)
    if out is not None:
        check_tensor("out", out, q.shape, (q.dtype,), q.device)
        if not out.is_contiguous():
            raise ValueError(f"out: strides {out.stride()}, wanted a contiguous tensor")


def _check_flash(backend, keys, work):
    if backend != "flash":
        raise ValueError(f"backend: {backend!r}, wanted 'triton' or 'flash'")
    if flash_attn() is None:
        raise ValueError("backend: 'flash', wanted 'triton': flash-attn cannot be imported")
    if keys.shape[2] % FLASH_PAGE or keys.dtype not in (torch.bfloat16, torch.float16):
        raise ValueError(
            f"keys: pages of {keys.shape[2]} tokens of {keys.dtype}, wanted of a multiple of "
            f"{FLASH_PAGE} tokens in 16 bits for flash-attn"
        )
