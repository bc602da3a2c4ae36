"""What a run's own options say of its recipe and its mesh, read at this one place."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from srlm_fast.config import Config, get
from srlm_fast.options import OPTIONS

from .mesh import Mesh
from .recipe import FORMATS, KEEPS, Recipe
from .shape import adapter_rank


@dataclass(frozen=True)
class Settings:
    """shard: "yes", "no", or "auto" where it would not fit else. kv_gb None: the sampler's own."""

    recipe: Recipe
    checkpointing: bool
    tensor: int
    shard: str
    kv_gb: float | None

    def allows(self, recipe: Recipe) -> bool:
        """Whether what was asked for beside the defaults leaves this recipe to be chosen."""
        own = self.recipe
        return (
            (not own.lora_rank or own.lora_rank == recipe.lora_rank)
            and own.optimizer in ("adamw", recipe.optimizer)
            and own.base_dtype in ("model", recipe.base_dtype)
        )

    def allows_mesh(self, mesh: Mesh) -> bool:
        tensor = self.tensor in (1, mesh.tensor)
        return tensor and self.shard in ("auto", "yes" if mesh.shard else "no")


FREE = Settings(Recipe(), False, 1, "auto", None)


def settings_of(config: Config) -> Settings:
    optimizer, base = value(config, "--optimizer", "adamw"), value(config, "--base-dtype", "model")
    recipe = Recipe(
        optimizer if optimizer in KEEPS else "adamw",
        adapter_rank(config.model) or int(value(config, "--lora-rank", 0) or 0),
        base if base in FORMATS else "model",
    )
    return Settings(
        recipe,
        value(config, "--activation-checkpointing", "no") in ("yes", True),
        int(value(config, "--tensor-parallel", 1) or 1),
        value(config, "--shard", "auto"),
        value(config, "--kv-gb", None),
    )


def value(config: Config, name: str, default: Any) -> Any:
    """Of the option of that name; the default where there is no such option."""
    path = next((option.path for option in OPTIONS if option.name == name), None)
    return default if path is None else get(config, path)
