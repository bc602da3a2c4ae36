"""Training an adapter: the base stays, the reference is the round's starting adapter."""

from __future__ import annotations

import math

import pytest
import torch

from srlm_fast.model import LoraConfig, add_lora, lora_parameters, trainable_parameters
from srlm_fast.model.fp8 import Fp8Linear
from srlm_fast.model.int8 import Int8Linear
from srlm_fast.model.quantised import quantise_linears
from srlm_fast.train import DpoConfig, SftConfig, TrainingInterrupted, train_dpo, train_sft
from tests.train.helpers import make_pairs, make_rows, small_model, weights_of

KINDS = {"fp8": Fp8Linear, "int8": Int8Linear}
SETTINGS = {"learning_rate": 3e-2, "epochs": 2, "batch_pairs": 4, "beta": 0.3}


def adapted(base=None, dtype=torch.float32):
    model = small_model(dtype=dtype)
    if base is not None:
        quantise_linears(model, KINDS[base])
    return add_lora(model, LoraConfig(2, 4.0), seed=1)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
@pytest.mark.parametrize("base", [None, "fp8", "int8"])
def test_two_rounds_move_the_adapter_alone(base, dtype):
    model, pairs = adapted(base, dtype), make_pairs(8)
    before = weights_of(model)
    for _ in range(2):  # the second one starts from the first one's adapter
        report = train_dpo(model, pairs, DpoConfig(**SETTINGS))
        assert report.skipped_steps == 0 and report.margins[0] == 0
        # ln 2, but for the labels, which are no certainties: at a margin of 0 they do not matter.
        assert report.losses[0] == pytest.approx(math.log(2), abs=1e-6)
        assert report.margins[-1] > 0.01 and report.losses[-1] < report.losses[0]
    moved = {
        name
        for name, value in weights_of(model).items()
        if not torch.equal(value.float(), before[name].float())
    }
    assert moved == {name for name, _ in lora_parameters(model)}


def test_a_checkpoint_holds_what_is_trained_and_goes_on(tmp_path):
    pairs, config = make_pairs(8), DpoConfig(**SETTINGS)
    whole = adapted("int8")
    wanted = train_dpo(whole, pairs, config)
    calls, path = iter(range(2)), tmp_path / "c"
    with pytest.raises(TrainingInterrupted):
        stop = lambda: next(calls, None) is None  # noqa: E731
        train_dpo(adapted("int8"), pairs, config, checkpoint=path, stop=stop)
    tensors = torch.load(path, weights_only=True)["tensors"]
    own = {key.removeprefix("weights."): key for key in tensors if key.startswith("weights.")}
    saved = {name: tensors[key] for name, key in own.items()}
    assert saved.keys() == dict(lora_parameters(whole)).keys()
    assert sum(value.numel() for value in saved.values()) == trainable_parameters(whole)
    model = adapted("int8")
    report = train_dpo(model, pairs, config, checkpoint=path)
    assert report.losses == wanted.losses
    for (name, ours), (_, theirs) in zip(
        lora_parameters(model), lora_parameters(whole), strict=True
    ):
        assert torch.equal(ours, theirs), name


def test_frozen_weights_without_an_adapter_are_refused():
    model = quantise_linears(small_model(), Int8Linear)
    with pytest.raises(ValueError, match="no parameter that requires a gradient"):
        train_sft(model, make_rows(4), SftConfig())
