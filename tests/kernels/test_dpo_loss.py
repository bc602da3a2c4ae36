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

# loss, label smoothing, soft labels, length normalisation, weight of the NLL term
SETTINGS = [
    (*settings, nll_weight)
    for settings in itertools.product(LOSSES, (0.0, 0.2), (False, True), (False, True))
    for nll_weight in (0.0, 0.7)
    if settings[0] != "simpo" or settings[3]
]


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


def options_of(loss, smoothing, labels, lengths, normal, nll_weight):
    """Keyword arguments of `dpo_loss` and of its reference."""
    return {
        "loss": loss,
        "beta": 0.1,
        "label_smoothing": smoothing,
        "labels": labels,
        "lengths": lengths if normal or nll_weight else None,
        "length_normalized": normal,
        "gamma": 0.3 if loss == "simpo" else 0.0,
        "nll_weight": nll_weight,
    }


def run(function, policy, ref, options):
    leaves = [x.clone().requires_grad_() for x in policy]
    out = function(tuple(leaves), None if options["loss"] == "simpo" else ref, **options)
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


def test_simpo_by_hand():
    """Means -2 and -5: beta times 3 is 6, less gamma 1.5; rewards are before gamma."""
    policy, _ = columns((-8, -10, 0, 0))
    policy = tuple(x.requires_grad_() for x in policy)
    lengths = (torch.tensor([4]), torch.tensor([2]))
    out = dpo_loss(policy, None, "simpo", 2.0, lengths=lengths, gamma=1.5)
    assert_close(out.losses, torch.tensor([math.log1p(math.exp(-4.5))]))
    assert [x.tolist() for x in (*out.rewards, out.margins)] == [[-4.0], [-10.0], [6.0]]
    out.loss.backward()
    pull = 2 / (1 + math.exp(4.5))
    assert_close(policy[0].grad, torch.tensor([-pull / 4]))
    assert_close(policy[1].grad, torch.tensor([pull / 2]))
    # Turned around, the margin is asked of the other side: -6 - 1.5.
    out = dpo_loss(
        policy, None, "simpo", 2.0, lengths=lengths, gamma=1.5, labels=torch.tensor([0.0])
    )
    assert_close(out.losses, torch.tensor([7.5 + math.log1p(math.exp(-7.5))]))


def test_nll_by_hand():
    """0.5 times the mean over pairs of 10 nats / 4 tokens and 20 nats / 5: not 30 / 9."""
    policy, ref = columns((-10, -20, -12, -12), (-20, -10, -12, -12))
    policy = tuple(x.requires_grad_() for x in policy)
    lengths = (torch.tensor([4, 5]), torch.tensor([1, 2]))
    nll = {"lengths": lengths, "length_normalized": False, "nll_weight": 0.5}
    plain, out = dpo_loss(policy, ref), dpo_loss(policy, ref, **nll)
    assert_close(out.losses - plain.losses, torch.tensor([1.25, 2.0]))
    assert_close(out.loss - plain.loss, torch.tensor(1.625))
    (out.loss - plain.loss).backward()
    assert_close(policy[0].grad, torch.tensor([-0.5 / 4 / 2, -0.5 / 5 / 2]))
    assert not policy[1].grad.any()
    # Whatever the label: chosen is what is made likelier.
    labels = torch.tensor([0.25, 0.0])
    soft = [dpo_loss(policy, ref, labels=labels, **more).losses for more in ({}, nll)]
    assert_close(soft[1] - soft[0], torch.tensor([1.25, 2.0]))


def test_denominator_makes_parts_add_up():
    policy, ref, _, _ = random_batch(num=10)
    weights = torch.rand(10, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    whole = dpo_loss(policy, ref, weights=weights).loss
    parts = [
        dpo_loss(
            tuple(x[part] for x in policy),
            tuple(x[part] for x in ref),
            weights=weights[part],
            denominator=float(weights.sum()),
        ).loss
        for part in (slice(0, 3), slice(3, 3), slice(3, 10))
    ]
    assert_close(sum(parts), whole, rtol=1e-14, atol=0.0)


def test_an_empty_response_has_mean_0():
    policy, ref = columns((0, -6, 0, -3))
    policy = tuple(x.requires_grad_() for x in policy)
    lengths = (torch.tensor([0]), torch.tensor([3]))
    out = dpo_loss(policy, ref, lengths=lengths, length_normalized=True, nll_weight=1.0)
    assert_close(out.losses, torch.tensor([math.log1p(math.exp(-0.1))]))
    out.loss.backward()
    assert all(x.grad.isfinite().all() for x in policy)


@pytest.mark.parametrize("loss", LOSSES)
def test_ten_thousand_nats_are_finite(loss):
    policy, ref = columns((1e4, -1e4, 0, 0), (-1e4, 1e4, 0, 0), (1e4, -1e4, -1e4, 1e4))
    policy = tuple(x.requires_grad_() for x in policy)
    ones = (torch.ones(3), torch.ones(3))
    more = {"lengths": ones, "length_normalized": loss == "simpo", "nll_weight": 0.1}
    for labels in (None, torch.tensor([0.5, 0.0, 1.0])):
        out = dpo_loss(
            policy,
            None if loss == "simpo" else ref,
            loss,
            0.5,
            label_smoothing=0.1,
            labels=labels,
            **more,
        )
        out.loss.backward()
        for value in (out.losses, out.margins, policy[0].grad, policy[1].grad):
            assert value.isfinite().all()
    if loss == "sigmoid":
        losses = dpo_loss(policy, ref, beta=0.5).losses
        assert losses.tolist() == [0.0, 1e4, 0.0]


@pytest.mark.parametrize("loss, smoothing, soft, normal, nll_weight", SETTINGS)
def test_three_way(loss, smoothing, soft, normal, nll_weight):
    for scale in (0.1, 20.0, 1000.0):
        policy, ref, labels, lengths = random_batch(scale, dtype=torch.float32)
        wide = [tuple(x.double() for x in pair) for pair in (policy, ref)]
        options = options_of(loss, smoothing, labels if soft else None, lengths, normal, nll_weight)
        wide_options = options | {"labels": labels.double() if soft else None}
        truth = run(dpo_loss_reference, *wide, wide_options)
        eager = run(dpo_loss_reference, policy, ref, options)
        ours = run(dpo_loss, policy, ref, options)
        for name, a, b, c in zip(("losses", "chosen", "rejected"), ours, eager, truth, strict=True):
            assert_no_worse(a, b, c, 1e-6 * max(1.0, float(c.abs().max())), name)


@pytest.mark.parametrize("loss, smoothing, soft, normal, nll_weight", SETTINGS)
def test_gradcheck(loss, smoothing, soft, normal, nll_weight):
    (c, r), ref, labels, lengths = random_batch(num=8)
    ref = None if loss == "simpo" else ref
    inputs = (c.requires_grad_(), r.requires_grad_())
    options = options_of(loss, smoothing, labels if soft else None, lengths, normal, nll_weight)

    def ours(c, r):
        return dpo_loss((c, r), ref, **options).losses

    def reference(c, r):
        return dpo_loss_reference((c, r), ref, **options)

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
    "lengths: None, wanted (chosen": {"nll_weight": 1.0},
    "lengths: None, wanted (chosen, ": {"loss": "simpo", "ref": None},
    "lengths: None": {"length_normalized": True},
    "length_normalized: None, wanted True or False": {
        "nll_weight": 1.0,
        "lengths": (torch.ones(2), torch.ones(2)),
    },
    "ref: None, wanted (chosen, rejected): hinge": {"loss": "hinge", "ref": None},
    "ref: given, wanted None": {"loss": "simpo"},
    "gamma: -1.0,": {"loss": "simpo", "gamma": -1.0},
    "gamma: 0.5, wanted 0: ipo": {"loss": "ipo", "gamma": 0.5},
    "nll_weight: -0.5,": {"nll_weight": -0.5},
    "nll_weight: nan,": {"nll_weight": math.nan},
    "denominator: 0.0,": {"denominator": 0.0},
    "denominator: inf,": {"denominator": math.inf},
}


@pytest.mark.parametrize("message", REFUSED)
def test_refusals_name_the_argument(message):
    pair = (torch.zeros(2), torch.zeros(2))
    with pytest.raises(ValueError) as error:
        dpo_loss(**({"policy": pair, "ref": pair} | REFUSED[message]))
    assert str(error.value).startswith(message)
