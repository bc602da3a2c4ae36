"""AdamW by its formula, schedules at their ends, and each way to keep what lies between steps."""

from __future__ import annotations

import copy
import math
from types import SimpleNamespace

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from srlm_fast.model import PackedContext
from srlm_fast.train import DpoConfig, SftConfig, TrainingInterrupted, train_dpo
from srlm_fast.train.config import OPTIMIZERS
from srlm_fast.train.optimizer import Optimizer, bytes_per_parameter, learning_rate
from srlm_fast.train.step import train_step
from tests.train.helpers import assert_same_weights, make_pairs, small_model, weights_of


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
    optimizer.step(0.0)
    moments = optimizer.state()["first"].values()  # a tenth of the gradients
    after = 10 * math.sqrt(sum(float((m**2).sum()) for m in moments))
    assert after == pytest.approx(0.5, rel=1e-5)


@pytest.mark.parametrize("kind", OPTIMIZERS)
@pytest.mark.parametrize("masters", [True, False])
def test_bf16_weights_follow_the_fp32_ones_at_lr_1e_6(kind, masters):
    """An update is a hundredth of a unit in a weight's last place here: rounded to the nearest, not
    one of the weights would move.
    """
    start = torch.randn(256, 256, generator=torch.Generator().manual_seed(0)) * 0.02
    drift = {}
    for dtype in (torch.float32, torch.bfloat16):
        model = nn.Module()
        model.weight = nn.Parameter(start.bfloat16().to(dtype))
        own = {"optimizer": kind, "master_weights": masters} if dtype == torch.bfloat16 else {}
        optimizer = Optimizer(model, DpoConfig(learning_rate=1e-6, **own), seed=4)
        generator = torch.Generator().manual_seed(1)
        for _ in range(40):
            noise = torch.randn(256, 256, generator=generator)
            model.weight.grad = (noise + start.sign()).to(dtype)
            optimizer.step(1e-6)
            optimizer.zero()
        drift[dtype] = model.weight.detach().float() - start.bfloat16().float()
    exact, ours = drift[torch.float32], drift[torch.bfloat16]
    assert (exact / 1e-6).abs().mean() > 15
    # The part of the exact drift that ours has. Its error: a unit is 1e-4, 2^16 weights.
    assert ((ours * exact).sum() / (exact * exact).sum()).item() == pytest.approx(1, abs=0.04)


@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_moments_decay_where_rounding_to_the_nearest_would_hold_them(kind):
    """A thousandth a step, below half a unit of bf16 (2^-8) and of 8 bits (2^-6 at best)."""
    model = nn.Module()
    model.weight = nn.Parameter(torch.zeros(64, 256))
    optimizer = Optimizer(model, DpoConfig(optimizer=kind))
    model.weight.grad = torch.rand(64, 256, generator=torch.Generator().manual_seed(2)) + 0.5
    optimizer.step(0.0)
    before = optimizer.state()["second"]["weight"].clone()
    later = torch.zeros(64, 256)
    later[:, 0] = 2.0  # one of each block stays, and the block's scale with it
    for _ in range(100):
        model.weight.grad = later.clone()
        optimizer.step(0.0)
    ratio = optimizer.state()["second"]["weight"][:, 1:].sum() / before[:, 1:].sum()
    assert ratio.item() == pytest.approx(0.999**100, abs=0.005)


def test_half_precision_gradients_of_micro_batches_are_summed_in_fp32():
    """256 + 1 is 256 in bf16. None stays behind in bf16 while the next ones are computed."""
    model = Weights(torch.bfloat16)
    optimizer, left = Optimizer(model, SftConfig()), []
    with optimizer.summing(True):
        for grad in (256.0, 1.0):
            model.backward(grad)
            left += [param.grad for param in model.parameters()]
            optimizer.accumulate()
    assert left == [None] * 4
    found = optimizer.gradient(model.vector)
    assert found.dtype == torch.float32 and found.tolist() == [257.0] * 3
    assert optimizer.clip().item() == pytest.approx(3 * 257)


def test_the_gradient_of_a_single_micro_batch_is_the_parameters_own():
    model = Weights(torch.bfloat16)
    optimizer = Optimizer(model, SftConfig(max_grad_norm=1e9))
    with optimizer.summing(False):
        model.backward(3.0)
        optimizer.accumulate()
    assert optimizer.gradient(model.vector).data_ptr() == model.vector.grad.data_ptr()
    optimizer.clip()
    optimizer.step(1e-2)
    other = Weights(torch.bfloat16)  # as if it had been summed
    summed = Optimizer(other, SftConfig(max_grad_norm=1e9))
    with summed.summing(True):
        other.backward(3.0)
        summed.accumulate()
    summed.clip()
    summed.step(1e-2)
    assert torch.equal(model.matrix, other.matrix)
    optimizer.zero()
    with optimizer.summing(False):  # the hooks of another step are gone
        model.backward()
    assert model.vector.grad is not None


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_bytes_per_parameter_are_those_of_the_tensors(kind, dtype):
    model = nn.Linear(512, 64, bias=False, dtype=dtype)
    optimizer = Optimizer(model, DpoConfig(optimizer=kind))
    for micro_batches in (1, 2):
        with optimizer.summing(micro_batches > 1):
            for _ in range(micro_batches):
                model(torch.ones(1, 512, dtype=dtype)).sum().backward()
                optimizer.accumulate()
        gradient = optimizer.gradient(model.weight).nbytes
        (trained,) = optimizer.trained
        stores = [value for s in (trained.first, trained.second) for value in vars(s).values()]
        kept = [t for t in (*stores, trained.master) if isinstance(t, torch.Tensor)]
        measured = gradient / 2**15, sum(t.nbytes for t in kept) / 2**15
        assert measured == bytes_per_parameter(kind, dtype, micro_batches=micro_batches)
        optimizer.zero()


def test_the_headings_bytes():
    """Weight, gradient and state of a bf16 model."""
    totals = {
        kind: 2 + sum(bytes_per_parameter(kind, torch.bfloat16, micro_batches=1))
        for kind in OPTIMIZERS
    }
    assert totals == {"adamw": 16, "adamw-bf16": 8, "adamw-8bit": 6 + 8 / 256}
    assert bytes_per_parameter("adamw-8bit", torch.bfloat16, master_weights=True)[1] == 6 + 8 / 256
    assert bytes_per_parameter("adamw", torch.bfloat16, master_weights=False)[1] == 8


@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_a_step_that_is_not_finite_leaves_everything_alone(kind):
    model = small_model(dtype=torch.bfloat16)
    config = DpoConfig(optimizer=kind, learning_rate=1e-2)
    optimizer = Optimizer(model, config, seed=1)
    ids = torch.arange(8)
    context = PackedContext([8], model.config.windows)

    def step(scale):
        def objective(model, micro_batch):
            return model(ids, context.positions, context).sum() * scale, torch.zeros(0)

        batch = SimpleNamespace(idle=False, token_ids=ids)
        return train_step(model, [batch], objective, 1.0, optimizer, 1e-2)

    assert step(1.0).applied
    before = copy.deepcopy((weights_of(model), optimizer.state()))
    for scale in (math.nan, math.inf):
        assert not step(scale).applied
    after = weights_of(model), optimizer.state()
    assert_close(after, before, rtol=0, atol=0)
    assert step(1.0).applied and optimizer.num_steps == 2
    assert not torch.equal(weights_of(model)["embed.weight"], before[0]["embed.weight"])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_stopped_and_resumed_is_unbroken(kind, dtype, tmp_path):
    config = DpoConfig(optimizer=kind, learning_rate=1e-2, batch_pairs=4, weight_decay=0.1)
    pairs, calls = make_pairs(20), iter(range(3))
    whole, model = small_model(dtype=dtype), small_model(dtype=dtype)
    wanted = train_dpo(whole, pairs, config, seed=2)
    with pytest.raises(TrainingInterrupted):
        keep = {"checkpoint": tmp_path / "c", "stop": lambda: next(calls, None) is None}
        train_dpo(small_model(dtype=dtype), pairs, config, seed=2, **keep)
    report = train_dpo(model, pairs, config, seed=2, checkpoint=tmp_path / "c")
    assert report.losses == wanted.losses and wanted.losses[-1] < wanted.losses[0]
    assert_same_weights(model, whole)
    if (kind, dtype) != ("adamw", torch.float32):  # the seed decides how numbers are rounded
        other = small_model(dtype=dtype)
        train_dpo(other, pairs, config, seed=3)
        assert not torch.equal(other.head, model.head)


def test_what_cannot_be_rounded_at_random_is_refused():
    with pytest.raises(ValueError, match="^optimizer: 'adamw-8bit' for float64 weights"):
        Optimizer(Weights(torch.float64), DpoConfig(optimizer="adamw-8bit"))
    with pytest.raises(ValueError, match="^master_weights: False for torch.float16 weights"):
        Optimizer(Weights(torch.float16), DpoConfig(master_weights=False))
    assert (
        Optimizer(Weights(torch.float16), DpoConfig(optimizer="adamw-bf16")).trained[0].master
        is not None
    )


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
    "optimizer": ["adam"],
    "evaluate_every": [-1],
    "patience": [-1],
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
