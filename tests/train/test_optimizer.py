"""AdamW by its formula, schedules at their ends, masters where bf16 would stand still."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from srlm_fast.train import DpoConfig, SftConfig
from srlm_fast.train.optimizer import Optimizer, learning_rate


class Weights(nn.Module):
    def __init__(self, dtype=torch.float32, value=1.0):
        super().__init__()
        self.matrix = nn.Parameter(torch.full((2, 3), value, dtype=dtype))
        self.vector = nn.Parameter(torch.full((3,), value, dtype=dtype))

    def backward(self, grad=1.0):
        ((self.matrix.sum() + self.vector.sum()) * grad).backward()


def test_schedules_at_their_ends():
    cosine = SftConfig(learning_rate=2.0, final_fraction=0.2, warmup_steps=4)
    assert [learning_rate(cosine, i, 14) for i in range(5)] == [0.5, 1.0, 1.5, 2.0, 2.0]
    assert learning_rate(cosine, 9, 14) == pytest.approx(2 * 0.6)
    assert learning_rate(cosine, 14, 14) == pytest.approx(0.4)
    linear = SftConfig(learning_rate=2.0, final_fraction=0.5, schedule="linear")
    assert [learning_rate(linear, i, 4) for i in range(4)] == [2.0, 1.75, 1.5, 1.25]
    constant = SftConfig(learning_rate=2.0, schedule="constant")
    assert {learning_rate(constant, i, 4) for i in range(4)} == {2.0}


def test_a_step_is_adamw_with_decay_on_matrices_only():
    """First step: m / sqrt(v) = sign(grad), so w -> w (1 - lr decay) - lr."""
    model = Weights()
    optimizer = Optimizer(model, SftConfig(learning_rate=1.0, weight_decay=0.5, max_grad_norm=1e9))
    model.backward()
    optimizer.accumulate()
    optimizer.clip()
    optimizer.step(0.1)
    assert_close(model.matrix, torch.full((2, 3), 1 - 0.1 * 0.5 - 0.1))
    assert_close(model.vector, torch.full((3,), 1 - 0.1))


def test_clip_scales_to_the_norm_and_tells_the_norm_before():
    model = Weights()
    optimizer = Optimizer(model, SftConfig(learning_rate=1.0, max_grad_norm=0.5))
    model.backward(2.0)
    norm = optimizer.clip()
    assert_close(norm, torch.tensor(2 * math.sqrt(9)))
    after = math.sqrt(sum(float((p.grad**2).sum()) for p in model.parameters()))
    assert after == pytest.approx(0.5, rel=1e-5)


def test_master_weights_move_bf16_weights_that_would_stand_still():
    """lr 1e-3 at 1.0 is a quarter of a unit in bf16's last place: rounded off every single time."""
    moved = {}
    for masters in (True, False):
        model = Weights(torch.bfloat16)
        config = DpoConfig(learning_rate=1e-3, master_weights=masters, max_grad_norm=1e9)
        optimizer = Optimizer(model, config)
        for _ in range(20):
            model.backward()
            optimizer.accumulate()
            optimizer.clip()
            optimizer.step(1e-3)
            optimizer.zero()
        moved[masters] = 1 - model.vector[0].item()
    assert moved == {True: pytest.approx(0.02, rel=0.1), False: 0.0}


def test_master_weights_sum_the_gradients_of_micro_batches_in_fp32():
    """256 + 1 is 256 in bf16."""
    model = Weights(torch.bfloat16)
    optimizer = Optimizer(model, SftConfig())
    for grad in (256.0, 1.0):
        model.backward(grad)
        optimizer.accumulate()
    assert optimizer.masters[1].grad.tolist() == [257.0] * 3
    assert model.vector.grad is None


def test_no_trainable_parameter_is_refused():
    with pytest.raises(ValueError, match="no parameter that requires a gradient"):
        Optimizer(Weights().requires_grad_(False), SftConfig())


BAD = {
    "learning_rate": [0.0, -1.0, math.nan],
    "schedule": ["cosin"],
    "final_fraction": [-0.1, 1.1],
    "warmup_steps": [-1],
    "epochs": [0],
    "betas": [(0.9, 1.0)],
    "eps": [0.0],
    "weight_decay": [-1.0],
    "max_grad_norm": [0.0],
    "dropout": [1.0],
    "micro_batch_tokens": [0],
    "checkpoint_seconds": [-1.0],
    "batch_pairs": [0],
    "loss": ["ppo"],
    "beta": [0.0],
    "label_smoothing": [0.5],
    "gamma": [-1.0, 0.5],
    "nll_weight": [-0.1, math.inf],
}


@pytest.mark.parametrize("name", BAD)
def test_settings_out_of_range_are_named(name):
    for value in BAD[name]:
        with pytest.raises(ValueError, match=f"^{name}: "):
            DpoConfig(**{name: value})
    with pytest.raises(ValueError, match="^gamma: inf"):
        DpoConfig(loss="simpo", gamma=math.inf)
    with pytest.raises(ValueError, match="^batch_rows: 0"):
        SftConfig(batch_rows=0)
