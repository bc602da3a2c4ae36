"""Adapters on weights that are split over two ranks: factors, gradients, samples and files."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from srlm_fast.model import add_lora, load_model, lora_parameters, random_model
from tests.model.test_load import byte_tokenizer

from . import cases, lora_cases
from .processes import Ranks
from .test_tensor_parallel import assert_same_samples


@pytest.mark.parametrize("name", list(lora_cases.ADAPTED))
def test_gradients_samples_and_files_are_those_of_one_rank(
    two_ranks: Ranks, name: str, tmp_path: Path
):
    found = two_ranks(lora_cases.split_lora, name, str(tmp_path))
    exact = lora_cases.adapted(name, torch.float64)
    cases.loss(exact).backward()
    for one in found:
        assert one["frozen"] and one["gradients"].keys() == dict(lora_parameters(exact)).keys()
        for key, factor in lora_parameters(exact):
            error = (one["gradients"][key] - factor.grad).norm() / factor.grad.norm()
            assert error < 1e-6, key
    model = lora_cases.adapted(name)
    whole = lora_cases.greedy(model)
    for one in found:
        assert_same_samples(one["answers"], whole)
    model.save(tmp_path / "whole")
    for file in sorted(path.name for path in (tmp_path / "whole").iterdir()):
        assert (tmp_path / name / file).read_bytes() == (tmp_path / "whole" / file).read_bytes()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base and an adapter beside it."""
    place = tmp_path_factory.mktemp("lora")
    config = cases.EVERY["llama"].replace(vocab_size=263)
    random_model(config, byte_tokenizer(), seed=1, std=0.25).save(place / "base")
    model = add_lora(load_model(place / "base"), lora_cases.ADAPTED["llama"])
    lora_cases.filled(model).save(place / "adapter")
    return place


@pytest.mark.parametrize("base_dtype", [None, "int8", "fp8"])
def test_it_is_read_into_the_parts_of_the_ranks(
    two_ranks: Ranks, folder: Path, base_dtype: str | None
):
    model = load_model(folder / "adapter", base_dtype=base_dtype)
    with torch.no_grad():
        wanted = cases.logits(model)
    # Each rank finds the fp8 scales of its own columns of what enters o and down.
    near = 5e-5 if base_dtype != "fp8" else 0.1 * float(wanted.std())
    for found in two_ranks(lora_cases.logits_of_loaded, str(folder / "adapter"), base_dtype):
        assert (found - wanted).square().mean().sqrt() < near


def test_a_fresh_adapter_is_that_of_its_seed(two_ranks: Ranks, folder: Path):
    model = add_lora(load_model(folder / "base"), lora_cases.ADAPTED["llama"], seed=7)
    for factors, late in two_ranks(lora_cases.fresh_and_late, str(folder / "base")):
        for key, factor in lora_parameters(model):
            assert torch.equal(factors[key], factor), key
        assert late == "model: weights split over ranks, wanted the adapter before that"


def test_copied_heads_cannot_have_their_adapter_trained(two_ranks: Ranks):
    for message in two_ranks(lora_cases.trains_copied_heads):
        assert message.startswith("num_key_value_heads: fewer than the ranks")


@pytest.mark.parametrize("base_dtype", [None, "fp8", "int8"])
def test_gradients_over_sharded_weights(two_ranks: Ranks, base_dtype: str | None):
    model = lora_cases.on_16_bits(base_dtype)
    cases.loss(model).backward()
    for found in two_ranks(lora_cases.sharded, base_dtype):
        for name, factor in lora_parameters(model):
            assert factor.grad.dtype == torch.float32
            torch.testing.assert_close(found[name], factor.grad, rtol=1e-5, atol=1e-6)
