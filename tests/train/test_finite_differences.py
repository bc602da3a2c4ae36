"""Gradients of the losses against differences of the losses themselves, in fp64."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.func import functional_call

from srlm_fast.train import (
    DpoConfig,
    RewardConfig,
    RewardPair,
    SftConfig,
    SftRow,
    pair_logps,
)
from srlm_fast.train.dpo import DpoTask
from srlm_fast.train.reward import RewardTask
from srlm_fast.train.sft import SftTask
from tests.train.helpers import make_trees, small_model

PAIRS = make_trees(2)
ROWS = [
    SftRow(p.prompt_ids, ids, p.weight) for p in PAIRS for ids in (p.chosen_ids, p.rejected_ids)
]
STEP = 1e-5  # of a direction of length 1: the error is of the order of STEP ** 2


def dpo(**settings):
    def make():
        model = small_model(dtype=torch.float64)
        ref = pair_logps(small_model(1, torch.float64), PAIRS)
        return model, DpoTask(model, PAIRS, DpoConfig(**settings), ref)

    return make


def sft():
    model = small_model(dtype=torch.float64, tie_word_embeddings=True)
    return model, SftTask(model, ROWS, SftConfig())


def reward():
    model = small_model(dtype=torch.float64, num_labels=1)
    rows = [
        RewardPair(
            [*p.prompt_ids, *p.chosen_ids], [*p.prompt_ids, *p.rejected_ids], p.weight, p.label, 0.1
        )
        for p in PAIRS
    ]
    return model, RewardTask(model, rows, RewardConfig())


CASES = {
    "dpo": dpo(beta=0.3, nll_weight=0.2),
    "dpo, a prompt at a time": dpo(beta=0.3, micro_batch_tokens=30),
    "ipo": dpo(loss="ipo", length_normalized=True),
    "simpo": dpo(loss="simpo", beta=2.0, gamma=0.5),
    "sft": sft,
    "reward": reward,
}


def loss_of(model, task):
    batches = task.micro_batches(np.arange(task.num_items))
    assert all(batch.parents is not None for batch in batches)
    return sum(task.objective(model, batch)[0] for batch in batches)


@pytest.mark.parametrize("make", CASES.values(), ids=CASES)
def test_along_one_direction_of_each_weight(make):
    model, task = make()
    loss_of(model, task).backward()
    draw = torch.Generator().manual_seed(0)
    for name, weight in model.named_parameters():
        direction = torch.randn(weight.shape, generator=draw, dtype=torch.float64)
        # A share of the gradient itself, so that there is a slope to see.
        direction = direction / direction.norm() + weight.grad / weight.grad.norm()
        ends = []
        with torch.no_grad():
            for step in (STEP, -2 * STEP):
                weight += step * direction
                ends.append(loss_of(model, task).item())
            weight += STEP * direction
        slope = (ends[0] - ends[1]) / (2 * STEP)
        assert slope == pytest.approx((weight.grad * direction).sum().item(), rel=2e-6), name


def test_every_entry_of_the_norms():
    """`torch.autograd.gradcheck` of a shared DPO loss in all weights of one norm."""
    model, task = CASES["dpo"]()

    def loss(weight):
        def run(weights):
            return functional_call(_Whole(model, task), weights, ())

        return run({"model.layers.0.attn_norm.weight": weight})

    weight = model.layers[0].attn_norm.weight.detach().clone().requires_grad_()
    assert torch.autograd.gradcheck(loss, (weight,), eps=1e-5, atol=1e-7, rtol=1e-5)


class _Whole(torch.nn.Module):
    """A model with its loss behind it."""

    def __init__(self, model, task):
        super().__init__()
        self.model, self.task = model, task

    def forward(self):
        return loss_of(self.model, self.task)
