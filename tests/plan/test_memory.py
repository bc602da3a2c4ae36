"""Memory by hand on small numbers, and what it depends on."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch

from srlm_fast.config import Config
from srlm_fast.model import PRESETS
from srlm_fast.plan.cards import CARDS
from srlm_fast.plan.choice import choices, chosen
from srlm_fast.plan.devices import Devices
from srlm_fast.plan.memory import Memory, memory_of
from srlm_fast.plan.mesh import Mesh, divides, meshes
from srlm_fast.plan.recipe import Recipe
from srlm_fast.plan.settings import FREE
from srlm_fast.plan.shape import adapter_parameters, rank_parameters

LLAMA_8B = Config(model="llama-3-8b")
LLAMA_70B = Config(model="llama-2-70b")
H200, H100 = CARDS["h200-141"], CARDS["h100-80"]


def memory(config: Config, mesh: Mesh | None = None, recipe: Recipe | None = None) -> Memory:
    model = PRESETS[config.model].config
    return memory_of(
        model, config, recipe or Recipe(), mesh or Mesh(), H100.memory_bytes, torch.bfloat16
    )


def test_tensor_ranks_share_matrices_and_have_norms_whole():
    model = PRESETS["llama-3-8b"].config
    norms = 65 * 4096
    assert rank_parameters(model, 1) == model.num_parameters()
    assert rank_parameters(model, 8) == (model.num_parameters() - norms) / 8 + norms
    one, eight = memory(LLAMA_70B), memory(LLAMA_70B, Mesh(1, 8))
    assert eight.kv_token == one.kv_token / 8
    assert eight.optimizer == pytest.approx(one.optimizer / 8, rel=1e-3)
    assert eight.activations > one.activations / 8  # the stream is whole on each


def test_sharded_ranks_share_what_trains_and_gather_what_samples():
    whole, shards = memory(LLAMA_8B, Mesh(4)), memory(LLAMA_8B, Mesh(4, shard=True))
    assert shards.weights == whole.weights / 4
    assert shards.optimizer == whole.optimizer / 4
    assert shards.sampling == whole.sampling == whole.weights
    assert whole.gathered == 0
    layer, tables = 218112000 * 2, (2 * 128256 + 1) * 4096 * 2
    assert shards.gathered == 2 * tables + 3 * layer
    adapter = memory(LLAMA_8B, Mesh(4, shard=True), Recipe(lora_rank=16))
    assert adapter.gathered < shards.gathered


def test_meshes_keep_copies_within_a_node_and_divide_heads():
    qwen = PRESETS["qwen2.5-7b"].config  # 4 key/value heads
    assert [(m.data, m.tensor) for m in meshes(qwen, Devices(8, H100)) if not m.shard] == [
        (8, 1),
        (4, 2),
        (2, 4),
    ]
    assert [m.tensor for m in meshes(qwen, Devices(8, H100)) if m.shard] == [4, 2, 1]
    assert {m.tensor for m in meshes(qwen, Devices(1, H100, nodes=4))} == {1}
    assert [m.data for m in meshes(qwen, Devices(3, H100))] == [3, 3]


def test_ranks_divide_heads_keys_and_the_feed_forward_width():
    model = PRESETS["llama-3-8b"].config  # 32 heads, 8 of keys and values, 14,336 wide
    assert [n for n in range(1, 33) if divides(model, n)] == [1, 2, 4, 8]
    assert not divides(model.replace(intermediate_size=14340), 8)
    assert not divides(model.replace(num_kv_heads=4), 8)


def test_gradients_of_micro_batches_and_of_data_ranks_are_wide():
    """16 pairs: in one piece on one rank, in several, or a pair on each of 16 ranks."""
    model, weights = PRESETS["llama-3-8b"].config, PRESETS["llama-3-8b"].config.num_parameters()
    dpo = dataclasses.replace(LLAMA_8B.dpo, micro_batch_tokens=10**6)
    whole = dataclasses.replace(LLAMA_8B, dpo=dpo)
    assert memory(whole).gradients == 2 * weights
    assert memory(LLAMA_8B).gradients == 4 * weights
    assert memory(whole, Mesh(16)).gradients == 4 * weights
    assert memory(whole, Mesh(16, shard=True)).gradients == 6 * weights / 16
    for mesh in (Mesh(), Mesh(16)):
        learned = adapter_parameters(model, 16)
        assert memory(whole, mesh, Recipe(lora_rank=16)).gradients == 4 * learned
        assert memory(whole, mesh, Recipe(lora_rank=16)).optimizer == 8 * learned


def test_more_memory_never_fits_less():
    model, fits = PRESETS["llama-3-8b"].config, []
    for size in range(20, 400, 40):
        card = dataclasses.replace(H100, memory_bytes=size * 1e9)
        found = choices(model, LLAMA_8B, Devices(1, card))
        fits.append([choice.fits for choice in found])
    for column in zip(*fits, strict=True):
        assert list(column) == sorted(column)
    assert not any(fits[0][:3])
    assert all(fits[-1])


@pytest.mark.parametrize(
    ("model", "devices", "recipe", "mesh"),
    [
        ("llama-2-70b", Devices(1, H200), "LoRA r=16 over fp8", "1 device"),
        ("llama-2-70b", Devices(8, H200), "full, adamw-bf16", "tp 8"),
        ("llama-2-70b", Devices(8, H100), "full, adamw-8bit", "tp 8"),
        ("llama-2-70b", Devices(2, H200), "LoRA r=16", "tp 2"),
        ("llama-2-70b", Devices(8, H200, 4), "full, adamw", "tp 8 x fsdp 4"),
        ("llama-3-8b", Devices(1, H100), "full, adamw-8bit", "1 device"),
        ("qwen2.5-0.5b", Devices(1, H100), "full, adamw", "1 device"),
        ("qwen2.5-0.5b", Devices(8, H100), "full, adamw", "dp 8"),
        ("llama-2-70b", Devices(8, CARDS["a100-80"]), "full, adamw-8bit", "tp 8"),
        ("llama-2-70b", Devices(2, CARDS["a100-80"]), "LoRA r=16 over int8", "tp 2"),
    ],
)
def test_what_is_chosen(model: str, devices: Devices, recipe: str, mesh: str):
    found = chosen(choices(PRESETS[model].config, Config(model=model), devices))
    assert found is not None
    assert (found.recipe.name, found.mesh.name) == (recipe, mesh)


def test_the_first_that_fits_is_chosen_and_weights_lie_still_where_they_can():
    found = choices(PRESETS["llama-2-70b"].config, LLAMA_70B, Devices(8, H200))
    assert [choice.fits for choice in found] == [False, True, True, True, True, True]
    assert chosen(found) is found[1]
    assert not any(choice.mesh.shard for choice in found if choice.fits)


def test_what_was_asked_for_is_kept():
    model, devices = PRESETS["llama-2-70b"].config, Devices(8, H200)

    def first(**asked: object) -> tuple[str, str, bool]:
        said = dataclasses.replace(FREE, **asked)
        found = chosen(choices(model, LLAMA_70B, devices, said))
        assert found is not None
        return found.recipe.name, found.mesh.name, found.checkpointing

    assert first() == ("full, adamw-bf16", "tp 8", False)
    assert first(recipe=Recipe("adamw-8bit")) == ("full, adamw-8bit", "tp 8", False)
    assert first(recipe=Recipe(lora_rank=64))[0] == "LoRA r=64"
    assert first(recipe=Recipe("adamw-8bit", 8, "int8"))[0] == "LoRA r=8 over int8, adamw-8bit"
    again = first(tensor=4, checkpointing=True, recipe=Recipe("adamw-8bit"))
    assert again[1:] == ("tp 4 x fsdp 2", True)
    assert first(tensor=4, shard="yes")[1] == "tp 4 x fsdp 2"


def test_longer_answers_take_more_room():
    longer = dataclasses.replace(LLAMA_8B.candidates, max_tokens=2048)
    config = dataclasses.replace(LLAMA_8B, candidates=longer)
    assert memory(config).activations > memory(LLAMA_8B).activations
    assert memory(config).least_tokens > memory(LLAMA_8B).least_tokens


def test_a_reward_model_stands_beside_the_weights_while_it_scores(tmp_path: Path):
    (tmp_path / "model.safetensors").write_bytes(b"x" * 3000)
    config = dataclasses.replace(LLAMA_8B, reward="model", reward_model=str(tmp_path))
    assert memory(config).reward_model == 3000
    assert memory(LLAMA_8B).reward_model == 0
    trained = dataclasses.replace(LLAMA_8B, reward="model", reward_pairs_file="p.jsonl")
    found = memory(trained)
    assert found.reward_model == found.weights
    room = dataclasses.replace(found, available=found.training / 0.94)
    assert room.fits
    assert not dataclasses.replace(room, reward_model=found.training).fits
    missing = dataclasses.replace(config, reward_model=str(tmp_path / "none"))
    assert memory(missing).reward_model == 0
