"""The head's matmul with the softmax in its epilogue: statistics, or exponentials, and no logits.

    x = hidden @ head.T       hidden [N, D], head [V, D], bf16 or fp16; accumulated in fp32

cut in tiles of BM rows and BN columns. A tile turns its logits into z (see `logit_rows`), leaves
out the target's column and writes per row

    top_c = max_j z_j       total_c = sum_j e^(z_j - top_c)       moment_c

[tiles, N] fp32 each, 8 or 12 bytes for BN logits; a second kernel adds them up in the order of the
columns. No atomics and no locks, and a row's bits depend on its own values alone, whatever rows
stand beside it. 2 N D V FLOPs; N D V (1 / BM + 1 / BN) elements are read, mostly from L2.

With `out` [N, V] the tile also stores e^(z_j - k) bend_j, where it cannot know the row's maximum
yet. k is the target's own logit: any k within 40 of the row's log-sum-exp loses nothing, since bf16
has the exponents of fp32. Rows for which the sum leaves [1e-18, 1e18] are given their true maximum,
known by then, and the same kernel is launched again; tiles without such rows return at once. The
device decides, the host does not wait.

The eager twin is `head_softmax_reference`. Where this form is taken: see `linear_logprob`.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from . import jit
from .jit import tl, triton
from .logit_rows import LOWEST, RowState, Transform, scalars, switches, transformed


class Tiles(NamedTuple):
    """BM rows and BN columns a program, BK of the depth a step."""

    BM: int
    BN: int
    BK: int
    num_warps: int
    num_stages: int


# By arch, chosen from registers, spills and shared memory as compiled; correct on an H200, their
# speed not yet measured.
TILES = {
    80: Tiles(128, 128, 32, 8, 4),
    90: Tiles(128, 256, 64, 8, 3),
    100: Tiles(128, 256, 64, 8, 3),
}
# With a softcap, or pointers for want of descriptors, 256 columns spill.
HEAVY_TILES = {
    80: Tiles(128, 128, 32, 8, 4),
    90: Tiles(128, 128, 64, 8, 3),
    100: Tiles(128, 128, 64, 8, 3),
}
# Few rows: what a tile of 128 rows would compute for nothing is more than it saves.
FEW_ROWS = 64
FEW_TILES = {
    80: Tiles(64, 128, 32, 4, 4),
    90: Tiles(64, 128, 64, 8, 4),
    100: Tiles(64, 128, 64, 8, 4),
}
GROUP = 8  # row tiles that walk the columns together, so that a part of the head stays in L2
MERGE_ROWS = 64


def tiles_for(
    hidden: Tensor, head: Tensor, transform: Transform, batch_invariant: bool = False
) -> Tiles:
    """The tile of these shapes on the current device."""
    table = TILES
    if transform.softcap is not None or not _descriptors_fit(hidden, head):
        table = HEAVY_TILES
    # In batch-invariant form the number of rows has no say.
    if hidden.shape[0] <= FEW_ROWS and not batch_invariant:
        table = FEW_TILES
    return table[max(key for key in table if key <= max(jit.arch(), 80))]


def head_softmax_reference(
    hidden: Tensor,
    head: Tensor,
    bias: Tensor | None,
    targets: Tensor,
    transform: Transform,
    with_moment: bool = False,
    offset: Tensor | None = None,
) -> tuple[RowState, Tensor]:
    """The same in eager PyTorch: the state, and exponentials relative to `offset` (or to top)."""
    x = (hidden @ head.T).float()
    z, bend = transform(x if bias is None else x + bias)
    z = z.scatter(1, targets[:, None], -torch.inf)
    top = z.amax(1).clamp(min=LOWEST) if offset is None else offset
    gap = z - top[:, None]
    expz = gap.exp()
    moment = (expz * gap).nan_to_num(0.0).sum(1) if with_moment else None
    return RowState(top, expz.sum(1), moment), (expz * bend).to(hidden.dtype)


def head_softmax(
    hidden: Tensor,
    head: Tensor,
    bias: Tensor | None,
    targets: Tensor,
    transform: Transform,
    with_moment: bool = False,
    offset: Tensor | None = None,
    out: Tensor | None = None,
    batch_invariant: bool = False,
) -> RowState:
    """hidden [N, D], head [V, D], bias [V], targets [N] int64 -> the state of all V columns.

    With `out` [N, V] its exponentials relative to the state's top are stored there, 0 in the
    target's cell; offset [N] fp32 is then the first guess of the top, and is overwritten.
    """
    num_rows, num_classes = hidden.shape[0], head.shape[0]
    tiles = tiles_for(hidden, head, transform, batch_invariant)
    columns, stored = jit.cdiv(num_classes, tiles.BN), out is not None
    new = {"dtype": torch.float32, "device": hidden.device}
    parts = torch.empty((3 if with_moment else 2, columns, num_rows), **new)
    sums = torch.empty((3, num_rows), **new)
    state = RowState(sums[0], sums[1], sums[2] if with_moment else None)
    again = torch.zeros(num_rows, dtype=torch.int32, device=hidden.device)
    offset = state.top if offset is None else offset
    for fix in (False, True) if stored else (False,):
        _launch_tiles(
            hidden,
            head,
            bias,
            targets,
            transform,
            parts,
            offset,
            out,
            again,
            tiles,
            fix,
            with_moment,
        )
        _merge_kernel[(jit.cdiv(num_rows, MERGE_ROWS),)](
            *_planes(parts),
            sums,
            offset,
            again,
            num_rows,
            columns,
            HAS_OFFSET=stored,
            HAS_MOMENT=with_moment,
            ROWS=MERGE_ROWS,
            num_warps=2,
        )
    return state


@triton.jit
def _tiles_kernel(
    hidden,
    head,
    bias_ptr,
    targets_ptr,
    offset_ptr,
    again_ptr,
    tops_ptr,
    totals_ptr,
    moments_ptr,
    out_ptr,
    softcap,
    scale,
    num_rows,
    num_classes,
    depth,
    hidden_stride,
    head_stride,
    out_stride,
    HAS_BIAS: tl.constexpr,
    HAS_CAP: tl.constexpr,
    HAS_MOMENT: tl.constexpr,
    STORE: tl.constexpr,
    FIX: tl.constexpr,
    BY_DESCRIPTOR: tl.constexpr,
    EVEN_DEPTH: tl.constexpr,
    GROUP: tl.constexpr,
    BM: tl.constexpr,
    BN: tl.constexpr,
    BK: tl.constexpr,
):
    # hidden and head are tensor descriptors (TMA) or pointers.
    row_tiles = tl.cdiv(num_rows, BM)
    col_tiles = tl.cdiv(num_classes, BN)
    pid = tl.program_id(0)
    group = pid // (GROUP * col_tiles) * GROUP
    members = tl.minimum(row_tiles - group, GROUP)
    in_group = pid % (GROUP * col_tiles)
    row_tile = group + in_group % members
    col_tile = in_group // members
    rows = row_tile * BM + tl.arange(0, BM)
    cols = col_tile * BN + tl.arange(0, BN)
    live = rows < num_rows
    if FIX:
        if tl.max(tl.load(again_ptr + rows, mask=live, other=0), axis=0) == 0:
            return

    depths = tl.arange(0, BK)
    if not BY_DESCRIPTOR:
        # Rows and columns beyond the end are computed on row or column 0 and masked below.
        a_ptr = hidden + tl.where(live, rows, 0).to(tl.int64)[:, None] * hidden_stride
        b_ptr = head + tl.where(cols < num_classes, cols, 0).to(tl.int64)[:, None] * head_stride
    acc = tl.zeros((BM, BN), tl.float32)
    for k in range(0, depth, BK):
        if BY_DESCRIPTOR:
            a = hidden.load([row_tile * BM, k])
            b = head.load([col_tile * BN, k])
        elif EVEN_DEPTH:
            a = tl.load(a_ptr + (k + depths)[None, :])
            b = tl.load(b_ptr + (k + depths)[None, :])
        else:
            inside = (k + depths)[None, :] < depth
            a = tl.load(a_ptr + (k + depths)[None, :], mask=inside, other=0.0)
            b = tl.load(b_ptr + (k + depths)[None, :], mask=inside, other=0.0)
        acc = tl.dot(a, b.T, acc)

    if HAS_BIAS:
        bias = tl.load(bias_ptr + cols, mask=cols < num_classes, other=0.0).to(tl.float32)
        acc += bias[None, :]
    own = tl.load(targets_ptr + rows, mask=live, other=-1)
    z, bend = transformed(acc, softcap, scale, HAS_CAP)
    others = (cols < num_classes)[None, :] & (cols[None, :] != own[:, None])
    z = tl.where(others, z, float("-inf"))
    top = tl.maximum(tl.max(z, axis=1), -3.4028234663852886e38)
    offset = top
    if STORE:
        offset = tl.load(offset_ptr + rows, mask=live, other=0.0)
    gap = z - offset[:, None]
    expz = tl.exp(gap)
    part = col_tile.to(tl.int64) * num_rows + rows
    tl.store(tops_ptr + part, top, mask=live)
    tl.store(totals_ptr + part, tl.sum(expz, axis=1), mask=live)
    if HAS_MOMENT:
        terms = tl.where(expz > 0, expz * gap, 0.0)
        tl.store(moments_ptr + part, tl.sum(terms, axis=1), mask=live)
    if STORE:
        out = out_ptr + rows.to(tl.int64)[:, None] * out_stride + cols[None, :]
        mask = live[:, None] & (cols < num_classes)[None, :]
        tl.store(out, (expz * bend).to(out_ptr.dtype.element_ty), mask=mask)


@triton.jit
def _merge_kernel(
    tops_ptr,
    totals_ptr,
    moments_ptr,
    sums_ptr,
    offset_ptr,
    again_ptr,
    num_rows,
    columns,
    HAS_OFFSET: tl.constexpr,
    HAS_MOMENT: tl.constexpr,
    ROWS: tl.constexpr,
):
    rows = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    live = rows < num_rows
    top = tl.full((ROWS,), -3.4028234663852886e38, tl.float32)
    total = tl.zeros((ROWS,), tl.float32)
    moment = tl.zeros((ROWS,), tl.float32)
    part = rows.to(tl.int64)
    for _ in range(0, columns):
        part_top = tl.load(tops_ptr + part, mask=live, other=-3.4028234663852886e38)
        part_total = tl.load(totals_ptr + part, mask=live, other=0.0)
        new_top = tl.maximum(top, part_top)
        if HAS_OFFSET:
            total += part_total
        else:
            shrink, part_shrink = tl.exp(top - new_top), tl.exp(part_top - new_top)
        if HAS_MOMENT:
            part_moment = tl.load(moments_ptr + part, mask=live, other=0.0)
            if HAS_OFFSET:
                moment += part_moment
            else:
                moment = (moment + (top - new_top) * total) * shrink
                moment += (part_moment + (part_top - new_top) * part_total) * part_shrink
        if not HAS_OFFSET:
            total = total * shrink + part_total * part_shrink
        top = new_top
        part += num_rows
    if HAS_OFFSET:
        offset = tl.load(offset_ptr + rows, mask=live, other=0.0)
        # Written so that a NaN is not fine.
        fine = ((total > 1e-18) & (total < 1e18)) | (top < -3.4e38)
        offset = tl.where(fine, offset, top)
        tl.store(offset_ptr + rows, offset, mask=live)
        tl.store(again_ptr + rows, tl.where(fine, 0, 1), mask=live)
        top = offset
    tl.store(sums_ptr + rows, top, mask=live)
    tl.store(sums_ptr + num_rows + rows, total, mask=live)
    if HAS_MOMENT:
        tl.store(sums_ptr + 2 * num_rows + rows, moment, mask=live)


def _launch_tiles(
    hidden, head, bias, targets, transform, parts, offset, out, again, tiles, fix, with_moment
):
    (num_rows, depth), num_classes = hidden.shape, head.shape[0]
    by_descriptor = _descriptors_fit(hidden, head)
    BM, BN, BK = tiles[:3]
    grid = (jit.cdiv(num_rows, BM) * jit.cdiv(num_classes, BN),)
    _tiles_kernel[grid](
        descriptor(hidden, [BM, BK]) if by_descriptor else hidden,
        descriptor(head, [BN, BK]) if by_descriptor else head,
        head if bias is None else bias,
        targets,
        offset,
        again,
        *_planes(parts),
        hidden if out is None else out,
        *scalars(transform),
        num_rows,
        num_classes,
        depth,
        hidden.stride(0),
        head.stride(0),
        0 if out is None else out.stride(0),
        **switches(bias, transform),
        HAS_MOMENT=with_moment,
        STORE=out is not None,
        FIX=fix,
        BY_DESCRIPTOR=by_descriptor,
        EVEN_DEPTH=depth % BK == 0,
        GROUP=GROUP,
        BM=BM,
        BN=BN,
        BK=BK,
        num_warps=tiles.num_warps,
        num_stages=tiles.num_stages,
    )


def _planes(parts: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """tops, totals and moments [tiles, N]; without moments something in their place."""
    return parts[0], parts[1], parts[-1]


def descriptor(x: Tensor, block: list[int]):
    """The tensor memory accelerator's view of x."""
    from triton.tools.tensor_descriptor import TensorDescriptor

    return TensorDescriptor.from_tensor(x, block)


def _descriptors_fit(*tensors: Tensor) -> bool:
    """TMA wants Hopper, rows that begin at multiples of 16 bytes, and columns side by side."""
    return jit.arch() >= 90 and all(
        x.stride(1) == 1
        and x.stride(0) >= x.shape[1]
        and x.stride(0) * x.itemsize % 16 == 0
        and x.data_ptr() % 16 == 0
        for x in tensors
    )
