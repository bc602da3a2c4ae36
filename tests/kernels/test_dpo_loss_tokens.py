"""dpo_loss_tokens, in PyTorch and in Triton: by hand, in fp64, at its edges, in memory."""

from __future__ import annotations

import importlib
import itertools
import math

import pytest
import torch
from torch.testing import assert_close

from srlm_fast.kernels import dpo_loss, dpo_loss_tokens, dpo_loss_tokens_reference
from srlm_fast.kernels.dpo_loss import LOSSES
from tests.kernels.dtensors import dtensors
from tests.kernels.guard import guarded
from tests.kernels.three_way import assert_no_worse

module = importlib.import_module("srlm_fast.kernels.dpo_loss")

LN_2 = float(torch.tensor(math.log(2)))
ON_GPU = [pytest.mark.gpu] if torch.cuda.is_available() else []
EVERY_TRITON_CASE = [
    # loss, label smoothing, soft labels and weights, length normalisation, weight of the NLL term
    ("sigmoid", 0.0, False, False, 0.0),
    ("sigmoid", 0.2, True, True, 0.7),
    ("robust", 0.2, True, False, 0.0),
    ("hinge", 0.0, False, False, 0.7),
    ("hinge", 0.2, True, True, 0.0),
    ("ipo", 0.0, False, True, 0.0),
    ("ipo", 0.2, True, False, 0.7),
    ("simpo", 0.0, False, True, 0.0),
    ("simpo", 0.2, True, True, 0.7),
]
EVERY_CASE = list(
    itertools.product(LOSSES, (0.0, 0.2), (False, True), (False, True), (0.0, 0.7))
)  # fmt: skip


@pytest.fixture(params=["torch", pytest.param("triton", marks=ON_GPU)])
def device(request):
    """Of a test that holds for both routes."""
    return "cpu" if request.param == "torch" else request.getfixturevalue("kernel_device")


@pytest.fixture(autouse=True)
def guard():
    with guarded() as patch:
        yield patch


def packed(counts, device="cpu", dtype=torch.float32, scale=1.0, seed=0):
    """(logps, boundaries, ref): tokens of about -scale nats, a reference near the sums."""
    generator = torch.Generator().manual_seed(seed)
    boundaries = torch.tensor([0, *counts]).cumsum(0)
    logps = torch.randn(int(boundaries[-1]), generator=generator, dtype=torch.float64)
    logps = -scale * logps.exp()
    sums = torch.stack([part.sum() for part in logps.tensor_split(boundaries[1:-1])])
    ref = sums + scale * torch.randn(len(counts), generator=generator, dtype=torch.float64)
    return logps.to(device, dtype), boundaries.to(device), ref.to(device, dtype)


def shares(num, device="cpu", dtype=torch.float32):
    """(labels, weights)."""
    generator = torch.Generator().manual_seed(7)
    labels, weights = torch.rand(2, num, generator=generator, dtype=torch.float64)
    return labels.to(device, dtype), weights.to(device, dtype)


def run(logps, boundaries, pairs, ref, **options):
    """(DpoOutput, gradient of its loss)."""
    leaf = logps.detach().clone().requires_grad_()
    out = dpo_loss_tokens(leaf, boundaries, pairs, ref, **options)
    out.loss.backward()
    return out, leaf.grad


def test_by_hand(device):
    """Sums -10 and -20, reference -12 and -12, beta 0.1: margin 1; then the other way round."""
    logps = torch.tensor([-4.0, -6.0, -5.0, -5.0, -5.0, -5.0], device=device)
    boundaries = torch.tensor([0, 2, 6], device=device)
    pairs = torch.tensor([[0, 1], [1, 0]], device=device)
    ref = torch.tensor([-12.0, -12.0], device=device)
    win, lose = math.log1p(math.exp(-1)), math.log1p(math.exp(1))
    out, grad = run(logps, boundaries, pairs, ref)
    assert out.sums.tolist() == [-10, -20] and out.counts.tolist() == [2, 4]
    assert_close(out.losses.cpu(), torch.tensor([win, lose]))
    assert_close(out.loss.detach().cpu(), torch.tensor((win + lose) / 2))
    assert_close(out.rewards[0].cpu(), torch.tensor([0.2, -0.8]))
    assert_close(out.rewards[1].cpu(), torch.tensor([-0.8, 0.2]))
    assert_close(out.margins.cpu(), torch.tensor([1.0, -1.0]))
    assert float(out.accuracy) == 0.5
    # Each sequence is chosen once and rejected once: the pair that is wrong pulls harder.
    pull = 0.1 / 2 * (1 / (1 + math.exp(-1)) - 1 / (1 + math.exp(1)))
    assert_close(grad.cpu(), pull * torch.tensor([1.0, 1, -1, -1, -1, -1]))

    # Means -5 and -5: SimPO's margin is 0 both ways, short of gamma by gamma; NLL 5 a pair.
    out, grad = run(
        logps, boundaries, pairs, None, loss="simpo", beta=2.0, gamma=0.5, nll_weight=0.1
    )
    assert_close(out.losses.cpu(), torch.full((2,), math.log1p(math.exp(0.5)) + 0.5))
    assert_close(out.rewards[0].cpu(), torch.tensor([-10.0, -10.0]))
    assert_close(grad.cpu(), -0.1 / 2 * torch.tensor([1 / 2, 1 / 2, *[1 / 4] * 4]))

    # A label of 0 turns the first pair into the second; a weight of 3 to 1.
    more = {"labels": torch.tensor([0.0, 1.0]), "weights": torch.tensor([3.0, 1.0])}
    more = {name: value.to(device) for name, value in more.items()}
    out, _ = run(logps, boundaries, pairs, ref, **more)
    assert_close(out.losses.cpu(), torch.tensor([lose, lose]))
    out, _ = run(logps, boundaries, pairs, ref, weights=more["weights"])
    assert_close(out.loss.detach().cpu(), torch.tensor((3 * win + lose) / 4))
    out, _ = run(logps, boundaries, pairs, ref, weights=more["weights"], denominator=8.0)
    assert_close(out.loss.detach().cpu(), torch.tensor((3 * win + lose) / 8))


# One prompt's candidates 0, 2, 3 in several pairs, an empty one, a pair of one sequence, one that
# is in no pair (4).
COUNTS = (5, 0, 40, 7, 3, 1)
PAIRS = ((0, 2), (2, 3), (0, 3), (3, 1), (5, 5), (5, 0))


def check_against_fp64(case, device):
    loss, smoothing, soft, normal, nll_weight = case
    options = {
        "loss": loss,
        "beta": 0.3,
        "label_smoothing": smoothing,
        "length_normalized": normal,
        "gamma": 0.4 if loss == "simpo" else 0.0,
        "nll_weight": nll_weight,
    }
    results = {}
    for name, dtype in (("truth", torch.float64), ("eager", torch.float32)):
        # The truth is that of the numbers given in fp32.
        logps, boundaries, ref = (x.to(dtype) if x.is_floating_point() else x for x in BATCH)
        labels, weights = (x.to(dtype) if soft else None for x in SHARES)
        leaf = logps.clone().requires_grad_()
        ref = None if loss == "simpo" else ref
        losses = dpo_loss_tokens_reference(
            leaf, boundaries, torch.tensor(PAIRS), ref, labels=labels, **options
        )
        mean = losses.mean() if weights is None else (weights * losses).sum() / weights.sum()
        mean.backward()
        results[name] = {"losses": losses.detach(), "loss": mean.detach(), "grad": leaf.grad}
    logps, boundaries, ref = (x.to(device) for x in BATCH)
    labels, weights = (x.to(device) if soft else None for x in SHARES)
    out, grad = run(
        logps, boundaries, torch.tensor(PAIRS, device=device),
        None if loss == "simpo" else ref, labels=labels, weights=weights, **options,
    )  # fmt: skip
    ours = {"losses": out.losses.cpu(), "loss": out.loss.detach().cpu(), "grad": grad.cpu()}
    for name, truth in results["truth"].items():
        floor = 1e-6 * max(1.0, float(truth.abs().max()))
        assert_no_worse(ours[name], results["eager"][name], truth, floor, name)


BATCH, SHARES = packed(COUNTS), shares(len(PAIRS))


@pytest.mark.parametrize("case", EVERY_TRITON_CASE, ids=str)
def test_three_way_in_triton(case, kernel_device):
    check_against_fp64(case, kernel_device)


@pytest.mark.parametrize("case", EVERY_CASE, ids=str)
def test_three_way_in_torch(case):
    check_against_fp64(case, "cpu")


@pytest.mark.parametrize("loss, smoothing, soft, normal, nll_weight", EVERY_CASE)
def test_gradcheck(loss, smoothing, soft, normal, nll_weight):
    logps, boundaries, ref = packed((3, 0, 4, 2), dtype=torch.float64)
    pairs = torch.tensor([[0, 2], [2, 3], [3, 0], [1, 0]])
    labels, weights = shares(4, dtype=torch.float64)
    options = {
        "loss": loss,
        "label_smoothing": smoothing,
        "labels": labels if soft else None,
        "length_normalized": normal,
        "gamma": 0.3 if loss == "simpo" else 0.0,
        "nll_weight": nll_weight,
    }
    ref = None if loss == "simpo" else ref

    def ours(x):
        return dpo_loss_tokens(
            x, boundaries, pairs, ref, weights=weights if soft else None, **options
        ).loss

    def reference(x):
        losses = dpo_loss_tokens_reference(x, boundaries, pairs, ref, **options)
        return (weights * losses).sum() / weights.sum() if soft else losses.mean()

    logps.requires_grad_()
    assert torch.autograd.gradcheck(ours, logps)
    assert torch.autograd.gradcheck(reference, logps)
    assert_close(ours(logps), reference(logps), rtol=1e-12, atol=1e-12)


def test_the_sums_form_agrees(device):
    logps, boundaries, ref = packed((5, 9, 2, 30), device)
    pairs = torch.tensor([[0, 1], [3, 2]], device=device)
    for loss in LOSSES:
        given = None if loss == "simpo" else ref
        out, _ = run(logps, boundaries, pairs, given, loss=loss, length_normalized=True)
        policy, lengths = out.sums[pairs].unbind(1), out.counts[pairs].unbind(1)
        refs = None if loss == "simpo" else ref[pairs].unbind(1)
        wanted = dpo_loss(policy, refs, loss, lengths=lengths)
        for name in ("loss", "losses", "margins", "accuracy"):
            assert_close(getattr(out, name).detach(), getattr(wanted, name), rtol=1e-6, atol=1e-7)
        for ours, theirs in zip(out.rewards, wanted.rewards, strict=True):
            assert_close(ours, theirs, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("count", [1023, 1024, 1025, 4096, 4097, 20000])
def test_sums_are_rounded_once(count, device):
    """Sums of fp32 in fp64: half an ulp, however many."""
    logps, boundaries, ref = packed((count, 1), device, scale=0.1)
    out, grad = run(logps, boundaries, torch.tensor([[0, 1]], device=device), ref)
    assert out.counts.tolist() == [count, 1]
    exact = math.fsum(logps[:count].tolist())
    assert out.sums[0].item() == torch.tensor(exact, dtype=torch.float64).float().item()
    assert (grad[:count] == grad[0]).all() and grad[count] == -grad[0]


def test_many_pairs_of_few_candidates(device):
    """More pairs than the last program takes at a time; each candidate is in hundreds."""
    logps, boundaries, ref = packed((6, 3, 8, 5), device)
    generator = torch.Generator().manual_seed(3)
    pairs = torch.randint(4, (1061, 2), generator=generator).to(device)
    labels, weights = shares(1061, device)
    options = {"loss": "sigmoid", "beta": 0.2, "labels": labels, "nll_weight": 0.1}
    out, grad = run(logps, boundaries, pairs, ref, weights=weights, **options)
    leaf = logps.double().requires_grad_()
    wide = options | {"labels": labels.double()}
    losses = dpo_loss_tokens_reference(leaf, boundaries, pairs, ref.double(), **wide)
    mean = (weights.double() * losses).sum() / weights.double().sum()
    mean.backward()
    assert_close(out.losses.double(), losses.detach(), rtol=1e-5, atol=1e-6)
    assert_close(out.loss.detach().double(), mean.detach(), rtol=1e-6, atol=0.0)
    assert_close(grad.double(), leaf.grad, rtol=1e-5, atol=1e-8)
    again, grad_again = run(logps, boundaries, pairs, ref, weights=weights, **options)
    assert torch.equal(out.loss, again.loss) and torch.equal(grad, grad_again)


def test_equal_pairs_give_exactly_ln_2(device):
    """However many tokens; a tie is not a win."""
    logps, boundaries, _ = packed((7, 7, 900), device, scale=3.7)
    logps[7:14] = logps[:7]
    pairs = torch.tensor([[0, 1], [2, 2], [1, 0]], device=device)
    sums = dpo_loss_tokens(logps, boundaries, pairs, None, "simpo").sums
    # Gone from the reference by as much, neither by nothing nor by a power of two.
    for normal, shift in itertools.product((False, True), (0.0, 0.7)):
        out, grad = run(logps, boundaries, pairs, sums - shift, length_normalized=normal)
        assert out.losses.tolist() == [LN_2] * 3 and out.loss.item() == LN_2
        assert out.margins.tolist() == [0.0] * 3 and out.accuracy.item() == 0
        assert not grad.any()  # pulled both ways, or paired with itself


@pytest.mark.parametrize("loss", LOSSES)
def test_ten_thousand_nats_are_finite(loss, device):
    logps = torch.tensor([1e4, -1e4, 5e3, 5e3], device=device)
    boundaries = torch.tensor([0, 1, 2, 4], device=device)
    pairs = torch.tensor([[0, 1], [1, 0], [0, 2], [1, 2]], device=device)
    ref = None if loss == "simpo" else torch.tensor([-1e4, 1e4, 0.0], device=device)
    labels = torch.tensor([0.5, 0.0, 1.0, 0.3], device=device)
    for more in ({}, {"labels": labels, "label_smoothing": 0.1, "nll_weight": 0.5}):
        out, grad = run(logps, boundaries, pairs, ref, loss=loss, beta=0.5, **more)
        for value in (out.loss, out.losses, out.margins, *out.rewards, grad):
            assert value.isfinite().all()
    if loss == "sigmoid":
        out, _ = run(logps, boundaries, pairs, ref, beta=0.5)
        assert out.losses.tolist() == [0.0, 2e4, 0.0, 1.5e4]


def test_an_empty_response(device):
    """Sum, count and mean 0, and nothing to pull at; its pair's other side is pulled."""
    logps, boundaries, ref = packed((0, 3, 0), device)
    ref[[0, 2]] = 0
    pairs = torch.tensor([[0, 1], [0, 2]], device=device)
    for options in ({}, {"length_normalized": True, "nll_weight": 1.0}):
        out, grad = run(logps, boundaries, pairs, ref, **options)
        assert (out.sums[[0, 2]] == 0).all() and out.counts.tolist() == [0, 3, 0]
        assert out.losses.isfinite().all() and out.losses[1].item() == LN_2
        assert (grad > 0).all()
    out, grad = run(logps[:0], boundaries[:2] * 0, pairs[:0], ref[:1])
    assert out.sums.tolist() == [0.0] and grad.shape == (0,)


def test_no_pairs_no_weight_no_sequences(device):
    logps, boundaries, ref = packed((4, 2), device)
    none = torch.zeros(0, 2, dtype=torch.int64, device=device)
    out, grad = run(logps, boundaries, none, ref)
    assert (out.loss.item(), out.accuracy.item(), out.losses.shape) == (0.0, 0.0, (0,))
    assert out.counts.tolist() == [4, 2] and grad.shape == (6,) and not grad.any()
    pair = torch.tensor([[0, 1]], device=device)
    out, grad = run(logps, boundaries, pair, ref, weights=torch.zeros(1, device=device))
    assert out.loss.item() == 0.0 and not grad.any()
    out, grad = run(logps[:0], boundaries[:1], none, ref[:0])
    assert out.loss.item() == 0.0 and out.sums.shape == out.counts.shape == grad.shape == (0,)


def test_a_nan_stays_with_its_pairs(device):
    logps, boundaries, ref = packed((3, 3, 3, 3), device)
    logps[4] = math.nan  # of sequence 1
    pairs = torch.tensor([[0, 1], [2, 3], [0, 3]], device=device)
    for loss in ("sigmoid", "hinge", "ipo"):
        out, grad = run(logps, boundaries, pairs, ref, loss=loss)
        assert out.losses.isnan().tolist() == [True, False, False] and out.loss.isnan()
        assert out.sums.isnan().tolist() == [False, True, False, False]
        assert grad[6:].isfinite().all() and grad[6:].any()
        assert grad[3:6].isnan().all() or loss == "hinge"


def test_a_pair_that_cannot_be_refused_is_nan(kernel_device, monkeypatch):
    """On a GPU values are not looked at. Nothing outside the tensors is read either."""
    monkeypatch.setattr(module, "check_tokens", lambda *given: None)
    logps, boundaries, ref = packed((3, 3), kernel_device)
    far = 2**40  # reading there would end the process
    pairs = [[0, 2], [0, far], [far, 0], [0, 1], [-1, 1], [1, -far], [-far, 1]]
    pairs = torch.tensor(pairs, device=kernel_device)
    out, _ = run(logps, boundaries, pairs, ref, nll_weight=0.1)
    assert out.losses.isnan().tolist() == [True, True, True, False, True, True, True]
    assert out.loss.isnan()


def test_strides_and_int32(device):
    """The same bits from every second number of wider tensors, NaN and -9 in between."""
    logps, boundaries, ref = packed(COUNTS, device)
    labels, weights = shares(len(PAIRS), device)
    pairs = torch.tensor(PAIRS, device=device)
    wanted, grad = run(logps, boundaries, pairs, ref, labels=labels, weights=weights)

    def strided(x, dtype=None):
        x = x.to(dtype or x.dtype)
        wide = x.new_full((*x.shape, 2), math.nan if x.is_floating_point() else -9)
        wide[..., 0] = x
        return wide[..., 0]

    wide = strided(logps).requires_grad_()
    out = dpo_loss_tokens(
        wide,
        strided(boundaries, torch.int32),
        strided(pairs, torch.int32),
        strided(ref),
        labels=strided(labels),
        weights=strided(weights),
    )
    assert not wide.is_contiguous()
    (out.loss * 3).backward()
    assert torch.equal(out.loss, wanted.loss) and torch.equal(out.losses, wanted.losses)
    assert out.counts.tolist() == wanted.counts.tolist()
    assert_close(wide.grad, 3 * grad, rtol=1e-6, atol=0.0)


def test_whole_numbers_are_numbers(device):
    logps, boundaries, ref = packed((4, 2), device)
    pair = torch.tensor([[0, 1]], device=device)
    whole = {"beta": 1, "nll_weight": 1, "denominator": 1, "label_smoothing": 0, "gamma": 0}
    ours, grad = run(logps, boundaries, pair, ref, **whole)
    wanted, wanted_grad = run(
        logps, boundaries, pair, ref, **{name: float(value) for name, value in whole.items()}
    )
    assert torch.equal(ours.loss, wanted.loss) and torch.equal(grad, wanted_grad)


def test_only_the_loss_has_a_gradient(device):
    logps, boundaries, ref = packed((4, 2), device)
    leaf, ref = logps.requires_grad_(), ref.requires_grad_()
    pair = torch.tensor([[0, 1]], device=device)
    out = dpo_loss_tokens(leaf, boundaries, pair, ref)
    assert out.loss.requires_grad
    for value in (out.losses, out.margins, *out.rewards, out.accuracy, out.sums, out.counts):
        assert not value.requires_grad
    out.loss.backward()
    assert leaf.grad.any() and ref.grad is None
    with torch.no_grad():
        assert not dpo_loss_tokens(leaf, boundaries, pair, ref).loss.requires_grad


def test_launches_leave_the_counter_at_0(kernel_device):
    """One counter for launches of any number of sequences."""
    for counts in ((3, 4), (1, 1, 1, 1, 5), (2, 2)):
        logps, boundaries, ref = packed(counts, kernel_device)
        pair = torch.tensor([[1, 0]], device=kernel_device)
        out, _ = run(logps, boundaries, pair, ref)
        assert out.loss.isfinite()
        assert module._counter(out.loss.device).tolist() == [0]


@pytest.mark.gpu
def test_one_launch_each_way_and_no_wait(guard):
    from torch.profiler import ProfilerActivity, profile

    guard.undo()  # what it fills is filled by launches
    logps, boundaries, ref = packed((300,) * 64, "cuda")
    logps.requires_grad_()
    pairs = torch.arange(64, device="cuda").view(32, 2)
    labels, weights = shares(32, "cuda")
    given = (logps, boundaries, pairs, ref)
    upstream = torch.ones((), device="cuda")
    dpo_loss_tokens(*given, labels=labels, weights=weights).loss.backward(upstream)
    logps.grad = None
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        with profile(activities=[ProfilerActivity.CUDA]) as seen:
            out = dpo_loss_tokens(*given, labels=labels, weights=weights)
            out.loss.backward(upstream)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    names = [event.name for event in seen.events() if event.device_type.name == "CUDA"]
    assert sorted(names) == ["_backward_kernel", "_forward_kernel"]


GOOD = {
    "logps": torch.zeros(5),
    "boundaries": torch.tensor([0, 2, 5]),
    "pairs": torch.tensor([[0, 1]]),
    "ref": torch.zeros(2),
}
REFUSED = {
    "loss: 'nope'": {"loss": "nope"},
    "beta: inf,": {"beta": math.inf},
    "label_smoothing: -0.1,": {"label_smoothing": -0.1},
    "gamma: 1.0, wanted 0: sigmoid": {"gamma": 1.0},
    "nll_weight: inf,": {"nll_weight": math.inf},
    "denominator: -1.0,": {"denominator": -1.0},
    "logps: bfloat16, wanted float32": {"logps": torch.zeros(5).bfloat16()},
    "logps: shape [5, 1], wanted [T]": {"logps": torch.zeros(5, 1)},
    "boundaries: float32, wanted int64 or int32": {"boundaries": torch.zeros(3)},
    "boundaries: empty": {"boundaries": torch.zeros(0, dtype=torch.int64)},
    "boundaries: 0..4, wanted rising from 0 to 5": {"boundaries": torch.tensor([0, 2, 4])},
    "boundaries: 1..5": {"boundaries": torch.tensor([1, 2, 5])},
    "boundaries: 0..5": {"boundaries": torch.tensor([0, 6, 5])},
    "boundaries: on meta": {"boundaries": torch.zeros(3, dtype=torch.int64, device="meta")},
    "pairs: shape [2], wanted [P, 2]": {"pairs": torch.tensor([0, 1])},
    "pairs: 2, wanted 0..1": {"pairs": torch.tensor([[0, 1], [0, 2]])},
    "pairs: -1, wanted 0..1": {"pairs": torch.tensor([[-1, 1]])},
    "pairs: 1 of them, wanted none": {
        "logps": torch.zeros(0),
        "boundaries": torch.tensor([0]),
        "ref": torch.zeros(0),
    },
    "ref: None, wanted [2]: sigmoid": {"ref": None},
    "ref: given, wanted None": {"loss": "simpo"},
    "ref: shape [1], wanted [2]": {"ref": torch.zeros(1)},
    "ref: float64, wanted float32": {"ref": torch.zeros(2).double()},
    "labels: shape [2], wanted [1]": {"labels": torch.ones(2)},
    "labels: -0.5": {"labels": torch.tensor([-0.5])},
    "weights: nan": {"weights": torch.tensor([math.nan])},
}


@pytest.mark.parametrize("message", REFUSED)
def test_refusals_name_the_argument_before_any_launch(message, monkeypatch):
    dpo_loss_tokens(**GOOD)
    monkeypatch.setattr(module, "_launch_forward", None)
    monkeypatch.setattr(module, "_tokens_in_torch", None)
    with pytest.raises(ValueError) as error:
        dpo_loss_tokens(**(GOOD | REFUSED[message]))
    assert str(error.value).startswith(message)


def test_a_dtensor_is_refused_by_name():
    with dtensors() as wrap, pytest.raises(ValueError, match="^ref: a DTensor"):
        dpo_loss_tokens(**(GOOD | {"ref": wrap(GOOD["ref"])}))
