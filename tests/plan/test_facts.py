"""Llama-2-70B against tables that were worked out by hand from its architecture: bytes of weights,
states and keys and values, and hours of one round at stated rates.
"""

from __future__ import annotations

import pytest
import torch

from srlm_fast.config import Config
from srlm_fast.model import PRESETS
from srlm_fast.plan import memory, shape
from srlm_fast.plan.activations import kept_bytes, layer_bytes
from srlm_fast.plan.cards import CARDS
from srlm_fast.plan.choice import Choice
from srlm_fast.plan.devices import Devices
from srlm_fast.plan.mesh import Mesh
from srlm_fast.plan.recipe import Recipe
from srlm_fast.plan.times import Rates
from srlm_fast.plan.work import Work

MODEL = PRESETS["llama-2-70b"].config
H200, H100 = CARDS["h200-141"], CARDS["h100-80"]
FULL, LORA, FP8 = Recipe("adamw-bf16"), Recipe(lora_rank=16), Recipe("adamw", 16, "fp8")
BF16 = 2
GB = 1e9


def test_what_the_model_is_made_of():
    assert MODEL.num_parameters() == pytest.approx(68.98e9, rel=1e-3)
    assert shape.matrix_parameters(MODEL) == pytest.approx(68.45e9, rel=1e-3)
    assert shape.adapter_parameters(MODEL, 16) == pytest.approx(207e6, rel=1e-3)
    assert shape.adapter_parameters(MODEL, 128) == pytest.approx(1.66e9, rel=3e-3)
    assert memory.kv_token_bytes(MODEL, BF16) == 320 * 1024
    assert memory.kv_token_bytes(MODEL, BF16, tensor=8) == 40 * 1024


def test_split_factors_of_an_adapter_are_whole_on_one_side():
    """By hand for rank 1 and two ranks: A of q, k, v, gate and up and B of o and down are whole."""
    whole = 5 * 8192 + 2 * 8192
    split = (8192 + 2 * 1024 + 2 * 28672) + (8192 + 28672)
    assert shape.adapter_parameters(MODEL, 1, tensor=2) == 80 * (whole + split / 2)


@pytest.mark.parametrize(("recipe", "total"), [(LORA, 138.0), (FP8, 69.5)])
def test_bytes_of_the_base(recipe: Recipe, total: float):
    adapter = 4 * shape.adapter_parameters(MODEL, 16)
    assert memory.weight_bytes(MODEL, recipe, 1, BF16) - adapter == pytest.approx(
        total * GB, rel=2e-3
    )


@pytest.mark.parametrize(
    ("optimizer", "per_parameter", "total", "on_8"),
    [("adamw", 16, 1104, 138), ("adamw-bf16", 8, 552, 69), ("adamw-8bit", 6, 414, 52)],
)
def test_state_of_full_training(optimizer: str, per_parameter: float, total: float, on_8: float):
    """Weights, one gradient as wide as they are, and what the optimizer keeps."""
    recipe = Recipe(optimizer)
    each = BF16 + sum(recipe.trained_bytes(torch.bfloat16, summed=False, shard=False))
    assert each == pytest.approx(per_parameter, abs=0.05)
    assert each * MODEL.num_parameters() / GB == pytest.approx(total, rel=0.01)
    assert each * shape.rank_parameters(MODEL, 8) / GB == pytest.approx(on_8, rel=0.02)


def test_summed_gradients_are_wide():
    assert FULL.trained_bytes(torch.bfloat16, summed=True, shard=False) == (4, 4)
    assert FULL.trained_bytes(torch.bfloat16, summed=True, shard=True) == (6, 4)
    assert LORA.trained_bytes(torch.bfloat16, summed=True, shard=True) == (4, 8)
    assert FULL.trained_bytes(torch.float16, summed=True, shard=False) == (4, 8)  # with masters


def test_an_adapter_takes_16_bytes_a_parameter():
    each = 4 + sum(LORA.trained_bytes(torch.bfloat16, summed=False, shard=False))
    assert each * shape.adapter_parameters(MODEL, 16) == pytest.approx(3.3 * GB, rel=0.01)


def test_activations_of_a_token():
    layer = layer_bytes(MODEL, BF16)
    assert layer == pytest.approx(0.32e6, rel=0.15)
    assert kept_bytes(MODEL, BF16, layer, checkpointing=True) == pytest.approx(1.31e6, rel=0.03)


def set_of(number: int, recipe: Recipe, tensor: int, nodes: int = 1) -> Choice:
    mesh = Mesh(number // tensor, tensor)
    config = Config(model="llama-2-70b")
    args = (MODEL, config, recipe, mesh, H200.memory_bytes, torch.bfloat16, True)
    return Choice(recipe, mesh, True, memory.memory_of(*args))


@pytest.mark.parametrize(
    ("number", "recipe", "tensor", "low", "high"),
    [(1, FP8, 1, 62, 75), (2, LORA, 2, 60, 75), (4, LORA, 4, 96, 105)],
)
def test_room_for_keys_and_values(
    number: int, recipe: Recipe, tensor: int, low: float, high: float
):
    assert low * GB <= set_of(number, recipe, tensor).memory.kv_room <= high * GB


# Hours of (answers, judgements, reading, reference, DPO).
HOURS = {
    "1 fp8, bf16 math": (1, FP8, 1, 1.0, (0.8, 1.7, 2.1, 0.8, 2.4)),
    "1 fp8": (1, FP8, 1, 1.5, (0.6, 1.3, 1.4, 0.5, 2.4)),
    "2": (2, LORA, 2, 1.5, (0.4, 0.9, 1.0, 0.4, 1.2)),
    "4": (4, LORA, 4, 1.5, (0.2, 0.5, 0.5, 0.2, 0.6)),
    "8": (8, LORA, 8, 1.5, (0.13, 0.26, 0.29, 0.11, 0.33)),
    "8 full": (8, FULL, 8, 1.5, (0.13, 0.26, 0.29, 0.11, 0.44)),
    "16 full": (16, FULL, 8, 1.5, (0.06, 0.13, 0.15, 0.06, 0.23)),
}
ROUND = (
    Work("answers", generated=8e6, sequences=20_000, context=650),
    Work("judge", generated=15e6, sequences=60_000, context=1150),
    Work("read", read=21.5e6),
    Work("reference", scored=8.25e6),
    Work("train", trained=8.25e6, steps=344),
)


@pytest.mark.parametrize(
    ("number", "recipe", "tensor", "speed", "hours"), HOURS.values(), ids=HOURS
)
def test_hours_of_a_round(
    number: int, recipe: Recipe, tensor: int, speed: float, hours: tuple[float, ...]
):
    nodes = -(-number // 8)
    devices = Devices(number // nodes, H200, nodes)
    choice = set_of(number, recipe, tensor)
    rates = Rates(MODEL, choice, devices, 2048, most_sequences=2048, fp8_speed=speed)
    found = [rates.time(work).seconds / 3600 for work in ROUND]
    for wanted, hour, work in zip(hours, found, ROUND, strict=True):
        # Between nodes gradients are exchanged after a step; the table has them hidden.
        share = 0.3 if work.trained and nodes > 1 else 0.15
        digit = 0.05 if number < 8 else 0.01
        assert hour == pytest.approx(wanted, rel=share, abs=digit), work.name


def test_a_step_of_one_sequence_is_the_weight_stream():
    rates = Rates(MODEL, set_of(1, FP8, 1), Devices(1, H200), 2048)
    step = rates.step(1, 1)
    assert step["decode math"] == 0
    assert step["weight stream"] == pytest.approx(1 / 49, rel=0.02)
    many = rates.step(256, 1)
    assert many["weight stream"] == 0
    assert many["decode math"] > step["weight stream"]
