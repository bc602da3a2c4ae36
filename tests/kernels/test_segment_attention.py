"""segment_attention: native kernels, padded SDPA and merged varlen calls against fp64 truth and
eager PyTorch, forward and backward; a segment's own rows alone count; the same bits from any number
of threads; refusals.
"""

from __future__ import annotations

import math
import sys
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from srlm_fast.kernels.native import available
from srlm_fast.kernels.segment_attention import (
    Segments,
    segment_attention,
    segment_attention_reference,
)
from srlm_fast.kernels.tree_attention import TreeAttention, VarlenCalls
from tests.kernels.dtensors import dtensors
from tests.kernels.guard import guarded
from tests.kernels.three_way import assert_no_worse
from tests.sampler.helpers import ISAS, isa_level

module = sys.modules[segment_attention.__module__]
needs_native = pytest.mark.skipif(not available(), reason="the extension is not built")
# Of the largest true value.
FLOOR = {torch.float32: 2e-6, torch.bfloat16: 4e-3, torch.float16: 1e-3, torch.float64: 1e-14}
DTYPES = [torch.float32, torch.bfloat16]
NAMES = "out", "dq", "dk", "dv"

# Trees, a parent without children, plain segments, segments of one token; more than a block.
MIXED = [70, 130, 1, 40, 33, 1, 17], [-1, 0, 0, -1, 3, -1, -1]
INTERLEAVED = [9, 6, 5, 3, 8, 2], [-1, -1, 0, 1, 0, 1]
PLAIN = [33, 64, 1, 7], None


@dataclass
class Case:
    """q, k and v are views of one projection; grad is that of the output."""

    segments: Segments
    q: Tensor
    k: Tensor
    v: Tensor
    grad: Tensor
    window: int | None

    @property
    def scale(self) -> float:
        return self.q.shape[2] ** -0.5

    def run(self, attend, dtype=None) -> list[Tensor]:
        """out, dq, dk, dv. A dtype other than the case's own makes copies."""
        leaves = [x.detach().to(dtype or x.dtype) for x in (self.q, self.k, self.v)]
        leaves = [x.requires_grad_() for x in leaves]
        out = attend(*leaves, self.segments, self.scale, self.window)
        out.backward(self.grad.to(out.dtype))
        return [out.detach(), *(x.grad for x in leaves)]

    def reference(self, dtype=None) -> list[Tensor]:
        return self.run(segment_attention_reference, dtype)


def make(
    layout=MIXED, heads=(4, 2, 64), dtype=torch.float32, window=None, size=1.0, seed=0
) -> Case:
    segments = Segments(*layout)
    num_heads, kv_heads, width = heads
    generator = torch.Generator().manual_seed(seed)
    rows = segments.num_rows
    qkv = torch.randn(rows, num_heads + 2 * kv_heads, width, generator=generator)
    qkv[:, :num_heads] *= size
    q, k, v = qkv.to(dtype).split((num_heads, kv_heads, kv_heads), 1)
    grad = torch.randn(q.shape, generator=generator).to(dtype)
    return Case(segments, q, k, v, grad, window)


def assert_three_ways(case: Case, attend=segment_attention, eager=None) -> None:
    truth, dtype = case.reference(torch.float64), case.q.dtype
    eager = case.run(eager or segment_attention_reference)
    with guarded():
        found = case.run(attend)
    # A gradient that vanishes is what is left of sums that do not.
    least = 0.25 * max(float(x.abs().max()) for x in truth[1:])
    for name, ours, theirs, right in zip(NAMES, found, eager, truth, strict=True):
        assert ours.dtype == dtype and ours.shape == right.shape
        floor = FLOOR[dtype] * max(float(right.abs().max()), least)
        assert_no_worse(ours, theirs, right, floor, name)


def sdpa(q, k, v, segments, scale, window):
    """PyTorch's own flash attention: in bf16 it rounds what we round, which the reference does not:
    the probabilities and the output that delta is made of.
    """
    return module._attend_padded(q, k, v, segments, scale, window)


def assert_native(case: Case) -> None:
    bf16 = case.q.dtype == torch.bfloat16
    assert_three_ways(case, eager=sdpa if bf16 else segment_attention_reference)


# The native kernels


@needs_native
@pytest.mark.parametrize("layout", [MIXED, INTERLEAVED, PLAIN], ids=["mixed", "woven", "plain"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("isa", ISAS)
def test_three_way(isa, dtype, layout):
    with isa_level(isa):
        assert_native(make(layout, dtype=dtype))


@needs_native
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("heads", [(3, 1, 8), (5, 5, 16), (6, 2, 80), (4, 1, 128), (2, 1, 12)])
def test_heads(heads, dtype):
    for isa in ISAS[-1:]:
        with isa_level(isa):
            assert_native(make(heads=heads, dtype=dtype))


@needs_native
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("window", [1, 3, 32, 45, 100, 199, 200, 1000])
def test_window(window, dtype):
    assert_native(make(dtype=dtype, window=window))


@needs_native
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("size", [0.0, 30.0, 1000.0])
def test_equal_and_peaked_scores(size, dtype):
    assert_native(make(dtype=dtype, size=size))


@needs_native
def test_chunks_of_queries():
    """Segments of several blocks of keys and several chunks of queries."""
    for window in (None, 150):
        assert_native(make(([300, 170], [-1, 0]), (2, 1, 16), window=window))


@needs_native
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_threads_and_gradients_change_no_bit(dtype):
    case, threads, found = make(dtype=dtype), torch.get_num_threads(), []
    try:
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            found.append(case.run(segment_attention))
    finally:
        torch.set_num_threads(threads)
    for other in found[1:]:
        assert all(map(torch.equal, found[0], other))
    with torch.no_grad():
        alone = segment_attention(case.q, case.k, case.v, case.segments, case.scale)
    assert torch.equal(found[0][0], alone)


@needs_native
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_strides(dtype):
    case = make(dtype=dtype)
    right = case.run(segment_attention)
    case.q = case.q.transpose(0, 2).contiguous().transpose(0, 2)
    case.k, case.grad = case.k.contiguous(), case.grad.mT.contiguous().mT
    assert all(map(torch.equal, case.run(segment_attention), right))


@needs_native
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_rows_that_are_not_seen_have_no_influence(dtype):
    """A NaN reaches its own row, those behind it and its children, and no other."""
    case = make(([5, 4, 3, 6, 2], [-1, 0, 0, -1, 3]), dtype=dtype)
    k = case.k.clone()
    k[2] = math.nan
    out = segment_attention(case.q, k, case.v, case.segments, case.scale)
    bad = out.isnan().flatten(1).all(1).tolist()
    assert bad == [False] * 2 + [True] * 10 + [False] * 8
    assert out.isnan().flatten(1).any(1).tolist() == bad


@needs_native
def test_by_hand():
    """Equal keys: the mean of the values seen; a window of 2: of the last two."""
    v = torch.arange(5.0)[:, None, None].expand(5, 1, 16)
    q = k = torch.ones(5, 1, 16)
    segments = Segments([2, 2, 1], [-1, 0, 0])  # positions 0 1, 2 3, 2
    for window, right in ((None, [0, 0.5, 1, 1.5, 5 / 3]), (2, [0, 0.5, 1.5, 2.5, 2.5])):
        out = segment_attention(q, k, v, segments, 1.0, window)
        assert torch.allclose(out[:, 0, 0], torch.tensor(right))


# SDPA


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("window", [None, 3, 45])
@pytest.mark.parametrize("layout", [MIXED, INTERLEAVED, PLAIN, ([5, 5], None)])
def test_padded(monkeypatch, layout, window, dtype):
    monkeypatch.setattr(module, "available", lambda: False)
    assert_three_ways(make(layout, (4, 2, 16), dtype, window))


# Two calls and their merger


def dense_scores(q, k, sequences, scale, window):
    """Scores [H, Q, M] of the whole stream, -inf across sequences."""
    group = q.shape[1] // k.shape[1]
    scores = torch.einsum("qhd,khd->hqk", q, k.repeat_interleave(group, 1)) * scale
    q_part, k_part = (
        torch.repeat_interleave(torch.arange(len(starts) - 1), starts.diff())
        for starts in (sequences.q_starts, sequences.k_starts)
    )
    seen = q_part[:, None] == k_part
    if sequences.causal:
        distance = torch.arange(len(q))[:, None] - torch.arange(len(k))
        seen &= (distance >= 0) & (distance < (window or len(k)))
    assert sequences.longest_q == sequences.q_starts.diff().max()
    assert sequences.longest_k == sequences.k_starts.diff().max()
    return scores.masked_fill(~seen, -torch.inf)


def dense_forward(q, k, v, sequences, scale, window):
    scores, group = dense_scores(q, k, sequences, scale, window), q.shape[1] // k.shape[1]
    out = torch.einsum("hqk,khd->qhd", scores.softmax(-1), v.repeat_interleave(group, 1))
    return out, scores.logsumexp(-1)


def dense_backward(grad, q, k, v, out, lse, sequences, scale, window):
    """As flash attention does it: probabilities from lse, delta from out."""
    group = q.shape[1] // k.shape[1]
    keys, values = k.repeat_interleave(group, 1), v.repeat_interleave(group, 1)
    p = (dense_scores(q, k, sequences, scale, window) - lse[:, :, None]).exp()
    delta = (grad * out).sum(2).t()[:, :, None]
    ds = scale * p * (torch.einsum("qhd,khd->hqk", grad, values) - delta)
    dk, dv = torch.einsum("hqk,qhd->khd", ds, q), torch.einsum("hqk,qhd->khd", p, grad)
    dk, dv = (x.unflatten(1, (-1, group)).sum(2) for x in (dk, dv))
    return torch.einsum("hqk,khd->qhd", ds, keys), dk, dv


DENSE = VarlenCalls(dense_forward, dense_backward)


def merged(q, k, v, segments, scale, window):
    plan = segments.tree_plan(q.device)
    return TreeAttention.apply(q, k, v, plan, scale, window, DENSE)


@pytest.mark.parametrize("size", [1.0, 30.0])
@pytest.mark.parametrize("heads", [(4, 4, 8), (6, 2, 16)])
@pytest.mark.parametrize("layout", [MIXED, INTERLEAVED, PLAIN], ids=["mixed", "woven", "plain"])
def test_merged_calls(layout, heads, size):
    case = make(layout, heads, torch.float64, size=size)
    for ours, right in zip(case.run(merged), case.reference(), strict=True):
        torch.testing.assert_close(ours, right, rtol=1e-11, atol=1e-12)


def test_merged_calls_with_a_window():
    case = make(PLAIN, dtype=torch.float64, window=5)
    for ours, right in zip(case.run(merged), case.reference(), strict=True):
        torch.testing.assert_close(ours, right, rtol=1e-11, atol=1e-12)


def test_plan_by_hand():
    """Segments 0 and 1 are parents, of 2 and 4 and of 3 and 5."""
    plan = Segments([9, 6, 5, 3, 8, 2], [-1, -1, 0, 1, 0, 1]).tree_plan(torch.device("cpu"))
    assert plan.own.q_starts.tolist() == [0, 9, 15, 20, 23, 31, 33] and plan.own.causal
    assert plan.parent_rows.tolist() == list(range(15))
    assert plan.child_rows.tolist() == [*range(15, 20), *range(23, 31), *range(20, 23), 31, 32]
    assert plan.branches.q_starts.tolist() == [0, 13, 18] and not plan.branches.causal
    assert plan.branches.k_starts.tolist() == [0, 9, 15] and plan.branches.longest_q == 13
    assert plan.own.q_starts.dtype == plan.branches.k_starts.dtype == torch.int32


def test_flash_takes_the_arguments_that_we_give():
    """Its CPU-side schema; the call itself fails here for want of a GPU."""
    for name in ("_flash_attention_forward", "_flash_attention_backward"):
        schema = getattr(torch.ops.aten, name).default._schema
        names = [argument.name for argument in schema.arguments]
        start = names.index("cum_seq_q")
        assert names[start : start + 6] == [
            "cum_seq_q", "cum_seq_k", "max_q", "max_k", "dropout_p", "is_causal",
        ]  # fmt: skip
        assert {"scale", "window_size_left", "window_size_right"} <= set(names)


@pytest.mark.gpu
@pytest.mark.parametrize("window", [None, 45])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32], ids=str)
@pytest.mark.parametrize("layout", [MIXED, INTERLEAVED, PLAIN], ids=["mixed", "woven", "plain"])
def test_gpu(layout, dtype, window):
    case = make(layout, (8, 2, 64), dtype, window)
    for name in ("q", "k", "v", "grad"):
        setattr(case, name, getattr(case, name).cuda())
    truth, eager = case.reference(torch.float64), case.reference()
    for name, ours, theirs, right in zip(
        NAMES, case.run(segment_attention), eager, truth, strict=True
    ):
        floor = FLOOR[dtype] * float(right.abs().max())
        assert_no_worse(ours, theirs, right, floor, name)


@pytest.mark.gpu
def test_gpu_does_not_wait():
    case = make(dtype=torch.bfloat16)
    moved = [x.cuda() for x in (case.q, case.k, case.v)]
    segment_attention(*moved, case.segments, 1.0)
    torch.cuda.set_sync_debug_mode("error")
    try:
        out = segment_attention(*moved, case.segments, 1.0)  # raises where it waits
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert out.shape == case.q.shape


# Refusals


def test_refuses():
    case = make()
    good = {"q": case.q, "k": case.k, "v": case.v, "segments": case.segments, "scale": 1.0}
    bad = {
        "q: ": [case.q[1:], case.q[0], case.q.int(), case.q[:, :3]],
        "k: ": [case.k[1:], case.k[:, :, 1:], case.k.half(), case.k.to("meta")],
        "v: ": [case.v[:, :1], case.v.double()],
        "scale: ": [0.0, -1.0, math.nan, torch.ones(1)],
        "window: ": [0, -1, 1.5],
    }
    for argument, values in bad.items():
        for value in values:
            with pytest.raises(ValueError, match=f"^{argument}"):
                segment_attention(**good | {argument[:-2]: value})
    with dtensors() as distributed, pytest.raises(ValueError, match="^q: a DTensor"):
        segment_attention(**good | {"q": distributed(case.q)})


@needs_native
def test_refuses_a_second_derivative():
    case = make()
    q = case.q.clone().requires_grad_()
    out = segment_attention(q, case.k, case.v, case.segments, 1.0)
    with pytest.raises(RuntimeError, match="create_graph"):
        torch.autograd.grad(out.sum(), q, create_graph=True)
