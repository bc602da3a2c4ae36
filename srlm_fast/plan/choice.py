"""What fits on the devices, and which of it is chosen.

The rule: all weights before LoRA, LoRA over the model's own weights before a quantised base; of an
optimizer, the one that keeps the most; and of what then fits, weights that lie still before weights
that are gathered, nothing computed twice before checkpointing, and the first of the meshes.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from srlm_fast.config import Config
from srlm_fast.model import ModelConfig
from srlm_fast.model.load import DTYPES

from .cards import CARDS
from .devices import Devices
from .lengths import context_tokens
from .memory import LEAST_SEQUENCES, Memory, default_pool, kv_token_bytes, memory_of
from .mesh import Mesh, meshes
from .recipe import LORA_RANK, Recipe, recipes
from .settings import FREE, Settings, settings_of
from .shape import adapter_rank
from .units import GB

SHARDED = {"yes": (True,), "no": (False,), "auto": (False, True)}
RULE = "full before LoRA before a quantised base, then the optimizer that keeps the most"
# What is suggested where a model does not fit, the least first.
HOLDERS = [
    (nodes, number, card)
    for nodes, number in ((1, 1), (1, 2), (1, 4), (1, 8), (2, 8), (4, 8), (8, 8))
    for card in ("h100-80", "h200-141")
]


@dataclass(frozen=True)
class Choice:
    """A recipe on a mesh, and what it takes there."""

    recipe: Recipe
    mesh: Mesh
    checkpointing: bool
    memory: Memory

    @property
    def fits(self) -> bool:
        return self.memory.fits

    def options(self) -> list[str]:
        checkpointing = ["--activation-checkpointing", "yes"] if self.checkpointing else []
        return self.mesh.options() + self.recipe.options() + checkpointing

    @property
    def name(self) -> str:
        return self.recipe.name + (", checkpointed" if self.checkpointing else "")


def dtype_of(config: Config, devices: Devices) -> str:
    return config.dtype or ("float32" if devices.card.name == "cpu" else "bfloat16")


def choices(
    model: ModelConfig, config: Config, devices: Devices, said: Settings = FREE
) -> list[Choice]:
    """For every recipe that `said` leaves open, the preferred of what fits, or what comes nearest.
    An adapter is trained on as the adapter it is.
    """
    adapter, own = adapter_rank(config.model), said.recipe
    rank = adapter or own.lora_rank or LORA_RANK
    known = recipes(dtype_of(config, devices), devices.card.fp8, rank, own.optimizer)
    known = [recipe for recipe in known if recipe.lora_rank or not adapter]
    open_ones = [recipe for recipe in known if said.allows(recipe)] or known
    return [best_of(model, config, devices, recipe, said) for recipe in open_ones]


def best_of(
    model: ModelConfig, config: Config, devices: Devices, recipe: Recipe, said: Settings = FREE
) -> Choice:
    dtype, memory = DTYPES[dtype_of(config, devices)], devices.card.memory_bytes
    every = meshes(model, devices)
    open_ones = [mesh for mesh in every if said.allows_mesh(mesh)] or every
    ordered = sorted(
        ((m, again) for m in open_ones for again in (False, True) if again >= said.checkpointing),
        key=lambda each: (each[0].shard, each[1]),
    )
    pool = host_pool(model, config, devices) if devices.card.name == "cpu" else None
    pool = pool if said.kv_gb is None else said.kv_gb * GB
    tried = [
        Choice(recipe, m, again, memory_of(model, config, recipe, m, memory, dtype, again, pool))
        for m, again in ordered
    ]
    fitting = [choice for choice in tried if choice.fits]
    return fitting[0] if fitting else min(tried, key=lambda choice: choice.memory.training)


def host_pool(model: ModelConfig, config: Config, devices: Devices) -> float:
    """The sampler's own, unless that is too small."""
    least = LEAST_SEQUENCES * context_tokens(config)
    needed = least * kv_token_bytes(model, DTYPES[dtype_of(config, devices)].itemsize)
    return max(default_pool(devices.card.memory_bytes, True), needed)


def chosen(found: Iterable[Choice]) -> Choice | None:
    return next((choice for choice in found if choice.fits), None)


def as_given(model: ModelConfig, config: Config, devices: Devices) -> Choice:
    """What the run's own options say."""
    said, available = settings_of(config), devices.card.memory_bytes
    pool = default_pool(available, devices.card.name == "cpu")
    pool = pool if said.kv_gb is None else said.kv_gb * GB
    data = max(1, devices.number // said.tensor)
    again, dtype = said.checkpointing, DTYPES[dtype_of(config, devices)]
    tried = []
    for shard in SHARDED[said.shard]:
        mesh = Mesh(data, said.tensor, shard)
        memory = memory_of(model, config, said.recipe, mesh, available, dtype, again, pool, least=1)
        tried.append(Choice(said.recipe, mesh, again, memory))
    return chosen(tried) or tried[-1]


def holders(model: ModelConfig, config: Config) -> list[str]:
    """The fewest devices on which some recipe fits, and on which all weights can be learned."""
    found: dict[str, str] = {}
    for nodes, number, card in HOLDERS:
        devices = Devices(number, CARDS[card], nodes)
        choice = chosen(choices(model, config, devices))
        if choice is not None and choice.recipe.kind not in found:
            found[choice.recipe.kind] = f"{devices.name} ({choice.name})"
        if "full" in found:
            break
    return list(found.values())
