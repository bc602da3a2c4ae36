"""linear_logprob through its Triton kernels: on the GPU where there is one, else interpreted."""

from __future__ import annotations

import math

import pytest
import torch
from torch.testing import assert_close

from srlm_fast.kernels import (
    head_softmax,
    linear_logprob,
    linear_logprob_route,
    logit_rows,
    logprob_route,
)
from srlm_fast.kernels.head_softmax import Tiles, head_softmax_reference
from srlm_fast.kernels.logit_rows import RowState, Transform, finish_reference
from tests.kernels.head_cases import (
    check,
    check_rows,
    equal,
    hundreds,
    make,
    peaked,
    random,
    run,
    zipf,
)

# What NumPy says of an infinity under the interpreter.
pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")
EVERYTHING = {"softcap": 8.0, "temperature": 0.7, "return_lse": True, "return_entropy": True}


@pytest.fixture(params=["vendor", "fused"])
def matmul(request, monkeypatch):
    """The vendor's matmul and the row kernels; the fused matmul. Small tiles, so that there are
    several.
    """
    monkeypatch.setattr(logprob_route, "FUSED_DEPTH", 10**9 if request.param == "fused" else -1)
    monkeypatch.setattr(logit_rows, "ONE_BLOCK", 128)
    monkeypatch.setattr(logit_rows, "STEP", 128)
    monkeypatch.setattr(logprob_route, "CPU_BLOCK_BYTES", 1)  # several blocks, kept ones too
    tiles = {80: Tiles(16, 128, 16, 4, 2)}
    for table in ("TILES", "HEAVY_TILES", "FEW_TILES"):
        monkeypatch.setattr(head_softmax, table, tiles)
    return request.param


CASES = [
    # kind, T, D, V, bytes: several blocks of columns or of rows, one block, one row, one class
    (random, 19, 16, 61, 1 << 20),
    (random, 19, 24, 350, 1),
    (random, 19, 24, 350, 19 * 256 * 2),
    (random, 1, 8, 150, 1),
    (random, 5, 8, 1, 1 << 20),
    (peaked, 12, 16, 300, 1 << 20),
    (hundreds, 12, 16, 265, 1 << 20),
    (zipf, 16, 16, 350, 1 << 20),
    (equal, 7, 8, 257, 1),
]


@pytest.mark.parametrize("frozen", [False, True], ids=["trainable", "frozen"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize(
    "case", CASES, ids=lambda c: f"{c[0].__name__}-{'x'.join(map(str, c[1:]))}"
)
def test_three_way(case, dtype, frozen, matmul, kernel_device):
    kind, t, d, v, workspace = case
    check(kind, t, d, v, dtype, frozen, True, device=kernel_device, workspace_bytes=workspace)


@pytest.mark.parametrize("frozen", [False, True], ids=["trainable", "frozen"])
@pytest.mark.parametrize("kind", [random, peaked, hundreds])
def test_three_way_with_everything(kind, frozen, kernel_device):
    for workspace in (1, 1 << 22):
        options = EVERYTHING | {"workspace_bytes": workspace}
        check(kind, 12, 16, 300, torch.bfloat16, frozen, True, device=kernel_device, **options)


@pytest.mark.parametrize("name", ["plain", "everything"])
def test_scoring(name, matmul, kernel_device):
    """No gradient: never a logit in memory when fused."""
    options = EVERYTHING if name == "everything" else {}
    hidden, head, bias, targets, _ = make(random, 35, 40, 450, torch.bfloat16)
    inputs = [x.to(kernel_device) for x in (hidden, head, targets, bias)]
    with torch.no_grad():
        route = linear_logprob_route(inputs[0], inputs[1], 35)
        assert route.fused and route.workspace_bytes == 35 * 12 * 4
        found = linear_logprob(*inputs, **options)
        pieces = linear_logprob(*inputs, **options, workspace_bytes=1)
        whole, cut = ((x,) if isinstance(x, torch.Tensor) else x for x in (found, pieces))
        assert all(torch.equal(a, b) for a, b in zip(whole, cut, strict=True))
        wide = [x.double() if x.is_floating_point() else x for x in inputs]
        wanted = linear_logprob(*wide, **options)
    for ours, truth in zip(found, wanted, strict=True):
        assert_close(ours.double(), truth, rtol=1e-5, atol=1e-5)


def test_certain_and_hopeless_targets_keep_their_digits(matmul, kernel_device):
    """p -> 1: 1 - p = e^-30. p -> 0: logp = -30; the guess that the target is near the sum fails
    for e^-64.
    """
    for gap in (30.0, 64.0):
        hidden = torch.ones(2, 16, dtype=torch.bfloat16, device=kernel_device, requires_grad=True)
        head = torch.tensor([[gap / 16], [0.0]], device=kernel_device).bfloat16().repeat(1, 16)
        logp = linear_logprob(hidden, head, torch.tensor([0, 1], device=kernel_device))
        logp.sum().backward()
        miss = math.exp(-gap)
        assert_close(logp.tolist(), [-miss, -gap], rtol=1e-5, atol=0.0)
        slope = hidden.grad.double()[:, 0].tolist()
        assert_close(slope, [gap / 16 * miss, -gap / 16], rtol=1e-2, atol=1e-44)


@pytest.mark.parametrize("with_moment", [False, True])
def test_head_softmax_repairs_a_bad_guess(with_moment, matmul, kernel_device):
    """Guesses far from the sum, infinite or NaN: the true maximum is taken, other rows stay."""
    hidden, head, bias, targets, _ = make(random, 20, 16, 350, torch.bfloat16)
    hidden, head, bias, targets = (x.to(kernel_device) for x in (hidden, head, bias, targets))
    guess = torch.zeros(20, device=kernel_device)
    bad = torch.tensor([1, 2, 3, 18], device=kernel_device)
    guess[bad] = torch.tensor([200.0, -200.0, -math.inf, math.nan], device=kernel_device)
    out = torch.full((20, 350), math.nan, dtype=torch.bfloat16, device=kernel_device)
    transform = Transform()
    state = head_softmax.head_softmax(
        hidden, head, bias, targets, transform, with_moment, offset=guess, out=out
    )
    wanted, exponentials = head_softmax_reference(
        *(x.double() for x in (hidden, head, bias)), targets, transform, with_moment, state.top
    )
    assert set(torch.nonzero(state.top).flatten().tolist()) == set(bad.tolist())
    assert_close(state.total, wanted.total.float(), rtol=1e-4, atol=0.0)
    assert_close(out.double(), exponentials, rtol=1e-2, atol=1e-30)
    if with_moment:
        assert_close(state.moment, wanted.moment.float(), rtol=1e-3, atol=1e-3)


def test_rows_do_not_depend_on_their_company(matmul, kernel_device):
    hidden, head, bias, targets, grad = make(random, 35, 16, 300, torch.bfloat16)
    inputs = [x.to(kernel_device) for x in (hidden, head, targets, bias, grad)]

    def rows(part, frozen):
        h, w, y, b, g = inputs
        options = {"batch_invariant": True}
        return run(linear_logprob, h[part], w, y[part], b, g[part], frozen, **options)

    for frozen in (False, True):
        whole, alone = rows(slice(None), frozen), rows(slice(17, 19), frozen)
        for name in ("logp", "hidden"):
            assert torch.equal(whole[name][17:19], alone[name])


@pytest.mark.parametrize("transform", [Transform(4.0, 0.8), Transform(None, 1.3)], ids=str)
@pytest.mark.parametrize("width", [300, 700])
def test_row_kernels_against_their_twins(width, transform, monkeypatch, kernel_device):
    """Every output, over two blocks of which the second is far higher; rows with something behind
    them that must not be touched.
    """
    monkeypatch.setattr(logit_rows, "ONE_BLOCK", 1024)
    monkeypatch.setattr(logit_rows, "STEP", 512)
    check_rows(width, torch.float32, transform, kernel_device)


def test_finish_may_write_over_its_input(kernel_device):
    hidden, head, bias, targets, _ = make(random, 9, 24, 50, torch.bfloat16)
    hidden, head, bias, targets = (x.to(kernel_device) for x in (hidden, head, bias, targets))
    product = torch.randn(9, 24, device=kernel_device)
    state = RowState(*(torch.rand(9, device=kernel_device) + 0.5 for _ in range(3)))
    wanted_slope = torch.empty_like(hidden)
    args = (head, bias, targets, state, Transform(), product)
    wanted = finish_reference(hidden.clone(), *args, wanted_slope)
    facts = logit_rows.finish(hidden, *args, hidden)
    assert_close(facts, wanted, rtol=1e-5, atol=1e-5)
    assert_close(hidden, wanted_slope, rtol=1e-2, atol=1e-2)


def test_overwriting_what_another_operation_reads_is_caught(kernel_device):
    """A kernel writes behind autograd's back, so autograd is told."""
    hidden = torch.randn(5, 16, device=kernel_device, requires_grad=True)
    head, targets = torch.randn(9, 16, device=kernel_device), torch.arange(5, device=kernel_device)
    logp = linear_logprob(hidden.exp(), head, targets, overwrite_hidden=True)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        logp.sum().backward()


def test_a_head_with_strided_rows_is_refused(kernel_device):
    head = torch.zeros(4, 7, device=kernel_device).T
    hidden, targets = torch.zeros(3, 4, device=kernel_device), torch.zeros(3, dtype=torch.int64)
    with pytest.raises(ValueError, match=r"head: strides \(1, 7\), wanted rows with columns side"):
        linear_logprob(hidden, head, targets.to(kernel_device))
    # Hidden states are made contiguous instead.
    strided = torch.randn(4, 3, device=kernel_device).T
    ours = linear_logprob(strided, head.contiguous(), targets.to(kernel_device))
    assert_close(ours, torch.full((3,), -math.log(7), device=kernel_device))


@pytest.mark.gpu
def test_more_than_two_to_the_31_logits():
    """Offsets beyond 32 bits: N V = 2.5e9, in the row kernels and in the fused matmul.

    Logits up to 11: the row kernels round them to bf16, and at 45 (hidden states four times as
    large) that alone moves a gradient by 0.13. Another row's p moves it by up to 1.3.
    """
    num_rows, num_classes = 16384, 151936
    head = torch.randn(num_classes, 64, device="cuda", dtype=torch.bfloat16)
    hidden = torch.randn(num_rows, 64, device="cuda", dtype=torch.bfloat16) / 4
    hidden.requires_grad_()
    targets = torch.randint(num_classes, (num_rows,), device="cuda")
    for depth in (10**9, -1):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(logprob_route, "FUSED_DEPTH", depth)
            last = slice(num_rows - 8, None)
            hidden.grad = None
            logp = linear_logprob(hidden, head, targets, workspace_bytes=num_rows * num_classes * 2)
            logp[last].sum().backward()
            wide = hidden[last].detach().double().requires_grad_()
            truth = linear_logprob(wide, head.double(), targets[last])
            truth.sum().backward()
            assert_close(logp[last].double(), truth, rtol=0, atol=1e-2)
            assert_close(hidden.grad[last].double(), wide.grad, rtol=2e-2, atol=2e-2)


def test_sealing_against_its_twin(kernel_device):
    """Targets inside and outside of the block; rows whose sum is far above what it has seen."""
    draw = torch.Generator().manual_seed(0)
    targets = torch.tensor([3, 250, 1000, 0, 305, 9])
    facts = torch.rand(7, 6, generator=draw)
    top = torch.tensor([0.0, -70.0, -70.0, -90.0, 0.5, -200.0])
    x = torch.rand(6, 300, generator=draw)
    wanted = x.clone()
    rate = logit_rows.seal_reference(wanted, targets, 5, top, facts)
    padded = torch.full((6, 310), 7.0)
    padded[:, :300] = x
    ours, *rest = (t.to(kernel_device) for t in (padded, targets, top, facts))
    assert_close(logit_rows.seal_(ours[:, :300], rest[0], 5, *rest[1:]).cpu(), rate)
    assert_close(ours[:, :300].cpu(), wanted)
    assert bool((ours[:, 300:] == 7.0).all())
    assert bool((wanted[1] < 1e-20).all()) and bool((wanted[2] == x[2]).all())
