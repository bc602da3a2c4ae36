"""dpo_loss against values worked by hand, the papers' formulas in fp64, and at its edges."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from torch.testing import assert_close

from srlm_fast.kernels import dpo_loss, dpo_loss_reference
from srlm_fast.kernels.dpo_loss import LOSSES
from tests.kernels.three_way import assert_no_worse

SETTINGS = list(itertools.product(LOSSES, (0.0, 0.2), (False, True), (False, True)))


def columns(*pairs, dtype=torch.float32):
    """Rows (c, r, c0, r0) -> ((chosen, rejected), (ref_chosen, ref_rejected))."""
    c, r, c0, r0 = torch.tensor(pairs, dtype=dtype).reshape(-1, 4).unbind(1)
    return (c, r), (c0, r0)


def random_batch(scale=20.0, num=64, dtype=torch.float64):
    generator = torch.Generator().manual_seed(0)
    values = torch.randn(4, num, generator=generator, dtype=torch.float64) * scale - 60
    labels = torch.rand(num, generator=generator, dtype=torch.float64)
    lengths = torch.randint(1, 40, (2, num), generator=generator)
    c, r, c0, r0 = values.to(dtype)
    return (c, r), (c0, r0), labels.to(dtype), tuple(lengths)


def run(function, policy, ref, loss, smoothing, labels, lengths):
    leaves = [x.clone().requires_grad_() for x in policy]
    out = function(
        tuple(leaves), ref, loss, 0.1, label_smoothing=smoothing, labels=labels, lengths=lengths
    )
    losses = getattr(out, "losses", out)
    losses.sum().backward()
    return losses.detach(), leaves[0].grad, leaves[1].grad


def test_by_hand():
    """c - c0 = 2, r - r0 = -8, beta 0.1: margin 1; and the same the other way round: -1."""
    policy, ref = columns((-10, -20, -12, -12), (-20, -10, -12, -12))
    win, lose = math.log1p(math.exp(-1)), math.log1p(math.exp(1))
    out = dpo_loss(policy, ref, beta=0.1)
    assert_close(out.losses, torch.tensor([win, lose]))
    assert_close(out.loss, torch.tensor((win + lose) / 2))
    assert_close(out.rewards[0], torch.tensor([0.2, -0.8]))
    assert_close(out.rewards[1], torch.tensor([-0.8, 0.2]))
    assert_close(out.margins, torch.tensor([1.0, -1.0]))
    assert out.accuracy == 0.5

    expected = {
        ("hinge", 0.0): (0.0, 2.0),
        ("ipo", 0.0): (25.0, 225.0),  # (10 - 5)^2, (-10 - 5)^2
        ("sigmoid", 0.2): (0.8 * win + 0.2 * lose, 0.8 * lose + 0.2 * win),
        ("robust", 0.2): ((0.8 * win - 0.2 * lose) / 0.6, (0.8 * lose - 0.2 * win) / 0.6),
    }
    for (loss, smoothing), values in expected.items():
        out = dpo_loss(policy, ref, loss, 0.1, label_smoothing=smoothing)
        assert_close(out.losses, torch.tensor(values))


def test_gradient_by_hand():
    """dL/dc = -beta sigmoid(-margin) / P, dL/dr the opposite (arXiv 2305.18290, below eq. 7)."""
    policy, ref = columns((-10, -20, -12, -12), (-20, -10, -12, -12))
    policy = tuple(x.requires_grad_() for x in policy)
    dpo_loss(policy, ref, beta=0.1).loss.backward()
    pull = [0.1 / (1 + math.exp(1)) / 2, 0.1 / (1 + math.exp(-1)) / 2]
    assert_close(policy[0].grad, -torch.tensor(pull))
    assert_close(policy[1].grad, torch.tensor(pull))


def test_soft_labels_weights_and_lengths_by_hand():
    policy, ref = columns((-10, -20, -12, -12), (-20, -10, -12, -12))
    win, lose = math.log1p(math.exp(-1)), math.log1p(math.exp(1))
    out = dpo_loss(
        policy, ref, beta=0.1, labels=torch.tensor([0.75, 0.0]), weights=torch.tensor([3.0, 1.0])
    )
    soft = torch.tensor([0.75 * win + 0.25 * lose, win])
    assert_close(out.losses, soft)
    assert_close(out.loss, (3 * soft[0] + soft[1]) / 4)
    # 2 nats over 4 tokens against -8 over 2: 0.5 + 4 = 4.5, times beta; rewards stay sums.
    lengths = (torch.tensor([4, 1]), torch.tensor([2, 1]))
    out = dpo_loss(policy, ref, beta=0.1, lengths=lengths)
    assert_close(out.losses[0], torch.tensor(math.log1p(math.exp(-0.45))))
    assert_close(out.margins, torch.tensor([1.0, -1.0]))


def test_equal_pairs_give_exactly_ln_2():
    policy, _ = columns((-3.7, -90.1, 0, 0), (-512.3, -0.25, 0, 0))
    for labels in (None, torch.tensor([1.0, 0.0])):
        out = dpo_loss(policy, policy, beta=0.1, labels=labels)
        assert out.losses.tolist() == [float(torch.tensor(math.log(2)))] * 2
    out = dpo_loss(policy, policy, label_smoothing=0.3, labels=torch.tensor([0.4, 0.9]))
    assert_close(out.losses, torch.full((2,), math.log(2)), rtol=1e-7, atol=0.0)


@pytest.mark.parametrize("loss", LOSSES)
def test_ten_thousand_nats_are_finite(loss):
    policy, ref = columns((1e4, -1e4, 0, 0), (-1e4, 1e4, 0, 0), (1e4, -1e4, -1e4, 1e4))
    policy = tuple(x.requires_grad_() for x in policy)
    for labels in (None, torch.tensor([0.5, 0.0, 1.0])):
        out = dpo_loss(policy, ref, loss, 0.5, label_smoothing=0.1, labels=labels)
        out.loss.backward()
        for value in (out.losses, out.margins, policy[0].grad, policy[1].grad):
            assert value.isfinite().all()
    if loss == "sigmoid":
        losses = dpo_loss(policy, ref, beta=0.5).losses
        assert losses.tolist() == [0.0, 1e4, 0.0]


@pytest.mark.parametrize("loss, smoothing, soft, normal", SETTINGS)
def test_three_way(loss, smoothing, soft, normal):
    for scale in (0.1, 20.0, 1000.0):
        policy, ref, labels, lengths = random_batch(scale, dtype=torch.float32)
        settings = (loss, smoothing)
        extra = (labels if soft else None, lengths if normal else None)
        wide = [tuple(x.double() for x in pair) for pair in (policy, ref)]
        wide_extra = (labels.double() if soft else None, extra[1])
        truth = run(dpo_loss_reference, *wide, *settings, *wide_extra)
        eager = run(dpo_loss_reference, policy, ref, *settings, *extra)
        ours = run(dpo_loss, policy, ref, *settings, *extra)
        for name, a, b, c in zip(("losses", "chosen", "rejected"), ours, eager, truth, strict=True):
            assert_no_worse(a, b, c, 1e-6 * max(1.0, float(c.abs().max())), name)


@pytest.mark.parametrize("loss, smoothing, soft, normal", SETTINGS)
def test_gradcheck(loss, smoothing, soft, normal):
    (c, r), ref, labels, lengths = random_batch(num=8)
    inputs = (c.requires_grad_(), r.requires_grad_())
    options = {"labels": labels if soft else None, "lengths": lengths if normal else None}

    def ours(c, r):
        return dpo_loss((c, r), ref, loss, 0.1, label_smoothing=smoothing, **options).losses

    def reference(c, r):
        return dpo_loss_reference((c, r), ref, loss, 0.1, smoothing, **options)

    assert torch.autograd.gradcheck(ours, inputs)
    assert torch.autograd.gradcheck(reference, inputs)
    assert_close(ours(c, r), reference(c, r), rtol=1e-12, atol=1e-12)


def test_the_reference_gets_no_gradient():
    policy, ref = columns((-1, -2, -3, -4))
    leaves = [x.requires_grad_() for x in (*policy, *ref)]
    dpo_loss(policy, ref).loss.backward()
    assert [x.grad is not None for x in leaves] == [True, True, False, False]


def test_no_pairs_and_no_weight():
    empty = columns()
    out = dpo_loss(*empty)
    assert (float(out.loss), float(out.accuracy), out.losses.shape) == (0.0, 0.0, (0,))
    policy, ref = columns((-1, -2, -3, -5))
    policy = tuple(x.requires_grad_() for x in policy)
    loss = dpo_loss(policy, ref, weights=torch.zeros(1)).loss
    loss.backward()
    assert loss.item() == 0.0 and policy[0].grad.item() == 0.0


REFUSED = {
    "loss: 'nope', wanted one of sigmoid": {"loss": "nope"},
    "beta: 0,": {"beta": 0},
    "beta: nan,": {"beta": math.nan},
    "label_smoothing: 0.5,": {"label_smoothing": 0.5},
    "policy[0]: bfloat16": {"policy": (torch.zeros(2).bfloat16(), torch.zeros(2))},
    "policy[1]: shape [3], wanted [2]": {"policy": (torch.zeros(2), torch.zeros(3))},
    "ref[0]: float64, wanted float32": {"ref": (torch.zeros(2).double(), torch.zeros(2))},
    "ref[1]: on meta": {"ref": (torch.zeros(2), torch.zeros(2, device="meta"))},
    "labels: shape [1], wanted [2]": {"labels": torch.zeros(1)},
    "labels: 1.5, wanted each in 0..1": {"labels": torch.tensor([0.0, 1.5])},
    "weights: -2.0, wanted each in 0..inf": {"weights": torch.tensor([-2.0, 1.0])},
    "weights: nan": {"weights": torch.tensor([math.nan, 1.0])},
    "lengths[1]: shape [3]": {"lengths": (torch.ones(2), torch.ones(3))},
}


@pytest.mark.parametrize("message", REFUSED)
def test_refusals_name_the_argument(message):
    pair = (torch.zeros(2), torch.zeros(2))
    with pytest.raises(ValueError) as error:
        dpo_loss(**({"policy": pair, "ref": pair} | REFUSED[message]))
    assert str(error.value).startswith(message)
