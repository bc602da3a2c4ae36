"""Optimizer steps on DTensors: what one process does, states placed as the parameters are."""

from __future__ import annotations

import pytest
import torch
from torch.testing import assert_close

from srlm_fast.train.config import OPTIMIZERS
from srlm_fast.train.optimizer import Optimizer
from srlm_fast.train.ranks import Ranks as TrainRanks

from . import optimizer_cases as cases
from .processes import Ranks


@pytest.mark.parametrize("kind", OPTIMIZERS)
@pytest.mark.parametrize("split", ["tensor", "data"])
def test_two_ranks_step_as_one(two_ranks: Ranks, split: str, kind: str):
    dtype = torch.float32 if kind == "adamw" else torch.bfloat16
    first, second = two_ranks(cases.trained, split, kind, dtype)
    model, config = cases.prepared(kind, dtype)
    alone = TrainRanks(model, None)
    norms = cases.steps(model, Optimizer(model, config, seed=7), alone)
    for found in (first, second):
        assert found["resumed"]
        assert found["norms"] == pytest.approx(norms, rel=1e-4 if kind == "adamw" else 0.1)
    assert_close(first["weights"], second["weights"], rtol=0, atol=0)
    if kind == "adamw":
        weights = dict(model.named_parameters())
        for key, found in first["weights"].items():
            assert_close(found, weights[key].detach(), rtol=1e-3, atol=cases.RATE / 20)


@pytest.mark.parametrize("split", ["tensor", "data"])
def test_blocks_run_again_change_no_bit(two_ranks: Ranks, split: str):
    plain, again = (two_ranks(cases.trained, split, "adamw", torch.float32, a) for a in (0, 1))
    assert_close(again[0]["weights"], plain[0]["weights"], rtol=0, atol=0)
