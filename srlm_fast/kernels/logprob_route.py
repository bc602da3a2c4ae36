"""The route that `linear_logprob` takes: how a call is cut into blocks, and what is kept.

It follows from what needs a gradient, the number of rows and the byte budget alone, never from the
memory that happens to be free. The formulas stand in `linear_logprob`.
"""

from __future__ import annotations

import os
from dataclasses import dataclass

import torch
from torch import Tensor

from . import jit
from .logit_rows import runs_native, wide

# Blocks of logits, where the caller names no budget. On a CPU they stay in the last-level cache
# (AMD Zen 4, bf16: 216 GFLOP/s in blocks of 4 MiB, 204 in blocks of 16); on a GPU they are rows
# enough to fill it. H200, torch 2.11: two matmuls of the head in 1,024 rows at a time take 1.02 (D
# 8,192, V 32,000) and 1.14 times (D 4,096, V 128,256) what they take at once.
CPU_BLOCK_BYTES, GPU_BLOCK_BYTES = 4 << 20, 256 << 20
# Narrower blocks starve the matmul, so many rows may need more than the workspace asked for.
MIN_COLUMNS = 256
# A block of all columns has at least this many rows, or fewer columns are taken.
CPU_ROWS, GPU_ROWS = 2048, 512
# Columns of a head that must be widened first (half precision on an older CPU).
WIDENED_COLUMNS = 4096
# Up to this width a GPU takes the fused matmul with gradients too: the pass over the logits would
# cost more than the matmul loses against the vendor's. An estimate, not yet measured; the variable
# is for measuring.
FUSED_DEPTH = int(os.environ.get("SRLM_FAST_FUSED_DEPTH", "2048"))
# Rows of one matmul in batch-invariant form, and columns of a block with a trainable head.
CPU_FIXED_ROWS, GPU_FIXED_ROWS, FIXED_COLUMNS = 128, 512, 4096


@dataclass(frozen=True)
class Route:
    """How a call is cut: blocks of `rows` x `columns` logits, `kept` columns of exponentials kept
    for the backward pass, in blocks of `kept_columns`.
    """

    name: str  # "score", "frozen" or "trainable"
    rows: int
    columns: int
    kept: int
    kept_columns: int
    fused: bool  # the forward matmul has the softmax in its epilogue
    matmuls: float  # of 2 N D V FLOPs each, forward and backward
    workspace_bytes: int


def choose_route(
    hidden, head, bias, num_rows, workspace_bytes, batch_invariant, keep_inputs
) -> Route:
    name, rows = _name(hidden, head, bias), max(num_rows, 1)
    fused = jit.runs_triton(hidden) and hidden.dtype in (torch.bfloat16, torch.float16)
    # Logits that are made again are rounded; with statistics of unrounded ones their
    # probabilities would not add up to 1.
    fused = fused and (name == "score" or (head.shape[1] <= FUSED_DEPTH and not keep_inputs))
    if name == "trainable":
        return _trainable_route(hidden, head, rows, workspace_bytes, batch_invariant, fused)
    if name == "score" and fused:
        return _fused_score_route(hidden, head, rows, workspace_bytes)
    return _row_route(name, hidden, head, rows, workspace_bytes, batch_invariant, fused)


def _name(hidden: Tensor, head: Tensor, bias: Tensor | None) -> str:
    if not torch.is_grad_enabled():
        return "score"
    if head.requires_grad or (bias is not None and bias.requires_grad):
        return "trainable"
    if not hidden.requires_grad:
        return "score"
    # Products with sums of exponentials leave the range of fp16; gradients of logits do not.
    return "trainable" if matmul_dtype(hidden) == torch.float16 else "frozen"


def _fused_score_route(hidden, head, num_rows, workspace_bytes) -> Route:
    """No block at all: three numbers per row and tile of 128 columns or more."""
    row_bytes = 12 * -(-head.shape[0] // 128)
    budget = _block_bytes(hidden) if workspace_bytes is None else workspace_bytes
    rows = min(max(budget // row_bytes // 128 * 128, 128), num_rows)
    return Route("score", rows, head.shape[0], 0, 0, True, 1, rows * row_bytes)


def _row_route(name, hidden, head, num_rows, workspace_bytes, batch_invariant, fused) -> Route:
    """All columns at once if they fit, and as many rows as then fit."""
    size, num_classes = _logit_bytes(hidden), head.shape[0]
    budget = _block_bytes(hidden) if workspace_bytes is None else workspace_bytes
    # The cut of the columns shapes a row's bits, so in batch-invariant form it knows no rows.
    few = GPU_ROWS if hidden.is_cuda else CPU_ROWS
    few = few if batch_invariant else min(few, num_rows)
    columns = min(max(budget // (few * size), MIN_COLUMNS), _widest(hidden, num_classes))
    if fused:
        columns, few = num_classes, min(128, num_rows)
    whole = (GPU_FIXED_ROWS if hidden.is_cuda else CPU_FIXED_ROWS) if batch_invariant else 128
    fit = budget // (columns * size) // whole * whole
    rows = min(max(fit, few), num_rows)
    return Route(name, rows, columns, 0, 0, fused, 2 - (name == "score"), rows * columns * size)


def _trainable_route(hidden, head, num_rows, workspace_bytes, batch_invariant, fused) -> Route:
    """All rows at once; as many columns kept as fit beside one block of the others."""
    size, (num_classes, depth) = _logit_bytes(hidden), head.shape
    column_bytes = num_rows * size
    block, widest = _block_bytes(hidden), _widest(hidden, num_classes)
    budget = workspace_bytes
    if budget is None:
        budget = max(5 * num_classes * depth, 4 * block)
    narrow, kept = matmul_dtype(hidden), num_classes
    columns = min(max(block // column_bytes, MIN_COLUMNS), widest)
    if num_classes * column_bytes > budget or narrow == torch.float16:
        columns = max(min(block, budget // 4) // column_bytes, MIN_COLUMNS)
        columns = min(columns, widest)
        # Without Triton or the extension a block needs more while it is made than when it is kept.
        may_keep = size == narrow.itemsize and narrow != torch.float16
        kept = max(budget // column_bytes - columns, 0) // MIN_COLUMNS * MIN_COLUMNS * may_keep
    if batch_invariant:  # neither the cut nor what is kept may follow from the number of rows
        kept, columns = 0, min(FIXED_COLUMNS, widest)
    # On a GPU one block, so that each of its matmuls is one; on a CPU blocks that fit its cache.
    kept_columns = kept
    if not hidden.is_cuda:
        kept_columns = min(max(block // column_bytes // 64 * 64, MIN_COLUMNS), widest, kept)
    used = (kept + (columns if kept < num_classes else 0)) * column_bytes
    matmuls = 1 + hidden.requires_grad + head.requires_grad + (1 - kept / num_classes)
    fused = fused and kept == num_classes
    return Route("trainable", num_rows, columns, kept, kept_columns, fused, matmuls, used)


def _widest(hidden: Tensor, num_classes: int) -> int:
    """Columns of a block at most, so that a widened copy of the head's rows stays small."""
    widened = matmul_dtype(hidden) != hidden.dtype
    return min(num_classes, WIDENED_COLUMNS) if widened else num_classes


def _block_bytes(hidden: Tensor) -> int:
    return GPU_BLOCK_BYTES if hidden.is_cuda else CPU_BLOCK_BYTES


def _logit_bytes(hidden: Tensor) -> int:
    """Bytes of a logit while its block is worked on."""
    narrow = matmul_dtype(hidden)
    in_place = runs_native(torch.empty(0, dtype=narrow, device=hidden.device))
    if in_place or (jit.runs_triton(hidden) and narrow != torch.float64):
        return narrow.itemsize
    return narrow.itemsize + 2 * wide(narrow).itemsize


def matmul_dtype(hidden: Tensor) -> torch.dtype:
    """The dtype of the matmuls: that of `hidden`, but fp32 for half precision on most CPUs.

    PyTorch's half-precision matmul is slower than fp32 in bf16 without AVX-512 (AMD Zen 3, torch
    2.13: 10 against 45 GFLOP/s) and in fp16 without its own instructions, which few CPUs have
    (Zen 4: 20 times slower), while widening a block of the head costs one pass over it.
    """
    if hidden.device.type != "cpu":
        return hidden.dtype
    fast = hidden.dtype == torch.bfloat16 and "AVX512" in torch.backends.cpu.get_cpu_capability()
    return hidden.dtype if fast else wide(hidden.dtype)
